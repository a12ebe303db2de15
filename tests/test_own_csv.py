"""A CSV of paths and labels, and class lists: other ways to write the same, and one line that names the row for what is wrong."""

import csv
import json
from pathlib import Path

import layouts
import numpy as np
import pandas
import pytest
from conftest import TINY_SD20, load_script

import eval_prob_adaptive
from diffusion.datasets import open_dataset

MODEL = ["--model_path", TINY_SD20, "--img_size", 64, "--device", "cpu", "--to_keep", 1, "--n_samples", 2]


@pytest.fixture(autouse=True)
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def opened(content, classes=None, name="set.csv"):
    layouts.csv_file(Path(name), "")
    path = Path(name)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if classes is not None:
        Path("names.txt").write_text("\n".join(classes))
    return open_dataset("csv", "test", None, path, classes="names.txt" if classes is not None else None)


def refused(*arguments, **more):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        opened(*arguments, **more)
    message = str(caught.value)
    assert "\n" not in message and "--dataset csv" in message and "set.csv" in message
    return message


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    "content",
    [
        "path,label\n0.png,bee\n1.png,ant\n",
        "path,label\r\n0.png,bee\r\n1.png,ant\r\n",
        "\ufeffpath,label\n0.png,bee\n1.png,ant",
        "note,label, path \nx,bee,0.png\ny,ant,1.png\n",
        'path,label\n"0.png","bee"\n"./1.png", ant\n',
        "path,label\n\n0.png, bee \n\n1.png,ant\n\n",
    ],
)
def test_other_ways_to_write_the_same_set(content):
    dataset = opened(content)
    assert dataset.classes == ["ant", "bee"] and dataset.labels.tolist() == [1, 0] and dataset.notice is None
    assert all(np.array_equal(dataset[i][0], layouts.picture(i)) for i in range(2))


def test_paths_and_labels_with_commas_quotes_and_spaces():
    name = 'a, "b" c.png'
    layouts.save_picture(Path("set") / name, 7)
    with open("set/set.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], [name, "one, two"], [f"sub/../{0}.png", 'say "three"']])
    layouts.save_picture(Path("set/0.png"), 0)
    dataset = open_dataset("csv", "test", None, "set/set.csv")
    assert dataset.classes == ["one, two", 'say "three"'] and dataset.labels.tolist() == [0, 1]
    assert [np.array_equal(dataset[i][0], layouts.picture(seed)) for i, seed in enumerate((7, 0))] == [True, True]


def test_paths_are_relative_to_the_csv_or_absolute():
    elsewhere = Path("elsewhere/p.png").absolute()
    layouts.save_picture(elsewhere, 5)
    dataset = opened(f"path,label\n0.png,a\n{elsewhere},b\n../elsewhere/../folder/1.png,c\n", name="folder/set.csv")
    assert [np.array_equal(dataset[i][0], layouts.picture(seed)) for i, seed in enumerate((0, 5, 1))] == [True] * 3


def test_numbers_are_labels_where_all_are():
    dataset = opened("path,label\n0.png,2\n1.png,0\n")
    assert dataset.classes == ["0", "1", "2"] and dataset.labels.tolist() == [2, 0]
    dataset = opened("path,label\n0.png,2\n1.png,zwei\n")
    assert dataset.classes == ["2", "zwei"] and dataset.labels.tolist() == [0, 1]


def test_a_list_of_classes_orders_the_labels_and_has_those_without_images():
    dataset = opened("path,label\n0.png,bee\n1.png,2\n2.png,02\n", ["cow", "bee", "ant", "dog"])
    assert dataset.classes == ["cow", "bee", "ant", "dog"] and dataset.labels.tolist() == [1, 2, 2]
    assert "images of 2 of 4 classes, none of cow, dog" in dataset.notice


def test_a_name_that_is_a_number_goes_before_the_number():
    assert opened("path,label\n0.png,1\n1.png,0\n2.png,2\n", ["0", "2", "1"]).labels.tolist() == [2, 0, 1]


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "empty file; the header must hold path"),
        ("path,label\n", "no pictures, only a header"),
        ("file,label\n0.png,a\n", "column path missing"),
        ("path;label\n0.png;a\n", "column path missing"),
        ("path,path\n0.png,1.png\n", "column path twice"),
        ("path,label,label\n0.png,bee,ant\n", "column label twice"),
        ("path\n0.png\n", "the column label is missing; pictures without labels are for scripts/classify.py"),
        ("path,label\n0.png,\n1.png, \n", "the column label is empty; pictures without labels are for scripts/classify.py"),
        ("path,label\n0.png,a\n1.png,\n", "row 3 has an empty label"),
        ("path,label\n,a\n", "row 2 has an empty path"),
        ("path,label\n0.png,a\nnone.png,a\n2.png,a\n", "row 3: there is no file none.png"),
        ("path,label\nno/0.png,a\nnone.png,a\n", "row 2: there is no file no/0.png (and 1 more)"),
        ("path,label\n0.png,a\n\n1.png,a\n0.png,b\n", "rows 2 and 5 have one path, 0.png"),
        ("path,label\n0.png,a\n./x/../0.png,b\n", "rows 2 and 3 have one path, 0.png"),
        ("path,label\n0.png,a\n1.png,a,b\n", "row 3 has 3 fields, not 2; quote"),
        ("path,label\n0.png\n", "row 2 has 1 fields"),
        ("path,label\n0.png,a\n1.png,caf\xe9\n".encode("latin-1"), "no UTF-8 in line 3"),
        ("path,label\n0.png,100000\n1.png,5\n", "row 2: 100000 is no class number"),
        ("path,label\n0\0.png,a\n", "set.csv"),
        ('path,label\n"0.png,a\n', "set.csv"),
    ],
)
def test_rows_that_cannot_be_read(content, told):
    assert told in refused(content)


