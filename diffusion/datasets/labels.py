"""Class names and labels of what a data set says of its images: names, or numbers that count from 0."""

from collections.abc import Iterable, Sequence

LARGEST_LABEL = 100_000  # integers beyond it are ids, not class numbers: each would be a prompt of its own
MOST_DIGITS = 18  # what an int64 holds for certain; Python refuses thousands of them


def number_of(text: str) -> int | None:
    """The integer >= 0 that a text is, None for any other text. str.isdigit alone would let "²" through."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else None


def numbered(labels: Iterable[int]) -> list[str]:
    """Names of classes of which only numbers are known: "0", "1", ... Raises ValueError for a number that is no label."""
    largest = max(labels)
    if largest >= LARGEST_LABEL:
        raise ValueError(f"{largest} is no class number, which count from 0")
    return [str(i) for i in range(largest + 1)]


def of_texts(texts: Sequence[str], names: Sequence[str] | None) -> tuple[list[str], list[int | None]]:
    """(class names, label of each text): its place among the names, else itself as a number, None where that is no class.

    names None: the texts themselves are the names, sorted.
    """
    names = sorted(set(texts)) if names is None else list(names)
    places = {name: i for i, name in enumerate(names)}
    labels = [places.get(text, number_of(text)) for text in texts]
    return names, [label if label is not None and label < len(names) else None for label in labels]
