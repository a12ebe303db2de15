"""Run folders: their names, `config.json`, and one record an image that is either whole or absent."""

import importlib.metadata
import json
import math
import platform
import warnings
from pathlib import Path
from typing import NamedTuple

from diffusion import files
from diffusion.metrics import PairScores, pair_correct
from diffusion.paths import ROOT

CONFIG = "config.json"


def adaptive_folder(root: Path, args) -> Path:
    """The published name of a classification run: reference users' scripts look for it.

    args: anything with dataset, extra, version, n_trials, strategy and its options, interpolation, loss, img_size
    and prune_img_size.
    """
    name = f"v{args.version}_{_strategy(args)}"
    name += f"_{args.interpolation}" if args.interpolation != "bicubic" else ""
    name += f"_{args.loss}" if args.loss != "l2" else ""
    name += f"_{args.img_size}" if args.img_size != 512 else ""
    name += f"_{args.prune_img_size}prune" if args.prune_img_size else ""
    return root / _dataset_folder(args) / name


def pairs_folder(root: Path, args) -> Path:
    """The published name of a Winoground run.

    args: anything with dataset, extra, model, version, t_interval, n_trials and randomize_noise.
    """
    grid = f"_t{args.t_interval}_{args.n_trials}trials" if args.model == "sd" else ""
    name = f"sd_v{args.version}{grid}" if args.model == "sd" else f"{args.model}_{args.version.replace('/', '_')}"
    return root / _dataset_folder(args) / (name + ("_randnoise" if args.randomize_noise else ""))


def dit_folder(root: Path, args, classes: list[int], with_class: int | None = None) -> Path:
    """The published name of a DiT run of one class, or a like one of a run over all `classes`.

    args: anything with dataset, extra, img_size, t_interval, n_trials, randomize_noise, spatial, save_eps, save_eps_and_var,
    split, strategy and its options, and loss.
    """
    name = f"DiT{args.img_size}x{args.img_size}_"
    name += f"{len(classes)}classes" if with_class is None else f"cls{with_class}"
    if args.to_keep or args.strategy == "race":
        name += f"_{_strategy(args)}" + (f"_{args.loss}" if args.loss != "l2" else "")
    else:
        name += f"_t{args.t_interval}_{args.n_trials}trials"
    name += "_randnoise" if args.randomize_noise else ""
    kept = {"_spatial": args.spatial, "_eps": args.save_eps, "_epsvar": args.save_eps_and_var}
    name += next((suffix for suffix, chosen in kept.items() if chosen), "")
    folder = root / _dataset_folder(args) / name
    return folder / args.split if "imagenet" in args.dataset else folder


def _strategy(args) -> str:
    """`1trials_5_1keep_25_250samples` as published, or `1trials_race_0.05alpha_10min_5round_250max`."""
    if args.strategy == "race":
        return (
            f"{args.n_trials}trials_race_{args.alpha:g}alpha_{args.min_samples}min_{args.round_size}round_{args.max_samples}max"
        )
    keep, samples = ("_".join(map(str, numbers)) for numbers in (args.to_keep, args.n_samples))
    return f"{args.n_trials}trials_{keep}keep_{samples}samples"


def _dataset_folder(args) -> str:
    return f"{args.dataset}_{args.extra}" if args.extra else args.dataset


# ---------------------------------------------------------------- config.json


def check_config(folder: Path, identity: dict) -> None:
    """Raises ValueError, naming what differs, when records in this folder were made with other settings than `identity`.

    identity: every option and hash that the numbers depend on, as JSON values.
    """
    path = folder / CONFIG
    if not path.exists():
        if any(folder.glob("*.pt")):
            raise ValueError(f"{folder} holds records without a {CONFIG}, so others made them: name a new run with --extra")
        return
    saved = read_config(folder)["identity"]
    differing = [k for k in {**saved, **identity} if saved.get(k) != identity.get(k)]
    if differing:
        told = ", ".join(f"{k} ({saved.get(k)} there, {identity.get(k)} now)" for k in differing)
        raise ValueError(f"{folder} was made with other settings: {told}. Use those, or name a new run with --extra")


