"""The image datasets by name: where their files lie, which splits they have, the paper's settings for them.

Nothing heavy is imported, opened or downloaded before `open_dataset` is called.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.datasets import counts, labels, shipped
from diffusion.datasets.images import Expected, ImageData, RawImages, Transform
from diffusion.datasets.prompts import PromptTable, prompts_from_classes, read_classes, read_prompts, read_templates
from diffusion.datasets.readers import imagenet, listed
from diffusion.datasets.readers.csv import open_csv
from diffusion.datasets.readers.folders import SPLITS, open_custom, open_known
from diffusion.datasets.readers.hub import open_hub
from diffusion.datasets.readers.idx import IdxImages, find_idx
from diffusion.datasets.readers.webdataset import open_shards
from diffusion.settings import Data
from diffusion.utils.files import one_line
from diffusion.utils.paths import PROMPTS

log = logging.getLogger(__name__)

Build = Callable[..., RawImages]  # (root, split, download), and options by name
Read = Callable[[Path, str], RawImages]  # (root, split)


@dataclass(frozen=True)
class Recipe:
    """The settings used when the flags --to_keep --n_samples --loss are not given. Published where paper.md has them."""

    to_keep: tuple[int, ...]
    n_samples: tuple[int, ...]
    loss: str

    def restrict(self, n: int) -> "Recipe":
        """The recipe for fewer candidates: without the stages that would drop none of them.

        With 20 they cost what the paper's Table 7 says: 35 of 51 s on Food, 150 of 1,000 s on ImageNet.

        Args:
            n: of candidates, fewer than it is for.
        """
        stages = [(k, samples) for k, samples in zip(self.to_keep, self.n_samples, strict=True) if k < n or k == 1]
        return Recipe(tuple(k for k, _ in stages), tuple(samples for _, samples in stages), self.loss)


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset.

    build           (root, split, download) -> map-style dataset of (PIL image, label), without a transform; also takes the
                    options in `takes`, by name
    splits          allowed names; empty: the data decides (Hugging Face)
    layout          what has to lie under the root, for the message about missing data
    recipe          None: the flags have to be given
    prompts         file in prompts/; None: prompts are made from the class names
    downloadable    torchvision can fetch it
    template        that makes prompts of class names where no other is given
    takes           of MORE, the options that mean something here
    custom          the user's own: --data_dir is the set itself, not a folder of all sets
    """

    build: Build
    splits: tuple[str, ...]
    layout: str
    recipe: Recipe | None
    prompts: str | None
    downloadable: bool
    template: str = "a photo of a {}."
    takes: tuple[str, ...] = ()
    custom: bool = False


# ---------------------------------------------------------------- builders


def _torchvision_set(name: str, root: Path, **options: Any) -> Any:  # which says no types
    """torchvision's data set. Raises OSError with its complaint, whatever its class; ValueError for files that are not those that
    it knows."""
    log.info("%s torchvision's %s in %s ...", "Fetching" if options.get("download") else "Reading", name, root)
    from torchvision import datasets

    try:
        return getattr(datasets, name)(str(root), **options)
    except Exception as error:  # for files that are damaged its readers raise nearly anything
        if changed := None if options.get("download") else _of_another_sum(getattr(datasets, name), root):
            raise ValueError(f"--dataset {name.lower()}: {changed}") from None
        raise OSError(one_line(error)) from error


def _of_another_sum(cls: Any, root: Path) -> str | None:
    """The complaint about the first file that is there and is not the one whose MD5 sum torchvision lists, and what to do."""
    from torchvision.datasets.utils import calculate_md5

    known = [*getattr(cls, "train_list", ()), *getattr(cls, "test_list", ())]
    for name, md5 in known:
        path = root / cls.base_folder / name
        if path.is_file() and (found := calculate_md5(path)) != md5:
            fetch = "fetch it again, or use these images as class folders (--dataset folder) or a list (--dataset csv)"
            return f"{path} is not the file that torchvision knows: its MD5 sum is {found}, not {md5}; {fetch}"
    return None


def _with_train_flag(name: str) -> Build:
    """torchvision datasets that take train=True or False."""
    return lambda root, split, download: _torchvision_set(name, root, train=split == "train", download=download)


