"""Numbers as text; tables as HTML, Markdown, LaTeX or plain text; a page of them that loads nothing, with its chart. No runs."""

import base64
import io
import math
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

SIDE = 192  # pixels of the longer side of a picture
COLOURS = 6  # that report.css has
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 340, 240, 40, 22, 34  # of a chart, and of the room for its axes


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


# ---------------------------------------------------------------- HTML


def style() -> str:
    """The CSS of all pages."""
    return Path(__file__).with_name("report.css").read_text()


def part_style(light: str, dark: str) -> str:
    """The style of a part of another page. light, dark: selectors of the part, always and when the page is dark."""
    text = style()
    palettes = re.findall(r":root \{(.*?)\}", text, re.S)  # of a light page, of a dark one
    rules = re.sub(r":root \{.*?\}", "", text, flags=re.S)
    return f"{light} {{{palettes[0]}{rules}}}\n{dark} {{{palettes[1]}}}\n"


def document(title: str, body: list[str]) -> str:
    """A whole page with its style. title: text; body: HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n<style>\n{style()}</style>\n</head>\n<body>\n<main>\n'
        + "\n".join([f"<h1>{escape(title)}</h1>", *body])
        + "\n</main>\n</body>\n</html>\n"
    )


def note(table: Table) -> str:
    return f'<p class="note">{escape(table.note)}</p>' if table.note else ""


def tiles(table: Table) -> str:
    cells = "".join(f"<div><dt>{escape(a)}</dt><dd><b>{escape(b)}</b><br>{escape(c)}</dd></div>" for a, b, c in table.texts)
    return f'<dl class="tiles">{cells}</dl>'


def table_html(table: Table, links=()) -> str:
    """A table in a box of its own that scrolls, with a row's bar behind its name. links: where the names lead."""
    rows = table.texts
    numeric = [i > 0 and all(row[i][:1] in "+-0123456789" for row in rows) for i in range(len(table.columns))]
    head = [th(text, "col", numeric[i]) for i, text in enumerate(table.columns)]
    body = []
    for place, row in enumerate(rows):
        name = th(row[0], "row", link=links[place] if links else "")
        cells = [f"<td{' class=num' if numeric[i] else ''}>{escape(text)}</td>" for i, text in enumerate(row) if i]
        bars = [f"<td class=bar>{bar(table.marks[place], *table.span)}</td>"] if table.marks else []
        kind = f' class="{escape(table.kinds[place])}"' if table.kinds and table.kinds[place] else ""
        body.append(f"<tr{kind}>{''.join([name, *bars, *cells])}</tr>")
    if table.marks:
        head.insert(1, "<td></td>")
    return box(table, f"<table><thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(body)}</tbody></table>")


def th(text: str, scope: str, numeric: bool = False, link: str = "") -> str:
    shown = f'<a href="{escape(link)}">{escape(text)}</a>' if link else escape(text)
    return f'<th scope="{scope}"{" class=num" if numeric else ""}>{shown}</th>'


def box(table: Table, inner: str) -> str:
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.title)}">{inner}</div>'


def bar(estimate, least: float, most: float) -> str:
    """From zero to the value, with the interval as a line; what it says is in the cells beside it."""

    def x(value):
        return 100 * (value - least) / (most - least)

    start, end = sorted((x(0), x(estimate.value)))
    return (
        '<svg aria-hidden="true" viewBox="0 0 100 12" preserveAspectRatio="none">'
        f'<rect x="{start:.2f}" y="1" width="{end - start:.2f}" height="10"/>'
        f'<path d="M{x(estimate.low):.2f} 6H{x(estimate.high):.2f}"/><path class="zero" d="M{x(0):.2f} 0V12"/></svg>'
    )


def matrix_html(table: Table) -> str:
    """The confusion matrix, rows of a name and counts, shaded by shares of the true class: right linearly, wrong by the root."""
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in table.columns[1:])
    rows = []
    for i, (name, *counts) in enumerate(table.rows):
        shares = [n / max(1, sum(counts)) for n in counts]
        shaded = "".join(shade(n, s if i == j else s**0.5, i == j) for j, (n, s) in enumerate(zip(counts, shares, strict=True)))
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{shaded}</tr>')
    corner = f"<td>{escape(table.columns[0])}</td>"
    inner = f'<table class="matrix"><thead><tr>{corner}{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return box(table, inner) + f'<p class="note">{SHADES}</p>'


SHADES = "Blue: share of the true class that is right. Orange: the root of the share that is mistaken, so that few show too."


def shade(n: int, strength: float, right: bool) -> str:
    """A cell of the matrix; its text turns over where the shade is dark."""
    kind = " ".join(filter(None, ["right" if right else "wrong", "deep" if strength > 0.5 else "", "" if n else "none"]))
    return f'<td class="{kind}" style="--v:{strength:.3f}">{cell_text(n)}</td>'