@pytest.mark.parametrize("label", ["wasp", "2", "-1", "Ant", "1.0", "²"])
def test_a_label_that_no_class_of_the_list_has(label):
    message = refused(f"path,label\n0.png,ant\n1.png,{label}\n", ["ant", "bee"])
    assert f"row 3 has the label {label!r}, which is none of the 2 classes of --classes, nor 0..1" in message


def test_no_csv_and_a_folder():
    layouts.csv_file(Path("set/set.csv"))
    for place in ("none.csv", "set"):
        with pytest.raises(FileNotFoundError, match=rf"--dataset csv: expected a CSV file .*{place} is no file"):
            open_dataset("csv", "test", None, place)


def test_a_picture_that_is_none_fails_by_itself():
    layouts.csv_file(Path("set.csv"), "path,label\n0.png,a\nset.csv,b\n")
    dataset = open_dataset("csv", "test", None, "set.csv")
    with pytest.raises(OSError, match=r"image 1 \(set.csv\) cannot be read"):
        dataset[1]


# ---------------------------------------------------------------- the commands


def test_a_run_and_its_prompts(run_main):
    layouts.csv_file(Path("set.csv"))
    argv = ["--dataset", "csv", "--data_dir", "set.csv", *MODEL]
    code, out, err = run_main(eval_prob_adaptive.main, *argv, "--template", "the {}")
    assert code == 0 and '2, such as "the ant"' in out and "n = 2" in out, err
    Path("names.txt").write_text("bee\nsea_horse\nant\n")
    code, out, err = run_main(eval_prob_adaptive.main, *argv, "--classes", "names.txt", "--extra", "list")
    assert code == 0 and '3, such as "a photo of a bee."' in out and "n = 2" in out, err
    config = json.loads(next(Path("data/csv_set_list").rglob("config.json")).read_text())
    assert config["candidates"]["names"] == ["bee", "sea_horse", "ant"] and config["options"]["classes"] == "names.txt"


@pytest.mark.parametrize("content", ["path\n0.png\n1.png\n", "path,label\n0.png,\n1.png,\n", "label,path\nx,0.png\ny,1.png\n"])
def test_pictures_of_a_csv_without_labels_are_predicted(content, run_main):
    layouts.csv_file(Path("list/set.csv"), content)
    script = load_script("classify").main
    argv = ["--labels", "bag", "boot", *MODEL, "--strategy", "stages"]
    code, out, err = run_main(script, "list/set.csv", *argv, "-o", "t.csv")
    assert code == 0 and "Predictions of 2 pictures: t.csv and t.parquet" in out, err
    code, _, err = run_main(script, "list/0.png", "list/1.png", *argv, "-o", "other.csv")
    assert code == 0 and Path("t.csv").read_text() == Path("other.csv").read_text(), err
    assert pandas.read_parquet("t.parquet")["path"].tolist() == ["list/0.png", "list/1.png"]
    layouts.csv_file(Path("list/set.csv"), content + ("2.png\n" if content.startswith("path\n") else "2.png,\n"))
    if not content.startswith("label"):
        code, out, err = run_main(script, "list/set.csv", *argv, "-o", "t.csv")
        assert code == 0 and "Images: 1 to do here, 2 of 3 done before" in out, err


