"""Strategies played on the stored errors of a run that dropped nobody."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from diffusion.analysis.tables import Grid
from diffusion.strategy import Strategy
from diffusion.strategy.elimination import drive


class Played(NamedTuple):
    """Predicted labels and evaluations, [n] each."""

    preds: np.ndarray
    evaluations: np.ndarray


def columns_of(grid: Grid, wanted) -> list[int]:
    """Where the pairs of a plan are in the grid; the j-th trial of a timestep is its j-th column there.

    Raises ValueError for a timestep that the grid lacks.
    """
    first = {int(t): i for i, t in reversed(list(enumerate(grid.t)))}
    lacking = sorted(set(wanted.tolist()) - set(first))
    if lacking:
        raise ValueError(
            f"the run has no timestep {lacking[0]}: the last number of samples must be such that its grid lies in the run's"
        )
    used: Counter[int] = Counter()
    columns = []
    for t in wanted.tolist():
        columns.append(first[t] + used[t])
        used[t] += 1
    return columns


def play(grid: Grid, strategy: Strategy) -> Played:
    """The strategy, informed of the candidates, on every image's errors. Raises ValueError where that cannot be."""
    plan = strategy.plan(grid.n_levels)
    columns = np.array(columns_of(grid, plan.t))
    preds, evaluations = [], []
    for number, image in enumerate(grid.errors[:, :, columns]):
        competing = grid.competing(number)
        empty: list[int] = []  # of every question of a guided run, how many pairs

        def stored(request, image=image, empty=empty):
            rows, pairs = request
            empty.append(grid.guided * len(plan.t[pairs]))
            return image[rows][:, pairs]

        class_of = [grid.class_of[row] for row in competing]
        outcome = drive(strategy.restrict(competing).eliminate(class_of, plan), stored)
        preds.append(class_of[outcome.winner])
        evaluations.append(sum(map(len, outcome.errors.values())) + sum(empty))
    return Played(np.array(preds), np.array(evaluations))
