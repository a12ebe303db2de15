#!/usr/bin/env python
"""Is a fast run the same as a careful one? Predictions and errors of two run folders, image by image, without a model.

The error's difference means something only when both runs saw the same noise: same --seed, timesteps and image size.

bfloat16 against float32, and the race against the full grid:
  python scripts/compare_runs.py data/fashion_mnist/v..._l1_64 data/fashion_mnist_bf16/v..._l1_64
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion import cli, files, metrics, session
from diffusion.analysis import figures, tables


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("careful", type=Path, metavar="RUN", help="reference run folder")
    parser.add_argument("fast", type=Path, metavar="OTHER", help="run folder of the same images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    return parser.parse_args(argv)


def common_images(careful, fast) -> list[tuple]:
    """Pairs of records of the same image. Raises ValueError without any, and for other labels or candidates."""
    theirs = {image.index: image for image in fast.images}
    pairs = [(image, theirs[image.index]) for image in careful.images if image.index in theirs]
    if not pairs:
        raise ValueError(f"{careful.folder} and {fast.folder} have no image in common")
    if careful.class_of != fast.class_of or any(a.label != b.label for a, b in pairs):
        raise ValueError(f"{careful.folder} and {fast.folder} have different classes and cannot be compared")
    return pairs


def relative_differences(pairs):
    """|fast - careful| / careful of every error that both have at the same timestep: float64 [n], empty without any."""
    import numpy as np

    found = [np.empty(0)]
    for one, other in pairs:
        n = min(len(one.t), len(other.t))
        if one.errors is None or other.errors is None or (one.t[:n] != other.t[:n]).any():
            continue  # sums, or another order of evaluation, in which seeded noise belongs to other timesteps
        for a, b in zip(one.errors, other.errors, strict=True):
            n = min(len(a), len(b))
            found.append(np.abs(b[:n].astype(np.float64) - a[:n]) / a[:n])
    return np.concatenate(found)


def compare(careful, fast) -> dict:
    """The figures of the table."""
    pairs = common_images(careful, fast)
    labels, preds, others = zip(*((a.label, a.pred, b.pred) for a, b in pairs), strict=True)
    differences = relative_differences(pairs)
    return {
        "agreement": metrics.top1(others, preds),
        "accuracy": metrics.top1(preds, labels),
        "accuracy_other": metrics.top1(others, labels),
        "p": metrics.mcnemar([p == y for p, y in zip(preds, labels, strict=True)],
                             [p == y for p, y in zip(others, labels, strict=True)]).p_value,
        "evaluations": sum(int(a.counts.sum()) for a, _ in pairs) / len(pairs),
        "evaluations_other": sum(int(b.counts.sum()) for _, b in pairs) / len(pairs),
        "errors_compared": len(differences),
        "mean_relative_difference": float(differences.mean()) if len(differences) else None,
    }  # fmt: skip


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        result = compare(tables.read_run(args.careful), tables.read_run(args.fast))
        if args.json:
            files.write_text(args.json, figures.to_json(result))
    difference = result["mean_relative_difference"]
    rows = {
        "same prediction": result["agreement"],
        "accuracy": result["accuracy"],
        "accuracy of the other": result["accuracy_other"],
        "McNemar's exact p": f"{result['p']:.2g}",
        "evaluations per image": f"{result['evaluations']:,.0f} and {result['evaluations_other']:,.0f}",
        "relative difference of errors": "no error at the same timestep and noise" if difference is None else
        f"mean {difference:.1e} over {result['errors_compared']:,}",
    }  # fmt: skip
    cli.print_table(f"{args.careful} and {args.fast}:", rows)
    return 0


if __name__ == "__main__":
    sys.exit(session.run(main))
