"""Tiny datasets, written exactly as the real ones lie on disk. Each writer takes the root and fills it."""

import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size=(20, 16), mode="RGB") -> Image.Image:
    """A noise image; the same seed gives the same image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save_picture(path: Path, seed: int = 0, **kwargs) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, **kwargs).save(path)


def forget_sums(monkeypatch) -> None:
    """torchvision knows the sums of the real files, which tiny ones cannot have."""
    from torchvision.datasets import cifar, flowers102, stl10

    for module in (cifar, flowers102, stl10):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file(), raising=False)
    monkeypatch.setattr(stl10.STL10, "_check_integrity", lambda self: (Path(self.root) / "stl10_binary/test_X.bin").is_file())


def _pickle(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def _rows(n: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, width), dtype=np.uint8)


def cifar10(root: Path, test_labels=(3, 8, 0)) -> None:
    base = root / "cifar-10-batches-py"
    for i in range(1, 6):
        _pickle(base / f"data_batch_{i}", {"data": _rows(2, 3072, i), "labels": [i, i]})
    _pickle(base / "test_batch", {"data": _rows(len(test_labels), 3072, 9), "labels": list(test_labels)})
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    _pickle(base / "batches.meta", {"label_names": names})


def cifar100(root: Path) -> None:
    base = root / "cifar-100-python"
    _pickle(base / "train", {"data": _rows(2, 3072, 1), "fine_labels": [5, 6], "coarse_labels": [0, 0]})
    _pickle(base / "test", {"data": _rows(2, 3072, 2), "fine_labels": [49, 99], "coarse_labels": [0, 0]})
    _pickle(base / "meta", {"fine_label_names": [str(i) for i in range(100)]})


def stl10(root: Path) -> None:
    base = root / "stl10_binary"
    base.mkdir(parents=True)
    for part, labels in (("train", [1, 2]), ("test", [10, 1, 3])):  # labels count from 1 in these files
        (base / f"{part}_X.bin").write_bytes(_rows(len(labels), 3 * 96 * 96, len(labels)).tobytes())
        (base / f"{part}_y.bin").write_bytes(bytes(labels))
    (base / "unlabeled_X.bin").write_bytes(b"")
    (base / "class_names.txt").write_text("airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n")


def idx(root: Path, name: str, test_labels=(7, 2), train_labels=(1,)) -> None:
    """MNIST or FashionMNIST."""
    base = root / name / "raw"
    base.mkdir(parents=True)
    for part, labels in (("train", train_labels), ("t10k", test_labels)):
        images = _rows(len(labels), 784, len(labels)).tobytes()
        (base / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, len(labels), 28, 28) + images)
        (base / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(labels)) + bytes(labels))


def pets(root: Path) -> None:
    """Three classes; cats are capitalised, dogs are not, and the class number counts without regard to case."""
    base = root / "oxford-iiit-pet"
    lines = {"Abyssinian": "1 1 1", "american_bulldog": "2 2 1", "Bengal": "6 1 2"}
    for name in lines:
        for number in (1, 101):
            save_picture(base / "images" / f"{name}_{number}.jpg", number)
    (base / "annotations").mkdir()
    for split, number in (("trainval", 1), ("test", 101)):
        text = "".join(f"{name}_{number} {rest}\n" for name, rest in lines.items())
        (base / "annotations" / f"{split}.txt").write_text(text)


def flowers(root: Path) -> None:
    from scipy.io import savemat

    base = root / "flowers-102"
    for number in range(1, 6):
        save_picture(base / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(base / "imagelabels.mat", {"labels": np.array([[77, 1, 102, 5, 6]], dtype=np.uint8)})
    savemat(base / "setid.mat", {"trnid": [[4, 5]], "valid": [[1]], "tstid": [[3, 2]]})


def food(root: Path) -> None:
    base = root / "food-101"
    splits = {"train": {}, "test": {}}
    for name in ("waffles", "apple_pie"):
        for split, number in (("train", 10), ("test", 20)):
            save_picture(base / "images" / name / f"{number}.jpg", number)
            splits[split][name] = [f"{name}/{number}"]
    (base / "meta").mkdir()
    for split, content in splits.items():
        (base / "meta" / f"{split}.json").write_text(json.dumps(content))


def aircraft(root: Path) -> None:
    base = root / "fgvc-aircraft-2013b" / "data"
    for number in range(4):
        save_picture(base / "images" / f"{number:07d}.jpg", number)
    (base / "images_variant_trainval.txt").write_text("0000000 Yak-42\n")
    (base / "images_variant_test.txt").write_text("0000003 Yak-42\n0000001 707-320\n0000002 F-16A/B\n")


def caltech101(root: Path) -> None:
    """Three of the 101 classes, and the folder that is none."""
    for name in ("yin_yang", "accordion", "Faces", "BACKGROUND_Google"):
        for number in (1, 2):
            save_picture(root / "caltech101" / "101_ObjectCategories" / name / f"image_{number:04d}.jpg", number)


def eurosat(root: Path) -> None:
    for name in ("SeaLake", "AnnualCrop", "Forest"):
        save_picture(root / "eurosat" / "2750" / name / f"{name}_1.jpg")


def imagenet(root: Path) -> None:
    for name in ("n01484850", "n01440764", "n01443537"):
        save_picture(root / "imagenet" / "val" / name / "ILSVRC2012_val_00000001.JPEG")


def imagenet_v2(root: Path) -> None:
    for number in (2, 10, 1, 0, 999):
        save_picture(root / "ImageNetV2-matched-frequency" / str(number) / "img.jpeg", number)


def imagenet_a(root: Path) -> None:
    for name in ("n12267677", "n01498041"):  # stingray (6) and acorn (988)
        save_picture(root / "imagenet-a" / name / "0.0_picture.jpg")


def objectnet(root: Path) -> None:
    base = root / "objectnet-1.0" / "images"
    for i, name in enumerate(("wok", "alarm_clock", "banana", "zz_not_in_map")):
        save_picture(base / name / "a.png", i)
    save_picture(base / "banana" / "b.png", 9, mode="P")


def png(seed: int, **kwargs) -> bytes:
    content = io.BytesIO()
    picture(seed, **kwargs).save(content, "png")
    return content.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> None:
    """A plain tar of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def webdataset(root: Path, shards=((1, 0), (2,)), names=("ant", "bee", "cow"), split="test") -> None:
    """CLIP_benchmark's layout; shards: the labels in each. Picture i is that of seed i."""
    (root / split).mkdir(parents=True)
    (root / "classnames.txt").write_text("".join(f"{name}\n" for name in names))
    (root / split / "nshards.txt").write_text(f"{len(shards)}\n")
    number = 0
    for shard, labels in enumerate(shards):
        members = {}
        for label in labels:
            members |= {f"s{number:07d}.png": png(number), f"s{number:07d}.cls": str(label).encode()}
            number += 1
        tar(root / split / f"{shard}.tar", members)


