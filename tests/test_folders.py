"""Class folders as they are found in the wild: strangers, gaps, junk, links, other suffixes."""

import os
from pathlib import Path

import layouts
import numpy as np
import pytest
from PIL import Image

from diffusion.datasets import class_names, open_dataset
from diffusion.datasets.readers.imagenet import imagenet_ids

# set of class folders -> where they lie, one of its classes beyond those laid out
PLACES = {name: layout.folders for name, layout in layouts.LAYOUTS.items() if layout.folders}
JUNK = (".git", ".ipynb_checkpoints", "__MACOSX", ".Trash-0", "@eaDir")


def lay_out(name, root):
    """The miniature of a set; returns the folder of its class folders."""
    layouts.LAYOUTS[name].write(root)
    return root / PLACES[name][0]


def names_and_labels(dataset):
    """(folder below the class folders' own, label) of every image."""
    return {(Path(path).parent.name, label) for path, label in dataset.raw.samples}


@pytest.mark.parametrize("name", PLACES)
def test_an_image_s_label_depends_on_no_other_folder(name, tmp_path):
    place = lay_out(name, tmp_path)
    before = names_and_labels(open_dataset(name, "test", None, tmp_path))
    layouts.save_picture(place / PLACES[name][1] / "x.jpg")
    after = names_and_labels(open_dataset(name, "test", None, tmp_path))
    assert before < after and len(after) == len(before) + 1
    for path in place.glob(f"{min(before)[0]}/*"):
        path.unlink()
    assert names_and_labels(open_dataset(name, "test", None, tmp_path)) == after - {min(before)}


def test_the_labels_are_those_of_the_names(tmp_path):
    """Against the lists of names, independent of what else is there."""
    named = {"imagenet": imagenet_ids(), "imagenetA": imagenet_ids(), "imagenetv2": [str(i) for i in range(1000)]}
    named |= {name: class_names(name) for name in ("objectnet", "caltech101", "eurosat")}
    for name, names in named.items():
        lay_out(name, tmp_path)
        assert all(names[label] == folder for folder, label in names_and_labels(open_dataset(name, "test", None, tmp_path)))


@pytest.mark.parametrize("name", [name for name in PLACES if name != "objectnet"])
@pytest.mark.parametrize("stranger", ["backup", "0backup", "n01440764 (copy)", "train"])
def test_a_stranger_is_refused_by_name(name, stranger, tmp_path):
    place = lay_out(name, tmp_path)
    layouts.save_picture(place / stranger / "x.jpg")
    with pytest.raises(ValueError) as caught:
        open_dataset(name, "test", None, tmp_path)
    assert all(part in str(caught.value) for part in (f"--dataset {name}", str(place / stranger), "no class"))


def test_an_id_of_imagenet_that_imagenet_a_lacks_is_a_stranger(tmp_path):
    layouts.save_picture(lay_out("imagenetA", tmp_path) / "n01440764" / "x.jpg")  # tench
    with pytest.raises(ValueError, match=r"n01440764 .*no class"):
        open_dataset("imagenetA", "test", None, tmp_path)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("junk", JUNK)
def test_junk_folders_are_ignored_and_told(name, junk, tmp_path):
    place = lay_out(name, tmp_path)
    before = open_dataset(name, "test", None, tmp_path)
    layouts.save_picture(place / junk / "x.jpg")
    layouts.save_picture(next(p for p in place.iterdir() if p.name != junk) / junk / "x.jpg")
    after = open_dataset(name, "test", None, tmp_path)
    assert after.raw.samples == before.raw.samples
    assert f"ignored folders: {junk}" in after.notice


@pytest.mark.parametrize("name", PLACES)
def test_missing_classes_are_told(name, tmp_path):
    lay_out(name, tmp_path)
    dataset = open_dataset(name, "test", None, tmp_path)
    n = layouts.LAYOUTS[name].n
    assert f"images of {len(set(dataset.labels.tolist()))} of {n} classes, none of " in dataset.notice


@pytest.mark.parametrize("name", ["pets", "food", "aircraft", "flowers", "cifar100", "mnist"])
def test_missing_classes_are_told_of_sets_without_class_folders(name, tmp_path, monkeypatch):
    layouts.forget_sums(monkeypatch)
    layouts.LAYOUTS[name].write(tmp_path)
    dataset = open_dataset(name, "test", None, tmp_path)
    found = {class_names(name)[label] for label in dataset.labels}
    told = dataset.notice.split("none of ")[1].split(":")[0].removesuffix(", ...").split(", ")
    assert told == [c for c in class_names(name) if c not in found][:3]


def test_objectnet_tells_how_many_folders_were_left_out(tmp_path):
    layouts.objectnet(tmp_path)
    assert "1 folders without a class of these were left out, such as zz_not_in_map" in (
        open_dataset("objectnet", "test", None, tmp_path).notice
    )


def test_a_set_without_any_image_is_missing_data(tmp_path):
    for path in lay_out("eurosat", tmp_path).rglob("*.jpg"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"--dataset eurosat: expected eurosat/2750.*no images"):
        open_dataset("eurosat", "test", None, tmp_path)


# ---------------------------------------------------------------- one's own folder


@pytest.fixture
def own(tmp_path):
    root = tmp_path / "set"
    for i, name in enumerate(("ant", "zebra")):
        layouts.save_picture(root / name / "1.png", i)
    return root


