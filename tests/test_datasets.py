"""Every dataset on a few images laid out as on disk: order, labels, pixels, and what is said when something is wrong."""

import hashlib
import subprocess
import sys
from pathlib import Path

import layouts
import numpy as np
import pytest
from PIL import Image

from diffusion.datasets import DATASETS, class_names, open_dataset
from diffusion.datasets.prompts import read_prompts
from diffusion.datasets.readers.imagenet import objectnet_classes
from diffusion.utils.paths import PROMPTS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def without_md5(monkeypatch):
    layouts.forget_sums(monkeypatch)


def size_of(image):
    return image.size


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_labels_order_and_images(name, tmp_path):
    layouts.LAYOUTS[name].write(tmp_path)
    dataset = open_dataset(name, "test", None, tmp_path)
    items = [dataset[i] for i in range(len(dataset))]
    assert [label for _, label in items] == layouts.LAYOUTS[name].labels
    assert all(type(label) is int for _, label in items)
    assert all(isinstance(image, Image.Image) for image, _ in items)
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.tolist() == layouts.LAYOUTS[name].labels
    assert max(layouts.LAYOUTS[name].labels) < len(dataset.classes)


def test_every_dataset_with_own_files_is_covered():
    assert set(layouts.LAYOUTS) | {"folder", "hf", "webdataset", "csv", "tiny_combos", "tiny_scenes"} == set(DATASETS)


@pytest.mark.parametrize("name", [name for name, layout in layouts.LAYOUTS.items() if layout.train is not None])
def test_train_split(name, tmp_path):
    layouts.LAYOUTS[name].write(tmp_path)
    assert open_dataset(name, "train", None, tmp_path).labels.tolist() == layouts.LAYOUTS[name].train


@pytest.mark.parametrize("name", ["caltech101", "eurosat"])
def test_sets_without_an_official_split_offer_one(name, tmp_path):
    layouts.LAYOUTS[name].write(tmp_path)
    with pytest.raises(ValueError, match="--split train"):
        open_dataset(name, "train", None, tmp_path)


def test_pets_splits_are_different_images(tmp_path):
    layouts.pets(tmp_path)
    train, test = (open_dataset("pets", split, None, tmp_path)[0][0] for split in ("train", "test"))
    assert not np.array_equal(train, test)


def test_the_transform_gets_the_image(tmp_path):
    layouts.cifar10(tmp_path)
    assert open_dataset("cifar10", "test", size_of, tmp_path)[1] == ((32, 32), 8)


def test_objectnet_loses_its_border_before_the_transform_and_is_rgb(tmp_path):
    layouts.objectnet(tmp_path)
    dataset = open_dataset("objectnet", "test", None, tmp_path)
    first = dataset[0][0]
    assert np.array_equal(first, np.asarray(layouts.picture(1))[2:-2, 2:-2])
    assert dataset[2][0].mode == "RGB"  # stored with a palette
    assert open_dataset("objectnet", "test", size_of, tmp_path)[0] == ((16, 12), 0)


def test_objectnet_mapping_is_in_label_order():
    mapping = objectnet_classes()
    assert len(mapping) == 113
    assert sum(len(ids) for ids in mapping.values()) == 125
    assert list(mapping) == class_names("objectnet")
    assert mapping["banana"] == [954]


def test_class_names_agree_with_torchvision():
    """Where torchvision lists all classes in its code, in the order of its labels."""
    from torchvision.datasets import MNIST, FashionMNIST, Flowers102

    assert class_names("fashion_mnist") == FashionMNIST.classes
    assert [name[0] for name in MNIST.classes] == class_names("mnist")
    ours, theirs = class_names("flowers"), Flowers102.classes
    respelt = {a: b for a, b in zip(ours, theirs, strict=True) if a != b}
    assert respelt.keys() == {"globe flower", "pink and yellow dahlia", "air plant"}


@pytest.mark.parametrize("name", ["caltech101", "eurosat", "food", "objectnet"])
def test_class_names_of_sorted_folders_are_sorted(name):
    assert class_names(name) == sorted(class_names(name))


def test_class_names_of_imagenet_a_count_all_of_imagenet():
    assert class_names("imagenetA") == class_names("imagenet")
    assert class_names("imagenetA")[988] == "acorn"


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_missing_data_is_one_line_that_says_what_and_where(name, tmp_path):
    split = "train" if name == "fashion_mnist" else "test"  # its test images ship
    root = tmp_path / "nothing"
    with pytest.raises(FileNotFoundError) as caught:
        open_dataset(name, split, None, root)
    message = str(caught.value)
    assert "\n" not in message
    for part in (f"--dataset {name}", DATASETS[name].layout, str(root), "--data_dir", "DATASET_ROOT"):
        assert part in message
    assert ("--download" in message) == DATASETS[name].downloadable
    assert not root.exists()  # nothing written


