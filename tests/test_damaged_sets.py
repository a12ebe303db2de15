"""Named sets that are incomplete or damaged, and Hugging Face sets: one line that names the file and the flag."""

import gzip
import json
import shutil
import struct

import layouts
import numpy as np
import pytest

from diffusion.datasets import DATASETS, open_dataset
from diffusion.datasets.readers.idx import read_idx
from diffusion.training import fashion_mnist

LISTS = {name: layout.listed for name, layout in layouts.LAYOUTS.items() if layout.listed}
DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-4],
    "binary": lambda data: bytes(range(256)),
    "text": lambda data: b"<html>404</html>\n",
    "list": lambda data: b"[1, 2]",
    "object": lambda data: b'{"apple_pie": 3, "waffles": null}',
    "strange class": lambda data: data.replace(b"waffles", b"pancake").replace(b"Yak-42", b"Yak-43").replace(b" 6 1", b" 38 1"),
    "no class": lambda data: data.replace(b"waffles", b"").replace(b"Yak-42", b"").replace(b" 6 1", b" x 1"),
}


def refused(name, root, split="test", **options):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        open_dataset(name, split, None, root, **options)
    message = str(caught.value)
    assert "\n" not in message and f"--dataset {name}" in message
    return message


@pytest.mark.parametrize(
    ("name", "damage"), [(n, d) for n in LISTS for d in DAMAGE if not ("class" in d and n.endswith("mnist"))]
)
def test_damaged_lists_and_idx_files_are_named(name, damage, tmp_path):
    layouts.LAYOUTS[name].write(tmp_path)
    path = tmp_path / LISTS[name]
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert str(path) in refused(name, tmp_path)


@pytest.mark.parametrize("name", LISTS)
def test_lists_that_are_missing_or_folders_are_named(name, tmp_path):
    layouts.LAYOUTS[name].write(tmp_path)
    path = tmp_path / LISTS[name]
    for make in (path.unlink, path.mkdir):
        make()
        if name == "fashion_mnist":  # its shipped images are used then, which is told
            assert "shipped" in open_dataset(name, "test", None, tmp_path).notice
        else:
            message = refused(name, tmp_path)
            assert str(path) in message and DATASETS[name].layout in message


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("pets", "oxford-iiit-pet/images/Bengal_101.jpg"),
        ("food", "food-101/images/waffles/20.jpg"),
        ("food", "food-101/images/waffles"),
        ("aircraft", "fgvc-aircraft-2013b/data/images/0000003.jpg"),
        ("flowers", "flowers-102/jpg/image_00003.jpg"),
    ],
)
def test_listed_images_that_are_missing_are_told_before_the_run(name, file, tmp_path, monkeypatch):
    layouts.forget_sums(monkeypatch)
    layouts.LAYOUTS[name].write(tmp_path)
    path = tmp_path / file
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = refused(name, tmp_path)
    assert str(path) in message and "are missing" in message and "--data_dir" in message
    assert ("1 of the 2 images" if name in ("food", "flowers") else "1 of the 3 images") in message


def test_labels_that_no_class_has_are_refused(tmp_path):
    layouts.idx(tmp_path, "MNIST", test_labels=(3, 10))
    assert "image 1 has the label 10, and the 10 classes are 0..9" in refused("mnist", tmp_path)


def test_images_and_labels_of_different_numbers(tmp_path):
    layouts.idx(tmp_path, "MNIST", test_labels=(3, 1))
    path = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    path.write_bytes(struct.pack(">II", 2049, 3) + bytes(3))
    assert "2 images and 3 labels" in refused("mnist", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "flowers"])
def test_files_that_only_torchvision_reads(name, tmp_path, monkeypatch):
    """Its sums protect the real files; where they are not asked for, its readers raise nearly anything."""
    layouts.forget_sums(monkeypatch)
    for damage in ("empty", "cut", "text"):
        layouts.LAYOUTS[name].write(tmp_path / damage)
        for path in (tmp_path / damage).rglob("*"):
            if path.is_file() and path.suffix != ".jpg":
                path.write_bytes(DAMAGE[damage](path.read_bytes()))
        assert str(tmp_path / damage) in refused(name, tmp_path / damage)


# ---------------------------------------------------------------- idx files


