#!/usr/bin/env python
"""Accuracy on the pairs of colour and item that each training left out.

python scripts/print_folds.py folds
python scripts/print_folds.py folds --format markdown

The folder is that of scripts/train_folds.py. Unseen: the twelve pairs that a training left out; seen: the other 48; all 60 are
candidates. Intervals: a bootstrap over the trainings and the pairs in each, percentiles of 10,000 draws with seed 0, the same
draws for all kinds.
"""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli
from diffusion.analysis import pages
from diffusion.cli import parsing
from diffusion.datasets.scenes import N_FOLDS, folds
from diffusion.datasets.shipped import PAIRS, Combos
from diffusion.metrics import folds as metrics_of_folds
from diffusion.runs import loop
from diffusion.utils import files


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDS", help="where train_folds.py wrote predictions/")
    parser.add_argument("--format", choices=["text", "markdown"], default="text", help="default: text")
    return parser.parse_args(argv)


def read(folder: Path) -> dict[str, dict[int, list[int]]]:
    """Kind -> fold -> predictions [960]. Raises ValueError for a folder without any, or with a file of another set."""
    preds: dict[str, dict[int, list[int]]] = {}
    for path in sorted((folder / "predictions").glob("*.json")):
        content = files.read_json(path)
        if not {"kind", "fold", "preds"} <= content.keys() or len(content["preds"]) != len(PAIRS) * 16:
            raise ValueError(
                f"{path} does not hold kind, fold and {len(PAIRS) * 16} preds: scripts/train_folds.py writes such files"
            )
        preds.setdefault(content["kind"], {})[content["fold"]] = content["preds"]
    if not preds:
        raise ValueError(f"{folder} holds no predictions/*.json: give the --out of scripts/train_folds.py")
    return preds


def complete(preds: dict) -> tuple[dict, list[int]]:
    """The kinds, and the folds that all of them have, in order. Raises ValueError where these are fewer than two."""
    shared = sorted(set.intersection(*(set(by_fold) for by_fold in preds.values())))
    if len(shared) < 2:
        raise ValueError(f"of {', '.join(preds)} only {len(shared)} folds are complete: two at least are needed")
    return preds, shared


def accuracies(by_fold: dict, shared: list[int], labels):
    """float [F,60]: of each training on each pair."""
    import numpy as np

    right = np.array([np.asarray(by_fold[fold]) == labels for fold in shared])
    return np.stack([right[:, labels == label].mean(1) for label in range(len(PAIRS))], 1)


def percents(interval) -> str:
    return f"{100 * interval.value:.1f} ({pages.between(interval)})"


def score_rows(preds: dict, shared: list[int], labels, held_out) -> list[list]:
    """A row a kind: unseen, seen, harmonic mean, and what is wrong in the unseen ones."""
    draws = metrics_of_folds.draw_folds(held_out)
    rows = []
    for kind, by_fold in preds.items():
        scores = metrics_of_folds.fold_scores(accuracies(by_fold, shared, labels), *draws)
        wrong = faults(by_fold, shared, labels, held_out)
        rows.append([kind, *map(percents, (scores.unseen, scores.seen, scores.harmonic)), *wrong])
    return rows


def faults(by_fold: dict, shared: list[int], labels, held_out) -> list[int]:
    """How many pictures of unseen pairs have another colour, another item, or both."""
    counts: Counter = Counter()
    for unseen, fold in zip(held_out, shared, strict=True):
        for label, pred in zip(labels, by_fold[fold], strict=True):
            if unseen[label]:
                counts[tuple(a != b for a, b in zip(PAIRS[label], PAIRS[pred], strict=True))] += 1
    return [counts[True, False], counts[False, True], counts[True, True]]


def difference_rows(preds: dict, shared: list[int], labels, held_out) -> list[list]:
    """A row a pair of kinds: the first less the second, in points."""
    draws = metrics_of_folds.draw_folds(held_out)
    of = {kind: accuracies(by_fold, shared, labels) for kind, by_fold in preds.items()}
    rows, kinds = [], list(preds)
    for i, first in enumerate(kinds):
        for second in kinds[i + 1 :]:
            scores = metrics_of_folds.fold_scores(of[first] - of[second], *draws)
            signed = [f"{100 * part.value:+.1f} ({pages.between(part, '+')})" for part in (scores.unseen, scores.seen)]
            rows.append([f"{first} less {second}", *signed])
    return rows


def main(argv=None) -> int:
    import numpy as np

    args = parse_args(argv)
    with cli.bad_input():
        preds, shared = complete(read(args.folder))
    labels = Combos("folds").targets
    held_out = np.array([[pair in folds()[fold] for pair in PAIRS] for fold in shared])
    unit = f"{len(shared)} of {N_FOLDS} trainings, each on 12 unseen and 48 seen pairs of 16 pictures"
    columns = ["kind", "unseen, % (95 %)", "seen, %", "harmonic mean, %", "wrong colour", "wrong item", "both"]
    tables = [pages.Table(f"Accuracy: {unit}", columns, score_rows(preds, shared, labels, held_out))]
    if len(preds) > 1:
        rows = difference_rows(preds, shared, labels, held_out)
        tables.append(pages.Table("Differences, points (95 %)", ["kinds", "unseen", "seen"], rows))
    for table in tables:
        print(pages.markdown(table, "##") if args.format == "markdown" else f"{table.title}\n{pages.plain(table)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
