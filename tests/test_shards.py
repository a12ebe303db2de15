"""WebDataset shards in CLIP_benchmark's layout: read in place and in order, by all commands; what is wrong names its member."""

import io
import json
import shutil
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import layouts
import numpy as np
import pandas
import pytest
import torch
from conftest import TINY_SD20, load_script
from PIL import Image

import eval_prob_adaptive
import eval_prob_dit
from diffusion.analysis import reload
from diffusion.datasets import loader, open_dataset
from diffusion.datasets.readers import webdataset
from diffusion.runs import run_folder
from diffusion.utils.files import fingerprint

MODEL = ["--model_path", TINY_SD20, "--img_size", 64, "--device", "cpu"]
STAGES = ["--to_keep", 1, "--n_samples", 2, "--loss", "l2"]


def opened(root="set", split="test", **more):
    return open_dataset("webdataset", split, None, root, **more)


def pixels(image):
    return np.asarray(image).tolist()


def refused(*arguments, **more):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        opened(*arguments, **more)
    message = str(caught.value)
    assert "\n" not in message and ("--" in message)
    return message


@pytest.fixture(autouse=True)
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def root():
    layouts.webdataset(Path("set"))
    return Path("set")


# ---------------------------------------------------------------- what is read


def test_pictures_labels_and_names_in_the_order_of_shards_and_members(root):
    dataset = opened()
    assert dataset.labels.tolist() == [1, 0, 2] and dataset.classes == ["ant", "bee", "cow"] and dataset.notice is None
    assert [pixels(dataset[i][0]) for i in (2, 0, 1)] == [pixels(layouts.picture(i)) for i in (2, 0, 1)]
    assert [dataset[i][1] for i in range(3)] == [1, 0, 2]


def test_eleven_shards_are_in_the_order_of_their_numbers():
    layouts.webdataset(Path("set"), [[i % 3] for i in range(11)])
    dataset = opened()
    assert dataset.labels.tolist() == [i % 3 for i in range(11)]
    assert pixels(dataset[10][0]) == pixels(layouts.picture(10))  # 10.tar, which sorts between 1.tar and 2.tar


def test_the_offsets_are_those_of_tarfile_s_own_reader(root):
    found = webdataset.read_shards([root / "test/0.tar"])
    with tarfile.open(root / "test/0.tar") as tar:
        wanted = {name: tar.extractfile(name).read() for name in tar.getnames()}
    assert found.labels == ["1", "0"] and [one.name for one in found.pictures] == ["s0000000.png", "s0000001.png"]
    for member in found.pictures:
        content = (root / "test/0.tar").read_bytes()[member.offset : member.offset + member.size]
        assert content == wanted[member.name]
        assert str(member) == f"set/test/0.tar/{member.name}"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_plain_tar_long_names_folders_and_other_orders(form):
    layouts.webdataset(Path("set"), [[]])
    long = "folder/" + "n" * 120 + "/käfer" if form != tarfile.USTAR_FORMAT else "folder/käfer"
    members = {f"{long}.cls": b" 2 \n", "a.PNG": layouts.png(1), f"{long}.png": layouts.png(0), "a.cls": b"0"}
    with tarfile.open("set/test/0.tar", "w", format=form) as tar:
        tar.addfile(directory("folder"))
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    dataset = opened()
    assert dataset.labels.tolist() == [0, 2]
    assert [pixels(dataset[i][0]) for i in (0, 1)] == [pixels(layouts.picture(1)), pixels(layouts.picture(0))]


def directory(name):
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp"])
def test_formats(suffix):
    layouts.webdataset(Path("set"), [[]])
    content = io.BytesIO()
    Image.new("RGB", (20, 16), (200, 40, 90)).save(content, "jpeg" if suffix == "jpg" else suffix)
    layouts.tar(Path("set/test/0.tar"), {f"a.{suffix}": content.getvalue(), "a.cls": b"1"})
    assert np.abs(np.asarray(opened()[0][0], float) - (200, 40, 90)).max() < 6


def test_pictures_are_turned_as_their_exif_says():
    image, content = layouts.picture(3, size=(20, 10)), io.BytesIO()
    exif = image.getexif()
    exif[274] = 6  # a quarter turn
    image.save(content, "png", exif=exif)
    layouts.webdataset(Path("set"), [[]])
    layouts.tar(Path("set/test/0.tar"), {"a.png": content.getvalue(), "a.cls": b"1"})
    assert pixels(opened()[0][0]) == pixels(image.transpose(Image.Transpose.ROTATE_270))


def test_other_members_are_told_and_junk_is_not(root):
    members = {"a.png": layouts.png(0), "a.cls": b"0", "a.json": b"{}", "a.seg.png": b"a mask", "._a.png": b"a fork of macOS"}
    layouts.tar(root / "test/1.tar", members)
    dataset = opened()
    assert dataset.labels.tolist() == [1, 0, 0]
    told = "ignored 2 members that are neither pictures nor labels, such as set/test/1.tar/a.json"
    assert dataset.notice == f"{told}; images of 2 of 3 classes, none of cow: all stay candidates"


