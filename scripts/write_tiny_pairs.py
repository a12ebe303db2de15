#!/usr/bin/env python
"""Write the shipped set of caption pairs, --dataset tiny_pairs: 480 from the Fashion-MNIST TEST images that ship.

python scripts/write_tiny_pairs.py
python scripts/write_tiny_pairs.py --seed 1 --out my_pairs

Both captions of an example have the same words; image k shows caption k. 120 examples of each kind, with two different nouns
and two different colours, in combinations that the shipped models' training had:
  Object    the items change places: "a bag above a sneaker", "a sneaker above a bag" (both grey)
  Relation  the items stay, each takes the other's colour: "a red bag and a blue sneaker", "a blue bag and a red sneaker"
  Both      the items change places, and each takes the other's colour, so that the colours stay where they are:
            "a red bag above a blue sneaker", "a red sneaker above a blue bag"
  Unseen    as Relation, but both items of one of the two images wear a colour that training held out for them:
            "a red bag and a blue trouser", "a blue bag and a red trouser"
(An item that moved with its colour, "a blue sneaker above a red bag", would be an object swap.) An example's two images have
the same two item pictures and the same offsets; no picture is used in two examples.
"""

import json
import sys
from collections import Counter
from dataclasses import replace
from itertools import cycle, permutations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli
from diffusion.cli import parsing
from diffusion.datasets import shipped
from diffusion.datasets.scenes import COLOURS, HELD_OUT, NOUNS, PLACES, Item, draw_pair, pair_caption
from diffusion.runs import loop
from diffusion.utils import files
from diffusion.utils.paths import TINY_PAIRS, made_anew

KINDS = ("Object", "Relation", "Both", "Unseen")
PER_RELATION = 30  # examples of one kind and layout: 6 rounds of the nouns' 9


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("-o", "--out", type=Path, default=made_anew(TINY_PAIRS), metavar="DIR",
                        help="folder to write (default: shipped/datasets/tiny_pairs)")  # fmt: skip
    parser.add_argument("--seed", type=parsing.at_least(0), default=0, help="another seed, another set (default: 0)")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- which nouns, colours and layouts


