"""Text encoders of a pipeline, one after the other: each is loaded, reads all prompts of the run, and is gone again.

A run embeds its prompts once, and T5 alone is larger than most networks. What is kept are the embeddings, on the CPU.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusion.models.loading import hub, tokens
from diffusion.models.speed import devices

if TYPE_CHECKING:  # which imports torch
    from torch import Tensor

KNOWN = (
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "T5EncoderModel",
    "Gemma2Model",
    "T5GemmaEncoder",
    "Qwen3Model",
    "UMT5EncoderModel",
)  # classes of text encoders


class NoPrompt(str):
    """The empty prompt of guidance without a negative prompt: "", which some families embed otherwise than a prompt that is
    empty."""


@dataclass(frozen=True)
class Encoder:
    """One text encoder of a layout.

    Attributes:
        part, tokenizer: folders of the pipeline.
        length: tokens that a prompt is padded and cut to; None: the tokenizer's own limit, and at most `places`.
        masked: whether the encoder is given the mask of the tokens that are no padding.
        large: whether it has billions of parameters, which run in half precision where the network does (in bfloat16: T5
            overflows in float16).
        places: positions that it has, with those for begin and end; None: not known, and no limit.
        vocabulary: tokens that it has embeddings of; None: not known, and not checked.
        at_once: prompts per call.
    """

    part: str
    tokenizer: str
    length: int | None = None
    masked: bool = False
    large: bool = False
    places: int | None = None
    vocabulary: int | None = None
    at_once: int = 16

    def dtype(self, network: str) -> str:
        """torch's name of its number format beside a network of this one."""
        return "bfloat16" if self.large and network != "float32" else "float32"

    def load_tokenizer(self, source: str, revision: str | None):
        """Its tokenizer, of transformers. Raises ValueError for one that is missing or damaged.

        Args:
            source: local folder or hub id of the pipeline.
            revision: the hub's commit; None for a local folder.
        """
        from transformers import AutoTokenizer, CLIPTokenizer

        cls: Any = AutoTokenizer if self.large else CLIPTokenizer
        try:
            return cls.from_pretrained(source, subfolder=self.tokenizer, revision=revision)
        except Exception as error:  # the reader of damaged files raises whatever it runs into
            raise ValueError(f"{source}/{self.tokenizer} cannot be read ({hub.cause(error)})") from None

    def tokens(self, weights, prompts: Sequence[str]) -> tokens.Tokens:
        """The token ids of prompts.

        Args:
            weights: models.weights.Weights of the pipeline.
            prompts: K texts.

        Raises:
            ValueError: the tokenizer is missing, or knows nothing of a prompt.
        """
        tokenizer = self.load_tokenizer(weights.source, weights.revision)
        n = len(tokenizer)
        weights.embeddings.extend(self.part, tokenizer)
        vocabulary = self.vocabulary and self.vocabulary + len(tokenizer) - n
        prompts = weights.embeddings.written(self.part, prompts)
        tokens.check_vocabulary(tokenizer, prompts, weights.source)

        def encode(texts, length):
            return tokenized(tokenizer, texts, length).input_ids

        return tokens.tokenize(encode, prompts, self.limit(tokenizer), vocabulary, weights.source)

    def limit(self, tokenizer) -> int:
        """Tokens that a prompt is padded and cut to, with those for begin and end."""
        return self.length or int(min(tokenizer.model_max_length, self.places or math.inf))

    def read(self, weights, prompts: Sequence[str], take: Callable[[Any, Tensor], Iterable[Tensor]], device: str,
             dtype: str) -> tuple[Tensor, ...]:  # fmt: skip
        """Load the encoder, read all prompts, and free it.

        Args:
            weights: models.weights.Weights of the pipeline.
            prompts: K texts.
            take: (output, mask) -> tensors [B,...] that are kept of a call; output: of transformers' class, with its hidden
                states; mask: int64 [B,L].
            device: torch's name.
            dtype: torch's name of the network's number format.

        Returns:
            What `take` gave, put together: [K,...] each, on the CPU.
        """
        import torch
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # of weights from disk; downloads keep theirs
        tokenizer = self.load_tokenizer(weights.source, weights.revision)
        encoder = weights.load_text(self.part, device, devices.torch_dtype(self.dtype(dtype)), tokenizer)
        texts = tokenized(tokenizer, weights.embeddings.written(self.part, prompts), self.limit(tokenizer))
        rows = []
        with torch.inference_mode():
            for ids, mask in zip(texts.input_ids.split(self.at_once), texts.attention_mask.split(self.at_once), strict=True):
                masked = {"attention_mask": mask.to(device)} if self.masked else {}
                output = encoder(ids.to(device), output_hidden_states=True, **masked)
                rows.append([part.cpu() for part in take(output, mask)])
        del encoder, output
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))


def model_class(index: Mapping, part: str) -> str | None:
    """The name of a text encoder's class in transformers, of KNOWN; None where the pipeline has no such part, or one of another
    class.

    Args:
        index: the JSON of its model_index.json.
        part: folder of the text encoder.
    """
    entry = index.get(part)
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    return name if name in KNOWN else None


def tokenized(tokenizer, prompts: list[str], length: int):
    """The input_ids and attention_mask of prompts, int64 [K,length], padded on the right and cut."""
    tokenizer.padding_side = "right"
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def merged(parts: list[tokens.Tokens]) -> tokens.Tokens:
    """Tokens of several encoders as one: prompts are equal when they are so to all, and cut when even the longest cuts them."""
    longest = max(parts, key=lambda one: one.limit)
    rows = [sum(row, ()) for row in zip(*(one.rows for one in parts), strict=True)]
    return tokens.Tokens(rows, longest.cut, longest.limit, longest.source)
