"""The labelled images that ship with the project: a part of Fashion-MNIST, coloured items of it, and scenes of two."""

from functools import cache, cached_property
from itertools import permutations

import numpy as np

from diffusion.datasets.readers.idx import IdxImages
from diffusion.datasets.scenes import COLOURS, HELD_OUT, NOUNS, Item, draw_pair, draw_single, pair_caption
from diffusion.utils.paths import SHIPPED

CLOTHES = SHIPPED / "datasets" / "FashionMNIST" / "raw"
PARTS = {"test": "t10k", "validation": "validation"}  # split -> how the files begin
DESCRIPTIONS = {
    "test": "shipped test images",
    "validation": "shipped validation images, which scripts/train_tiny.py leaves out",
}


class Clothes(IdxImages):
    """The first 100 test images of every class of Fashion-MNIST, or the 100 training images of every class that
    scripts/train_tiny.py leaves out ("validation"), from idx files: data [1000,28,28] uint8, targets [1000].
    """

    def __init__(self, split: str):
        super().__init__(CLOTHES, PARTS[split])
        why = " (no full copy under --data_dir / DATASET_ROOT)" if split == "test" else ""
        self.notice = f"using the {len(self):,} {DESCRIPTIONS[split]}{why}"


PAIRS = [(colour, noun) for noun in NOUNS for colour in COLOURS]  # label 6 i + j of Combos is item i in colour j


class Combos:
    """Coloured items, 780 of 60 classes: 25 pictures of each pair of colour and item that training left out, 10 of each other.
    "folds", for models that leave out others: 16 test pictures of each, 960.

    A recipe and a seed over `Clothes`, whose pictures are drawn as in training; none is used twice. Any beginning of the set
    has the classes in nearly the same shares. `targets` int64 [780]: rows of PAIRS.
    """

    def __init__(self, split: str, seed: int = 0):
        self.even = split == "folds"
        images = "test" if self.even else split
        self.clothes = Clothes(images)
        self.classes = [" ".join(pair) for pair in PAIRS]
        self.targets, self.numbers = self._deal(np.random.default_rng(seed))
        self.notice = f"coloured items, made of the {len(self.clothes):,} {DESCRIPTIONS[images]}"

    def _deal(self, rng) -> tuple[np.ndarray, np.ndarray]:
        """(labels, numbers of the item pictures), each noun's pictures dealt to its colours in random order."""
        waiting = [iter(rng.permutation(np.flatnonzero(self.clothes.targets == i))) for i in range(len(NOUNS))]
        rows = []
        for label in rng.permutation(len(PAIRS)):
            size, offset = 16 if self.even else 25 if PAIRS[label] in HELD_OUT else 10, rng.random()
            # a class's pictures lie evenly in the set, so that its first images are a fair part of it
            rows += [((k + offset) / size, int(label), int(next(waiting[label // len(COLOURS)]))) for k in range(size)]
        rows.sort(key=lambda row: row[0])
        return np.array([row[1] for row in rows]), np.array([row[2] for row in rows])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        label = int(self.targets[index])
        colour, noun = PAIRS[label]
        return draw_single(Item(self.clothes.data[self.numbers[index]], noun, colour)), label


SEEN = [pair for pair in PAIRS if pair not in HELD_OUT]
# every scene once: to the right of and below say the same of exchanged items
SCENES = [(*items, relation) for relation in ("to the left of", "above") for items in permutations(SEEN, 2)]


def _named(colour: str, noun: str) -> Item:
    """An item of which only the phrase is asked."""
    return Item(np.empty(0), noun, colour)


class Scenes:
    """200 pictures of two coloured items in a stated relation, each with as many candidate captions as the split says.

    A recipe and a seed over the test images of `Clothes`, of which none is used twice; pairs of colour and item are those that
    training saw. Of every four candidates after the true one, the first differs from it in one part (a colour, an item or the
    relation), the second in two, and two in more, as long as there are such; fewer candidates are the beginning of more.
    `targets` int64 [200]: rows of SCENES, whose captions are `classes`; `candidates[i]` int64: those that compete for picture i,
    ascending.
    """

    SIZES = ("10", "60", "250", "1000")
    N = 200

    def __init__(self, split: str, seed: int = 0):
        self.clothes, self.size = Clothes("test"), int(split)
        self.classes = [pair_caption(_named(*first), _named(*second), relation) for first, second, relation in SCENES]
        rng = np.random.default_rng(seed)
        self.targets = rng.choice(len(SCENES), self.N, replace=False)
        self.numbers, self.seeds = self._deal(rng), rng.integers(2**32, size=self.N)
        message = f"{self.size:,} captions for each, of {len(SCENES):,}"
        self.notice = f"scenes made of the {len(self.clothes):,} {DESCRIPTIONS['test']}, {message}"

    def _deal(self, rng) -> list[list[int]]:
        """Numbers of the two item pictures of every scene."""
        waiting = [iter(rng.permutation(np.flatnonzero(self.clothes.targets == i))) for i in range(len(NOUNS))]
        return [[int(next(waiting[NOUNS.index(noun)])) for _, noun in SCENES[scene][:2]] for scene in self.targets]

    @cached_property
    def candidates(self) -> list[np.ndarray]:
        return [np.sort(rivals(int(scene), seed)[: self.size]) for scene, seed in zip(self.targets, self.seeds, strict=True)]

    def __len__(self) -> int:
        return self.N

    def __getitem__(self, index: int):
        (colour, noun), (other_colour, other_noun), relation = SCENES[self.targets[index]]
        first, second = (self.clothes.data[number] for number in self.numbers[index])
        items = Item(first, noun, colour), Item(second, other_noun, other_colour)
        across = [0, 1] if relation.startswith("to the") else [1, 0]  # at right angles, as in training: items never overlap
        jitter = np.random.default_rng(self.seeds[index]).integers(-8, 9, size=(2, 1)) * across
        return draw_pair(*items, relation, jitter), int(self.targets[index])


@cache
def scene_parts() -> np.ndarray:
    """Five words of every row of SCENES: two colours, two items and the relation."""
    return np.array([[*first, *second, relation] for first, second, relation in SCENES])


def rivals(scene: int, seed: int) -> np.ndarray:
    """A scene and all others, as rows of SCENES, in the order in which they are candidates for its picture."""
    order = np.random.default_rng(seed).permutation(np.delete(np.arange(len(SCENES)), scene))
    differing = (scene_parts()[order] != scene_parts()[scene]).sum(1)
    place = np.empty(len(order))
    for turn, chosen in enumerate((differing == 1, differing == 2, differing > 2)):
        n = np.arange(chosen.sum())
        place[chosen] = 4 * n + turn if turn < 2 else 2 * n - n % 2 + 2
    return np.concatenate([[scene], order[np.argsort(place, kind="stable")]])
