"""A single checkpoint file in its authors' layout: which parts it holds, checked by name and shape; diffusers converts them.

Configs, tokenizers and the law of noise are in no such file: they are those of a pipeline.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from diffusion.models.loading import hub, schedulers

if TYPE_CHECKING:
    import torch

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


# tensors that are no weights, whose name says what a U-Net's scheduler has to have; that of EDM is no DDPM's
MARKS: dict[str, tuple[str, object]] = {
    "v_pred": ("prediction_type", "v_prediction"),
    "ztsnr": ("rescale_betas_zero_snr", True),
    "edm_mean": ("sigma_data", 0.5),
}
STATED = {
    "epsilon": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
}  # modelspec.prediction_type -> diffusers' name
CLIP_LAYER = "modelspec.encoder_layer"  # which of CLIP's states from the end was trained with


def is_single(model_path: str | None) -> TypeGuard[str]:
    """Whether this names a file of weights: anything that is a file, or is called like one."""
    place = Path(model_path or ".")
    return place.is_file() or (place.suffix in SUFFIXES and not place.is_dir())


def name_of(model_path: str) -> str:
    """The name of the model in run folders: the file's name without its ending."""
    return Path(model_path).stem


def check(path: str) -> None:
    """Check that a file is there and holds a model's weights. Raises ValueError where it does not."""
    names = _read(path)
    if any(".lora" in name or "lora_" in name for name in names):
        raise ValueError(f"{FLAG} {path} is a LoRA, and no model: give it with --lora")
    if not names:
        raise ValueError(f"{FLAG} {path} holds no weights")


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint file.

    Attributes:
        path: the file.
        pipeline: its class in diffusers.
        network: folder of the denoiser in the pipeline.
        known: folders of all models that the pipeline may have.
        source: folder or hub id of its configs.
    """

    path: str
    pipeline: str
    network: str
    known: tuple[str, ...]
    source: str

    @cached_property
    def parts(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Part -> name in the file -> shape. Raises ValueError for weights of no part of this pipeline, by their names."""
        shapes = {name: tuple(tensor.shape) for name, tensor in _read(self.path).items()}
        alone = self.network != "unet" and not any(name.startswith(NETWORK) for name in shapes)
        parts: dict[str, dict[str, tuple[int, ...]]] = {}
        stray = []
        for name, shape in shapes.items():
            part = self._part_of(name, alone)
            if part in self.known:
                parts.setdefault(part, {})[name] = shape
            elif not BESIDE.fullmatch(name):
                stray.append(name)
        if stray or self.network not in parts:
            wrong = f"{_some(stray)} of no part" if stray else f"no weights of the {self.network}"
            advice = f"which {CONFIG} {self.source} is: give its own configs"
            raise ValueError(f"{FLAG} {self.path} holds {wrong} of a {self.pipeline}, {advice}")
        return parts

    def _part_of(self, name: str, alone: bool) -> str | None:
        """The part of a weight by its name; None for what is no weight of a part.

        Args:
            name: in the file.
            alone: whether what begins like no other part is the network's.
        """
        if BESIDE.fullmatch(name) and not (alone and "." not in name):
            return None
        if name.startswith(T5):
            return T5_PARTS.get(self.pipeline)
        other = next((part for prefix, part in OTHERS.items() if name.startswith(prefix)), None)
        return other or (self.network if alone or name.startswith(NETWORK) else None)

    def n_parameters(self, part: str) -> int:
        """How many numbers its weights of a part hold."""
        return sum(map(math.prod, self.parts[part].values()))

    def check(self, classes: Mapping[str, Callable], config_of: Callable) -> None:
        """Check names and shapes against the configs.

        Args:
            classes: part -> its class, of those in use and in the file.
            config_of: part -> the JSON of its config.

        Raises:
            ValueError: a part lacks a weight, or does not know one; with its name.
        """
        import torch

        self._check_stated()
        for part, cls in classes.items():
            config, names = config_of(part), self.parts[part].items()
            with self._named_errors(part):
                _, strange, lacking = _filled(cls, config, {name: torch.empty(shape, device="meta") for name, shape in names})
            if strange or lacking:
                wrong = f"holds {_some(strange)}, unknown to" if strange else f"lacks {_some(lacking)} of"
                raise ValueError(f"{FLAG} {self.path} {wrong} the {part} of {CONFIG} {self.source}: give its own configs")
            if hasattr(cls, "load_config"):
                hub.tell_unused(f"{CONFIG} {self.source}: {part}", [], cls, config)

    def _check_stated(self) -> None:
        """Raises ValueError where the file says of itself what its configs contradict."""
        scheduler = {"prediction_type": "epsilon"} | hub.read_config(self.source, schedulers.CONFIG, flag=CONFIG)
        said = {name: MARKS[name] for name in _read(self.path) if name in MARKS}
        metadata = _metadata(self.path)
        kind = STATED.get(metadata.get("modelspec.prediction_type", ""))
        said |= {"modelspec.prediction_type": ("prediction_type", kind)} if kind and self.network == "unet" else {}
        for name, (key, value) in said.items():
            if scheduler.get(key) != value:
                advice = f"{CONFIG} {self.source}: {schedulers.CONFIG} says {scheduler.get(key)!r}: give its own configs"
                raise ValueError(f"{FLAG} {self.path} has {name}, which wants {key!r} to be {value!r}; {advice}")
        layer = metadata.get(CLIP_LAYER, "1")
        if self.pipeline == "StableDiffusionPipeline" and layer not in ("1", "-1"):
            last = f"the last one is read: save it as a folder whose text_encoder/config.json has {layer} - 1 layers less"
            raise ValueError(f"{FLAG} {self.path}: {CLIP_LAYER} is {layer}, of CLIP's layers from the end, and {last}")

    def load(self, part: str, cls: Any, config: Mapping, device: str, dtype: torch.dtype) -> torch.nn.Module:
        """A part's model in eval mode and without gradients.

        Args:
            part: its folder in the pipeline.
            cls, config: its class, and the JSON of its config.
            device: torch's name.
            dtype: of the weights.

        Raises:
            ValueError: the file has changed since it was checked.
        """
        tensors = _read(self.path)
        with self._named_errors(part):
            model = _filled(cls, config, {name: tensors[name] for name in self.parts[part]})[0]
            return model.to(device=device, dtype=dtype).eval().requires_grad_(False)

    @contextlib.contextmanager
    def _named_errors(self, part: str) -> Iterator[None]:
        """Turn whatever a converter raises into a ValueError with the names of file and part."""
        try:
            with hub.quiet():
                yield
        except Exception as error:  # of converters, which run into what they do not know, and of torch for other shapes
            fault = f"does not fit the {part} of {CONFIG} {self.source}"
            raise ValueError(f"{FLAG} {self.path} {fault} ({hub.cause(error)}): give its own configs") from None


