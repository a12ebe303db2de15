"""Accuracies, intervals, paired tests, the numbers of reports and figures, probabilities. numpy, and scipy inside functions."""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % quantile of the standard normal


@dataclass(frozen=True)
class Estimate:
    """A proportion in 0..1, or a difference of two, with its 95 % interval and the number of images behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.2f}% (95% interval {100 * self.low:.1f} to {100 * self.high:.1f}, n = {self.n})"

    as_dict = asdict


def wilson(p: float, n: float) -> tuple[float, float]:
    """95 % score interval of a proportion p observed on n draws (Wilson 1927). n may be an effective, non-integer number."""
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def wald(p: float, n: int) -> float:
    """Half the width of the published 95 % interval, 1.96 sqrt(p(1-p)/n): zero at p = 0 and p = 1, where Wilson's is not."""
    return 1.96 * math.sqrt(p * (1 - p) / n)


def proportion(right) -> Estimate:
    """Share of the true among booleans [n], n > 0, with Wilson's interval."""
    right = np.asarray(right, dtype=bool)
    p = float(right.mean())
    return Estimate(p, *wilson(p, len(right)), len(right))


def top1(preds, labels) -> Estimate:
    """Share of images whose prediction is the label. preds, labels: [n] ints, n > 0."""
    return proportion(np.asarray(preds) == np.asarray(labels))


def mean_per_class(preds, labels) -> Estimate:
    """Mean over the classes that occur of the accuracy inside each.

    The interval is Wilson's at the effective n = p(1-p) / variance, where the variance of the mean sums the classes' own
    (their proportions smoothed by one success and one failure, so that a class of one image is not taken for certain).
    """
    preds, labels = np.asarray(preds), np.asarray(labels)
    counts = [(int((preds[labels == c] == c).sum()), int((labels == c).sum())) for c in np.unique(labels)]
    value = float(np.mean([right / n for right, n in counts]))
    smooth = [((right + 1) / (n + 2), n) for right, n in counts]
    variance = sum(p * (1 - p) / n for p, n in smooth) / len(counts) ** 2
    centre = float(np.mean([p for p, _ in smooth]))
    return Estimate(value, *wilson(value, centre * (1 - centre) / variance), len(labels))


# ---------------------------------------------------------------- the paper's figures


def subset_preds(errors, class_of, columns):
    """Predictions [n] from some columns of errors [n,K,S] alone: lowest mean error, the lower row at a tie (paper, algorithm 1).

    class_of: label of each of the K rows.
    """
    means = np.asarray(errors)[:, :, columns].mean(2, dtype=np.float64)
    return np.asarray(class_of)[means.argmin(1)]


def rank_classes(means, class_of) -> list[int]:
    """The best row of every class, best class first. means: [K] errors; class_of: label of each row."""
    best: dict[int, int] = {}
    for row in np.argsort(means, kind="stable").tolist():
        best.setdefault(class_of[row], row)
    return list(best.values())


class Spread(NamedTuple):
    """Standard deviations of an error: across timesteps of its mean over noises, and across noises at one timestep."""

    by_t: float
    by_noise: float  # nan with one noise a timestep


def error_spread(errors) -> Spread:
    """Figure 2 in two numbers. errors: [T,n_trials], T > 1; by_noise is the root mean square over timesteps."""
    errors = np.asarray(errors, np.float64)
    by_noise = math.sqrt(errors.var(1, ddof=1).mean()) if errors.shape[1] > 1 else math.nan
    return Spread(float(errors.mean(1).std(ddof=1)), by_noise)


@dataclass(frozen=True)
class LogitLine:
    """logit(y) = intercept + slope logit(x), fitted to n points: the expected accuracy y of a model whose other accuracy is x.

    centre, squares: mean of the points' logit(x) and sum of squares around it; residual: standard deviation, n - 2 degrees.
    """

    slope: float
    intercept: float
    residual: float
    n: int
    centre: float
    squares: float

    def at(self, x):
        """logit(y) expected at x, accuracies in 0..1, and half the width of its 95 % confidence interval."""
        from scipy.special import logit
        from scipy.stats import t as student

        z = logit(x)
        error = self.residual * np.sqrt(1 / self.n + (z - self.centre) ** 2 / self.squares)
        return self.intercept + self.slope * z, student.isf(0.025, self.n - 2) * error


