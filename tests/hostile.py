"""The table of bad inputs, one Row each, made from the parsers of all commands: what an option names says how it can be wrong.

A new option of a known type is covered by that. One whose value is a path or a text has to be named in NAMED, or `kind_of` fails.
What argparse refuses needs no process of its own, and is tried on every option of every command. The rest runs a whole command:
each fault of an option on the first command that has the option, and of that option on every other command one (`WIRED_BY`).
"""

import argparse
import importlib
import sys
from dataclasses import dataclass, field
from functools import lru_cache

from conftest import ROOT
from hostile_files import ANY_FILE, DATA_SETS, KINDS, LAID_OUT, RUNS, STRANGERS, bad_name

from diffusion.analysis import figures
from diffusion.cli import parsing
from diffusion.strategy import STRATEGIES, option_names

ENTRIES = ("eval_prob_adaptive", "eval_prob_dit", "run_winoground")
SCRIPTS = tuple(sorted(path.stem for path in (ROOT / "scripts").glob("*.py")))
COMMANDS = ENTRIES + SCRIPTS


@dataclass(frozen=True)
class Row:
    """A command line that is wrong in one place. Words that begin with @ lie in the world.

    told: the error has to hold one of these; wanted: why the line is right after all, and has to end well;
    parsed: argparse takes the words; light: it ends before anything needs torch
    """

    command: str
    name: str
    argv: tuple[str, ...]
    told: tuple[str, ...]
    wanted: str | None = None
    parsed: bool = True
    light: bool = False
    environment: dict = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.command} {self.name}"


# ---------------------------------------------------------------- command lines that work

TINY = {"--dataset": "fashion_mnist", "--imgs_to_eval": "1"}
SD = {"--version": "tiny", **TINY}
GRID = {"positional": "@grid run"}

GOOD = {  # option -> its word, a tuple of several, None for a flag; the shortest that has something to do
    "eval_prob_adaptive": SD | {"--to_keep": "1", "--n_samples": "2", "--loss": "l1", "--dry_run": None},
    "eval_prob_dit": {"--model": "tiny", **TINY, "--t_interval": "500", "--dry_run": None},
    "run_winoground": {
        "--version": "tiny",
        "--dataset": "tiny_pairs",
        "--data_dir": "@pairs",
        "--t_interval": "500",
        "--dry_run": None,
    },
    "benchmark": {"--prompts": "2", "--timesteps": "2", "--repeats": "1"},
    "calibrate": GRID,
    "check_device": {"--device": "cpu", "--images": "1", "--skip": ("compiled", "runs", "benchmark")},
    "classify": {"positional": "@images/a/0.png", "--labels": ("bag", "boot"), "--version": "tiny", "--dry_run": None},
    "collect": {"positional": "@results.json"},
    "compare_runs": {"positional": ("@grid run", "@grid run")},
    "demo": {"--device": "cpu", "--port": "47860", "--dry_run": None},
    "eval_clip": SD | {"--dry_run": None},
    "eval_supervised": {"--network": "timm:test_vit", "--weights": "@supervised.safetensors", **TINY, "--dry_run": None},
    "fit_race": GRID,
    "fit_weights": GRID,
    "plot_candidates": GRID,
    "plot_image": GRID | {"--image": "{image}", "-o": "out.png"},
    "plot_inversion": {
        "--version": "tiny",
        "--dataset": "fashion_mnist",
        "--image": "0",
        "--caption": "a boot",
        "--under": "a bag",
        "--dry_run": None,
        "-o": "out.png",
    },
    "plot_method": {"-o": "out.png"},
    "plot_robustness": {"--benchmark": "imagenetv2", "--in_dist": "77.1/50000", "--out_dist": "65.2/10000", "-o": "out.png"},
    "plot_timesteps": GRID | {"-o": "out"},
    "plot_winoground": {"positional": "@pairs run", "--example": "0", "-o": "out.png"},
    "print_acc": GRID,
    "print_laion": {"positional": "@scores.csv", "--dataset": "fashion_mnist"},
    "print_combos": {"positional": "@combos run"},
    "print_folds": {"positional": "@folds"},
    "print_dit_acc": {"positional": "@dit run"},
    "print_spaces": GRID,
    "print_winoground": {"positional": "@pairs run"},
    "replay": GRID,
    "reproduce": {"positional": "table1-tiny", "--imgs_to_eval": "2"},
    "report": GRID | {"-o": "out"},
    "simulate_race": {"--candidates": "2", "--races": "1"},
    "sd_features": SD | {"--train_split": "validation", "--dry_run": None},
    "save_noise": {"--img_size": "64", "--n": "2", "-o": "out.pt"},
    "synthetic_data": SD | {"--per_class": "2", "--steps": "1", "--dry_run": None},
    "train_lora": {
        "--version": "tiny",
        "--dataset": "fashion_mnist",
        "--class_labels": ("4", "6"),
        "--per_class": "1",
        "--steps": "1",
        "--batch_size": "1",
        "-o": "out.safetensors",
    },
    "train_folds": {"--data_dir": "@idx/FashionMNIST/raw", "--kinds": "heads", "--folds": "0", "-o": "out"},
    "train_tiny": {
        "positional": "vae",
        "--data_dir": "@idx/FashionMNIST/raw",
        "--steps": "1",
        "--batch_size": "2",
        "-o": "out",
        "--checkpoint_dir": "kept",
    },
    "write_prompts": {"positional": "pets", "-o": "out"},
    "write_subset": {"--dataset": "fashion_mnist", "--n": "5", "-o": "out.npy"},
    "write_tiny_pairs": {"-o": "out"},
    "write_tree": {"--wordnet": "@wordnet", "-o": "out"},
}

# commands whose work takes too long to be done for a row: theirs are refused before it or left out, and no good line is run
LONG = ("benchmark", "check_device", "train_folds", "train_tiny", "write_tiny_pairs")