def _with_split(name: str) -> Build:
    """torchvision datasets that take split="test" or "train"."""
    return lambda root, split, download: _torchvision_set(name, root, split=split, download=download)


def _flowers(root: Path, split: str, download: bool) -> RawImages:
    flowers = _torchvision_set("Flowers102", root, split=split, download=download)
    listed.check_files(flowers._image_files, root / "flowers-102" / "setid.mat")
    return flowers


def _fetched(torchvision: str, read: Read) -> Build:
    """Sets that torchvision only fetches; read(root, split) opens them, and checks what torchvision takes for granted."""

    def build(root: Path, split: str, download: bool) -> RawImages:
        if download:
            _torchvision_set(torchvision, root, download=True)
        return read(root, split)

    return build


def _idx(name: str) -> Build:
    """MNIST and its kin: {train,t10k}-..."""
    return _fetched(name, lambda root, split: IdxImages(_idx_folder(root, name), "train" if split == "train" else "t10k"))


def _idx_folder(root: Path, name: str) -> Path:
    """Where the files are: <name>/raw/ as torchvision lays them out, or the folder itself, as of Debian's packages."""
    torchvisions = root / name / "raw"
    return root if find_idx(root, "train-labels-idx1-ubyte") and not torchvisions.is_dir() else torchvisions


def _listed(name: str, torchvision: str, read: Callable[[Path, str, list[str]], RawImages]) -> Build:
    """Sets with lists of their images: read(root, split, class names)."""
    return _fetched(torchvision, lambda root, split: read(root, split, class_names(name)))


def _class_folders(name: str, torchvision: str, place: str, unlabelled: Set[str] = frozenset()) -> Build:
    """Sets of class folders below `place`, all images in one split."""

    def read(root: Path, split: str) -> RawImages:
        return open_known(root / place, {c: i for i, c in enumerate(class_names(name))}, unlabelled=unlabelled)

    return _fetched(torchvision, read)


def _fashion_mnist(root: Path, split: str, download: bool) -> RawImages:
    """The full set where it is, else the shipped part of the test set; the validation images ship."""
    if split == "validation":
        return shipped.Clothes(split)
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    complete = all(find_idx(_idx_folder(root, "FashionMNIST"), f"{part}-ubyte") for part in parts)
    if complete or download or split == "train":
        return _idx("FashionMNIST")(root, split, download)
    return shipped.Clothes(split)


def _tiny_combos(root: Path, split: str, download: bool) -> RawImages:
    return shipped.Combos(split)


def _tiny_scenes(root: Path, split: str, download: bool) -> RawImages:
    return shipped.Scenes(split)


def _announced(build: Build) -> Build:
    """Says that it begins, as it may list or read many files."""

    def announced(root: Path, *args: Any, **options: Any) -> RawImages:
        log.info("Reading the images in %s ...", root)
        return build(root, *args, **options)

    return announced


def _custom(build: Build, splits: tuple[str, ...], layout: str, *more: str) -> DatasetSpec:
    """Sets of the user's own: build(root, split, classes=names, ...); more: what else it takes."""
    announced = _announced(lambda root, split, download, **options: build(root, split, **options))
    return DatasetSpec(announced, splits, layout, None, None, False, takes=("classes", *more), custom=True)


# ---------------------------------------------------------------- the table

OF_HUB = ("config_name", "image_column", "label_column", "streaming", "limit")
MORE = ("classes", *OF_HUB)  # options beside dataset, split, data_dir and download
BOTH = ("train", "test")
CLIPS = "clip"  # in place of a file of templates
SHORT = Recipe((5, 1), (50, 500), "l2")
LONG = Recipe((20, 10, 5, 1), (20, 50, 100, 500), "l2")
LONG_L1 = Recipe((20, 10, 5, 1), (20, 50, 100, 500), "l1")
COMBOS = Recipe((20, 5, 1), (5, 20, 50), "l1")
IMAGENET = Recipe((500, 50, 10, 1), (50, 100, 500, 1000), "l2")


