"""Class names and labels of what a data set says of its images: names, or numbers that count from 0."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

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


# ---------------------------------------------------------------- names in prompts

WORDNET_ID = re.compile(r"n\d{8}")
NUMBERED = re.compile(r"\d+[ ._-]+(?=\D)")  # before a name: `001.Black_footed_Albatross`
NUMBER = re.compile(r"\d+(\.0+)?")


def spoken(names: Sequence[str], of_ids: Callable[[], dict[str, str]]) -> tuple[list[str], str | None]:
    """(what stands for class names in prompts, what is to be said of it): WordNet ids become names, numbering is cut.

    of_ids: () -> WordNet id -> name. Raises ValueError, without a way out, for names that are numbers, and for ids of no name.
    """
    if all(map(WORDNET_ID.fullmatch, names)):
        known = of_ids()
        strange = next((name for name in names if name not in known), None)
        if strange:
            raise ValueError(f"the class {strange} is a WordNet id that is none of ImageNet's 1,000")
        renamed = [known[name] for name in names]
        return renamed, f"the classes are WordNet ids: {names[0]} is called {renamed[0]!r}, and so on"
    if all(map(NUMBER.fullmatch, names)):
        raise ValueError(f"classes are called {', '.join(names[:3])}{', ...' if names[3:] else ''}: numbers, and no names")
    bare = [NUMBERED.sub("", name, count=1) for name in names]
    if all(map(NUMBERED.match, names)) and len(set(bare)) == len(names):
        return bare, f"the numbers before class names are left out: {names[0]!r} is called {bare[0]!r}, and so on"
    return list(names), None


def folded(name: str) -> str:
    """A name without case, accents, blanks and punctuation, by which names are compared."""
    text = unicodedata.normalize("NFKD", name).casefold()
    return "".join(character for character in text if character.isalnum())


def disagreement(names: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> str | None:
    """What to say of names of labels that are not the classes', in words; None where all agree.

    Raises ValueError where a name is that of another class: the two are in another order.
    """
    places = {folded(name): place for place, name in enumerate(classes)}
    others = {label: name for name, label in zip(names, labels, strict=True) if folded(name) != folded(classes[label])}
    for label, name in others.items():
        if folded(name) in places:
            place = places[folded(name)]
            raise ValueError(f"classidx {label} is called {name!r}, class {place} of the data set, whose class {label} is "
                             f"{classes[label]!r}: put the rows in its order")  # fmt: skip
    if not others:
        return None
    label, name = next(iter(others.items()))
    return f"{len(others)} classes are called otherwise than in the data set, such as {name!r} for {classes[label]!r}"
