"""scripts/print_winoground.py: the published lines, records of both kinds, tags, comparison of runs, bad input."""

import csv
import json
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, load_script
from PIL import Image
from scipy.stats import binomtest

from diffusion.datasets import winoground
from diffusion.runs import run_folder

CASES = torch.load(GOLDEN / "winoground_cases.pt", weights_only=True)
GOLDEN_SET = GOLDEN / "data" / "winoground"
NAMES = ("c0_i0", "c0_i1", "c1_i0", "c1_i1")


@pytest.fixture
def report(run_main):
    """report(*argv) -> (exit code, stdout, stderr) of the script."""
    return lambda *argv: run_main(load_script("print_winoground").main, *argv)


def write_records(folder, records):
    """{id: four scores, or a whole record} -> files as the published code writes them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for example_id, values in records.items():
        record = values if isinstance(values, dict) else dict(zip(NAMES, map(torch.tensor, values), strict=True))
        torch.save(record, folder / f"{example_id}.pt")
    return folder


def write_config(folder, dataset="winoground", data_dir=None, expected=8, **identity):
    config = {"identity": {"dataset": dataset} | identity, "options": {"data_dir": data_dir}, "images_expected": expected}
    command = {} if dataset == "fashion_mnist" else {"command": "run_winoground", "kind": run_folder.PAIRS}
    run_folder.write_config(Path(folder), command | config)


def make_set(folder, tags):
    """An examples.jsonl with these (tag, collapsed_tag), ids 10, 11, ..., all with the same two images."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(folder / "images" / "p.png")
    with open(folder / "examples.jsonl", "w") as file:
        for i, (tag, collapsed) in enumerate(tags, start=10):
            line = {"id": i, "image_0": "p", "image_1": "p", "caption_0": "a", "caption_1": "b"}
            file.write(json.dumps(line | {"tag": tag, "collapsed_tag": collapsed}) + "\n")
    return folder


# Four scores (c0_i0, c0_i1, c1_i0, c1_i1) for each outcome that there is.
NEITHER, TEXT, IMAGE, GROUP = (0.0, 1.0, 1.0, 0.0), (3.0, 0.0, 2.0, 1.0), (3.0, 2.0, 0.0, 1.0), (1.0, 0.0, 0.0, 1.0)


# ---------------------------------------------------------------- the published lines


def golden_runs():
    for name, case in CASES.items():
        folders = sorted({str(Path(file).parent) for file in case["records"]})
        for folder, stdout in product(folders, case["stdout"]):
            if f"Run folder: data/{folder}\n" in stdout:
                yield pytest.param(case, folder, stdout, id=f"{name}-{folder}")


@pytest.mark.parametrize(("case", "folder", "stdout"), golden_runs())
def test_golden_lines_byte_for_byte(report, case, folder, stdout):
    records = {int(Path(file).stem): r for file, r in case["records"].items() if str(Path(file).parent) == folder}
    assert len(records) == 8
    write_records(Path("data") / folder, records)
    code, out, err = report(f"data/{folder}", "--data_dir", GOLDEN_SET)
    assert (code, err) == (0, "")
    ours = [line.split("  (n = ") for line in out.splitlines() if " score:" in line]
    assert [published for published, _ in ours] == [line for line in stdout.splitlines() if " score:" in line]
    assert ours[0][1].startswith("8, 95% interval ")


def test_the_line_as_it_is_written(report):
    case = CASES["w01_sd_t100"]
    write_records("run", {int(Path(file).stem): record for file, record in case["records"].items()})
    _, out, _ = report("run", "--data_dir", GOLDEN_SET)
    assert "\nOverall text score:  25.0 +/-  30.0  (n = 8, 95% interval 7.1 to 59.1)\n" in out
    assert "Examples: 8 of an unknown number" in out


# ---------------------------------------------------------------- records


