"""Where things are: environment variables and the files that ship. The only reader of `os.environ` for paths."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ROOT / "prompts"
SHIPPED = ROOT / "shipped"
TINY_SD = SHIPPED / "tiny-sd"
TINY_DIT = SHIPPED / "tiny-dit"


def dataset_root(data_dir: str | None) -> Path:
    """The folder that holds all datasets: `--data_dir`, else DATASET_ROOT, else ./datasets."""
    return Path(data_dir or os.environ.get("DATASET_ROOT") or "datasets").expanduser()


def log_dir() -> Path:
    """The folder that holds all run folders: LOG_DIR, else ./data as in the reference."""
    return Path(os.environ.get("LOG_DIR") or "data").expanduser()
