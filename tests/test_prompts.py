"""Prompt CSVs: what is read, what is refused, and that the shipped ones are what the script writes."""

import json
from pathlib import Path

import layouts
import pytest
from conftest import ROOT, load_script

import eval_prob_adaptive
from diffusion.datasets import DATASETS, clip_templates, load_prompts, open_dataset
from diffusion.datasets.prompts import prompts_from_classes, read_prompts, read_templates
from diffusion.datasets.scenes import NOUNS

CLASSES = json.loads((ROOT / "prompts" / "classes.json").read_text(encoding="utf-8"))
SHIPPED = sorted((ROOT / "prompts").glob("*_prompts.csv"))
LISTS = sorted((ROOT / "prompts").glob("*_templates.txt"))


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "p.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def run_script(run_main):
    return lambda *argv: run_main(load_script("write_prompts").main, *argv)


# ---------------------------------------------------------------- class names


def own_set(*names):
    for name in names:
        layouts.save_picture(Path("set") / name / "x.png")
    return open_dataset("folder", "test", None, "set")


@pytest.mark.usefixtures("run_main")  # in a folder of its own
@pytest.mark.parametrize(
    ("names", "prompt", "told"),
    [
        (["n01440764", "n02102040"], "a photo of a tench.", "'tench'"),
        (["001.Black_footed_Albatross", "002.Laysan_Albatross"], "a photo of a Black footed Albatross.", "numbers before"),
        (["1-cat", "10-dog"], "a photo of a cat.", "numbers before"),
        (["3d model", "4x4"], "a photo of a 3d model.", None),  # no numbering
        (["1 cat", "2 cat"], "a photo of a 1 cat.", None),  # without it they would be one
        (["1", "cat"], "a photo of a 1.", None),
    ],
)
def test_what_stands_for_class_names(names, prompt, told):
    table = load_prompts("folder", own_set(*names), None, None)
    assert table.prompts[0] == prompt and (told in table.notice if told else table.notice is None)


@pytest.mark.usefixtures("run_main")
@pytest.mark.parametrize("names", [["0", "1"], ["00", "17"], ["0.0", "1.0"], ["n01440764", "n99999999"]])
def test_names_that_are_none(names):
    dataset = own_set(*names)
    with pytest.raises(ValueError, match=r"^--dataset folder: .*give names with --classes, prompts with --prompt_path"):
        load_prompts("folder", dataset, None, None)
    assert "numbers" in load_prompts("folder", dataset, None, "the digit {}.").notice or names[1] == "n99999999"


ORDERS = {
    "bag,0;boot,1": (0, None),
    "Bag,0;BOOT!,1": (0, None),
    "handbag,0;boot,1": (0, "1 classes are called otherwise than in the data set, such as 'handbag' for 'bag'"),
    "boot,0;bag,1": (2, "classidx 0 is called 'boot', class 1 of the data set, whose class 0 is 'bag'"),
    "sock,0;bag,1": (2, "classidx 1 is called 'bag', class 0 of the data set"),
}


@pytest.mark.parametrize("rows", ORDERS)
def test_prompts_in_another_order_than_the_classes(rows, run_main):
    own_set("bag", "boot")
    lines = [f"a photo of a {i}.,{row}\n" for i, row in enumerate(rows.split(";"))]
    Path("p.csv").write_text("prompt,classname,classidx\n" + "".join(lines))
    words = ["--version", "tiny", "--dataset", "folder", "--data_dir", "set", "--prompt_path", "p.csv", "--dry_run"]
    code, out, err = run_main(eval_prob_adaptive.main, *words)
    wanted, told = ORDERS[rows]
    assert code == wanted and (told is None or told in out + err)
    assert told or "are called" not in out


@pytest.mark.usefixtures("run_main")
def test_folders_called_by_numbers_are_classes_of_the_list():
    for name in ("0", "2", "10"):
        layouts.save_picture(Path("set") / name / "x.png")
    Path("names.txt").write_text("\n".join(f"class {i}" for i in range(11)))
    dataset = open_dataset("folder", "test", None, "set", classes="names.txt")
    assert sorted(dataset.labels) == [0, 2, 10]
    layouts.save_picture(Path("set") / "02" / "x.png")
    with pytest.raises(ValueError, match="is the folder of a class that has another one"):
        open_dataset("folder", "test", None, "set", classes="names.txt")
    layouts.save_picture(Path("set") / "11" / "x.png")
    with pytest.raises(ValueError, match="folder of no class"):
        open_dataset("folder", "test", None, "set", classes="names.txt")