def _torchvision(build: Build, layout: str, recipe: Recipe, prompts: str, splits: tuple[str, ...] = BOTH) -> DatasetSpec:
    return DatasetSpec(build, splits, layout, recipe, f"{prompts}_prompts.csv", downloadable=True)


def _by_hand(build: Callable[[Path], RawImages], layout: str, recipe: Recipe, prompts: str) -> DatasetSpec:
    """Test sets laid out by hand: one split, no download."""
    return DatasetSpec(_announced(lambda root, split, download: build(root)), ("test",), layout, recipe, prompts, False)


DATASETS: dict[str, DatasetSpec] = {
    "cifar10": _torchvision(
        _with_train_flag("CIFAR10"),
        "cifar-10-batches-py/ with data_batch_1 ... data_batch_5, test_batch and batches.meta",
        Recipe((5, 1), (50, 500), "l1"),
        "cifar10",
    ),
    "cifar100": _torchvision(_with_train_flag("CIFAR100"), "cifar-100-python/ with train, test and meta", LONG_L1, "cifar100"),
    "stl10": _torchvision(
        _with_split("STL10"),
        "stl10_binary/ with test_X.bin, test_y.bin and the other .bin files",
        Recipe((5, 1), (100, 500), "l1"),
        "stl10",
    ),
    "pets": _torchvision(
        _listed("pets", "OxfordIIITPet", listed.open_pets),
        "oxford-iiit-pet/images/*.jpg and oxford-iiit-pet/annotations/ with trainval.txt and test.txt",
        Recipe((5, 1), (25, 250), "l1"),
        "pets",
    ),
    "flowers": _torchvision(
        _flowers,
        "flowers-102/jpg/*.jpg, flowers-102/imagelabels.mat and flowers-102/setid.mat",
        LONG_L1,
        "flowers",
    ),
    "food": _torchvision(
        _listed("food", "Food101", listed.open_food),
        "food-101/images/<class>/*.jpg and food-101/meta/ with train.json and test.json",
        LONG,
        "food",
    ),
    "aircraft": _torchvision(
        _listed("aircraft", "FGVCAircraft", listed.open_aircraft),
        "fgvc-aircraft-2013b/data/ with images/ and images_variant_test.txt (train: images_variant_trainval.txt)",
        LONG,
        "aircraft",
    ),
    "mnist": _torchvision(_idx("MNIST"), "MNIST/raw/ with the four idx files, unpacked", SHORT, "mnist"),
    "fashion_mnist": _torchvision(
        _fashion_mnist,
        "FashionMNIST/raw/ with the four idx files, unpacked",
        Recipe((5, 1), (10, 50), "l1"),
        "fashion_mnist",
        splits=("train", "validation", "test"),
    ),
    "tiny_combos": DatasetSpec(
        _tiny_combos, ("validation", "folds", "test"), "nothing: it ships", COMBOS, "tiny_combos_prompts.csv", False
    ),
    "tiny_scenes": DatasetSpec(_tiny_scenes, shipped.Scenes.SIZES, "nothing: it ships", None, None, False, template="{}"),
    "caltech101": _torchvision(
        _class_folders("caltech101", "Caltech101", "caltech101/101_ObjectCategories", {"BACKGROUND_Google"}),
        "caltech101/101_ObjectCategories/<class>/image_0001.jpg ...",
        LONG,
        "caltech101",
        splits=("test",),  # neither set has an official split: all images
    ),
    "eurosat": _torchvision(
        _class_folders("eurosat", "EuroSAT", "eurosat/2750"),
        "eurosat/2750/<class>/*.jpg",
        SHORT,
        "eurosat",
        splits=("test",),
    ),
    "imagenet": _by_hand(
        imagenet.open_imagenet,
        "imagenet/val/<WordNet id>/*.JPEG",
        IMAGENET,
        "imagenet_prompts.csv",
    ),
    "imagenetv2": _by_hand(
        imagenet.open_imagenet_v2,
        "ImageNetV2-matched-frequency/<0 ... 999>/*.jpeg",
        IMAGENET,
        "imagenet_prompts.csv",
    ),
    "imagenetA": _by_hand(
        imagenet.open_imagenet_a,
        "imagenet-a/<WordNet id>/*.jpg",
        Recipe((100, 50, 10, 1), (50, 100, 500, 1000), "l2"),  # ours: of its 200 classes half go on, as of ImageNet's
        "imagenetA_prompts.csv",
    ),
    "objectnet": _by_hand(
        imagenet.open_objectnet,
        "objectnet-1.0/images/<class>/*.png",
        Recipe((25, 10, 5, 1), (50, 100, 500, 1000), "l2"),
        "objectnet_prompts.csv",
    ),
    "folder": _custom(
        lambda root, split, **classes: open_custom(root, **classes), ("test",), "<class name>/*.jpg (or .png, ...)"
    ),
    "hf": _custom(open_hub, (), "a dataset saved to disk, parquet files, or images in folders", *OF_HUB),
    "webdataset": _custom(open_shards, (), "classnames.txt, <split>/nshards.txt and <split>/0.tar ... (or a single .tar)"),
    "csv": _custom(lambda root, split, **classes: open_csv(root, **classes), ("test",), "a CSV file with the columns path,label"),
}