# what an option needs beside it to be of use: (command or None for all, option) -> other words; None takes an option away
TABLE = {"--dataset": "hf", "--data_dir": "@table"}
HUB = TABLE | {"--template": "a photo of a {}."}
FOLDER = {"--dataset": "folder", "--data_dir": "@images"}
BESIDE = (
    {
        (None, "--data_dir"): {"--dataset": "mnist"},
        ("run_winoground", "--data_dir"): {},
        ("print_winoground", "--data_dir"): {},
        ("train_tiny", "--data_dir"): {},
        ("train_folds", "--data_dir"): {},
        ("train_lora", "--config_name"): TABLE,
        ("train_lora", "--image_column"): TABLE,
        ("train_lora", "--label_column"): TABLE,
        ("report", "--data_dir"): {},
        ("plot_image", "--data_dir"): {"--map": None},
        ("plot_image", "--device"): {"--map": None},
        ("print_dit_acc", "--data_dir"): {},
        ("print_dit_acc", "--config_name"): {},
        ("print_dit_acc", "--image_column"): {},
        ("print_dit_acc", "--label_column"): {},
        ("write_prompts", "--template"): {"--classes": "@classes.txt"},
        ("write_prompts", "--classes"): {"positional": "mine"},
        ("write_subset", "--per_class"): {"--n": False},
        ("eval_supervised", "--weights"): {"--dry_run": False},  # numbers are looked at when they are loaded
        ("eval_clip", "--pretrained"): {"--version": "ViT-H-14"},
        ("run_winoground", "--pretrained"): {"--model": "openclip", "--version": "ViT-H-14", "--t_interval": False},
        (None, "--template"): {"--dry_run": False},  # tokens are made when the tokenizer is there
        (None, "--prompt_path"): {"--dry_run": False},
        (None, "--templates"): {"--dry_run": False},
        (None, "--extra"): {"--dry_run": False},  # the folder is made before the weights are read
        (None, "--config_name"): HUB,
        (None, "--image_column"): HUB,
        (None, "--label_column"): HUB,
        (None, "--limit"): HUB | {"--streaming": None},
        (None, "--classes"): FOLDER,
        ("print_dit_acc", "--limit"): {},
        ("print_dit_acc", "--classes"): {},
        ("train_lora", "--class_labels"): {},
        ("train_lora", "--limit"): TABLE | {"--streaming": None, "--class_labels": ("0", "1")},
        ("print_acc", "--class_labels"): {},
        ("classify", "--classes"): {"--labels": False},
        ("train_tiny", "--keep_every"): {"positional": "sd"},
        ("train_tiny", "--channels"): {"positional": "sd"},
        ("collect", "--samples"): {"positional": "@grid run"},
        ("collect", "--calibration"): {"positional": "@grid run", "--samples": "x.parquet"},
        ("classify", "--prompts"): {"--labels": False, "--dry_run": False},
        ("classify", "--out"): {"--dry_run": False},  # places of files are tried before the weights are read
        ("classify", "--map"): {"--dry_run": False},
        ("classify", "--race_fit"): {"--strategy": "race_calibrated"},
        ("demo", "--race_fit"): {"--strategy": "race_calibrated"},
        ("classify", "--tree"): {"--strategy": "tree"},
        ("demo", "--tree"): {"--strategy": "tree"},
        ("demo", "--template"): {},
        ("demo", "--model_path"): {},
        (None, "--model_path"): {"--dry_run": False},  # weights are read when they are loaded
        (None, "--vae_path"): {"--dry_run": False},
        (None, "--config"): {"--model_path": "@single.safetensors"},
        ("eval_prob_dit", "--level_weights"): {"--save_errors": None},
        ("sd_features", "--train_dir"): {"--train_split": "train"},
        ("sd_features", "--layer"): {"--dry_run": False},  # the U-Net knows its parts
        ("sd_features", "--pool"): {"--head": "linear"},
        (None, "--device"): {},
        ("eval_prob_adaptive", "--shortlist_size"): {"--shortlist": "openclip:tiny"},
        ("eval_prob_dit", "--images_in_flight"): {"--strategy": "race", "--t_interval": False},
    }
    | {
        (entry, f"--{name}"): {"--strategy": strategy, "--to_keep": False, "--n_samples": False, "--t_interval": False}
        for entry in ENTRIES[:2]
        for strategy in ("surrogate", "tree", "race", "race_calibrated")
        for name in sorted(set(option_names(STRATEGIES[strategy])) - set(option_names(STRATEGIES["stages"])))
    }
)


def beside(command: str, option: str) -> dict:
    exact = BESIDE.get((command, option))
    return (BESIDE.get((None, option), {}) if option in all_options(command) else {}) if exact is None else exact


def line(command: str, changes: dict) -> tuple[str, ...]:
    """The words of the good command line with these options changed, where the command has them; False takes one away."""
    if command not in GOOD:
        raise LookupError(f"{command}: add a short command line that works to GOOD in tests/hostile.py")
    known = {"positional"} | all_options(command)
    options = GOOD[command] | {option: value for option, value in changes.items() if option in known}
    words = [*words_of(options.pop("positional", None))]
    for option, value in options.items():
        words += () if value is False else (option, *words_of(value))
    return tuple(words)


def words_of(value) -> tuple[str, ...]:
    """None: of a flag, or of no positionals."""
    return () if value is None else value if isinstance(value, tuple) else (value,)


# ---------------------------------------------------------------- the parsers

