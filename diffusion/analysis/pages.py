"""Numbers as text; tables of them as Markdown, LaTeX or plain text. `web` makes HTML of the same tables."""

from dataclasses import dataclass, field
from html import escape
from typing import Any


@dataclass
class Table:
    """Rows of cells under a title: text, ints, floats and Estimates, which `cell_text` writes.

    marks: a row's Estimate, to be drawn beside it in html; span: what their bars cover; kinds: a row's class in html.
    """

    title: str
    columns: list[str]
    rows: list[list[Any]]
    note: str = ""
    marks: list = field(default_factory=list)
    span: tuple[float, float] = (0.0, 1.0)
    kinds: list[str] = field(default_factory=list)

    @property
    def texts(self) -> list[list[str]]:
        """The rows as text."""
        return [[cell_text(cell) for cell in row] for row in self.rows]

    @property
    def numeric(self) -> list[bool]:
        """Of each column, the names aside: whether it holds numbers only."""
        return [i > 0 and all(row[i][:1] in "+-0123456789" for row in self.texts) for i in range(len(self.columns))]


# ---------------------------------------------------------------- numbers as text


def cell_text(cell) -> str:
    """Counts in full with their thousands apart, other numbers by `number`, an Estimate with its interval, text as it is."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    return number(cell) if isinstance(cell, float) else percent_and_interval(cell)


def percent(value: float) -> str:
    """`91.10 %`, of a number in 0..1."""
    return f"{100 * value:.2f} %"


def percent_and_interval(estimate) -> str:
    """`91.10 % (89.2 to 92.7)`, of anything with value, low and high in 0..1."""
    return f"{percent(estimate.value)} ({between(estimate)})"


def between(estimate, sign: str = "") -> str:
    """`89.2 to 92.7`; sign: "+" for differences."""
    return f"{100 * estimate.low:{sign}.1f} to {100 * estimate.high:{sign}.1f}"


def estimate_cells(estimate) -> list:
    """Three cells: value, interval, n."""
    return [percent(estimate.value), between(estimate), estimate.n]


def number(value: float) -> str:
    """Whole from 100 on, else three digits."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


# ---------------------------------------------------------------- Markdown and plain text


def markdown(table: Table, level: str) -> str:
    """A table under its title, a heading of this level (## or ###), with its note."""
    return "\n".join([f"{level} {table.title}\n", *markdown_lines(table), f"\n{table.note}\n" if table.note else ""])


def markdown_lines(table: Table) -> list[str]:
    """The table alone; nothing without rows."""
    cells = [table.columns, ["---"] * len(table.columns), *table.texts] if table.rows else []
    return ["| " + " | ".join(map(markdown_cell, row)) + " |" for row in cells]


def markdown_cell(text: str) -> str:
    return escape(" ".join(text.split()), quote=False).replace("\\", "\\\\").replace("|", "\\|")


def plain(table: Table) -> str:
    """For the terminal: the columns, and a line a row."""
    lines = [table.columns, *table.texts]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    return "\n".join("  ".join(f"{cell:<{n}}" for cell, n in zip(line, widths, strict=True)).rstrip() for line in lines)


# ---------------------------------------------------------------- LaTeX


def latex(table: Table) -> str:
    """With the rules of booktabs."""
    import pandas

    return pandas.DataFrame(table.texts, columns=table.columns).to_latex(index=False, escape=True)