def fit_logit_line(x, y) -> LogitLine:
    """Least squares on logit axes (Taori et al. 2020, section 3). x, y: [n] accuracies strictly between 0 and 1, n > 2."""
    from scipy.special import logit

    u, v = logit(np.asarray(x, np.float64)), logit(np.asarray(y, np.float64))
    if len(u) < 3 or not np.isfinite([u, v]).all():
        raise ValueError("a line on logit axes needs 3 points or more, strictly between 0 and 1")
    squares = float(((u - u.mean()) ** 2).sum())
    slope = float(((u - u.mean()) * (v - v.mean())).sum() / squares)
    intercept = float(v.mean() - slope * u.mean())
    residual = math.sqrt(((v - intercept - slope * u) ** 2).sum() / (len(u) - 2))
    return LogitLine(slope, intercept, residual, len(u), float(u.mean()), squares)


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    as_dict = asdict


def effective_robustness(line: LogitLine, in_dist: Estimate, out_dist: Estimate) -> Interval:
    """Out-of-distribution accuracy less the one that the line expects (Taori et al. 2020, section 3; paper, figure 6).

    The interval combines those of both accuracies and of the line: squares of half widths add up, on each side its own
    (Zou and Donner 2008). Raises ValueError for an in-distribution accuracy of 0 or 1, which has no logit.
    """
    from scipy.special import expit

    if not 0 < in_dist.value < 1:
        raise ValueError(f"an in-distribution accuracy of {100 * in_dist.value:g} % has no place on a logit axis")
    z, of_line = line.at(in_dist.value)
    ends = (line.at(in_dist.low)[0], line.at(in_dist.high)[0])
    low, high = (expit(z + sign * np.hypot(end - z, of_line)) for sign, end in zip((-1, 1), sorted(ends), strict=True))
    expected = expit(z)
    below = np.hypot(out_dist.value - out_dist.low, high - expected)
    above = np.hypot(out_dist.high - out_dist.value, expected - low)
    value = out_dist.value - expected
    return Interval(float(value), float(value - below), float(value + above))


# ---------------------------------------------------------------- reports


def per_class(preds, labels) -> dict[int, Estimate]:
    """Label -> accuracy among the images of that label, for the labels that occur, ascending. preds, labels: [n] ints."""
    preds, labels = np.asarray(preds), np.asarray(labels)
    return {int(c): proportion(preds[labels == c] == c) for c in np.unique(labels)}


def confusion(preds, labels) -> list[tuple[int, int, int]]:
    """(label, prediction, images) of every pair that occurs, ascending. preds, labels: [n] ints."""
    pairs, counts = np.unique(np.stack([labels, preds], 1), axis=0, return_counts=True)
    return [(int(label), int(pred), int(n)) for (label, pred), n in zip(pairs, counts, strict=True)]


def class_rank(means, class_of, label: int) -> int:
    """How many classes come before this one, each by the lowest error among its rows; the lower row wins a tie.

    means: [K] of errors on the same pairs; class_of: [K] labels. A label that no row stands for comes after all classes.
    """
    ranked = [class_of[row] for row in rank_classes(means, class_of)]
    return ranked.index(label) if label in ranked else len(ranked)


def paired_difference(first, second) -> Estimate:
    """Accuracy of the first less that of the second of two paired results, booleans [n], n > 0, in -1..1.

    The interval is Newcombe's hybrid of the two Wilson intervals with the correlation of the results (Newcombe 1998, Improved
    confidence intervals for the difference between binomial proportions based on paired data, method 10).
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape:
        raise ValueError(f"paired results must have one length, not {first.size} and {second.size}")
    a, b = proportion(first), proportion(second)
    both, none = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    phi = _phi(both, only_first, only_second, none)
    below = _hybrid(a.value - a.low, b.high - b.value, phi)
    above = _hybrid(a.high - a.value, b.value - b.low, phi)
    value = (only_first - only_second) / a.n
    return Estimate(value, value - below, value + above, a.n)


def _hybrid(one: float, other: float, phi: float) -> float:
    """Length of the difference of two deviations with correlation phi."""
    return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))


def _phi(both: int, only_first: int, only_second: int, none: int) -> float:
    """Correlation of paired results, with Newcombe's correction when it is positive; 0 where a margin is empty."""
    n = both + only_first + only_second + none
    margins = (both + only_first) * (only_second + none) * (both + only_second) * (only_first + none)
    excess = both * none - only_first * only_second
    return (max(excess - n / 2, 0) if excess > 0 else excess) / math.sqrt(margins) if margins else 0.0


def paired_margin(errors, best) -> float | None:
    """Mean of errors - best in its standard errors; [n] each, on the same pairs.

    None when fewer than two pairs, or differences that are all the same, say nothing of the spread.
    """
    difference = np.asarray(errors, dtype=np.float64) - np.asarray(best, dtype=np.float64)
    deviation = difference.std(ddof=1) if len(difference) > 1 else 0.0
    return float(difference.mean() / deviation * math.sqrt(len(difference))) if deviation else None


