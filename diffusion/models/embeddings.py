"""Textual inversion (Gal et al. 2023): embeddings of new tokens, read from files and added to tokenizers and text encoders.

diffusers reads the files. It does not add them here, as of a token with capitals its prompts keep the first vector only, and as
pooled text would be what is at the token.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from diffusion.models import hub
from diffusion.settings import Embedding

FLAG = "--embedding"
PART = "text_encoder"  # of a file that names none
PARTS = {"clip_l": PART, "clip_g": "text_encoder_2", "t5": "text_encoder_2"}  # by the keys of SDXL's and FLUX's files
WITHOUT_TOKEN = "emb_params"  # the one key of A1111's safetensors files


@dataclass(frozen=True)
class Learned:
    """What a file holds. token: that prompts call it by; vectors: part -> float32 [N,D], in the place of N tokens."""

    token: str
    vectors: Mapping[str, Any]

    def names(self, part: str) -> list[str]:
        """The tokens of its vectors, as diffusers names them."""
        return [self.token, *(f"{self.token}_{i}" for i in range(1, len(self.vectors[part])))]


@dataclass(frozen=True)
class Embeddings:
    """What is added to the tokenizers and text encoders of a pipeline.

    pipeline: its class in diffusers; source: folder or hub id of its configs; parts: its text encoders
    """

    pipeline: str
    source: str
    parts: tuple[str, ...]
    asked: tuple[Embedding, ...] = ()

    def check(self, tokenizer_of: Callable) -> None:
        """Reads them. tokenizer_of: part -> the tokenizer of a text encoder.

        Raises ValueError for files that are none, for vectors of another model, and for tokens that mean something else already.
        """
        for one in self.asked:
            where, learned = f"{FLAG} {one.path}", _read(one)
            _check_pipeline(where, self.pipeline)
            for part, vectors in learned.vectors.items():
                self._check_part(where, part, vectors)
            for part in learned.vectors:
                known = tokenizer_of(part).get_vocab()
                taken = next((name for name in learned.names(part) if name in known), None)
                if taken:
                    raise ValueError(f"{where}: {taken!r} is in the vocabulary already: name another token, {one.path}@TOKEN")
        _check_apart([(one.path, _read(one).token.lower()) for one in self.asked])

    def _check_part(self, where: str, part: str, vectors) -> None:
        if part not in self.parts:
            raise ValueError(f"{where} has vectors for a {part}, and this {self.pipeline} has {', '.join(self.parts)}")
        config = hub.read_config(self.source, f"{part}/config.json")
        width = config.get("hidden_size", config.get("d_model"))
        if vectors.shape[1] != width:
            of_part = f"those of the {part} of {self.source} {width}"
            raise ValueError(f"{where} is for another model: its vectors have {vectors.shape[1]} numbers, and {of_part}")

    def identity(self) -> list[str]:
        """Each one's content, or the hub's commit, and its token. Raises ValueError for one that is not to be had."""
        return [f"embedding {hub.content(one.path, FLAG)} as {_read(one).token}" for one in self.asked]

    def _of(self, part: str) -> list[Learned]:
        return [learned for learned in map(_read, self.asked) if part in learned.vectors]

    def extend(self, part: str, tokenizer, model=None) -> None:
        """Adds the tokens to a tokenizer, and their vectors to its text encoder."""
        for learned in self._of(part):
            tokenizer.add_tokens(learned.names(part))
            if model is not None:
                _add_vectors(model, tokenizer, learned.names(part), learned.vectors[part])

    def written(self, part: str, prompts: Sequence[str]) -> list[str]:
        """Prompts with a token for each vector, in the place of every token that has several."""
        for learned in self._of(part):
            whole = " ".join(learned.names(part))
            prompts = [re.sub(re.escape(learned.token), lambda _, whole=whole: whole, p, flags=re.I) for p in prompts]
        return list(prompts)

    def notice(self, prompts: Sequence[str]) -> str | None:
        """A line on tokens that no prompt has."""
        unused = [token for token in (_read(one).token for one in self.asked) if not _found(token, prompts)]
        return f"no prompt has the token {', '.join(unused)} of {FLAG}, which changes nothing then" if unused else None


def _add_vectors(model, tokenizer, names: list[str], vectors) -> None:
    """Of tokens that the tokenizer has; pooled is then what is at the prompt's end.

    Older CLIP configs name another end (2), and transformers then takes the largest id for it, which an added token would be.
    """
    ids, n = tokenizer.convert_tokens_to_ids(names), model.get_input_embeddings().num_embeddings
    table = model.resize_token_embeddings(max(n, len(tokenizer)), mean_resizing=False)
    table.weight.data[ids] = vectors.to(table.weight)
    for module in model.modules():
        if getattr(module, "eos_token_id", None) == 2:
            module.eos_token_id = tokenizer.eos_token_id


def _found(token: str, prompts: Sequence[str]) -> bool:
    return any(token.lower() in prompt.lower() for prompt in prompts)


def _check_pipeline(where: str, pipeline: str) -> None:
    import diffusers
    from diffusers.loaders import TextualInversionLoaderMixin

    if not issubclass(getattr(diffusers, pipeline), TextualInversionLoaderMixin):
        raise ValueError(f"{where}: diffusers knows no textual inversion of a {pipeline}")


def _check_apart(tokens: list[tuple[str, str]]) -> None:
    """Raises ValueError where one token would be found inside another."""
    for i, (path, token) in enumerate(tokens):
        other = next((other for j, (_, other) in enumerate(tokens) if i != j and token in other), None)
        if other:
            raise ValueError(f"{FLAG} {path}: its token {token!r} is a part of {other!r}: name another one, {path}@TOKEN")


@cache
def _read(one: Embedding) -> Learned:
    """Raises ValueError for what is no embedding."""
    from diffusers.loaders.textual_inversion import load_textual_inversion_state_dicts

    where, revision = f"{FLAG} {one.path}", hub.pinned(one.path, FLAG)
    try:
        with hub.quiet():
            (state,) = load_textual_inversion_state_dicts([one.path], revision=revision)
    except Exception as error:  # of many kinds, from a gated repository to a file that would run code
        raise ValueError(f"{where} cannot be read ({hub.told(error)})") from None
    token, vectors = _layout(where, state)
    token = one.token or token or Path(one.path).stem
    return Learned(str(token), {part: _vectors(where, part, vectors[part]) for part in vectors})


def _layout(where: str, state) -> tuple[str | None, dict]:
    """(token, part -> vectors) of A1111's, SDXL's, FLUX's or diffusers' files; a token that is not told is None."""
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


def _vectors(where: str, part: str, found):
    """float32 [N,D]."""
    import torch

    if not torch.is_tensor(found) or not found.is_floating_point() or found.ndim not in (1, 2) or not found.numel():
        kind = f"{list(found.shape)} of {found.dtype}" if torch.is_tensor(found) else f"a {type(found).__name__}"
        raise ValueError(f"{where} holds {kind} for the {part}, and has to hold vectors")
    vectors = found.detach().float().reshape(-1, found.shape[-1])
    if not vectors.isfinite().all():
        raise ValueError(f"{where} holds numbers for the {part} that are not finite")
    return vectors