# ---------------------------------------------------------------- reading


def test_rows_may_share_a_class_and_text_stays_text(tmp_path):
    text = 'prompt,classname,classidx\n"a cat, asleep",None,3\nnan,null,3\n"say ""é""",NA,0\n'
    table = read_prompts(write(tmp_path, text))
    assert table.prompts == ["a cat, asleep", "nan", 'say "é"']
    assert table.classnames == ["None", "null", "NA"]
    assert table.classidx == [3, 3, 0]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffprompt,classname,classidx\na cat,cat,3\n",  # as spreadsheets save it
        "prompt,classname,classidx\r\na cat,cat,3\r\n",
        "classidx,note,prompt,classname\n3,x,a cat,cat\n",
        "prompt,classname,classidx\n\na cat,cat,3",
    ],
)
def test_other_ways_to_write_the_same_table(text, tmp_path):
    table = read_prompts(write(tmp_path, text))
    assert (table.prompts, table.classnames, table.classidx) == (["a cat"], ["cat"], [3])


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "empty file"),
        ("prompt,classname,classidx\n", "no prompts"),
        ("prompt,classname\na cat,cat\n", "column classidx missing"),
        ("text,label\na cat,3\n", "column prompt, classname, classidx missing"),
        ("prompt,classname,classidx\na cat,cat,1.5\n", "row 2 has classidx '1.5'"),
        ("prompt,classname,classidx\na cat,cat,0\na dog,dog,-1\n", "row 3 has classidx '-1'"),
        ("prompt,classname,classidx\na cat,cat,\n", "row 2 has classidx ''"),
        ("prompt,classname,classidx\na cat,cat,²\n", "row 2 has classidx"),
        ("prompt,classname,classidx\n  ,cat,0\n", "row 2 has an empty prompt"),
        ("prompt,classname,classidx\na cat, asleep,cat,0\n", "row 2 has 4 fields, not 3; quote"),
        ("prompt,classname,classidx\na cat,cat\n", "row 2 has 2 fields"),
        ("prompt,classname,classidx\na \0 cat,cat,0\n", "U+0000 in it is no text"),
        ("prompt,classname,classidx\na cat,\x1b[2Jcat,0\n", "U+001B in it is no text"),
    ],
)
def test_bad_tables_are_refused_in_one_line(text, message, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        read_prompts(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not a readable prompt CSV"):
        read_prompts(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="not a readable prompt CSV"):
        read_prompts(write(tmp_path, "prompt,classname,classidx\ncafé,cafe,0\n", encoding="latin-1"))


# ---------------------------------------------------------------- from class names


def test_prompts_from_class_names():
    table = prompts_from_classes(["sea_horse", "ant"], "a {} in the wild.")
    assert table.prompts == ["a sea horse in the wild.", "a ant in the wild."]
    assert table.classnames == ["sea_horse", "ant"]
    assert table.classidx == [0, 1]


def test_template_needs_a_place_for_the_name():
    with pytest.raises(ValueError, match="--template 'a photo'"):
        prompts_from_classes(["ant"], "a photo")
    with pytest.raises(ValueError, match="no class names"):
        prompts_from_classes([], "a {}")


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "\udc80", "a\0"])
def test_labels_that_are_no_text(name):
    with pytest.raises(ValueError, match=r"U\+[0-9A-F]{4} in it is no text"):
        prompts_from_classes(["ant", name], "a {}")
    assert prompts_from_classes(["\N{MAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}"], "a {}").classidx == [0]


def test_other_braces_in_names_and_templates_are_left_alone():
    assert prompts_from_classes(["a{b}"], "{x} {}").prompts == ["{x} a{b}"]


# ---------------------------------------------------------------- the shipped files


def test_the_shipped_files_are_what_the_script_writes(tmp_path, run_script):
    """From another folder, all at once: same names, same bytes."""
    code, _, err = run_script("all", "--out", tmp_path / "out")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in SHIPPED + LISTS)
    for path in SHIPPED + LISTS:
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_every_dataset_has_its_csv():
    wanted = {spec.prompts for spec in DATASETS.values() if spec.prompts}
    assert wanted == {path.name for path in SHIPPED}


