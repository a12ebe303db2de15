"""Sources of weights: one function finds them, one file a family. Nothing heavy is imported before weights are loaded.

A source knows, before any weights are read: `default_size` in pixels, `n_levels` of its law of noise, `space` of its errors,
`latent_shape(img_size)`, `identity()` of the weights, `describe()` for a person; and `load(device, dtype, compile, plain)` gives
its `Denoiser`. It may also know `tokens(prompts)`, which shows prompts that it cannot tell apart, `largest_maps(img_size)`, which
shows sizes that no memory holds, and `memory(dtype)` of its weights.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffusion.models import devices, hub, own, single_file, texts, tokens
from diffusion.models.dit import DiTSource
from diffusion.models.flux import Flux
from diffusion.models.pixart import PixArt
from diffusion.models.sana import Sana
from diffusion.models.sd3 import StableDiffusion3
from diffusion.models.sdxl import StableDiffusionXL
from diffusion.models.stable_diffusion import StableDiffusion
from diffusion.models.weights import Weights
from diffusion.settings import AS_IT_IS, Asked

# A family of text-to-image models is a class with VERSIONS (name -> folder or hub id), PIPELINES (diffusers' names of its
# pipelines) and find(folder or hub id, settings.Asked) -> source; FLOW where it heeds Asked.levels, SINGLE_FILE where it heeds
# Asked.file. The first one is also asked about what names no pipeline.
TEXT_TO_IMAGE = [StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, PixArt, Sana]
EMPTY_PROMPT = texts.NoPrompt()  # of guidance; a class-conditional source has `null_class` for it


def text_to_image(version: str, model_path: str | None = None, asked: Asked = AS_IT_IS, device="cpu", dtype="float32"):
    """The source of a version's weights, or of those in model_path, a local folder, hub id, single or Python file.

    A Python file is run here, for images of the size asked for, on the device and with the dtype given. Raises ValueError when
    the version has no known weights, and when the model is neither local nor reachable.
    """
    if own.is_own(model_path):
        _refuse_idle(model_path, asked)
        return own.OwnModel.find(model_path, asked.img_size, device, dtype)
    family, source, asked = _found(version, model_path, asked)
    if asked.levels != "own" and not getattr(family, "FLOW", False):
        raise ValueError(f"--levels {asked.levels}: {source} is no flow, and knows the levels of its training only")
    return family.find(source, asked)


def _found(version: str, model_path: str | None, asked: Asked):
    """(family, folder or hub id, what is asked of it). Raises ValueError as `text_to_image`."""
    if single_file.is_single(model_path):
        single_file.check(model_path)
        config = config_of(version, model_path, asked.config)
        return _family_of_file(model_path, config), config, replace(asked, file=model_path)
    if asked.config:
        raise ValueError(f"--config {asked.config} is for a single file of weights, and none is given with --model_path")
    if model_path:
        return family_of(model_path), model_path, asked
    return *_known(version, "weights with --model_path"), asked


def _known(version: str, lacking: str):
    """(family, folder or hub id) of a version. Raises ValueError for one that has none; lacking: what to name then."""
    known = {name: (family, source) for family in TEXT_TO_IMAGE for name, source in family.VERSIONS.items()}
    if version not in known:
        raise ValueError(f"--version {version} is none of {', '.join(known)}: name its {lacking}")
    return known[version]


def config_of(version: str, model_path: str | None, config: str | None) -> str | None:
    """Where the configs of a single file are: as given, or the version's; None for any other model."""
    if not single_file.is_single(model_path) or own.is_own(model_path):
        return None
    return config or _known(version, "configs with --config")[1]


def _family_of_file(file: str, config: str):
    """The family of a single file by its configs. Raises ValueError where diffusers does not know such files of it."""
    family = family_of(config, "--config")
    if not getattr(family, "SINGLE_FILE", False):
        known = ", ".join(pipeline for one in TEXT_TO_IMAGE if getattr(one, "SINGLE_FILE", False) for pipeline in one.PIPELINES)
        raise ValueError(f"--model_path {file}: single files are read of {known}, and --config {config} is none of them")
    return family


def _refuse_idle(model_path: str, asked: Asked) -> None:
    """Raises ValueError for what nobody but a Python file itself can do to its model."""
    given = {"--lora": asked.loras, "--embedding": asked.embeddings, "--config": asked.config}
    given |= {"--text_encoders": asked.text_encoders != "all", "--levels": asked.levels != "own"}
    flag = next((flag for flag, value in given.items() if value), None)
    if flag:
        raise ValueError(f"{flag} does nothing to the model in {model_path}, which is its own: do it there")


