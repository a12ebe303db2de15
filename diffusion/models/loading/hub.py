"""Files of a model, in a local folder, in the hub's cache or on the hub; weights read and checked; the identity of weights.

torch and diffusers are imported when weights are read, so that names and sizes are checked without them.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diffusion.utils.files import hash_files, one_line, read_json

if TYPE_CHECKING:  # which imports torch
    from torch import Tensor, nn

log = logging.getLogger(__name__)

LARGEST = 10**6  # of any size in a config file: more is a mistake, and arithmetic on it would end nowhere
LARGEST_HEADER = 10**8  # bytes, safetensors' own limit
PRECISIONS = ("fp32", "bf16", "fp16")  # variants that hold the same weights, the best first


def read_config(source: str, name: str, kinds: Mapping[str, type] = MappingProxyType({}), flag: str = "--model_path",
                layout: str = "a model's folder") -> dict:  # fmt: skip
    """The content of a JSON file of a model.

    Args:
        source: local folder or hub id.
        name: the file's path in it.
        kinds: keys that it has to have, and their types.
        flag, layout: as in `fetch`.

    Raises:
        ValueError: the file is not to be had, is no JSON object, or lacks a key.
    """
    path = fetch(source, name, flag, layout)
    try:
        return read_json(path, kinds)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None


def check_sizes(where: str, **sizes) -> None:
    """Check sizes of a config file.

    Args:
        where: the file, for the error.
        sizes: name -> a number, or a list of them.

    Raises:
        ValueError: one is no whole number in 1..LARGEST.
    """
    for name, value in sizes.items():
        parts = value if isinstance(value, list) and value else [value]
        if not all(type(part) is int and 1 <= part <= LARGEST for part in parts):
            raise ValueError(f"{where}: {name!r} is {value!r}, which is no size")


def check_known(where: str, config: Mapping[str, Any], known: Mapping[str, tuple]) -> None:
    """Check that a config says nothing that would be left out.

    Args:
        where: the file, for the error.
        config: its JSON.
        known: key -> the values that are honoured; None: no value, or one that switches the key off.

    Raises:
        ValueError: it does, by the key and its value.
    """
    for key, values in known.items():
        value = config.get(key) or None
        if value not in list(values):  # a list, in which anything can be looked for
            others = [repr(one) for one in values if one is not None]
            allowed = f"{' or '.join(others)} is" if others else "models without it are"
            raise ValueError(f"{where}: {key!r} is {config.get(key)!r}, and {allowed} what can be used here")


def fetch(source: str, name: str, flag: str = "--model_path", layout: str = "a model's folder") -> Path:
    """The place of a model's file, which is downloaded where the hub's cache lacks it.

    Args:
        source: local folder or hub id.
        name: the file's path in it.
        flag, layout: the option that names the source, and what it should be, for an error.

    Raises:
        ValueError: the file is not to be had; in one line.
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


def is_absent(source: str, name: str) -> bool:
    """Whether a file of a hub id would have to be fetched; not of a local folder."""
    if Path(source).is_dir():
        return False
    from huggingface_hub import try_to_load_from_cache

    return not isinstance(try_to_load_from_cache(source, name), str)


def pipeline_class(source: str, flag: str = "--model_path") -> str | None:
    """`_class_name` of the source's model_index.json; None for a folder without one, and where the hub has none in reach."""
    if Path(source).is_dir() and not (Path(source) / "model_index.json").is_file():
        return None
    try:
        return read_config(source, "model_index.json", flag=flag).get("_class_name")
    except ValueError:
        if Path(source).is_dir():
            raise
        return None  # what is wrong shows when its own files are read


def _hub_problem(source: str, name: str, error: Exception, flag: str, layout: str) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return f"model {source!r} is gated: accept its licence on the hub, then log in or set HF_TOKEN"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"model {source!r} has no {name}: give {layout}"
    reason = "offline, as in a dry run" if constants.HF_HUB_OFFLINE else type(error).__name__
    tiny = f"{'--version' if flag in ('--model_path', '--config') else '--model'} tiny"
    return (
        f"model {source!r} is neither a local folder nor reachable on the hub ({reason}): give a folder with "
        f"{flag}, or work offline with {tiny} --dataset fashion_mnist"
    )


