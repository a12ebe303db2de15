#!/usr/bin/env python
"""One table of many runs: of results files that --results wrote, of CLIP_benchmark's own, and of run folders. No model runs.

all results as CSV, and some run folders as Markdown or LaTeX (booktabs):
  python scripts/collect.py results
  python scripts/collect.py data/fashion_mnist/v*_l1_64 results/clip.json --format markdown -o table.md
every image of one run, with probabilities by a fit that scripts/calibrate.py made on other images:
  python scripts/collect.py data/fashion_mnist/v..._l1_64 --samples samples.parquet --calibration fit.json
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli
from diffusion.analysis import figures, pages, results, samples
from diffusion.cli import parsing
from diffusion.metrics import Interval
from diffusion.metrics.calibration import Fit
from diffusion.predict import predictions
from diffusion.runs import loop, run_folder
from diffusion.utils import files, outputs

ABOUT, MADE = ("dataset", "split", "model", "pretrained", "task", "score_mode"), ("identity", "command", "run")
METRICS = ("acc1", "acc5", "mean_per_class_recall", *results.PAIR_METRICS)  # first, in this order


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("places", nargs="+", type=Path, metavar="FILE_OR_FOLDER", help="results file; folder of them (*.json); "
                        "run folder without one, whose records are read")  # fmt: skip
    parser.add_argument("--format", default="csv", choices=list(FORMATS), help="csv has fractions, the others percent with "
                        "intervals (default: csv)")  # fmt: skip
    parser.add_argument("-o", "--out", type=outputs.Output(), metavar="FILE", help="write the table there (default: print it)")
    parser.add_argument("--samples", type=outputs.Output(".parquet"), metavar="FILE.parquet",
                        help="of one run folder, also write its images: "
                        "label, prediction, evaluations, errors (docs/reports.md)")  # fmt: skip
    parser.add_argument("--calibration", type=Path, metavar="FIT", help="a fit of scripts/calibrate.py, for probabilities in "
                        "--samples")  # fmt: skip
    return parser.parse_args(argv)


# ---------------------------------------------------------------- reading


def read(place: Path) -> list[dict]:
    """The results of one word. Raises ValueError or OSError for a place without any, and for a file that holds something else."""
    if not place.is_dir():
        return [results.read(place)]
    inside = [path for path in sorted(place.glob("*.json")) if path.name != outputs.CONFIG]
    return [results.read(path) for path in inside] or [of_run(place)]


def of_run(folder: Path) -> dict:
    """What --results would have written; tells on stderr of records that do not count."""
    unreadable = []
    result = results.of_folder(folder, unreadable=unreadable)
    if message := run_folder.unreadable_message(unreadable, "not counted"):
        print(f"Note: {folder}: {message}", file=sys.stderr)
    return result


# ---------------------------------------------------------------- the images of one run


def write_samples(args) -> str:
    """Says where they are. Raises ValueError for anything but one run folder, and for a fit of another run."""
    if len(args.places) > 1 or not args.places[0].is_dir():
        raise ValueError(f"--samples {args.samples} is about one run: give its folder, and nothing else")
    files.try_file(args.samples)
    rows, about = samples.rows_of(args.places[0], read_fit(args.places[0], args.calibration))
    figures.write_parquet(args.samples, rows, about)
    return f"Images: {len(rows):,}, in {args.samples}"


def read_fit(folder: Path, path: Path | None) -> Fit | None:
    """A note tells of one that was made on these images. Raises ValueError for one of another model, loss or strategy."""
    if path is None:
        return None
    fit, identity = Fit.read(path, "--calibration"), (run_folder.read_config(folder) or {"identity": {}})["identity"]
    predictions.check_fit(fit, identity, path, "--calibration")
    if fit.about == identity:
        print("Note: the fit was made on these very images, so their probabilities look better than those of new ones will",
              file=sys.stderr)  # fmt: skip
    return fit


# ---------------------------------------------------------------- the table


def metrics_of(entries: list[dict]) -> list[str]:
    """Names of all that have a value anywhere."""
    there = [name for one in entries for name, value in one["metrics"].items() if value is not None and not math.isnan(value)]
    return [name for name in dict.fromkeys((*METRICS, *there)) if name in there]


def rows_of(entries: list[dict]) -> list[dict]:
    """A row a result, with the same columns in each."""
    names = metrics_of(entries)
    return [
        {column: one.get(column) for column in ABOUT}
        | {name: interval(one, name) for name in names}
        | {column: one.get(column) for column in (*results.COUNTS, *MADE)}
        for one in entries
    ]


def interval(one: dict, name: str) -> Interval:
    value = one["metrics"].get(name)
    low, high = one.get("intervals", {}).get(name, (None, None))
    return Interval(None if value is None or math.isnan(value) else value, low, high)


def text_table(entries: list[dict]) -> pages.Table:
    """Percent with intervals, without hashes and command lines, and without columns that are empty throughout."""
    shown = [{column: text(cell) for column, cell in short(row).items()} for row in rows_of(entries)]
    columns = [column for column in shown[0] if any(row[column] for row in shown)]
    return pages.Table("", columns, [[row[column] for column in columns] for row in shown])


def short(row: dict) -> dict:
    """n says of how many where some are missing."""
    whole = row["n_expected"] in (None, row["n"])
    n = row["n"] if whole or row["n"] is None else f"{row['n']:,} of {row['n_expected']:,}"
    return {column: cell for column, cell in row.items() if column not in ("n_expected", "identity", "command")} | {"n": n}


def text(cell) -> str:
    if isinstance(cell, Interval):
        without = "" if cell.value is None else pages.percent(cell.value)
        return without if cell.low is None or cell.value is None else pages.percent_and_interval(cell)
    return "" if cell is None else " ".join(pages.cell_text(cell).split())


FORMATS = {
    "csv": lambda entries: files.csv_text(figures.flat_rows(rows_of(entries))),
    "markdown": lambda entries: "\n".join(pages.markdown_lines(text_table(entries))) + "\n",
    "latex": lambda entries: pages.latex(text_table(entries)),
}


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        if not args.samples:
            cli.refuse_idle(vars(args), ["calibration"], "without --samples, whose probabilities it gives")
        if args.out:
            files.try_file(args.out)
        table = FORMATS[args.format]([one for place in args.places for one in read(place)])
        more = [write_samples(args)] if args.samples else []
        if args.out:
            files.write_text(args.out, table)
    lines = [f"Table: {args.out}" if args.out else table.rstrip("\n"), *more]
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
