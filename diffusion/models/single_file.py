"""A single checkpoint file in its authors' layout: which parts it holds, checked by name and shape; diffusers converts them.

Configs, tokenizers and the law of noise are in no such file: they are those of a pipeline.
"""

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffusion.models import hub

FLAG, CONFIG = "--model_path", "--config"
SUFFIXES = (".safetensors", ".ckpt")
NETWORK = "model.diffusion_model."  # which files of a transformer alone leave out
OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.")
CLIP_L, T5 = "text_encoders.clip_l.transformer.", "text_encoders.t5xxl.transformer."
OTHERS = {  # what names begin with -> part; T5's place is another in every pipeline
    "first_stage_model.": "vae",
    "vae.": "vae",
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    **dict(zip(OPEN_CLIP, ("text_encoder", "text_encoder_2"), strict=True)),
    CLIP_L: "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
}
T5_PARTS = {"StableDiffusion3Pipeline": "text_encoder_3", "FluxPipeline": "text_encoder_2"}
# what training leaves beside the weights that are used: its average, its schedule, its loss, CLIP's temperature
BESIDE = re.compile(r"model_ema\..*|denoiser\..*|first_stage_model\.loss\..*|(.*\.)?(logit_scale|position_ids)|[^.]+")


def is_single(model_path: str | None) -> bool:
    """Whether this names a file of weights: anything that is a file, or is called like one."""
    place = Path(model_path or ".")
    return place.is_file() or (place.suffix in SUFFIXES and not place.is_dir())


def name_of(model_path: str) -> str:
    """What run folders are called by it."""
    return Path(model_path).stem


def check(path: str) -> None:
    """Raises ValueError for a file that is not there, or holds no model's weights."""
    names = _read(path)
    if any(".lora" in name or "lora_" in name for name in names):
        raise ValueError(f"{FLAG} {path} is a LoRA, and no model: give it with --lora")
    if not names:
        raise ValueError(f"{FLAG} {path} holds no weights")


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint file.

    pipeline: its class in diffusers; network: folder of the denoiser in it; known: folders of all models that it may have
    source: folder or hub id of its configs
    """

    path: str
    pipeline: str
    network: str
    known: tuple[str, ...]
    source: str

    @cached_property
    def parts(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Part -> name in the file -> shape. Raises ValueError, by name, for weights of no part of this pipeline."""
        shapes = {name: tuple(tensor.shape) for name, tensor in _read(self.path).items()}
        alone = self.network != "unet" and not any(name.startswith(NETWORK) for name in shapes)
        found, stray = {}, []
        for name, shape in shapes.items():
            part = self._part_of(name, alone)
            if part in self.known:
                found.setdefault(part, {})[name] = shape
            elif not BESIDE.fullmatch(name):
                stray.append(name)
        if stray or self.network not in found:
            wrong = f"{_some(stray)} of no part" if stray else f"no weights of the {self.network}"
            its_own = f"which {CONFIG} {self.source} is: give its own configs"
            raise ValueError(f"{FLAG} {self.path} holds {wrong} of a {self.pipeline}, {its_own}")
        return found

    def _part_of(self, name: str, alone: bool) -> str | None:
        """None for what is no weight of a part. alone: whether what begins like no other part is the network's."""
        if BESIDE.fullmatch(name) and not (alone and "." not in name):
            return None
        if name.startswith(T5):
            return T5_PARTS.get(self.pipeline)
        other = next((part for prefix, part in OTHERS.items() if name.startswith(prefix)), None)
        return other or (self.network if alone or name.startswith(NETWORK) else None)

    def n_parameters(self, part: str) -> int:
        """Numbers in its weights of a part."""
        return sum(map(math.prod, self.parts[part].values()))

    def check(self, classes: Mapping[str, Callable], config_of: Callable) -> None:
        """By names and shapes alone. classes: part -> its class, of those in use and in the file; config_of: part -> its config.

        Raises ValueError, by name, for weights that a part lacks or does not know.
        """
        import torch

        for part, cls in classes.items():
            config, names = config_of(part), self.parts[part].items()
            with self._told(part):
                _, strange, lacking = _filled(cls, config, {name: torch.empty(shape, device="meta") for name, shape in names})
            if strange or lacking:
                wrong = f"holds {_some(strange)}, unknown to" if strange else f"lacks {_some(lacking)} of"
                raise ValueError(f"{FLAG} {self.path} {wrong} the {part} of {CONFIG} {self.source}: give its own configs")

    def load(self, part: str, cls, config: Mapping, device: str, dtype):
        """A part's model in eval mode. Raises ValueError for a file that has changed since it was checked."""
        tensors = _read(self.path)
        with self._told(part):
            model = _filled(cls, config, {name: tensors[name] for name in self.parts[part]})[0]
            return model.to(device=device, dtype=dtype).eval().requires_grad_(False)

    @contextlib.contextmanager
    def _told(self, part: str):
        try:
            with hub.quiet():
                yield
        except Exception as error:  # of converters, which run into what they do not know, and of torch for other shapes
            fault = f"does not fit the {part} of {CONFIG} {self.source}"
            raise ValueError(f"{FLAG} {self.path} {fault} ({hub.told(error)}): give its own configs") from None


