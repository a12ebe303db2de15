"""Sources of weights: one function finds them, one file a family. Nothing heavy is imported before weights are loaded.

`source.Source` is what is known of a model before its weights are read; its `load` gives the `Denoiser`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.models import random_weights
from diffusion.models.families import custom
from diffusion.models.families.dit import DiTSource
from diffusion.models.families.table import FAMILIES
from diffusion.models.loading import checkpoint, hub, text_encoders, tokens
from diffusion.models.source import Checkpoint, Family, Source
from diffusion.models.speed import devices
from diffusion.settings import DEFAULT_OPTIONS, ModelOptions

if TYPE_CHECKING:  # which imports torch
    from diffusion.models.denoiser import Denoiser

# A user's own families are added to it
TEXT_TO_IMAGE: list[Family] = [*FAMILIES]
CONFIGS = "configs with --config"  # what a single file needs
EMPTY_PROMPT = text_encoders.NoPrompt()  # of guidance; a class-conditional source has `null_class` for it


def text_to_image(version: str, model_path: str | None = None, options: ModelOptions = DEFAULT_OPTIONS, device: str = "cpu",
                  dtype: str = "float32") -> Source:  # fmt: skip
    """Find a text-to-image model. Its weights are not read, but a Python file is run here.

    Args:
        version: a name in VERSIONS of a family, such as "2-0"; only a label where model_path is given.
        model_path: local folder, hub id, single file of weights or Python file; None: the version's own weights.
        options: image size, text encoders, levels, LoRAs, embeddings.
        device, dtype: torch's names, which a Python file is given.

    Raises:
        ValueError: the version has no known weights, the model is neither local nor reachable, or it cannot do what is requested.
    """
    if custom.is_python_file(model_path):
        _refuse_idle(model_path, options)
        return custom.CustomModel.find(model_path, options.img_size, device, dtype)
    family, source, options = _find_family(version, model_path, options)
    if options.levels != "own" and not family.FLOW:
        raise ValueError(f"--levels {options.levels}: {source} is no flow, and knows the levels of its training only")
    return family.find(source, options)


def _find_family(version: str, model_path: str | None, options: ModelOptions) -> tuple[Family, str, ModelOptions]:
    """(family, folder or hub id, options with the single file). Raises ValueError as `text_to_image`."""
    if model_path:
        _refuse_network_alone(Path(model_path))
    if checkpoint.is_single(model_path):
        checkpoint.check(model_path)
        config = options.config or _known(version, CONFIGS)[1]
        return _family_of_file(model_path, config), config, replace(options, file=model_path)
    if options.config:
        raise ValueError(f"--config {options.config} is for a single file of weights, and none is given with --model_path")
    if model_path:
        return family_of(model_path), model_path, options
    return *_known(version, "weights with --model_path"), options


def _refuse_network_alone(place: Path) -> None:
    """Raises ValueError for what a training leaves at a checkpoint: a network without the other parts of its pipeline."""
    parts = [part for family in TEXT_TO_IMAGE if (part := getattr(family, "NETWORK", None))]  # one's own need not have it
    folder = place.parent if place.name.startswith("diffusion_pytorch_model") else place
    inside = next((part for part in parts if (folder / part / "config.json").is_file()), None)
    part = inside or next((part for part in parts if folder.name.startswith(part) and (folder / "config.json").is_file()), None)
    alone = not (folder / "model_index.json").is_file() and not (folder / "vae").is_dir()
    if part and alone and not (folder.parent / "model_index.json").is_file():
        network = folder / part if inside else folder
        raise ValueError(f"--model_path {place} is a network alone: copy its base model's folder, with {network} as its {part}")


def _known(version: str, lacking: str) -> tuple[Family, str]:
    """(family, folder or hub id) of a version. Raises ValueError for one that has none; lacking: what to name then."""
    known = {name: (family, source) for family in TEXT_TO_IMAGE for name, source in family.VERSIONS.items()}
    if version not in known:
        raise ValueError(f"--version {version} is none of {', '.join(known)}: name its {lacking}")
    return known[version]


def config_of(version: str, model_path: str | None, config: str | None) -> str | None:
    """The folder or hub id of the configs of a single file of weights; None for a model of any other kind.

    Args:
        version: whose configs are taken where config is None.
        model_path, config: as given with --model_path and --config.

    Raises:
        ValueError: the version is not known.
    """
    if not checkpoint.is_single(model_path) or custom.is_python_file(model_path):
        return None
    return config or _known(version, CONFIGS)[1]


def _family_of_file(file: str, config: str) -> Family:
    """The family of a single file by its configs. Raises ValueError where diffusers does not know such files of it."""
    family = family_of(config, "--config")
    if not family.SINGLE_FILE:
        known = ", ".join(pipeline for one in TEXT_TO_IMAGE if one.SINGLE_FILE for pipeline in one.PIPELINES)
        raise ValueError(f"--model_path {file}: single files are read of {known}, and --config {config} is none of them")
    return family


def _refuse_idle(model_path: str, options: ModelOptions) -> None:
    """Raise ValueError for an option that only the Python file itself could fulfil."""
    given: dict[str, object] = {"--lora": options.loras, "--embedding": options.embeddings, "--config": options.config}
    given |= {"--text_encoders": options.text_encoders != "all", "--levels": options.levels != "own"}
    flag = next((flag for flag, value in given.items() if value), None)
    if flag:
        raise ValueError(f"{flag} does nothing to the model in {model_path}, which is its own: do it there")


def family_of(model_path: str, flag: str = "--model_path") -> Family:
    """The family of a pipeline by its model_index.json.

    Args:
        model_path: local folder or hub id.
        flag: the option that names it, for an error.

    Raises:
        ValueError: the pipeline is of no family.
    """
    name = hub.pipeline_class(model_path, flag)
    family = next((family for family in TEXT_TO_IMAGE if name in family.PIPELINES), None)
    if family is None and isinstance(name, str) and not name.startswith("StableDiffusion"):
        known = ", ".join(pipeline for family in TEXT_TO_IMAGE for pipeline in family.PIPELINES)
        advice = "load it in a Python file of your own (docs/own_model.md)"
        raise ValueError(f"{flag} {model_path} is a {name}, and the known ones are {known}: {advice}")
    return family or TEXT_TO_IMAGE[0]


def class_conditional(model: str, model_path: str | None = None, img_size: int | None = None, vae_path: str | None = None,
                      device: str = "cpu", dtype: str = "float32", expect: bool = False) -> Source:  # fmt: skip
    """Find a class-conditional model. Its weights are not read, but a Python file is run here.

    Args:
        model: a published shape of DiT, such as "DiT-XL/2", or "tiny".
        model_path: checkpoint, diffusers folder or Python file; None: the published weights.
        img_size: pixels a side; None: the model's own.
        vae_path: local folder or hub id of a DiT's VAE; None: the published one.
        device, dtype: torch's names, which a Python file is given.
        expect: as in `DiTSource.find`.

    Raises:
        ValueError, OSError: a name is unknown, a size does not fit, a file is not there, or a Python file fails.
    """
    if custom.is_python_file(model_path):
        if vae_path:
            raise ValueError(f"--vae_path is for a DiT: {model_path} encodes images itself")
        return custom.CustomModel.find(model_path, img_size, device, dtype)
    return DiTSource.find(model, model_path, img_size, vae_path, expect)


def load(source: Source, device: str, dtype: str, compile: bool = False, space: str | None = None) -> Denoiser:
    """The source's Denoiser, in the space that errors are taken in.

    Args:
        source: of the weights.
        device, dtype, compile: as in `Source.load`.
        space: of settings.SPACES; None: what the model's folder states, else the model's own.

    Raises:
        ValueError, OSError: the weights are missing or damaged, or cannot give the space.
    """
    from diffusion.models.denoiser import in_space

    denoiser = source.load(device, dtype, compile)
    space = space or source.stated_space
    return denoiser if space is None else in_space(denoiser, space)


def memory_message(source: Source, dtype: str) -> str | None:
    """A line on the memory that the weights take as they are loaded; None where their files do not say, or are not here.

    Args:
        source: of the weights.
        dtype: in which they are loaded, one of settings.DTYPES.
    """
    if source.unfetched:
        return None
    parts = source.memory(dtype)
    encoders = {part: n for part, n in parts.items() if part.startswith("text_encoder")}
    kept = sum(parts.values()) - sum(encoders.values())
    if not kept:
        return None
    size, largest = format_bytes(kept), format_bytes(max(encoders.values(), default=0))
    return f"{size} of weights ({dtype} network, float32 VAE), and before that text encoders, up to {largest} at a time"


def format_bytes(n_bytes: int) -> str:
    """Memory in decimal GB, or MB below a tenth of one, with one digit after the point.

    Args:
        n_bytes: how many.
    """
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


# ---------------------------------------------------------------- checks before weights are read


def check_prompts(source: Checkpoint, prompts: Sequence[str], labels: Sequence[int], names: Sequence[str],
                  where: str = "", published: bool = False) -> str | None:  # fmt: skip
    """Check that the model can tell the prompts of different classes apart.

    Args:
        source: of the weights.
        prompts, labels, names: of K candidates: what each reads, its class, and the name of its class.
        where: the flags that the prompts come from, for the error.
        published: as in `tokens.check_classes`.

    Returns:
        A line on prompts that are cut at the model's limit, or shared by two classes of a published list; None where none is.

    Raises:
        ValueError: two classes have the same tokens.
    """
    ids = source.tokens(prompts)
    if ids is None:
        return None
    try:
        shared = tokens.check_classes(ids, prompts, labels, names, published)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else error) from None
    return "; ".join(filter(None, (shared, ids.notice()))) or None


def check_captions(source: Checkpoint, captions: Sequence[tuple[str, str]], names: Sequence[Hashable]) -> list[str]:
    """Check that the model can tell the two captions of an example apart.

    Args:
        source: of the weights.
        captions, names: of N examples.

    Returns:
        Lines on examples whose captions are one and the same to the model, and on captions that are cut.

    Raises:
        ValueError: no example has captions that differ to the model.
    """
    ids = source.tokens([caption for pair in captions for caption in pair])
    if ids is None:
        return []
    return [line for line in (tokens.pairs_notice(ids, names), ids.notice()) if line]


def check_memory(source: Source, img_size: int, device: str, dtype: str, batch_size: int | str, evaluations: int) -> None:
    """Check that the first feature maps of an image, and of a batch for the network, fit on the device; on CUDA also the weights
    of a network of a published shape with one input (`random_weights.call_bytes`).

    The first block holds three maps at once: its input, for the shortcut, what was normalised, and what is activated; the image
    [3,H,W] stays beside them. Both are lower bounds, so that nothing is refused that might run. Fewer inputs are tried by the
    kernel itself where CUDA says that memory is short.

    Args:
        source: of the weights.
        img_size: pixels a side.
        device, dtype: torch's names.
        batch_size: network inputs per call, or "auto".
        evaluations: network evaluations per image, of which a batch cannot hold more.

    Raises:
        ValueError: they cannot fit.
    """
    smaller = f"take a smaller --img_size than {img_size}"
    counted = random_weights.call_bytes(source, img_size, dtype, 1)
    if counted is not None and device.startswith("cuda"):
        what = f"one network input of {img_size} pixels a side, with the weights in {dtype},"
        advice = f"{smaller}, a --dtype of 16 bits, or a smaller model"
        devices.check_memory(counted, device, what, advice)
    maps = source.largest_maps(img_size)
    if maps is None:
        return
    encoder, network = maps
    devices.check_memory(3 * 4 * (encoder + img_size**2), device, f"an image of {img_size} pixels a side", smaller)
    bytes_per_input = 3 * network * (4 if dtype == "float32" else 2)
    devices.check_memory(bytes_per_input, device, f"one network input of {img_size} pixels a side", smaller)
    if device.startswith("cpu") and isinstance(batch_size, int):
        n_inputs = min(batch_size, evaluations)
        what = f"a batch of {n_inputs} network inputs"
        devices.check_memory(n_inputs * bytes_per_input, device, what, f"take a smaller --batch_size, or {smaller[5:]}")


def likely_batch(source: Source, img_size: int, device: str, dtype: str) -> int:
    """The network inputs per call that --batch_size auto tries first on CUDA: the largest power of two that fits beside the
    weights by `random_weights.call_bytes`, at least 1, which it also is for a network of no published shape.

    Args:
        source: of the weights.
        img_size: side of the image, in pixels.
        device, dtype: where and in what they are.
    """
    most = devices.memory(device) if device.startswith("cuda") else None
    weights, one = (random_weights.call_bytes(source, img_size, dtype, n) for n in (0, 1))
    if most is None or weights is None or one is None:
        return 1
    return 1 << max(1, (most - weights) // (one - weights)).bit_length() - 1