CUSTOM_FILES = (".csv", ".tar")  # a set of the user's own that is one file
LONGEST_NAME = 100  # bytes, of a set: file systems take 255 with what --extra adds
OF_IMAGENET = ("imagenet", "imagenetv2", "imagenetA", "objectnet")  # whose classes are ImageNet's, or are made of them


# ---------------------------------------------------------------- what the commands call


def open_dataset(
    name: str,
    split: str,
    transform: Transform | None,
    root: str | Path,
    *,
    download: bool = False,
    **more: Any,
) -> ImageData:
    """One split of a data set.

    Args:
        name: one of DATASETS.
        split: one of its splits.
        transform: of PIL images; None: they stay what they are.
        root: holds all data sets; a set of the user's own is what lies there, for "hf" it may be a hub name.
        download: fetch what is missing, where torchvision can.
        more: of MORE, as `settings.Data` has them.

    Returns:
        (image, label) by index, with names of classes.

    Raises:
        ValueError: an unknown name, split or column, damaged files, strangers' folders, impossible labels; in one line.
        FileNotFoundError: data that are missing; in one line.
    """
    given = {option: value for option, value in more.items() if value is not None and value is not False}
    spec = _check(name, split, download, given)
    if "classes" in given:
        given["classes"] = read_classes(given["classes"], "--classes")
    try:
        raw = spec.build(Path(root).expanduser(), split, download, **given)
        data = ImageData(raw, transform, class_names(name, raw))
        data.notice = "; ".join(filter(None, (data.notice, _check_labels(name, data)))) or None
    except OSError as error:
        raise FileNotFoundError(_missing(name, spec, root, download, error)) from error
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("--") else f"--dataset {name}: {error}") from error
    return data


def _check_labels(name: str, data: ImageData) -> str | None:
    """What to say of classes without images. Raises ValueError for a label of no class, OSError for a set without images."""
    if not len(data):
        raise FileNotFoundError("no images")
    if len(data.labels) != len(data):
        raise FileNotFoundError(f"{len(data)} images and {len(data.labels)} labels")
    n = len(data.classes)
    wrong = np.flatnonzero((data.labels < 0) | (data.labels >= n))
    if len(wrong):
        raise ValueError(f"image {wrong[0]} has the label {data.labels[wrong[0]]}, and the {n} classes are 0..{n - 1}")
    expected, present = set(labels_of_classes(name, n).values()), set(data.labels.tolist())
    lacking = [data.classes[label] for label in sorted(expected - present)]
    if not lacking or data.n_candidates:
        return None
    named = ", ".join(lacking[:3]) + (", ..." if lacking[3:] else "")
    return f"images of {len(expected) - len(lacking)} of {len(expected)} classes, none of {named}: all stay candidates"


