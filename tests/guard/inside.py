"""Holds every Python process of the tests to the repository, its environment and the temporary folder: no other file is opened.

tests/conftest.py puts this folder on PYTHONPATH, so that each Python that a test starts is held from its first line. What a test
needs it makes, in miniature: dictionaries, data sets and caches that one machine happens to have are missing on the next.
"""

import os
import sys
import sysconfig
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/lib", "/lib64", "/usr/lib", "/usr/lib64")  # of the machine itself, none of it data
ANYWHERE = {"fonts", ".fonts", "zoneinfo"}  # which libraries look through by themselves
NAMED = "FASHION_MNIST"  # in the environment: a folder that whoever runs the tests allows
EVENTS = ("open", "os.listdir", "os.scandir")


class Outside(BaseException):
    """No OSError, which a command would tell as bad input, nor an Exception, which a library would pass over."""


def allowed() -> tuple[str, ...]:
    """Folders below which files may be opened, each also as what its links lead to."""
    environment = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *sys.path}
    places = {ROOT, tempfile.gettempdir(), os.environ.get(NAMED) or ROOT, *environment}
    tempfile.tempdir = None  # which may be another one later, for what is forked from here
    found = {os.path.abspath(place) for place in places} | {os.path.realpath(place) for place in places}
    return (*SYSTEM, *sorted(found - {"/"}))


def watch(event: str, of: tuple) -> None:
    """An audit hook (PEP 578). Raises Outside for a file or folder that is none of the tests'."""
    if event in EVENTS and isinstance(of[0], (str, bytes, os.PathLike)):
        path = os.path.abspath(os.fsdecode(of[0]))
        inside = any(path == place or path.startswith(place + "/") for place in ALLOWED)
        if not inside and ANYWHERE.isdisjoint(path.split("/")):
            raise Outside(f"{path} is outside the repository, its environment and the temporary folder: make what the test needs")


ALLOWED = allowed()
sys.addaudithook(watch)
