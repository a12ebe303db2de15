"""How sure a prediction is: probabilities from the errors of one image, their fit, and how far they can be relied on.

Needs numpy and scipy, reads no run: `confidence` does.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from diffusion.strategy.fits import MOST, Fitted

# ---------------------------------------------------------------- from errors to probabilities


@dataclass(frozen=True)
class Fit(Fitted):
    """What makes probabilities of errors.

    temperature: in units of the errors, above 0; weight: how much a gap's standard error flattens it, 0 (not at all) to 1 (at
    face value); n: images that it was fitted on; about: the whole identity of the run that it was fitted on.
    """

    temperature: float
    weight: float
    n: int
    about: dict

    FLAG: ClassVar = "--fit"
    SCRIPT: ClassVar = "scripts/calibrate.py"
    UNSAID: ClassVar = ()  # an identity says what is not the default

    def check_content(self) -> None:
        super().check_content()
        if not (_is_number(self.temperature) and self.temperature >= 1 / MOST):
            raise ValueError(f"a temperature of {self.temperature!r} is not above 0, or too small to divide by")
        if not (_is_number(self.weight) and 0 <= self.weight <= 1):
            raise ValueError(f"a weight of {self.weight!r} is not in 0..1")
        if type(self.n) is not int or self.n < 1:
            raise ValueError(f"{self.n!r} is no number of images")


UNCALIBRATED = Fit(1.0, 0.0, 0, {})  # the softmax of the errors as they are


def _is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def probabilities(errors, winner: int, class_of: list[int], fit: Fit) -> dict[int, float]:
    """Label -> probability, labels ascending, of one image; they sum to 1, and none is above that of the winner's class.

    errors: K arrays, each a beginning of one shared order of (timestep, noise) pairs; winner: the row that was predicted;
    class_of: label of each row. Raises ValueError for another number of labels than of arrays.
    """
    if len(errors) != len(class_of):
        raise ValueError(f"there are errors of {len(errors)} candidates and labels of {len(class_of)}")
    gaps, deviations = paired_gaps(errors, winner)
    log_posterior = class_log_posterior(gaps[None], deviations[None], class_of, fit.temperature, fit.weight)[0]
    return dict(zip(np.unique(class_of).tolist(), np.exp(log_posterior).tolist(), strict=True))


def paired_gaps(errors, winner: int) -> tuple[np.ndarray, np.ndarray]:
    """How far each candidate's errors lie above the winner's on the pairs that both saw: mean [K] and its standard error [K].

    errors: K arrays, each a beginning of one shared order of (timestep, noise) pairs, so that what a pair adds to all
    candidates cancels. The winner's own two are 0; one pair alone has no standard error and gets 0. A candidate that was never
    tried is infinitely far above.
    """
    means, deviations = np.full(len(errors), np.inf), np.zeros(len(errors))
    for k, values in enumerate(errors):
        if not len(values):
            continue
        n = min(len(values), len(errors[winner]))
        difference = np.asarray(values[:n], np.float64) - errors[winner][:n]
        means[k] = difference.mean()
        deviations[k] = difference.std(ddof=1) / math.sqrt(n) if n > 1 else 0.0
    return means, deviations


def class_log_posterior(gaps, deviations, class_of, temperature: float, weight: float) -> np.ndarray:
    """Log-probabilities [n,C] of the classes in ascending order, from paired gaps and their standard errors [n,K].

    A candidate's logit is -gap / sqrt(temperature^2 + pi/8 (weight * deviation)^2): temperature scaling (Guo et al. 2017), with
    the gap's uncertainty averaged out as if it were normal (MacKay 1992, the evidence framework, on moderated outputs). A class
    has the logit of its best row; a negative gap, which a row that was dropped early can have, counts as 0, so no class is above
    the winner's.
    temperature: in units of the errors; weight: 0 takes gaps as exact, 1 takes standard errors at face value.
    """
    from scipy.special import log_softmax

    logits = -np.maximum(gaps, 0) / np.sqrt(temperature**2 + np.pi / 8 * (weight * np.asarray(deviations)) ** 2)
    order = np.argsort(class_of, kind="stable")
    starts = np.unique(np.asarray(class_of)[order], return_index=True)[1]
    return log_softmax(np.maximum.reduceat(logits[:, order], starts, axis=1), axis=1)


def posterior_scores(log_posterior, columns) -> tuple[float, float]:
    """Mean negative log-likelihood (nats) and Brier score (sum over classes, 0..2) of log-probabilities [n,C].

    columns: [n], the true class's column. scikit-learn's log_loss and, from 1.7 on, brier_score_loss of several classes.
    """
    rows = np.arange(len(log_posterior))
    truth = np.zeros_like(log_posterior)
    truth[rows, columns] = 1
    return float(-log_posterior[rows, columns].mean()), float(((np.exp(log_posterior) - truth) ** 2).sum(1).mean())


# ---------------------------------------------------------------- fits


def fit_temperature(gaps, deviations, class_of, columns) -> tuple[float, float]:
    """The temperature and the weight (0..1) of `class_log_posterior` with the lowest negative log-likelihood of the true classes.

    gaps, deviations: [n,K]; columns: [n], the true class's place among the ascending classes.
    """
    from scipy.optimize import minimize

    positive = gaps[gaps > 0]
    scale = float(np.median(positive)) if positive.size else 1.0  # so that the search does not depend on the errors' unit

    def loss(x):
        return posterior_scores(class_log_posterior(gaps, deviations, class_of, scale * math.exp(x[0]), x[1]), columns)[0]

    most = 1.0 if np.any(deviations) else 0.0
    x = minimize(loss, [-2.0, 0.3 * most], method="L-BFGS-B", bounds=[(-12, 12), (0, most)]).x
    return scale * math.exp(x[0]), float(x[1])


def fit_platt(x, right) -> tuple[float, float]:
    """Intercept and slope of a logistic regression of right or wrong [n] on one number [n], with Platt's targets (Platt 1999).

    The targets (n_right + 1) / (n_right + 2) and 1 / (n_wrong + 2) keep the slope finite when x separates the two. scikit-learn
    has it as CalibratedClassifierCV(method="sigmoid").
    """
    from scipy.optimize import minimize

    x, right = np.asarray(x, np.float64), np.asarray(right, bool)
    target = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    centre, scale = x.mean(), x.std() or 1.0  # the search needs numbers near 1

    def loss(w):
        z = w[0] + w[1] * (x - centre) / scale
        return (np.logaddexp(0, z) - target * z).mean()

    intercept, slope = minimize(loss, [0.0, 0.0], method="BFGS").x
    return float(intercept - slope * centre / scale), float(slope / scale)


def second_half(labels, seed: int = 0) -> np.ndarray:
    """Which images [n] are in the second of two random halves, booleans; every class is split to within one image.

    scikit-learn's StratifiedKFold(2, shuffle=True).
    """
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # class by class, shuffled inside each
    second = np.zeros(len(labels), bool)
    second[order[1::2]] = True
    return second


def cross_fit(second, fit, apply) -> tuple[np.ndarray, list]:
    """apply(fit(other half), half) for both halves of n images in turn -> one array of n results, and the two fits.

    second: booleans [n] of `second_half`; fit and apply take a boolean mask [n] of the images to look at. The first fit is on
    the second half, for the first.
    """
    fits = [fit(second), fit(~second)]
    results = [apply(fitted, half) for fitted, half in zip(fits, (~second, second), strict=True)]
    joined = np.empty((len(second), *results[0].shape[1:]))
    joined[~second], joined[second] = results
    return joined, fits


# ---------------------------------------------------------------- how far confidences can be relied on


class Reliability(NamedTuple):
    """Number of images, mean confidence and share of right ones in every bin that holds an image. Arrays [bins]."""

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(confidence, right, n_bins: int = 15) -> Reliability:
    """Bins of equal width over 0..1, lower edge included, 1 in the last (Guo et al. 2017). confidence, right: [n]."""
    confidence = np.asarray(confidence, np.float64)
    place = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    counts = np.bincount(place, minlength=n_bins)
    sums = [np.bincount(place, values, n_bins)[counts > 0] for values in (confidence, np.asarray(right, np.float64))]
    counts = counts[counts > 0]
    return Reliability(counts, sums[0] / counts, sums[1] / counts)


def expected_calibration_error(confidence, right, n_bins: int = 15) -> float:
    """Mean distance, weighted by images, between a bin's mean confidence and its share of right ones; 0..1.

    torchmetrics' BinaryCalibrationError. Biased upwards: a bin's share is a random number, so it is above 0 for a calibrated
    classifier too; `chance_ece` says by how much.
    """
    bins = reliability(confidence, right, n_bins)
    return float((bins.counts * np.abs(bins.confidence - bins.accuracy)).sum() / bins.counts.sum())


class Chance(NamedTuple):
    """Expected calibration error of a calibrated classifier with the same confidences: its mean, and how often it is as large."""

    mean: float
    p_value: float


def chance_ece(confidence, right, seed: int = 0, draws: int = 1000) -> Chance:
    """Test of the hypothesis that these confidences [n] are the true probabilities of being right [n].

    Consistency resampling (Broecker and Smith 2007): right or wrong is drawn from the confidences `draws` times. The p value is
    (1 + k) / (1 + draws), where k of the draws have an expected calibration error at least as large as the one found.
    """
    confidence, rng = np.asarray(confidence), np.random.default_rng(seed)
    observed = expected_calibration_error(confidence, right)
    simulated = (rng.random(len(confidence)) < confidence for _ in range(draws))
    errors = np.array([expected_calibration_error(confidence, drawn) for drawn in simulated])
    return Chance(float(errors.mean()), float((1 + (errors >= observed).sum()) / (1 + draws)))


def brier(confidence, right) -> float:
    """Mean squared distance of the confidence [n] from 1 (right) or 0 (wrong); 0..1. scikit-learn's brier_score_loss."""
    return float(((np.asarray(confidence) - np.asarray(right, np.float64)) ** 2).mean())


def log_loss(confidence, right) -> float:
    """Mean negative log-likelihood, in nats, of right or wrong [n] under the confidence [n], kept 1e-12 away from 0 and 1.

    scikit-learn's log_loss.
    """
    confidence = np.clip(confidence, 1e-12, 1 - 1e-12)
    return float(-np.log(np.where(right, confidence, 1 - confidence)).mean())


def auroc(confidence, right) -> float:
    """Chance that a right image has more confidence than a wrong one, a tie counting half. Both kinds must occur.

    scikit-learn's roc_auc_score; the Mann-Whitney statistic over the number of pairs.
    """
    from scipy.stats import mannwhitneyu

    confidence, right = np.asarray(confidence), np.asarray(right, bool)
    statistic = mannwhitneyu(confidence[right], confidence[~right], method="asymptotic").statistic
    return float(statistic / (right.sum() * (~right).sum()))
