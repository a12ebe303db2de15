"""Where things are: environment variables and the files that ship. The only reader of `os.environ` for paths."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ROOT / "prompts"
SHIPPED = ROOT / "shipped"
TINY_SD = SHIPPED / "tiny-sd"
TINY_SD3 = SHIPPED / "tiny-sd3"
TINY_DIT = SHIPPED / "tiny-dit"
TINY_CLIP = SHIPPED / "tiny-clip"
TREES = SHIPPED / "trees"
TINY_PAIRS = SHIPPED / "datasets" / "tiny_pairs"


def dataset_root(data_dir: str | None) -> Path:
    """The folder that holds all datasets: `--data_dir`, else DATASET_ROOT, else ./datasets."""
    return Path(data_dir or os.environ.get("DATASET_ROOT") or "datasets").expanduser()


def log_dir() -> Path:
    """The folder that holds all run folders: LOG_DIR, else ./data as in the reference."""
    return Path(os.environ.get("LOG_DIR") or "data").expanduser()


def hub_token() -> str | None:
    """The Hugging Face token: HF_TOKEN, else the content of the file that TOKEN_PATH names, else None.

    None leaves it to the hub's client, which finds what `hf auth login` stored. Raises ValueError for a TOKEN_PATH without
    a token in it.
    """
    token, path = os.environ.get("HF_TOKEN", "").strip(), os.environ.get("TOKEN_PATH")
    if token or not path:
        return token or None
    try:
        token = Path(path).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"TOKEN_PATH {path} cannot be read ({type(error).__name__}): name a file with a hub token") from None
    if not token:
        raise ValueError(f"TOKEN_PATH {path} is empty: write a hub token into it, or set HF_TOKEN")
    return token
