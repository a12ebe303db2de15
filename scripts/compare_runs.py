#!/usr/bin/env python
"""Is a fast run the same as a careful one? Predictions and errors of two run folders, image by image, without a model.

The error's difference means something only when both runs saw the same noise: same --seed, timesteps and image size.

bfloat16 against float32, and the race against the full grid:
  python scripts/compare_runs.py data/fashion_mnist/v..._l1_64 data/fashion_mnist_bf16/v..._l1_64
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, metrics
from diffusion.analysis import figures, tables
from diffusion.cli import parsing
from diffusion.runs import loop, printing, run_folder
from diffusion.utils import files, outputs


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("careful", type=Path, metavar="RUN", help="reference run folder")
    parser.add_argument("fast", type=Path, metavar="OTHER", help="run folder of the same images")
    parser.add_argument("--json", type=outputs.Output(), metavar="FILE", help="also write the figures")
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
    """The relative difference of every error that both have at the same timestep: float64 [n], empty without any."""
    import numpy as np

    parts = [np.empty(0)]
    for one, other in pairs:
        n = min(len(one.t), len(other.t))
        if one.errors is None or other.errors is None or (one.t[:n] != other.t[:n]).any():
            continue  # sums, or another order of evaluation, which a bank and runs of before take their noise by
        for a, b in zip(one.errors, other.errors, strict=True):
            n = min(len(a), len(b))
            parts.append(relative(a[:n], b[:n]))
    return np.concatenate(parts)


def relative(careful, fast):
    """|fast - careful| / |careful| of errors [n], float64; where that is zero relative to the other's, and 0 where both are."""
    import numpy as np

    one, other = np.abs(careful.astype(np.float64)), np.abs(fast.astype(np.float64))
    scale = np.where(one > 0, one, np.where(other > 0, other, 1))
    return np.abs(fast.astype(np.float64) - careful) / scale


def identical(one, other) -> bool:
    """Whether two records of an image hold the same to the last bit: the prediction, and all errors or their sums."""
    if one.pred != other.pred or one.t.tolist() != other.t.tolist():
        return False
    if one.errors is None or other.errors is None:
        return one.means.tolist() == other.means.tolist()
    return all(a.tolist() == b.tolist() for a, b in zip(one.errors, other.errors, strict=True))


def figures_of(right, rights_other, agree, spent, same, differences) -> dict:
    """The figures of the table, of paired lists [n]: right or wrong in each run, whether they agree, (evaluations, evaluations of
    the other), whether records are identical; and of the relative differences of errors [m]."""
    n = len(right)
    return {
        "agreement": metrics.proportion(agree),
        "accuracy": metrics.proportion(right),
        "accuracy_other": metrics.proportion(rights_other),
        "p": metrics.mcnemar(right, rights_other).p_value,
        "evaluations": sum(a for a, _ in spent) / n,
        "evaluations_other": sum(b for _, b in spent) / n,
        "identical": sum(same),
        "errors_compared": len(differences),
        "mean_relative_difference": float(differences.mean()) if len(differences) else None,
    }


def tell_unreadable(names: list[str]) -> None:
    if message := run_folder.unreadable_message(names, "not compared"):
        print(f"Note: {message}", file=sys.stderr)


def compare_images(careful, fast) -> dict:
    tell_unreadable(careful.unreadable + fast.unreadable)
    pairs = common_images(careful, fast)
    return figures_of(
        [a.pred == a.label for a, _ in pairs],
        [b.pred == b.label for _, b in pairs],
        [a.pred == b.pred for a, b in pairs],
        [(a.evaluations, b.evaluations) for a, b in pairs],
        [identical(a, b) for a, b in pairs],
        relative_differences(pairs),
    )


def compare_examples(careful: Path, fast: Path) -> dict:
    """The same of two Winoground runs by their text scores. Raises ValueError without an example in common."""
    import numpy as np

    unreadable = []
    one, other = (run_folder.load_pair_records(folder, unreadable) for folder in (careful, fast))
    tell_unreadable(unreadable)
    pairs = [(one[i], other[i]) for i in sorted(one.keys() & other.keys())]
    if not pairs:
        raise ValueError(f"{careful} and {fast} have no example in common")
    text, text_other = ([bool(run_folder.pair_outcome(pair[k]).right) for pair in pairs] for k in (0, 1))
    spent = [tuple(run_folder.pair_outcome(record).evaluations for record in pair) for pair in pairs]
    values = [[np.concatenate([np.ravel(v) for v in record.values()]).astype(float) for record in pair] for pair in pairs]
    comparable = [(a, b) for a, b in values if a.shape == b.shape]  # else other timesteps
    differences = np.concatenate([np.empty(0), *(relative(a, b) for a, b in comparable)])
    agree, same = [x == y for x, y in zip(text, text_other, strict=True)], [a.tolist() == b.tolist() for a, b in values]
    return figures_of(text, text_other, agree, spent, same, differences)


def is_of_pairs(folder: Path) -> bool:
    config = run_folder.read_config(folder)
    return bool(config) and config["kind"] == run_folder.PAIRS


def table_rows(result: dict, of_pairs: bool) -> dict:
    difference = result["mean_relative_difference"]
    prediction, accuracy, unit = ("text score", "text score", "example") if of_pairs else ("prediction", "accuracy", "image")
    return {
        f"same {prediction}": result["agreement"],
        accuracy: result["accuracy"],
        f"{accuracy} of the other": result["accuracy_other"],
        "McNemar's exact p": f"{result['p']:.2g}",
        f"evaluations per {unit}": f"{result['evaluations']:,.0f} and {result['evaluations_other']:,.0f}",
        "identical to the last bit": f"{result['identical']:,} of {result['agreement'].n:,} records",
        "relative difference of errors": "no error at the same timestep and noise" if difference is None else
        f"mean {difference:.1e} over {result['errors_compared']:,}",
    }  # fmt: skip


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        of_pairs = is_of_pairs(args.careful) and is_of_pairs(args.fast)
        if of_pairs:
            result = compare_examples(args.careful, args.fast)
        else:
            result = compare_images(tables.read_unweighted(args.careful), tables.read_unweighted(args.fast))
        if args.json:
            files.write_text(args.json, figures.to_json(result))
    printing.print_table(f"{args.careful} and {args.fast}:", table_rows(result, of_pairs))
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