def running_predictions(errors, class_of, points) -> tuple[np.ndarray, np.ndarray]:
    """What an image would be taken for, had it stopped after n pairs, and what it had cost by then, for every n of `points`.

    errors: K arrays in order of evaluation, the first pairs being common to all; the longest decide which candidates are
    still alive after n. class_of: [K] labels; points: [P] ints from 1. Returns labels [P] and evaluations [P].
    """
    counts, points = np.array([len(e) for e in errors]), np.asarray(points)
    padded = np.full((len(errors), counts.max()), np.nan)
    for row, e in zip(padded, errors, strict=True):
        row[: len(e)] = e
    reached = np.minimum(points, counts.max())
    rows = np.nanargmin(padded.cumsum(1)[:, reached - 1], axis=0)  # sums over one number of pairs rank as means do
    return np.asarray(class_of)[rows], np.minimum(counts[:, None], points).sum(0)


def quantile_groups(values, n: int) -> list[np.ndarray]:
    """Positions of values [m] in at most n groups of about one size, ascending by value; equal values stay together."""
    edges = np.unique(np.quantile(values, np.arange(1, n + 1) / n, method="inverted_cdf"))
    group = np.searchsorted(edges, values)
    return [np.flatnonzero(group == g) for g in np.unique(group)]


def cost(values) -> dict[str, float]:
    """Median, mean, 95th percentile and total of what images cost, [n] numbers, n > 0."""
    found = {"median": np.median(values), "mean": np.mean(values), "p95": np.percentile(values, 95), "total": np.sum(values)}
    return {name: float(value) for name, value in found.items()}


# ---------------------------------------------------------------- two captions, two images (Winoground)


class PairScores(NamedTuple):
    """How well each caption fits each image of an example, higher is better: floats, or arrays [n] of n examples."""

    c0_i0: Any
    c0_i1: Any
    c1_i0: Any
    c1_i1: Any


class PairCorrect(NamedTuple):
    """What of an example is right: booleans, or arrays [n]. Chance is 1/4, 1/4 and 1/6 when the four scores are independent."""

    text: Any
    image: Any
    group: Any


def pair_correct(scores) -> PairCorrect:
    """Text: each image scores higher with its own caption. Image: each caption with its own image. Group: both.

    scores: the four of PairScores, in that order. A tie is wrong (Thrush et al. 2022, equations 1 to 3).
    """
    c0_i0, c0_i1, c1_i0, c1_i1 = map(np.asarray, scores)
    text = (c0_i0 > c1_i0) & (c1_i1 > c0_i1)
    image = (c0_i0 > c0_i1) & (c1_i1 > c1_i0)
    return PairCorrect(text, image, text & image)


def normalise_pairs(scores) -> PairScores:
    """Each score less the mean of its image over the two captions, which removes how likely the image is by itself.

    What is left of an image is plus and minus half the difference of its captions. So the text score stays, and the image
    score becomes one comparison of two differences: chance is 1/2, and whatever has the text right has it right too.
    """
    c0_i0, c0_i1, c1_i0, c1_i1 = map(np.asarray, scores)
    half_0, half_1 = (c0_i0 - c1_i0) / 2, (c0_i1 - c1_i1) / 2
    return PairScores(half_0, half_1, -half_0, -half_1)


@dataclass(frozen=True)
class McNemar:
    """How often only the first and only the second of two paired results is right, and the exact two-sided p value."""

    only_first: int
    only_second: int
    p_value: float

    as_dict = asdict


def mcnemar(first, second) -> McNemar:
    """McNemar's exact test on paired booleans [n]: are the discordant pairs split like a fair coin's throws? 1.0 without any."""
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape:
        raise ValueError(f"paired results must have one length, not {first.size} and {second.size}")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))  # integers: exact, whatever n is
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**n))


# ---------------------------------------------------------------- probabilities


def paired_gaps(errors, winner: int) -> tuple[np.ndarray, np.ndarray]:
    """How far each candidate's errors lie above the winner's on the pairs that both saw: mean [K] and its standard error [K].

    errors: K arrays, each a beginning of one shared order of (timestep, noise) pairs, so that what a pair adds to all
    candidates cancels. The winner's own two are 0; one pair alone has no standard error and gets 0.
    """
    means, deviations = np.zeros(len(errors)), np.zeros(len(errors))
    for k, own in enumerate(errors):
        n = min(len(own), len(errors[winner]))
        difference = np.asarray(own[:n], np.float64) - errors[winner][:n]
        means[k] = difference.mean()
        deviations[k] = difference.std(ddof=1) / math.sqrt(n) if n > 1 else 0.0
    return means, deviations