@lru_cache
def commit(source: str, flag: str) -> str:
    """The hub's newest commit of an id, the same at every call. Raises ValueError for an id that is not to be had."""
    import huggingface_hub

    try:
        return str(huggingface_hub.model_info(source, timeout=10).sha)
    except Exception as error:  # the hub's client raises many kinds
        raise ValueError(
            f"{flag} {source} is neither a file or folder nor reachable on the hub ({type(error).__name__})"
        ) from None


def pinned(path: str, flag: str) -> str | None:
    """The hub's newest commit of an id; None for a local file or folder. Raises ValueError as `commit`."""
    return None if Path(path).exists() else commit(path, flag)


def content(path: str, flag: str) -> str:
    """A text that no other content has: the hash of a file or of a folder's weights, or the hub's commit of an id.

    Args:
        path: file, folder or hub id.
        flag: the option that names it, for an error.

    Raises:
        ValueError: it is not to be had.
    """
    place = Path(path)
    if place.is_file():
        return hash_files(place.parent, [place])
    if place.is_dir():
        return hash_files(place, (file for file in place.glob("*") if file.suffix in (".safetensors", ".bin", ".pt")))
    return f"{path} at commit {commit(path, flag)}"


def revision_of(source: str, path: Path) -> str | None:
    """The hub's commit of a cached file of the source, whose name lies below the commit's folder; None for a local folder."""
    return None if Path(source).is_dir() else path.parts[path.parts.index("snapshots") + 1]


def identity(source: str, revision: str | None, parts=(".",), configs_only=()) -> str:
    """A text that no other weights have: the hub's commit, or the hash of what a local folder holds of the parts that are used.

    Args:
        source: local folder or hub id.
        revision: the hub's commit; None for a local folder.
        parts: folders in it.
        configs_only: those of them whose weights are elsewhere.
    """
    if revision:
        variants = sorted(
            {variant for part in parts if part not in configs_only and (variant := variant_of(source, revision, part))}
        )
        return f"{source} at commit {revision}" + (f", variant {' and '.join(variants)}" if variants else "")
    root, texts, weights = Path(source), (".json", ".txt"), (".safetensors", ".bin")
    kinds = {part: texts if part in configs_only else (*texts, *weights) for part in parts}
    return hash_files(root, (p for part in parts for p in (root / part).glob("*") if p.suffix in kinds[part]))


def may_have_weights(source: str, part: str) -> bool:
    """Whether a local folder has files of a part's weights; True for a hub id, which shows when they are fetched."""
    root = Path(source)
    return not root.is_dir() or any(WEIGHTS.fullmatch(path.name) for path in (root / part).glob("*"))


def vae_config(source: str, name: str, flag: str = "--model_path", layout: str = "a model's folder", shift: bool = False) -> dict:
    """The config of an AutoencoderKL or AutoencoderDC.

    Args:
        source, name, flag, layout: as in `read_config`.
        shift: whether its latents may have a shift_factor.

    Returns:
        The JSON, with `latent_channels` in any case, and `downscale`: pixels a side per latent element.

    Raises:
        ValueError: the file is not to be had, or `encoder_of` would not make the latents that such a VAE is trained for.
    """
    dc = _is_dc(read_config(source, name, flag=flag, layout=layout))
    where, blocks = f"{flag} {source}: {name}", "encoder_block_out_channels" if dc else "block_out_channels"
    config = {"latent_channels": 4, "in_channels": 3} | read_config(source, name, {blocks: list}, flag, layout)
    check_sizes(where, **{key: config[key] for key in (blocks, "latent_channels", "in_channels")})
    check_known(where, config, {"_class_name": (None, "AutoencoderKL", "AutoencoderDC")})
    odd = [key for key in ("latents_mean", "latents_std") if config.get(key) not in (None, 0)]
    odd += [] if shift or config.get("shift_factor") in (None, 0) else ["shift_factor"]
    if config["in_channels"] != 3 or odd:
        kind = "this" if shift else "Stable Diffusion's"
        raise ValueError(f"{where} describes no VAE of {kind} kind ({odd[0] if odd else 'in_channels'} is set)")
    scale = config.get("scaling_factor", 1)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ValueError(f"{where}: 'scaling_factor' is {scale!r}, and has to be a number above 0")
    if type(moved := config.get("shift_factor") or 0) not in (int, float) or not math.isfinite(moved):
        raise ValueError(f"{where}: 'shift_factor' is {moved!r}, and has to be a number")
    return config | {"downscale": 2 ** (len(config[blocks]) - 1)}


def _is_dc(config: Mapping) -> bool:
    """Whether this is the deep compression autoencoder of Sana."""
    return config.get("_class_name") == "AutoencoderDC"