def test_each_kind_of_record(tmp_path):
    errors = torch.arange(12.0).view(6, 2)
    cases = {
        "errors": (errors, -5.5),
        "errors of one step": (torch.tensor([[2.0]]), -2.0),
        "error maps": (torch.full((2, 1, 4, 4), 0.5), -0.5),
        "half errors": (torch.full((3, 1), 0.25, dtype=torch.float16), -0.25),
        "logit": (torch.tensor(7.5), 7.5),
        "half logit": (torch.tensor(-1.5, dtype=torch.bfloat16), -1.5),
        "number": (0.125, 0.125),
        "whole number": (3, 3.0),
    }
    for number, (value, _) in enumerate(cases.values()):
        write_records(tmp_path / "run", {number: {name: value for name in NAMES} | {"more": 1}})
    found = run_folder.load_pairs(tmp_path / "run")
    assert {name: found[i] for i, name in enumerate(cases)} == {name: (score,) * 4 for name, (_, score) in cases.items()}
    assert run_folder.load_pair(tmp_path / "run" / "0.pt").c1_i0 == -5.5


def test_unreadable_records_do_not_count(report, tmp_path):
    run = write_records(
        tmp_path / "run", {10: GROUP, 11: GROUP, 12: {"errors": {}, "pred": 0}, 13: (float("nan"), 0.0, 0.0, 0.0)}
    )
    (run / "11.pt").write_bytes((run / "10.pt").read_bytes()[:-40])
    data = make_set(tmp_path / "set", [("", "Object")] * 5)
    code, out, _ = report(run, "--data_dir", data)
    assert code == 0 and "Examples: 1 of" in out and "Overall text score:  100.0 +/-  0.0  (n = 1," in out
    assert "3 unreadable records, not counted" in out and re.findall(r"(\d+)\.pt \(", out) == ["11", "12", "13"]


# ---------------------------------------------------------------- tags, modes, files


@pytest.fixture
def small(tmp_path):
    """Two runs on one set of six examples: (data_dir, first, second); the second lacks an example, the first too."""
    tags = [
        ("Noun", "Object"),
        ("Noun", "Object"),
        ("Colour", "Relation"),
        ("Order", "Relation"),
        ("Noun", "Both"),
        ("", "Attribute"),
    ]
    data = make_set(tmp_path / "set", tags)
    first = write_records(tmp_path / "a", {10: NEITHER, 11: TEXT, 12: GROUP, 13: NEITHER, 14: IMAGE})
    second = write_records(tmp_path / "b", {10: GROUP, 11: TEXT, 12: NEITHER, 13: GROUP, 15: GROUP})
    return data, first, second


def scores_in(out):
    """name -> percent of the lines with an interval."""
    found = re.findall(r"^(.+) score:  ([\d.]+) \+/-", out, re.M)
    return {name: float(percent) for name, percent in found}


def test_scores_by_collapsed_tag_in_the_published_order(report, small):
    data, first, _ = small
    _, out, _ = report(first, "--data_dir", data)
    assert list(scores_in(out).items()) == [
        *(("Overall text", 40.0), ("Overall image", 40.0), ("Overall group", 20.0)),
        *(("Object text", 50.0), ("Object image", 0.0), ("Object group", 0.0)),
        *(("Relation text", 50.0), ("Relation image", 50.0), ("Relation group", 50.0)),
        *(("Both text", 0.0), ("Both image", 100.0), ("Both group", 0.0)),
    ]  # nothing of Attribute: this run has no record of it


def test_every_tag_on_request_and_collapsed_tags_of_other_sets(report, small):
    data, _, second = small
    found = scores_in(report(second, "--data_dir", data, "--by_tag")[1])
    names = list(dict.fromkeys(name.rsplit(" ", 1)[0] for name in found))
    assert names == ["Overall", "Object", "Relation", "Attribute", "Tag Colour", "Tag Noun", "Tag Order"]
    assert found["Tag Noun text"] == 100 and found["Tag Noun image"] == 50 and found["Tag Colour text"] == 0