def class_log_posterior(gaps, deviations, class_of, temperature: float, weight: float) -> np.ndarray:
    """Log-probabilities [n,C] of the classes in ascending order, from paired gaps and their standard errors [n,K].

    A candidate's logit is -gap / sqrt(temperature^2 + pi/8 (weight * deviation)^2): temperature scaling (Guo et al. 2017), with
    the gap's uncertainty averaged out as if it were normal (MacKay 1992, the evidence framework, on moderated outputs). A class
    has the logit of its best row; a negative gap, which a row that fell early can have, counts as 0, so no class is above the
    winner's.
    temperature: in units of the errors; weight: 0 takes gaps as exact, 1 takes standard errors at face value.
    """
    from scipy.special import log_softmax

    logits = -np.maximum(gaps, 0) / np.sqrt(temperature**2 + np.pi / 8 * (weight * np.asarray(deviations)) ** 2)
    order = np.argsort(class_of, kind="stable")
    starts = np.unique(np.asarray(class_of)[order], return_index=True)[1]
    return log_softmax(np.maximum.reduceat(logits[:, order], starts, axis=1), axis=1)


def posterior_scores(log_posterior, columns) -> tuple[float, float]:
    """Mean negative log-likelihood (nats) and Brier score (sum over classes, 0..2) of log-probabilities [n,C].

    columns: [n], the true class's column.
    """
    rows = np.arange(len(log_posterior))
    truth = np.zeros_like(log_posterior)
    truth[rows, columns] = 1
    return float(-log_posterior[rows, columns].mean()), float(((np.exp(log_posterior) - truth) ** 2).sum(1).mean())


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

    The targets (n_right + 1) / (n_right + 2) and 1 / (n_wrong + 2) keep the slope finite when x separates the two.
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


def cross_fit(n: int, fit, apply) -> tuple[np.ndarray, list]:
    """apply(fit(other half), half) for both halves of n images in turn -> one array of n results, and the two fits.

    Halves are every second image; fit and apply take a boolean mask [n] of the images to look at.
    """
    second = np.arange(n) % 2 == 1
    fits = [fit(second), fit(~second)]
    results = [apply(fitted, half) for fitted, half in zip(fits, (~second, second), strict=True)]
    joined = np.empty((n, *results[0].shape[1:]))
    joined[~second], joined[second] = results
    return joined, fits


class Reliability(NamedTuple):
    """Of every bin that holds an image: how many, their mean confidence, the share that is right. Arrays [bins]."""

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
    """Mean distance, weighted by images, between a bin's mean confidence and its share of right ones; 0..1."""
    bins = reliability(confidence, right, n_bins)
    return float((bins.counts * np.abs(bins.confidence - bins.accuracy)).sum() / bins.counts.sum())


def ece_interval(confidence, right, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of the expected calibration error: the estimate -/+ 1.96 standard deviations of a bootstrap over images.

    Not the bootstrap's quantiles: resampling adds noise to every bin, so they lie above the estimate. Cut at 0.
    """
    confidence, right = np.asarray(confidence), np.asarray(right)
    rng, n = np.random.default_rng(seed), len(confidence)
    resampled = (rng.integers(0, n, n) for _ in range(draws))
    half = Z95 * float(np.std([expected_calibration_error(confidence[i], right[i]) for i in resampled]))
    value = expected_calibration_error(confidence, right)
    return max(0.0, value - half), min(1.0, value + half)


def ece_by_chance(confidence, seed: int = 0, draws: int = 1000) -> float:
    """The mean expected calibration error that these confidences [n] would have if they were the true probabilities.

    It is above 0 because a bin's share of right ones is a random number (Broecker and Smith 2007, on consistency resampling).
    """
    confidence, rng = np.asarray(confidence), np.random.default_rng(seed)
    simulated = (rng.random(len(confidence)) < confidence for _ in range(draws))
    return float(np.mean([expected_calibration_error(confidence, right) for right in simulated]))


def brier(confidence, right) -> float:
    """Mean squared distance of the confidence [n] from 1 (right) or 0 (wrong); 0..1."""
    return float(((np.asarray(confidence) - np.asarray(right, np.float64)) ** 2).mean())


def log_loss(confidence, right) -> float:
    """Mean negative log-likelihood, in nats, of right or wrong [n] under the confidence [n], kept 1e-12 away from 0 and 1."""
    confidence = np.clip(confidence, 1e-12, 1 - 1e-12)
    return float(-np.log(np.where(right, confidence, 1 - confidence)).mean())


def auroc(confidence, right) -> float:
    """Chance that a right image has more confidence than a wrong one, a tie counting half. Both kinds must occur."""
    from scipy.stats import rankdata

    right = np.asarray(right, bool)
    n_right, n_wrong = right.sum(), (~right).sum()
    return float((rankdata(confidence)[right].sum() - n_right * (n_right + 1) / 2) / (n_right * n_wrong))
