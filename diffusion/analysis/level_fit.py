"""Level weights fitted to labels by cross-entropy, and what they bring on images that they were not fitted on.

Needs numpy and scipy, reads no run.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diffusion import metrics
from diffusion.metrics import Estimate, Interval, McNemar, calibration
from diffusion.strategy.level_weights import DEGREE, MOST, curve

PRIOR = 1.0  # standard deviation of a coefficient before any image is seen
REACH = 12.0  # of the temperature's logarithm around the best one without weights


@dataclass(frozen=True)
class Labelled:
    """Errors with labels. errors: float64 [n,K,S]; t: int64 [S], of n_levels levels; class_of: label of each candidate; columns:
    [n], place of the label's class among the ascending classes."""

    errors: np.ndarray
    t: np.ndarray
    n_levels: int
    class_of: list[int]
    columns: np.ndarray

    @classmethod
    def of(cls, grid) -> "Labelled":
        """From an `analysis.tables.Grid`, with errors as recorded."""
        columns = np.searchsorted(np.unique(grid.class_of), grid.labels)
        return cls(grid.errors.astype(np.float64), grid.t, grid.n_levels, grid.class_of, columns)


class Fitted(NamedTuple):
    """temperature: in units of the errors; coefficients: of `level_weights.curve`, zeros without weights."""

    temperature: float
    coefficients: tuple[float, ...] = (0.0,) * DEGREE


def log_posterior(data: Labelled, fitted: Fitted, part=slice(None)) -> np.ndarray:
    """Log-probabilities [n,C] of the classes, ascending: the softmax of minus the weighted mean error over the temperature, of
    each class's best row. part: of the images."""
    return calibration.class_log_posterior(_gaps(data, fitted.coefficients, part), 0.0, data.class_of, fitted.temperature, 0.0)


def _gaps(data: Labelled, coefficients, part) -> np.ndarray:
    """How far each candidate's weighted mean error lies above the lowest one, [n,K]."""
    means = data.errors[part] @ curve(coefficients, data.n_levels)[data.t] / len(data.t)
    return means - means.min(1, keepdims=True)


def fit_temperature(data: Labelled, part=slice(None)) -> Fitted:
    """Without weights."""
    gaps = _gaps(data, Fitted(1.0).coefficients, part)
    return Fitted(calibration.fit_temperature(gaps, np.zeros_like(gaps), data.class_of, data.columns[part])[0])


def fit_weights(data: Labelled, part=slice(None)) -> Fitted:
    """The temperature and the cubic with the highest likelihood of the true classes times a normal density of the coefficients
    around zero: a ridge of 1 / (2 n PRIOR^2) nats per image of n, which keeps few images from being learned by heart."""
    from scipy.optimize import minimize

    start = fit_temperature(data, part).temperature
    labelled = Labelled(data.errors[part], data.t, data.n_levels, data.class_of, data.columns[part])
    ridge = 1 / (2 * len(labelled.columns) * PRIOR**2)

    def loss(x):
        posterior = log_posterior(labelled, Fitted(start * math.exp(x[0]), tuple(x[1:])))
        return calibration.posterior_scores(posterior, labelled.columns)[0] + ridge * (x[1:] ** 2).sum()

    bounds = [(-REACH, REACH)] + [(-MOST, MOST)] * DEGREE
    x = minimize(loss, np.zeros(1 + DEGREE), method="L-BFGS-B", bounds=bounds).x
    return Fitted(start * math.exp(x[0]), tuple(x[1:].tolist()))


# ---------------------------------------------------------------- what they bring


@dataclass(frozen=True)
class Scores:
    """On images that a fit has not seen: accuracy, and the mean negative log-likelihood in nats."""

    accuracy: Estimate
    nll: float


@dataclass(frozen=True)
class Comparison:
    """Cross-fitted results without weights and with them. difference, nll_difference: with less without; halves: the two fits."""

    plain: Scores
    weighted: Scores
    difference: Estimate
    nll_difference: Interval
    mcnemar: McNemar
    halves: list[Fitted]


def compare(data: Labelled, second: np.ndarray) -> Comparison:
    """second: which images [n] are in the second half, of `calibration.second_half`; each half is judged by the other's fit."""
    before, _ = _cross_fitted(data, second, fit_temperature)
    after, halves = _cross_fitted(data, second, fit_weights)
    right = [posterior.argmax(1) == data.columns for posterior in (after, before)]
    losses = [-posterior[np.arange(len(posterior)), data.columns] for posterior in (after, before)]
    return Comparison(
        plain=Scores(metrics.proportion(right[1]), float(losses[1].mean())),
        weighted=Scores(metrics.proportion(right[0]), float(losses[0].mean())),
        difference=metrics.paired_difference(*right),
        nll_difference=mean_interval(losses[0] - losses[1]),
        mcnemar=metrics.mcnemar(*right),
        halves=halves,
    )


def _cross_fitted(data: Labelled, second, fit) -> tuple[np.ndarray, list[Fitted]]:
    """Log-probabilities [n,C] by the fit on the other half, and the two fits."""
    return calibration.cross_fit(second, lambda part: fit(data, part), lambda fitted, part: log_posterior(data, fitted, part))


def mean_interval(values) -> Interval:
    """The mean of values [n] with its 95 % interval, normal, by their standard error."""
    mean, half = float(np.mean(values)), metrics.Z95 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
