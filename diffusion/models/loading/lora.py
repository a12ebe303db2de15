"""LoRA files: read through diffusers' converters, and fused into the part that they change before anything else sees it.

Kohya's files, PEFT's, and diffusers' own name the same thing in three ways; diffusers knows them all. A fused part is an
ordinary one, so that layout, sharing and speed stay as they are.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from diffusion.models.loading import hub
from diffusion.settings import Lora
from diffusion.utils import files

if TYPE_CHECKING:  # which imports torch
    from torch import Tensor

# what a weight's name holds -> what it is, of what diffusers' converters leave out, or take for something else
OTHERS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "oft_": "OFT",
    "lora_mid": "a LoRA in three parts",
    ".diff": "a difference of whole weights",
    ".w_norm": "a difference of whole weights",
    ".b_norm": "a difference of whole weights",
    ".on_input": "IA3",
}
# how every name in a file of a plain LoRA ends, whoever wrote it
USUAL = re.compile(r"\.(network_)?alpha$|[._](up|down|A|B)(\.default\w*)?\.(weight|bias)$")
ON_HUB = "pytorch_lora_weights.safetensors"
MORE_THAN_LORA = ("use_dora", "use_rslora", "alpha_pattern", "modules_to_save", "fan_in_fan_out", "lora_bias")  # in PEFT's config
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # of PEFT's save_pretrained
FLAG = "--lora"
NAME = "fused"  # of the adapter while it is one


@dataclass(frozen=True)
class Adapters:
    """LoRAs that are fused into the parts of a pipeline.

    Attributes:
        pipeline: its class in diffusers.
        parts: folders of its network and text encoders.
        loras: files or hub ids with their scales, in the order in which they are fused.
        layers_per_block: of its U-Net, which diffusers' converters need.
    """

    pipeline: str
    parts: tuple[str, ...]
    loras: tuple[Lora, ...] = ()
    layers_per_block: int = 2

    def check(self) -> None:
        """Read all files.

        Raises:
            ValueError: a file is no LoRA, or holds weights of no part of this pipeline, by their names.
        """
        for lora in self.loras:
            state = self.read(lora)[0]
            stray = [key for key in state if key.partition(".")[0] not in self.parts]
            if stray:
                some = f"{stray[0]!r} and {len(stray) - 1} more of its {len(state)} weights"
                raise ValueError(f"--lora {lora.path}: {some} belong to no part of a {self.pipeline} ({', '.join(self.parts)})")

    def identity(self) -> list[str]:
        """The hash or the hub's commit of each LoRA, and its scale. Raises ValueError for one that is not to be had."""
        return [f"lora {hub.content(lora.path, FLAG)} scaled by {lora.scale:g}" for lora in self.loras]

    def read(self, lora: Lora) -> tuple[dict[str, Tensor], Mapping | None, Mapping | None]:
        """(weights by diffusers' names, alphas, metadata), the latter two where the file has them."""
        revision = hub.pinned(lora.path, FLAG)
        return _read(self.pipeline, self.parts[0], lora.path, revision, self.layers_per_block)

    def fuse(self, part: str, model: Any) -> None:
        """Fuse the weights of this part into its model, in order. Raises ValueError where they do not fit it."""
        for lora in self.loras:
            state, alphas, metadata = self.read(lora)
            if any(key.startswith(part + ".") for key in state):
                _fuse(self.pipeline, part, model, lora, {"network_alphas": alphas, "metadata": metadata}, state)


@cache
def _read(pipeline: str, network: str, path: str, revision: str | None, layers_per_block: int) -> tuple:
    """The parts of `Adapters.read`. network: folder of it, whose LoRA PEFT's files are; raises ValueError for a file that is no
    LoRA of the pipeline, and for one of which diffusers would leave something out."""
    import diffusers

    cls = getattr(diffusers, pipeline)
    if not hasattr(cls, "lora_state_dict"):
        raise ValueError(f"--lora {path}: diffusers knows no LoRA of a {pipeline}")
    known = inspect.signature(cls.lora_state_dict).parameters
    how: dict[str, Any] = {"return_alphas": True} if "return_alphas" in known else {}
    how |= {"unet_config": SimpleNamespace(layers_per_block=layers_per_block)} if "XL" in pipeline else {}
    try:
        given = _of_peft(Path(path), network) if (Path(path) / PEFT_CONFIG).is_file() else path
        with hub.quiet():
            state, *more = cls.lora_state_dict(given, return_lora_metadata=True, revision=revision, **how)
    except Exception as error:  # of many kinds, from a missing file to keys that no converter knows
        _refuse_others(path, revision)
        raise ValueError(f"--lora {path} cannot be read ({hub.cause(error)})") from None
    _refuse_others(path, revision)
    if not state or not all("lora" in key for key in state):
        odd = next((key for key in state if "lora" not in key), "nothing")
        raise ValueError(f"--lora {path} holds {odd}, which is no LoRA")
    return state, more[0] if len(more) == 2 else None, more[-1]