_parsers: dict[str, argparse.ArgumentParser] = {}


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser that a command makes in its parse_args, before it reads a word."""
    if command not in _parsers:
        _parsers[command] = _caught(module_of(command).parse_args)
    return _parsers[command]


def module_of(command: str):
    sys.path.append(str(ROOT / "scripts"))
    try:
        return importlib.import_module(command)
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def _caught(parse_args) -> argparse.ArgumentParser:
    class Caught(Exception):
        pass

    def stop(parser, *_):
        raise Caught(parser)

    whole = parsing.Parser.parse_args
    parsing.Parser.parse_args = stop
    try:
        parse_args([])
    except Caught as caught:
        return caught.args[0]
    finally:
        parsing.Parser.parse_args = whole
    raise AssertionError(f"{parse_args.__module__}.parse_args makes no parsing.Parser")


def actions(command: str) -> list[argparse.Action]:
    """All options and positionals but --help and what is hidden."""
    found = parser_of(command)._actions
    return [a for a in found if not isinstance(a, argparse._HelpAction) and a.help != argparse.SUPPRESS]


def all_options(command: str) -> set[str]:
    return {option for action in actions(command) for option in action.option_strings}


# ---------------------------------------------------------------- what an option names

# by the name of the option, or of (command, option): a kind of KINDS, of TEXTS, or one of OUTPUTS
NAMED = {
    "subset_path": "subset",
    "prompt_path": "prompts",
    "prompts": "prompts",
    "pictures": "picture",
    "places": "results file",
    "scores": "table of scores",
    "caption": "caption",
    "under": "caption",
    "options": "options file",
    "labels": "labels",
    "noise_path": "noise",
    "noise": "kind of noise",
    "model_path": "pipeline",
    ("eval_prob_dit", "model_path"): "dit",
    ("eval_clip", "model_path"): "clip",
    "templates": "template list",
    ("eval_supervised", "weights"): "supervised",
    "lora": "lora",
    "embedding": "embedding",
    "config": "configs",
    "vae_path": "vae",
    "classes": "class list",
    "data_dir": "root",
    "train_dir": "root",
    "train_split": "split",
    "layer": "layer",
    "cache_dir": "folder to write",
    ("run_winoground", "data_dir"): "pairs folder",
    ("print_winoground", "data_dir"): "pairs folder",
    ("train_tiny", "data_dir"): "idx folder",
    ("train_folds", "data_dir"): "idx folder",
    ("print_folds", "folder"): "folds",
    "folder": "grid run",
    "folders": "grid run",
    "careful": "grid run",
    "fast": "grid run",
    "shortlist": "grid run",
    "fitted_on": "grid run",
    ("print_combos", "folders"): "combos run",
    ("print_dit_acc", "folders"): "dit run",
    ("print_winoground", "folders"): "pairs run",
    ("plot_winoground", "folder"): "pairs run",
    "in_dist": "accuracy",
    "out_dist": "accuracy",
    "split": "split",
    "config_name": "configuration",
    "image_column": "column",
    "label_column": "column",
    "version": "version",
    "model": "version",
    "pretrained": "version",
    "device": "device",
    "template": "template",
    "extra": "extra",
    "stages": "setting",
    "race": "setting",
    "surrogate": "setting",
    ("replay", "tree"): "setting",
    "race_calibrated": "race fit",
    "race_fit": "race fit",
    "tree": "race fit",
    ("write_tree", "out"): "folder to write",
    "wordnet": "root",
    ("write_prompts", "dataset"): "version",
    "json": "file to write",
    "results": "file to write",
    "csv": "file to write",
    "write_fit": "file to write",
    "level_weights": "level weights",
    ("fit_weights", "out"): "file to write",
    "fit": "fit",
    ("classify", "out"): ".csv to write",
    ("collect", "out"): "file to write",
    ("check_device", "out"): "file to write",
    ("reproduce", "out"): "file to write",
    "only": "version",
    ("collect", "calibration"): "fit",
    "samples": ".parquet to write",
    ("save_noise", "out"): "file to write",
    ("synthetic_data", "out"): "folder to write",
    ("write_subset", "out"): ".npy to write",
    ("fit_race", "out"): "file to write",
    ("train_lora", "out"): ".safetensors to write",
    "out": "folder to write",
    "checkpoint_dir": "folder to write",
}

TYPES = {
    int: "integer",
    float: "number",
    parsing.positive: "number",
    parsing.share: "number",
    parsing.how_many: "integer",
    parsing.limit: "amount",
    parsing.class_ranges: "classes",
    figures.picture_file: "picture to write",
}


def kind_of(command: str, action: argparse.Action) -> str:
    """What an option's value is. Raises LookupError where neither its choices nor its type nor its name say so."""
    if action.nargs == 0:
        return "flag"
    if action.choices:
        return "choice"
    if action.type in TYPES:
        return TYPES[action.type]
    if getattr(action.type, "__qualname__", "").startswith("at_least."):
        return "integer"
    kind = NAMED.get((command, action.dest)) or NAMED.get(action.dest)
    if kind is None:
        option = (action.option_strings or [action.dest])[0]
        raise LookupError(
            f"{command} {option}: add a line to TYPES (its type) or NAMED (what its text names) in tests/hostile.py"
        )
    return kind


# ---------------------------------------------------------------- values that are wrong

NO_VALUES = {"no value": "", "only blanks": "  "}
INTEGERS = {
    "a word": "x",
    "a fraction": "1.5",
    "nan": "nan",
    "inf": "inf",
    "negative": "-1",
    "zero": "0",
    "other digits": "²",
    "largest": str(2**63 - 1),
    "huge": "9" * 20,
    "too long": "9" * 5000,
}
NUMBERS = {
    "a word": "x",
    "nan": "nan",
    "inf": "inf",
    "minus inf": "-inf",
    "negative": "-0.5",
    "zero": "0",
    "huge": "1e400",
    "a comma": "0,05",
}
AMOUNTS = {
    "a word": "x",
    "nan": "nan",
    "inf": "inf",
    "negative": "-1",
    "zero": "0",
    "above one": "1.5",
    "one as a fraction": "1.0",
    "huge": "9" * 20,
}
LONG_NAME = "n" * 300
TEXTS = {
    "classes": {
        "a word": "x",
        "backwards": "7-3",
        "negative": "-1",
        "open": "3-",
        "outside": "10",
        "a comma": "1,,2",
        "a fraction": "1.5",
        "far too many": "0-9999999999",
        "too many in parts": "5,0-1000000",
        "no such number": f"0-{10**30}",
        "three ends": "1-2-3",
        "other digits": "²",
    },
    "split": {"unknown": "nonsense", "a slice": "train[:2]", "a path": "../test", "other letters": "tést"},
    "configuration": {"unknown": "nonsense"},
    "column": {"unknown": "nonsense"},
    "version": {"unknown": "nonsense", "a path": "../nonsense", "other letters": "tíny", "long": LONG_NAME},
    "device": {"unknown": "nonsense", "no such": "cuda:99", "without memory": "meta", "negative": "cuda:-1"},
    "template": {"no place": "a photo", "past the limit": "word " * 90 + "{}"},
    "labels": {"one": "bag"},
    "layer": {"unknown": "nonsense", "a path": "../mid_block", "no map": "time_embedding"},
    "caption": {},
    "kind of noise": {
        "a word": "x",
        "no bound": "truncated",
        "a bound of zero": "truncated:0",
        "nan": "clipped:nan",
        "inf": "truncated:inf",
        "one bound too many": "zero:1",
        "other case": "Zero",
    },
    "extra": {"outside": "/../../escaped", "a path": "/a/b", "long": LONG_NAME, "only dots": "/.."},
    "setting": {
        "a word": "x",
        "no numbers": "/",
        "negative": "-1",
        "nan": "nan 10 5",
        "huge": "9" * 20,
        "too many": "1 2 3 4 5 6",
    },
    "accuracy": {
        "a word": "x",
        "over 100": "150/10",
        "negative": "-5/10",
        "nan": "nan/10",
        "of none": "50/0",
        "no number": "50",
        "of a word": "50/x",
        "a fraction": "50/1.5",
        "a picture": "@images/a/0.png",
        "no records": "@folder",
    },
}
OUTPUTS = {
    "file to write": {
        "directory": "@folder",
        "a pipe": "@pipe.any",
        "of a run": "@grid run/config.json",
        "below a file": "@text.txt/x.json",
        "long": LONG_NAME,
        "no place": "/proc/none/x",
    },
    "picture to write": {
        "directory": "@taken.png",
        "a pipe": "@pipe.png",
        "below a file": "@text.txt/x.png",
        "long": f"{LONG_NAME}.png",
        "no place": "/proc/none/x.png",
        "no suffix": "x",
        "another suffix": "x.gif",
        "only a suffix": ".png",
    },
    ".npy to write": {
        "directory": "@taken.npy",
        "a pipe": "@pipe.npy",
        "below a file": "@text.txt/x.npy",
        "long": f"{LONG_NAME}.npy",
        "no place": "/proc/none/x.npy",
        "another suffix": "x.txt",
    },
    ".safetensors to write": {
        "directory": "@folder",
        "a pipe": "@pipe.safetensors",
        "below a file": "@text.txt/x.safetensors",
        "long": f"{LONG_NAME}.safetensors",
        "no place": "/proc/none/x.safetensors",
        "another suffix": "x.txt",
    },
    ".csv to write": {
        "directory": "@taken.csv",
        "a pipe": "@pipe.csv",
        "below a file": "@text.txt/x.csv",
        "long": f"{LONG_NAME}.csv",
        "no place": "/proc/none/x.csv",
        "another suffix": "x.parquet",
        "only a suffix": ".csv",
    },
    ".parquet to write": {
        "directory": "@taken.parquet",
        "a pipe": "@pipe.parquet",
        "below a file": "@text.txt/x.parquet",
        "long": f"{LONG_NAME}.parquet",
        "no place": "/proc/none/x.parquet",
        "another suffix": "x.csv",
        "only a suffix": ".parquet",
    },
    "folder to write": {
        "a file": "@text.txt",
        "below a file": "@text.txt/x",
        "long": LONG_NAME,
        "no place": "/proc/none/x",
    },
    "root": {"missing": "@none", "a file": "@text.txt", "no sets": "@folder"},
    "idx folder": {"missing": "@none", "a file": "@text.txt", "no files": "@folder"},
    "folds": {"missing": "@none", "a file": "@text.txt", "no predictions": "@folder", "half a file": "@half folds"},
}


