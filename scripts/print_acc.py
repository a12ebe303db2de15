#!/usr/bin/env python
"""Accuracy of run folders, ours or the reference's, without a model. Several folders (of workers) count as one run.

python scripts/print_acc.py data/fashion_mnist/v...
"""

import csv
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion import cli


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="run folder; several are merged")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write index, label, pred, evaluations of every image")
    return parser.parse_args(argv)


def merge(folders) -> dict:
    """index -> record over all folders. Raises ValueError for an empty folder or an image with two different predictions."""
    from diffusion import runlog

    merged = {}
    for folder in folders:
        records = runlog.load_records(folder)
        if not records:
            raise ValueError(f"{folder} holds no readable record <index>.pt: give a run folder")
        for index, record in records.items():
            if merged.get(index, record)["pred"] != record["pred"]:
                raise ValueError(f"image {index} has two predictions among these folders: they are different runs")
            merged[index] = record
    return dict(sorted(merged.items()))


def expected(folders) -> int | None:
    """How many images the runs are about, as far as every folder's config.json says so."""
    from diffusion import runlog

    configs = [runlog.read_config(folder) for folder in folders]
    return None if None in configs else max(config["images_expected"] for config in configs)


def summarise(records: dict, n_expected: int | None) -> dict:
    from diffusion import metrics, runlog

    preds, labels = ([record[key] for record in records.values()] for key in ("pred", "label"))
    return {
        "top1": metrics.top1(preds, labels),
        "mean_per_class": metrics.mean_per_class(preds, labels),
        "n": len(records),
        "n_expected": n_expected,
        "evaluations_per_image": sum(map(runlog.count_evaluations, records.values())) / len(records),
    }


def write_csv(path: Path, records: dict):
    from diffusion import runlog

    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "label", "pred", "evaluations"])
        writer.writerows([i, r["label"], r["pred"], runlog.count_evaluations(r)] for i, r in records.items())


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        records = merge(args.folders)
        result = summarise(records, expected(args.folders))
    print(f"Top 1 acc: {result['top1']}")
    print(f"Mean per class acc: {result['mean_per_class']}")
    print(f"Images: {result['n']} of {result['n_expected'] or 'an unknown number'}")
    print(f"Cost: {result['evaluations_per_image']:,.0f} evaluations an image")
    if args.json:
        args.json.write_text(json.dumps(result, default=lambda estimate: estimate.as_dict(), indent=1) + "\n")
    if args.csv:
        write_csv(args.csv, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
