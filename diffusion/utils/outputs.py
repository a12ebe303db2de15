"""What a command may write: a regular file or none yet, no input of the same command, and no file of a run."""

import argparse
import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from diffusion.utils import files

CONFIG = "config.json"  # of a run; its records and what it works from beside it:
RUN_SUFFIXES = (".pt", ".npy", ".safetensors")


class Output:
    """An argparse type: a file that the command writes, ending in one of `suffixes`, where there are any.

    beside: endings in place of the suffix, of files that are written with it, such as ".csv" or "_map.csv".
    """

    def __init__(self, *suffixes: str, beside: Sequence[str] = ()):
        self.suffixes, self.beside = suffixes, beside

    def __call__(self, text: str) -> Path:
        path = Path(text)
        if self.suffixes and (path.suffix.lower() not in self.suffixes or not path.stem):
            raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(self.suffixes)}")
        return path

    def all_of(self, path: Path) -> list[Path]:
        """Every file that is written where this one is asked for."""
        return [path, *(path.with_name(path.stem + ending) for ending in self.beside)]


def check(path: Path, inputs: Iterable[str | Path] = (), folders: Iterable[str | Path] = (), taken: Iterable[str] = ()) -> None:
    """Raises ValueError, with path and what to do, where writing this file would destroy something else.

    inputs: what else the command was given, of which some are files; folders: what the command reads whole; taken: real paths of
    its other outputs
    """
    wrong = files.irregular(path) or ("is written by another option, too" if os.path.realpath(path) in taken else None)
    if not wrong and os.path.lexists(path):
        wrong = "is an input of this command" if any(_same(path, other) for other in inputs) else None
        wrong = wrong or ("lies among this command's inputs" if any(_below(path, other) for other in folders) else None)
    if wrong or _of_run(path):
        raise ValueError(f"{path} {wrong or 'belongs to the run in its folder'}: name another file")


def _same(path: Path, other: str | Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return os.path.samefile(path, other)
    return False


def _below(path: Path, folder: str | Path) -> bool:
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        folder = Path(folder).resolve()
        return folder.is_dir() and folder in path.resolve().parents
    return False


def in_run(path: Path, folder: Path) -> bool:
    """Whether a run in this folder would write the file itself."""
    named = path.name == CONFIG or path.suffix in RUN_SUFFIXES
    return named and os.path.realpath(path.parent) == os.path.realpath(folder)


def _of_run(path: Path) -> bool:
    """Whether the folder has the config.json of a run, or records without one, and this file is of that run."""
    folder = path.parent
    if not in_run(path, folder):
        return False
    with contextlib.suppress(OSError, ValueError, RecursionError):
        config = json.loads((folder / CONFIG).read_bytes())
        return isinstance(config, dict) and "identity" in config
    return path.stem.isdecimal() and os.path.lexists(path)