def choices(action) -> dict[str, str]:
    first = str(next(iter(action.choices)))
    other_case = first.upper() if first.upper() != first else first.lower()
    found = {"unknown": "nonsense", "a space": f"{first} ", "other letters": "ñ", "other case": other_case}
    return {fault: value for fault, value in found.items() if value not in action.choices}


def bad_values(command: str, action: argparse.Action) -> dict[str, str]:
    """fault -> value, all that can be wrong with an option by itself."""
    kind = kind_of(command, action)
    if kind == "flag":
        return {"a value": "yes"}
    if kind == "choice":
        return NO_VALUES | choices(action)
    if kind in KINDS:
        faults = KINDS[kind][1] if first_with(kind) == command or command in OWN_READERS else ANY_FILE
        return NO_VALUES | {"missing": "@none"} | {fault: f"@{bad_name(kind, fault)}" for fault in faults}
    return NO_VALUES | ({"integer": INTEGERS, "number": NUMBERS, "amount": AMOUNTS} | TEXTS | OUTPUTS)[kind]


DRY_WITH_TORCH = ("eval_supervised",)  # whose network it builds, timm's here
WITHOUT_TORCH = ("integer", "number", "classes", "choice", "split", "subset")  # what a dry run checks of these needs no torch
RUN_KINDS = ("grid run", "dit run", "pairs run", "combos run")
OWN_READERS = ("print_acc", "report", "replay")  # of run folders, each of them beside the one that scripts share


@lru_cache
def first_with(kind: str) -> str:
    """The first command that reads this kind of file: it meets all faults, the others, which use the same reader, a few."""
    return next(command for command in COMMANDS for action in actions(command) if kind_of(command, action) == kind)


def name_of(action: argparse.Action) -> str:
    return next((option for option in action.option_strings if option.startswith("--")), action.dest)


def rows_of(command: str, action: argparse.Action) -> dict[str, Row]:
    """fault -> row, of an option by itself."""
    found, name = {}, name_of(action)
    for fault, value in bad_values(command, action).items():
        if (command, name, fault) not in OPEN and (None, name, fault) not in OPEN:
            found[fault] = row_of(command, action, fault, value)
    return found


def row_of(command: str, action: argparse.Action, fault: str, value: str) -> Row:
    option = name_of(action)
    told = tuple(action.option_strings) or (str(action.metavar), action.dest)
    told += tuple(part for part in (value, *value.rpartition("/")[::2]) if len(part.strip()) > 1)
    if action.nargs == 0:
        argv = (*line(command, {}), f"{option}={value}")
    else:
        short = next((o for o in action.option_strings if o in GOOD[command]), option)
        place = short if action.option_strings else "positional"
        argv = line(command, beside(command, option) | {place: positional(command, action, value)})
    dry = "--dry_run" in argv and command not in DRY_WITH_TORCH
    return Row(
        command,
        f"{option} {fault}",
        argv,
        told,
        wanted=wanted(command, option, fault),
        parsed=takes(parser_of(command), action, value),
        light=dry and kind_of(command, action) in WITHOUT_TORCH,
    )


def takes(parser, action, value: str) -> bool:
    """Whether argparse goes on with this value."""
    if action.nargs == 0 or not value.strip():
        return False
    if action.type is parsing.class_ranges:  # whose values may be too many to make here
        return True
    try:
        parser._check_value(action, parser._get_value(action, value))
    except argparse.ArgumentError:
        return False
    return True


def positional(command: str, action, value: str) -> tuple[str, ...]:
    """The words for an option with this value; of several positionals the others stay."""
    if action.option_strings:
        return (value,)
    words = words_of(GOOD[command]["positional"])
    place = [a.dest for a in actions(command) if not a.option_strings].index(action.dest)
    return tuple(value if i == place else word for i, word in enumerate(words))


# ---------------------------------------------------------------- what is right after all

# values that ask for work without an end, or are none that the command looks at: no row. (command, option, fault)
OPEN = {
    ("benchmark", "--repeats", "largest"),
    *(("train_lora", option, "largest") for option in ("--steps", "--batch_size", "--rank")),
    *(
        (command, option, fault)
        for command, option in (("train_tiny", "--fold"), ("train_folds", "--folds"))
        for fault in ("a space", "other case")
    ),  # of a number
    ("train_tiny", "--steps", "largest"),
    ("train_tiny", "--keep_every", "largest"),
    ("train_tiny", "--channels", "largest"),
    ("train_tiny", "--batch_size", "largest"),
    ("benchmark", "--batch_size", "largest"),
    ("write_tiny_pairs", "--seed", "zero"),
    ("train_tiny", "--seed", "zero"),
    ("train_tiny", "--seed", "largest"),
    ("eval_prob_dit", "--image-size", "largest"),
}