def family_of(model_path: str, flag: str = "--model_path"):
    """The family of a pipeline by its model_index.json. Raises ValueError for a pipeline of none. flag: that names it"""
    name = hub.pipeline_class(model_path, flag)
    found = next((family for family in TEXT_TO_IMAGE if name in family.PIPELINES), None)
    if found is None and isinstance(name, str) and not name.startswith("StableDiffusion"):
        known = ", ".join(pipeline for family in TEXT_TO_IMAGE for pipeline in family.PIPELINES)
        own_file = "load it in a Python file of your own (docs/own_model.md)"
        raise ValueError(f"{flag} {model_path} is a {name}, and the known ones are {known}: {own_file}")
    return found or TEXT_TO_IMAGE[0]


def class_conditional(model: str, model_path: str | None = None, img_size: int | None = None, vae_path: str | None = None,
                      device="cpu", dtype="float32", expect: bool = False):  # fmt: skip
    """The source of a class-conditional model's weights, or a Python file as of `text_to_image`. Raises ValueError or OSError as
    `DiTSource.find`, which `expect` is for."""
    if own.is_own(model_path):
        if vae_path:
            raise ValueError(f"--vae_path is for a DiT: {model_path} encodes images itself")
        return own.OwnModel.find(model_path, img_size, device, dtype)
    return DiTSource.find(model, model_path, img_size, vae_path, expect)


def load(source, device: str, dtype: str, compile: bool = False, space: str | None = None):
    """The source's Denoiser. space: of its errors, None: the model's own, or what its folder states.

    Raises ValueError or OSError for weights that do not do, and for a space that they cannot give.
    """
    from diffusion.models.denoiser import in_space

    denoiser = source.load(device, dtype, compile)
    space = space or getattr(source, "stated_space", None)
    return denoiser if space is None else in_space(denoiser, space)


def unfetched(source) -> list[str]:
    """What a run fetches before it begins, of a source whose config files are not here, as shapes.expected gives it."""
    if hasattr(source, "unfetched"):
        return source.unfetched
    place = getattr(source, "source", None)
    return [place] if place and getattr(source, "revision", "") is None and not Path(place).is_dir() else []


def memory_told(source, dtype: str) -> str | None:
    """What the weights take as they are loaded, for a person; None where their files do not say, or are not here."""
    if unfetched(source):
        return None
    parts = source.memory(dtype) if hasattr(source, "memory") else {}
    encoders = {part: n for part, n in parts.items() if part.startswith("text_encoder")}
    kept = sum(parts.values()) - sum(encoders.values())
    if not kept:
        return None
    size, largest = told_size(kept), told_size(max(encoders.values(), default=0))
    return f"{size} of weights ({dtype} network, float32 VAE), and before that text encoders, up to {largest} at a time"


def told_size(n_bytes: int) -> str:
    """Of memory, for a person."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


# ---------------------------------------------------------------- checks before weights are read


def embeddings_notice(source, prompts: Sequence[str]) -> str | None:
    """A line on embeddings whose tokens no prompt has."""
    weights = getattr(source, "weights", None)
    return weights.embeddings.notice(prompts) if isinstance(weights, Weights) else None


def check_prompts(source, prompts: Sequence[str], labels: Sequence[int], names: Sequence[str], where="") -> str | None:
    """A line on prompts that are cut. Raises ValueError for prompts of two classes that are one and the same to the model.

    where: the flags that the prompts come from, for the error
    """
    if not hasattr(source, "tokens"):
        return None
    found = source.tokens(prompts)
    try:
        tokens.check_classes(found, prompts, labels, names)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else error) from None
    return found.notice()


def check_captions(source, captions: Sequence[tuple[str, str]], names: Sequence) -> list[str]:
    """Lines on captions that are cut, and on examples whose two captions are one and the same to the model. Raises ValueError
    where they are in all examples. names: of the examples."""
    if not hasattr(source, "tokens"):
        return []
    found = source.tokens([caption for pair in captions for caption in pair])
    return [line for line in (tokens.pairs_notice(found, names), found.notice()) if line]


def check_memory(source, img_size: int, device: str, dtype: str, batch_size: int | str, evaluations: int) -> None:
    """Raises ValueError where the first feature maps of an image, or of a batch for the network, cannot fit on the device.

    The first block holds three maps at once: its input, for the shortcut, what was normalised, and what is activated; the image
    [3,H,W] stays beside them. That is a lower bound, so that nothing is refused that might run. Fewer inputs are tried by the
    kernel itself where CUDA says that memory is short.
    """
    if not hasattr(source, "largest_maps"):
        return
    encoder, network = source.largest_maps(img_size)
    smaller = f"take a smaller --img_size than {img_size}"
    devices.check_memory(3 * 4 * (encoder + img_size**2), device, f"an image of {img_size} pixels a side", smaller)
    bytes_per_input = 3 * network * (4 if dtype == "float32" else 2)
    devices.check_memory(bytes_per_input, device, f"one network input of {img_size} pixels a side", smaller)
    if device.startswith("cpu") and batch_size != "auto":
        n_inputs = min(batch_size, evaluations)
        what = f"a batch of {n_inputs} network inputs"
        devices.check_memory(n_inputs * bytes_per_input, device, what, f"take a smaller --batch_size, or {smaller[5:]}")
