"""The weights of a pipeline's parts: where each part's are, and what is added to them before anything else sees it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion.models import hub


@dataclass(frozen=True)
class Weights:
    """Of the parts of a pipeline.

    source: local folder or hub id; revision: the hub's commit, None for a local folder
    classes: part -> name of its class in diffusers or transformers; loras: adapters.Adapters
    """

    source: str
    revision: str | None
    classes: Mapping[str, str]
    loras: Any

    def check(self) -> None:
        """Raises ValueError, by name, for what cannot be added to these parts."""
        self.loras.check()

    def identity(self, parts: Sequence[str]) -> str:
        """Tells two sets apart: the hub's commit, or the hash of what a local folder holds of these parts; and what is added."""
        return ", ".join([hub.identity(self.source, self.revision, parts), *self.loras.identity()])

    def n_parameters(self, part: str) -> int | None:
        """Numbers in a part's weights; None where their files do not say."""
        return hub.n_parameters(self.source, self.revision, part)

    def load(self, part: str, device: str, dtype):
        """A part's model in eval mode, with what is added. Raises ValueError or OSError for weights that do not do."""
        where = {"subfolder": part, "revision": self.revision, "torch_dtype": dtype}
        model = hub.pretrained(class_named(self.classes[part]), self.source, device, **where)
        self.loras.fuse(part, model)
        return model

    def vae_encoder(self, device: str) -> Callable:
        """As of `hub.encoder_of`."""
        import torch

        return hub.encoder_of(self.load("vae", device, torch.float32), device)


def class_named(name: str):
    """Of diffusers or transformers."""
    import diffusers
    import transformers

    return getattr(diffusers, name, None) or getattr(transformers, name)
