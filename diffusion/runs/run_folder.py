"""Run folders: their names, `config.json`, and one record per image that is either whole or absent."""

import importlib.metadata
import json
import math
import os
import platform
import re
import types
import typing
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from diffusion import __version__, settings
from diffusion.datasets.labels import number_of
from diffusion.metrics import PairScores, pair_correct
from diffusion.runs import schema
from diffusion.utils import files, outputs
from diffusion.utils.paths import CLONE, ROOT

CLASS_FOLDER = re.compile(r"(DiT\d+x\d+_cls)(\d+)(_.*)")  # of one class of a DiT
CLASSIFICATION, ONE_CLASS, PAIRS = "classification", "one class", "pairs"  # kinds of record
STORE = "store"  # of no records, but what runs work from: diffusion/runs/artifacts.py


def adaptive_folder(root: Path, dataset: str, extra: str | None, model, strategy, loss: str, ending="") -> Path:
    """The published name of a classification run: reference users' scripts look for it.

    dataset: as of datasets.name_of; model: settings.TextToImage; strategy: an object of diffusion.strategy; ending: of what else
    names it
    """
    name = f"v{model.version}_{strategy.folder()}"
    name += f"_{model.interpolation}" if model.interpolation != "bicubic" else ""
    name += f"_{loss}" if loss != "l2" else ""
    name += f"_{model.img_size}" if model.img_size != 512 else ""
    name += later_options(model) + ending
    return dataset_folder(root, dataset, extra) / name


def later_options(model) -> str:
    """What a folder's name says of settings.TextToImage beyond the published options."""
    clip = "_clip" if model.text_encoders != "all" else ""
    levels = f"_{model.levels}" if model.levels != "own" else ""
    added = "".join(f"_{one.name}" for one in (*model.options.loras, *model.options.embeddings))
    return (f"_{model.error_space}" if model.error_space else "") + levels + clip + added


def dit_folder(root: Path, dataset: str, split: str, extra: str | None, model: str, img_size: int, classes: str, method: str,
               ending="") -> Path:  # fmt: skip
    """The published name of a DiT run of one class, or a like one of a run over several.

    dataset: as of datasets.name_of; model: DiT, or the name of another; classes: `cls7`, or `10classes`; method: the strategy's
    part, with the loss that it goes by
    """
    folder = dataset_folder(root, dataset, extra) / f"{model}{img_size}x{img_size}_{classes}_{method}{ending}"
    return folder / split if dataset.startswith("imagenet") else folder


def dataset_folder(root: Path, dataset: str, extra: str | None) -> Path:
    """dataset: as of datasets.name_of"""
    return root / (f"{dataset}_{extra}" if extra else dataset)


def continued(make: Callable[[str], Path], dataset: str, kind: str, identity: Callable[[], dict]) -> Path:
    """make(dataset), the folder of a run over this set; make(kind), which the user's own sets shared before, where that holds
    this very run and the former is not there. identity: what the numbers depend on; of the noise there are editions."""
    folder, before = make(dataset), make(kind)
    if before == folder or folder.exists() or not before.is_dir():
        return folder
    try:
        saved = read_config(before)
    except ValueError:
        return folder
    now = json.loads(json.dumps(identity()))
    same = saved is not None and all(saved["identity"].get(k) == now.get(k) for k in {**saved["identity"], **now} if k != "noise")
    return before if same else folder


# ---------------------------------------------------------------- config.json


def config_path(folder: Path) -> Path:
    """Where the run in this folder has its config.json: in it, but for the folders of one class of a DiT.

    The published scripts take every file of a class folder for a record. So that of <LOG_DIR>/<dataset>/<class folder>[/<split>]
    is below <LOG_DIR>/.configs/<dataset>/.
    """
    path = Path(os.path.abspath(folder))
    level = next((n for n, name in enumerate(reversed(path.parts[-2:])) if CLASS_FOLDER.fullmatch(name)), None)
    if level is None or level + 1 >= len(path.parents):
        return Path(folder) / outputs.CONFIG
    root = path.parents[level + 1]
    return root / ".configs" / path.relative_to(root) / outputs.CONFIG


def _find_config(folder: Path) -> Path | None:
    """None for a run of the reference, and for a folder that is gone; before, class folders held their own."""
    places = (config_path(folder), Path(folder) / outputs.CONFIG)
    return next((path for path in places if os.path.lexists(path)), None) if Path(folder).is_dir() else None