def _some(names: list[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more" if names[1:] else "")


def _read(path: str) -> dict:
    """Name -> tensor, mapped from the file and not read before it is used. Raises ValueError for a file that is none."""
    place = Path(path)
    if not place.is_file():
        raise ValueError(f"{FLAG} {path}: there is no such file")
    if place.suffix not in SUFFIXES:
        raise ValueError(f"{FLAG} {path} is neither a pipeline's folder nor a file of weights ({', '.join(SUFFIXES)})")
    import torch
    from diffusers.loaders.single_file_utils import load_single_file_checkpoint

    try:
        with hub.quiet():
            found = load_single_file_checkpoint(path)
        return {name: tensor for name, tensor in found.items() if torch.is_tensor(tensor)}
    except Exception as error:  # a damaged file, or one that would run code, makes of itself whatever the reader runs into
        raise ValueError(f"{FLAG} {path} cannot be read as weights ({hub.told(error)})") from None


def _filled(cls, config: Mapping, state: Mapping):
    """(a model of the class with these weights, names that it does not know, names that are lacking)."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = cls.from_config(dict(config)) if hasattr(cls, "from_config") else cls(cls.config_class.from_dict(dict(config)))
    found, left = _converted(model, state)
    keys = model.load_state_dict(found, strict=False, assign=True)
    return model, [*left, *keys.unexpected_keys], keys.missing_keys


def _converted(model, state: Mapping) -> tuple[dict, list[str]]:
    """(weights by the names of a model's class, names in the file that are left over)."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    known = SINGLE_FILE_LOADABLE_CLASSES.get(type(model).__name__)
    if known is None:
        return _text(model, dict(state)), []
    rest = dict(state)  # of which some converters take out what they use
    found = known["checkpoint_mapping_fn"](checkpoint=rest, config=model.config)
    used = {id(part) for tensor in found.values() for part in (tensor, tensor._base)}
    return found, [name for name, tensor in rest.items() if id(tensor) not in used]


def _text(model, state: dict) -> dict:
    """Of a CLIP or T5, as diffusers' own loaders have it."""
    import torch
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    names, first = model.state_dict(), next(iter(state))
    prefix = next(prefix for prefix in (*OTHERS, T5) if first.startswith(prefix))
    if prefix in OPEN_CLIP:
        found = convert_open_clip_checkpoint(model, state, prefix)
    else:
        found = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    if not hasattr(model, "text_model"):  # of transformers from 5.6 on
        found = {name.removeprefix("text_model."): tensor for name, tensor in found.items()}
    if prefix == CLIP_L and "text_projection.weight" in names:  # which these files do not hold
        found["text_projection.weight"] = torch.eye(model.config.hidden_size)
    elif "text_projection.weight" not in names:
        found.pop("text_projection.weight", None)
    for one, other in ("shared.weight", "encoder.embed_tokens.weight"), ("encoder.embed_tokens.weight", "shared.weight"):
        if one in found and other in names:  # T5 has its embeddings under two names, of which a file may hold one
            found.setdefault(other, found[one])
    return found
