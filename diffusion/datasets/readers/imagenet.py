"""ImageNet folders and the test sets that reuse its classes: ImageNetV2, ImageNet-A, ObjectNet. Labels come from folder names.

Each builder returns a map-style dataset of (RGB PIL image, label). Raises OSError for missing folders, ValueError for strangers.
"""

import json
import os
import re
from pathlib import Path

from diffusion.datasets.prompts import read_prompts
from diffusion.datasets.readers.folders import LabelledFiles, open_known
from diffusion.utils.files import read_csv
from diffusion.utils.paths import PROMPTS

VAL_FOLDERS = ("val", "ILSVRC/Data/CLS-LOC/val")  # the second as Kaggle's archive has it
FLAT = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
KAGGLE, SYNSETS = "LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt"
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
    """`imagenet/val/<WordNet id>`, or all pictures in one folder, as they are unpacked, with a list of their ids beside it.

    Label: the id's position among ImageNet's 1000, whichever are there. Raises ValueError for pictures without such a list.
    """
    places = [root / "imagenet" / part for part in VAL_FOLDERS]
    place = next(filter(Path.is_dir, places), places[0])
    flat = sorted(name for name in os.listdir(place) if FLAT.fullmatch(name))  # fails before timm, and torch with it, is imported
    label_of = {name: i for i, name in enumerate(imagenet_ids())}
    if not flat:
        return open_known(place, label_of)
    id_of = _ids_of_pictures([root / "imagenet", place.parent, place], place)
    try:
        return LabelledFiles([(str(place / name), label_of[id_of[Path(name).stem]]) for name in flat])
    except KeyError as error:
        raise ValueError(f"{place}: the list of its pictures' WordNet ids lacks {error}") from None


def _ids_of_pictures(folders: list[Path], place: Path) -> dict[str, str]:
    """Name of a picture, without its suffix -> WordNet id, by KAGGLE or by SYNSETS, which has one id a line in order of names."""
    for folder in folders:
        if (folder / KAGGLE).is_file():
            rows = read_csv(folder / KAGGLE, "list of pictures", ("ImageId", "PredictionString"))
            return {row["ImageId"]: row["PredictionString"].split(" ")[0] for _, row in rows}
        if (folder / SYNSETS).is_file():
            lines = (folder / SYNSETS).read_text(encoding="utf-8").split()
            return {f"ILSVRC2012_val_{i:08d}": line for i, line in enumerate(lines, 1)}
    how = f"put {KAGGLE} or {SYNSETS} beside it, or move them into such folders"
    raise ValueError(f"{place} holds pictures and no folders of classes: {how}")


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
