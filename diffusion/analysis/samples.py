"""A run's images as the rows of a table: what each was taken for, how sure that is, what it cost, who was dropped when."""

from pathlib import Path
from typing import Any

import numpy as np

from diffusion.analysis import confidence, tables
from diffusion.metrics import calibration
from diffusion.metrics.calibration import Fit
from diffusion.strategy import level_weights


def rows_of(folder, fit: Fit | None = None, unreadable: list | None = None) -> tuple[list[dict[str, Any]], dict]:
    """A row for each image of a run of classifications, and {"labels", "names"} of its candidates, in the order of a row's lists.

    index, label, pred, right; probability: of pred, by the fit, absent without one; evaluations; errors: of each candidate the
    mean, as the run compared them, of one that was dropped on what it saw, null where it was never tried; dropped: of
    each candidate the round after which it was out, null for those that were not. unreadable: where the names of records that do
    not count go. Raises ValueError for a folder without a record.
    """
    folder = Path(folder)
    config, rows = tables.config_of(folder), []
    about: dict[str, list] = {}
    weights = level_weights.of_config(config, folder)
    for keys, image in tables.each_image(folder, config, [] if unreadable is None else unreadable):
        if not about:
            class_of, names = tables.classes(folder, config, keys)
            about = {"labels": class_of, "names": [names[label] for label in class_of]}
        rows.append(_row(tables.weighted(image, weights), class_of, fit))
    if not rows:
        raise ValueError(tables.NO_RECORD.format(folder))
    return rows, about


def _row(image: tables.Scored, class_of: list[int], fit: Fit | None) -> dict:
    about = {"index": image.index, "label": image.label, "pred": image.pred, "right": image.pred == image.label}
    probability = {"probability": _probability(image, class_of, fit)} if fit else {}
    cost = {
        "evaluations": image.evaluations,
        "errors": [mean if n else None for mean, n in zip(image.means.tolist(), image.counts, strict=True)],
        "dropped": _dropped(image),
    }
    return about | probability | cost


def _probability(image: tables.Scored, class_of: list[int], fit: Fit) -> float:
    """The probability of the predicted class. Raises ValueError for one that no candidate stands for."""
    if image.pred not in class_of:
        raise ValueError(f"class {image.pred}, which image {image.index} was taken for, is none of the run's candidates")
    gaps, deviations = confidence.gaps_of(image, class_of)
    logs = calibration.class_log_posterior(gaps[None], deviations[None], class_of, fit.temperature, fit.weight)[0]
    return float(np.exp(logs[sorted(set(class_of)).index(image.pred)]))


def _dropped(image: tables.Scored) -> list[int | None]:
    """The round of a race in which each candidate was dropped, as its record says, or the stage of the paper's strategy,
    counted from 1.

    A stage shows in how many pairs a candidate saw; who saw them all was ranked and not dropped.
    """
    if image.dropped is not None:
        return [image.dropped.get(row) for row in range(len(image.counts))]
    stage = {n: number for number, n in enumerate(np.unique(image.counts[image.counts > 0]).tolist()[:-1], 1)}
    return [stage.get(n) for n in image.counts.tolist()]
