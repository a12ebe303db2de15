#!/usr/bin/env python
"""Which test images would have passed LAION's filters? They chose Stable Diffusion's training images (the paper's Table 2).

from a CSV of scores with the columns index or path, width, height, aesthetic, unsafe, one row an image:
  python scripts/print_laion.py scores.csv --dataset pets
without width and height, sizes are those of the data set's images (by index) or of the files (by path, beside the CSV):
  python scripts/print_laion.py scores.csv --dataset pets --data_dir datasets --csv table2.csv

Filters: both sides of 512 pixels or more, an aesthetic score of 4.5 or more, a probability of being unsafe of 0.1 or less. Which
models give the two scores: docs/ablations.md.
"""

import csv
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, datasets, metrics
from diffusion.analysis import figures
from diffusion.analysis.pages import percent_and_interval
from diffusion.cli import parsing
from diffusion.datasets import DATASETS
from diffusion.paper import published
from diffusion.runs import loop
from diffusion.utils import files, outputs

RESOLUTION, AESTHETIC, UNSAFE = 512, 4.5, 0.1
OF_DATA = ("split", "data_dir", "download", "config_name", "image_column", "label_column")


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("scores", type=Path, metavar="SCORES.csv", help="one row an image: index or path, aesthetic, unsafe, and "
                        "width and height where they are known")  # fmt: skip
    cli.add_data_options(parser, list(DATASETS), required=False)
    parser.add_argument("--csv", type=outputs.Output(), metavar="FILE", help="also write the table")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- scores


@dataclass(frozen=True)
class Scores:
    """The scores of one image. name: its index, or its path; size: (width, height), None: to be measured."""

    name: int | str
    size: tuple[float, float] | None
    aesthetic: float
    unsafe: float

    def passes(self, size: tuple[float, float]) -> dict[str, bool]:
        """Filter -> whether the image, of this size, passes it."""
        each = {
            f"resolution >= {RESOLUTION}": min(size) >= RESOLUTION,
            f"aesthetic >= {AESTHETIC}": self.aesthetic >= AESTHETIC,
            f"unsafe <= {UNSAFE}": self.unsafe <= UNSAFE,
        }
        return each | {"all three": all(each.values())}


def read_scores(path: Path) -> list[Scores]:
    """Raises ValueError, naming the row (the header is row 1), for a file that does not hold what it has to."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, header = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable CSV ({files.one_line(error)})") from None
    name = next((column for column in ("index", "path") if column in header), "index")
    sized = "width" in header or "height" in header
    needed = (name, "aesthetic", "unsafe", *(("width", "height") if sized else ()))
    lacking = [column for column in needed if column not in header]
    if lacking or not rows:
        raise ValueError(f"{path}: {'column ' + ', '.join(lacking) + ' missing' if lacking else 'no rows, only a header'}")
    scores = [scores_of(f"{path}: row {number}", row, name, sized) for number, row in enumerate(rows, 2)]
    names = [one.name for one in scores]
    twice = next((n for n in names if names.count(n) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ValueError(f"{path}: {name} {twice} stands there twice")
    return scores


def scores_of(where: str, row: dict, name: str, sized: bool) -> Scores:
    """Raises ValueError for a field that is missing or no number in its range."""

    def number(column, low, high):
        try:
            value = float(row[column])
        except (TypeError, ValueError):
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"{where} has {column} {row[column]!r}; it must be a number from {low:g} to {high:g}")
        return value

    if not (row[name] or "").strip():
        raise ValueError(f"{where} has no {name}")
    if name == "index" and not (row[name].strip().isascii() and row[name].strip().isdigit()):
        raise ValueError(f"{where} has index {row[name]!r}; it must be an integer of at least 0")
    size = (number("width", 1, 1e6), number("height", 1, 1e6)) if sized else None
    key = int(row[name]) if name == "index" else row[name]
    return Scores(key, size, number("aesthetic", -100, 100), number("unsafe", 0, 1))


# ---------------------------------------------------------------- sizes


def sizes_of(args, scores: list[Scores]) -> list[tuple[float, float]]:
    """The size of every image: those of the CSV, else of its files, else of the data set. Raises ValueError or OSError."""
    if scores[0].size or isinstance(scores[0].name, str):
        cli.refuse_idle(vars(args), OF_DATA, f"where {args.scores} {'has width and height' if scores[0].size else 'names files'}")
        return [one.size or size_in(args.scores.parent / one.name) for one in scores]
    if not args.dataset:
        raise ValueError(f"{args.scores} has no width and height: name the images' data set with --dataset, or add the columns")
    dataset = datasets.open_images(cli.data_of(vars(args)))
    if dataset.notice:
        print(f"Note: {dataset.notice}")
    outside = next((one.name for one in scores if one.name >= len(dataset)), None)
    if outside is not None:
        raise ValueError(f"{args.scores}: index {outside} is outside of {args.dataset}, which has {len(dataset)} images")
    with loop.progress(len(scores)) as bar:
        return [measured(dataset, one.name, bar) for one in scores]


def measured(dataset, index: int, bar) -> tuple[int, int]:
    bar.update()
    return dataset.picture(index).size


def size_in(path: Path) -> tuple[int, int]:
    """The size in a picture's file. Raises OSError for one that is none."""
    from PIL import Image

    with Image.open(path) as image:
        return image.size


# ---------------------------------------------------------------- what comes out


def table(scores: list[Scores], sizes, dataset: str | None) -> list[dict]:
    """One row a filter: the share that passes, with its interval, and the published one, in percent."""
    passed = [one.passes(size) for one, size in zip(scores, sizes, strict=True)]
    rows = [{"filter": name, "share": metrics.proportion([one[name] for one in passed])} for name in passed[0]]
    rows[-1]["published"] = published.TABLE_2.get(dataset)
    return rows


def print_rows(rows: list[dict]) -> None:
    n = rows[0]["share"].n
    print(f"{'filter':20}{f'passes (95 %), n = {n:,}':28}published, all test images")
    for row in rows:
        shown = f"{row['published']:.1f} %" if row.get("published") is not None else ""
        print(f"{row['filter']:20}{percent_and_interval(row['share']):28}{shown}".rstrip())


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        if args.csv:
            files.try_file(args.csv)
        scores = read_scores(args.scores)
        rows = table(scores, sizes_of(args, scores), args.dataset)
        if args.csv:
            figures.write_csv(args.csv, rows)
    print_rows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