def test_normalised_takes_the_image_out_of_the_image_score(report, tmp_path):
    """An image that every caption likes: both captions prefer it, but the fitting one by more."""
    data = make_set(tmp_path / "set", [("", "Object")] * 3)
    easy = (10.0, 1.0, 9.0, 2.0)  # text right; image 0 wins under both captions
    half = (10.0, 1.0, 9.0, 1.5)  # the same with another margin
    odd = (10.0, 3.0, 9.0, 2.5)  # image 1 prefers the wrong caption, by less than image 0 the right one
    run = write_records(tmp_path / "run", {10: easy, 11: half, 12: odd})
    plain = scores_in(report(run, "--data_dir", data)[1])
    assert [plain[f"Overall {part}"] for part in ("text", "image", "group")] == [66.7, 0.0, 0.0]
    code, out, _ = report(run, "--data_dir", data, "--score_mode", "normalised")
    assert code == 0 and "normalised" in out.splitlines()[0]
    fair = scores_in(out)
    assert [fair[f"Overall {part}"] for part in ("text", "image", "group")] == [66.7, 100.0, 66.7]


def test_csv_and_json(report, small, tmp_path):
    data, first, second = small
    assert report(first, second, "--data_dir", data, "--json", "out.json", "--csv", "out.csv")[0] == 0
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    assert list(rows[0]) == ["run", "id", "tag", "collapsed_tag", "text", "image", "group", *NAMES]
    assert [(r["run"], r["id"]) for r in rows] == [(str(first), str(i)) for i in (10, 11, 12, 13, 14)] + [
        (str(second), str(i)) for i in (10, 11, 12, 13, 15)
    ]
    right = {(r["run"], r["id"]): r["text"] + r["image"] + r["group"] for r in rows}
    assert right[str(first), "11"] == "100" and right[str(first), "14"] == "010" and right[str(second), "13"] == "111"
    assert tuple(float(rows[1][name]) for name in NAMES) == TEXT
    told = json.loads(Path("out.json").read_text())
    assert told["score_mode"] == "conditional" and [r["folder"] for r in told["runs"]] == [str(first), str(second)]
    overall = told["runs"][0]["scores"]["Overall"]["text"]
    interval = binomtest(2, 5).proportion_ci(0.95, method="wilson")
    assert overall == {"value": 0.4, "low": pytest.approx(interval.low), "high": pytest.approx(interval.high), "n": 5}
    cell = told["comparisons"][0]["scores"]["Overall"]["text"]
    assert cell == {"n": 4, "difference": 0.25, "only_first": 1, "only_second": 2, "p_value": 1.0}


# ---------------------------------------------------------------- two runs


def test_comparison_by_hand_on_the_ids_of_both(report, small):
    data, first, second = small
    code, out, _ = report(first, second, "--data_dir", data)
    assert code == 0
    compared = out[out.index(" less ") :]
    assert "\nb less a, on the 4 examples of both" in out and "first" not in out
    assert "Overall text score:  +25.0 points  (n = 4, only b right: 2, only a right: 1, p = 1)" in compared
    assert "Object text score:  +50.0 points  (n = 2, only b right: 1, only a right: 0, p = 1)" in compared
    assert "Relation group score:  +0.0 points  (n = 2, only b right: 1, only a right: 1, p = 1)" in compared
    assert "Both" not in compared  # the only example of it is not in the second run


def test_comparison_with_three_runs_and_a_p_value(report, tmp_path):
    data = make_set(tmp_path / "set", [("", "Object")] * 40)
    weak = write_records(tmp_path / "weak", {i: GROUP if i < 15 else NEITHER for i in range(10, 50)})
    strong = write_records(tmp_path / "strong", {i: NEITHER if i in (10, 11) else GROUP for i in range(10, 50)})
    _, out, _ = report(weak, strong, weak, "--data_dir", data)
    p = binomtest(2, 37).pvalue
    assert "strong less weak" in out and "weak less weak" in out
    assert f"Overall group score:  +82.5 points  (n = 40, only strong right: 35, only weak right: 2, p = {p:.2g})" in out
    assert out.count("on the 40 examples of both") == 2 and "Overall text score:  +0.0 points" in out


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["data/pairs/one", "data/pairs/two"], ["one", "two"]),
        (["data/pairs/one", "data/more/one", "data/more/two"], ["pairs/one", "more/one", "more/two"]),
        (["a/one", "a/one"], ["one", "one"]),
        (["one", "one/"], ["one", "one"]),
    ],
)
def test_a_run_has_the_shortest_name_that_tells_it_apart(folders, names):
    assert load_script("print_winoground").short_names(list(map(Path, folders))) == names