# (command or None for all, option, fault) -> why the command takes it
WANTED = {
    (None, "--seed", "zero"): "a seed",
    (None, "--seed", "largest"): "a seed: torch takes twice as many",
    (None, "--worker_idx", "zero"): "workers count from 0",
    (None, "--example", "zero"): "examples count from 0",
    ("plot_inversion", "--image", "zero"): "images count from 0",
    ("plot_method", "--image", "zero"): "images count from 0",
    ("plot_method", "--timestep", "zero"): "the level of least noise",
    ("print_acc", "--class_labels", "zero"): "labels count from 0",
    (None, "--imgs_to_eval", "largest"): "all images, and there are fewer",
    (None, "--top", "largest"): "all classes, and there are fewer",
    (None, "--batch_size", "largest"): "no batch is larger than the work",
    (None, "--images_in_flight", "largest"): "all images at once, and there is one",
    (None, "--n_workers", "largest"): "the first of many workers has one image",
    (None, "--round_size", "largest"): "one round over all",
    (None, "--train_images", "largest"): "all images, and there are fewer",
    (None, "--t", "zero"): "the level of least noise",
    (None, "--epochs", "largest"): "it ends early, and this is a dry run",
    (None, "--patience", "largest"): "it learns for all epochs",
    (None, "--crop_errors", "zero"): "no border left out",
    ("write_prompts", "--template", "past the limit"): "the limit is a model's",
    ("demo", "--template", "past the limit"): "what a prompt loses depends on the labels, which the page has",
    ("eval_prob_adaptive", "--model_path", "500 steps"): "its levels are its own, and their number is told",
    ("eval_prob_adaptive", "--model_path", "4000 steps"): "its levels are its own, and their number is told",
    ("eval_prob_adaptive", "--model_path", "sample size as a text"): "a size that says nothing, as where there is none",
    ("eval_prob_adaptive", "--model_path", "model_index.json missing"): "its parts are Stable Diffusion's, and say the rest",
    ("eval_prob_adaptive", "--model_path", "model_index.json no keys"): "its parts are Stable Diffusion's, and say the rest",
}


SHIPPED = "the shipped images stand in for the folder, as in the run, and a notice says so"
WANTED |= {
    (script, "--data_dir", fault): SHIPPED for script in ("report", "plot_image") for fault in ("missing", "a file", "no sets")
}
OPEN |= {("plot_winoground", "folder", fault) for fault in RUNS if "records" in fault}  # config.json is all that it reads
WANTED |= {
    (entry, option, fault): why
    for entry in ENTRIES[:2]
    for option, fault, why in (
        ("--guidance", "zero", "no guidance"),
        ("--representatives", "largest", "all candidates, and there are fewer"),
        ("--width", "largest", "all candidates, and there are fewer"),
        ("--caution", "zero", "what is expected, as it is"),
    )
}


def wanted(command: str, option: str, fault: str) -> str | None:
    return WANTED.get((command, option, fault)) or WANTED.get((None, option, fault))


# ---------------------------------------------------------------- rows that no parser tells of


def data_set_rows():
    """Every data set where its files are not, and each whose files beside pictures are damaged."""
    for name in [*LAID_OUT, "cifar10", "cifar100", "stl10"]:
        if name == "fashion_mnist":  # the shipped images stand in for it, which a notice says
            continue
        recipe = {"--dataset": name, "--to_keep": "1", "--n_samples": "2"}
        for fault, value in OUTPUTS["root"].items():
            argv = line("eval_prob_adaptive", recipe | {"--data_dir": value})
            yield Row("eval_prob_adaptive", f"--dataset {name}, --data_dir {fault}", argv, ("--data_dir", f"--dataset {name}"))
    for name in STRANGERS:
        argv = line("eval_prob_adaptive", {"--dataset": name, "--data_dir": f"@stranger {name}", "--to_keep": "1"})
        yield Row("eval_prob_adaptive", f"data set {name} with a folder of no class", argv, ("backup",))
    for fault in DATA_SETS:
        name, told = fault.split()[0], ("--dataset", "data_dir")
        argv = line("eval_prob_adaptive", {"--dataset": name, "--data_dir": f"@{bad_name('data set', fault)}"})
        yield Row("eval_prob_adaptive", f"data set {fault}", argv, told)


def own_set_rows():
    """Folders of images, tables of the datasets library, shards and CSVs, broken."""
    for kind, name in (("image folder", "folder"), ("table", "hf"), ("shards", "webdataset"), ("own csv", "csv")):
        for fault in ("missing", *KINDS[kind][1]):
            value = "@none" if fault == "missing" else f"@{bad_name(kind, fault)}"
            more = {"--dataset": name, "--data_dir": value, "--template": "a {}"}
            told = ("--data_dir", "--dataset", "--image_column", value)
            yield Row("eval_prob_adaptive", f"{kind} {fault}", line("eval_prob_adaptive", more), told)


def clip_rows():
    """eval_clip.py meets all faults of these folders."""
    for fault in ("missing", "tiny-clip.json a list"):
        value = "@none" if fault == "missing" else f"@{bad_name('clip', fault)}"
        more = {"--model": "openclip", "--model_path": value, "--t_interval": False, "--dry_run": False}
        yield Row("run_winoground", f"openclip {fault}", line("run_winoground", more), ("--model_path", value))


def single_file_rows():
    for fault in KINDS["single"][1]:
        value = f"@{bad_name('single', fault)}"
        argv = line("eval_prob_adaptive", {"--model_path": value})
        yield Row("eval_prob_adaptive", f"single file {fault}", argv, ("--model_path", value))


