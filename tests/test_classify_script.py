"""scripts/classify.py: pictures without labels, one or folders, against the library's own results; what is kept; bad input."""

import csv
import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from conftest import ROOT, TINY_SD20, load_script
from layouts import save_picture
from PIL import Image

from diffusion import classify, models
from diffusion.classify import Classifier, Result
from diffusion.datasets import open_dataset
from diffusion.datasets.readers import unlabelled
from diffusion.metrics.calibration import Fit
from diffusion.predict import predictions
from diffusion.runs import run_folder
from diffusion.strategy import Race, Stages

LABELS = ["bag", "boot", "coat"]
PROMPTS = [f"a photo of a {label}." for label in LABELS]
MODEL = ["--model_path", TINY_SD20, "--img_size", 64, "--device", "cpu"]
RACE = Race(0.2, 3, 2, 8)
RULE = ["--alpha", 0.2, "--min_samples", 3, "--round_size", 2, "--max_samples", 8]
RUN = ["--labels", *LABELS, *MODEL, *RULE]


@pytest.fixture(scope="module")
def script():
    return load_script("classify")


@pytest.fixture
def run(run_main, script):
    return lambda *argv: run_main(script.main, *argv)


@pytest.fixture
def pictures():
    """Three of them in a folder of its own."""
    for number, name in enumerate(("b.png", "a.png", "deeper/c.jpg")):
        save_picture(Path("pictures") / name, number, size=(70, 64))
    return [f"pictures/{name}" for name in ("a.png", "b.png", "deeper/c.jpg")]


@pytest.fixture(scope="module")
def classifier():
    return classify.text_to_image("2-0", PROMPTS, model_path=str(TINY_SD20), img_size=64, strategy=RACE, seed=3, device="cpu")


def expected(classifier, path):
    """The library's result, with the noise of the file's bytes."""
    index = int(hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16], 16)
    return classifier(Image.open(path).convert("RGB"), index)


def lists(out):
    return json.loads(out)


def table(path="t.csv"):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- one picture, several


def test_the_picture_of_the_readme(run):
    """examples/bag.png is the first bag of the shipped images, and the README's command prints the README's lines."""
    readme = (ROOT / "README.md").read_text()
    argv = shlex.split(re.search(r"^python scripts/classify.py (examples/.*)", readme, re.M)[1])
    shown = re.search(r"^```\n(examples/bag.png: .*?)```", readme, re.S | re.M)[1].splitlines()
    Path("examples").mkdir()
    shutil.copy(ROOT / "examples" / "bag.png", "examples")
    clothes = open_dataset("fashion_mnist", "test", None, "nowhere")
    bag = next(i for i, label in enumerate(clothes.labels) if clothes.classes[label] == "Bag")
    assert np.array_equal(Image.open(argv[0]), clothes.picture(bag))
    code, out, err = run(*argv)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "Price: at most 750 network evaluations per image, 750 in all"
    at = lines.index(shown[0])
    assert lines[at + 1] == shown[1] and "Probabilities are uncalibrated" in out
    rows, expected = ([line.split() for line in some] for some in (lines[at + 2 : at + 5], shown[2:]))
    assert [(row[0], row[3]) for row in rows] == [(row[0], row[3]) for row in expected]
    numbers = [np.array([row[1:3] for row in some], float) for some in (rows, expected)]
    np.testing.assert_allclose(*numbers, atol=2e-4)  # the last digit of a probability
    assert f"Cost: {sum(int(row[3]) for row in rows)} evaluations per image, " in out
    assert [path.name for path in Path().rglob("*.*")] == ["bag.png"]  # nothing is kept


def test_json_is_transformers_form_and_all_that_stdout_holds(run, pictures, classifier):
    code, out, err = run(pictures[0], *RUN, "--seed", 3, "--print_json")
    assert code == 0 and "Price: " in err and "Cost: " in err
    result = expected(classifier, pictures[0])
    [found] = [{one["label"]: one["score"] for one in lists(out)}]
    assert [set(one) for one in lists(out)] == [{"score", "label"}] * 3 and lists(out)[0]["label"] == LABELS[result.label]
    scores = [one["score"] for one in lists(out)]
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1)
    gaps = {label: gap(result, row) for row, label in enumerate(LABELS)}
    weights = {label: np.exp(-max(0.0, one)) for label, one in gaps.items()}  # the softmax at temperature 1
    assert found == pytest.approx({label: weight / sum(weights.values()) for label, weight in weights.items()})


