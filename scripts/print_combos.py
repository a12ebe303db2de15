#!/usr/bin/env python
"""Accuracy on tiny_combos: combinations of colour and item that training left out, apart from the others; what is wrong.

python scripts/print_combos.py data/tiny_combos/vtiny_1trials_race_0.2alpha_2min_1round_250max_l1_64
python scripts/print_combos.py RUN OTHER_RUN      # two models on the same images, by McNemar's exact test

The first interval is over pictures: what other pictures of these combinations would give. That over combinations is wider: what
other combinations would give (Student's t over their accuracies).
"""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, metrics
from diffusion.cli import parsing
from diffusion.datasets.scenes import HELD_OUT
from diffusion.datasets.shipped import PAIRS
from diffusion.runs import loop, run_folder

GROUPS = {"held out": True, "seen": False}


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="run folder; two are compared")
    args = parser.parse_args(argv)
    if len(args.folders) > 2:
        parser.error("give one run folder, or two to compare")
    return args


def read(folder: Path) -> dict[int, run_folder.Outcome]:
    """Raises ValueError for a folder of another data set, or without records."""
    config = run_folder.read_config(folder) or {}
    dataset = config.get("identity", {}).get("dataset")
    if dataset != "tiny_combos":
        raise ValueError(f"{folder} is a run on {dataset or 'an unknown data set'}: give a run on tiny_combos")
    unreadable = []
    outcomes = run_folder.read_outcomes(folder, unreadable)
    if message := run_folder.unreadable_message(unreadable, "not counted"):
        print(f"{folder}: {message}")
    return outcomes


def fault(label: int, pred: int) -> str | None:
    """What a prediction is wrong in: colour, item, both; None for a right one."""
    colour, item = (a != b for a, b in zip(PAIRS[label], PAIRS[pred], strict=True))
    return {(True, False): "colour", (False, True): "item", (True, True): "both"}.get((colour, item))


def part_of(outcomes: dict, held_out: bool) -> dict[int, str | None]:
    """Index -> fault, of the images whose class was or was not held out."""
    return {i: fault(o.label, o.pred) for i, o in outcomes.items() if (PAIRS[o.label] in HELD_OUT) == held_out}


def line(name: str, faults: dict, labels: dict[int, int]) -> str:
    """Accuracy of one group, and its faults; a run cut short may have none of its images. labels: by index."""
    if not faults:
        return f"{name}: no images"
    wrong = Counter(faults.values())
    counts = ", ".join(f"{kind} {wrong[kind]}" for kind in ("colour", "item", "both"))
    of_classes = by_class({i: fault is None for i, fault in faults.items()}, labels)
    over = over_combinations(metrics.mean_of_groups(of_classes), len(of_classes))
    return f"{name}: {metrics.proportion([f is None for f in faults.values()])}{over}; wrong: {counts}"


def by_class(values: dict[int, float], labels: dict[int, int]) -> list[float]:
    """The mean value of each class that occurs. values: by index."""
    groups: dict[int, list[float]] = {}
    for index, value in values.items():
        groups.setdefault(labels[index], []).append(value)
    return [sum(group) / len(group) for group in groups.values()]


def over_combinations(interval: metrics.Interval | None, n: int, least: float = 0.0) -> str:
    """What a line adds of the interval over n combinations, cut to what can be. least: of a share, or of a difference of two."""
    if interval is None:
        return ""
    return f", over {n} combinations {100 * max(least, interval.low):.1f} to {100 * min(1, interval.high):.1f}"


def compared(name: str, first: dict, second: dict, labels: dict[int, int]) -> str:
    """McNemar's exact test on the images that both runs have, and their difference over combinations."""
    shared = sorted(first.keys() & second.keys())
    right = [[part[i] is None for i in shared] for part in (first, second)]
    test = metrics.mcnemar(*right)
    message = f"only the first is right on {test.only_first}, only the second on {test.only_second} of {len(shared)}"
    of_classes = by_class({i: a - b for i, a, b in zip(shared, *right, strict=True)}, labels)
    difference = metrics.mean_of_groups(of_classes)
    over = f"; the first less the second {100 * difference.value:+.1f} points" if difference else ""
    return f"{name}: {message}, p = {test.p_value:.2g}{over}{over_combinations(difference, len(of_classes), -1.0)}"


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        runs = [read(folder) for folder in args.folders]
    parts = [{name: part_of(outcomes, held_out) for name, held_out in GROUPS.items()} for outcomes in runs]
    labels = {index: outcome.label for outcomes in runs for index, outcome in outcomes.items()}
    for folder, part in zip(args.folders, parts, strict=True):
        print(folder)
        for name, faults in part.items():
            print(f"  {line(name, faults, labels)}")
    if len(parts) == 2:
        for name in GROUPS:
            print(compared(name, parts[0][name], parts[1][name], labels))
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
