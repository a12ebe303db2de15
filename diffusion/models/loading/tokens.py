"""What a text encoder is given of prompts: rows of token ids. Prompts with equal rows are one and the same to the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tokens:
    """The token ids of K prompts.

    Attributes:
        rows: one per prompt, all of one length.
        cut: how many of the prompts are longer, and lose what is past it.
        limit: that length, with the tokens for begin and end.
        source: the model whose tokenizer it is.
    """

    rows: list[tuple[int, ...]]
    cut: int
    limit: int
    source: str

    def notice(self) -> str | None:
        """A line on prompts that are cut; None where none is."""
        if not self.cut:
            return None
        return (
            f"{self.cut} of {len(self.rows)} prompts are longer than the model's limit of {self.limit} tokens, and are cut there"
        )


def tokenize(encode: Callable, prompts: Sequence[str], limit: int, n_known: int | None, source: str) -> Tokens:
    """The token ids of prompts.

    A prompt was cut where its row begins differently when it may be longer.

    Args:
        encode: (prompts, length) -> ids [K,length], padded and cut.
        prompts: K texts.
        limit: the length of the rows.
        n_known: how many tokens the text encoder has embeddings of; None where that is not known.
        source: the model, for an error.

    Raises:
        ValueError: a token has no embedding.
    """
    rows, longer = ([tuple(row) for row in encode(list(prompts), length).tolist()] for length in (limit, 4 * limit))
    largest = max((max(row) for row in rows), default=0)
    if n_known is not None and largest >= n_known:
        raise ValueError(f"{source}: its tokenizer has a token {largest}, and its text encoder knows {n_known} from 0 on: they "
                         "belong to different models")  # fmt: skip
    cut = sum(long[:limit] != row for row, long in zip(rows, longer, strict=True))
    return Tokens(rows, cut, limit, source)


def check_vocabulary(tokenizer, prompts: Sequence[str], source: str) -> None:
    """Check that a tokenizer of transformers has a vocabulary. Raises ValueError where it knows nothing of a prompt."""
    unknown = tokenizer.unk_token_id
    for prompt, ids in zip(prompts, tokenizer(list(prompts), add_special_tokens=False, verbose=False).input_ids, strict=True):
        if set(ids) <= {unknown}:
            raise ValueError(f"{source}: its tokenizer knows nothing of {prompt!r}: its vocabulary is missing or another model's")


def check_classes(
    tokens: Tokens, prompts: Sequence[str], labels: Sequence[int], names: Sequence[str], published: bool = False
) -> str | None:
    """Check that no two classes have equal rows, which are one and the same to the model. One class may have equal ones.

    Args:
        tokens: of K prompts.
        prompts, labels, names: the prompts, their classes, and the classes' names.
        published: whether two classes may have one prompt, word for word, as in the published lists.

    Returns:
        A line on classes of a published list that have one prompt; None where there are none.

    Raises:
        ValueError: two classes have equal rows.
    """
    first: dict[tuple[int, ...], int] = {}
    shared = []
    for k, row in enumerate(tokens.rows):
        other = first.setdefault(row, k)
        if labels[other] == labels[k]:
            continue
        if published and prompts[other] == prompts[k]:
            shared.append(f"{labels[other]} and {labels[k]} ({names[k]})")
            continue
        one, two = (f"class {labels[i]} ({names[i]})" for i in (other, k))
        raise ValueError(f"{one} and {two} are one and the same to the model: {_reason(tokens, prompts[other], prompts[k])}")
    if not shared:
        return None
    return f"classes {', '.join(shared)} have one prompt each in the published list: of two, the first is predicted for both"


def _reason(tokens: Tokens, one: str, other: str) -> str:
    if one == other:
        return f"both have the prompt {one!r}; give each class its own"
    if tokens.cut:
        same = f"it reads {tokens.limit} tokens, in which {_start(one)} and {_start(other)} do not differ"
        return f"{same}: shorten the prompts"
    return f"the tokenizer of {tokens.source} makes the same tokens of {_start(one)} and {_start(other)}"


def _start(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")


def pairs_notice(tokens: Tokens, names: Sequence) -> str | None:
    """A line on examples whose two captions are one and the same to the model, which can only tie; None without such.

    Args:
        tokens: rows 2i and 2i+1 are the two captions of example i.
        names: of the examples.

    Raises:
        ValueError: all examples are like that.
    """
    same = [str(name) for i, name in enumerate(names) if tokens.rows[2 * i] == tokens.rows[2 * i + 1]]
    if not same:
        return None
    equal = "are one and the same to the model"
    if len(same) == len(names):
        reason = f"its tokenizer is damaged, or they differ only after {tokens.limit} tokens"
        raise ValueError(f"{tokens.source}: the two captions of every example, {same[0]} the first, {equal}: {reason}")
    some = ", ".join(same[:5]) + (", ..." if len(same) > 5 else "")
    return f"the two captions of {len(same)} of {len(names)} examples {equal}, which can only tie them: {some}"