def test_a_csv_of_classify_that_names_what_is_not_there(run_main):
    layouts.csv_file(Path("set.csv"), "path\n0.png\nnone.png\n")
    code, _, err = run_main(load_script("classify").main, "set.csv", "--labels", "bag", "boot", *MODEL, "--strategy", "stages")
    assert code == 2 and err == "error: set.csv: row 3: there is no file none.png\n"


# ---------------------------------------------------------------- class lists of folders and of a Hugging Face set


def folder_of(*names):
    for i, name in enumerate(names):
        layouts.save_picture(Path("set") / name / "1.png", i)
    Path("names.txt").write_text("zebra\nant\nbee\n")


def test_a_folder_s_labels_are_the_places_in_the_list():
    folder_of("ant", "zebra")
    dataset = open_dataset("folder", "test", None, "set", classes="names.txt")
    assert dataset.classes == ["zebra", "ant", "bee"] and dataset.labels.tolist() == [1, 0]
    assert "images of 2 of 3 classes, none of bee" in dataset.notice


def test_a_folder_that_is_not_in_the_list_is_refused_by_name():
    folder_of("ant", "wasp")
    with pytest.raises(ValueError, match=r"--dataset folder: set/wasp is the folder of no class in --classes"):
        open_dataset("folder", "test", None, "set", classes="names.txt")


def test_splits_are_told_with_a_list_too_unless_they_are_classes():
    folder_of("test", "train")
    with pytest.raises(ValueError, match="which are splits and no classes"):
        open_dataset("folder", "test", None, "set", classes="names.txt")
    Path("names.txt").write_text("train\ntest\n")
    assert open_dataset("folder", "test", None, "set", classes="names.txt").labels.tolist() == [1, 0]


@pytest.mark.parametrize("values", [["bee", "ant"], [2, 1], ["bee", "1"]])
def test_a_hugging_face_set_of_names_or_numbers(values):
    import datasets

    table = datasets.Dataset.from_dict({"image": [layouts.picture(i) for i in range(2)], "label": values})
    table.cast_column("image", datasets.Image()).save_to_disk("set")
    Path("names.txt").write_text("zebra\nant\nbee\n")
    dataset = open_dataset("hf", "test", None, "set", classes="names.txt")
    assert dataset.classes == ["zebra", "ant", "bee"] and dataset.labels.tolist() == [2, 1]
    Path("names.txt").write_text("zebra\nant\n")
    with pytest.raises(ValueError, match=r"'bee' is no class of --classes|label 2, and the 2 classes are 0..1"):
        open_dataset("hf", "test", None, "set", classes="names.txt")


def test_sets_with_known_classes_take_no_list():
    Path("names.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="--classes is for --dataset folder or hf or webdataset or csv only"):
        open_dataset("fashion_mnist", "test", None, "x", classes="names.txt")


def test_lists_of_classes_that_cannot_be_read():
    layouts.csv_file(Path("set.csv"))
    for content in (b"", b"\n \n", b"a\nb\na\n", "café\n".encode("latin-1"), b"a\0b\n"):
        Path("names.txt").write_bytes(content)
        with pytest.raises(ValueError, match=r"--classes names\.txt"):
            open_dataset("csv", "test", None, "set.csv", classes="names.txt")


def test_labels_of_pictures_from_a_list(run_main):
    layouts.csv_file(Path("set.csv"))
    Path("names.txt").write_text("\ufeffbag\r\n\r\nboot\r\n")
    script = load_script("classify").main
    argv = [*MODEL, "--strategy", "stages", "--json"]
    code, ours, err = run_main(script, "0.png", "--classes", "names.txt", *argv)
    assert code == 0 and json.loads(ours) == json.loads(run_main(script, "0.png", "--labels", "bag", "boot", *argv)[1]), err
    code, _, err = run_main(script, "0.png", "--classes", "names.txt", "--labels", "bag", "boot", *argv)
    assert code == 2 and "--labels and --classes each say what the labels are" in err
    Path("names.txt").write_text("bag\n")
    code, _, err = run_main(script, "0.png", "--classes", "names.txt", *argv)
    assert code == 2 and "--classes: 'bag' is the only label" in err