def describe(identity: dict, args, images_expected: int, labels=(), names=()) -> dict:
    """The content of config.json: what the numbers depend on, all options, how many images, and what software ran.

    labels, names: label and class name of every candidate, in the order of a record's rows; without them none are written.
    """
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "diffusers", "transformers", "numpy")}
    return {
        "identity": identity,
        "options": vars(args),
        "images_expected": images_expected,
        **({"candidates": {"labels": list(labels), "names": list(names)}} if labels else {}),
        "versions": {"python": platform.python_version()} | versions,
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of this checkout, with a + when files differ from it; None outside git."""
    import subprocess

    def git(*words):
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_config(folder: Path, config: dict) -> None:
    """Creates the folder and writes config.json whole. A run that continues keeps the first description of itself and
    changes only `images_expected`, as more images may be asked for."""
    if (folder / CONFIG).exists():
        check_config(folder, config["identity"])  # once more: another run may have come first
        saved = read_config(folder)
        config = saved | {"images_expected": max(saved["images_expected"], config["images_expected"])}
    files.write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")


def read_config(folder: Path) -> dict | None:
    """The folder's config.json, or None for a run of the reference. Raises ValueError when it is not JSON."""
    path = Path(folder) / CONFIG
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not readable JSON ({error}): restore it, or name a new run with --extra") from None


def images_expected(folders: list[Path], ignore=()) -> int | None:
    """How many images a run in these folders is about; None when one has no config.json.

    Raises ValueError for folders of different runs; `ignore` names what may differ.
    """
    configs = [read_config(folder) for folder in folders]
    if None in configs:
        return None
    first = configs[0]["identity"]
    for folder, config in zip(folders, configs, strict=True):
        differing = [name for name in first if name not in ignore and config["identity"].get(name) != first[name]]
        if differing:
            raise ValueError(f"{folders[0]} and {folder} differ in {', '.join(differing)}: they are different runs")
    return max(config["images_expected"] for config in configs)


# ---------------------------------------------------------------- records


def record_path(folder: Path, index: int, dataset_length: int) -> Path:
    """`<index>.pt`, padded to the digits of the dataset's last index."""
    return folder / f"{index:0{len(str(dataset_length - 1))}d}.pt"


def save_record(path: Path, record: dict) -> None:
    """Writes beside, syncs, renames: whatever kills the process, the record is whole or not there."""
    import torch

    files.write(path, lambda file: torch.save(record, file))


def load_record(path: Path) -> dict | None:
    """A record of ours or of the reference (whose `pred` is a numpy integer), or None with a warning when it is unreadable."""
    return _load(path, lambda record: record | {"pred": int(record["pred"]), "label": int(record["label"])})


def load_errors(path: Path):
    """A class's errors of one image, float32 [T,n_trials,...], or None with a warning when the file is unreadable."""
    return _load(path, lambda errors: errors.float())


def pair_scores(record: dict) -> PairScores:
    """The four scores of an example's record, ours or the reference's; higher is a better match.

    A tensor with dimensions holds errors, whose mean counts negatively; a scalar is the logit of a contrastive model.
    Raises KeyError for another kind of record, FloatingPointError for a score that is not finite.
    """
    values = [record[name] for name in PairScores._fields]
    scores = [-float(v.double().mean()) if getattr(v, "ndim", 0) else float(v) for v in values]
    if not all(map(math.isfinite, scores)):
        raise FloatingPointError("a score is not finite")
    return PairScores(*scores)


class PairOutcome(NamedTuple):
    """What the scores and the cost of a run need of an example's record."""

    scores: PairScores
    evaluations: int

    @property
    def right(self) -> bool:
        """Of the text score, the one of the paper's table."""
        return bool(pair_correct(self.scores).text)


def pair_outcome(record: dict) -> PairOutcome:
    return PairOutcome(pair_scores(record), sum(getattr(record[name], "numel", lambda: 1)() for name in PairScores._fields))


def load_pair(path: Path) -> PairScores | None:
    """The scores in an example's record, or None with a warning when it is unreadable."""
    return _load(path, pair_scores)


def load_pair_outcomes(paths: dict[int, Path]) -> dict[int, PairOutcome]:
    """Example id -> outcome of every readable record among these paths that exist."""
    loaded = ((example_id, _load(path, pair_outcome)) for example_id, path in paths.items() if path.exists())
    return {example_id: outcome for example_id, outcome in loaded if outcome is not None}


def load_pairs(folder: Path) -> dict[int, PairScores]:
    """Example id -> scores of every readable record `<id>.pt` in the folder, ascending."""
    loaded = ((example_id, load_pair(path)) for example_id, path in list_records(folder).items())
    return {example_id: scores for example_id, scores in loaded if scores is not None}


def _load(path: Path, convert):
    import torch

    try:
        with torch.serialization.safe_globals(_numpy_scalar_parts()):
            return convert(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load raises whatever a broken zip or pickle makes of itself
        warnings.warn(f"{path} is unreadable and will not count ({type(error).__name__})", stacklevel=3)
        return None


def staged_record(keys, errors: dict, t, pred: int, label: int, fell=None, pruned=None, evaluations=None) -> dict:
    """The published record of an image that went through the stages: t and errors of every candidate, in order of evaluation.

    keys: what each row of `errors` is called; t: int64 [S] of the whole plan, of which a candidate has seen the beginning.
    fell: row -> round of a race. pruned: rows whose errors are those of a smaller image; evaluations: how many there were, more
    than the errors that are kept. Each of the three is in the record when it is given, and evaluations of a race too.
    """
    import torch

    seen = {row: {"t": t[: len(e)].clone(), "pred_errors": torch.from_numpy(e)} for row, e in errors.items()}
    record = {"errors": {keys[row]: candidate for row, candidate in seen.items()}, "pred": pred, "label": label}
    if fell is not None:
        fallen = {keys[row]: number for row, number in sorted(fell.items())}
        return record | {"evaluations": sum(map(len, errors.values())), "fell": fallen}
    if pruned is not None:
        return record | {"evaluations": evaluations, "pruned": [keys[row] for row in pruned]}
    return record


class Outcome(NamedTuple):
    """What accuracy and cost need of a record; a full one can hold megabytes."""

    label: int
    pred: int | None  # None: errors of one class, from which nothing follows yet
    evaluations: int

    @property
    def right(self) -> bool | None:
        return None if self.pred is None else self.pred == self.label


def outcome(record: dict) -> Outcome:
    """Of a record with every candidate's errors, or of a DiT's with sums over a grid."""
    if "sums" in record:
        evaluations = len(record["classes"]) * len(record["t"])
    else:
        evaluations = record.get("evaluations") or sum(len(c["pred_errors"]) for c in record["errors"].values())
    return Outcome(record["label"], record["pred"], evaluations)


def load_outcomes(paths: dict[int, Path]) -> dict[int, Outcome]:
    """index -> outcome of every readable record among these paths that exist."""
    loaded = ((index, load_record(path)) for index, path in paths.items() if path.exists())
    return {index: outcome(record) for index, record in loaded if record is not None}


def list_records(folder: Path) -> dict[int, Path]:
    """index -> path of every record in the folder, ascending."""
    return {int(p.stem): p for p in sorted((p for p in Path(folder).glob("*.pt") if p.stem.isdigit()), key=lambda p: int(p.stem))}


def _numpy_scalar_parts():
    """What a pickled numpy.int64 is made of, under the names of numpy 1 and 2."""
    import numpy as np

    scalar = (np._core if hasattr(np, "_core") else np.core).multiarray.scalar
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, type(np.dtype(np.int64))]
