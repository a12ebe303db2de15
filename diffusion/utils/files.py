"""Files that are whole or absent, short hashes of what they hold, and an error as one line."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import logging
import os
import re
import stat
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # not a Unix: what a killed process left then stays
    fcntl = None  # type: ignore[assignment]  # else it is the module

log = logging.getLogger(__name__)

LONG_HASH = 1_000_000_000  # bytes that take a second or more to hash
MOST_DEPTH = 200  # of lists and objects in JSON
LFS_POINTER = b"version https://git-lfs"  # how a file of some 130 bytes begins that stands for a large one
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")  # what `write` calls a file until it is whole


class _Raw(io.FileIO):
    """A file that remembers why it could not be written: libraries make other errors of it."""

    problem: OSError | None = None

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            self.problem = error
            raise


def write(path: str | Path, fill: Callable[[BinaryIO], object], make_folder: bool = True) -> None:
    """fill(file) writes a file beside this path, which is synced and renamed: whatever kills the process, it is whole or absent.

    Raises OSError with path and cause where it cannot be written, or is no regular file, and leaves an older one as it was.
    """
    path = Path(path)
    if wrong := irregular(path):  # which renaming would replace: a link, a pipe, as root even a device
        raise OSError(errno.EINVAL, wrong, str(path))
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    # process ids and host names repeat, in containers too; a name may fill what the file system takes
    temporary = path.with_name(f".{path.name[:50]}.{uuid.uuid4().hex}.tmp")
    raw = None
    try:
        raw = _open_locked(temporary)
        with io.BufferedRandom(raw) as file:  # past the writer, numpy takes the descriptor and loses the cause
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            if fcntl:  # while it is locked, or a remover could still take it
                os.replace(temporary, path)
        if not fcntl:  # Windows renames no open file
            os.replace(temporary, path)
    except Exception as error:
        cause = (raw and raw.problem) or error
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno or 0, cause.strerror or one_line(cause), str(path)) from None
    finally:
        with contextlib.suppress(OSError):  # on a disk that is gone this fails too, and must not hide the cause
            temporary.unlink()


def _open_locked(path: Path) -> _Raw:
    """A new file, locked; anew where another process took it for one that was left, before the lock was there."""
    for _ in range(100):  # some file systems always say that a file has no name
        raw = _Raw(path, "w+b")
        if not _lock(raw, 0) or os.fstat(raw.fileno()).st_nlink:
            break
        raw.close()
    return raw if not raw.closed else _Raw(path, "w+b")


def _lock(file, how: int) -> bool:
    """Marks a file as being written for as long as it is open and its process lives. False where that cannot be had."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | how)
    except OSError:  # held by another process, or a file system without locks
        return False
    return True


def lock(file) -> bool:
    """Locks an open file until it is closed. False where another process has it, or where there are no locks."""
    return fcntl is not None and _lock(file, fcntl.LOCK_NB)


def remove_temporaries(folder: Path, before: float) -> None:
    """Removes what processes that were killed left of `write` in this folder.

    before: modification time in seconds since the epoch by the file system's clock; what is younger stays, and so does what a
    living process, here or on another machine, has open. A file system without locks keeps everything.
    """
    for path in Path(folder).glob(".*.tmp") if fcntl else ():
        with contextlib.suppress(OSError):  # another process was faster
            if TEMPORARY.fullmatch(path.name) and path.stat().st_mtime < before:
                with open(path, "rb+") as file:
                    if _lock(file, fcntl.LOCK_NB):
                        path.unlink()


def try_writing(folder: Path) -> float:
    """Writes and removes a small file where the folder is, or would be made; its modification time.

    Raises OSError with path and cause where that fails.
    """
    whole = folder.absolute()
    place = next(path for path in (whole, *whole.parents) if os.path.lexists(path))
    trial = place / f".trial.{uuid.uuid4().hex}.tmp"
    try:
        for name in whole.relative_to(place).parts:
            with contextlib.suppress(FileNotFoundError):
                os.lstat(place / name)  # which fails for a name that is too long, as making it would
        with io.BufferedRandom(_open_locked(trial)) as file:  # or another start of this run takes it for one that was left
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_mtime
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()