def _refuse_others(path: str, revision: str | None) -> None:
    """Raises ValueError for a file with weights of another kind of adapter, of which diffusers leaves parts out."""
    for name in _names(path, revision):
        if other := next((kind for part, kind in OTHERS.items() if part in name), None):
            raise ValueError(f"--lora {path} holds {name}: {other}, no plain LoRA; merge it into a model for --model_path")
        if not USUAL.search(name):
            raise ValueError(f"--lora {path} holds {name}, which is no LoRA")


def _names(path: str, revision: str | None) -> list[str]:
    """The names of all weights in the file, before any converter has seen them; none of no safetensors file, or a damaged one."""
    from huggingface_hub import try_to_load_from_cache
    from safetensors import safe_open

    if Path(path).is_dir():
        saved = sorted(Path(path).glob("*.safetensors"))
    else:
        known = revision and try_to_load_from_cache(path, ON_HUB, revision=revision)
        saved = [Path(known)] if isinstance(known, str) else [Path(path)] if Path(path).suffix == ".safetensors" else []
    names = []
    for file in saved:
        with contextlib.suppress(Exception), safe_open(file, "pt") as weights:  # a damaged one is told by who reads it
            names += weights.keys()
    return names


def _of_peft(folder: Path, network: str) -> dict[str, Tensor]:
    """What PEFT's save_pretrained wrote of the network, under diffusers' names; alpha / rank is in the upper matrices.

    Raises ValueError for another adapter than a plain LoRA.
    """
    from safetensors.torch import load_file

    config = files.read_json(folder / PEFT_CONFIG)
    odd = [name for name in MORE_THAN_LORA if config.get(name)]
    if config.get("peft_type", "LORA") != "LORA" or odd:
        raise ValueError(f"{PEFT_CONFIG} says {odd[0] if odd else config['peft_type']}, and no plain LoRA")
    state = {}
    for name, value in load_file(folder / PEFT_FILE).items():
        rank = value.shape[1] if ".lora_B." in name and value.dim() > 1 else 1
        scale = config.get("lora_alpha", rank) / rank if ".lora_B." in name else 1
        state[f"{network}.{name.removeprefix('base_model.model.')}"] = value * scale
    return state


def _fuse(pipeline: str, part: str, model: Any, lora: Lora, more: dict, state: dict) -> None:
    """Fuse one LoRA's weights into a part's model; more: what diffusers' loaders take beside the weights."""
    import diffusers
    from diffusers.loaders.lora_base import fuse_text_encoder_lora
    from diffusers.utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    is_text = part.startswith("text_encoder")
    try:
        with hub.quiet():
            if is_text:
                getattr(diffusers, pipeline).load_lora_into_text_encoder(
                    state, text_encoder=model, prefix=part, adapter_name=NAME, **more
                )
            else:
                model.load_lora_adapter(state, prefix=part, adapter_name=NAME, **more)
    except Exception as error:  # a shape or a module that the model does not have
        raise ValueError(f"--lora {lora.path} is for another model than this {part} ({hub.cause(error)})") from None
    changed = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    lost = sorted(module for module in modules_of(state, part) if module not in changed)
    if lost:
        others = f"nor {len(lost) - 1} more that it changes" if lost[1:] else "which it changes"
        raise ValueError(f"--lora {lora.path}: the {part} has no {lost[0]}, {others}: it is for another model")
    try:
        if is_text:
            fuse_text_encoder_lora(model, lora.scale)
            recurse_remove_peft_layers(model)
            model._hf_peft_config_loaded = False
            del model.peft_config
        else:
            model.fuse_lora(lora.scale)
            model.unload_lora()
    except Exception as error:  # such as a bias for a layer that has none
        raise ValueError(f"--lora {lora.path} does not fit this {part} ({hub.cause(error)})") from None


def modules_of(state: Mapping, part: str) -> set[str]:
    """The names of the modules inside a part that these weights change."""
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    mine = {key.removeprefix(part + "."): value for key, value in state.items() if key.startswith(part + ".")}
    if not any("lora_A" in key for key in mine):  # what converters make of kohya's files still has older names
        is_text = part.startswith("text_encoder")
        convert = convert_state_dict_to_peft if is_text else convert_unet_state_dict_to_peft
        mine = convert(convert_state_dict_to_diffusers(mine) if is_text else mine)
    return {key.partition(".lora")[0].removeprefix("text_model.") for key in mine}
