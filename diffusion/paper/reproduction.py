"""Numbers and pictures as rows: the command that makes each, its price, where it leaves what it made, how that is read."""

import csv
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffusion.analysis import dit_columns, results, tables
from diffusion.datasets import winoground
from diffusion.metrics import Estimate
from diffusion.runs import run_folder
from diffusion.utils import commands, paths

ALL_FILTERS = "all three"  # the row of print_laion.py that Table 2 is about


@dataclass(frozen=True)
class Reproduced:
    """What a run at hand says. evaluations: the mean per image, None where nothing counts them."""

    estimate: Estimate
    evaluations: float | None = None

    @property
    def n(self) -> int:
        return self.estimate.n


@dataclass(frozen=True)
class Row:
    """A number or a picture.

    method, column: where it stands in its table
    words: the command line from the script on; empty where no command of this suite makes it
    made: the run folder, or the file, that it leaves below LOG_DIR
    read: folder or file -> Reproduced; None for a picture
    price, n: network evaluations per image, and images; before: evaluations before the first image, at most
    published: the paper's value, in percent or evaluations; about: what else is to be said of it
    """

    method: str
    column: str
    words: tuple[str, ...]
    made: str
    read: Callable[[Path], Reproduced] | None
    price: int = 0
    n: int = 0
    before: int = 0
    published: float | None = None
    about: str = ""

    @property
    def place(self) -> Path:
        return paths.log_dir() / self.made

    @property
    def done(self) -> int:
        """How many records there are; as many as are wanted where it is no run."""
        if self.place.is_file() or (self.read is None and self.place.is_dir()):
            return self.wanted(None)
        return len(run_folder.list_records(self.place))

    def reproduced(self) -> Reproduced | None:
        """None where nothing is there yet. Raises ValueError or OSError for what cannot be read."""
        return self.read(self.place) if self.words and self.read and self.done else None

    def wanted(self, most: int | None) -> int:
        """Images, of which no more than `most` are asked for; 1 of what has none."""
        return min(self.n, most or self.n) or 1

    def left(self, most: int | None) -> int | None:
        """Evaluations that are still to be done, None where nothing is."""
        if not self.words or self.done >= self.wanted(most):
            return None
        return (0 if self.done else self.before) + self.price * (self.wanted(most) - self.done)

    def line(self, most: int | None, share: tuple[int, int]) -> tuple[str, ...]:
        """The words, with fewer images where fewer are wanted, and as worker share[0] of share[1], where the command can."""
        fewer = ("--imgs_to_eval", str(most)) if self.counts_images and self.wanted(most) < self.n else ()
        workers = ("--n_workers", str(share[1]), "--worker_idx", str(share[0])) if self.price and share[1] > 1 else ()
        return (*self.words, *fewer, *workers)

    @property
    def counts_images(self) -> bool:
        return self.price > 0 and self.words[0] != "run_winoground.py"


def command_line(words) -> str:
    """A command line to be copied."""
    return commands.typed(shlex.join(("python", *words)))


@dataclass(frozen=True)
class Target:
    """A table or figure of the paper, or one of ours. note: what a reader has to know of its rows; unit: of published values."""

    title: str
    rows: tuple[Row, ...]
    note: str = ""
    unit: str = "%"


# ---------------------------------------------------------------- reading what is there


def accuracy(name: str) -> Callable[[Path], Reproduced]:
    """By a name of results.accuracies, of a run folder of classifications."""

    def read(folder: Path) -> Reproduced:
        result = results.of_folder(folder)
        low, high = result["intervals"][name]
        return Reproduced(Estimate(result["metrics"][name], low, high, result["n"]), result["evaluations"])

    return read


def evaluations(folder: Path) -> Reproduced:
    """The mean per image in place of a proportion, with no interval."""
    result = results.of_folder(folder)
    mean = result["evaluations"]
    return Reproduced(Estimate(mean, mean, mean, result["n"]), mean)


def dit_column(name: str) -> Callable[[Path], Reproduced]:
    """By a column of Table 5, of a folder with records of all classes over a grid."""

    def read(folder: Path) -> Reproduced:
        config = tables.config_of(folder)
        columns = dit_columns.read(folder, config, config["identity"].get("dataset"))
        by_column = dit_columns.accuracies(columns.preds, columns.labels)
        if name not in by_column:
            raise ValueError(f"{folder} has no numbers for {name}: its records keep squared errors alone")
        return Reproduced(by_column[name], columns.evaluations / len(columns.preds))

    return read


def text_score(tag: str) -> Callable[[Path], Reproduced]:
    """Reads the text score of the caption pairs with a tag, or Overall; whose tags the set itself has to say."""

    def read(folder: Path) -> Reproduced:
        config = tables.config_of(folder)
        data = winoground.open_pairs(config["identity"].get("dataset", "winoground"), config.get("options", {}).get("data_dir"))
        right = winoground.correct(run_folder.load_pairs(folder, []), winoground.SCORE_MODES[0])
        scores = winoground.summarise(right, winoground.subsets(data.examples))
        if tag not in scores:
            raise ValueError(f"{folder} has no example with the tag {tag}")
        return Reproduced(scores[tag]["text"])

    return read


def laion_share(path: Path) -> Reproduced:
    """Reads the share in a table that print_laion.py wrote."""
    with open(path, newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["filter"] == ALL_FILTERS)
    value, low, high = (float(row[f"share{end}"]) for end in ("", "_low", "_high"))
    return Reproduced(Estimate(value, low, high, int(row["share_n"])))
