"""What is known of a DiT checkpoint before its weights are read: the published shapes, its file, its config.json.

Imports nothing heavy, so that names and sizes are checked at once.
"""

import json
from pathlib import Path

URL = "https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-{size}x{size}.pt"
PUBLISHED = "DiT-XL/2"  # the only shape with published weights,
PUBLISHED_SIZES = (256, 512)  # at these image sizes in pixels
VAE_FACTOR = 8  # image pixels per latent element
CONFIG_KEYS = ("input_size", "depth", "hidden_size", "patch_size", "num_heads", "num_classes")
SHIFT_KEY = "frequency_shift"  # argument of `DiT`, and entry of a config.json of either format
# keys of a DiTTransformer2DModel's config that say what every DiT is; another value would be another network
DIFFUSERS_FIXED = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}
DIFFUSERS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
PRECISIONS = ("fp32", "bf16", "fp16")  # diffusers' variants that are the same weights, the best first
LARGEST = {"depth": 1000, "": 10**6}  # of a size in a config.json: more is a mistake that arithmetic would not survive

# Paper, table 1: size -> depth, hidden size, attention heads
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}

# The twelve published shapes: "DiT-XL/2" -> keyword arguments of `DiT`
SHAPES = {
    f"DiT-{size}/{patch}": {"depth": depth, "hidden_size": width, "num_heads": heads, "patch_size": patch}
    for size, (depth, width, heads) in SIZES.items()
    for patch in (2, 4, 8)
}


def locate(path, model, image_size, folder="pretrained_models"):
    """The checkpoint file that `load_dit` will read: what a path means, or where the published weights are kept (2.7 GB).

    A path is a file, or a diffusers folder (the pipeline's, or the `transformer` folder in it). Nothing is downloaded: a file of
    the published weights may not be there yet.
    """
    if path is None:
        if model != PUBLISHED or image_size not in PUBLISHED_SIZES:
            sizes = " and ".join(map(str, PUBLISHED_SIZES))
            raise ValueError(f"no published weights of {model} at {image_size} px ({PUBLISHED} at {sizes} px has): give a path")
        return Path(folder) / URL.format(size=image_size).rpartition("/")[2]
    path = Path(path)
    if path.is_file():
        return path
    for folder in (path / "transformer", path):
        for name in DIFFUSERS_FILES:
            if (folder / name).is_file():
                return folder / name
        if folder.is_dir() and (file := only_variant(folder)):
            return file
    raise FileNotFoundError(f"{path}: neither a checkpoint file nor a folder with {' or '.join(DIFFUSERS_FILES)}")


def only_variant(folder):
    """The checkpoint of a folder that has it only as a variant, such as diffusion_pytorch_model.fp16.safetensors; None without.

    Raises ValueError for several variants of which none is a precision: these may be different weights.
    """
    stem, formats = DIFFUSERS_FILES[0].partition(".")[0], [name.rpartition(".")[2] for name in DIFFUSERS_FILES]
    variants = {(path.suffixes[0][1:], path.suffix[1:]): path for path in sorted(folder.glob(f"{stem}.*.*"))}
    variants = {key: path for key, path in variants.items() if key[1] in formats and len(path.suffixes) == 2 and path.is_file()}
    kinds = {variant for variant, _ in variants}
    variant = next((name for name in PRECISIONS if name in kinds), None) or (kinds.pop() if len(kinds) == 1 else None)
    if kinds and variant is None:
        raise ValueError(f"{folder}: several variants ({', '.join(sorted(kinds))}) and no {DIFFUSERS_FILES[0]}: keep one of them")
    return next((variants[variant, form] for form in formats if (variant, form) in variants), None)


def default_size(path):
    """Pixels a side that the config.json beside this checkpoint was made for, or the published 256."""
    config_file = locate(path, PUBLISHED, 256).parent / "config.json"
    return read_config(config_file)[0]["input_size"] * VAE_FACTOR if config_file.is_file() else 256


def architecture(file, model, image_size):
    """-> (keyword arguments of `DiT`, whether the weights have diffusers' names), from config.json or the published shapes."""
    config_file = file.parent / "config.json"
    if config_file.is_file():
        config, in_diffusers_names = read_config(config_file)
    elif model in SHAPES:
        config, in_diffusers_names = {**SHAPES[model], "input_size": image_size // VAE_FACTOR}, False
    else:
        raise ValueError(f"{model} is not one of {', '.join(SHAPES)}, and there is no {config_file} that describes it")
    if config["input_size"] != image_size // VAE_FACTOR:
        raise ValueError(wrong_size(config_file, config["input_size"], image_size // VAE_FACTOR))
    return config, in_diffusers_names


def read_config(config_file):
    """A config.json of ours or of diffusers -> (keyword arguments of `DiT`, whether it is diffusers')."""
    try:
        raw = json.loads(config_file.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError(f"it holds no JSON object, but a {type(raw).__name__}")
        is_diffusers = "_class_name" in raw
        config = diffusers_config(raw) if is_diffusers else {key: raw[key] for key in CONFIG_KEYS}
        if any(type(value) is not int or value < 1 for value in config.values()):
            raise ValueError(f"sizes have to be positive integers, not {config}")
        if large := [key for key, value in config.items() if value > LARGEST.get(key, LARGEST[""])]:
            raise ValueError(f"{large[0]!r} is {config[large[0]]}, which is no size")
        width, side = config["hidden_size"], config["input_size"]
        if width % config["num_heads"] or width % 4 or side % config["patch_size"]:
            raise ValueError(f"sizes do not divide: hidden_size by num_heads and by 4, input_size by patch_size, of {config}")
        return config | stated_shift(raw), is_diffusers
    except KeyError as error:
        raise ValueError(f"{config_file}: no {error} in it") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{config_file}: {brief(error)}") from None


def stated_shift(raw):
    """The entry of a config.json on the frequencies of the timestep, as a keyword argument of `DiT`; {} where there is none."""
    if SHIFT_KEY in raw and (type(raw[SHIFT_KEY]) is not int or raw[SHIFT_KEY] not in (0, 1)):
        raise ValueError(f"{SHIFT_KEY} is 0 (published) or 1 (diffusers), not {raw[SHIFT_KEY]!r}")
    return {SHIFT_KEY: raw[SHIFT_KEY]} if SHIFT_KEY in raw else {}


def diffusers_config(raw):
    """The config of a DiTTransformer2DModel, or of the Transformer2DModel that older conversions name, as ours."""
    other = next((key for key, value in DIFFUSERS_FIXED.items() if raw.get(key, value) != value), None)
    if other:
        raise ValueError(f"{other!r} is {raw[other]!r}, and that of a DiT is {DIFFUSERS_FIXED[other]!r}")
    heads = raw["num_attention_heads"]
    return {
        "input_size": raw["sample_size"],
        "depth": raw["num_layers"],
        "hidden_size": heads * raw["attention_head_dim"],
        "patch_size": raw["patch_size"],
        "num_heads": heads,
        "num_classes": raw["num_embeds_ada_norm"],
        "in_channels": raw["in_channels"],
    }


def wrong_size(file, has, requested):
    """The complaint about latents of another side."""
    return f"{file}: made for {has * VAE_FACTOR} px images, not for {requested * VAE_FACTOR} px ones"


def brief(error):
    """The first sentence of an exception's message, or its type where it has none.

    What torch says after that is advice to load without weights_only, which would run code from the file.
    """
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0].rstrip(".")