def cards(table: Table, pictures: list[str]) -> str:
    """Mistakes as pictures, data URIs. table: rows of image, true class, predicted class, margin."""
    shown = []
    for uri, row in zip(pictures, table.texts, strict=True):
        index, true, pred, margin = map(escape, row)
        shown.append(
            f'<li><img src="{uri}" alt="image {index}: {true}, taken for {pred}">'
            f"<p>{true}, taken for <b>{pred}</b><br><small>{margin}<br>image {index}</small></p></li>"
        )
    return f'<ul class="cards">{"".join(shown)}</ul>'


def data_uri(image, side: int = SIDE) -> str:
    """A PIL image, made small: PNG for icons, where JPEG would blur them, else JPEG. side: most pixels of one"""
    image = image.convert("RGB")
    image.thumbnail((side, side))
    kind = "PNG" if max(image.size) <= 64 else "JPEG"
    file = io.BytesIO()
    image.save(file, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


# ---------------------------------------------------------------- the chart


@dataclass
class Line:
    """A line of the chart. points: evaluations per image, and the Estimate of the accuracy that they gave."""

    number: int
    name: str
    points: list[tuple[float, Any]]

    @property
    def colour(self) -> str:
        """Its class in report.css."""
        return f"s{(self.number - 1) % COLOURS + 1}"


def legend(lines: list[Line]) -> str:
    items = "".join(f'<li class="{line.colour}"><b>{line.number}</b> {escape(line.name)}</li>' for line in lines)
    return f'<ul class="legend">{items}</ul>'


def chart(name: str, lines: list[Line]) -> str:
    """Accuracy against evaluations per image as SVG. name: makes the ids unique."""
    spent, accuracies = zip(*(point for line in lines for point in line.points), strict=True)
    bottom = int(10 * min(accuracy.low for accuracy in accuracies)) / 10
    x, y = scales(min(spent), max(spent), bottom)
    drawn = axes(x, y, ticks(min(spent), max(spent)), bottom) + "".join(draw(line, x, y, len(lines) > 1) for line in lines)
    title = f'<title id="chart-{name}">Accuracy against evaluations per image; tables hold the numbers</title>'
    return f'<svg class="chart" role="img" aria-labelledby="chart-{name}" viewBox="0 0 {WIDTH} {HEIGHT}">{title}{drawn}</svg>'


def scales(least: float, most: float, bottom: float):
    """Where a number of evaluations (log scale) and an accuracy are in the chart."""
    span = math.log(most / least) or 1.0

    def x(n):
        return LEFT + 8 + math.log(n / least) / span * (WIDTH - LEFT - 30)

    def y(accuracy):
        return HEIGHT - BOTTOM - (accuracy - bottom) / (1 - bottom) * (HEIGHT - BOTTOM - TOP)

    return x, y


def axes(x, y, counts: list[int], bottom: float) -> str:
    shown = []
    for tenth in range(10, round(bottom * 10) - 1, -2 if bottom < 0.5 else -1):
        height = y(tenth / 10)
        shown.append(f'<path class="grid" d="M{LEFT} {height:.1f}H{WIDTH - 8}"/>')
        shown.append(f'<text x="{LEFT - 5}" y="{height + 4:.1f}" text-anchor="end">{10 * tenth}</text>')
    for n in counts:
        shown.append(f'<path class="grid" d="M{x(n):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        shown.append(f'<text x="{x(n):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{n:,}</text>')
    shown.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">evaluations per image</text>')
    shown.append('<text x="2" y="11">accuracy, %</text>')
    return "".join(shown)


def ticks(least: float, most: float) -> list[int]:
    """1, 2, 5, 10, ... within the range; only powers of ten where these would be too many."""
    within = [d * 10**e for e in range(9) for d in (1, 2, 5) if 0.999 * least <= d * 10**e <= 1.001 * most]
    return within if len(within) <= 7 else [n for n in within if str(n).strip("0") == "1"]


def draw(line: Line, x, y, numbered: bool) -> str:
    """The points with their intervals, joined; the line's number at the last one."""
    at = [(x(n), accuracy) for n, accuracy in line.points]
    path = "L".join(f"{px:.1f} {y(e.value):.1f}" for px, e in at)
    spans = "".join(f"M{px:.1f} {y(e.low):.1f}V{y(e.high):.1f}" for px, e in at)
    dots = "".join(f'<circle cx="{px:.1f}" cy="{y(e.value):.1f}" r="3"/>' for px, e in at)
    px, e = at[-1]
    text = f'<text class="number" x="{px + 6:.1f}" y="{y(e.value) + 4:.1f}">{line.number}</text>' if numbered else ""
    return f'<g class="line {line.colour}"><path d="M{path}"/><path class="interval" d="{spans}"/>{dots}{text}</g>'
