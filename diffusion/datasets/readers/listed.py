"""Sets whose own files list their images: Oxford-IIIT Pets, Food-101, FGVC-Aircraft, as torchvision lays them out.

Each reader checks what torchvision's takes for granted: the list is whole, its classes are known, the images exist. It raises
ValueError naming the list and what is wrong in it, OSError where files are missing.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from diffusion.datasets.readers.folders import LabelledFiles, missing_files
from diffusion.datasets.readers.idx import reading
from diffusion.utils.files import read_json


def open_pets(root: Path, split: str, names: Sequence[str]) -> LabelledFiles:
    """Lines `Abyssinian_1 1 1 1`: the image, its class from 1, and two numbers more."""
    base = root / "oxford-iiit-pet"
    path = base / "annotations" / ("trainval.txt" if split == "train" else "test.txt")
    with reading(path):
        rows = [_pet(line, len(names)) for line in _lines(path)]
        samples = [(base / "images" / f"{image}.jpg", label) for image, label in rows]
    return existing(samples, path)


def _pet(line: str, n_classes: int) -> tuple[str, int]:
    fields = line.split()
    if len(fields) != 4 or not fields[1].isdecimal() or not 1 <= int(fields[1]) <= n_classes:
        raise ValueError(f"the line {line!r} is no image with a class of 1..{n_classes} and two numbers more")
    return fields[0], int(fields[1]) - 1


def open_food(root: Path, split: str, names: Sequence[str]) -> LabelledFiles:
    """JSON {"apple_pie": ["apple_pie/1005649", ...], ...}."""
    base = root / "food-101"
    path = base / "meta" / f"{split}.json"
    with reading(path):
        listed = read_json(path)
        samples = [(base / "images" / f"{image}.jpg", _label(name, names)) for name, images in listed.items() for image in images]
    return existing(samples, path)


def open_aircraft(root: Path, split: str, names: Sequence[str]) -> LabelledFiles:
    """Lines `0034309 F-16A/B`; the class names have _ for /."""
    base = root / "fgvc-aircraft-2013b" / "data"
    path = base / f"images_variant_{'trainval' if split == 'train' else 'test'}.txt"
    with reading(path):
        rows = [line.split(" ", 1) for line in _lines(path)]
        samples = [(base / "images" / f"{image}.jpg", _label(variant.replace("/", "_"), names)) for image, variant in rows]
    return existing(samples, path)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _label(name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise ValueError(f"{name!r} is no class of this set")
    return names.index(name)


def existing(samples: list[tuple[Path, int]], path: Path) -> LabelledFiles:
    """The samples that a list names. Raises FileNotFoundError naming the list where it is empty or images are missing."""
    if not samples:
        raise FileNotFoundError(f"{path} lists no images")
    check_files([image for image, _ in samples], path)
    return LabelledFiles([(str(image), label) for image, label in samples])


def check_files(images: Iterable[Path], path: Path) -> None:
    """Raises FileNotFoundError, naming the list and the first, where images that the list names do not exist."""
    images = list(images)
    missing = missing_files(images)
    if missing:
        raise FileNotFoundError(f"{len(missing):,} of the {len(images):,} images in {path} are missing, such as {missing[0]}")