AT_ODDS = [  # command, words beside the good line, one of what has to be told
    ("eval_prob_adaptive", {"--template": "a {}", "--prompt_path": "@prompts.csv"}, ["--template"]),
    ("eval_prob_adaptive", {"--strategy": "race"}, ["--to_keep"]),
    ("eval_prob_adaptive", {"--alpha": "0.1"}, ["--alpha"]),
    ("eval_prob_adaptive", {"--race_fit": "x.json"}, ["--race_fit"]),
    ("eval_prob_adaptive", {"--shortlist_size": "3"}, ["--shortlist"]),
    ("eval_prob_adaptive", {"--shortlist": "openclip:tiny", "--shortlist_size": "11"}, ["--shortlist_size"]),
    ("eval_prob_adaptive", {"--shortlist": "openclip:none"}, ["--shortlist"]),
    ("eval_prob_adaptive", {"--shortlist": "openclip:ViT-B-32"}, ["--shortlist"]),
    ("eval_prob_adaptive", {"--shortlist": "clip:none"}, ["--shortlist"]),
    ("eval_prob_adaptive", {"--strategy": "race_calibrated", "--to_keep": False, "--n_samples": False}, ["--race_fit"]),
    ("fit_race", {"--target": "0.4"}, ["--target"]),
    ("fit_race", {"--target": "1"}, ["--target"]),
    ("eval_prob_adaptive", {"--to_keep": ("2", "1")}, ["--n_samples"]),
    ("eval_prob_adaptive", {"--to_keep": ("2",)}, ["--to_keep"]),
    ("eval_prob_adaptive", {"--to_keep": ("11", "1"), "--n_samples": ("1", "2")}, ["--to_keep"]),
    ("eval_prob_adaptive", {"--n_samples": "1001"}, ["--n_samples"]),
    ("eval_prob_adaptive", {"--n_samples": "1001", "--n_trials": "2"}, ["--n_samples"]),
    ("eval_prob_adaptive", {"--n_trials": "1000000000"}, ["--n_trials"]),
    ("eval_prob_adaptive", {"--img_size": "16000"}, ["--img_size", "--batch_size"]),
    ("eval_prob_adaptive", {"--img_size": "65"}, ["--img_size"]),
    ("eval_prob_adaptive", {"--img_size": "8"}, ["--img_size"]),
    ("eval_prob_adaptive", {"--levels": "uniform"}, ["--levels"]),
    ("eval_prob_adaptive", {"--worker_idx": "1"}, ["--worker_idx"]),
    ("eval_prob_adaptive", {"--worker_idx": "2", "--n_workers": "2"}, ["--worker_idx"]),
    ("eval_prob_adaptive", {"--config_name": "x"}, ["--config_name"]),
    ("eval_prob_adaptive", {"--dataset": "eurosat", "--data_dir": "@set eurosat", "--split": "train"}, ["--split"]),
    ("eval_prob_adaptive", {"--dataset": "imagenet", "--data_dir": "@set imagenet", "--download": None}, ["--download"]),
    ("eval_prob_adaptive", {"--dataset": "hf"}, ["--data_dir"]),
    ("eval_prob_adaptive", {"--dataset": "folder"}, ["--data_dir"]),
    ("eval_prob_adaptive", HUB | {"--split": "nonsense"}, ["--split"]),
    ("eval_prob_adaptive", HUB | {"--split": "train[:2]"}, ["--split"]),
    ("eval_prob_adaptive", HUB | {"--split": ""}, ["--split"]),
    ("eval_prob_adaptive", HUB | {"--config_name": "plain"}, ["--config_name"]),
    ("eval_prob_adaptive", HUB | {"--image_column": "label"}, ["--image_column"]),
    ("eval_prob_adaptive", HUB | {"--label_column": "image"}, ["--label_column"]),
    ("eval_prob_adaptive", HUB | {"--streaming": None}, ["--limit"]),
    ("eval_prob_adaptive", HUB | {"--limit": "2"}, ["--streaming"]),
    ("eval_prob_adaptive", {"--limit": "2"}, ["--limit"]),
    ("eval_prob_adaptive", FOLDER | {"--streaming": None, "--limit": "2"}, ["--streaming"]),
    ("eval_prob_adaptive", {"--classes": "@classes.txt"}, ["--classes"]),
    ("eval_prob_adaptive", FOLDER | {"--classes": "@classes.txt"}, ["@images/a", "--classes"]),
    ("eval_prob_adaptive", {"--dataset": "webdataset"}, ["--data_dir"]),
    ("eval_prob_adaptive", {"--dataset": "csv"}, ["--data_dir"]),
    ("eval_prob_adaptive", {"--dataset": "csv", "--data_dir": "@own.csv", "--split": "train"}, ["--split"]),
    ("eval_prob_adaptive", {"--dataset": "csv", "--data_dir": "@own.csv", "--classes": "@classes.txt"}, ["row 2"]),
    ("eval_prob_adaptive", {"--dataset": "webdataset", "--data_dir": "@shards", "--split": "train"}, ["--split"]),
    ("eval_prob_adaptive", {"--dataset": "webdataset", "--data_dir": "@shards/test/0.tar"}, ["--classes"]),
    ("eval_prob_adaptive", {"--dataset": "webdataset", "--data_dir": "@shards", "--classes": "@one class.txt"}, ["s0000000.cls"]),
    ("classify", {"--classes": "@classes.txt"}, ["--labels", "--classes"]),
    ("classify", {"--labels": False, "--classes": "@one class.txt"}, ["--classes"]),
    ("classify", {"positional": "@bad shards/a shard cut in a picture"}, ["@bad shards/a shard cut in a picture"]),
    ("classify", {"positional": "@bad shards/a shard cut in a picture/test"}, ["0.tar"]),
    ("classify", {"positional": "@bad shards/a shard cut behind a member/test/0.tar"}, ["s0000000.png"]),
    ("classify", {"positional": "@bad shards/without pictures/test"}, ["without pictures"]),
    ("classify", {"positional": "@bad own csv/a file missing.csv"}, ["row 3"]),
    ("classify", {"positional": "@bad own csv/no path.csv"}, ["column path missing"]),
    ("eval_prob_adaptive", {"--dataset": "folder", "--data_dir": "@looped", "--template": "a {}"}, ["again", "link"]),
    ("eval_prob_adaptive", {"--version": "2-2"}, ["--version"]),
    ("eval_prob_adaptive", {"--seed": "18446744073709551616"}, ["--seed"]),
    ("eval_prob_adaptive", {"--model_path": "mine.py", "--lora": "x.safetensors"}, ["--lora"]),
    ("eval_prob_adaptive", {"--model_path": "mine.py", "--text_encoders": "clip"}, ["--text_encoders"]),
    ("eval_prob_adaptive", {"--model_path": "mine.py", "--embedding": "x.pt"}, ["--embedding"]),
    ("eval_prob_adaptive", {"--model_path": "mine.py", "--config": "@folder"}, ["--config"]),
    ("eval_prob_adaptive", {"--config": "@folder"}, ["--config"]),
    ("eval_prob_adaptive", {"--model_path": "none.safetensors"}, ["--model_path"]),
    ("eval_prob_adaptive", {"--options": "@at odds.yaml", "--to_keep": False, "--n_samples": False}, ["--to_keep"]),
    ("eval_prob_adaptive", {"--model_path": "@single.safetensors", "--version": "none"}, ["--version", "--config"]),
    ("eval_prob_dit", {"--to_keep": "1", "--n_samples": "2"}, ["--t_interval"]),
    ("eval_prob_dit", {"--strategy": "race"}, ["--t_interval"]),
    ("eval_prob_dit", {"--alpha": "0.1"}, ["--alpha"]),
    ("eval_prob_dit", {"--images_in_flight": "2"}, ["--images_in_flight"]),
    ("eval_prob_dit", {"--images_in_flight": "auto", "--cls": "1"}, ["--images_in_flight"]),
    ("eval_prob_dit", {"--spatial": None, "--save_vb": None, "--cls": "1"}, ["--spatial"]),
    ("eval_prob_dit", {"--save_vb": None}, ["--save_vb"]),
    ("eval_prob_dit", {"--level_weights": "@weights.json"}, ["--save_errors"]),
    ("eval_prob_dit", {"--level_weights": "@weights.json", "--cls": "1"}, ["--level_weights"]),
    ("eval_prob_dit", {"--save_errors": None, "--cls": "1"}, ["--save_errors"]),
    ("eval_prob_dit", {"--save_errors": None, "--save_per_class": None}, ["--save_errors"]),
    ("eval_prob_dit", {"--noise_path": "@noise.pt", "--batch_size": "auto"}, ["--noise_path"]),
    ("eval_prob_dit", {"--img_size": "128"}, ["tiny-dit/config.json"]),
    ("eval_prob_dit", {"--t_interval": "3"}, ["--t_interval"]),
    ("eval_prob_dit", {"--dataset": "mnist", "--data_dir": "@set mnist", "--split": "validation"}, ["--split"]),
    ("eval_prob_dit", {"--dataset": "objectnet", "--data_dir": "@set objectnet"}, ["--dataset"]),
    ("eval_prob_dit", {"--n_trials": "1000000000"}, ["--n_trials"]),
    *[
        ("run_winoground", {"--model": "openclip", "--t_interval": False, flag: value}, [flag])
        for flag, value in (
            ("--t_interval", "500"),
            ("--n_trials", "2"),
            ("--noise_path", "@noise.pt"),
            ("--img_size", "64"),
            ("--interpolation", "bicubic"),
            ("--dtype", "float16"),
            ("--compile", None),
            ("--lora", "x.safetensors"),
            ("--levels", "uniform"),
            ("--embedding", "x.pt"),
            ("--config", "@folder"),
        )
    ],
    ("run_winoground", {"--pretrained": "openai"}, ["--pretrained"]),
    ("run_winoground", {"--t_interval": "3"}, ["--t_interval"]),
    ("run_winoground", {"--noise_path": "@noise.pt", "--batch_size": "auto"}, ["--noise_path"]),
    ("run_winoground", {"--model": "clip", "--version": "tiny", "--t_interval": False}, ["--version"]),
    ("run_winoground", {"--img_size": "16000"}, ["--img_size"]),
    ("run_winoground", {"--n_trials": "1000000000"}, ["--n_trials"]),
    ("benchmark", {"--model": "sd2", "--model_path": "@folder"}, ["--model_path"]),
    ("benchmark", {"--model": "sdxl", "--model_path": "@folder"}, ["--model_path"]),
    ("benchmark", {"--model": "tiny-dit", "--img_size": "64"}, ["--img_size"]),
    ("benchmark", {"--model": "sd3-medium", "--img_size": "4096"}, ["--img_size"]),
    ("benchmark", {"--timesteps": "1001"}, ["--timesteps"]),
    ("calibrate", {"--prompt_path": "@prompts.csv"}, ["--prompt_path"]),
    ("calibrate", {"--confidence": "evaluations"}, ["--confidence"]),
    ("calibrate", {"positional": "@pairs run"}, ["@pairs run"]),
    ("calibrate", {"positional": "@images"}, ["@images"]),
    ("classify", {"--labels": False}, ["--labels"]),
    ("classify", {"--labels": ("bag", "bag")}, ["--labels"]),
    ("classify", {"--labels": ("bag", "bag "), "--dry_run": False}, ["--labels"]),
    ("classify", {"--prompts": "@prompts.csv"}, ["--prompts"]),
    ("classify", {"--labels": False, "--prompts": "@prompts.csv", "--template": "a {}"}, ["--template"]),
    ("classify", {"positional": "@folder"}, ["@folder"]),
    ("classify", {"positional": "@looped"}, ["again", "link"]),
    ("classify", {"positional": ("@images/a/0.png", "@none")}, ["@none"]),
    ("classify", {"positional": "@images", "--map": "x.png"}, ["--map"]),
    ("classify", {"--to_keep": "1", "--n_samples": "2"}, ["--to_keep"]),
    ("classify", {"--img_size": "65"}, ["--img_size"]),
    ("demo", {"--to_keep": "1", "--n_samples": "2"}, ["--to_keep"]),
    ("demo", {"--img_size": "65"}, ["--img_size"]),
    ("demo", {"--levels": "uniform"}, ["--levels"]),
    ("collect", {"positional": "@images"}, ["@images"]),
    ("collect", {"--samples": "x.parquet"}, ["--samples"]),
    ("collect", {"positional": ("@grid run", "@dit run"), "--samples": "x.parquet"}, ["--samples"]),
    ("collect", {"positional": "@pairs run", "--samples": "x.parquet"}, ["@pairs run"]),
    ("collect", {"positional": "@grid run", "--calibration": "@fit.json"}, ["--calibration"]),
    ("collect", {"positional": ("@results.json", "@none")}, ["@none"]),
    ("collect", {"positional": "@bad grid run/config a list"}, ["@bad grid run/config a list"]),
    ("collect", {"positional": "@bad pairs run/records of text"}, ["@bad pairs run/records of text"]),
    ("compare_runs", {"positional": ("@grid run", "@pairs run")}, ["@pairs run", "@grid run"]),
    ("compare_runs", {"positional": ("@pairs run", "@dit run")}, ["@pairs run", "@dit run"]),
    ("eval_clip", {"--templates": "@templates.txt", "--template": "a {}"}, ["--templates"]),
    ("eval_clip", {"--templates": "@templates.txt", "--prompt_path": "@prompts.csv"}, ["--templates"]),
    ("eval_clip", {"--pretrained": "openai"}, ["--pretrained"]),
    ("eval_clip", {"--model": "clip"}, ["--version"]),
    ("eval_supervised", {"--weights": "IMAGENET1K_V1"}, ["--weights"]),
    ("eval_supervised", {"--weights": False}, ["--weights"]),
    ("eval_supervised", {"--network": "resnet18"}, ["--weights"]),
    ("eval_supervised", {"--network": "resnet18", "--weights": "IMAGENET1K_V1"}, ["--weights"]),
    ("eval_supervised", {"--network": "timm:resnet18.nonsense"}, ["--network"]),
    ("eval_supervised", {"--network": "vit_h_14", "--weights": False}, ["--weights"]),
    ("plot_image", {"positional": "@pairs run"}, ["@pairs run"]),
    ("plot_image", {"--image": "10000"}, ["--image"]),
    ("plot_image", {"--loss": "vlb"}, ["--loss"]),
    ("plot_image", {"--prompt_path": "@prompts.csv"}, ["--prompt_path"]),
    ("plot_robustness", {"--in_dist": ("50/10", "60/10")}, ["--in_dist"]),
    ("plot_timesteps", {"--image": "10000"}, ["--image"]),
    ("plot_timesteps", {"positional": "@pairs run"}, ["@pairs run"]),
    ("plot_timesteps", {"--prompt_path": "@prompts.csv"}, ["--prompt_path"]),
    ("plot_winoground", {"--example": "7"}, ["--example"]),
    ("plot_winoground", {"positional": "@grid run"}, ["@grid run"]),
    ("print_acc", {"positional": "@pairs run"}, ["@pairs run"]),
    ("print_acc", {"positional": ("@grid run", "@dit run")}, ["@dit run", "@grid run"]),
    ("print_acc", {"--class_labels": "11"}, ["--class_labels"]),
    ("print_spaces", {"positional": "@pairs run"}, ["@pairs run"]),
    ("print_spaces", {"positional": "@dit run"}, ["@dit run"]),
    ("print_spaces", {"--n_samples": "3"}, ["--n_samples"]),
    ("print_dit_acc", {"positional": "@pairs run"}, ["@pairs run"]),
    ("print_dit_acc", {"--split": "train"}, ["--split"]),
    ("print_winoground", {"positional": "@grid run"}, ["@grid run"]),
    ("fit_weights", {"positional": "@pairs run"}, ["@pairs run"]),
    ("fit_weights", {"positional": "@dit run"}, ["@dit run"]),
    ("fit_weights", {"--loss": "l1"}, ["--loss"]),
    ("reproduce", {"--only": "nowhere"}, ["--only"]),
    ("reproduce", {"--worker_idx": "1"}, ["--worker_idx"]),
    ("reproduce", {"positional": "list", "--run": None}, ["--run"]),
    ("replay", {"--loss": "l1"}, ["--loss"]),
    ("replay", {"--prompt_path": "@prompts.csv"}, ["--prompt_path"]),
    ("replay", {"--stages": "5 2 / 1 4"}, ["--stages"]),
    ("replay", {"--stages": "5 1 / 2 400"}, ["--stages"]),
    ("replay", {"--race": "2 2 1"}, ["--race"]),
    ("replay", {"--surrogate": "48 32"}, ["--surrogate"]),
    ("replay", {"--surrogate": "2 32 2.5 0.2 3"}, ["--surrogate"]),
    ("replay", {"--tree": "48 32 2.5 0.2 3 @nowhere.json"}, ["--tree"]),
    ("plot_candidates", {"positional": ("@grid run", "@grid run")}, ["@grid run"]),
    ("report", {"--prompt_path": "@prompts.csv"}, ["--prompt_path"]),
    ("report", {"positional": ("@grid run", "@pairs run")}, ["@pairs run"]),
    ("report", {"--format": "csv", "--data_dir": "@folder"}, ["--data_dir"]),
    ("save_noise", {"--img_size": "65"}, ["--img_size"]),
    ("sd_features", {"--t": "1000"}, ["--t"]),
    ("sd_features", {"--split": "validation"}, ["--train_dir"]),
    ("sd_features", {"--version": "tiny-sd3"}, ["--version"]),
    ("sd_features", {"--head": "linear", "--epochs": "2"}, ["--epochs"]),
    ("sd_features", {"--train_images": "2"}, ["too few", "--train_images"]),
    ("sd_features", {"--val_share": "1"}, ["--val_share"]),
    ("save_noise", {"--n": "1000000000"}, ["--n"]),
    ("save_noise", {"--seed": "18446744073709551616"}, ["--seed"]),
    ("synthetic_data", {"--version": "sdxl"}, ["--version", "--model_path"]),
    ("synthetic_data", {"--img_size": "65"}, ["--img_size"]),
    ("synthetic_data", {"--per_class": "1"}, ["--per_class"]),
    ("synthetic_data", {"--draw_only": None, "--epochs": "2"}, ["--epochs"]),
    ("train_lora", {"--class_labels": "4"}, ["--class_labels"]),
    ("train_lora", {"--class_labels": ("4", "4")}, ["--class_labels"]),
    ("train_lora", {"--class_labels": ("4", "10")}, ["--class_labels"]),
    ("train_lora", {"--per_class": "101"}, ["--per_class"]),
    ("train_tiny", {"positional": "vae", "--keep_every": "5"}, ["--keep_every"]),
    ("train_tiny", {"positional": "dit", "--channels": "32"}, ["--channels"]),
    ("train_tiny", {"positional": "sd", "--channels": "60"}, ["--channels"]),
    ("write_prompts", {"positional": "nonsense"}, ["nonsense"]),
    ("write_prompts", {"--template": "a {}"}, ["--template"]),
    ("write_prompts", {"positional": "../outside", "--classes": "@classes.txt"}, ["../outside", "DATASET"]),
    ("write_subset", {"--per_class": "2"}, ["--per_class"]),
    ("write_subset", {"--n": "1001"}, ["--n"]),
    ("write_subset", {"--n": False, "--per_class": "500"}, ["--per_class"]),
]