def test_clip_s_lists_have_their_published_numbers_of_templates():
    ones = dict.fromkeys(("pets", "flowers", "food", "mnist"), 1) | dict.fromkeys(("aircraft", "stl10"), 2)
    many = {"eurosat": 3, "cifar10": 18, "cifar100": 18, "caltech101": 34, "imagenet": 80, "imagenetA": 80, "objectnet": 80}
    found = {path.stem.removesuffix("_templates"): read_templates(path) for path in LISTS}
    assert {name: len(set(templates)) for name, templates in found.items()} == ones | many
    assert all(len(templates) == len(set(templates)) for templates in found.values())
    assert set(found["caltech101"]) < set(found["imagenet"]) == set(found["objectnet"])
    shared = set(found) - {"mnist"}  # whose published prompt quotes the number in another way
    assert all(CLASSES[name]["template"] in found[name] for name in shared)


def test_test_sets_with_imagenet_s_classes_have_its_templates():
    assert clip_templates("imagenetv2") == clip_templates("imagenetA") == clip_templates("imagenet")
    for name in ("fashion_mnist", "tiny_combos", "folder", "hf"):
        with pytest.raises(ValueError, match=f"--templates clip: CLIP's authors published none for {name}: name a file"):
            clip_templates(name)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_csvs_agree_with_the_class_lists(path):
    table, entry = read_prompts(path), CLASSES[path.stem.removesuffix("_prompts")]
    before, after = entry["template"].split("{}")
    names = [prompt[len(before) : len(prompt) - len(after)] for prompt in table.prompts]
    assert all(prompt == before + name + after for prompt, name in zip(table.prompts, names, strict=True))
    if isinstance(entry["names_in_prompt"], list):
        assert names == entry["names_in_prompt"]
        assert table.classnames == entry["classnames"]
    else:
        assert names == table.classnames
    assert table.classidx == entry.get("classidx", list(range(len(names))))
    assert b"\r" not in path.read_bytes()


@pytest.mark.parametrize(
    "name,row,expected",
    [
        ("pets", 1, ("a photo of a American Bulldog, a type of pet.", "american bulldog", 1)),
        ("aircraft", 72, ("a photo of a F-16A/B, a type of aircraft.", "F-16A_B", 72)),
        ("imagenet", 999, ("a photo of a toilet paper.", "toilet paper", 999)),
        ("imagenetA", 0, ("a photo of a stingray.", "stingray", 6)),
        ("caltech101", 0, ("a photo of a face in front of a background.", "Faces", 0)),
        ("eurosat", 9, ("a centered satellite photo of a sea or lake.", "SeaLake", 9)),
    ],
)
def test_single_rows(name, row, expected):
    table = read_prompts(ROOT / "prompts" / f"{name}_prompts.csv")
    assert (table.prompts[row], table.classnames[row], table.classidx[row]) == expected


def test_the_shipped_model_meets_the_nouns_that_it_was_trained_with():
    assert tuple(CLASSES["fashion_mnist"]["names_in_prompt"]) == NOUNS


def test_imagenet_a_has_200_classes():
    indices = CLASSES["imagenetA"]["classidx"]
    assert len(set(indices)) == 200
    assert indices == sorted(indices)


# ---------------------------------------------------------------- the script on own classes


def test_own_classes(tmp_path, run_script):
    (tmp_path / "names.txt").write_text("sea_horse\n\n ant \n")
    code, _, err = run_script("mine", "--classes", "names.txt", "--template", "a {}!", "--out", "out")
    assert code == 0, err
    text = (tmp_path / "out" / "mine_prompts.csv").read_text()
    assert text == "prompt,classname,classidx\na sea horse!,sea_horse,0\na ant!,ant,1\n"


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["nothing"], "DATASET nothing: choose all or one of aircraft"),
        (["mine", "--classes", "none.txt"], "--classes none.txt cannot be read"),
        (["mine", "--classes", "names.txt", "--template", "a thing"], "--template 'a thing'"),
        (["pets", "--template", "a {}"], "--template is for your own --classes"),
    ],
)
def test_bad_input_writes_nothing(arguments, message, tmp_path, run_script):
    (tmp_path / "names.txt").write_text("ant\n")
    code, _, err = run_script(*arguments, "--out", "out")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