def noise_of(folder: Path) -> str | None:
    """The identity of the noise that this folder's records were made with. Raises as `read_config`."""
    config = read_config(folder)
    return config["identity"].get("noise") if config else None


# what is known by a hash in an identity -> options that say where it is from
BEHIND = {
    "images": ("data_dir", "config_name", "image_column", "label_column", "classes", "streaming", "limit"),
    "weights": ("version", "model", "model_path", "vae_path", "pretrained", "weights", "config", "lora", "embedding"),
    "prompts": ("prompt_path", "template", "templates"),
    "noise": ("noise_path", "noise_rows", "seed"),
    "subset": ("subset_path",),
    "level_weights": ("level_weights",),
    "shortlist": ("shortlist",),
    "fit": ("race_fit",),
    "tree": ("tree",),
}


ELSEWHERE = "start a new run folder with --extra"


def check_config(folder: Path, identity: dict, options: Mapping = MappingProxyType({}),
                 elsewhere: str = ELSEWHERE) -> None:  # fmt: skip
    """Raises ValueError, naming what differs, when records in this folder were made with other settings than `identity`.

    identity: every option and hash that the numbers depend on, as JSON values; options: all, resolved, which tell in words what
    hashes do not; elsewhere: how to have another folder
    """
    config = read_config(folder)
    if config is None:
        if any(folder.glob("*.pt")):
            raise ValueError(f"{folder} holds records without a {outputs.CONFIG}, so another program made them: {elsewhere}")
        return
    saved, identity = config["identity"], json.loads(json.dumps(identity))  # which makes lists of tuples
    then, now = config.get("options", {}), json.loads(json.dumps(dict(options)))
    differing = [k for k in {**saved, **identity} if saved.get(k) != identity.get(k)]
    if differing:
        message = ", ".join(f"{k} ({_difference(k, saved.get(k), identity.get(k), then, now)})" for k in differing)
        raise ValueError(f"{folder} holds another run, which differs in {message}. Use its settings, or {elsewhere}")


def _difference(key: str, saved, identity, then: dict, now: dict) -> str:
    """How the values of a key differ, by the options behind them where these do: `--data_dir cats there, dogs now`."""
    behind = [name for name in BEHIND.get(key, ()) if name in then and name in now]
    changed = [f"--{name} {then[name]} there, {now[name]} now" for name in behind if then[name] != now[name]]
    place = next((f" of --{name} {now[name]}" for name in behind if now[name] is not None), "")
    content = f"other content{place}: " if key in BEHIND else ""
    return "; ".join(changed) or f"{content}{saved} there, {identity} now"