def at_odds_rows():
    for command, more, told in AT_ODDS:
        words = " ".join(
            f"{k} {v if v and v is not True else ''}".strip() for k, v in more.items() if k != "positional" and v is not False
        )
        name = f"at odds: {more.get('positional', '')} {words}".replace("  ", " ")
        yield Row(command, f"at odds: {name}", line(command, more), tuple(told))


def environment_rows():
    """What the environment names wrongly."""
    for command in ENTRIES:
        for fault, value in {"a file": "@text.txt", "below a file": "@text.txt/x", "no place": "/proc/none"}.items():
            argv = line(command, {"--dry_run": False})
            yield Row(command, f"LOG_DIR {fault}", argv, ("LOG_DIR", value), environment={"LOG_DIR": value})
    for command in ENTRIES[:2]:
        argv = line(command, {"--dataset": "mnist", "--to_keep": "1"} if command == ENTRIES[0] else {"--dataset": "mnist"})
        yield Row(command, "DATASET_ROOT missing", argv, ("DATASET_ROOT",), environment={"DATASET_ROOT": "@none"})
        slurm = {"SLURM_ARRAY_TASK_ID": "x"}
        yield Row(command, "SLURM's number a word", line(command, {}), ("SLURM_ARRAY_TASK_ID",), environment=slurm)


