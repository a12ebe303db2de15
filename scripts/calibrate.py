#!/usr/bin/env python
"""Probabilities from a run's records, without a model: how sure a prediction is, and how far that can be relied on.

  python scripts/calibrate.py data/fashion_mnist/DiT64x64_10classes_t10_1trials
  python scripts/calibrate.py RUN --csv predictions.csv --out reliability.png
  python scripts/calibrate.py RACE_RUN --confidence evaluations --csv predictions.csv

errors: a softmax of minus each candidate's gap, its error less the predicted one's, over a temperature. The temperature, and how
much a gap's standard error flattens it, are fitted on the other half of the images. A candidate that fell early is compared on
the (timestep, noise) pairs that it shared with the predicted one; its gap is taken as unbiased and normal. That it is larger
because the candidate fell, and that gaps of several candidates are correlated, is left to the fit. A class of several prompts has
the probability of its best one, so the prediction stays the run's.
evaluations: where images cost differently, a logistic regression of right or wrong on the logarithm of an image's evaluations,
fitted on the other half too (Clark and Jaini 2023: a race that ends early is surer of its class).
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion import cli
from diffusion.analysis import figures

LEAST = 20  # images; fewer fit nothing
NOTES = """\
Each image's fit is on the other half of the images (every second one).
ECE: 15 bins of equal width, interval by 1,000 bootstrap samples of the images; by chance: the mean ECE of a calibrated classifier
with these confidences. Brier, NLL and AUROC in the table: of the event that the prediction is right."""


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder of eval_prob_adaptive.py or eval_prob_dit.py")
    parser.add_argument("--confidence", choices=["errors", "evaluations"], default="errors", help="what --csv's probability is "
                        "made of; both are printed and drawn (default: errors)")  # fmt: skip
    parser.add_argument("--prompt_path", help="prompt CSV of a folder that the published code wrote")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write index, label, pred, probability, margin (gap of the "
                        "second best class) and evaluations of every image")  # fmt: skip
    parser.add_argument("--out", type=figures.picture_file, metavar="PNG", help="draw reliability diagrams (.png or .svg)")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- records as arrays


@dataclass(frozen=True)
class Images:
    """Every image of a run, arrays of [n] or [n,K]. columns: place of the label's class among the ascending classes; gaps,
    deviations: of every candidate's error to the winner's, and its standard error (0 where only sums were kept); margins: the
    smallest gap of another class."""

    index: Any
    labels: Any
    preds: Any
    columns: Any
    gaps: Any
    deviations: Any
    margins: Any
    evaluations: Any

    @property
    def right(self):
        return self.preds == self.labels


def gaps_of(image, class_of: list[int]):
    """Gaps and standard errors [K] to the winner's error; of sums, which every candidate has of all pairs, the gaps alone."""
    import numpy as np

    from diffusion import metrics
    from diffusion.analysis import tables

    winner = tables.best_row(image, class_of, image.pred)
    if image.errors is None:
        return image.means - image.means[winner], np.zeros(len(image.means))
    return metrics.paired_gaps(image.errors, winner)


def read_images(run) -> Images:
    """Raises ValueError for a run whose candidates are of one class, or are not those that its records are about."""
    import numpy as np

    classes = sorted(set(run.class_of))
    if len(classes) < 2:
        raise ValueError(f"{run.folder} has candidates of one class only: probabilities need two classes or more")
    for image in run.images:
        strangers = {image.label, image.pred} - set(classes)
        if strangers:
            raise ValueError(f"class {min(strangers)} of image {image.index} is none of the run's candidates: give the run's "
                             "--prompt_path, or evaluate with all classes of the images")  # fmt: skip
    gaps, deviations = (np.stack(x) for x in zip(*(gaps_of(image, run.class_of) for image in run.images), strict=True))
    preds = np.array([image.pred for image in run.images])
    labels = np.array([image.label for image in run.images])
    return Images(
        index=[image.index for image in run.images],
        labels=labels,
        preds=preds,
        columns=np.searchsorted(classes, labels),
        gaps=gaps,
        deviations=deviations,
        margins=np.where(np.array(run.class_of) == preds[:, None], np.inf, gaps).min(1),
        evaluations=np.array([int(image.counts.sum()) for image in run.images]),
    )