def test_fashion_mnist_prefers_the_full_copy(tmp_path):
    layouts.idx(tmp_path, "FashionMNIST", test_labels=(9, 9, 1))
    dataset = open_dataset("fashion_mnist", "test", None, tmp_path)
    assert "shipped" not in dataset.notice
    assert dataset.labels.tolist() == [9, 9, 1]


def test_fashion_mnist_falls_back_to_the_shipped_images_and_says_so(tmp_path, monkeypatch):
    layouts.idx(tmp_path / "shipped", "FashionMNIST", test_labels=(4, 0, 8))
    monkeypatch.setattr("diffusion.datasets.shipped.CLOTHES", tmp_path / "shipped" / "FashionMNIST" / "raw")
    dataset = open_dataset("fashion_mnist", "test", None, tmp_path)
    assert "3 shipped test images" in dataset.notice
    assert dataset.labels.tolist() == [4, 0, 8]
    layouts.idx(tmp_path, "FashionMNIST", test_labels=(4, 0, 8))
    full = open_dataset("fashion_mnist", "test", None, tmp_path)
    assert all(np.array_equal(dataset[i][0], full[i][0]) and dataset[i][1] == full[i][1] for i in range(3))


@pytest.mark.parametrize(
    "arguments,parts",
    [
        (("cifar11", "test"), ("--dataset cifar11", "cifar10", "objectnet")),
        (("cifar10", "val"), ("--split val", "train, test")),
        (("imagenet", "train"), ("--split train", "imagenet has test")),
    ],
)
def test_unknown_names_list_the_allowed_ones(arguments, parts, tmp_path):
    with pytest.raises(ValueError) as caught:
        open_dataset(*arguments, None, tmp_path)
    assert all(part in str(caught.value) for part in parts)


def test_flags_that_do_not_fit_the_dataset(tmp_path):
    with pytest.raises(ValueError, match="--download: imagenet cannot be downloaded"):
        open_dataset("imagenet", "test", None, tmp_path, download=True)
    with pytest.raises(ValueError, match="--label_column is for --dataset hf only"):
        open_dataset("cifar10", "test", None, tmp_path, label_column="label")


# ---------------------------------------------------------------- broken images


