"""Textual inversion (Gal et al. 2023): embeddings of new tokens, read from files and added to tokenizers and text encoders.

diffusers reads the files. It does not add them here: its prompts keep only the first vector of a token with capitals, and pooled
text would be what is at the token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.models.loading import hub
from diffusion.settings import Embedding

if TYPE_CHECKING:  # which imports torch
    from torch import Tensor

FLAG = "--embedding"
PART = "text_encoder"  # of a file that names none
PARTS = {"clip_l": PART, "clip_g": "text_encoder_2", "t5": "text_encoder_2"}  # by the keys of SDXL's and FLUX's files
WITHOUT_TOKEN = "emb_params"  # the one key of A1111's safetensors files


@dataclass(frozen=True)
class Learned:
    """What a file holds.

    Attributes:
        token: the word of a prompt that stands for the vectors.
        vectors: part -> float32 [N,D], in the place of N tokens.
    """

    token: str
    vectors: Mapping[str, Tensor]

    def names(self, part: str) -> list[str]:
        """The tokens of its vectors, as diffusers names them."""
        return [self.token, *(f"{self.token}_{i}" for i in range(1, len(self.vectors[part])))]


@dataclass(frozen=True)
class Embeddings:
    """What is added to the tokenizers and text encoders of a pipeline.

    Attributes:
        pipeline: its class in diffusers.
        source: folder or hub id of its configs.
        parts: folders of its text encoders.
        files: files or hub ids of the embeddings, with tokens of the user's choice.
    """

    pipeline: str
    source: str
    parts: tuple[str, ...]
    files: tuple[Embedding, ...] = ()

    def check(self, tokenizer_of: Callable) -> None:
        """Read all files.

        Args:
            tokenizer_of: part -> the tokenizer of a text encoder.

        Raises:
            ValueError: a file holds no embeddings or another model's, or a token is in the vocabulary already.
        """
        for one in self.files:
            where, learned = f"{FLAG} {one.path}", _read(one)
            _check_pipeline(where, self.pipeline)
            for part, vectors in learned.vectors.items():
                self._check_part(where, part, vectors)
            for part in learned.vectors:
                known = tokenizer_of(part).get_vocab()
                taken = next((name for name in learned.names(part) if name in known), None)
                if taken:
                    raise ValueError(f"{where}: {taken!r} is in the vocabulary already: name another token, {one.path}@TOKEN")
        _check_apart([(one.path, _read(one).token.lower()) for one in self.files])

    def _check_part(self, where: str, part: str, vectors: Tensor) -> None:
        if part not in self.parts:
            raise ValueError(f"{where} has vectors for a {part}, and this {self.pipeline} has {', '.join(self.parts)}")
        config = hub.read_config(self.source, f"{part}/config.json")
        width = config.get("hidden_size", config.get("d_model"))
        if vectors.shape[1] != width:
            of_part = f"those of the {part} of {self.source} {width}"
            raise ValueError(f"{where} is for another model: its vectors have {vectors.shape[1]} numbers, and {of_part}")

    def identity(self) -> list[str]:
        """The hash or the hub's commit of each file, and its token. Raises ValueError for one that is not to be had."""
        return [f"embedding {hub.content(one.path, FLAG)} as {_read(one).token}" for one in self.files]

    def _of(self, part: str) -> list[Learned]:
        return [learned for learned in map(_read, self.files) if part in learned.vectors]

    def extend(self, part: str, tokenizer, model: Any = None) -> None:
        """Add the tokens of a part to its tokenizer, and their vectors to its text encoder where that is given."""
        for learned in self._of(part):
            tokenizer.add_tokens(learned.names(part))
            if model is not None:
                _add_vectors(model, tokenizer, learned.names(part), learned.vectors[part])

    def written(self, part: str, prompts: Sequence[str]) -> list[str]:
        """The prompts with one token for each vector, in the place of a token that stands for several."""
        for learned in self._of(part):
            whole = " ".join(learned.names(part)).replace("\\", r"\\")
            prompts = [re.sub(re.escape(learned.token), whole, prompt, flags=re.I) for prompt in prompts]
        return list(prompts)

    def notice(self, prompts: Sequence[str]) -> str | None:
        """A line on tokens that no prompt has; None where all are used."""
        unused = [token for token in (_read(one).token for one in self.files) if not _is_in(token, prompts)]
        return f"no prompt has the token {', '.join(unused)} of {FLAG}, which changes nothing then" if unused else None