def test_shards_beyond_the_count_are_told(root):
    (root / "test/nshards.txt").write_text("1")
    assert len(opened()) == 2 and "has more shards than its nshards.txt says" in opened().notice


def test_a_single_tar_with_a_list_of_classes(root):
    Path("names.txt").write_text("cat\ndog\n")
    dataset = opened("set/test/0.tar", classes="names.txt")
    assert dataset.classes == ["cat", "dog"] and dataset.labels.tolist() == [1, 0]
    assert "--split train" in refused("set/test/0.tar", "train", classes="names.txt")
    assert "--classes is needed: set/test/0.tar is a single shard" in refused("set/test/0.tar")


def test_a_list_of_classes_takes_the_place_of_classnames(root):
    Path("names.txt").write_text("x\ny\nz\n")
    assert opened(classes="names.txt").classes == ["x", "y", "z"]
    Path("names.txt").write_text("x\ny\n")
    assert "1.tar/s0000002.cls holds the label 2, and the 2 classes are 0..1" in refused(classes="names.txt")


def test_names_that_stand_twice_are_no_fault_of_the_shards():
    """As in ImageNet's list; it is for the prompts to tell them apart."""
    layouts.webdataset(Path("set"), names=("crane", "crane", "cow"))
    assert opened().classes == ["crane", "crane", "cow"]


def read(dataset, indices):
    return [pixels(dataset[i][0]) for i in indices]


def test_several_processes_read_one_shard():
    n = 12
    layouts.webdataset(Path("set"), [[i % 3 for i in range(n)]])
    dataset = opened()
    dataset[0]  # whatever is open in this process is not theirs
    with ProcessPoolExecutor(3) as pool:
        parts = [pool.submit(read, dataset, range(start, n, 3)) for start in range(3)]
        for start, part in enumerate(parts):
            assert part.result() == [pixels(layouts.picture(i)) for i in range(start, n, 3)]


def test_the_loader_s_processes_read_them(root):
    dataset = opened()
    dataset.transform = to_tensor
    loaded = [(i, image.tolist(), label) for i, image, label, _ in loader.load_images(dataset, [2, 0, 1], 2)]
    assert loaded == [(i, pixels(layouts.picture(i)), [1, 0, 2][i]) for i in (2, 0, 1)]


def to_tensor(image):
    return torch.from_numpy(np.array(image))


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("kept", range(0, 5120, 512))
@pytest.mark.parametrize("more", [0, 100])
def test_a_shard_cut_anywhere_is_named(root, kept, more):
    """Blocks: header, 3 of a picture or fewer, header, label; then the end, of which one block has to be there."""
    path = root / "test/0.tar"
    with tarfile.open(path) as tar:
        last = list(tar)[-1]
    n, end = kept + more, last.offset_data + 512
    path.write_bytes(path.read_bytes()[:n])
    if n >= end + 512:
        assert len(opened()) == 3
    else:
        message = refused()
        assert "set/test/0.tar" in message and "damaged" in message


def test_what_was_read_last_of_a_cut_shard_is_named(root):
    path = root / "test/0.tar"
    with tarfile.open(path) as tar:
        second = tar.getmember("s0000001.png")
    path.write_bytes(path.read_bytes()[: second.offset_data + 10])
    assert "it is cut short or broken after s0000001.png" in refused()
    path.write_bytes(path.read_bytes()[: second.offset])
    assert "it is cut short or broken after s0000000.cls" in refused()


def test_a_shard_that_is_cut_while_the_run_reads_it(root):
    dataset = opened()
    path = root / "test/1.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(OSError, match=r"image 2 \(set/test/1.tar/s0000002.png\) cannot be read: .*cut short"):
        dataset[2]


def test_a_broken_picture_is_named_by_its_member(root):
    layouts.tar(root / "test/1.tar", {"bad.png": b"\x89PNG no more", "bad.cls": b"2"})
    with pytest.raises(OSError, match=r"image 2 \(set/test/1.tar/bad.png\) cannot be read"):
        opened()[2]


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"a.png": b"", "a.cls": b"0", "b.png": b""}, "0.tar/b.png has no label: set/test/0.tar/b.cls is missing"),
        ({"a.png": b"", "a.cls": b"3"}, "0.tar/a.cls holds the label 3, and the 3 classes are 0..2"),
        ({"a.png": b"", "a.cls": b"ant"}, "0.tar/a.cls holds 'ant', which is no class number"),
        ({"a.png": b"", "a.cls": b""}, "0.tar/a.cls holds '', which is no class number"),
        ({"a.png": b"", "a.cls": b"1.0"}, "0.tar/a.cls holds '1.0'"),
        ({"a.png": b"", "a.cls": b"-1"}, "0.tar/a.cls holds '-1'"),
        ({"a.png": b"", "a.cls": "²".encode()}, "0.tar/a.cls holds '²'"),
        ({"a.png": b"", "a.cls": b"9" * 5000}, "0.tar/a.cls holds '99999999999999999999'"),
        ({"a.cls": b"0"}, "0.tar/a.cls is the label of no picture"),
        ({"a.png": b"", "a.jpg": b"", "a.cls": b"0"}, "0.tar: a.jpg and a.png have one key"),
    ],
)
def test_members_that_do_not_fit(root, members, told):
    layouts.tar(root / "test/0.tar", members)
    assert told in refused()


