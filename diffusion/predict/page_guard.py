"""Who may talk to a page on this machine, and how much may lie in its folder of uploads."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from diffusion.utils import files

PREFIX = "diffusion-classifier-demo-"  # of folders of uploads
LOCK = ".open"  # in one, held as long as its page is served
YOUNG = 60  # seconds in which a folder may be without its lock
FORGOTTEN = 600  # seconds after which an upload that nobody has read goes, where room is needed


@contextlib.contextmanager
def upload_folder() -> Iterator[Path]:
    """A new folder that goes in the end. Those that killed pages have left go now."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _remove_unused(left)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, open(Path(folder) / LOCK, "wb") as lock:
        files.lock(lock)
        yield Path(folder)


def _remove_unused(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another user's, or another start was faster
        if (folder / LOCK).exists():
            with open(folder / LOCK, "rb+") as lock:
                if files.lock(lock):
                    shutil.rmtree(folder)
        elif folder.stat().st_mtime < time.time() - YOUNG:
            shutil.rmtree(folder)


class Guard:
    """An ASGI app around another: answers this page's own requests only, and uploads as long as there is room.

    A foreign site can have its name point to this machine, so that Host is checked, and can send forms here, so that Origin is.
    hosts: names with port; folder: of uploads; most: bytes of one, room: of all that lie there or are on their way.
    """

    def __init__(self, app, hosts: frozenset[str], folder: Path, most: int, room: int):
        self.app, self.hosts, self.folder, self.most, self.room, self.coming = app, hosts, folder, most, room, 0

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.lower(): value.decode("latin1") for name, value in scope["headers"]}
        if headers.get(b"host") not in self.hosts or not self._same_origin(headers.get(b"origin")):
            return await _refuse(send, 403, "this page answers its own requests only")
        if scope.get("method") != "POST" or not scope["path"].rstrip("/").endswith("/upload"):
            return await self.app(scope, receive, send)
        return await self._upload(headers.get(b"content-length", ""), scope, receive, send)

    def _same_origin(self, origin: str | None) -> bool:
        return origin is None or (origin.removeprefix("http://") in self.hosts and origin.startswith("http://"))

    async def _upload(self, length: str, scope, receive, send):
        if not (length.isascii() and length.isdigit()) or int(length) > self.most:
            return await _refuse(send, 413, "an upload needs a length, which is too large or missing")
        if not self._has_room(int(length)):
            return await _refuse(send, 507, "too many uploads at once: try again")
        self.coming += int(length)
        try:
            return await self.app(scope, receive, send)
        finally:
            self.coming -= int(length)

    def _has_room(self, n: int) -> bool:
        """Whether so many bytes more may come; forgotten uploads go where they may not."""
        if self._held() + n > self.room:
            for path in self._uploads():
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < time.time() - FORGOTTEN:
                        path.unlink()
        return self._held() + n <= self.room

    def _held(self) -> int:
        return self.coming + sum(path.stat().st_size for path in self._uploads() if path.exists())

    def _uploads(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file() and path.name != LOCK]


async def _refuse(send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