# ---------------------------------------------------------------- which set


def test_the_run_says_which_set(report):
    run = write_records("run", {i: GROUP for i in range(8)})
    write_config(run, data_dir=str(GOLDEN_SET), expected=8, images=winoground.open_local(GOLDEN_SET).fingerprint())
    code, out, _ = report(run)
    assert code == 0 and "Examples: 8 of 8" in out and scores_in(out)["Both group"] == 100
    tiny = write_records("tiny", {i: TEXT for i in range(10)})
    write_config(tiny, dataset="tiny_pairs", expected=360)
    code, out, _ = report(tiny)
    assert code == 0 and "Examples: 10 of 360" in out


def test_a_flag_for_the_set_overrides_where_the_run_found_it(report):
    run = write_records("run", {0: GROUP})
    write_config(run, data_dir="moved/away")
    assert report(run)[0] == 2
    assert report(run, "--data_dir", GOLDEN_SET)[0] == 0


def refuse(result, *words):
    code, out, err = result
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    for word in words:
        assert word in err


def test_bad_input(report, tmp_path):
    one = write_records(tmp_path / "one", {0: GROUP})
    refuse(report(tmp_path / "gone", "--data_dir", GOLDEN_SET), "gone does not exist")
    refuse(report(one), "one does not say", "--dataset", "--data_dir")
    refuse(report(tmp_path, "--data_dir", GOLDEN_SET), "no readable record", f"did you mean {one}?")
    (tmp_path / "empty").mkdir()
    refuse(report(one, tmp_path / "empty", "--data_dir", GOLDEN_SET), "empty holds no readable record")
    refuse(report(write_records("other", {8: GROUP}), "--data_dir", GOLDEN_SET), "example 8", "--data_dir")
    refuse(report(one, "--data_dir", tmp_path), "examples.jsonl")
    refuse(report(one, "--dataset", "aro"), "invalid choice")
    (tmp_path / "file").write_text("mine")
    refuse(report(one, "--data_dir", GOLDEN_SET, "--csv", tmp_path / "file" / "scores.csv"), "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_runs_of_different_sets_are_refused(report, tmp_path):
    a, b = (write_records(tmp_path / name, {0: GROUP}) for name in "ab")
    write_config(a, data_dir=str(GOLDEN_SET))
    write_config(b, dataset="tiny_pairs")
    refuse(report(a, b), "tiny_pairs and winoground")
    c = write_records(tmp_path / "c", {0: GROUP})
    write_config(c, data_dir=str(GOLDEN_SET), images="another")
    refuse(report(a, c), "c was made with other images")
    d = write_records(tmp_path / "d", {0: GROUP})
    write_config(d, dataset="fashion_mnist")
    refuse(report(d), "d is a run of eval_prob_adaptive.py", "run_winoground.py")


def test_no_pictures_are_needed(report):
    make_set(Path("set"), [("t", "Object")] * 3)
    write_records("run", {10: GROUP, 11: TEXT, 12: NEITHER})
    write_config("run", data_dir="set", images="0123456789abcdef")  # which is not that of these pictures
    assert report("run")[0] == 2
    (Path("set") / "images" / "p.png").unlink()
    code, out, err = report("run")
    assert code == 0 and "Overall text score:  66.7" in out, out
    assert err == "Note: the pictures of this set are not there, so nothing shows that the runs are about them\n"