def gap(result, row):
    """A candidate's mean error less the winner's on the pairs that both saw."""
    n = min(len(result.errors[row]), len(result.errors[result.winner]))
    return float(np.mean(result.errors[row][:n].astype(float) - result.errors[result.winner][:n].astype(float)))


def test_results_do_not_depend_on_order_names_or_neighbours(run, pictures):
    shutil.copy(pictures[1], "another name.png")
    _, one, _ = run(pictures[1], *RUN, "--print_json")
    _, all_of_them, _ = run(*pictures, "another name.png", *RUN, "--print_json")
    _, reversed_, _ = run("another name.png", *pictures[::-1], *RUN, "--print_json")
    found = lists(all_of_them)
    assert found[1] == found[3] == lists(one) and found == lists(reversed_)[::-1]
    _, other_seed, _ = run(pictures[1], *RUN, "--seed", 1, "--print_json")
    assert lists(other_seed) != lists(one)


def test_a_folder_of_one_picture_is_a_list_of_lists(run):
    save_picture(Path("one/a.png"), size=(64, 64))
    code, out, _ = run("one", *RUN, "--print_json")
    assert code == 0 and [len(one) for one in lists(out)] == [3]


def test_a_picture_that_is_none_among_others(run, pictures):
    Path("pictures/notes.png").write_text("no picture")
    code, out, err = run("pictures", *RUN, "--print_json")
    assert code == 1 and [one is None for one in lists(out)] == [False, False, False, True]
    assert "error: 1 images failed, all others were evaluated" in err and "pictures/notes.png" in err
    code, out, err = run(*pictures, "pictures/notes.png", *RUN)
    assert code == 1 and out.count("mean error  evaluations") == 3 and err.count("error:") == 1


def test_prompts_of_a_csv_several_of_a_label_and_ids_with_gaps(run, pictures):
    Path("p.csv").write_text("prompt,classname,classidx\na bag,bag,70\na boot,boot,5\na photo of a bag,bag,70\n")
    code, out, err = run(pictures[0], "--prompts", "p.csv", *MODEL, "--strategy", "stages", "--to_keep", 1, "--n_samples", 4)
    assert code == 0, err
    model = {"model_path": str(TINY_SD20), "img_size": 64, "strategy": Stages((1,), (4,)), "device": "cpu"}
    texts = ["a bag", "a boot", "a photo of a bag"]
    result = expected(classify.text_to_image("2-0", texts, [70, 5, 70], **model), pictures[0])
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("  ")}
    assert float(rows["bag"][2]) == pytest.approx(min(result.means[[0, 2]]), abs=1e-6)
    assert float(rows["boot"][2]) == pytest.approx(result.means[1], abs=1e-6)
    assert f"{pictures[0]}: {'bag' if result.label == 70 else 'boot'}" in out and "Cost: 12 evaluations" in out


def test_a_map_s_mean_is_the_difference_of_the_two_errors(run, pictures, script, monkeypatch):
    drawn = []
    monkeypatch.setattr(script.figures, "draw_map", lambda figure, axis, image, advantage, *_: drawn.append(advantage))
    stages = ["--strategy", "stages", "--to_keep", 1, "--n_samples", 6]
    code, out, err = run(pictures[2], "--labels", *LABELS, *MODEL, *stages, "--map", "maps/m.png")
    assert code == 0 and ", and 12 for the map" in out, err
    errors = [float(line.split()[2]) for line in out.splitlines() if line.startswith("  ") and "error" not in line]
    assert drawn[0].shape == (8, 8) and drawn[0].mean() == pytest.approx(errors[1] - errors[0], abs=3e-6)
    names = [line.split()[0] for line in out.splitlines() if line.startswith("  ")][1:3]
    assert f"Drawn, green: {names[0]}, pink: {names[1]}: maps/m.png" in out
    assert Image.open("maps/m.png").size[0] > 800


# ---------------------------------------------------------------- tables


def test_the_table_holds_what_the_library_finds(run, pictures, classifier):
    code, out, err = run("pictures", *RUN, "--seed", 3, "-o", "new/t.csv")
    assert code == 0 and "Predictions of 3 pictures: new/t.csv and new/t.parquet" in out, err
    rows = table("new/t.csv")
    columns = ["path", "label", "probability_uncalibrated", "evaluations", *(f"error_{label}" for label in LABELS)]
    assert [row["path"] for row in rows] == pictures and list(rows[0]) == columns
    for row in rows:
        result = expected(classifier, row["path"])
        assert row["label"] == LABELS[result.label] and int(row["evaluations"]) == result.evaluations
        assert [float(row[f"error_{label}"]) for label in LABELS] == pytest.approx(result.means.tolist())
    parquet = pandas.read_parquet("new/t.parquet")
    assert parquet.astype(str).to_dict("records") == rows
    assert [str(parquet[name].dtype) for name in columns[2:]] == ["float64", "int64", *["float64"] * 3]