@pytest.mark.parametrize("damage", [lambda data: b"not an image", lambda data: data[: len(data) // 2], lambda data: b""])
@pytest.mark.parametrize("name,file", [("food", "apple_pie/20.jpg"), ("pets", "Abyssinian_101.jpg")])
def test_a_broken_file_is_an_os_error_with_index_and_path(name, file, damage, tmp_path):
    layouts.LAYOUTS[name].write(tmp_path)
    path = next(tmp_path.rglob(file))
    path.write_bytes(damage(path.read_bytes()))
    dataset = open_dataset(name, "test", None, tmp_path)
    broken = {"food": 1, "pets": 0}[name]
    with pytest.raises(OSError, match=rf"image {broken} \(.*{path.name}\) cannot be read") as caught:
        dataset[broken]
    assert "\n" not in str(caught.value)
    assert dataset[1 - broken][1] == layouts.LAYOUTS[name].labels[1 - broken]  # the others still open
    assert len(dataset) == len(layouts.LAYOUTS[name].labels)


def test_a_broken_caltech_image_is_found(tmp_path):
    layouts.caltech101(tmp_path)
    path = tmp_path / "caltech101/101_ObjectCategories/Faces/image_0002.jpg"
    path.write_bytes(path.read_bytes()[:-200])  # the header stays whole
    with pytest.raises(OSError, match=r"image 1 \(.*Faces/image_0002.jpg\) cannot be read"):
        open_dataset("caltech101", "test", size_of, tmp_path)[1]


@pytest.mark.parametrize(("name", "layout"), [("cifar10", layouts.cifar10), ("stl10", layouts.stl10)])
def test_files_that_torchvision_does_not_know_are_named(name, layout, tmp_path, monkeypatch):
    monkeypatch.undo()  # of the sums that are not looked at elsewhere
    layout(tmp_path)
    (path,) = (file for file in tmp_path.rglob("*") if file.name in ("data_batch_1", "train_X.bin"))
    sum_of = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"{path.name} is not the file that torchvision knows: its MD5 sum is {sum_of}, not"):
        open_dataset(name, "test", None, tmp_path)


def test_an_error_of_the_transform_is_not_called_a_broken_image(tmp_path):
    layouts.cifar10(tmp_path)

    def fails(image):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        open_dataset("cifar10", "test", fails, tmp_path)[0]


# ---------------------------------------------------------------- own folders and Hugging Face


def image_folder(root: Path) -> Path:
    for i, name in enumerate(("zebra", "ant", "sea_horse")):
        layouts.save_picture(root / name / "1.png", i)
    return root


def test_folder_classes_are_sorted_sub_folders(tmp_path):
    dataset = open_dataset("folder", "test", None, image_folder(tmp_path / "set"))
    assert dataset.classes == ["ant", "sea_horse", "zebra"]
    assert dataset.labels.tolist() == [0, 1, 2]
    assert np.array_equal(dataset[2][0], layouts.picture(0))


@pytest.mark.parametrize("exists", [True, False])
def test_folder_without_classes_is_missing_data(exists, tmp_path):
    root = tmp_path / "empty"
    if exists:
        root.mkdir()
    with pytest.raises(FileNotFoundError, match=r"--dataset folder: expected <class name>/\*\.jpg") as caught:
        open_dataset("folder", "test", None, root)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def hub_table(labels, label_name="label", label_type=None):
    import datasets

    columns = {"id": list(range(len(labels))), "picture": [layouts.picture(i) for i in range(len(labels))], label_name: labels}
    table = datasets.Dataset.from_dict(columns).cast_column("picture", datasets.Image())
    return table.cast_column(label_name, label_type) if label_type else table


def test_hf_saved_to_disk_with_class_labels(tmp_path):
    import datasets

    table = hub_table([1, 0, 1], "species", datasets.ClassLabel(names=["wasp", "ant"]))
    datasets.DatasetDict({"test": table, "train": table.select([1])}).save_to_disk(str(tmp_path / "set"))
    dataset = open_dataset("hf", "test", None, tmp_path / "set")
    assert dataset.classes == ["wasp", "ant"]
    assert dataset.labels.tolist() == [1, 0, 1]
    assert np.array_equal(dataset[2][0], layouts.picture(2))
    assert dataset[2][1] == 1
    assert len(open_dataset("hf", "train", None, tmp_path / "set")) == 1
    with pytest.raises(ValueError, match=r"--split validation: .* has test, train"):
        open_dataset("hf", "validation", None, tmp_path / "set")


@pytest.mark.parametrize("name", ["label", "labels", "fine_label"])
def test_hf_label_column_is_found_by_name(name, tmp_path):
    hub_table([0, 3], name).save_to_disk(str(tmp_path / "set"))
    dataset = open_dataset("hf", "test", None, tmp_path / "set")
    assert dataset.labels.tolist() == [0, 3]
    assert dataset.classes == ["0", "1", "2", "3"]


def test_hf_text_labels_are_sorted(tmp_path):
    hub_table(["wasp", "ant", "wasp"], "kind").save_to_disk(str(tmp_path / "set"))
    dataset = open_dataset("hf", "test", None, tmp_path / "set", image_column="picture", label_column="kind")
    assert dataset.classes == ["ant", "wasp"]
    assert dataset.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "columns,message",
    [
        ({}, "--label_column is needed: 0 columns could be meant; there are id, picture, kind"),
        ({"label_column": "sort"}, "--label_column sort: no such column"),
        ({"label_column": "kind", "image_column": "photo"}, "--image_column photo: no such column"),
        ({"label_column": "kind", "image_column": "id"}, "--image_column id holds no images; columns with images: picture"),
    ],
)
def test_hf_columns_that_cannot_be_used(columns, message, tmp_path):
    hub_table(["wasp", "ant"], "kind").save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ValueError, match=message):
        open_dataset("hf", "test", None, tmp_path / "set", **columns)


def test_hf_split_without_labels(tmp_path):
    hub_table([-1, -1]).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ValueError, match="--label_column label: this split has rows without a label"):
        open_dataset("hf", "test", None, tmp_path / "set")


def test_hf_broken_image(tmp_path):
    import datasets

    table = datasets.Dataset.from_dict({"image": [{"bytes": b"nothing", "path": None}, None], "label": [0, 1]})
    table.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "set"))
    dataset = open_dataset("hf", "test", None, tmp_path / "set")
    for index in (0, 1):
        with pytest.raises(OSError, match=f"image {index} cannot be read"):
            dataset[index]


def test_hf_folder_of_images(tmp_path, hub_cache):
    image_folder(tmp_path / "set" / "test")
    image_folder(tmp_path / "set" / "train")
    dataset = open_dataset("hf", "test", None, tmp_path / "set")
    assert dataset.classes == ["ant", "sea_horse", "zebra"]
    assert sorted(dataset.labels.tolist()) == [0, 1, 2]
    zebra = dataset.labels.tolist().index(2)
    assert np.array_equal(dataset[zebra][0], layouts.picture(0))