def irregular(path: str | Path) -> str | None:
    """What is in the place of a file and is none, in words; None for a file, and where there is nothing."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # too long a name, a loop of links, a NUL
        return f"cannot be a file's name ({getattr(error, 'strerror', None) or error})"
    kinds = {stat.S_IFREG: None, stat.S_IFLNK: "is a symbolic link", stat.S_IFDIR: "is a directory", stat.S_IFIFO: "is a pipe"}
    return kinds.get(stat.S_IFMT(mode), "is a device or a socket")


def try_file(path: Path) -> None:
    """Raises OSError with path and cause where `write` could not make this file."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if wrong := irregular(path):
        raise OSError(errno.EINVAL, wrong, str(path))
    try_writing(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """UTF-8, whole or absent."""
    write(path, lambda file: file.write(text.encode()))


def csv_text(rows) -> str:
    """Rows of cells as the text of a CSV file, a line ending in \\n."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_csv(path: str | Path, rows) -> None:
    """Rows of cells, the first of them the names of the columns; whole or absent. Raises OSError as `write` does."""
    write_text(path, csv_text(rows))


def read_csv(
    path: str | Path, what: str, columns: Sequence[str], optional: Sequence[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """(number, column -> cell) of every row of a CSV file (UTF-8, with a header) that is not blank; the header is row 1.

    what: how messages call the file; columns: which the header must have, beside any others; optional: those of them that are
    read where they are there. Raises ValueError with one line that names the file, and the row where there is one.
    """
    must = f"the header must hold {','.join(columns)}"
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        lines = [(number, row) for number, row in enumerate(csv.reader(io.StringIO(text, newline="")), start=1) if row]
    except UnicodeDecodeError as error:
        place = f"no UTF-8 in line {error.object.count(bytes([10]), 0, error.start) + 1}"
        raise ValueError(f"{path}: not a readable {what} ({place}: save it as UTF-8)") from None
    except (OSError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable {what} ({one_line(error)})") from error
    if not lines:
        raise ValueError(f"{path}: empty file; {must}")
    header = [name.strip() for name in lines[0][1]]
    missing = [name for name in columns if name not in header]
    twice = [name for name in (*columns, *optional) if header.count(name) > 1]
    if missing or twice:
        raise ValueError(f"{path}: column {', '.join(missing or twice)} {'missing' if missing else 'twice'}; {must}")
    uneven = next(((number, row) for number, row in lines if len(row) != len(header)), None)
    if uneven:
        raise ValueError(
            f"{path}: row {uneven[0]} has {len(uneven[1])} fields, not {len(header)}; quote a value that holds a comma"
        )
    return [(number, dict(zip(header, row, strict=True))) for number, row in lines[1:]]


def read_json(path: str | Path, kinds: Mapping[str, type] = MappingProxyType({})) -> dict:
    """The object of a JSON file in UTF-8. kinds: key -> the type of its value, for the keys that it must have.

    Raises ValueError that names the file, and the key where one is missing or of another type; OSError for a file that cannot be
    read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        _check_depth(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object, but a {type(content).__name__}")
    for key, kind in kinds.items():
        if key not in content:
            raise ValueError(f"{path} has no {key!r}")
        if not isinstance(content[key], kind) or (isinstance(content[key], bool) and kind is not bool):  # True is an int, too
            raise ValueError(f"{path}: {key!r} is {json.dumps(content[key])[:60]}, not of type {kind.__name__}")
    return content


def _check_depth(content) -> None:
    """Raises ValueError for what is nested so deep that walking through it may fail."""
    level = [content]
    for _ in range(MOST_DEPTH):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        if not (level := [value for values in inner for value in values]):
            return
    raise ValueError(f"nested deeper than {MOST_DEPTH} levels")


def load_tensors(path: str | Path) -> Any:
    """What torch.save wrote to the file, on the CPU; nothing in it is run.

    What torch warns of on the way, such as another protocol of pickle, it then loads or not: raises whatever it runs into.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def fingerprint(*parts) -> str:
    """A short hash of bytes, or of anything that JSON can write."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else json.dumps(part).encode())
    return digest.hexdigest()[:16]


def hash_files(root: Path, files) -> str:
    """A short hash of files below root: of their names relative to it and of what they hold, whatever their order.

    Raises ValueError for a pointer of Git LFS in the place of a file.
    """
    digest, files = hashlib.sha256(), sorted(files)
    n_bytes = sum(path.stat().st_size for path in files)
    if n_bytes >= LONG_HASH:
        log.info("Hashing %.1f GB in %s, to tell them from others ...", n_bytes / 1e9, root)
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode())
        with open(path, "rb") as file:
            if file.peek(len(LFS_POINTER)).startswith(LFS_POINTER):
                raise ValueError(f"{path} is a pointer of Git LFS, and what it points at is not here: run `git lfs pull` there")
            while block := file.read(1 << 24):
                digest.update(block)
    return f"sha256 {digest.hexdigest()[:16]}"


def one_line(error: BaseException | str) -> str:
    """What an exception says without its line breaks, or its type where it says nothing; of a file `path: cause`."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return " ".join(f"{error.filename}: {error.strerror}".split())
    return " ".join(str(error).split()) or type(error).__name__
