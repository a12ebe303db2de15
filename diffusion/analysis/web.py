"""HTML that loads nothing: `templates/`, which escape what they are given, and drawings in the colours of their page."""

import base64
import functools
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffusion.analysis.pages import Table, cell_text
from diffusion.utils import drawing

TEMPLATES = Path(__file__).with_name("templates")
SIDE = 192  # pixels of the longer side of a picture
COLOURS = 6  # that page.css has
INK = "#00000a"  # what becomes the colour of the text around a drawing
LINES = tuple(f"#00000{i}" for i in range(1, COLOURS + 1))  # what become the page's colours of lines
PLAIN = {"axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
         "grid.color": INK, "axes.facecolor": "none", "figure.facecolor": "none", "svg.fonttype": "none",
         "svg.hashsalt": "the same file for the same numbers"}  # fmt: skip
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # matplotlib's address and the hour

# ---------------------------------------------------------------- templates


@functools.cache
def _templates() -> Any:  # jinja2, imported when a page is made
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters.update(bars=bars, shades=shades, colour=colour)
    return made


def page(template: str, **values: Any) -> str:
    """A whole page with its style. values: what the template names; HTML among them is escaped unless it is `Markup`."""
    return _templates().get_template(template).render(style=_markup(style()), **values).lstrip()


def part(name: str, *values: Any) -> str:
    """A macro of parts.html as HTML. values: its arguments."""
    return str(getattr(_templates().get_template("parts.html").module, name)(*values))


def _markup(html: str) -> str:
    """HTML that templates take as it is."""
    import markupsafe

    return markupsafe.Markup(html)


def colour(number: int) -> str:
    """The class in page.css of the line of this number, from 1 on."""
    return f"s{(number - 1) % COLOURS + 1}"


def bars(table: Table) -> list[dict[str, str]]:
    """Where the bars of a table's marks are, in percent of its span: start, width, low, high and zero of each row."""
    least, most = table.span

    def x(value: float) -> float:
        return 100 * (value - least) / (most - least)

    return [
        {key: f"{place:.2f}" for key, place in {
            "start": min(x(0), x(mark.value)), "width": abs(x(mark.value) - x(0)),
            "low": x(mark.low), "high": x(mark.high), "zero": x(0)}.items()}
        for mark in table.marks
    ]  # fmt: skip


def shades(table: Table) -> list[dict]:
    """Rows of a confusion matrix: the name, and of each count its text, kind and strength: the share of the true class where it
    is right, the root of the share where it is wrong."""
    rows = []
    for i, (name, *counts) in enumerate(table.rows):
        total = max(1, sum(counts))
        rows.append({"name": name, "cells": [_shade(n, n / total, i == j) for j, n in enumerate(counts)]})
    return rows


def _shade(n: int, share: float, right: bool) -> dict:
    strength = share if right else share**0.5
    kinds = ["right" if right else "wrong", "deep" if strength > 0.5 else "", "" if n else "none"]  # deep: its text turns over
    return {"text": cell_text(n), "kind": " ".join(filter(None, kinds)), "strength": f"{strength:.3f}"}


# ---------------------------------------------------------------- style


def style() -> str:
    """The CSS of all pages."""
    return (TEMPLATES / "page.css").read_text()


def part_style(light: str, dark: str) -> str:
    """The style of a part of another page. light, dark: selectors of the part, always and when the page is dark."""
    text = style()
    palettes = re.findall(r":root \{(.*?)\}", text, re.S)  # of a light page, of a dark one
    rules = re.sub(r":root \{.*?\}", "", text, flags=re.S)
    return f"{light} {{{palettes[0]}{rules}}}\n{dark} {{{palettes[1]}}}\n"


# ---------------------------------------------------------------- pictures and drawings


def data_uri(image: Any, side: int = SIDE) -> str:
    """A PIL image, made small: PNG for icons, where JPEG would blur them, else JPEG. side: most pixels of one."""
    image = image.convert("RGB")
    image.thumbnail((side, side))
    kind = "PNG" if max(image.size) <= 64 else "JPEG"
    file = io.BytesIO()
    image.save(file, kind, quality=85)
    return bytes_uri(file.getvalue(), f"image/{kind.lower()}")


def bytes_uri(content: bytes, kind: str) -> str:
    """The content of a file of this media type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def drawn(draw: Callable[[Any], None], width: float, height: float, name: str) -> Any:
    """An SVG element with what draw(axis) draws, in LINES for colours, on a page that gives the colours.

    width, height: in inches, of 72 units each. name: makes its ids the only ones of the page.
    """
    plt, file = drawing.pyplot(), io.StringIO()
    with plt.rc_context(PLAIN):
        figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
        draw(axis)
        figure.savefig(file, format="svg", metadata=NO_METADATA)
        plt.close(figure)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", file.getvalue()[file.getvalue().index("<svg") :])
    for number, colour in enumerate(LINES, 1):
        svg = svg.replace(colour, f"var(--s{number})")
    return _markup(svg.replace(INK, "currentColor"))


Points = Sequence[tuple[float, Any]]  # evaluations per image, and the Estimate of the accuracy that they gave


def chart(lines: Sequence[tuple[int, Points]], name: str) -> Any:
    """Accuracy against evaluations per image as SVG. lines: number and points of each; name: of its ids."""
    return drawn(lambda axis: _draw_accuracies(axis, lines), 4.8, 3.1, name)


def _draw_accuracies(axis: Any, lines: Sequence[tuple[int, Points]]) -> None:
    from matplotlib import ticker

    for number, points in lines:
        in_colour = {"color": LINES[(number - 1) % COLOURS]}
        spent, value = [n for n, _ in points], [100 * accuracy.value for _, accuracy in points]
        ends = [[100 * (a.value - a.low) for _, a in points], [100 * (a.high - a.value) for _, a in points]]
        axis.errorbar(spent, value, ends, marker="o", markersize=4, elinewidth=1, **in_colour)
        if len(lines) > 1:
            axis.annotate(str(number), (spent[-1], value[-1]), (6, -3), textcoords="offset points", **in_colour)
    axis.set(xscale="log", xlabel="evaluations per image", ylabel="accuracy, %")
    least, most = axis.get_xlim()
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if most < 200 * least else (1,)))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.grid(alpha=0.2)
