"""A CSV of one's own: paths of pictures, and their labels where they are known."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion.datasets.labels import number_of, numbered, of_texts
from diffusion.datasets.readers.folders import LabelledFiles, missing_files
from diffusion.utils.files import read_csv

PATH, LABEL = "path", "label"  # columns


class Row(NamedTuple):
    """number: in the file, whose header is row 1; picture: a path from here; label: None without such a column."""

    number: int
    picture: str
    label: str | None


def open_csv(path: Path, classes: Sequence[str] | None = None) -> LabelledFiles:
    """Columns path and label. A label is a class's name, or its number.

    Without `classes` the names are the labels themselves, sorted, or where all are numbers 0, 1, ... up to the largest. Raises
    ValueError that names the file and the row for what cannot be read.
    """
    rows = read_rows(path)
    labelled = [row for row in rows if row.label]
    if not labelled:
        how = "missing" if rows[0].label is None else "empty"
        raise ValueError(f"{path}: the column {LABEL} is {how}; pictures without labels are for scripts/classify.py")
    empty = next((row for row in rows if not row.label), None)
    if empty:
        raise ValueError(f"{path}: row {empty.number} has an empty {LABEL}")
    names, labels = _labels(path, rows, [row.label or "" for row in rows], classes)
    images = LabelledFiles([(row.picture, label) for row, label in zip(rows, labels, strict=True)], custom=True)
    images.classes = names
    return images


def _labels(path: Path, rows: list[Row], texts: list[str], classes: Sequence[str] | None) -> tuple[list[str], list[int]]:
    """(class names, label of each row). texts: the label of each row."""
    numbers = [number for number in map(number_of, texts) if number is not None]
    try:
        given = numbered(numbers) if classes is None and len(numbers) == len(rows) else classes
    except ValueError as error:
        raise ValueError(f"{path}: row {rows[numbers.index(max(numbers))].number}: {error}") from None
    names, parsed = of_texts(texts, given)
    labels = [label for label in parsed if label is not None]
    if len(labels) < len(parsed):
        row = rows[parsed.index(None)]
        raise ValueError(f"{path}: row {row.number} has the label {row.label!r}, which is none of the {len(names)} classes of "
                         f"--classes, nor 0..{len(names) - 1}")  # fmt: skip
    return names, labels


def read_rows(path: Path) -> list[Row]:
    """All rows; paths are relative to the CSV's folder, or absolute.

    Raises ValueError that names the file, and the row where there is one, for a CSV that cannot be read, an empty path, a path
    that stands twice, and one where there is no file; OSError where there is no CSV.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    cells = read_csv(path, "CSV of pictures", [PATH], [LABEL])
    if not cells:
        raise ValueError(f"{path}: no pictures, only a header")
    rows = [Row(number, _place(path, number, row[PATH]), row[LABEL].strip() if LABEL in row else None) for number, row in cells]
    first: dict[str, Row] = {}
    for row in rows:
        if first.setdefault(row.picture, row) is not row:
            raise ValueError(f"{path}: rows {first[row.picture].number} and {row.number} have one path, {row.picture}")
    missing = missing_files(Path(row.picture) for row in rows)
    if missing:
        row = first[str(missing[0])]
        more = f" (and {len(missing) - 1:,} more)" if missing[1:] else ""
        raise ValueError(f"{path}: row {row.number}: there is no file {row.picture}{more}")
    return rows


def _place(path: Path, number: int, text: str) -> str:
    """Where a row's picture lies."""
    if not text.strip():
        raise ValueError(f"{path}: row {number} has an empty {PATH}")
    if "\0" in text:
        raise ValueError(f"{path}: row {number} has a path that no file can have, {text!a}")
    return os.path.normpath(path.parent / text.strip())
