"""What a classifier says of pictures without labels: candidates by probability, records of them, rows of a table, JSON.

A picture's noise is a function of the seed and of a hash of the file's bytes: neither its name nor its place among others counts.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from diffusion.classify import Result
from diffusion.datasets.pictures import Member, read_bytes
from diffusion.metrics.calibration import UNCALIBRATED, Fit
from diffusion.strategy import STRATEGIES, option_names
from diffusion.utils.files import fingerprint, one_line

NO_LABEL = -1  # in the record of a picture whose class is not known
STRATEGY = (
    "strategy",
    "edition",
    "fit",
    *dict.fromkeys(name for one in STRATEGIES.values() for name in option_names(one)),
    "t_interval",
)  # of an identity, what a fit belongs to beside `fits.SETTINGS`


def content_key(place: str | Member) -> str | None:
    """16 hex digits of the hash of a file's bytes; None for a file that cannot be read."""
    try:
        return fingerprint(read_bytes(place))
    except OSError:
        return None


def noise_index(key: str) -> int:
    """What takes the place of a data set's index in the noise of a picture, 0 .. 2^64 - 1."""
    return int(key, 16)


class Candidate(NamedTuple):
    """A label of a picture. probability: of the picture's, which sum to 1; row: of its best prompt; error: that row's mean, over
    so many evaluations."""

    label: str
    probability: float
    row: int
    error: float
    evaluations: int


@dataclass(frozen=True)
class Prediction:
    """What is predicted for one picture. candidates: the most probable first, which is the predicted label; evaluations of
    the network, and seconds of wall clock, that it took."""

    candidates: tuple[Candidate, ...]
    evaluations: int
    seconds: float | None

    right = None  # of the outcome of an image: nobody knows

    @property
    def label(self) -> str:
        return self.candidates[0].label


def predict(result: Result, names: Mapping[int, str], fit: Fit | None = None) -> Prediction:
    """names: label -> its name; fit: of the probabilities, None: the softmax of the errors as they are."""
    probabilities = result.probabilities(fit or UNCALIBRATED)
    candidates = (
        Candidate(names[label], probabilities[label], row, float(result.means[row]), len(result.errors[row]))
        for label, row in result.best_rows.items()
    )
    ranked = sorted(candidates, key=lambda one: -one.probability)  # stable: of equal ones the classifier's better is first
    return Prediction(tuple(ranked), result.evaluations, result.seconds)


def result_of(record: Mapping, class_of: Sequence[int]) -> Result:
    """The result that `runlog.record_of` made this record of. Raises ValueError for one whose errors speak for another label."""
    errors = {row: candidate["pred_errors"].numpy() for row, candidate in record["errors"].items()}
    t = max((candidate["t"].numpy() for candidate in record["errors"].values()), key=len)
    rows = Result(class_of, 0, errors, t).best_rows
    label, winner = next(iter(rows.items()))
    if label != record["pred"]:
        raise ValueError("its prediction is not that of its errors")
    return Result(class_of, winner, errors, t, record.get("fell"), seconds=record.get("seconds"))


# ---------------------------------------------------------------- how it is told


def as_json(prediction: Prediction) -> list[dict]:
    """As transformers' zero-shot-image-classification: [{"score", "label"}], the highest first."""
    return [{"score": candidate.probability, "label": candidate.label} for candidate in prediction.candidates]


def as_row(path: str | Member, prediction: Prediction, labels: Sequence[str], calibrated: bool) -> dict:
    """path, label, its probability, evaluations, and error_<label>, the mean error, of every label, None of one that
    was never tried."""
    errors = {candidate.label: candidate.error for candidate in prediction.candidates}
    cells = [str(path), prediction.label, prediction.candidates[0].probability, prediction.evaluations]
    return dict(zip(columns(labels, calibrated), cells + [errors.get(label) for label in labels], strict=True))


def columns(labels: Sequence[str], calibrated: bool) -> list[str]:
    """Names of the cells of `as_row`."""
    name = "probability" if calibrated else "probability_uncalibrated"
    return ["path", "label", name, "evaluations", *(f"error_{label}" for label in labels)]


def read_rows(path: Path, labels: Sequence[str]) -> tuple[list[str], list[dict]]:
    """The header and the rows of a table of `as_row`, as they were written. Raises ValueError for another file."""
    try:
        header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True)
        if header not in [columns(labels, calibrated) for calibrated in (True, False)]:
            raise ValueError("other columns")
        as_written = {"path": str, "label": str, "evaluations": int}
        convert = [as_written.get(name, lambda cell: float(cell) if cell else None) for name in header]
        cells = [[to(cell) for to, cell in zip(convert, row, strict=True)] for row in rows]
    except (ValueError, csv.Error) as error:
        message = f"{path} is no table of predictions of these labels ({one_line(error)}): name another file with -o"
        raise ValueError(message) from None
    return header, [dict(zip(header, row, strict=True)) for row in cells]


# ---------------------------------------------------------------- a fit


def probabilities_text(fit: Fit | None) -> str:
    """What the probabilities are, in a line."""
    if fit:
        return f"Probabilities: fitted on {fit.n:,} images"
    why = "the softmax of the mean errors as they are, nearly flat; docs/calibration.md makes a --fit"
    return f"Probabilities are uncalibrated: {why}"


def fit_notice(fit: Fit | None, prompts: str) -> str | None:
    """That a fit comes from other candidates than those with this fingerprint."""
    if fit is None or fit.about.get("prompts") == prompts:
        return None
    return "the fit was made with other prompts; how well it is calibrated for these is not known"


def check_fit(fit: Fit, identity: Mapping, path, flag: str | None = None) -> None:
    """Raises ValueError for a fit of other settings or another strategy. identity: of the run that it is to be used for."""
    fit.check_settings(identity, path, flag, more=STRATEGY)
