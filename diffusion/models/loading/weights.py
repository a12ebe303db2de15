"""The weights of a pipeline's parts: where each part's are, and what is added to them before anything else sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusion.models.loading import hub

if TYPE_CHECKING:
    import torch
    from torch import Tensor


T5GEMMA = "T5GemmaEncoder"


@dataclass(frozen=True)
class Weights:
    """The weights of a pipeline's parts.

    Attributes:
        source: local folder or hub id, of configs and of weights that no single file holds.
        revision: the hub's commit; None for a folder.
        classes: part -> name of its class in diffusers or transformers.
        loras: adapters.Adapters.
        embeddings: embeddings.Embeddings.
        file: single_file.SingleFile, or None.
    """

    source: str
    revision: str | None
    classes: Mapping[str, str]
    loras: Any  # Any: these three are modules of the same level, which must not import each other
    embeddings: Any
    file: Any = None

    @property
    def in_file(self) -> list[str]:
        """Parts in use whose weights are those of the single file."""
        return [part for part in self.classes if self.file and part in self.file.parts]

    def check(self, tokenizer_of: Callable) -> None:
        """Check that what is added fits these parts.

        Args:
            tokenizer_of: folder of a text encoder -> its tokenizer.

        Raises:
            ValueError: it does not, by name; or no file has the weights of a part.
        """
        if self.file:
            self.file.check({part: class_named(self.classes[part]) for part in self.in_file}, self._config)
            lacking = [part for part in self.classes if part not in self.in_file and not hub.may_have_weights(self.source, part)]
            if lacking:
                raise ValueError(f"--model_path {self.file.path} holds no {lacking[0]}, and neither does --config {self.source}")
        self.loras.check()
        self.embeddings.check(tokenizer_of)

    def identity(self, parts: Sequence[str]) -> str:
        """A text that no other weights have: the hub's commit, or the hash of what a local folder holds of these parts; then what
        is added to them."""
        texts = [hub.identity(self.source, self.revision, parts, configs_only=self.in_file)]
        if self.file:
            texts.insert(0, f"file {hub.content(self.file.path, '--model_path')}")
        return ", ".join([*texts, *self.loras.identity(), *self.embeddings.identity()])

    def describe(self) -> str:
        """The places of configs and weights, as a person would name them."""
        if not self.file:
            return self.source
        others = [part for part in self.classes if part not in self.in_file]
        return f"{self.file.path}, with {', '.join([*others, 'configs'])} of {self.source}"

    def n_parameters(self, part: str) -> int | None:
        """How many numbers a part's weights hold; None where their files do not say."""
        if part in self.in_file:
            return self.file.n_parameters(part)
        return hub.n_parameters(self.source, self.revision, part)

    def load(self, part: str, device: str, dtype: torch.dtype) -> torch.nn.Module:
        """A part's model in eval mode, with LoRAs fused.

        Args:
            part: its folder.
            device: torch's name.
            dtype: of the weights.

        Raises:
            ValueError, OSError: the weights are missing, damaged, or not those of the part's class.
        """
        cls = class_named(self.classes[part])
        if part in self.in_file:
            model = self.file.load(part, cls, self._config(part), device, dtype)
        else:
            where = {"subfolder": part, "revision": self.revision}
            config = {"config": self._encoder_config(**where)} if self.classes[part] == T5GEMMA else {}
            model = hub.pretrained(cls, self.source, device, **where, torch_dtype=dtype, **config)
        self.loras.fuse(part, model)
        return model

    def _encoder_config(self, **where: Any) -> Any:
        """The encoder's part of the config of a whole T5Gemma, which is what its folder has."""
        from transformers import T5GemmaConfig

        return T5GemmaConfig.from_pretrained(self.source, **where).encoder

    def _config(self, part: str) -> dict:
        return hub.read_config(self.source, f"{part}/config.json", flag="--config")

    def load_text(self, part: str, device: str, dtype: torch.dtype, tokenizer) -> torch.nn.Module:
        """A text encoder as of `load`, with the embeddings added to it and their tokens to its tokenizer."""
        model = self.load(part, device, dtype)
        self.embeddings.extend(part, tokenizer, model)
        return model

    def vae_encoder(self, device: str) -> Callable[[Tensor], Tensor]:
        """Image [3,H,W] in [-1,1] -> latent [C,h,w] float32 on the device, by the pipeline's VAE (`hub.encoder_of`)."""
        import torch

        return hub.encoder_of(self.load("vae", device, torch.float32), device)

    def vae_decoder(self, device: str) -> Callable[[Tensor], Tensor]:
        """Latent [C,h,w] -> image [3,H,W] on the device, by the pipeline's VAE (`hub.decoder_of`)."""
        import torch

        return hub.decoder_of(self.load("vae", device, torch.float32), device)


def class_named(name: str) -> type:
    """The class of this name in diffusers or transformers."""
    import diffusers
    import transformers

    if name == T5GEMMA:  # which is not among transformers' names, and whose reader in diffusers looks for the config elsewhere
        from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

        return T5GemmaEncoder
    return getattr(diffusers, name, None) or getattr(transformers, name)