def _add_vectors(model: Any, tokenizer, names: list[str], vectors: Tensor) -> None:
    """Add vectors to a text encoder for tokens that its tokenizer has; the pooled text is then what is at the prompt's end.

    Older CLIP configs name another end (2), and transformers then takes the largest id for it, which an added token would be.
    """
    ids, n = tokenizer.convert_tokens_to_ids(names), model.get_input_embeddings().num_embeddings
    table = model.resize_token_embeddings(max(n, len(tokenizer)), mean_resizing=False)
    table.weight.data[ids] = vectors.to(table.weight)
    for module in model.modules():
        if getattr(module, "eos_token_id", None) == 2:
            module.eos_token_id = tokenizer.eos_token_id


def _is_in(token: str, prompts: Sequence[str]) -> bool:
    return any(token.lower() in prompt.lower() for prompt in prompts)


def _check_pipeline(where: str, pipeline: str) -> None:
    import diffusers
    from diffusers.loaders import TextualInversionLoaderMixin

    if not issubclass(getattr(diffusers, pipeline), TextualInversionLoaderMixin):
        raise ValueError(f"{where}: diffusers knows no textual inversion of a {pipeline}")


def _check_apart(tokens: list[tuple[str, str]]) -> None:
    """Raise ValueError where one token is a part of another."""
    for i, (path, token) in enumerate(tokens):
        other = next((other for j, (_, other) in enumerate(tokens) if i != j and token in other), None)
        if other:
            raise ValueError(f"{FLAG} {path}: its token {token!r} is a part of {other!r}: name another one, {path}@TOKEN")


@cache
def _read(one: Embedding) -> Learned:
    """What a file or hub id holds. Raises ValueError for what is no embedding."""
    from diffusers.loaders.textual_inversion import load_textual_inversion_state_dicts

    where, revision = f"{FLAG} {one.path}", hub.pinned(one.path, FLAG)
    try:
        with hub.quiet():
            (state,) = load_textual_inversion_state_dicts([one.path], revision=revision)
    except Exception as error:  # of many kinds, from a gated repository to a file that would run code
        raise ValueError(f"{where} cannot be read ({hub.cause(error)})") from None
    token, vectors = _layout(where, state)
    token = one.token or token or Path(one.path).stem
    return Learned(str(token), {part: _vectors(where, part, vectors[part]) for part in vectors})


def _layout(where: str, state: object) -> tuple[str | None, dict]:
    """(token, part -> vectors) of A1111's, SDXL's, FLUX's or diffusers' files; None for a token that the file does not name."""
    if not isinstance(state, Mapping):
        return None, {PART: state}
    if "string_to_param" in state and isinstance(state["string_to_param"], Mapping):
        return state.get("name"), {PART: state["string_to_param"].get("*")}
    if state and set(state) <= set(PARTS):
        return None, {PARTS[key]: vectors for key, vectors in state.items()}
    if len(state) != 1:
        some = f"{len(state)} entries, {next(iter(state))} the first," if state else "nothing,"
        raise ValueError(f"{where} holds {some} and one token is wanted")
    ((token, vectors),) = state.items()
    return None if token == WITHOUT_TOKEN else token, {PART: vectors}


def _vectors(where: str, part: str, value: object) -> Tensor:
    """The value of a part in a file, as float32 [N,D]. Raises ValueError for what is no vectors of finite numbers."""
    import torch

    if not torch.is_tensor(value):
        raise ValueError(f"{where} holds a {type(value).__name__} for the {part}, and has to hold vectors")
    odd = "" if value.layout == torch.strided else "sparse "
    if odd or value.is_meta or not value.is_floating_point() or value.ndim not in (1, 2) or not value.numel():
        kind = f"{list(value.shape)} of {odd}{value.dtype}"
        raise ValueError(f"{where} holds {kind} for the {part}, and has to hold vectors")
    vectors = value.detach().float().reshape(-1, value.shape[-1])
    if not vectors.isfinite().all():
        raise ValueError(f"{where} holds numbers for the {part} that are not finite")
    return vectors
