"""The commands by task, and how they are written at the shell: files of a clone, or names behind one command."""

import re
import sys
from pathlib import Path

from diffusion.utils import paths

TASKS = {
    "evaluate": (
        "eval_prob_adaptive",
        "eval_prob_dit",
        "run_winoground",
        "classify",
        "demo",
        "eval_clip",
        "eval_supervised",
        "sd_features",
        "synthetic_data",
    ),
    "look": (
        "print_acc",
        "print_dit_acc",
        "print_winoground",
        "print_combos",
        "print_folds",
        "print_spaces",
        "report",
        "plot_method",
        "plot_image",
        "plot_timesteps",
        "plot_winoground",
        "plot_inversion",
    ),
    "compare": (
        "compare_runs",
        "collect",
        "replay",
        "plot_candidates",
        "plot_robustness",
        "simulate_race",
        "benchmark",
        "check_device",
    ),
    "calibrate": ("calibrate", "fit_weights", "fit_race"),
    "reproduce": ("reproduce", "print_laion"),
    "prepare": ("write_prompts", "write_subset", "save_noise", "write_tree", "write_tiny_pairs"),
    "train": ("train_tiny", "train_folds", "train_lora"),
}
NAMES = [name for names in TASKS.values() for name in names]
_NAME = f"({'|'.join(NAMES)})"
_FILE = re.compile(rf"\b(?:python )?scripts/{_NAME}\.py\b|\bpython {_NAME}\.py\b")

starter: str | None = None  # what stands before a name, such as diffusion-classifier; None: this process runs a file of a clone


def file_of(name: str) -> Path:
    top = paths.ROOT / f"{name}.py"
    return top if top.is_file() else paths.ROOT / "scripts" / f"{name}.py"


def start_of(words: tuple[str, ...]) -> list[str]:
    """What Python is to be given to run a command line that begins with a file of a clone, as this process was called."""
    return ["-m", "diffusion", Path(words[0]).stem, *words[1:]] if starter else [str(paths.ROOT / words[0]), *words[1:]]


def line_of(name: str) -> str:
    """What a command does, in a few words: its docstring up to the first full stop, colon or question mark."""
    doc = file_of(name).read_text(encoding="utf-8").split('"""')[1]
    first = re.match(r".*?(?:\?|(?=[.:]))(?=[.:?]?\s)", doc, re.S)
    assert first, name  # tests hold every command's docstring to it
    return first[0].replace("\n", " ")


def prog() -> str | None:
    """How this process's command is called in its usage; None where argparse says it right, by the file's name."""
    return f"{starter} {Path(sys.argv[0]).stem}" if starter else None


def typed(text: str) -> str:
    """A text for the person at the shell, with the commands in it as this process was called: not everybody has a clone."""
    text = text if paths.CLONE else text.replace("'.[demo]'", "'diffusion-classifier-suite[demo]'")
    return _FILE.sub(lambda match: f"{starter} {match[1] or match[2]}", text) if starter else text
