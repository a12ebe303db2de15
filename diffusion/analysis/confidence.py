"""A run's records as confidences: each image's gaps, probabilities by a fit on other images, and a fit for new ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion.analysis import tables
from diffusion.metrics import calibration

LEAST = 20  # images; fewer fit nothing


@dataclass(frozen=True)
class Images:
    """Every image of a run, arrays of [n] or [n,K]. columns: place of the label's class among the ascending classes; gaps,
    deviations: of every candidate's error to the winner's, and its standard error (0 where only sums were kept); margins: the
    smallest gap of another class; second: which half of a cross-fit."""

    index: list[int]
    labels: np.ndarray
    preds: np.ndarray
    columns: np.ndarray
    gaps: np.ndarray
    deviations: np.ndarray
    margins: np.ndarray
    evaluations: np.ndarray
    second: np.ndarray

    @property
    def right(self):
        return self.preds == self.labels

    @property
    def costs_differ(self) -> bool:
        return len(set(self.evaluations.tolist())) > 1


def read_images(run: tables.Run) -> Images:
    """Raises ValueError for a run whose candidates are of one class, or are not those that its records are about."""
    check_classes(run)
    gaps, deviations = (np.stack(x) for x in zip(*(gaps_of(image, run.class_of) for image in run.images), strict=True))
    preds = np.array([image.pred for image in run.images])
    labels = np.array([image.label for image in run.images])
    return Images(
        index=[image.index for image in run.images],
        labels=labels,
        preds=preds,
        columns=np.searchsorted(sorted(set(run.class_of)), labels),
        gaps=gaps,
        deviations=deviations,
        margins=np.where(np.array(run.class_of) == preds[:, None], np.inf, gaps).min(1),
        evaluations=np.array([image.evaluations for image in run.images]),
        second=halves(labels, preds == labels),
    )


def check_classes(run: tables.Run) -> None:
    """Raises ValueError for candidates of one class, and for labels and predictions that no candidate stands for."""
    classes = set(run.class_of)
    if len(classes) < 2:
        raise ValueError(f"{run.folder} has candidates of one class only: probabilities need two classes or more")
    for image in run.images:
        strangers = {image.label, image.pred} - classes
        if strangers:
            raise ValueError(f"class {min(strangers)} of image {image.index} is none of the run's candidates: give the run's "
                             "--prompt_path, or evaluate with all classes of the images")  # fmt: skip


def gaps_of(image: tables.Scored, class_of: list[int]):
    """Gaps and standard errors [K] to the winner's error; of sums, which every candidate has of all pairs, the gaps alone.

    Raises ValueError where a candidate was never tried, as nothing says how probable it is.
    """
    if not image.counts.all():
        raise ValueError(f"not all candidates of image {image.index} were tried, so it has no probabilities: evaluate with "
                         "--strategy stages or race where all compete for every image, so without --shortlist")  # fmt: skip
    winner = tables.best_row(image, class_of, image.pred)
    if image.errors is None:
        return image.means - image.means[winner], np.zeros(len(image.means))
    return calibration.paired_gaps(image.errors, winner)


def halves(labels, right) -> np.ndarray:
    """`calibration.second_half` of the first seed that leaves right and wrong ones in both halves, if one does.

    Of few images with few wrong ones all of these may be in one half, which then fits nothing.
    """
    for seed in range(100):
        second = calibration.second_half(labels, seed)
        if all(len(set(right[half].tolist())) == 2 for half in (second, ~second)):
            break
    return second


def check_enough(right, second, folder) -> None:
    """Raises ValueError when nothing can be fitted. right, second: booleans [n]."""
    n = len(right)
    if n < LEAST:
        raise ValueError(f"{folder} holds {n} readable images: calibration needs {LEAST} or more, so evaluate more of them")
    for half in (right[~second], right[second]):
        if half.all() or not half.any():
            raise ValueError(f"a half of {folder} has {len(half)} images and {half.sum()} right: a fit needs right and "
                             "wrong ones in both halves, so evaluate more images")  # fmt: skip


# ---------------------------------------------------------------- fits


def fit_of(images: Images, class_of: list[int], about: dict) -> calibration.Fit:
    """On all images, for new ones. about: identity of the run."""
    fitted = calibration.fit_temperature(images.gaps, images.deviations, class_of, images.columns)
    return calibration.Fit(*fitted, len(images.index), about)


def fit_elsewhere(fit, apply, images: Images, others: Images | None) -> tuple[np.ndarray, list]:
    """apply(fit on other images) to all images, an array of n results, and the fits.

    fit(images, part) and apply(fitted, part) look at a part [n] of the images. The other images are `others`, all of them;
    without these each half of the images is fitted on the other one.
    """
    if others is None:
        return calibration.cross_fit(images.second, lambda part: fit(images, part), apply)
    fitted = fit(others, slice(None))
    return apply(fitted, slice(None)), [fitted]


def posteriors(images: Images, class_of: list[int], others: Images | None = None):
    """Log-posteriors [n,C] at temperature 1 of the recorded errors, and fitted elsewhere; the fits (temperature, weight)."""

    def fit(on, part):
        return calibration.fit_temperature(on.gaps[part], on.deviations[part], class_of, on.columns[part])

    def apply(fitted, part):
        return calibration.class_log_posterior(images.gaps[part], images.deviations[part], class_of, *fitted)

    return apply((1.0, 0.0), slice(None)), *fit_elsewhere(fit, apply, images, others)


# ---------------------------------------------------------------- confidences


@dataclass(frozen=True)
class Confidence:
    """Probability [n] that the prediction is right; fits: what was found, one line."""

    name: str
    values: Any
    fits: str


def by_errors(images: Images, class_of: list[int], before, after, fits) -> list[Confidence]:
    """The softmax before and after the fit, from log-posteriors [n,C]."""
    chosen = np.arange(len(images.index)), np.searchsorted(sorted(set(class_of)), images.preds)
    message = " and ".join(f"{temperature:.3g} with {weight:.2f} standard errors" for temperature, weight in fits)
    return [
        Confidence("unscaled", np.exp(before[chosen]), "temperature 1, softmax of minus the mean errors as recorded"),
        Confidence("errors", np.exp(after[chosen]), f"temperature {message}"),
    ]


def by_evaluations(images: Images, others: Images | None = None) -> Confidence:
    """Logistic regression of right or wrong on the logarithm of the evaluations, fitted elsewhere."""
    from scipy.special import expit

    def fit(on, part):
        return calibration.fit_platt(np.log(on.evaluations[part]), on.right[part])

    def apply(fitted, part):
        return expit(fitted[0] + fitted[1] * np.log(images.evaluations[part]))

    values, fits = fit_elsewhere(fit, apply, images, others)
    message = " and ".join(f"{intercept:.2f} {slope:+.2f} ln(evaluations)" for intercept, slope in fits)
    return Confidence("evaluations", values, f"log-odds {message}")
