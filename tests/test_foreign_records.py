"""Files that load and are not this run's: records are counted, named and redone, a config.json that is wrong is refused."""

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, TINY_SD20, load_script, write_run

import eval_prob_adaptive
import eval_prob_dit
import run_winoground
from diffusion.analysis import tables
from diffusion.runs import run_folder

CLOTHES = ["--dataset", "fashion_mnist"]
ADAPTIVE = [*CLOTHES, "--model_path", TINY_SD20, "--img_size", 64, "--imgs_to_eval", 2, "--to_keep", 1, "--n_samples", 2]
PAIRS = ["--model_path", TINY_SD20, "--img_size", 64, "--t_interval", 500, "--data_dir", GOLDEN / "data" / "winoground"]
GRID = [*CLOTHES, "--t_interval", 500, "--imgs_to_eval", 2]
OF_PAIRS = {name: torch.tensor(1.0) for name in ("c0_i0", "c0_i1", "c1_i0", "c1_i1")}


def tensors(value):
    """A record without its time, as values that are equal only bit by bit."""
    if isinstance(value, dict):
        return {key: tensors(part) for key, part in value.items() if key != "seconds"}
    return value.tolist() if torch.is_tensor(value) else value


def folder_in_its_place(path):
    path.unlink()
    path.mkdir()
    (path / "mine.txt").write_text("kept")


def pipe_in_its_place(path):
    path.unlink()
    os.mkfifo(path)


def dangling_link_in_its_place(path):
    path.unlink()
    path.symlink_to("nowhere")


def changed(change):
    def write(path):
        torch.save(change(torch.load(path, weights_only=True)), path)

    return write


def without(*names):
    return changed(lambda record: {key: value for key, value in record.items() if key not in names})


def first_candidate(change):
    """change: the {t, pred_errors} of candidate 0 -> what takes its place."""
    return changed(lambda record: record | {"errors": record["errors"] | {0: change(record["errors"][0])}})


ANY = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "folder": folder_in_its_place,
    "pipe": pipe_in_its_place,
    "dangling link": dangling_link_in_its_place,
    "text": changed(lambda record: "text"),
    "list": changed(lambda record: [1, 2]),
    "empty dict": changed(lambda record: {}),
    "integers": changed(lambda record: torch.arange(4)),
}
CLASSIFIED = ANY | {
    "no pred": without("pred"),
    "no label": without("label"),
    "text as pred": changed(lambda record: record | {"pred": "ankle boot"}),
    "pred of another set": changed(lambda record: record | {"pred": 10}),
    "another label": changed(lambda record: record | {"label": (record["label"] + 1) % 10}),
    "of pairs": changed(lambda record: OF_PAIRS),
    "of one class": changed(lambda record: torch.ones(2, 1)),
}
ERRORS = CLASSIFIED | {
    "no errors": without("errors"),
    "errors of nobody": changed(lambda record: record | {"errors": {}}),
    "a list of errors": changed(lambda record: record | {"errors": [1.0]}),
    "one candidate less": changed(lambda record: record | {"errors": {k: e for k, e in record["errors"].items() if k < 9}}),
    "no t": first_candidate(lambda errors: {"pred_errors": errors["pred_errors"]}),
    "other timesteps": first_candidate(lambda errors: errors | {"t": errors["t"] + 1}),
    "more timesteps": first_candidate(lambda errors: {key: value.repeat(2) for key, value in errors.items()}),
    "t and errors of two lengths": first_candidate(lambda errors: errors | {"t": errors["t"][:1]}),
    "nan": first_candidate(lambda errors: errors | {"pred_errors": errors["pred_errors"] * torch.nan}),
    "errors as integers": first_candidate(lambda errors: errors | {"pred_errors": errors["pred_errors"].long()}),
}
SUMS = CLASSIFIED | {
    "no classes": without("classes"),
    "no sums": without("sums"),
    "no t": without("t"),
    "one class less": changed(lambda record: record | {"classes": record["classes"][1:], "sums": record["sums"][1:]}),
    "classes without sums": changed(lambda record: record | {"sums": record["sums"][1:]}),
    "sums of squares only": changed(lambda record: record | {"sums": record["sums"][:, :1]}),
    "other timesteps": changed(lambda record: record | {"t": record["t"] + 1}),
    "infinite": changed(lambda record: record | {"sums": record["sums"] / 0}),
}
ONE_CLASS = ANY | {
    "of a classification": changed(lambda errors: {"errors": {}, "pred": 1, "label": 1}),
    "other timesteps": changed(lambda errors: errors[:1]),
    "more noises": changed(lambda errors: errors.repeat(1, 2)),
    "of --save_vb": changed(lambda errors: errors[..., None].repeat(1, 1, 4)),
    "nan": changed(lambda errors: errors * torch.nan),
}
OF_EXAMPLE = ANY | {
    "three pairs": without("c1_i0"),
    "scalars": changed(lambda record: OF_PAIRS),
    "other timesteps": changed(lambda record: {name: errors[:1] for name, errors in record.items()}),
    "nan": changed(lambda record: record | {"c0_i1": record["c0_i1"] * torch.nan}),
    "of a classification": changed(lambda record: {"errors": {}, "pred": 1, "label": 1}),
}


