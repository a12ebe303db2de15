"""Prompt tables: from a CSV `prompt,classname,classidx`, or from class names and a template."""

import csv
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from diffusion.files import one_line

COLUMNS = ("prompt", "classname", "classidx")


@dataclass(frozen=True)
class PromptTable:
    """Three lists of one length, row by row. `classidx` is the dataset's label; several rows may share one."""

    prompts: list[str]
    classnames: list[str]
    classidx: list[int]


def read_prompts(path: str | Path) -> PromptTable:
    """Read and check a prompt CSV (UTF-8, with a header, further columns ignored).

    Raises ValueError with one line that names the file, and the row where there is one (the header is row 1).
    """
    header, rows = _read_rows(Path(path))
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ValueError(f"{path}: column {', '.join(missing)} missing; the header must hold {','.join(COLUMNS)}")
    if not rows:
        raise ValueError(f"{path}: no prompts, only a header")
    places = [header.index(name) for name in COLUMNS]
    checked = [_check_row(path, number, row, len(header), places) for number, row in enumerate(rows, start=2)]
    return PromptTable(*(list(column) for column in zip(*checked, strict=True)))


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the rows that are not blank, as the csv module splits them."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable prompt CSV ({one_line(error)})") from error
    if not rows:
        raise ValueError(f"{path}: empty file; the header must hold {','.join(COLUMNS)}")
    return [name.strip() for name in rows[0]], rows[1:]


def _check_row(path: str | Path, number: int, row: list[str], width: int, places: list[int]) -> tuple[str, str, int]:
    if len(row) != width:
        raise ValueError(f"{path}: row {number} has {len(row)} fields, not {width}; quote a prompt that holds a comma")
    prompt, classname, index = (row[place] for place in places)
    if not prompt.strip():
        raise ValueError(f"{path}: row {number} has an empty prompt")
    # str.isdigit alone would let "²" through
    if not (index.strip().isascii() and index.strip().isdigit()):
        raise ValueError(f"{path}: row {number} has classidx {index!r}; it must be an integer of at least 0")
    return prompt, classname, int(index)


def prompts_from_classes(names: list[str], template: str) -> PromptTable:
    """One prompt a class, in label order: `{}` becomes the name, with spaces for underscores. The classname stays.

    Raises ValueError when the template lacks `{}` or there are no names.
    """
    if "{}" not in template:
        raise ValueError(f"--template {template!r} has no {{}} for the class name")
    if not names:
        raise ValueError("no class names to make prompts from")
    prompts = [template.replace("{}", name.replace("_", " ")) for name in names]
    return PromptTable(prompts, list(names), list(range(len(names))))


def labels_of(text: str) -> list[str]:
    """Labels as they are typed: one per line, or on a single line with commas between them."""
    lines = text.strip().splitlines()
    parts = lines if len(lines) > 1 else text.split(",")
    return [part.strip() for part in parts if part.strip()]


def check_choice(table: PromptTable, what: str) -> None:
    """Raises ValueError where there are not two or more labels, all of them different. what: that they come from."""
    names = list(dict(zip(table.classidx, table.classnames, strict=True)).values())
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{what}: {twice!r} stands there for two labels: give each a name of its own")
    if len(names) < 2:
        raise ValueError(f"{what}: {names[0]!r} is the only label, and there is nothing to choose: give two or more")


def read_templates(path: str | Path) -> list[str]:
    """The lines of a text file (UTF-8) that are not blank, each a template with `{}` for the class name.

    Raises ValueError with one line that names the file, and the line where there is one.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--templates {path} cannot be read ({one_line(error)})") from None
    flat = next((n for n, line in enumerate(lines, start=1) if line.strip() and "{}" not in line), None)
    if flat:
        raise ValueError(f"--templates {path}: line {flat} has no {{}} for the class name")
    templates = [line.strip() for line in lines if line.strip()]
    if not templates:
        raise ValueError(f"--templates {path} is empty: write one template per line, such as a photo of a {{}}.")
    return templates


def joined(tables: list[PromptTable]) -> PromptTable:
    """One table with the rows of several, one after the other."""
    columns = ([t.prompts for t in tables], [t.classnames for t in tables], [t.classidx for t in tables])
    return PromptTable(*(list(chain.from_iterable(column)) for column in columns))
