#!/usr/bin/env python
"""Probabilities from a run's records, without a model: how sure a prediction is, and how far that can be relied on.

  python scripts/calibrate.py data/fashion_mnist/DiT64x64_10classes_t10_1trials
  python scripts/calibrate.py RUN --csv predictions.csv --out reliability.png
  python scripts/calibrate.py RACE_RUN --confidence evaluations --csv predictions.csv
fitted on another run's images, such as validation images:
  python scripts/calibrate.py RUN --fitted_on VALIDATION_RUN
a fit for images that the run has not seen, which `diffusion.classify` takes:
  python scripts/calibrate.py RUN --write_fit fit.json

errors: a softmax of minus each candidate's gap, its error less the predicted one's, over a temperature. The temperature, and how
much a gap's standard error flattens it, are fitted on the other half of the images, or on all images of --fitted_on. A candidate
that was dropped early is compared on the (timestep, noise) pairs that it shared with the predicted one; its gap is taken as
unbiased and normal. That it is larger because the candidate was dropped, and that gaps of several candidates are correlated, is
left to the fit. A class of several prompts has the probability of its best one, so the prediction stays the run's.
evaluations: where images cost differently, a logistic regression of right or wrong on the logarithm of an image's evaluations,
fitted on the same images (Clark and Jaini 2023: a race that ends early is surer of its class).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, metrics
from diffusion.analysis import confidence, figures, tables
from diffusion.analysis.confidence import Confidence, Images
from diffusion.cli import parsing
from diffusion.metrics import calibration
from diffusion.runs import loop, run_folder
from diffusion.utils import files, outputs

HALVES = "Each image's fit is on the other half of the images: halves are random, with the same share of every class (seeded)."
NOTES = """\
ECE: expected calibration error, 15 bins of equal width. It is above 0 by chance alone: "by chance" is its mean for a calibrated
classifier with these confidences, p the share of 1,000 simulated ones whose ECE is at least as large. A small p says that the
confidences are off; a large one only that this many images do not show it. Brier, NLL and AUROC in the table: of the event that
the prediction is right."""


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder of eval_prob_adaptive.py or eval_prob_dit.py")
    parser.add_argument("--confidence", choices=["errors", "evaluations"], default="errors", help="what --csv's probability is "
                        "made of; both are printed and drawn (default: errors)")  # fmt: skip
    parser.add_argument("--prompt_path", help="prompt CSV of a folder that the published code wrote")
    parser.add_argument("--fitted_on", type=Path, metavar="RUN", help="run of the same settings on other images, which "
                        "the probabilities are fitted to (default: two halves of RUN, each fitted on the other)")  # fmt: skip
    parser.add_argument("--csv", type=outputs.Output(), metavar="FILE",
                        help="write index, label, pred, probability, margin (gap of the "
                        "second best class) and evaluations of every image")  # fmt: skip
    renamed = parser.add_argument("--write_fit", type=outputs.Output(), metavar="FILE",
                        help="write temperature and weight as JSON, fitted on ALL images "
                        "of the run: for new images of the same model and settings, not for these")  # fmt: skip
    parser.rename("--fit", renamed)
    parser.add_argument("-o", "--out", type=figures.picture_file, metavar="FILE", help="draw reliability diagrams (.png or .svg)")
    return parser.parse_args(argv)


def read_one(folder: Path, prompt_path) -> tuple[tables.Run, Images]:
    """Raises ValueError when nothing can be fitted."""
    run = tables.read_run(folder, prompt_path=prompt_path)
    images = confidence.read_images(run)
    confidence.check_enough(images.right, images.second, folder)
    return run, images


def read(args) -> tuple[tables.Run, Images, Images | None]:
    """The run, its images and those of --fitted_on. Raises ValueError when nothing can be fitted."""
    run, images = read_one(args.folder, args.prompt_path)
    if args.confidence == "evaluations" and not images.costs_differ:
        raise ValueError(f"--confidence evaluations: every image of {args.folder} cost {images.evaluations[0]} evaluations; "
                         "this confidence is for races only (--strategy race)")  # fmt: skip
    if not args.csv:
        cli.refuse_idle(vars(args), ["confidence"], "without --csv, whose probabilities it chooses")
    return run, images, read_other(args, run, images) if args.fitted_on else None


def read_other(args, run: tables.Run, images: Images) -> Images:
    """Raises ValueError for a run of other settings, of other candidates, or of images that RUN has too."""
    other, others = read_one(args.fitted_on, args.prompt_path)
    try:
        run_folder.check_same([args.folder, args.fitted_on], ignore=("split", "images", "subset"))
    except ValueError as error:
        raise ValueError(f"--fitted_on: {error}; a fit belongs to one model, prompts, loss and strategy") from None
    if other.class_of != run.class_of:
        raise ValueError(f"--fitted_on: {args.fitted_on} has other candidates than {args.folder}")
    where = [(r.config["identity"].get("split"), r.config["identity"].get("images")) for r in (run, other)]
    shared = set(images.index) & set(others.index) if where[0] == where[1] else ()
    if shared:
        raise ValueError(f"--fitted_on: {args.fitted_on} and {args.folder} share {len(shared)} images: fit on other ones")
    return others


# ---------------------------------------------------------------- what comes out


def print_confidences(confidences: list[Confidence], right) -> None:
    print(f"{'confidence':14}{'mean':>6}{'ECE':>9}{'by chance':>11}{'p':>8}{'Brier':>9}{'NLL':>9}{'AUROC':>9}")
    for c in confidences:
        ece, chance = calibration.expected_calibration_error(c.values, right), calibration.chance_ece(c.values, right)
        scores = (calibration.brier(c.values, right), calibration.log_loss(c.values, right), calibration.auroc(c.values, right))
        print(f"{c.name:14}{c.values.mean():6.3f}{ece:9.4f}{chance.mean:11.4f}{chance.p_value:8.3f}"
              f"{''.join(f'{score:9.4f}' for score in scores)}")  # fmt: skip


def print_run(run: tables.Run, images: Images) -> None:
    fewer = sum(int((image.counts < image.counts.max()).sum()) for image in run.images) / images.gaps.size
    print(f"{len(images.index)} images, {len(run.class_of)} candidates of {len(set(run.class_of))} classes")
    if fewer:
        print(f"{100 * fewer:.0f}% of all candidates were dropped early; the gaps to them are taken as unbiased and normal")
    if run.unreadable:
        print(run_folder.unreadable_message(run.unreadable, "not counted"))
    print(f"Top-1 accuracy: {metrics.top1(images.preds, images.labels)}")


def write_csv(path: Path, images: Images, chosen: Confidence) -> None:
    columns = (images.index, images.labels, images.preds, chosen.values, images.margins, images.evaluations)
    files.write_csv(path, [["index", "label", "pred", "probability", "margin", "evaluations"], *zip(*columns, strict=True)])


def points_of(drawn: Confidence, right):
    """The bins of the diagram, and how far the 95 % interval of each share lies below and above it [2,bins]."""
    import numpy as np

    bins = calibration.reliability(drawn.values, right)
    intervals = np.array([metrics.wilson(p, n) for p, n in zip(bins.accuracy, bins.counts, strict=True)]).T
    return bins, np.abs(intervals - bins.accuracy)


def draw(path: Path, confidences: list[Confidence], right) -> None:
    """A column a confidence: share of right predictions against confidence, and below how many images have it."""
    import matplotlib

    matplotlib.use("Agg")  # not drawing.pyplot(), which takes no math: the ticks of a log axis are 10 to a power
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(confidences), figsize=(3.6 * len(confidences), 5.2), sharex=True, sharey="row",
                                height_ratios=(3, 1), squeeze=False, layout="constrained")  # fmt: skip
    for c, upper, lower in zip(confidences, *axes, strict=True):
        bins, whiskers = points_of(c, right)
        upper.plot((0, 1), (0, 1), color="grey", linestyle=":", label="calibrated")
        upper.errorbar(bins.confidence, bins.accuracy, yerr=whiskers, fmt="o", markersize=4, capsize=2)
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        upper.set_title(f"{c.name}: ECE {calibration.expected_calibration_error(c.values, right):.3f}", fontsize=10)
        lower.hist(c.values, bins=15, range=(0, 1), color="C0")
        lower.set(xlabel="confidence", yscale="log")
        for axis in (upper, lower):
            axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("share right, 95 % intervals")
    axes[1][0].set_ylabel("images")
    axes[0][0].legend(loc="lower right", fontsize=8)
    figure.suptitle(f"reliability, n = {len(right)}", fontsize=11)
    figures.save(figure, path)


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        run, images, others = read(args)
        before, after, fits = confidence.posteriors(images, run.class_of, others)
        confidences = confidence.by_errors(images, run.class_of, before, after, fits)
        confidences += [confidence.by_evaluations(images, others)] if images.costs_differ else []
        if args.csv:
            write_csv(args.csv, images, next(c for c in confidences if c.name == args.confidence))
        if args.out:
            draw(args.out, confidences, images.right)
        if args.write_fit:
            confidence.fit_of(images, run.class_of, run.config["identity"]).write(args.write_fit)
    print_run(run, images)
    for c in confidences:
        print(f"  {c.name:12}{c.fits}")
    print_confidences(confidences, images.right)
    for name, posterior in (("unscaled", before), ("errors", after)):
        nll, brier = calibration.posterior_scores(posterior, images.columns)
        print(f"Over all classes, {name}: NLL {nll:.4f}, Brier {brier:.4f}")
    print(f"Fitted on the {len(others.index)} images of {args.fitted_on}." if others else HALVES)
    print(NOTES)
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