def n_parameters(source: str, revision: str | None, part: str) -> int | None:
    """How many numbers a part's weights hold, by the headers of its safetensors files.

    Args:
        source, revision: as in `identity`.
        part: folder in it.

    Returns:
        None where it has no such files, or the hub is out of reach.
    """
    names = {path for path in _files_here(source, revision) if path.parent == Path(part)}
    if revision:
        names |= {path for path in _files_on_hub(source, revision) if path.parent == Path(part)}
    variant = variant_of(source, revision, part)
    files = [path for path in names if (m := WEIGHTS.fullmatch(path.name)) and m["variant"] == variant]
    counts = [_n_numbers(source, revision, path) for path in files if path.suffix == ".safetensors"]
    return sum(n or 0 for n in counts) if counts and None not in counts else None


def _n_numbers(source: str, revision: str | None, path: Path) -> int | None:
    """How many numbers a safetensors file holds, by its header alone; None for one that is damaged, which shows on loading."""
    try:
        if revision:
            import huggingface_hub

            metadata = huggingface_hub.parse_safetensors_file_metadata(source, str(path), revision=revision)
            return sum(math.prod(tensor.shape) for tensor in metadata.tensors.values())
        with open(Path(source) / path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LARGEST_HEADER)))
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except Exception:  # the hub's client raises many kinds, and a damaged file makes of itself whatever it can
        return None


# ---------------------------------------------------------------- weights

# model.safetensors, diffusion_pytorch_model.fp16.bin, model.fp16-00001-of-00002.safetensors
WEIGHTS = re.compile(
    r"(model|pytorch_model|diffusion_pytorch_model)(\.(?P<variant>(?!safetensors|bin)[\w-]+?))?"
    r"(-\d{5}-of-\d{5})?\.(safetensors|bin)"
)


def pretrained(cls: Any, source: str, device: str, **how: Any) -> nn.Module:
    """A model with its weights, in eval mode and without gradients.

    Args:
        cls: its class in diffusers or transformers.
        source: local folder or hub id.
        device: torch's name.
        how: what from_pretrained takes: subfolder, revision, torch_dtype.

    Raises:
        ValueError: weights are missing or damaged.
    """
    part = how.get("subfolder")
    place = "/".join(filter(None, (source, part)))
    variant = variant_of(source, how.get("revision"), part)
    ours = hasattr(cls, "load_config")  # of diffusers, whose errors name the weight
    how |= {} if ours else {"ignore_mismatched_sizes": True}
    try:
        with quiet():
            model, info = cls.from_pretrained(source, output_loading_info=True, variant=variant, **how)
    except Exception as error:  # a damaged file makes of itself whatever the reader runs into
        raise ValueError(f"{place}: its weights are missing or damaged ({cause(error)})") from None
    missing = sorted(info["missing_keys"])
    if missing:  # which transformers would leave at random values
        raise ValueError(f"{place}: {len(missing)} weights are missing, {missing[0]} the first")
    for name, given, wanted in sorted(info["mismatched_keys"]):
        raise ValueError(f"{place}: {name} is {list(given)}, and its config.json wants {list(wanted)}")
    config = cls.load_config(source, subfolder=part, revision=how.get("revision")) if ours else {}
    tell_unused(place, sorted(info["unexpected_keys"]), cls, config)
    return model.to(device).eval().requires_grad_(False)