def check_images(args, images: Images) -> None:
    """Raises ValueError when nothing can be fitted."""
    n = len(images.index)
    if n < LEAST:
        raise ValueError(f"{args.folder} holds {n} readable images: calibration needs {LEAST} or more, so evaluate more of them")
    for half in (images.right[0::2], images.right[1::2]):
        if half.all() or not half.any():
            raise ValueError(f"a half of {args.folder} has {len(half)} images and {half.sum()} right: a fit needs right and "
                             "wrong ones in both halves, so evaluate more images")  # fmt: skip
    if args.confidence == "evaluations" and len(set(images.evaluations.tolist())) == 1:
        raise ValueError(f"--confidence evaluations: every image of {args.folder} cost {images.evaluations[0]} evaluations; "
                         "that says something of a race only (--strategy race)")  # fmt: skip


# ---------------------------------------------------------------- confidences


@dataclass(frozen=True)
class Confidence:
    """Probability [n] that the prediction is right; fits: what the halves of the images were fitted to, one line."""

    name: str
    values: Any
    fits: str


def posteriors(images: Images, class_of: list[int]):
    """Log-posteriors [n,C] at temperature 1 of the recorded errors, and cross-fitted; the fits (temperature, weight)."""
    from diffusion import metrics

    def fit(part):
        return metrics.fit_temperature(images.gaps[part], images.deviations[part], class_of, images.columns[part])

    def apply(fitted, part):
        return metrics.class_log_posterior(images.gaps[part], images.deviations[part], class_of, *fitted)

    everything = slice(None)
    return apply((1.0, 0.0), everything), *metrics.cross_fit(len(images.index), fit, apply)


def evaluations_confidence(images: Images) -> Confidence:
    """Cross-fitted logistic regression of right or wrong on the logarithm of the evaluations."""
    import numpy as np
    from scipy.special import expit

    from diffusion import metrics

    x = np.log(images.evaluations)
    values, fits = metrics.cross_fit(
        len(x),
        lambda part: metrics.fit_platt(x[part], images.right[part]),
        lambda fitted, part: expit(fitted[0] + fitted[1] * x[part]),
    )
    told = " and ".join(f"{intercept:.2f} {slope:+.2f} ln(evaluations)" for intercept, slope in fits)
    return Confidence("evaluations", values, f"log-odds {told}")


def confidences_of(images: Images, class_of: list[int], before, after, fits) -> list[Confidence]:
    """The softmax before and after the fit, and the one from evaluations where these differ."""
    import numpy as np

    chosen = np.arange(len(images.index)), np.searchsorted(sorted(set(class_of)), images.preds)
    told = " and ".join(f"{temperature:.3g} with {weight:.2f} standard errors" for temperature, weight in fits)
    found = [
        Confidence("unscaled", np.exp(before[chosen]), "temperature 1, softmax of minus the mean errors as recorded"),
        Confidence("errors", np.exp(after[chosen]), f"temperature {told}"),
    ]
    return found + ([evaluations_confidence(images)] if len(set(images.evaluations.tolist())) > 1 else [])


# ---------------------------------------------------------------- what comes out


def print_confidences(confidences: list[Confidence], right) -> None:
    from diffusion import metrics

    print(f"{'confidence':14}{'mean':>6}  {'ECE (95 %)':26}{'by chance':>10}{'Brier':>9}{'NLL':>9}{'AUROC':>9}")
    for c in confidences:
        low, high = metrics.ece_interval(c.values, right)
        ece = f"{metrics.expected_calibration_error(c.values, right):.4f} ({low:.4f} to {high:.4f})"
        scores = (metrics.brier(c.values, right), metrics.log_loss(c.values, right), metrics.auroc(c.values, right))
        print(f"{c.name:14}{c.values.mean():6.3f}  {ece:26}{metrics.ece_by_chance(c.values):10.4f}"
              f"{''.join(f'{score:9.4f}' for score in scores)}")  # fmt: skip


