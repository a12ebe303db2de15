"""ImageNet folders and the test sets that reuse its classes: ImageNetV2, ImageNet-A, ObjectNet. Labels come from folder names.

Each builder returns a map-style dataset of (RGB PIL image, label). Missing folders raise FileNotFoundError.
"""

import json
from pathlib import Path

from PIL import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}
OBJECTNET_CLASSES = Path(__file__).with_name("objectnet_to_imagenet.json")
OBJECTNET_BORDER = 2  # pixels: the red frame that marks every ObjectNet picture as test data


class LabelledFiles:
    """Image files with labels: `samples` is a list of (path, label). `border` pixels are cut off each side."""

    def __init__(self, samples: list[tuple[str, int]], border: int = 0):
        if not samples:
            raise FileNotFoundError("no images in these folders")
        self.samples = samples
        self.targets = [label for _, label in samples]
        self.border = border

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        with Image.open(path) as file:
            image = file.convert("RGB")  # before any crop or resize, as torchvision's image folders do
        if self.border:
            width, height = image.size
            image = image.crop((self.border, self.border, width - self.border, height - self.border))
        return image, label


def _files_below(root: Path, label_of: dict[str, int]) -> list[tuple[str, int]]:
    """(path, label) of every image in the folders of `label_of`, sorted by path as a string: 0, 1, 10, ..., 2."""
    folders = [entry for entry in root.iterdir() if entry.is_dir() and entry.name in label_of]
    files = [file for folder in folders for file in folder.iterdir() if file.suffix.lower() in SUFFIXES]
    return sorted((file.as_posix(), label_of[file.parent.name]) for file in files)


def imagenet_ids() -> list[str]:
    """The 1000 WordNet ids ("n01440764", ...) in label order."""
    from timm.data import ImageNetInfo

    return ImageNetInfo().label_names()


def objectnet_classes() -> dict[str, list[int]]:
    """ObjectNet folder -> ImageNet class indices: 113 folders in label order, 125 indices in all."""
    return json.loads(OBJECTNET_CLASSES.read_text(encoding="utf-8"))


def open_imagenet(root: Path):
    """`imagenet/val`, one folder a WordNet id. Label: position of the folder among those there, as in torchvision."""
    from torchvision.datasets import ImageFolder

    images = ImageFolder(str(root / "imagenet" / "val"))
    if len(images.classes) < 1000:
        images.notice = f"{len(images.classes)} of ImageNet's 1000 class folders: labels count these folders, sorted"
    return images


def open_imagenet_v2(root: Path) -> LabelledFiles:
    """`ImageNetV2-matched-frequency/<label>`, any number of files."""
    return LabelledFiles(_files_below(root / "ImageNetV2-matched-frequency", {str(i): i for i in range(1000)}))


def open_imagenet_a(root: Path) -> LabelledFiles:
    """`imagenet-a/<WordNet id>`, any number of files. Label: the id's position among ImageNet's 1000, not among the 200."""
    return LabelledFiles(_files_below(root / "imagenet-a", {name: i for i, name in enumerate(imagenet_ids())}))


def open_objectnet(root: Path) -> LabelledFiles:
    """`objectnet-1.0/images/<folder>`. Label: alarm_clock 0 ... wok 112; folders without an ImageNet class are left out."""
    labels = {name: i for i, name in enumerate(objectnet_classes())}
    return LabelledFiles(_files_below(root / "objectnet-1.0" / "images", labels), border=OBJECTNET_BORDER)