def test_hf_parquet_and_unknown_split(tmp_path, hub_cache):
    import datasets

    table = hub_table([1, 0], "label", datasets.ClassLabel(names=["wasp", "ant"]))
    (tmp_path / "set").mkdir()
    table.to_parquet(str(tmp_path / "set" / "test.parquet"))
    assert open_dataset("hf", "test", None, tmp_path / "set").labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="--split train") as caught:
        open_dataset("hf", "train", None, tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_hf_missing(tmp_path, hub_cache):
    with pytest.raises(FileNotFoundError, match="--dataset hf: expected a dataset saved to disk") as caught:
        open_dataset("hf", "test", None, tmp_path / "nothing" / "here")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the table itself


def test_importing_the_table_loads_nothing_heavy():
    code = "import sys, diffusion.datasets; print([m for m in ('torch', 'torchvision', 'datasets', 'timm') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [name for name, spec in DATASETS.items() if spec.recipe])
def test_recipes_keep_one_in_the_end_and_fit_the_classes(name):
    recipe = DATASETS[name].recipe
    assert recipe.to_keep[-1] == 1
    assert len(recipe.to_keep) == len(recipe.n_samples)
    assert list(recipe.n_samples) == sorted(recipe.n_samples)
    assert recipe.to_keep[0] < len(read_prompts(PROMPTS / DATASETS[name].prompts).prompts)


def test_published_recipes():
    pets, imagenet = DATASETS["pets"].recipe, DATASETS["imagenet"].recipe
    assert (pets.to_keep, pets.n_samples, pets.loss) == ((5, 1), (25, 250), "l1")
    assert (imagenet.to_keep, imagenet.n_samples, imagenet.loss) == ((500, 50, 10, 1), (50, 100, 500, 1000), "l2")
    assert {name for name, spec in DATASETS.items() if spec.recipe is None} == {
        "folder",
        "hf",
        "webdataset",
        "csv",
        "tiny_scenes",
    }
    assert {name for name, spec in DATASETS.items() if spec.custom} == {"folder", "hf", "webdataset", "csv"}


# ---------------------------------------------------------------- the ADM crop


def test_adm_crop_of_a_picture_worked_out_by_hand():
    """6 x 4 to 2 px: halved once by 2 x 2 boxes to 3 x 2, which needs no resize; then cropped."""
    from diffusion.datasets.transforms import adm_crop

    rows = [[0, 0, 40, 80, 200, 200], [0, 0, 80, 40, 200, 200]] + [[100, 100, 20, 20, 60, 60]] * 2
    halved = adm_crop(Image.fromarray(np.array(rows, np.uint8)), 2)
    assert np.asarray(halved).tolist() == [[0, 60], [100, 20]]  # left column (3 - 2) // 2 = 0 of [[0,60,200],[100,20,60]]


def test_adm_crop_takes_the_centre_without_a_resize_when_the_short_side_fits():
    from diffusion.datasets.transforms import adm_crop

    grid = np.arange(7 * 3, dtype=np.uint8).reshape(3, 7)
    assert np.asarray(adm_crop(Image.fromarray(grid), 3)).tolist() == grid[:, 2:5].tolist()
    assert adm_crop(Image.new("RGB", (28, 28)), 64).size == (64, 64)
    assert adm_crop(Image.new("RGB", (501, 375)), 256).size == (256, 256)


def test_adm_transform_scales_to_plus_minus_one():
    from diffusion.datasets.transforms import adm_transform

    x = adm_transform(4)(Image.new("L", (4, 4), 255))
    assert x.shape == (3, 4, 4) and (x == 1).all()


# ---------------------------------------------------------------- ImageNet as it is unpacked

KAGGLE = ("ImageId,PredictionString\n"
          "ILSVRC2012_val_00000002,n02102040 1 2 3 4 n02102040 5 6 7 8\nILSVRC2012_val_00000001,n01440764 1 2 3 4\n")  # fmt: skip


@pytest.mark.parametrize(
    ("place", "name", "text"),
    [
        ("imagenet/ILSVRC/Data/CLS-LOC/val", "LOC_val_solution.csv", KAGGLE),
        ("imagenet/val", "LOC_val_solution.csv", KAGGLE),
        ("imagenet/val", "imagenet_2012_validation_synset_labels.txt", "n01440764\nn02102040\n"),
    ],
)
def test_imagenet_in_one_folder(place, name, text, tmp_path):
    for i in (1, 2):
        layouts.save_picture(tmp_path / place / f"ILSVRC2012_val_0000000{i}.JPEG", i)
    with pytest.raises(ValueError, match=r"no folders of classes: put LOC_val_solution.csv or imagenet_2012"):
        open_dataset("imagenet", "test", None, tmp_path)
    (tmp_path / "imagenet" / name).write_text(text)
    assert open_dataset("imagenet", "test", None, tmp_path).labels.tolist() == [0, 217]  # tench, English springer
    (tmp_path / "imagenet" / name).write_text(text.replace("n01440764", "n99999999"))
    with pytest.raises(ValueError, match="lacks 'n99999999'"):
        open_dataset("imagenet", "test", None, tmp_path)