# what shows that an option is looked at, in this order; else the first fault that is no good value after all
WIRED_BY = ("a text", "below a file")


def refused_rows(command: str) -> list[Row]:
    """What argparse refuses: every fault of every option."""
    return [row for action in actions(command) for row in rows_of(command, action).values() if not row.parsed]


def option_rows():
    """What argparse takes: every fault of an option of one kind on the first command that has it, else one."""
    tried = set()
    for command in COMMANDS:
        for action in actions(command):
            kind = kind_of(command, action)
            rows = {fault: row for fault, row in rows_of(command, action).items() if row.parsed}
            own = command in OWN_READERS and kind in RUN_KINDS
            new = {fault: row for fault, row in rows.items() if own or (name_of(action), kind, fault) not in tried}
            tried |= {(name_of(action), kind, fault) for fault in new}
            yield from new.values() or one_of(rows)


def one_of(rows: dict[str, Row]) -> list[Row]:
    found = [rows[fault] for fault in WIRED_BY if fault in rows] + [row for row in rows.values() if not row.wanted]
    return (found or list(rows.values()))[:1]


def all_rows() -> list[Row]:
    """The table of whole commands."""
    return [
        *option_rows(),
        *data_set_rows(),
        *own_set_rows(),
        *clip_rows(),
        *single_file_rows(),
        *at_odds_rows(),
        *environment_rows(),
    ]