def write_csv(path: Path, images: Images, confidence: Confidence) -> None:
    columns = (images.index, images.labels, images.preds, confidence.values, images.margins, images.evaluations)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "label", "pred", "probability", "margin", "evaluations"])
        writer.writerows(zip(*columns, strict=True))


def points_of(confidence: Confidence, right):
    """The bins of the diagram, and how far the 95 % interval of each share lies below and above it [2,bins]."""
    import numpy as np

    from diffusion import metrics

    bins = metrics.reliability(confidence.values, right)
    intervals = np.array([metrics.wilson(p, n) for p, n in zip(bins.accuracy, bins.counts, strict=True)]).T
    return bins, np.abs(intervals - bins.accuracy)


def draw(path: Path, confidences: list[Confidence], right) -> None:
    """A column a confidence: share of right predictions against confidence, and below how many images have it."""
    import matplotlib

    matplotlib.use("Agg")  # not figures.pyplot(), which takes no math: the ticks of a log axis are 10 to a power
    from matplotlib import pyplot as plt

    from diffusion import metrics

    figure, axes = plt.subplots(2, len(confidences), figsize=(3.6 * len(confidences), 5.2), sharex=True, sharey="row",
                                height_ratios=(3, 1), squeeze=False, layout="constrained")  # fmt: skip
    for c, upper, lower in zip(confidences, *axes, strict=True):
        bins, whiskers = points_of(c, right)
        upper.plot((0, 1), (0, 1), color="grey", linestyle=":", label="calibrated")
        upper.errorbar(bins.confidence, bins.accuracy, yerr=whiskers, fmt="o", markersize=4, capsize=2)
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        upper.set_title(f"{c.name}: ECE {metrics.expected_calibration_error(c.values, right):.3f}", fontsize=10)
        lower.hist(c.values, bins=15, range=(0, 1), color="C0")
        lower.set(xlabel="confidence", yscale="log")
        for axis in (upper, lower):
            axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("share right, 95 % intervals")
    axes[1][0].set_ylabel("images")
    axes[0][0].legend(loc="lower right", fontsize=8)
    figure.suptitle(f"reliability, n = {len(right)}", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv=None) -> int:
    args = parse_args(argv)
    from diffusion import metrics
    from diffusion.analysis import tables

    with cli.bad_input():
        run = tables.read_run(args.folder, prompt_path=args.prompt_path)
        images = read_images(run)
        check_images(args, images)
        before, after, fits = posteriors(images, run.class_of)
        confidences = confidences_of(images, run.class_of, before, after, fits)
        if args.csv:
            write_csv(args.csv, images, next(c for c in confidences if c.name == args.confidence))
        if args.out:
            draw(args.out, confidences, images.right)
    fewer = sum(int((image.counts < image.counts.max()).sum()) for image in run.images) / images.gaps.size
    print(f"{len(images.index)} images, {len(run.class_of)} candidates of {after.shape[1]} classes")
    if fewer:
        print(f"{100 * fewer:.0f}% of all candidates fell early; the gaps to them are taken as unbiased and normal")
    if run.unreadable:
        print(f"Skipped: {len(run.unreadable)} unreadable records: {', '.join(run.unreadable)}")
    print(f"Top-1 accuracy: {metrics.top1(images.preds, images.labels)}")
    for c in confidences:
        print(f"  {c.name:12}{c.fits}")
    print_confidences(confidences, images.right)
    for name, posterior in (("unscaled", before), ("errors", after)):
        print("Over all classes, {}: NLL {:.4f}, Brier {:.4f}".format(name, *metrics.posterior_scores(posterior, images.columns)))
    print(NOTES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