@pytest.fixture
def check(run_main):
    """check(main, argv, kinds): each kind of foreign file, in place of a record, is counted, named and redone to the bit."""

    def run(main, argv, kinds):
        code, _, err = run_main(main, *argv)
        assert code == 0, err
        path = sorted(Path("data").rglob("*.pt"))[0]
        before = path.read_bytes()
        for kind, spoil in kinds.items():
            spoil(path)
            code, out, err = run_main(main, *argv)
            told = re.search(r"Note: 1 unreadable record, redone: (?:class \d: )?(\S+) \(.+\)\n", out)
            assert code == 0 and told and told[1] == path.name and "1 to do here" in out, (kind, out, err)
            redone = torch.load(path, weights_only=True)
            path.write_bytes(before)
            assert tensors(redone) == tensors(torch.load(path, weights_only=True)), kind
        assert [kept.read_text() for kept in Path("data").rglob("mine.txt")] == ["kept"]  # a folder is moved aside

    return run


@pytest.mark.slow
def test_records_of_all_errors(check):
    check(eval_prob_adaptive.main, ADAPTIVE, ERRORS)


@pytest.mark.slow
def test_records_of_sums(check, tiny_dit):
    check(eval_prob_dit.main, [*tiny_dit, *GRID], SUMS)


@pytest.mark.slow
def test_records_of_one_class(check, tiny_dit):
    check(eval_prob_dit.main, [*tiny_dit, *GRID, "--cls", "3,5", "--save_per_class"], ONE_CLASS)


@pytest.mark.slow
def test_records_of_pairs(check):
    check(run_winoground.main, PAIRS, OF_EXAMPLE)


# ---------------------------------------------------------------- what reads them


@pytest.mark.parametrize(
    "kind", sorted(ERRORS.keys() - {"another label", "pred of another set", "other timesteps", "nan", "more timesteps"})
)
def test_scripts_count_and_name_what_they_cannot_read(kind, run_main):
    """What only the run can know, such as the data set's labels, they take as it is."""
    run_main(eval_prob_adaptive.main, *ADAPTIVE, "--extra", "x")
    folder = next(Path("data").rglob("*.pt")).parent
    paths = sorted(folder.glob("*.pt"))
    ERRORS[kind](paths[1])
    for script, *more in (["print_acc"], ["report", "-o", "out", "--format", "md"], ["print_dit_acc"]):
        code, out, err = run_main(load_script(script).main, folder, *more)
        if kind == "one candidate less" and script != "report":
            continue  # accuracies need none of them
        assert code == 0 and f"1 unreadable record, not counted: {paths[1].name} (" in out and err == "", (script, out, err)


# ---------------------------------------------------------------- config.json


def identity(**more):
    return lambda config: config | {"identity": config["identity"] | more}


def options(**more):
    return lambda config: config | {"options": config["options"] | more}