def open_images(data: Data, dry_run: bool = False) -> ImageData:
    """The images that settings name, without a transform.

    Args:
        data: the settings.
        dry_run: nothing is fetched, and of a published set whose files are missing what is known of it is returned, `Expected`.

    Raises:
        ValueError, FileNotFoundError: as `open_dataset`.
    """
    more = {name: getattr(data, name) for name in MORE}
    assert data.data_dir is not None  # as `cli.resolve` gives it
    if not dry_run:
        return open_dataset(data.dataset, data.split, None, data.data_dir, download=data.download, **more)
    _check(data.dataset, data.split, data.download, ())
    fetch = f"--dataset {data.dataset} is not in {data.data_dir}, and a run fetches it there first"
    try:
        images = open_dataset(data.dataset, data.split, None, data.data_dir, **more)
    except FileNotFoundError as error:
        n = counts.n_images(data.dataset, data.split)
        if n is None:
            raise
        return Expected(n, class_names(data.dataset), fetch if data.download else str(error), data.download)
    if data.download and data.split == "test" and isinstance(images.raw, shipped.Clothes):
        return Expected(counts.FETCHED_FASHION_MNIST, images.classes, fetch, True)
    return images


def name_of(data: Data) -> str:
    """What run folders and results call a set: one of the user's own by its place too, as in `folder_cats` of photos/cats; of a
    split `folder_cats_test`, of photos/cats/test.

    Args:
        data: the settings that name it.
    """
    spec = DATASETS.get(data.dataset)
    if not (spec and spec.custom and data.data_dir):
        return data.dataset
    place = Path(os.path.abspath(data.data_dir))
    last = place.stem if place.suffix in CUSTOM_FILES else place.name
    parts = [place.parent.name] if last in SPLITS else []
    called = "_".join(filter(None, [data.dataset, *parts, last, data.config_name]))
    called = "".join(sign if sign.isprintable() and sign not in "/\\" else "_" for sign in called)
    return called.encode()[:LONGEST_NAME].decode(errors="ignore")


def _check(name: str, split: str, download: bool, given: Iterable[str]) -> DatasetSpec:
    if name not in DATASETS:
        raise ValueError(f"--dataset {name}: unknown; choose from {', '.join(DATASETS)}")
    spec = DATASETS[name]
    if spec.splits and split not in spec.splits:
        raise ValueError(f"--split {split}: {name} has {', '.join(spec.splits)}")
    if download and not spec.downloadable:
        raise ValueError(f"--download: {name} cannot be downloaded here; put it under --data_dir by hand")
    idle = next((option for option in given if option not in spec.takes), None)
    if idle:
        owners = " or ".join(other for other, its in DATASETS.items() if idle in its.takes)
        raise ValueError(f"--{idle} is for --dataset {owners} only: leave it out")
    return spec


def _missing(name: str, spec: DatasetSpec, root: str | Path, download: bool, error: Exception) -> str:
    if download:
        return f"--dataset {name} --download: could not be fetched into {root} ({one_line(error)})"
    cause = one_line(error).split(" You can use download=True")[0]  # torchvision's advice, where ours is --download
    where = "set --data_dir" if spec.custom else "set --data_dir or DATASET_ROOT"
    fetch = ", or fetch it with --download" if spec.downloadable else ""
    return f"--dataset {name}: expected {spec.layout} in {Path(root)}; {where}{fetch} ({cause})"


def class_names(name: str, dataset: Any = None) -> list[str]:
    """Class names in label order.

    Args:
        name: one of DATASETS.
        dataset: opened, an ImageData or raw, for sets of the user's own; the others ignore it.
    """
    prompts = DATASETS[name].prompts
    if prompts is None:
        return list(dataset.classes)
    # ImageNet-A has prompts for 200 classes, but its labels count all 1000
    table = read_prompts(PROMPTS / ("imagenet_prompts.csv" if name == "imagenetA" else prompts))
    return table.classnames


def labels_of_classes(name: str, n_classes: int) -> dict[int, int]:
    """Class id of a class-conditional model -> label of a data set, ascending by class id.

    The test sets that reuse ImageNet's classes have some of the ids: 200 of ImageNet-A, which keeps them as labels, and 125
    of ObjectNet, several to one label.

    Args:
        name: one of DATASETS.
        n_classes: how many labels it has.
    """
    if name == "objectnet":
        ids = imagenet.objectnet_classes().values()
        return dict(sorted((i, label) for label, several in enumerate(ids) for i in several))
    if name == "imagenetA":
        return {i: i for i in imagenet.hard_classes()}
    return {i: i for i in range(n_classes)}


