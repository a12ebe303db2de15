"""The labelled images that ship with the project: a part of Fashion-MNIST, and coloured items made of it."""

import numpy as np

from diffusion.datasets.reading import IdxImages
from diffusion.paths import SHIPPED
from diffusion.training.scenes import COLOURS, HELD_OUT, NOUNS, Item, draw_single

CLOTHES = SHIPPED / "datasets" / "FashionMNIST" / "raw"
PARTS = {"test": "t10k", "validation": "validation"}  # split -> how the files begin
TOLD = {
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
        self.notice = f"using the {len(self):,} {TOLD[split]}{why}"


PAIRS = [(colour, noun) for noun in NOUNS for colour in COLOURS]  # label 6 i + j of Combos is item i in colour j


class Combos:
    """Coloured items, 780 of 60 classes: 25 pictures of each pair of colour and item that training left out, 10 of each other.

    A recipe and a seed over `Clothes`, whose pictures are drawn as in training; none is used twice. Any beginning of the set
    has the classes in nearly the same shares. `targets` int64 [780]: rows of PAIRS.
    """

    def __init__(self, split: str, seed: int = 0):
        self.clothes = Clothes(split)
        self.classes = [" ".join(pair) for pair in PAIRS]
        self.targets, self.numbers = self._deal(np.random.default_rng(seed))
        self.notice = f"coloured items, made of the {len(self.clothes):,} {TOLD[split]}"

    def _deal(self, rng) -> tuple[np.ndarray, np.ndarray]:
        """(labels, numbers of the item pictures), each noun's pictures dealt to its colours in random order."""
        waiting = [iter(rng.permutation(np.flatnonzero(self.clothes.targets == i))) for i in range(len(NOUNS))]
        rows = []
        for label in rng.permutation(len(PAIRS)):
            size, offset = 25 if PAIRS[label] in HELD_OUT else 10, rng.random()
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
