"""What a page shows of one picture: a race as it stands, the ranking, errors over timesteps, a map. HTML that loads nothing.

The names of labels come from strangers: everything is escaped, by the templates of `web`, whose style gives the colours.
"""

import io
from collections.abc import Sequence

import numpy as np

from diffusion.analysis import figures, pages, web
from diffusion.classify import Round
from diffusion.metrics import Interval, calibration, curves
from diffusion.predict.predictions import Prediction
from diffusion.utils import drawing

MOST_ROWS = 25  # of a table
BARS = (
    "Bars: how far a label's mean error lies above the best one's, with two standard errors either way, on what both have seen."
)
BELOW = "Error less that of label 1 at the timesteps that both saw (0: no noise). Below 0 a label beats label 1."


def race_table(standing: Round, names: Sequence[str]) -> pages.Table:
    """All candidates, those first that are still in: how far each one's mean error lies above the best one's on the pairs that
    both saw, two standard errors either way, and when it was dropped. names: of the rows."""
    result = standing.result
    gaps, errors = calibration.paired_gaps(result.compared, result.winner)
    alive, dropped = set(standing.alive), result.dropped or {}
    rows = sorted(result.errors, key=lambda row: (row not in alive, -len(result.errors[row]), gaps[row], row))
    shown = rows[:MOST_ROWS]
    marks = [Interval(gaps[row], gaps[row] - 2 * errors[row], gaps[row] + 2 * errors[row]) for row in shown]
    ends = [end for mark in marks for end in (mark.low, mark.high)]
    cells = [[names[row], len(result.errors[row]), _fate(row, result.winner, alive, dropped)] for row in shown]
    left = f"And {len(rows) - len(shown)} labels more. " if len(rows) > len(shown) else ""
    span = (min(0.0, *ends), max(0.0, *ends) or 1.0)
    kinds = ["" if row in alive else "out" for row in shown]
    return pages.Table("The race", ["label", "seen", "dropped"], cells, left + BARS, marks, span, kinds)


def _fate(row: int, winner: int, alive: set[int], dropped: dict[int, int]) -> str:
    if row in dropped:
        return f"round {dropped[row]}"
    return "leads" if row == winner else "" if row in alive else "yes"


def race(standing: Round, names: Sequence[str]) -> str:
    table = race_table(standing, names)
    return "<h3>The race</h3>" + web.part("table", table) + web.part("note", table)


def ranking(prediction: Prediction, message: str) -> str:
    """Labels by probability. message: what the probabilities are"""
    shown = prediction.candidates[:MOST_ROWS]
    cells = [[c.label, f"{c.probability:.4f}", f"{c.error:.5f}"] for c in shown]
    marks = [Interval(c.probability, c.probability, c.probability) for c in shown]
    left = len(prediction.candidates) - len(shown)
    note = message + (f". And {left} labels more" if left else "")
    table = pages.Table("Ranking", ["label", "probability", "mean error"], cells, note, marks)
    return "<h3>Ranking</h3>" + web.part("table", table) + web.part("note", table)


def error_curves(prediction: Prediction, errors: Sequence[np.ndarray], t: np.ndarray) -> str:
    """Errors of the first labels less the first one's, over timesteps. errors: of every row, as compared; t: of all pairs"""
    shown = prediction.candidates[: web.COLOURS]
    best = errors[shown[0].row]
    lines = [(c.label, *curves.difference_by_t(errors[c.row], best, t)) for c in shown]
    drawn = web.drawn(lambda axis: drawing.draw_differences(axis, lines, web.LINES), 4.6, 2.9, "errors")
    legend = web.part("legend", [(number, name) for number, (name, *_) in enumerate(lines, 1)])
    return f'<h3>Errors over timesteps</h3><div class="curves">{drawn}</div>{legend}<p class="note">{BELOW}</p>'


def error_map(image, advantage: np.ndarray, first: str, second: str) -> str:
    """An image [3,H,W] in [-1,1] as the model sees it, alone and under the map [h,w] of the second label's squared error less the
    first one's."""
    drawn = [_picture(image, np.zeros((1, 1)), 1.0), _picture(image, advantage, np.abs(advantage).max() or 1.0)]
    texts = ["What the model sees", f"Green: {first} has the lower squared error. Pink: {second} has it."]
    return "<h3>Where the first two labels disagree</h3>" + web.part("pair", list(zip(drawn, texts, strict=True)))


def _picture(image, advantage: np.ndarray, span: float) -> str:
    """A data URI."""
    plt = drawing.pyplot()
    figure = plt.figure(figsize=(3, 3), dpi=100)
    figures.overlay(figure.add_axes((0, 0, 1, 1), frame_on=False), image, advantage, span)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return web.bytes_uri(file.getvalue(), "image/png")
