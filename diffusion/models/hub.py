"""Files of a model, in a local folder, in the hub's cache or on the hub; weights read and checked; what tells weights apart.

torch and diffusers are imported when weights are read, so that names and sizes are checked without them.
"""

import json
from collections.abc import Callable
from pathlib import Path

from diffusion.files import hash_files


def read_config(source: str, name: str, flag: str = "--model_path", layout: str = "a model's folder") -> dict:
    """A JSON file of the source. Raises ValueError as `fetch`, and for a file that is none."""
    path = fetch(source, name, flag, layout)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{flag} {source}: {name} is not readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{flag} {source}: {name} holds no JSON object")
    return content


def fetch(source: str, name: str, flag: str = "--model_path", layout: str = "a model's folder") -> Path:
    """A file of a local folder, of the hub's cache, or of the hub.

    flag: what names the source; layout: what the folder should be. Raises ValueError, in one line, when it is not to be had.
    """
    if Path(source).is_dir():
        if not (Path(source) / name).is_file():
            raise ValueError(f"{flag} {source} has no {name}: give {layout}")
        return Path(source) / name
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, name))
    except Exception as error:  # the hub's client raises many kinds
        raise ValueError(_hub_problem(source, name, error, flag, layout)) from None


def pipeline_class(source: str) -> str | None:
    """`_class_name` of the source's model_index.json; None for a folder without one, and where the hub has none in reach."""
    if Path(source).is_dir() and not (Path(source) / "model_index.json").is_file():
        return None
    try:
        return read_config(source, "model_index.json").get("_class_name")
    except ValueError:
        if Path(source).is_dir():
            raise
        return None  # its own files will tell what is wrong


def _hub_problem(source: str, name: str, error: Exception, flag: str, layout: str) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"model {source!r} is gated: accept its licence on the hub, then log in or set HF_TOKEN"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"model {source!r} has no {name}: give {layout}"
    return (
        f"model {source!r} is neither a local folder nor reachable on the hub ({type(error).__name__}): give a folder with "
        f"{flag}, or work offline with {'--version' if flag == '--model_path' else '--model'} tiny --dataset fashion_mnist"
    )


def revision_of(source: str, path: Path) -> str | None:
    """The hub's commit of a cached file of the source, whose name lies below the commit's folder; None for a local folder."""
    return None if Path(source).is_dir() else path.parts[path.parts.index("snapshots") + 1]


def identity(source: str, revision: str | None, parts=(".",)) -> str:
    """Tells two sets of weights apart: the hub's commit, or the hash of what a local folder holds of the parts that are used."""
    if revision:
        return f"{source} at commit {revision}"
    root, kinds = Path(source), (".safetensors", ".bin", ".json", ".txt")
    return hash_files(root, (p for part in parts for p in (root / part).glob("*") if p.suffix in kinds))


# ---------------------------------------------------------------- weights


def pretrained(cls, source: str, device: str, **how):
    """A model of diffusers' or transformers' class, in eval mode. Raises ValueError or OSError for weights that do not do."""
    place = "/".join(filter(None, (source, how.get("subfolder"))))
    try:
        model, info = cls.from_pretrained(source, output_loading_info=True, **how)
    except (OSError, ValueError):
        raise
    except Exception as error:  # a damaged file makes of itself whatever the reader runs into
        raise ValueError(f"{place}: its weights are damaged ({type(error).__name__}: {error})") from None
    missing = sorted(info["missing_keys"])
    if missing:  # which transformers would leave at random values
        raise ValueError(f"{place}: {len(missing)} weights are missing, {missing[0]} the first")
    return model.to(device).eval().requires_grad_(False)


def vae_encoder(source: str, device: str, **where) -> Callable:
    """image [3,H,W] in [-1,1] -> mean of the VAE's posterior times its own scaling factor, [C,h,w] float32 on the device."""
    import torch
    from diffusers import AutoencoderKL

    vae = pretrained(AutoencoderKL, source, device, torch_dtype=torch.float32, **where)

    @torch.inference_mode()
    def encode(image):
        return vae.encode(image[None].to(device)).latent_dist.mean[0] * vae.config.scaling_factor

    return encode