def idx_file(path, array, pack=bytes):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(pack(header + array.tobytes()))
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_as_numpy_wrote_them(tmp_path, suffix):
    array = np.arange(5 * 3 * 4, dtype=np.uint8).reshape(5, 3, 4)
    path = idx_file(tmp_path / f"x{suffix}", array, gzip.compress if suffix else bytes)
    assert np.array_equal(read_idx(path, 3), array)


@pytest.mark.parametrize("place", ["FashionMNIST/raw", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_is_found_in_torchvisions_folder_and_in_its_own(tmp_path, place, suffix):
    """The full set, in place of the shipped images, also as Debian's package has it: packed, in no further folder."""
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for part, n in (("train", 12), ("t10k", 11)):
        for kind, array in (
            ("images-idx3", np.full((n, 28, 28), n, np.uint8)),
            ("labels-idx1", np.arange(n, dtype=np.uint8) % 10),
        ):
            idx_file(tmp_path / place / f"{part}-{kind}-ubyte{suffix}", array, gzip.compress if suffix else bytes)
    for split, n in (("train", 12), ("test", 11)):
        found = open_dataset("fashion_mnist", split, None, tmp_path)
        assert len(found) == n and found.notice is None and np.asarray(found.picture(10)).max() == n


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("keep", [0, 1, 3, 4, 8, 15, 17, -1])
def test_truncated_idx_files_are_named(tmp_path, suffix, keep):
    path = idx_file(
        tmp_path / f"train-images-idx3-ubyte{suffix}", np.ones((5, 3, 4), np.uint8), gzip.compress if suffix else bytes
    )
    path.write_bytes(path.read_bytes()[:keep])
    for read in (lambda: read_idx(path, 3), lambda: fashion_mnist.read_idx(tmp_path, "train-images-idx3-ubyte")):
        with pytest.raises(ValueError, match=f"{path} is damaged"):
            read()


@pytest.mark.parametrize(
    "header",
    [
        struct.pack(">IIII", 2051, 2**32 - 1, 2**32 - 1, 2**32 - 1),  # 2^96 bytes
        struct.pack(">IIII", 2051, 0, 28, 28),
        struct.pack(">IIII", 0x0D03, 1, 2, 2),  # float32
        struct.pack(">II", 2049, 8),  # labels where images are meant
    ],
)
def test_idx_headers_that_do_not_fit_what_follows(tmp_path, header):
    (tmp_path / "x").write_bytes(header + bytes(8))
    with pytest.raises(ValueError, match="x is damaged"):
        read_idx(tmp_path / "x", 3)


# ---------------------------------------------------------------- what save_to_disk wrote


def saved(root, n=5, several=True, split=None):
    import datasets

    table = datasets.Dataset.from_dict({"image": [layouts.picture(i) for i in range(n)], "label": [i % 2 for i in range(n)]})
    table = table.cast_column("image", datasets.Image())
    if several:
        datasets.DatasetDict({"train": table, "test": table.select([4, 3])}).save_to_disk(str(root))
    else:
        table._split = datasets.NamedSplit(split) if split else None
        table.save_to_disk(str(root))
    return root


@pytest.mark.parametrize(
    ("split", "images"),
    [
        ("test", [4, 3]),
        ("train", [0, 1, 2, 3, 4]),
        ("train[:2]", [0, 1]),
        ("train[3:]", [3, 4]),
        ("train[-1:]", [4]),
        ("train[:40%]", [0, 1]),
        ("test[1:]+train[:1]", [3, 0]),
    ],
)
def test_splits_and_their_slices_of_a_saved_set(tmp_path, split, images):
    dataset = open_dataset("hf", split, None, saved(tmp_path / "set"))
    assert len(dataset) == len(images)
    assert all(np.array_equal(dataset[i][0], layouts.picture(k)) for i, k in enumerate(images))


@pytest.mark.parametrize(
    "split", ["nonsense", "validation", "nonsense[:2]", "train[", "train[:x]", "train[:200%]", "+", "train+nonsense"]
)
@pytest.mark.parametrize("several", [True, False])
def test_splits_that_a_saved_set_lacks(tmp_path, split, several):
    with pytest.raises(ValueError, match="--split ") as caught:
        open_dataset("hf", split, None, saved(tmp_path / "set", several=several, split="train"))
    assert f"--split {split}: " in str(caught.value) and "has train" in str(caught.value)


def test_a_slice_without_images(tmp_path):
    with pytest.raises(ValueError, match="this split has no rows"):
        open_dataset("hf", "train[:0]", None, saved(tmp_path / "set"))


def test_a_single_table_is_the_default_split_and_says_what_it_was(tmp_path):
    saved(tmp_path / "set", several=False, split="train")
    for split, n in (("test", 5), ("train", 5), ("train[:2]", 2), ("test[:3]", 3)):
        dataset = open_dataset("hf", split, None, tmp_path / "set")
        assert len(dataset) == n
        assert ("saved from the split train" in (dataset.notice or "")) == split.startswith("test")
    assert open_dataset("hf", "test", None, saved(tmp_path / "unnamed", several=False)).notice is None


@pytest.mark.parametrize("several", [True, False])
def test_a_saved_set_has_one_configuration(tmp_path, several):
    with pytest.raises(ValueError, match=r"--config_name plain: .*set was saved.*leave it out"):
        open_dataset("hf", "test", None, saved(tmp_path / "set", several=several), config_name="plain")


def test_the_configuration_that_it_was_saved_with_may_be_named(tmp_path):
    path = saved(tmp_path / "set", several=False) / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config_name": "plain"}))
    assert len(open_dataset("hf", "test", None, tmp_path / "set", config_name="plain")) == 5
    with pytest.raises(ValueError, match=r"--config_name other: .*configuration plain"):
        open_dataset("hf", "test", None, tmp_path / "set", config_name="other")


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"null", b"{}", bytes(range(256)), b'{"_data_files": 3}', b'{"splits": 3}']
)
def test_damaged_json_of_a_saved_set(tmp_path, several, content):
    saved(tmp_path / "set", several=several)
    names = ["dataset_dict.json", "test/state.json", "test/dataset_info.json"] if several else ["state.json", "dataset_info.json"]
    for name in names:
        path = tmp_path / "set" / name
        before = path.read_bytes()
        path.write_bytes(content)
        try:
            dataset = open_dataset("hf", "test", None, tmp_path / "set")
        except (ValueError, FileNotFoundError) as error:
            assert str(tmp_path / "set") in str(error) and "\n" not in str(error)
        else:  # an info file may say nothing
            assert name.endswith("dataset_info.json") and content.startswith(b"{") and len(dataset) in (2, 5)
        path.write_bytes(before)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "gone"])