def _some(names: list[str]) -> str:
    """The first of the names, and how many more there are."""
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
        with hub.quiet(), _stand_ins(place):
            content = load_single_file_checkpoint(path)
        return {name: tensor for name, tensor in content.items() if torch.is_tensor(tensor)}
    except Exception as error:  # a damaged file, or one that would run code, makes of itself whatever the reader runs into
        raise ValueError(f"{FLAG} {path} cannot be read as weights ({hub.cause(error)})") from None


def _metadata(path: str) -> Mapping[str, str]:
    """What a safetensors file says of itself; nothing of a pickled one."""
    from safetensors import safe_open

    if Path(path).suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


@contextlib.contextmanager
def _stand_ins(place: Path) -> Iterator[None]:
    """Inside it, a pickled file's classes of other programs, such as a trainer's callbacks, are read as empty ones of ours: what
    lies beside its tensors is dropped, and none of it is run."""
    import torch

    names = []
    if place.suffix != ".safetensors":
        with contextlib.suppress(Exception):  # of a damaged file, which is told when it is read
            names = torch.serialization.get_unsafe_globals_in_checkpoint(place)
    with torch.serialization.safe_globals(
        [(type("StandIn", (), {"__setstate__": lambda self, _: None}), name) for name in names]
    ):
        yield


def _filled(cls: Any, config: Mapping, state: Mapping) -> tuple[torch.nn.Module, list[str], list[str]]:
    """(a model of the class with these weights, names that it does not know, names that are lacking)."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = cls.from_config(dict(config)) if hasattr(cls, "from_config") else cls(cls.config_class.from_dict(dict(config)))
    weights, left = _converted(model, state)
    keys = model.load_state_dict(weights, strict=False, assign=True)
    return model, [*left, *keys.unexpected_keys], keys.missing_keys


def _converted(model: Any, state: Mapping) -> tuple[dict, list[str]]:
    """(weights by the names of a model's class, names in the file that are left over)."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    known: Any = SINGLE_FILE_LOADABLE_CLASSES.get(type(model).__name__)
    if known is None:
        return _text(model, dict(state)), []
    rest = dict(state)  # of which some converters take out what they use
    weights = known["checkpoint_mapping_fn"](checkpoint=rest, config=model.config)
    used = {id(part) for tensor in weights.values() for part in (tensor, tensor._base)}
    return weights, [name for name, tensor in rest.items() if id(tensor) not in used]


def _text(model: Any, state: dict) -> dict:
    """The weights of a CLIP or T5 by the names of its class, as diffusers' own loaders convert them."""
    import torch
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    names, first = model.state_dict(), next(iter(state))
    prefix = next(prefix for prefix in (*OTHERS, T5) if first.startswith(prefix))
    if prefix in OPEN_CLIP:
        weights = convert_open_clip_checkpoint(model, state, prefix)
    else:
        weights = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    if not hasattr(model, "text_model"):  # of transformers from 5.6 on
        weights = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    if prefix == CLIP_L and "text_projection.weight" in names:  # which these files do not hold
        weights["text_projection.weight"] = torch.eye(model.config.hidden_size)
    elif "text_projection.weight" not in names:
        weights.pop("text_projection.weight", None)
    for one, other in ("shared.weight", "encoder.embed_tokens.weight"), ("encoder.embed_tokens.weight", "shared.weight"):
        if one in weights and other in names:  # T5 has its embeddings under two names, of which a file may hold one
            weights.setdefault(other, weights[one])
    return weights
