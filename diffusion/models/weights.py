"""The weights of a pipeline's parts: where each part's are, and what is added to them before anything else sees it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion.models import hub


@dataclass(frozen=True)
class Weights:
    """Of the parts of a pipeline.

    source: local folder or hub id, of configs and of weights that no file holds; revision: the hub's commit, None for a folder
    classes: part -> name of its class in diffusers or transformers; loras: adapters.Adapters
    embeddings: embeddings.Embeddings; file: single_file.SingleFile, or None
    """

    source: str
    revision: str | None
    classes: Mapping[str, str]
    loras: Any
    embeddings: Any
    file: Any = None

    @property
    def in_file(self) -> list[str]:
        """Parts in use whose weights are those of the single file."""
        return [part for part in self.classes if self.file and part in self.file.parts]

    def check(self, tokenizer_of: Callable) -> None:
        """Raises ValueError, by name, for what cannot be added to these parts. tokenizer_of: text encoder -> its tokenizer."""
        if self.file:
            self.file.check({part: class_named(self.classes[part]) for part in self.in_file}, self._config)
            lacking = [part for part in self.classes if part not in self.in_file and not hub.may_have_weights(self.source, part)]
            if lacking:
                raise ValueError(f"--model_path {self.file.path} holds no {lacking[0]}, and neither does --config {self.source}")
        self.loras.check()
        self.embeddings.check(tokenizer_of)

    def identity(self, parts: Sequence[str]) -> str:
        """Tells two sets apart: the hub's commit, or the hash of what a local folder holds of these parts; and what is added."""
        found = [hub.identity(self.source, self.revision, parts, configs_only=self.in_file)]
        if self.file:
            found.insert(0, f"file {hub.content(self.file.path, '--model_path')}")
        return ", ".join([*found, *self.loras.identity(), *self.embeddings.identity()])

    def describe(self) -> str:
        """Where they are, for a person."""
        if not self.file:
            return self.source
        others = [part for part in self.classes if part not in self.in_file]
        return f"{self.file.path}, with {', '.join([*others, 'configs'])} of {self.source}"

    def n_parameters(self, part: str) -> int | None:
        """Numbers in a part's weights; None where their files do not say."""
        if part in self.in_file:
            return self.file.n_parameters(part)
        return hub.n_parameters(self.source, self.revision, part)

    def load(self, part: str, device: str, dtype):
        """A part's model in eval mode, with LoRAs fused. Raises ValueError or OSError for weights that do not do."""
        cls = class_named(self.classes[part])
        if part in self.in_file:
            model = self.file.load(part, cls, self._config(part), device, dtype)
        else:
            model = hub.pretrained(cls, self.source, device, subfolder=part, revision=self.revision, torch_dtype=dtype)
        self.loras.fuse(part, model)
        return model

    def _config(self, part: str) -> dict:
        return hub.read_config(self.source, f"{part}/config.json", flag="--config")

    def load_text(self, part: str, device: str, dtype, tokenizer):
        """The same of a text encoder, whose tokenizer learns its embeddings' tokens."""
        model = self.load(part, device, dtype)
        self.embeddings.extend(part, tokenizer, model)
        return model

    def vae_encoder(self, device: str) -> Callable:
        """As of `hub.encoder_of`."""
        import torch

        return hub.encoder_of(self.load("vae", device, torch.float32), device)

    def vae_decoder(self, device: str) -> Callable:
        """As of `hub.decoder_of`."""
        import torch

        return hub.decoder_of(self.load("vae", device, torch.float32), device)


def class_named(name: str):
    """Of diffusers or transformers."""
    import diffusers
    import transformers

    return getattr(diffusers, name, None) or getattr(transformers, name)