@pytest.fixture
def count(monkeypatch):
    """Calls of a classifier."""
    calls, call = [], Classifier.__call__
    monkeypatch.setattr(Classifier, "__call__", lambda self, *words: calls.append(1) or call(self, *words))
    return calls


def test_what_was_done_before_a_crash_is_not_done_again(run, pictures, count, monkeypatch):
    _, _, _ = run("pictures", *RUN, "-o", "whole.csv")
    count.clear()
    save = run_folder.save_record

    def crash(path, record):
        if len(count) == 2:
            raise MemoryError
        save(path, record)

    monkeypatch.setattr(run_folder, "save_record", crash)
    with pytest.raises(MemoryError):
        run("pictures", *RUN, "-o", "t.csv")
    assert sorted(path.name for path in Path().glob("t.*")) == ["t.records"]
    monkeypatch.setattr(run_folder, "save_record", save)
    count.clear()
    code, out, err = run("pictures", *RUN, "-o", "t.csv")
    assert code == 0 and len(count) == 2 and "Images: 2 to do here, 1 of 3 done before" in out, err
    assert Path("t.csv").read_text() == Path("whole.csv").read_text()
    assert pandas.read_parquet("t.parquet").equals(pandas.read_parquet("whole.parquet"))


def test_a_full_disk_ends_the_work_without_a_table(run, pictures, monkeypatch):
    def full(path, record):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(run_folder, "save_record", full)
    code, _, err = run("pictures", *RUN, "-o", "t.csv")
    assert code == 1 and "No space left on device" in err and not Path("t.csv").exists()


def test_new_pictures_and_a_fit_are_added_to_what_is_there(run, pictures, count, monkeypatch, script):
    code, _, err = run("pictures", *RUN, "-o", "t.csv")
    assert code == 0, err
    count.clear()
    save_picture(Path("pictures/new.png"), 9, size=(64, 64))
    shutil.copy(pictures[0], "pictures/copy.png")
    code, out, err = run("pictures", *RUN, "-o", "t.csv")
    assert code == 0 and len(count) == 1, err  # a copy is known
    rows = {row["path"]: row for row in table()}
    assert len(rows) == 5 and rows["pictures/copy.png"]["error_bag"] == rows[pictures[0]]["error_bag"]
    write_fit()
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    code, out, err = run("pictures", *RUN, "-o", "t.csv", "--fit", "fit.json")
    assert code == 0 and "Probabilities: fitted on 40 images" in out and "Note: the fit was made with other prompts" in out, err
    for row in table():
        gaps = np.array([float(row[f"error_{label}"]) for label in LABELS]) - float(row[f"error_{row['label']}"])
        saved = torch.load(Path("t.records") / f"sha256_{predictions.content_key(row['path'])}.pt", weights_only=True)
        if len({len(one["pred_errors"]) for one in saved["errors"].values()}) == 1:  # else gaps are of fewer pairs
            weights = np.exp(-gaps.clip(0) / 0.01)
            assert float(row["probability"]) == pytest.approx(weights.max() / weights.sum(), rel=1e-4)
        assert 1 / 3 <= float(row["probability"]) <= 1


def write_fit(**changes):
    config = run_folder.read_config(Path("t.records"))
    about = config["identity"] | {"dataset": "fashion_mnist", "prompts": "0", "seed": 7} | changes
    Fit(0.01, 0.0, 40, about).write("fit.json")


def test_records_that_are_damaged_are_redone(run, pictures, count):
    run("pictures", *RUN, "-o", "t.csv")
    first = Path("t.csv").read_text()
    one, other, _ = sorted(Path("t.records").glob("*.pt"))
    one.write_bytes(one.read_bytes()[:100])
    record = torch.load(other, weights_only=True)
    run_folder.save_record(other, record | {"pred": (record["pred"] + 1) % 3})
    count.clear()
    code, out, err = run("pictures", *RUN, "-o", "t.csv")
    assert code == 0 and len(count) == 2 and "2 unreadable records, redone" in out and Path("t.csv").read_text() == first, err


# ---------------------------------------------------------------- parts


