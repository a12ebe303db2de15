"""Captioned pictures for the small shipped models: one item, or two items in a stated relation, on a black square canvas.

Drawn from 28x28 grey images (Fashion-MNIST). The training script and the shipped pair sets use this one module, so a
caption always means the same picture.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

CANVAS = 64  # pixels a side; the shipped VAE turns it into 8x8 latents
ITEM = 32  # pixels a side of one item in a two-item scene

# The word in the prompt, in Fashion-MNIST's label order. Each takes "a", so that templates need no grammar.
NOUNS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")

COLOURS = {
    "red": (1.0, 0.15, 0.15),
    "green": (0.15, 0.9, 0.2),
    "blue": (0.25, 0.35, 1.0),
    "yellow": (1.0, 0.95, 0.1),
    "purple": (0.8, 0.2, 0.9),
    "cyan": (0.1, 0.9, 0.9),
}

# The (colour, noun) pairs that no picture of scripts/train_tiny.py shows and no caption of it names, alone or in a scene: what a
# model trained by it has to put together itself. Drawn once, seed 0 (tests/test_combos.py draws them again): every colour
# twice, every noun once or twice.
HELD_OUT = frozenset(
    {
        ("red", "bag"),
        ("red", "shirt"),
        ("green", "pullover"),
        ("green", "sandal"),
        ("blue", "shirt"),
        ("blue", "trouser"),
        ("yellow", "boot"),
        ("yellow", "sneaker"),
        ("purple", "dress"),
        ("purple", "t-shirt"),
        ("cyan", "coat"),
        ("cyan", "sneaker"),
    }
)

N_FOLDS = 5


@cache
def folds() -> tuple[frozenset[tuple[str, str]], ...]:
    """The 60 pairs in five parts of twelve, of which a training leaves one out: HELD_OUT, and four drawn with seed 0.

    Every colour is twice in each, every noun once or twice.
    """
    rng = np.random.default_rng(0)
    twice = {noun for noun in NOUNS if sum(pair[1] == noun for pair in HELD_OUT) == 2}
    while True:  # again where the draws of the first folds leave no last one
        doubled = rng.permutation([noun for noun in NOUNS if noun not in twice]).reshape(N_FOLDS - 1, 2)
        drawn, left = [HELD_OUT], {(colour, noun) for colour in COLOURS for noun in NOUNS} - HELD_OUT
        for nouns in doubled:
            fold = _draw_fold(rng, [*NOUNS, *map(str, nouns)], left)
            if not fold:
                break
            drawn.append(fold)
            left -= fold
        else:
            return tuple(drawn)


def _draw_fold(rng, nouns, left) -> frozenset | None:
    """Pairs of these twelve nouns with every colour twice, all among `left`; None where the draw gave none."""
    from scipy.optimize import linear_sum_assignment

    colours = [*COLOURS] * 2
    weights = rng.random((len(colours), len(nouns)))
    weights += [[10.0 * ((colour, noun) not in left) for noun in nouns] for colour in colours]
    pairs = {(colours[row], nouns[column]) for row, column in zip(*linear_sum_assignment(weights), strict=True)}
    return frozenset(pairs) if len(pairs) == len(nouns) and pairs <= left else None


# relation -> top-left corner (x, y) of the first and of the second item, before jitter
PLACES = {
    "to the left of": ((0, 16), (32, 16)),
    "to the right of": ((32, 16), (0, 16)),
    "above": ((16, 0), (16, 32)),
    "below": ((16, 32), (16, 0)),
}


@dataclass(frozen=True)
class Item:
    """One thing in a scene: a 28x28 uint8 picture, its noun, and a colour word or None for grey."""

    pixels: np.ndarray
    noun: str
    colour: str | None = None

    @property
    def phrase(self) -> str:
        return f"a {self.colour} {self.noun}" if self.colour else f"a {self.noun}"


def tint(pixels: np.ndarray, colour: str | None) -> np.ndarray:
    """[H,W] uint8 grey -> [H,W,3] uint8, multiplied by the colour; None leaves it grey."""
    weights = COLOURS[colour] if colour else (1.0, 1.0, 1.0)
    return np.rint(pixels[..., None] * np.array(weights)).astype(np.uint8)


def draw_single(item: Item) -> Image.Image:
    """The item alone, resized bicubically to the whole canvas: what the evaluation's transform makes of a test image."""
    return Image.fromarray(tint(item.pixels, item.colour)).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)


def draw_pair(first: Item, second: Item, relation: str, jitter: np.ndarray | None = None) -> Image.Image:
    """Two items on the canvas. `jitter` [2,2] shifts each corner in pixels, kept inside the canvas; None means none."""
    canvas = Image.new("RGB", (CANVAS, CANVAS))
    shifts = np.zeros((2, 2), int) if jitter is None else jitter
    for item, corner, shift in zip((first, second), PLACES[relation], shifts, strict=True):
        x, y = np.clip(np.add(corner, shift), 0, CANVAS - ITEM)
        picture = Image.fromarray(tint(item.pixels, item.colour)).resize((ITEM, ITEM), Image.Resampling.BICUBIC)
        canvas.paste(picture, (int(x), int(y)))
    return canvas


def pair_caption(first: Item, second: Item, relation: str | None) -> str:
    """ "a red bag and a blue sneaker" without a relation, "a bag to the left of a sneaker" with one."""
    return f"{first.phrase} {relation or 'and'} {second.phrase}"