CONFIGS = {
    "a list": lambda config: [],
    "a number": lambda config: 7,
    "null": lambda config: None,
    "text": lambda config: "text",
    "empty": lambda config: {},
    "no identity": lambda config: {key: value for key, value in config.items() if key != "identity"},
    "identity as a list": lambda config: config | {"identity": []},
    "options as text": lambda config: config | {"options": "x"},
    "images_expected as text": lambda config: config | {"images_expected": "2"},
    "images_expected as null": lambda config: config | {"images_expected": None},
    "command as a number": lambda config: config | {"command": 3},
    "candidates as a list": lambda config: config | {"candidates": [1]},
    "candidates without names": lambda config: config | {"candidates": {"labels": [0]}},
    "more labels than names": lambda config: config | {"candidates": {"labels": [0, 1], "names": ["a"]}},
    "labels as text": lambda config: config | {"candidates": {"labels": ["0"], "names": ["a"]}},
    "n_levels as text": lambda config: config | {"n_levels": "1000"},
    "to_keep as text": identity(to_keep="1"),
    "to_keep of text": identity(to_keep=["1"]),
    "n_trials as a list": identity(n_trials=[1]),
    "dataset as a number": identity(dataset=3),
    "loss as a number": identity(loss=1),
    "data_dir as a number": options(data_dir=3),
    "img_size as text": options(img_size="64"),
    "version as a list": options(version=["2-0"]),
}
BROKEN = {"nothing": b"", "half": b'{"identity": {', "no text": b"\xff\xfe\x00", "deep": b"[" * 100_000}


def test_a_config_that_is_wrong_is_refused_by_file_and_key(run_main):
    run_main(eval_prob_adaptive.main, *ADAPTIVE)
    path = next(Path("data").rglob("config.json"))
    folder, config = path.parent, json.loads(path.read_text())
    contents = {kind: json.dumps(change(config)).encode() for kind, change in CONFIGS.items()} | BROKEN
    before = {record: record.read_bytes() for record in folder.glob("*.pt")}
    for kind, content in contents.items():
        path.write_bytes(content)
        commands = [(eval_prob_adaptive.main, ADAPTIVE)]
        commands += [
            (load_script(name).main, [folder])
            for name in ("print_acc", "print_dit_acc", "print_winoground", "replay", "calibrate")
        ]
        commands += [(load_script("report").main, [folder, "-o", "out"]), (load_script("compare_runs").main, [folder, folder])]
        commands += [(load_script("plot_image").main, [folder, "--image", 1, "-o", "x.png"])]
        for main, argv in commands:
            code, _, err = run_main(main, *argv)
            assert code == 2 and err.count("\n") == 1 and str(path) in err, (kind, argv, err)
        assert path.read_bytes() == content and before == {record: record.read_bytes() for record in folder.glob("*.pt")}
        assert not Path("out").exists()


# ---------------------------------------------------------------- folders of one class


def test_a_class_folder_holds_nothing_but_records(run_main, tiny_dit):
    """The published print_dit_acc.py takes the stem of every file there for a number, and every folder beside it for a class."""
    argv = [*tiny_dit, *GRID, "--cls", "3,5", "--save_per_class"]
    assert run_main(eval_prob_dit.main, *argv)[0] == 0
    folders = sorted(Path("data/fashion_mnist").iterdir())
    assert [folder.name for folder in folders] == [f"DiT64x64_cls{c}_t500_1trials" for c in (3, 5)]
    assert [sorted(int(file.split(".")[0]) for file in os.listdir(folder)) for folder in folders] == [[0, 1]] * 2
    assert run_folder.read_config(folders[1])["identity"]["cls"] == 5
    code, _, err = run_main(eval_prob_dit.main, *argv, "--seed", 1)
    assert code == 2 and "seed (0 there, 1 now)" in err


@pytest.mark.parametrize("place", ["fashion_mnist/{}", "imagenet_x/{}/test", "a/b/objectnet/{}"])
def test_where_configs_of_class_folders_are(place, tmp_path, monkeypatch):
    """Whatever the path that a folder is named by; a folder that was removed takes its config with it."""
    folder = tmp_path / place.format("DiT256x256_cls7_t4_1trials")
    config = {"identity": {"cls": 7}, "images_expected": 3}
    run_folder.write_config(folder, config)
    assert list(folder.iterdir()) == []
    monkeypatch.chdir(folder)
    assert run_folder.read_config(Path()) == run_folder.read_config(Path("../" + folder.name)) == run_folder.read_config(folder)
    assert run_folder.read_config(folder)["identity"] == {"cls": 7}
    monkeypatch.chdir(tmp_path)
    folder.rmdir()
    assert run_folder.read_config(folder) is None
    run_folder.check_config(folder, {"cls": 8})
    run_folder.write_config(folder, {"identity": {"cls": 8}, "images_expected": 3})
    assert run_folder.read_config(folder)["identity"] == {"cls": 8}


