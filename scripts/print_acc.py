#!/usr/bin/env python
"""Accuracy of run folders, ours or the reference's, without a model. Several folders (of workers) count as one run.

python scripts/print_acc.py data/fashion_mnist/v...
by weights of levels that scripts/fit_weights.py fitted on another run, of a run with all errors of all candidates:
python scripts/print_acc.py RUN --level_weights weights.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, metrics
from diffusion.analysis import figures, results, tables
from diffusion.cli import parsing
from diffusion.runs import loop, run_folder
from diffusion.utils import files, outputs


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="run folder; several are merged")
    parser.add_argument("--json", type=outputs.Output(), metavar="FILE", help="also write the figures as JSON")
    parser.add_argument(
        "--csv", type=outputs.Output(), metavar="FILE", help="also write index, label, pred, evaluations of every image"
    )
    renamed = parser.add_argument("--class_labels", type=parsing.at_least(0), nargs="+", metavar="LABEL",
                        help="also the accuracy on the images "
                        "of these classes, and on all others")  # fmt: skip
    parser.rename("--classes", renamed)
    parser.add_argument("--level_weights", metavar="FILE", help="of scripts/fit_weights.py: predictions by the errors times "
                        "these weights, whatever the run's were (default: the run's predictions)")  # fmt: skip
    return parser.parse_args(argv)


def read(folder: Path, unreadable: list[str]) -> dict[int, results.Ranked]:
    """index -> outcome as recorded. Raises ValueError for a folder without a readable record."""
    config = run_folder.read_config(folder) or {"identity": {}}
    if "prune_img_size" in config["identity"]:  # errors of two image sizes rank no classes
        return {index: results.Ranked(*outcome, None) for index, outcome in run_folder.read_outcomes(folder, unreadable).items()}
    images = dict(results.each_ranked(folder, config, unreadable))
    if not images:
        raise ValueError(tables.NO_RECORD.format(folder))
    return images


def read_weighted(folder: Path, weights: str, unreadable: list[str]) -> dict[int, results.Ranked]:
    """index -> outcome by the errors times the weights of this file. Raises ValueError for a run that did not keep them all."""
    import numpy as np

    run = tables.read_run(folder, weights_path=weights)
    unreadable += run.unreadable
    tables.check_full(run)
    preds = {image.index: run.class_of[int(np.argmin(image.means))] for image in run.images}
    ranked = {image.index: results.ranked(image, run.class_of) for image in run.images}
    return {index: image._replace(pred=preds[index]) for index, image in ranked.items()}


def merge(folders, weights: str | None = None) -> tuple[dict[int, results.Ranked], list[str]]:
    """index -> outcome over all folders, and the names of what is unreadable. weights: a file of them, None: as recorded.

    Raises ValueError for an empty folder and for folders of different runs.
    """
    merged, unreadable = {}, []
    for folder in folders:
        for index, outcome in (read_weighted(folder, weights, unreadable) if weights else read(folder, unreadable)).items():
            if merged.get(index, outcome) != outcome:
                raise ValueError(f"image {index} has two results among these folders: they are different runs")
            merged[index] = outcome
    return dict(sorted(merged.items())), unreadable


def summarise(outcomes: dict[int, results.Ranked], n_expected: int | None) -> dict:
    """What --json holds; top5 is None where not every image's record ranks five classes."""
    accuracies = results.accuracies(outcomes.values())
    return {
        "top1": accuracies["acc1"],
        "top5": accuracies.get("acc5"),
        "mean_per_class": accuracies["mean_per_class_recall"],
        "n": len(outcomes),
        "n_expected": n_expected,
        "evaluations_per_image": sum(outcome.evaluations for outcome in outcomes.values()) / len(outcomes),
    }


def by_classes(outcomes: dict, classes) -> dict[str, metrics.Estimate]:
    """Top-1 on the images of these classes and on the others, by what the line is called. Raises ValueError without any image."""
    parts = {name: [o for o in outcomes.values() if (o.label in classes) == inside]
             for name, inside in (("classes " + ", ".join(map(str, classes)), True), ("the other classes", False))}  # fmt: skip
    if empty := next((name for name, part in parts.items() if not part), None):
        raise ValueError(f"--class_labels: the run has no images of {empty}")
    return {name: metrics.top1(*zip(*((o.pred, o.label) for o in part), strict=True)) for name, part in parts.items()}


def write_files(args, outcomes: dict, result: dict):
    """--json and --csv, as far as asked for."""
    if args.json:
        files.write_text(args.json, figures.to_json(result))
    if args.csv:
        files.write_csv(args.csv, [("index", "label", "pred", "evaluations"), *((i, *o[:3]) for i, o in outcomes.items())])


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        n_expected = run_folder.images_expected(args.folders)
        outcomes, unreadable = merge(args.folders, args.level_weights)
        result = summarise(outcomes, n_expected)
        parts = by_classes(outcomes, args.class_labels) if args.class_labels else {}
        write_files(args, outcomes, result)
    print(f"Top 1 acc: {result['top1']}")
    print(f"Mean per class acc: {result['mean_per_class']}")
    if result["top5"]:
        print(f"Top 5: {result['top5']}")
    for name, estimate in parts.items():
        print(f"Top-1 accuracy of {name}: {estimate}")
    print(f"Images: {result['n']} of {result['n_expected'] or 'an unknown number'}")
    if message := run_folder.unreadable_message(unreadable, "not counted"):
        print(message)
    print(f"Cost: {result['evaluations_per_image']:,.0f} evaluations per image")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