def describe(command: str, kind: str, identity: dict, options: dict, images_expected: int, **more) -> dict:
    """The content of config.json: what the numbers depend on, all options, how many images, and what software ran.

    kind: of its records, CLASSIFICATION, ONE_CLASS or PAIRS, or STORE. more: of a classification `candidates`, {"labels",
    "names"} of every candidate in the order of a record's rows, and `partial` where records lack those that were never tried; of
    a diffusion model `n_levels` and `error_space`;
    `level_weights` that decide; `batch_size_found` by auto; `task` where it is not zero-shot. What is None is left out.
    """
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "diffusers", "transformers", "numpy")}
    return {
        "command": command,
        "kind": kind,
        "identity": identity,
        "options": options,
        "images_expected": images_expected,
        **{name: value for name, value in more.items() if value is not None},
        "versions": {"diffusion-classifier-suite": __version__, "python": platform.python_version()} | versions,
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of this checkout, with a + when files differ from it; None outside git, and of what is installed."""
    import subprocess

    if not CLONE:  # an environment may lie in a repository of the user's own
        return None

    def git(*words):
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_config(folder: Path, config: dict) -> None:
    """Creates the folder and writes config.json whole. A run that continues keeps the first description of itself, but for
    `images_expected`, as more images may be asked for, and what the first one did not know."""
    saved = read_config(folder)
    if saved:
        check_config(folder, config["identity"], config.get("options", {}))  # once more: another run may have come first
        config = config | saved | {"images_expected": max(saved.get("images_expected", 0), config["images_expected"])}
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(config_path(folder), json.dumps(config, indent=1) + "\n")
    if config_path(folder) != folder / outputs.CONFIG:
        (folder / outputs.CONFIG).unlink(missing_ok=True)  # where it was before


def read_config(folder: Path) -> dict | None:
    """The folder's config.json, or None for a run of the reference.

    Raises ValueError, naming the file and the key, for one that is not JSON or not what a run writes, OSError for one that cannot
    be read.
    """
    path = _find_config(folder)
    if path is None:
        return None
    try:
        config = files.read_json(path, {"identity": dict})
    except ValueError as error:
        raise ValueError(f"{error}: {RESTORE}") from None
    wrong = schema.wrong_key(config, _option_types())
    if not wrong and config.get("kind", PAIRS) not in (CLASSIFICATION, ONE_CLASS, PAIRS, STORE):
        wrong = f"kind is {config['kind']!r}"
    if wrong:
        raise ValueError(f"{path} is no config.json of a run ({wrong}): {RESTORE}")
    return _as_now(config)


RESTORE = "restore it, or name a new run with --extra"


def _option_types() -> dict:
    """Name -> type or types, of the options that are read back."""
    groups = (settings.Data, settings.Selection, settings.Prompts, settings.TextToImage, settings.ClassConditional,
              settings.GridNoise, settings.Ablation, settings.Shortlist)  # fmt: skip
    return {name: _plain_types(hint) for group in groups for name, hint in typing.get_type_hints(group).items()}


def _plain_types(hint) -> type | tuple[type, ...]:
    """What isinstance takes for a hint: `list | None` of `list[str] | None`."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    plain = tuple(typing.get_origin(part) or part for part in (typing.get_args(hint) if is_union else (hint,)))
    return plain if is_union else plain[0]


def known_batch_size(folder: Path) -> int | None:
    """What --batch_size auto found at an earlier start of the run in this folder."""
    return (read_config(folder) or {}).get("batch_size_found")


def _as_now(config: dict) -> dict:
    """A config with what older ones do not say: the command, the kind of record, and which noise rows it took."""
    if "command" in config:
        return config
    identity, options = config.get("identity", {}), dict(config.get("options", {}))
    command, kind = "eval_prob_adaptive", CLASSIFICATION
    if "model" in identity:
        command, kind = "run_winoground", PAIRS
    elif "saved" in identity:
        command, kind = "eval_prob_dit", CLASSIFICATION if identity.get("cls") is None else ONE_CLASS
    if "randomize_noise" in options:  # rows then went by any batch size, the default one too
        options["noise_rows"] = options["batch_size"]
    return config | {"command": command, "kind": kind} | ({"options": options} if options else {})


def images_expected(folders: list[Path], ignore=()) -> int | None:
    """How many images a run in these folders is about; None when one has no config.json.

    Raises ValueError for folders of different runs; `ignore` names what may differ.
    """
    configs = check_same(folders, ignore)
    return max((config["images_expected"] for config in configs if "images_expected" in config), default=None)


def check_same(folders: list[Path], ignore=()) -> list[dict]:
    """The folders' config.json, none when one has none. Raises ValueError where settings differ that `ignore` does not name."""
    configs = [config for folder in folders if (config := read_config(folder)) is not None]
    if len(configs) < len(folders):
        return []
    first = configs[0]["identity"]
    for folder, config in zip(folders, configs, strict=True):
        differing = [name for name in first if name not in ignore and config["identity"].get(name) != first[name]]
        if differing:
            raise ValueError(f"{folders[0]} and {folder} differ in {', '.join(differing)}: they are different runs")
    return configs


# ---------------------------------------------------------------- records


def unread(places: Mapping[int, Iterable[Path]]) -> dict[int, None]:
    """Index -> None, of those whose every record is there, whatever it holds: for what is done where no record can be judged."""
    return {index: None for index, several in places.items() if all(map(os.path.lexists, several))}


def record_path(folder: Path, index: int, dataset_length: int) -> Path:
    """`<index>.pt`, padded to the digits of the dataset's last index."""
    return folder / f"{index:0{len(str(dataset_length - 1))}d}.pt"


def make_ready(folder: Path) -> None:
    """Before a model is loaded: raises OSError where this folder cannot be written; removes what killed processes left in it and
    in the folders in it, as of a cache."""
    begun = files.try_writing(folder)
    inner = [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)] if folder.is_dir() else []
    for place in {folder, config_path(folder).parent, *map(Path, inner)}:
        files.remove_temporaries(place, begun)