def recipe_for(name: str, n_prompts: int) -> Recipe:
    """The data set's recipe; for a set without one the paper's stages for few or for many classes.

    Args:
        name: one of DATASETS.
        n_prompts: of candidates.
    """
    if recipe := DATASETS[name].recipe:
        return recipe
    return LONG if n_prompts > 40 else Recipe((min(5, n_prompts), 1), SHORT.n_samples, SHORT.loss)


def load_prompts(name: str, dataset: ImageData, prompt_path: str | None, template: str | None) -> PromptTable:
    """The prompts of a run: a CSV's, or the class names in a template, or what ships for the data set, in this order.

    Args:
        name: one of DATASETS.
        dataset: opened.
        prompt_path: the CSV.
        template: with {} where the class name goes.

    Raises:
        ValueError: the table names a class which the data set lacks, or another one.
    """
    if prompt_path and template:
        raise ValueError("--prompt_path and --template both say what the prompts are: give one of them")
    shipped = DATASETS[name].prompts
    if template and shipped:
        table = read_prompts(PROMPTS / shipped)  # which has the rows that matter: 200 of 1000 for ImageNet-A
        names = _names_in_prompt(shipped.removesuffix("_prompts.csv"), table)
        return PromptTable(prompts_from_classes(names, template).prompts, table.classnames, table.classidx, table.published)
    path = prompt_path or (shipped and PROMPTS / shipped)
    if not path:
        names, notice = _spoken(name, dataset.classes, template)
        table = prompts_from_classes(names, template or DATASETS[name].template)
        return replace(table, notice=notice)
    table = read_prompts(path)
    unknown = sorted(set(table.classidx) - set(range(len(dataset.classes))))
    if unknown:
        raise ValueError(f"{path}: classidx {unknown[0]} is no class of {name}, which has 0..{len(dataset.classes) - 1}")
    return _compared(path, table, name, dataset) if prompt_path else table


def _compared(path: str | Path, table: PromptTable, name: str, dataset: ImageData) -> PromptTable:
    """A CSV's table, with a notice where it calls classes otherwise than the dataset. Raises ValueError for another order."""
    try:
        names = _spoken(name, dataset.classes, "{}")[0] if DATASETS[name].custom else dataset.classes
        return replace(table, notice=labels.disagreement(table.classnames, table.classidx, names))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _spoken(name: str, classes: Sequence[str], template: str | None) -> tuple[list[str], str | None]:
    """`labels.spoken`, for prompts with this template; one that the user gave may take numbers."""
    try:
        return labels.spoken(classes, lambda: dict(zip(imagenet.imagenet_ids(), class_names("imagenet"), strict=True)))
    except ValueError as error:
        if template:
            return list(classes), str(error)
        how = "give names with --classes, prompts with --prompt_path, or a --template"
        raise ValueError(f"--dataset {name}: {error}: {how}") from None


def templates_of(name: str, requested: str) -> list[str]:
    """What --templates names.

    Args:
        name: one of DATASETS.
        requested: CLIPS, or a text file of one template per line.

    Raises:
        ValueError: the file cannot be read; and as `clip_templates`.
    """
    return clip_templates(name) if requested == CLIPS else read_templates(requested)


def clip_templates(name: str) -> list[str]:
    """The templates that CLIP's authors published for a data set, or for ImageNet where it reuses its classes.

    Args:
        name: one of DATASETS.

    Raises:
        ValueError: a data set without any.
    """
    path = PROMPTS / (DATASETS[name].prompts or name).replace("_prompts.csv", "_templates.txt")
    if not path.name.endswith("_templates.txt") or not path.is_file():
        raise ValueError(f"--templates clip: CLIP's authors published none for {name}: name a file with one template per line")
    return read_templates(path)


def _names_in_prompt(name: str, table: PromptTable) -> list[str]:
    """The names that the shipped prompts use, such as "boot" for "Ankle boot"; ImageNet's are its class names."""
    names = json.loads((PROMPTS / "classes.json").read_text(encoding="utf-8"))[name]["names_in_prompt"]
    return names if isinstance(names, list) else table.classnames