def test_damaged_tables_of_a_saved_set(tmp_path, damage):
    path = next(saved(tmp_path / "set").glob("test/*.arrow"))
    path.unlink() if damage == "gone" else path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert str(tmp_path / "set") in refused_hf(tmp_path / "set")


def refused_hf(root, **options):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        open_dataset("hf", "test", None, root, **options)
    assert "\n" not in str(caught.value) and "--" in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- labels of a Hugging Face set


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 3_000_000_000], "3000000000 is no class number"),
        ([0, 2**62], "is no class number"),
        ([100_000, 0], "100000 is no class number"),
        ([0, -1], "without a label"),
        ([0.0, 1.0], "without a label"),
        (["ant", ""], "without a label"),
        (["ant", "  "], "without a label"),
        (["ant", None], "without a label"),
        ([[0], [1]], "without a label"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, labels, told):
    import datasets

    table = datasets.Dataset.from_dict({"image": [layouts.picture(i) for i in range(2)], "label": labels})
    table.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "set"))
    message = refused_hf(tmp_path / "set")
    assert "--label_column label" in message and told in message


def test_a_class_label_beyond_its_names(tmp_path):
    """The library checks this when it encodes, and not when a file says so."""
    import datasets

    table = datasets.Dataset.from_dict({"image": [layouts.picture(i) for i in range(2)], "label": [0, 7]})
    table = table.cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "set"))
    path = tmp_path / "set" / "dataset_info.json"
    info = json.loads(path.read_text())
    info["features"]["label"] = {"names": ["ant", "bee"], "_type": "ClassLabel"}
    path.write_text(json.dumps(info))
    assert "image 1 has the label 7, and the 2 classes are 0..1" in refused_hf(tmp_path / "set")
