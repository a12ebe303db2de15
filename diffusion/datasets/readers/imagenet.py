"""ImageNet folders and the test sets that reuse its classes: ImageNetV2, ImageNet-A, ObjectNet. Labels come from folder names.

Each builder returns a map-style dataset of (RGB PIL image, label). Raises OSError for missing folders, ValueError for strangers.
"""

import json
import os
from pathlib import Path

from diffusion.datasets.prompts import read_prompts
from diffusion.datasets.readers.folders import LabelledFiles, open_known
from diffusion.utils.paths import PROMPTS

OBJECTNET_CLASSES = Path(__file__).with_name("objectnet_to_imagenet.json")
OBJECTNET_BORDER = 2  # pixels: the red frame that marks every ObjectNet picture as test data


def imagenet_ids() -> list[str]:
    """The 1000 WordNet ids ("n01440764", ...) in label order."""
    from timm.data import ImageNetInfo

    return ImageNetInfo().label_names()


def objectnet_classes() -> dict[str, list[int]]:
    """ObjectNet folder -> ImageNet class indices: 113 folders in label order, 125 indices in all."""
    return json.loads(OBJECTNET_CLASSES.read_text(encoding="utf-8"))


def hard_classes() -> list[int]:
    """The 200 of ImageNet's class indices that ImageNet-A has, ascending."""
    return sorted(read_prompts(PROMPTS / "imagenetA_prompts.csv").classidx)


def open_imagenet(root: Path) -> LabelledFiles:
    """`imagenet/val/<WordNet id>`. Label: the id's position among ImageNet's 1000, whichever folders are there."""
    place = root / "imagenet" / "val"
    os.listdir(place)  # which fails before timm, and torch with it, is imported
    return open_known(place, {name: i for i, name in enumerate(imagenet_ids())})


def open_imagenet_v2(root: Path) -> LabelledFiles:
    """`ImageNetV2-matched-frequency/<label>`, any number of files."""
    return open_known(root / "ImageNetV2-matched-frequency", {str(i): i for i in range(1000)})


def open_imagenet_a(root: Path) -> LabelledFiles:
    """`imagenet-a/<WordNet id>` of 200 ids. Label: the id's position among ImageNet's 1000, not among the 200."""
    place = root / "imagenet-a"
    os.listdir(place)
    ids = imagenet_ids()
    return open_known(place, {ids[i]: i for i in hard_classes()})


def open_objectnet(root: Path) -> LabelledFiles:
    """`objectnet-1.0/images/<folder>`. Label: alarm_clock 0 ... wok 112; folders without an ImageNet class are left out."""
    labels = {name: i for i, name in enumerate(objectnet_classes())}
    return open_known(root / "objectnet-1.0" / "images", labels, OBJECTNET_BORDER, unlabelled=None)