def test_the_config_of_an_old_class_folder_is_read_and_moved(tmp_path):
    folder = tmp_path / "fashion_mnist" / "DiT64x64_cls7_t4_1trials"
    folder.mkdir(parents=True)
    config = {"identity": {"cls": 7}, "images_expected": 3}
    (folder / "config.json").write_text(json.dumps(config))
    assert run_folder.read_config(folder)["images_expected"] == 3
    run_folder.write_config(folder, config | {"images_expected": 5})
    assert list(folder.iterdir()) == [] and run_folder.read_config(folder)["images_expected"] == 5


print_dit_acc = load_script("print_dit_acc")


@pytest.mark.parametrize("first", [0, 1])
def test_a_folder_of_two_kinds_of_records(first, run_main):
    """Published folders with --save_vb and without have one name: L2 is over all images, the rest over those that have it."""
    for c in (0, 1):
        folder = Path(f"runs/DiT64x64_cls{c}_t500_1trials")
        folder.mkdir(parents=True)
        for index in range(3):
            four = torch.rand(2, 1, 4) + c
            torch.save(four if index == first else four[..., 0], folder / f"{index}.pt")
    code, out, err = run_main(print_dit_acc.main, "runs", *CLOTHES)
    n = dict(re.findall(r"Accuracy for (\S+): .* n = (\d)\)", out))
    assert code == 0 and n == {"L2": "3", "L1": "1", "VLB": "1", "L2+VLB": "1"} and "two kinds" in out, out + err
    torch.save(torch.rand(2, 1), f"runs/DiT64x64_cls1_t500_1trials/{first}.pt")  # now no image has all four of both classes
    code, out, err = run_main(print_dit_acc.main, "runs", *CLOTHES)
    assert code == 0 and "L2: " in out and "VLB" not in out, err


# ---------------------------------------------------------------- records that load but cannot be


def every(name, change):
    """The same change to the tensor of this name in every candidate of a record."""
    return lambda record: record | {"errors": {key: one | {name: change(one[name])} for key, one in record["errors"].items()}}


def one(name, change):
    return lambda record: record | {"errors": record["errors"] | {0: (e := record["errors"][0]) | {name: change(e[name])}}}


IMPOSSIBLE = {
    "nan": one("pred_errors", lambda e: e * torch.nan),
    "inf everywhere": every("pred_errors", lambda e: e / 0),
    "sparse": every("pred_errors", lambda e: e.to_sparse()),
    "meta": every("pred_errors", lambda e: e.to("meta")),
    "with a gradient": every("pred_errors", lambda e: e.requires_grad_()),
    "complex": every("pred_errors", lambda e: e.to(torch.complex64)),
    "text as errors": every("pred_errors", lambda e: "0.1"),
    "a list as errors": every("pred_errors", lambda e: e.tolist()),
    "sparse timesteps": every("t", lambda t: t.to_sparse()),
    "timesteps of floats": every("t", lambda t: t.float()),
    "truth values as timesteps": every("t", lambda t: t > 0),
    "timesteps of 10^12": every("t", lambda t: t + 10**12),
    "timesteps below 0": every("t", lambda t: -t),
    "timesteps past the model's": every("t", lambda t: t + 1000),
    "pred of another": lambda record: record | {"pred": (record["pred"] + 1) % 3},
    "pred of nobody": lambda record: record | {"pred": 3},
    "pred as text": lambda record: record | {"pred": str(record["pred"])},
    "pred as a float": lambda record: record | {"pred": record["pred"] + 0.5},
    "pred true": lambda record: record | {"pred": True},
    "label as text": lambda record: record | {"label": "0"},
    "label of 10^30": lambda record: record | {"label": 10**30},
    "label a tensor of two": lambda record: record | {"label": torch.zeros(2, dtype=torch.int64)},
    "text as seconds": lambda record: record | {"seconds": "1"},
    "nan as seconds": lambda record: record | {"seconds": float("nan")},
    "evaluations below 0": lambda record: record | {"evaluations": -1},
    "evaluations true": lambda record: record | {"evaluations": True},
    "evaluations of 10^30": lambda record: record | {"evaluations": 10**30},
    "rounds of text": lambda record: record | {"fell": {0: "1"}},
    "keys of text": lambda record: record | {"errors": {str(key): one for key, one in record["errors"].items()}},
}  # fmt: skip
READERS = {"print_acc": (), "collect": (), "plot_timesteps": ("-o", "out"), "replay": (), "calibrate": (), "plot_candidates": (),
           "print_spaces": (), "fit_race": (), "fit_weights": ()}  # fmt: skip


