"""Where things are: environment variables and the files that ship. The only reader of `os.environ` for paths."""

import os
from importlib import resources
from pathlib import Path

PACKAGE = Path(str(resources.files("diffusion"))).resolve()
CLONE = not (PACKAGE / "_suite").is_dir()  # else a wheel, which holds scripts/, prompts/ and shipped/ there (pyproject.toml)
ROOT = PACKAGE.parent if CLONE else PACKAGE / "_suite"
PROMPTS = ROOT / "prompts"
SHIPPED = ROOT / "shipped"
TINY_SD = SHIPPED / "tiny-sd"
TINY_SD3 = SHIPPED / "tiny-sd3"
TINY_DIT = SHIPPED / "tiny-dit"
TINY_CLIP = SHIPPED / "tiny-clip"
TREES = SHIPPED / "trees"
TINY_PAIRS = SHIPPED / "datasets" / "tiny_pairs"


def at_hand(path: str | Path) -> Path:
    """The file as it was named; where there is none, the one that ships under this name, such as prompts/pets_prompts.csv."""
    named, ours = Path(path), ROOT / path
    return ours if ours.is_file() and not named.exists() else named


def made_anew(shipped: Path) -> Path:
    """Where a script writes what ships: over it in a clone, else below the current folder, as what is installed stays."""
    return shipped if CLONE else shipped.relative_to(ROOT)


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