def test_a_member_twice_in_one_shard(root):
    with tarfile.open(root / "test/0.tar", "a") as tar:
        info = tarfile.TarInfo("s0000000.cls")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"2"))
    assert "s0000000.cls and s0000000.cls have one key" in refused()


def test_what_is_missing_is_said(root):
    assert "--split train: set has test" in refused(split="train")
    (root / "test/nshards.txt").write_text("4")
    assert "set/test/2.tar is missing, and nshards.txt says that there are 4 shards" in refused()
    (root / "test/nshards.txt").unlink()
    assert "expected classnames.txt" in refused() and "set/test/nshards.txt does not exist" in refused()
    assert "expected classnames.txt" in refused("nowhere")


def test_a_compressed_tar_is_no_shard(root):
    with tarfile.open(root / "test/1.tar", "w:gz") as tar:
        tar.add(root / "classnames.txt")
    assert "set/test/1.tar is damaged" in refused()


# ---------------------------------------------------------------- the commands


@pytest.fixture
def clothes():
    """Four test images that ship, as shards."""
    shipped = open_dataset("fashion_mnist", "test", None, "nowhere")
    Path("set/test").mkdir(parents=True)
    Path("set/classnames.txt").write_text("\n".join(shipped.classes))
    Path("set/zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na {c}.\n")
    Path("set/test/nshards.txt").write_text("2")
    for shard in range(2):
        members = {}
        for i in range(2 * shard, 2 * shard + 2):
            content = io.BytesIO()
            shipped.picture(i).save(content, "png")
            members |= {f"s{i}.png": content.getvalue(), f"s{i}.cls": str(shipped.labels[i]).encode()}
        layouts.tar(Path(f"set/test/{shard}.tar"), members)
    return ["--dataset", "webdataset", "--data_dir", "set"]


def test_records_are_those_of_the_same_pictures_elsewhere(clothes, run_main):
    """The shipped images are grey files of numbers; noise goes by the index."""
    np.save("first.npy", np.arange(4))
    argv = [*MODEL, *STAGES, "--template", "a photo of a {}."]
    assert run_main(eval_prob_adaptive.main, *clothes, *argv)[0] == 0
    shipped = ["--dataset", "fashion_mnist", "--subset_path", "first.npy", "--prompt_path", "same.csv", *MODEL, *STAGES]
    names = open_dataset("fashion_mnist", "test", None, "nowhere").classes
    rows = [f"a photo of a {name}.,{name},{i}" for i, name in enumerate(names)]
    Path("same.csv").write_text("\n".join(["prompt,classname,classidx", *rows]))
    assert run_main(eval_prob_adaptive.main, *shipped)[0] == 0
    ours, theirs = (run_folder.list_records(next(Path("data", name).iterdir())) for name in ("webdataset_set", "fashion_mnist"))
    assert sorted(ours) == sorted(theirs) == list(range(4))
    for index, path in ours.items():
        one, other = run_folder.load_record(path), run_folder.load_record(theirs[index])
        assert (one["label"], one["pred"]) == (other["label"], other["pred"])
        for row in range(10):
            assert torch.equal(one["errors"][row]["pred_errors"], other["errors"][row]["pred_errors"])


def test_a_run_is_read_back(clothes, run_main):
    code, out, err = run_main(eval_prob_adaptive.main, *clothes, *MODEL, *STAGES, "--imgs_to_eval", 2)
    assert code == 0 and "n = 2" in out, err
    folder = next(Path("data/webdataset_set").iterdir())
    past = reload.Past(folder, run_folder.read_config(folder))
    assert len(reload.open_images(past)) == 4
    code, _, err = run_main(load_script("report").main, folder, "-o", "report")
    assert code == 0 and "are not available" not in Path("report/report.html").read_text(), err
    layouts.tar(Path("set/test/1.tar"), {"a.png": layouts.png(0), "a.cls": b"0"})
    with pytest.raises(ValueError, match="was made with other images than webdataset in set has now"):
        reload.open_images(past)


