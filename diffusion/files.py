"""Files that are whole or absent, short hashes of what they hold, and an error as one line."""

import csv
import hashlib
import io
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO


def write(path: str | Path, fill: Callable[[BinaryIO], object]) -> None:
    """fill(file) writes a file beside this path, which is synced and renamed: whatever kills the process, it is whole or absent.

    Makes the folder. Raises OSError where it cannot be written, and leaves an older file as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # process ids and host names repeat, in containers too
    try:
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def read_json(path: str | Path, kinds: Mapping[str, type] = MappingProxyType({})) -> dict:
    """The object of a JSON file in UTF-8. kinds: key -> the type of its value, for the keys that it must have.

    Raises ValueError that names the file, and the key where one is missing or of another type; OSError for a file that cannot be
    read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
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


def fingerprint(*parts) -> str:
    """A short hash of bytes, or of anything that JSON can write."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else json.dumps(part).encode())
    return digest.hexdigest()[:16]


def hash_files(root: Path, files) -> str:
    """A short hash of files below root: of their names relative to it and of what they hold, whatever their order."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return f"sha256 {digest.hexdigest()[:16]}"


def one_line(error: BaseException | str) -> str:
    """What an exception says without its line breaks, or its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