def save_record(path: Path, record: dict) -> None:
    """Writes beside, syncs, renames: whatever kills the process, the record is whole or not there.

    Raises OSError with path and cause, also for a run folder that is gone. A folder of the record's name is renamed, a link or a
    pipe goes.
    """
    import torch

    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.folder"))
    elif files.irregular(path):
        path.unlink(missing_ok=True)
    files.write(path, lambda file: torch.save(record, file), make_folder=False)


def load_record(path: Path, unreadable: list | None = None, rules: schema.Rules | None = None) -> dict | None:
    """A record of ours or of the reference (whose `pred` is a numpy integer), or None when it is unreadable.

    unreadable: where its name and the reason go; without it a warning tells; rules: of its run, None: of any
    """
    return _load(path, (rules or schema.Rules()).check, unreadable)


def load_errors(path: Path, shape: tuple[int, ...] | None = None, unreadable: list | None = None):
    """A class's errors of one image, float32 [T,n_trials,...], or None when the file is unreadable or of another shape."""
    return _load(path, lambda values: schema.check_tensor(values, shape), unreadable)


def pair_scores(record: dict) -> PairScores:
    """The four scores of an example's record, ours or the reference's; higher is a better match.

    A tensor with dimensions holds errors, whose mean counts negatively; a scalar is the logit of a contrastive model.
    Raises KeyError for another kind of record, FloatingPointError for a score that is not finite.
    """
    values = schema.check_pairs(record, PairScores._fields)
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
        """Whether the text score is right, the one of the paper's table."""
        return bool(pair_correct(self.scores).text)


def pair_outcome(record: dict) -> PairOutcome:
    return PairOutcome(pair_scores(record), sum(getattr(record[name], "numel", lambda: 1)() for name in PairScores._fields))


def load_pair(path: Path, unreadable: list | None = None) -> PairScores | None:
    """The scores in an example's record, or None when it is unreadable."""
    return _load(path, pair_scores, unreadable)


def load_pair_outcomes(paths: dict[int, Path], shape: tuple[int, ...], unreadable: list | None = None) -> dict[int, PairOutcome]:
    """Example id -> outcome of every readable record of tensors of this shape among these paths that exist."""

    def convert(record):
        for values in schema.check_pairs(record, PairScores._fields):
            schema.check_tensor(values, shape)
        return pair_outcome(record)

    loaded = ((example_id, _load(path, convert, unreadable)) for example_id, path in paths.items() if os.path.lexists(path))
    return {example_id: outcome for example_id, outcome in loaded if outcome is not None}


def load_pairs(folder: Path, unreadable: list | None = None) -> dict[int, PairScores]:
    """Example id -> scores of every readable record `<id>.pt` in the folder, ascending."""
    loaded = ((example_id, load_pair(path, unreadable)) for example_id, path in list_records(folder).items())
    return {example_id: scores for example_id, scores in loaded if scores is not None}


def load_pair_records(folder: Path, unreadable: list | None = None) -> dict[int, dict]:
    """Example id -> the four tensors or logits of every readable record `<id>.pt` in the folder, ascending."""

    def convert(record):
        return pair_scores(record) and record

    loaded = ((i, _load(path, convert, unreadable)) for i, path in list_records(folder).items())
    return {example_id: record for example_id, record in loaded if record is not None}


def _load(path: Path, convert, unreadable: list | None = None):
    import torch

    try:
        if not path.is_file():  # a pipe would be waited for
            raise OSError("not a file")
        with torch.serialization.safe_globals(_numpy_scalar_parts()):
            return convert(files.load_tensors(path))
    except Exception as error:  # torch.load raises whatever a broken zip or pickle makes of itself
        reason = f"lacks {error}" if isinstance(error, KeyError) else files.one_line(error)
        reason = reason if len(reason) < 80 else type(error).__name__  # torch's own are paragraphs
        if unreadable is None:
            warnings.warn(f"{path} is unreadable and will not count ({reason})", stacklevel=3)
        else:
            unreadable.append(f"{path.name} ({reason})")
        return None


def unreadable_message(unreadable: list[str], ending: str) -> str | None:
    """One line that counts records and names the first few; None without any. ending: what becomes of them."""
    if not unreadable:
        return None
    more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
    return f"{len(unreadable)} unreadable record{'s' * (len(unreadable) > 1)}, {ending}: {', '.join(unreadable[:5])}{more}"