def opened(root):
    return open_dataset("folder", "test", None, root)


@pytest.mark.parametrize("junk", JUNK)
def test_junk_is_no_class_and_no_picture(own, junk):
    layouts.save_picture(own / junk / "x.png")
    layouts.save_picture(own / "ant" / junk / "x.png")
    (own / "ant" / "._1.png").write_bytes(b"a fork of macOS")
    (own / ".DS_Store").write_bytes(b"")
    (own / "ant" / "Thumbs.db").write_bytes(b"")
    dataset = opened(own)
    assert dataset.classes == ["ant", "zebra"] and len(dataset) == 2
    assert dataset.notice == f"ignored folders: {junk}"


@pytest.mark.parametrize("suffix", ["gif", "avif", "webp", "bmp", "ppm", "tiff", "jpeg", "JPG", "jfif"])
def test_every_format_is_read(own, suffix):
    from PIL import features

    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = own / "ant" / f"2.{suffix}"
    Image.new("RGB", (20, 16), (200, 40, 90)).save(path, **({"format": "JPEG"} if suffix == "jfif" else {}))
    dataset = opened(own)
    assert dataset.labels.tolist() == [0, 0, 1] and dataset.notice is None
    assert dataset[1][0].mode == "RGB" and np.abs(np.asarray(dataset[1][0], float) - (200, 40, 90)).max() < 6


def test_what_is_no_picture_is_told(own):
    for name in ("ant/notes.txt", "ant/raw.cr2", "zebra/clip.mp4"):
        (own / name).write_bytes(b"")
    layouts.save_picture(own / "loose.png")
    notice = opened(own).notice
    assert "3 files that are no pictures by their names, such as" in notice and "notes.txt" in notice
    assert "1 pictures beside the class folders, such as loose.png" in notice


def test_a_class_without_pictures_is_refused_by_name(own):
    (own / "bee" / "below").mkdir(parents=True)
    (own / "bee" / "list.txt").write_text("")
    with pytest.raises(ValueError, match=r"--dataset folder: .*bee holds no pictures.*remove it"):
        opened(own)


@pytest.mark.parametrize("splits", [["train"], ["train", "test"], ["train", "val", "test"]])
def test_splits_are_no_classes(tmp_path, splits):
    for split in splits:
        layouts.save_picture(tmp_path / "set" / split / "ant" / "1.png")
    with pytest.raises(ValueError, match=r"splits and no classes: name one, --data_dir .*/set/t"):
        opened(tmp_path / "set")


def test_a_name_that_is_no_utf_8_is_refused(own):
    try:
        os.makedirs(os.fsencode(own) + b"/caf\xe9")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(ValueError, match=r"name is no UTF-8 \('caf\\udce9'\)") as caught:
        opened(own)
    str(caught.value).encode()  # it can be printed


def test_pictures_of_deeper_folders_come_after_those_of_their_class_s_own_in_torchvision_s_order(own):
    from torchvision.datasets import ImageFolder

    for name in ("ant/b/1.png", "ant/b c/1.png", "ant/b/a/1.png", "ant/0.png", "zebra/9.png", "zebra/10.png", "Zoo/1.png"):
        layouts.save_picture(own / name)
    theirs = ImageFolder(str(own))
    assert opened(own).raw.samples == theirs.samples and opened(own).classes == theirs.classes


# ---------------------------------------------------------------- links


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("ant/loop", ".."),
        ("ant/loop", "."),
        ("ant/loop", "../zebra"),
        ("ant/below/loop", "../.."),
        ("bee", "ant"),
        ("bee", "."),
        ("zebra/again", "../ant"),
    ],
)
def test_links_that_lead_to_a_folder_twice_are_refused(own, link, target):
    (own / link).parent.mkdir(parents=True, exist_ok=True)
    (own / link).symlink_to(target)
    with pytest.raises(ValueError, match="again by a symbolic link, and its pictures would count twice") as caught:
        opened(own)
    assert "--dataset folder" in str(caught.value) and str(own) in str(caught.value)


def test_links_that_lead_elsewhere_are_followed(own, tmp_path):
    layouts.save_picture(tmp_path / "store" / "bees" / "1.png", 7)
    layouts.save_picture(tmp_path / "store" / "2.png", 8)
    (own / "bee").symlink_to(tmp_path / "store" / "bees")
    (own / "ant" / "2.png").symlink_to(tmp_path / "store" / "2.png")
    assert opened(own).labels.tolist() == [0, 0, 1, 2]
    assert np.array_equal(opened(own)[2][0], layouts.picture(7))


@pytest.mark.parametrize("kind", ["dangling", "itself", "pipe", "folder"])
def test_what_is_named_like_a_picture_and_is_none(own, kind):
    """It is left out, or it fails as one image; nothing waits, nothing else fails."""
    path = own / "ant" / "2.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("2.png" if kind == "itself" else "nowhere.png")
    dataset = opened(own)
    if kind == "folder":
        assert dataset.labels.tolist() == [0, 1]
        return
    with pytest.raises(OSError, match=r"image 1 \(.*2.png\) cannot be read: there is no such file"):
        dataset[1]
    assert dataset[2][1] == 1


def test_a_loop_in_a_hugging_face_folder_is_refused(own):
    (own / "ant" / "loop").symlink_to("..")
    with pytest.raises(ValueError, match=r"--dataset hf: .*again by a symbolic link"):
        open_dataset("hf", "train", None, own)
