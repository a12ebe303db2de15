"""Prompt tables and class lists: from a CSV `prompt,classname,classidx`, or from class names and a template."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion.datasets.labels import number_of
from diffusion.utils.files import one_line, read_csv
from diffusion.utils.paths import PROMPTS, at_hand

COLUMNS = ("prompt", "classname", "classidx")


@dataclass(frozen=True)
class PromptTable:
    """Three lists of one length, row by row. `classidx` is the dataset's label; several rows may share one.

    published: whether it ships as published, where two classes may have one prompt, as both missiles of ImageNet have
    notice: what is to be said of its names
    """

    prompts: list[str]
    classnames: list[str]
    classidx: list[int]
    published: bool = False
    notice: str | None = None


def read_prompts(path: str | Path) -> PromptTable:
    """Read and check a prompt CSV (UTF-8, with a header, further columns ignored), one that ships where there is no such file.

    Raises ValueError with one line that names the file, and the row where there is one (the header is row 1).
    """
    rows = read_csv(at_hand(path), "prompt CSV", COLUMNS)
    if not rows:
        raise ValueError(f"{path}: no prompts, only a header")
    checked = [_check_row(path, number, *(row[name] for name in COLUMNS)) for number, row in rows]
    published = at_hand(path).resolve().parent == PROMPTS.resolve()
    prompts, classnames, classidx = (list(column) for column in zip(*checked, strict=True))
    return PromptTable(prompts, classnames, classidx, published)


def _check_row(path: str | Path, number: int, prompt: str, classname: str, index: str) -> tuple[str, str, int]:
    if not prompt.strip():
        raise ValueError(f"{path}: row {number} has an empty prompt")
    for text in (prompt, classname):
        _check_signs(f"{path}: row {number} has {text!r}", text)
    label = number_of(index)
    if label is None:
        raise ValueError(f"{path}: row {number} has classidx {index!r}; it must be an integer of at least 0")
    return prompt, classname, label


def _check_signs(what: str, text: str) -> None:
    """Raises ValueError for control characters and halves of surrogate pairs: no model reads them, and a terminal obeys some."""
    if odd := next((sign for sign in text if unicodedata.category(sign) in ("Cc", "Cs")), None):
        raise ValueError(f"{what}: the character U+{ord(odd):04X} in it is no text")


def prompts_from_classes(names: Sequence[str], template: str) -> PromptTable:
    """One prompt a class, in label order: `{}` becomes the name, with spaces for underscores. The classname stays.

    Raises ValueError when the template lacks `{}` or there are no names, and for names that are no text.
    """
    if "{}" not in template:
        raise ValueError(f"--template {template!r} has no {{}} for the class name")
    if not names:
        raise ValueError("no class names to make prompts from")
    for text in (template, *names):
        _check_signs(f"the template {text!r}" if text is template else f"the label {text!r}", text)
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
    twice = next((name for name, n in Counter(names).items() if n > 1), None)
    if twice is not None:
        raise ValueError(f"{what}: {twice!r} stands there for two labels: give each a name of its own")
    if len(names) < 2:
        raise ValueError(f"{what}: {names[0]!r} is the only label, and there is nothing to choose: give two or more")


def read_classes(path: str | Path, called: str = "") -> list[str]:
    """The lines of a text file (UTF-8) that are not blank, each the name of a class; their order is that of the labels.

    called: the flag that names the file, of which no name may stand twice. Raises ValueError with one line that names the file.
    """
    names = _lines(path, called)
    if not names or not all(map(str.isprintable, names)) or (called and len(set(names)) < len(names)):
        raise ValueError(f"{called} {path} must hold one name per line, each of them once".strip())
    return names


def read_templates(path: str | Path) -> list[str]:
    """The lines of a text file (UTF-8) that are not blank, each a template with `{}`, or `{c}`, for the class name.

    Raises ValueError with one line that names the file, and the template where there is one.
    """
    templates = [line.replace("{c}", "{}") for line in _lines(path, "--templates")]
    flat = next((line for line in templates if "{}" not in line), None)
    if flat:
        raise ValueError(f"--templates {path}: the line {flat!r} has no {{}} for the class name")
    if not templates:
        raise ValueError(f"--templates {path} is empty: write one template per line, such as a photo of a {{}}.")
    return templates


def _lines(path: str | Path, called: str) -> list[str]:
    """Without the blank ones."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{called} {path} cannot be read ({one_line(error)})".strip()) from None
    return [line.strip() for line in lines if line.strip()]


def joined(tables: list[PromptTable]) -> PromptTable:
    """One table with the rows of several, one after the other."""
    return PromptTable(
        [prompt for t in tables for prompt in t.prompts],
        [name for t in tables for name in t.classnames],
        [label for t in tables for label in t.classidx],
        all(t.published for t in tables),
    )