def tell_unused(place: str, weights: list[str], cls: Any, config: Mapping[str, Any]) -> None:
    """Log one line on weights that a class has no place for, and on entries of a config that one of diffusers has none for."""
    known = inspect.signature(cls.__init__).parameters
    entries = [key for key, value in config.items() if value and not key.startswith("_") and key not in known]
    if weights or entries:
        some = " and ".join(f"{len(names)} {what}, {names[0]} the first," for names, what in
                            ((weights, "weights"), (entries, "entries of its config.json")) if names)  # fmt: skip
        log.warning("Note: %s: %s are not used: its %s has no place for them", place, some, cls.__name__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from telling of weights line by line. What is checked of what they read, so that no warning of theirs is the
    only sign of something:

    - `pretrained`: what is missing or of another shape is an error, what is left out of weights and config is told
      (`tell_unused`);
    - `checkpoint`: every name and shape of a single file fits, or is refused; its configs, as of `pretrained`;
    - `lora`: every weight of the file is of a module that was changed, and no other adapter's;
    - `textual_inversion`, `supervised`: tensors are read alone, and every one is checked by its name and shape.
    """
    import diffusers
    import transformers

    libraries = [diffusers.utils.logging, transformers.utils.logging]
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, level in zip(libraries, before, strict=True):
            library.set_verbosity(level)


def cause(error: Exception) -> str:
    """An exception of a library on one line, as the cause within an error message."""
    return f"{type(error).__name__}: {textwrap.shorten(one_line(error), 200)}"


def variant_of(source: str, revision: str | None, part: str | None = None) -> str | None:
    """`fp16` where a part's weights are saved as that variant only (model.fp16.safetensors); None where they have plain names.

    Args:
        source, revision: as in `identity`.
        part: folder in it; None: the source itself.

    Raises:
        ValueError: there are several variants that are not the same weights in other precisions.
    """
    variants = _variants(_files_here(source, revision), part)
    if revision and None not in variants:  # the cache may hold others than the hub, or none yet
        variants = _variants(_files_on_hub(source, revision), part) or variants
    named = {variant for variant in variants if variant is not None}
    if len(named) < len(variants) or not named:
        return None
    same = [precision for precision in PRECISIONS if precision in named]
    if not same and len(named) > 1:
        place, several = "/".join(filter(None, (source, part))), ", ".join(sorted(named))
        raise ValueError(f"{place} has weights only as the variants {several}: keep one of them, or give one the plain name")
    return same[0] if same else named.pop()


def _variants(paths: Iterable[Path], part: str | None) -> set[str | None]:
    """The variants in the names of a part's files of weights; None for plain names."""
    folder = Path(part or ".")
    matches = (WEIGHTS.fullmatch(path.name) for path in paths if path.parent == folder)
    return {match["variant"] for match in matches if match}


def _files_here(source: str, revision: str | None) -> list[Path]:
    """The files of a local folder, or of what the hub's cache holds of an id; relative to it, two levels deep."""
    root = Path(source)
    if revision:
        import huggingface_hub

        root = Path(huggingface_hub.snapshot_download(source, revision=revision, local_files_only=True))
    return [path.relative_to(root) for path in (*root.glob("*"), *root.glob("*/*"))]


@lru_cache
def _files_on_hub(source: str, revision: str) -> tuple[Path, ...]:
    """The files of a repository; none where the hub is out of reach."""
    import huggingface_hub

    try:
        info = huggingface_hub.model_info(source, revision=revision, timeout=10)
    except Exception:  # of many kinds; what is cached is then what there is
        return ()
    return tuple(Path(file.rfilename) for file in info.siblings or ())


def vae_class(config: Mapping) -> str:
    """The name in diffusers of the class of a VAE with this config."""
    return "AutoencoderDC" if _is_dc(config) else "AutoencoderKL"


def vae_encoder(source: str, device: str, **where: Any) -> Callable[[Tensor], Tensor]:
    """Load a VAE in float32; its encoder (`encoder_of`).

    Args:
        source: local folder or hub id.
        device: torch's name.
        where: subfolder and revision, as from_pretrained takes them.

    Raises:
        ValueError: its config or weights are missing or damaged.
    """
    import diffusers
    import torch

    name = "/".join(filter(None, (where.get("subfolder"), "config.json")))
    cls = getattr(diffusers, vae_class(read_config(source, name)))
    return encoder_of(pretrained(cls, source, device, torch_dtype=torch.float32, **where), device)


def encoder_of(vae: Any, device: str) -> Callable[[Tensor], Tensor]:
    """The encoder of a VAE: image [3,H,W] in [-1,1] -> float32 [C,h,w] on the device, by the VAE's own shift and scale.

    The latent is the mean of the posterior; Sana's autoencoder has no posterior, but one latent.
    """
    import torch

    shift, scale = vae.config.get("shift_factor") or 0, vae.config.scaling_factor

    @torch.inference_mode()
    def encode(image):
        encoded = vae.encode(image[None].to(device))
        latent = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mean
        return (latent[0] - shift) * scale

    return encode


def decoder_of(vae: Any, device: str) -> Callable[[Tensor], Tensor]:
    """The inverse of `encoder_of`: latent float32 [C,h,w] -> image [3,H,W] on the device, about in [-1,1]."""
    import torch

    shift, scale = vae.config.get("shift_factor") or 0, vae.config.scaling_factor

    @torch.inference_mode()
    def decode(latent):
        return vae.decode(latent[None].to(device) / scale + shift).sample[0]

    return decode