def test_a_record_gives_its_result_back():
    errors = {0: [2, 2, 2, 2], 1: [1, 1, 1, 1], 2: [0.5], 3: [3, 3]}
    errors = {row: np.array(e, np.float32) for row, e in errors.items()}
    result = Result([7, 7, 5, 9], 1, errors, np.array([500, 100, 900, 300]), {2: 1, 3: 2}, seconds=1.5)
    back = predictions.result_of(run_folder.record_of(result, range(4), predictions.NO_LABEL), [7, 7, 5, 9])
    assert (back.winner, back.label, back.ranking, back.seconds, back.dropped) == (1, 7, [7, 9, 5], 1.5, {2: 1, 3: 2})
    assert back.t.tolist() == result.t.tolist() and all(np.array_equal(back.errors[row], errors[row]) for row in errors)
    assert result.best_rows == {7: 1, 9: 3, 5: 2}


def test_equal_probabilities_keep_the_classifier_s_order():
    """A candidate that was dropped with a lower mean than the winner's has a gap of 0, so the winner's probability."""
    errors = {0: [0.5], 1: [1, 1, 1], 2: [1, 1.5, 9]}
    errors = {row: np.array(e, np.float32) for row, e in errors.items()}
    found = predictions.predict(Result([0, 1, 2], 1, errors, np.arange(3)), {0: "a", 1: "b", 2: "c"})
    assert [one.label for one in found.candidates] == ["b", "a", "c"]
    assert found.candidates[0].probability == found.candidates[1].probability and found.right is None


def test_a_mean_map_is_the_mean_error():
    stages = classify.text_to_image("2-0", PROMPTS, model_path=str(TINY_SD20), img_size=64, strategy=Stages((1,), (5,)))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    maps = stages.error_maps(image, [2, 0], 11)
    assert maps.shape == (2, 8, 8) and maps.mean((1, 2)).numpy() == pytest.approx(stages(image, 11).means[[2, 0]], rel=1e-5)


def test_pictures_of_folders_are_sorted_and_strangers_are_told():
    for name in ("z/b.png", "z/a/c.JPG", "z/.hidden/d.png", "z/__MACOSX/e.png", "lone.weird"):
        save_picture(Path(name.replace("weird", "png")), size=(8, 8))
    Path("lone.png").rename("lone.weird")
    Path("z/notes.txt").write_text("x")
    found, told = unlabelled.find_pictures(["lone.weird", "z"])
    assert found == ["lone.weird", "z/a/c.JPG", "z/b.png"]
    assert told == "ignored 1 files that are no pictures by their names, such as z/notes.txt"


# ---------------------------------------------------------------- bad input


def test_a_picture_that_was_taken_for_a_label(run, pictures):
    """Of a command whose last word is the picture: argparse gives it to --labels."""
    code, _, err = run(*MODEL, "--labels", "bag", "boot", pictures[0])
    assert code == 2 and err == f"error: {pictures[0]} was taken for a label: put PICTURE before --labels\n"


BAD = [
    ([], "--labels"),
    (["--labels", "bag"], "the only label"),
    (["--labels", "bag", "boot", "bag"], "'bag' stands there for two labels"),
    (["--labels", "a b", "a_b"], "--labels"),  # the same prompt, as _ becomes a space
    (["--labels", "bag", "boot", "--template", "a photo"], "--template"),
    (["--labels", "bag", "boot", "--prompts", "p.csv"], "--prompts"),
    (["--prompts", "p.csv", "--template", "a {}"], "--template does nothing"),
    (["--prompts", "none.csv"], "none.csv"),
    (["--labels", "bag", "boot", "--fit", "none.json"], "none.json"),
    (["--labels", "bag", "boot", "--fit", "other.json"], "other.json was fitted on a run of other settings: weights"),
    (["--labels", "bag", "boot", "-o", "t.json"], "must end in .csv"),
    (["--labels", "bag", "boot", "-o", "a.png/t.csv"], "a.png"),
    (["--labels", "bag", "boot", "--map", "m.pdf"], ".png or .svg"),
    (["--labels", "bag", "boot", "--max_samples", "2000"], "--max_samples 2000"),
    (["--labels", "bag", "boot", "--to_keep", "1"], "--to_keep is for --strategy stages"),
]