def rounds(names) -> list[tuple]:
    """All pairs of an even number of names, by the rounds of a tournament: in each round every name plays once."""
    *ring, fixed = names
    n = len(ring)
    table = []
    for r in range(n):
        table.append((fixed, ring[r]))
        table += [(ring[(r + k) % n], ring[(r - k) % n]) for k in range(1, (n + 1) // 2)]
    return table


def allowed(kind: str, nouns) -> list[tuple]:
    """The colours that two items may wear in the first image of an example; in the second one each has the other's."""
    if kind == "Object":
        return [(None, None)]
    combinations = []
    for worn in permutations(COLOURS, 2):
        first, second = set(zip(worn, nouns, strict=True)), set(zip(worn[::-1], nouns, strict=True))
        unseen = first <= HELD_OUT and not second & HELD_OUT
        if unseen if kind == "Unseen" else not (first | second) & HELD_OUT:
            combinations.append(worn)
    return combinations


def plan(rng, kind: str) -> list[tuple]:
    """120 of (relation, nouns of the two places, their colours), in random order.

    The nouns come round by round, so that each is there as often (or nearly, for Unseen, as a few pairs of nouns have no two
    held-out colours); each pair of nouns wears what it wore least so far, and of that what was worn least by all.
    """
    waiting, used, rows = cycle(rounds(NOUNS)), Counter(), []
    for relation in PLACES:
        for _ in range(PER_RELATION):
            nouns = next(pair for pair in waiting if allowed(kind, pair))[:: rng.choice((1, -1))]
            choices = allowed(kind, nouns)
            tried = [(used[frozenset(nouns), frozenset(c)], used[c], rng.random(), c) for c in choices]
            worn = min(tried)[-1]
            used.update([(frozenset(nouns), frozenset(worn)), worn])
            # which of the two images is the one with the held-out combinations must tell nothing
            rows.append((relation, nouns, worn[::-1] if kind == "Unseen" and rng.random() < 0.5 else worn))
    return [rows[i] for i in rng.permutation(len(rows))]


def swap(kind: str, first, second) -> tuple:
    """The items of the second image, in the places of the first."""
    if kind == "Object":
        return second, first
    if kind in ("Relation", "Unseen"):
        return replace(first, colour=second.colour), replace(second, colour=first.colour)
    return replace(second, colour=first.colour), replace(first, colour=second.colour)


# ---------------------------------------------------------------- drawing and writing


def compose(rng, kind: str, row: tuple, take) -> tuple[list, list[str], list[int]]:
    """(two images, two captions, the numbers of the item pictures) of one example. take(noun) -> number and picture."""
    relation, nouns, worn = row
    numbers, pictures = zip(*map(take, nouns), strict=True)
    items = [Item(*parts) for parts in zip(pictures, nouns, worn, strict=True)]
    across = [0, 1] if relation.startswith("to the") else [1, 0]  # at right angles, as in training: items never overlap
    jitter = rng.integers(-8, 9, size=(2, 1)) * across
    scenes = [items, swap(kind, *items)]
    said = None if kind in ("Relation", "Unseen") else relation
    return [draw_pair(*s, relation, jitter) for s in scenes], [pair_caption(*s, said) for s in scenes], list(numbers)


def picture_source(rng, clothes, nouns):
    """take(noun) -> (number, [28,28]) of a test image of this noun that was not taken before."""
    waiting = {noun: iter(rng.permutation((clothes.targets == label).nonzero()[0])) for label, noun in enumerate(nouns)}

    def take(noun):
        number = int(next(waiting[noun]))
        return number, clothes.data[number]

    return take


def examples(seed: int):
    """The set in order of id: (line of examples.jsonl as a dict, its two images). Kinds take turns, so that any part is even."""
    import numpy as np

    rng = np.random.default_rng(seed)
    take = picture_source(rng, shipped.Clothes("test"), NOUNS)
    plans = [plan(rng, kind) for kind in KINDS]
    rows = ((kind, row) for turn in zip(*plans, strict=True) for kind, row in zip(KINDS, turn, strict=True))
    for example_id, (kind, row) in enumerate(rows):
        images, captions, numbers = compose(rng, kind, row, take)
        yield describe(example_id, kind, row[0], captions, numbers), images


def describe(example_id: int, kind: str, relation: str, captions: list[str], numbers: list[int]) -> dict:
    """Winoground's fields, then ours: where the items lie, and which test images they are."""
    tags = {
        "Object": f"Object swap, {relation}",
        "Relation": "Colour",
        "Both": f"Object and colour swap, {relation}",
        "Unseen": "Colour, unseen combinations",
    }
    return {
        "id": example_id,
        "image_0": f"ex_{example_id}_img_0",
        "image_1": f"ex_{example_id}_img_1",
        "caption_0": captions[0],
        "caption_1": captions[1],
        "tag": tags[kind],
        "secondary_tag": "",
        "num_main_preds": 1,
        "collapsed_tag": kind,
        "layout": relation,
        "test_images": numbers,
    }


def write(folder: Path, seed: int) -> int:
    """Writes images/*.png and then examples.jsonl, which makes it a set; returns how many examples."""
    lines = []
    for line, images in examples(seed):
        for k, image in enumerate(images):
            path = folder / "images" / f"{line[f'image_{k}']}.png"
            files.write(path, lambda file, image=image: image.save(file, "PNG", optimize=True))
        lines.append(json.dumps(line) + "\n")
    files.write_text(folder / "examples.jsonl", "".join(lines))
    return len(lines)


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        n = write(args.out, args.seed)
    print(f"{args.out}: {n} examples")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