def test_a_class_conditional_model(clothes, run_main):
    argv = ["--model", "tiny", "--t_interval", 500, "--imgs_to_eval", 2, "--device", "cpu"]
    code, out, err = run_main(eval_prob_dit.main, *clothes, *argv)
    assert code == 0 and "n = 2" in out, err
    code, out, err = run_main(eval_prob_dit.main, *clothes, *argv, "--save_per_class")
    report = next(line for line in out.splitlines() if line.startswith("Report: ")).split()[2:]
    assert code == 0 and report[-4:] == ["--dataset", "webdataset", "--data_dir", "set"], err
    folders = sorted(str(path) for path in Path().glob(report[1]))
    code, out, err = run_main(load_script("print_dit_acc").main, *folders, *report[-4:])
    assert code == 0 and "Found 2 shared files across all 10 subdirs." in out, err


def test_a_contrastive_model_takes_the_folder_s_templates(clothes, run_main):
    templates = ["--templates", "set/zeroshot_classification_templates.txt"]
    script = load_script("eval_clip").main
    code, out, err = run_main(script, "--version", "tiny", *clothes, *templates)
    assert code == 0 and '20 of 10 classes, such as "a photo of a T-shirt/top."' in out, err
    Path("plain.txt").write_text("a photo of a {}.\na {}.\n")
    code, out, err = run_main(script, "--version", "tiny", *clothes, "--templates", "plain.txt")
    assert code == 0 and "4 of 4 done before" in out, err  # the same prompts


# ---------------------------------------------------------------- without labels


@pytest.fixture
def classify(run_main):
    script = load_script("classify")
    return lambda *argv: run_main(script.main, *argv, *MODEL, "--strategy", "stages", "--to_keep", 1, "--n_samples", 2)


@pytest.fixture
def unlabelled():
    """Three pictures as shards without labels, and as files of the same bytes."""
    Path("bare").mkdir()
    Path("bare/nshards.txt").write_text("2")
    layouts.tar(Path("bare/0.tar"), {"a.png": layouts.png(0), "b.png": layouts.png(1)})
    layouts.tar(Path("bare/1.tar"), {"c.png": layouts.png(2)})
    Path("files").mkdir()
    for i, name in enumerate("abc"):
        Path(f"files/{name}.png").write_bytes(layouts.png(i))
    Path("names.txt").write_text("bag\nboot\ncoat\n")


def test_shards_without_labels_are_predicted_as_files_are(unlabelled, classify):
    code, out, err = classify("bare", "--classes", "names.txt", "-o", "t.csv")
    assert code == 0 and "Predictions of 3 pictures: t.csv and t.parquet" in out, err
    code, _, err = classify("files", "--labels", "bag", "boot", "coat", "-o", "f.csv")
    assert code == 0, err
    ours, theirs = pandas.read_csv("t.csv"), pandas.read_csv("f.csv")
    assert ours["path"].tolist() == ["bare/0.tar/a.png", "bare/0.tar/b.png", "bare/1.tar/c.png"]
    assert ours.drop(columns="path").equals(theirs.drop(columns="path"))
    assert pandas.read_parquet("t.parquet").drop(columns="path").equals(theirs.drop(columns="path"))
    keys = {f"sha256_{fingerprint(layouts.png(i))}.pt" for i in range(3)}
    assert keys == {path.name for path in Path("t.records").glob("*.pt")}


def test_they_are_continued(unlabelled, classify):
    assert classify("bare/0.tar", "--classes", "names.txt", "-o", "t.csv")[0] == 0
    code, out, err = classify("bare", "--classes", "names.txt", "-o", "t.csv")
    assert code == 0 and "Images: 1 to do here, 2 of 3 done before" in out, err


def test_json_of_a_shard_is_a_list_of_lists(unlabelled, classify):
    code, out, err = classify("bare/1.tar", "--classes", "names.txt", "--print_json")
    assert code == 0 and [len(one) for one in json.loads(out)] == [3], err


def test_labelled_shards_need_no_labels_here_and_unlabelled_ones_do_elsewhere(root, unlabelled, classify):
    code, out, err = classify("set/test", "--classes", "names.txt", "-o", "t.csv")
    assert code == 0 and "Predictions of 3 pictures" in out, err
    shutil.copytree("bare", "other/test")
    Path("other/classnames.txt").write_text("a\nb\n")
    assert "other/test/0.tar/a.png has no label" in refused("other") and "scripts/classify.py" in refused("other")


def test_a_broken_picture_in_a_shard_is_told_and_the_others_are_there(unlabelled, classify):
    layouts.tar(Path("bare/1.tar"), {"c.png": b"no picture"})
    code, out, err = classify("bare", "--classes", "names.txt", "-o", "t.csv")
    assert code == 1 and "bare/1.tar/c.png" in err and "Predictions of 2 pictures" in out, err
