"""The world of tests/hostile_files.py, made once on a machine: in the temporary folder, by a hash of what it is made of.

Processes of pytest-xdist and later sessions find it there. Who uses it holds a shared lock on it, who makes it an exclusive one.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import time
from pathlib import Path

import hostile_files
from conftest import KEPT, ROOT

SOURCES = ("*.py", "diffusion/**/*", "DiT/**/*", "prompts/*", "shipped/**/*", "tests/hostile_files.py", "tests/*layouts.py")
UNUSED = 24 * 3600  # seconds after which another checkout's world goes


def key(root: Path = ROOT) -> str:
    """Two hashes: of where this checkout lies, which links and runs name, and of its sources and models and what is installed."""
    checkout = hashlib.sha256(str(root).encode()).hexdigest()[:8]
    installed = sorted(f"{found.name} {found.version}" for found in importlib.metadata.distributions())
    found = hashlib.sha256(repr((sys.version, installed)).encode())
    for path in sorted(path for pattern in SOURCES for path in root.glob(pattern)):
        if path.is_file() and path.suffix != ".pyc":
            content = path.read_bytes()
            found.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return f"{checkout}-{found.hexdigest()[:16]}"


@contextlib.contextmanager
def world(name: str, build, place: Path = KEPT):
    """The folder of this name, which build(folder) fills where it is not whole. Raises AssertionError where somebody has written
    there meanwhile; the next session then makes it again."""
    folder, inside = place / name, place / f"{name}.json"
    with open(place / f"{name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not _whole(folder, inside):
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _whole(folder, inside):
                _make(folder, inside, build)
            fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(lock.name)
        yield folder
        if not _whole(folder, inside):
            inside.unlink(missing_ok=True)
            raise AssertionError(f"{folder} is not as it was: a test has written there")


def _whole(folder: Path, inside: Path) -> bool:
    return inside.is_file() and json.loads(inside.read_text()) == hostile_files.listing(folder)


def _make(folder: Path, inside: Path, build) -> None:
    """inside: the list of what is in it, written last."""
    _forget(folder)
    inside.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    build(folder)
    inside.write_text(json.dumps(hostile_files.listing(folder)))


def _forget(folder: Path) -> None:
    """Takes away this checkout's earlier worlds and those that nobody has used lately, but none in use. The locks stay: somebody
    may be waiting for one."""
    checkout = folder.name.partition("-")[0]
    for path in folder.parent.glob("*.lock"):
        earlier = path.name.startswith(f"{checkout}-") and path.stem != folder.name
        with open(path) as lock, contextlib.suppress(BlockingIOError):
            if earlier or path.stat().st_mtime < time.time() - UNUSED:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.with_suffix(".json").unlink(missing_ok=True)
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