@pytest.mark.parametrize(("argv", "told"), BAD, ids=[" ".join(argv)[:40] for argv, _ in BAD])
def test_bad_input_is_one_line(argv, told, run, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    save_picture(Path("a.png"), size=(64, 64))
    Path("p.csv").write_text("prompt,classname,classidx\na bag,bag,0\na boot,boot,1\n")
    Fit(0.01, 0.5, 40, {"weights": "0", "loss": "l2"}).write("other.json")
    before = sorted(Path().rglob("*"))
    code, _, err = run("a.png", *argv, *MODEL)
    assert code == 2 and err.count("\n") == 1 and told in err, err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("place", ["none.png", "notes.png", "empty", "cut.png", "folder of text"])
def test_places_without_a_picture(place, run):
    Path("notes.png").write_text("no picture")
    Path("cut.png").write_bytes(b"\x89PNG")
    Path("empty").mkdir()
    Path("folder of text").mkdir()
    Path("folder of text/a.txt").write_text("x")
    code, _, err = run(place, *RUN)
    assert code == 2 and err.count("\n") == 1 and place in err


def test_several_pictures_have_no_map(run, pictures):
    code, _, err = run("pictures", *RUN, "--map", "m.png")
    assert code == 2 and "--map m.png is of one picture, and there are 3" in err


@pytest.mark.parametrize("changed", ["loss", "img_size", "alpha", "error_space"])
def test_a_fit_of_other_settings(changed, run, pictures):
    assert run("pictures", *RUN, "-o", "t.csv")[0] == 0
    write_fit(**{changed: "other"})
    code, _, err = run("pictures", *RUN, "--fit", "fit.json")
    assert code == 2 and err.count("\n") == 1 and f"{changed} (other there" in err


def test_other_labels_need_another_file(run, pictures):
    assert run("pictures", *RUN, "-o", "t.csv")[0] == 0
    before = Path("t.csv").read_text()
    code, _, err = run("pictures", "--labels", "cat", "dog", *MODEL, *RULE, "-o", "t.csv")
    assert code == 2 and err.count("\n") == 1 and "prompts" in err and err.endswith("or name another file with -o\n")
    assert Path("t.csv").read_text() == before


# ---------------------------------------------------------------- a table that is there


def test_rows_of_other_pictures_stay(run, pictures):
    assert run(pictures[0], *RUN, "-o", "t.csv")[0] == 0
    [first] = table()
    code, out, _ = run(pictures[1], *RUN, "-o", "t.csv")
    assert code == 0 and "Predictions of 1 pictures, after 1 of before: t.csv" in out
    assert table()[0] == first and [row["path"] for row in table()] == pictures[:2]
    assert pandas.read_parquet("t.parquet").equals(pandas.read_csv("t.csv"))
    assert run(f"./{pictures[0]}", *RUN, "-o", "t.csv")[0] == 0  # the same picture by another spelling
    assert table() == [table()[0], first | {"path": f"./{pictures[0]}"}] and table()[0]["path"] == pictures[1]


def test_rows_that_cannot_stay_are_not_lost(run, pictures):
    """Probabilities of another fit, records that are gone: each would mix two runs in a table."""
    run(pictures[0], *RUN, "-o", "t.csv")
    before = Path("t.csv").read_text()
    write_fit()
    code, _, err = run(pictures[1], *RUN, "-o", "t.csv", "--fit", "fit.json")
    assert code == 2 and err.count("\n") == 1 and "rows of other pictures" in err
    shutil.rmtree("t.records")
    code, _, err = run(pictures[1], *RUN, "-o", "t.csv")
    assert code == 2 and "rows of other pictures" in err and Path("t.csv").read_text() == before
    assert run(pictures[0], *RUN, "-o", "t.csv")[0] == 0  # all that is in it is made again


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "path,label\nx,y\n", "\0", '"path', "path,label,probability\n\xff"])
def test_a_table_of_something_else_is_kept(content, run, pictures):
    Path("t.csv").write_bytes(content.encode("latin1"))
    code, _, err = run("pictures", *RUN, "-o", "t.csv", "--dry_run")
    assert code == 2 and err.count("\n") == 1 and "t.csv" in err and "name another file" in err
    assert Path("t.csv").read_bytes() == content.encode("latin1")


def test_a_parquet_file_of_something_else_is_kept(run, pictures):
    Path("t.parquet").write_text("mine")
    code, _, err = run("pictures", *RUN, "-o", "t.csv", "--dry_run")
    assert code == 2 and "t.parquet" in err and Path("t.parquet").read_text() == "mine"


def test_a_map_onto_a_picture_of_a_list(run, pictures):
    before = Path(pictures[0]).read_bytes()
    Path("list.csv").write_text(f"path\n{pictures[0]}\n")
    code, _, err = run("list.csv", *RUN, "--map", pictures[0])
    assert code == 2 and "is an input" in err and Path(pictures[0]).read_bytes() == before