@pytest.fixture(scope="module")
def impossible(tmp_path_factory):
    """Folder of 40 images, whose record of image 7 each kind takes the place of."""
    rng = np.random.default_rng(0)
    errors = rng.random((40, 3, 4)).astype(np.float32)
    return write_run(tmp_path_factory.mktemp("impossible") / "run", errors, [100, 300, 500, 700], [0] * 40, ["a", "b", "c"])


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_what_cannot_be_is_counted_by_no_reader(kind, impossible, run_main):
    path = run_folder.list_records(impossible)[7]
    before = path.read_bytes()
    torch.save(IMPOSSIBLE[kind](torch.load(path, weights_only=True)), path)
    try:
        unreadable = []
        assert len(run_folder.read_outcomes(impossible, unreadable)) == 39 and len(unreadable) == 1
        found = list(tables.each_image(impossible, tables.config_of(impossible), unreadable))
        assert len(found) == 39 and unreadable[0] == unreadable[1]
        for script in list(READERS)[:2]:
            code, out, err = run_main(load_script(script).main, impossible, *READERS[script])
            assert code == 0 and f"1 unreadable record, not counted: {path.name} (" in out + err, (script, out, err)
    finally:
        path.write_bytes(before)


@pytest.mark.slow
@pytest.mark.parametrize("script", READERS)
def test_no_reader_has_a_traceback(script, impossible, run_main):
    """Where all records cannot be, too."""
    before = {path: path.read_bytes() for path in impossible.glob("*.pt")}
    try:
        for kind, change in IMPOSSIBLE.items():
            for path, content in before.items():
                torch.save(change(torch.load(io.BytesIO(content), weights_only=True)), path)
            code, _, err = run_main(load_script(script).main, impossible, *READERS[script])
            assert code == 2 and err.strip().count("\n") <= 1 and str(impossible) in err, (kind, err)
    finally:
        for path, content in before.items():
            path.write_bytes(content)


@pytest.mark.parametrize("value", ["3.0", None, [1.0], True, float("nan"), torch.tensor(torch.nan), torch.ones(2).to_sparse(),
                                   torch.ones(2, device="meta"), torch.ones(2, dtype=torch.int64), torch.ones(2).requires_grad_(),
                                   torch.ones(0)])  # fmt: skip
def test_pairs_that_cannot_be(value, tmp_path):
    torch.save(OF_PAIRS | {"c0_i1": value}, tmp_path / "0.pt")
    for load in (run_folder.load_pairs, run_folder.load_pair_records):
        unreadable = []
        assert load(tmp_path, unreadable) == {} and unreadable[0].startswith("0.pt (")


SHAPE = 2, 1


@pytest.mark.parametrize("value", [torch.ones(SHAPE).to_sparse(), torch.ones(SHAPE, device="meta"), "text",
                                   torch.ones(SHAPE).requires_grad_(), torch.ones(SHAPE, dtype=torch.complex64)])  # fmt: skip
def test_errors_of_a_class_that_cannot_be(value, tmp_path):
    torch.save(value, tmp_path / "0.pt")
    unreadable = []
    assert run_folder.load_errors(tmp_path / "0.pt", unreadable=unreadable) is None and unreadable


def test_means_that_tie_within_rounding_may_go_either_way(tmp_path):
    """The published code compares means in float32."""
    folder = write_run(tmp_path / "run", np.ones((1, 2, 4), np.float32), [1, 3, 5, 7], [0], ["a", "b"])
    path = run_folder.list_records(folder)[0]
    record = run_folder.load_record(path)
    record["errors"][1]["pred_errors"] += torch.tensor([3e-7, 0, 0, 0])
    for pred in (0, 1):
        run_folder.save_record(path, record | {"pred": pred})
        assert run_folder.read_outcomes(folder, [])[0].pred == pred