def csv_file(path: Path, text="path,label\n0.png,bee\n1.png,ant\n") -> None:
    """A CSV, and beside it the pictures 0.png, 1.png and 2.png, of these seeds."""
    for i in range(3):
        save_picture(path.parent / f"{i}.png", i)
    path.write_text(text)


@dataclass(frozen=True)
class Layout:
    """What tests know of a set.

    write: fills a root with its miniature; labels, train: of the images in each split, in order, train None without one
    listed: the file that names its images or holds their labels, which our reader reads
    folders: of a set of a folder a class, where these lie, and one of its classes beyond those laid out; n: of its classes
    """

    write: Callable[[Path], None]
    labels: list[int]
    train: list[int] | None = None
    listed: str | None = None
    folders: tuple[str, str] | None = None
    n: int | None = None


LAYOUTS = {
    "cifar10": Layout(cifar10, [3, 8, 0], [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
    "cifar100": Layout(cifar100, [49, 99], [5, 6]),
    "stl10": Layout(stl10, [9, 0, 2], [0, 1]),
    "pets": Layout(pets, [0, 1, 5], [0, 1, 5], "oxford-iiit-pet/annotations/test.txt"),
    "flowers": Layout(flowers, [101, 0], [4, 5]),
    "food": Layout(food, [100, 0], [100, 0], "food-101/meta/test.json"),
    "aircraft": Layout(aircraft, [99, 0, 72], [99], "fgvc-aircraft-2013b/data/images_variant_test.txt"),
    "mnist": Layout(lambda root: idx(root, "MNIST"), [7, 2], [1], "MNIST/raw/t10k-labels-idx1-ubyte"),
    "fashion_mnist": Layout(lambda root: idx(root, "FashionMNIST"), [7, 2], [1], "FashionMNIST/raw/t10k-images-idx3-ubyte"),
    "caltech101": Layout(caltech101, [0, 0, 4, 4, 100, 100],  # Faces, accordion, yin_yang
                         folders=("caltech101/101_ObjectCategories", "anchor"), n=101),
    "eurosat": Layout(eurosat, [0, 1, 9], folders=("eurosat/2750", "Highway"), n=10),
    "imagenet": Layout(imagenet, [0, 1, 2], folders=("imagenet/val", "n01491361"), n=1000),
    "imagenetv2": Layout(imagenet_v2, [0, 1, 10, 2, 999],  # folders in the order of strings
                         folders=("ImageNetV2-matched-frequency", "3"), n=1000),
    "imagenetA": Layout(imagenet_a, [6, 988], folders=("imagenet-a", "n02317335"), n=200),
    "objectnet": Layout(objectnet, [0, 2, 2, 112], folders=("objectnet-1.0/images", "backpack"), n=113),
}  # fmt: skip