def record_of(result, keys, label: int) -> dict:
    """The published record of an image: t and errors of every candidate, in order of evaluation.

    result: classify.Result; keys: what each row is called. Of a race also its evaluations, and in which round who was dropped.
    """
    import torch

    t = torch.from_numpy(result.t)
    errors = {keys[row]: {"t": t[: len(e)].clone(), "pred_errors": torch.from_numpy(e)} for row, e in result.errors.items()}
    record = {"errors": errors, "pred": result.label, "label": label} | _cost(result)
    if result.dropped is not None:
        record["fell"] = {keys[row]: number for row, number in sorted(result.dropped.items())}
    return record | {"seconds": result.seconds}


def _cost(result) -> dict:
    """The evaluations of an image, where a record's reader may not know them by its errors."""
    return {"evaluations": result.evaluations} if result.dropped is not None or result.empty else {}


def sums_of(result, classes: list[int], label: int, with_terms: bool) -> dict:
    """The record of an image on a DiT's grid: of every class the sums of its four numbers, and on request all of them."""
    import torch

    record = {"classes": torch.tensor(classes), "t": torch.from_numpy(result.t), "sums": result.terms.double().sum(1)}
    terms = ({"terms": result.terms} if with_terms else {}) | _cost(result)
    return record | terms | {"pred": result.label, "label": label, "seconds": result.seconds}


class Outcome(NamedTuple):
    """What accuracy and cost need of a record; a full one can hold megabytes."""

    label: int
    pred: int | None  # None: errors of one class, from which nothing follows yet
    evaluations: int

    @property
    def right(self) -> bool | None:
        return None if self.pred is None else self.pred == self.label


def outcome(record: dict) -> Outcome:
    """The outcome in a record with every candidate's errors, or in a DiT's with sums over a grid."""
    evaluations = record.get("evaluations")
    if not evaluations and "classes" in record:
        evaluations = len(record["classes"]) * len(record["t"])
    elif not evaluations:
        evaluations = sum(len(c["pred_errors"]) for c in record["errors"].values())
    return Outcome(record["label"], record["pred"], evaluations)


def load_outcomes(paths: dict[int, Path], check=None, unreadable: list | None = None) -> dict[int, Outcome]:
    """index -> outcome of every readable record among these paths that exist.

    check(index, record) raises ValueError for a record that is not this run's, which then is as good as unreadable.
    """

    def convert(index, record):
        if check:
            check(index, record)
        return outcome(record)

    return load_classifications(paths, convert, unreadable)


def load_classifications(paths: dict, convert, unreadable: list | None = None) -> dict:
    """key -> convert(key, record) of every readable record of a classification among these paths that exist.

    convert raises ValueError for a record that is as good as unreadable.
    """
    rules = {folder: rules_of(folder) for folder in {path.parent for path in paths.values()}}

    def load(key, path):
        return _load(path, lambda record: convert(key, rules[path.parent].check(record)), unreadable)

    loaded = ((key, load(key, path)) for key, path in paths.items() if os.path.lexists(path))
    return {key: converted for key, converted in loaded if converted is not None}


def rules_of(folder: Path) -> schema.Rules:
    """What the folder's config.json says of its records. Raises as `read_config`."""
    return schema.Rules(read_config(folder) or {}, folder)


def read_outcomes(folder: Path, unreadable: list) -> dict[int, Outcome]:
    """index -> outcome of every readable record of a folder. Raises ValueError without any."""
    outcomes = load_outcomes(list_records(folder), unreadable=unreadable)
    if not outcomes:
        raise ValueError(f"{folder} holds no readable record <index>.pt: give a run folder")
    return outcomes


def list_records(folder: Path) -> dict[int, Path]:
    """index -> path of every record in the folder, ascending."""
    paths = {number_of(path.stem): path for path in sorted(Path(folder).glob("*.pt"))}
    return {index: paths[index] for index in sorted(index for index in paths if index is not None)}


def _numpy_scalar_parts():
    """What a pickled numpy.int64 is made of, under the names of numpy 1 and 2."""
    import numpy as np

    scalar = (np._core if hasattr(np, "_core") else np.core).multiarray.scalar
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, type(np.dtype(np.int64))]
