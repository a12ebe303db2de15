"""Run folders: names, config.json, and records that are whole or absent."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import GOLDEN, ROOT

from diffusion import settings
from diffusion.runs import run_folder
from diffusion.strategy import Stages
from diffusion.utils.files import fingerprint

STAGES = {"to_keep": (5, 1), "n_samples": (25, 250)}
MODEL = {"version": "2-0", "img_size": 512}


@pytest.mark.parametrize(
    ("stages", "model", "loss", "extra", "name"),
    [
        ({}, {}, "l2", None, "pets/v2-0_1trials_5_1keep_25_250samples"),
        ({}, {"img_size": 256}, "l1", None, "pets/v2-0_1trials_5_1keep_25_250samples_l1_256"),
        ({}, {"interpolation": "bilinear"}, "huber", None, "pets/v2-0_1trials_5_1keep_25_250samples_bilinear_huber"),
        ({"n_trials": 4}, {"version": "tiny"}, "l2", "mine", "pets_mine/vtiny_4trials_5_1keep_25_250samples"),
        ({"to_keep": (1,), "n_samples": (20,)}, {}, "l2", None, "pets/v2-0_1trials_1keep_20samples"),
    ],
)
def test_published_folder_names(tmp_path, stages, model, loss, extra, name):
    chosen = Stages(**STAGES | stages)
    folder = run_folder.adaptive_folder(tmp_path, "pets", extra, settings.TextToImage(**MODEL | model), chosen, loss)
    assert folder == tmp_path / name


@pytest.mark.parametrize(
    ("index", "length", "name"), [(7, 10_000, "0007.pt"), (7, 10, "7.pt"), (7, 11, "07.pt"), (123, 1000, "123.pt")]
)
def test_padding(tmp_path, index, length, name):
    assert run_folder.record_path(tmp_path, index, length).name == name


def record(pred=3):
    return {"errors": {0: {"t": torch.tensor([5]), "pred_errors": torch.tensor([0.5])}}, "pred": pred, "label": 3}


def test_round_trip_in_the_published_order(tmp_path):
    run_folder.save_record(tmp_path / "01.pt", record())
    loaded = torch.load(tmp_path / "01.pt", weights_only=True)
    assert list(loaded) == ["errors", "pred", "label"] and type(loaded["pred"]) is int
    assert run_folder.load_outcomes(run_folder.list_records(tmp_path)) == {1: run_folder.Outcome(label=3, pred=3, evaluations=1)}
    assert [p.name for p in tmp_path.iterdir()] == ["01.pt"]  # no temporary file stays


def test_a_record_of_the_reference_loads(tmp_path):
    """Its pred is a numpy integer, which weights_only=True refuses by default."""
    with pytest.raises(Exception, match="numpy"):
        torch.load(GOLDEN / "reference_record.pt", weights_only=True)
    loaded = run_folder.load_record(GOLDEN / "reference_record.pt")
    golden = torch.load(GOLDEN / "cases.pt", weights_only=True)["a02_l1"]["records"]["03.pt"]
    assert (type(loaded["pred"]), loaded["pred"], loaded["label"]) == (int, golden["pred"], golden["label"])
    assert torch.equal(loaded["errors"][2]["pred_errors"], golden["errors"][2]["pred_errors"])


@pytest.mark.parametrize("broken", [b"", b"PK\x03\x04half a zip"])
def test_an_unreadable_record_is_redone_with_a_warning(tmp_path, broken):
    (tmp_path / "0.pt").write_bytes(broken)
    run_folder.save_record(tmp_path / "1.pt", record())
    with pytest.warns(UserWarning, match="unreadable"):
        assert list(run_folder.load_outcomes({i: tmp_path / f"{i}.pt" for i in (0, 1, 2)})) == [1]


def test_a_truncated_record_is_redone(tmp_path):
    run_folder.save_record(tmp_path / "0.pt", record())
    whole = (tmp_path / "0.pt").read_bytes()
    (tmp_path / "0.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="unreadable"):
        assert run_folder.load_outcomes({0: tmp_path / "0.pt"}) == {}


def test_a_failing_save_leaves_the_old_record(tmp_path):
    run_folder.save_record(tmp_path / "0.pt", record(pred=1))
    with pytest.raises(Exception, match="pickle"):
        run_folder.save_record(tmp_path / "0.pt", {"errors": (x for x in [])})
    assert run_folder.load_record(tmp_path / "0.pt")["pred"] == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_kill_in_the_middle_of_saves(tmp_path):
    """kill -9 processes that overwrite three big records for ever, forked from one that has imported torch: each is whole."""
    code = (
        "import os, sys, torch; from pathlib import Path; from diffusion.runs import run_folder\n"
        "def overwrite():\n"
        "    part = {'t': torch.zeros(300000, dtype=torch.int64), 'pred_errors': torch.zeros(300000)}\n"
        "    big = {'errors': {0: part}, 'pred': 1, 'label': 1}\n"
        "    while True:\n        for i in range(3): run_folder.save_record(Path(sys.argv[1]) / f'{i}.pt', big)\n"
        "for _ in range(3):\n"
        "    child = os.fork() or overwrite()\n"
        "    print(child, flush=True); os.waitpid(child, 0); print('ended', flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for delay in (0.05, 0.13, 0.31):
        child = int(parent.stdout.readline())
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        assert parent.stdout.readline() == "ended\n"
        saved = list(tmp_path.glob("[0-9].pt"))
        assert all(run_folder.load_record(path) is not None for path in saved)
    assert saved and parent.wait() == 0


# ---------------------------------------------------------------- config.json

IDENTITY = {"prompts": "abc", "to_keep": [5, 1], "subset": None}


def config(expected=10):
    return {"identity": IDENTITY, "images_expected": expected, "versions": {"torch": "x"}}


def test_same_settings_continue_and_may_grow(tmp_path):
    run_folder.write_config(tmp_path, config(10))
    run_folder.check_config(tmp_path, IDENTITY)
    run_folder.write_config(tmp_path, config(20) | {"versions": {"torch": "y"}})
    run_folder.write_config(tmp_path, config(5))
    saved = run_folder.read_config(tmp_path)
    assert saved["images_expected"] == 20 and saved["versions"] == {"torch": "x"}


def test_a_run_that_came_first_is_not_overwritten(tmp_path):
    run_folder.write_config(tmp_path, config())
    with pytest.raises(ValueError, match="prompts"):
        run_folder.write_config(tmp_path, config() | {"identity": IDENTITY | {"prompts": "xyz"}})


def test_tuples_are_the_lists_that_json_makes_of_them(tmp_path):
    run_folder.write_config(tmp_path, {"identity": {"steps": (1, 2)}, "images_expected": 3})
    run_folder.check_config(tmp_path, {"steps": (1, 2)})
    with pytest.raises(ValueError, match="steps"):
        run_folder.check_config(tmp_path, {"steps": (1, 3)})


def test_other_settings_are_refused_by_name(tmp_path):
    run_folder.write_config(tmp_path, config())
    with pytest.raises(
        ValueError, match=r"another run.* prompts \(.*: abc there, xyz now\), subset \(.*None there, s now\).*--extra"
    ):
        run_folder.check_config(tmp_path, IDENTITY | {"prompts": "xyz", "subset": "s"})


def test_records_without_a_config_are_refused(tmp_path):
    run_folder.save_record(tmp_path / "0.pt", record())
    with pytest.raises(ValueError, match="--extra"):
        run_folder.check_config(tmp_path, IDENTITY)


def test_a_broken_config_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        run_folder.read_config(tmp_path)


def test_fingerprints_tell_contents_apart():
    assert fingerprint(["a", "b"]) == fingerprint(["a", "b"])
    assert len({fingerprint(["ab"]), fingerprint(["a", "b"]), fingerprint(b"ab")}) == 3


def test_only_plain_numbers_name_records(tmp_path):
    """`²` is a digit to Python's isdigit, and none to int."""
    for name in ("1", "007", "²1", "x", "-3", "1.5"):
        (tmp_path / f"{name}.pt").touch()
    assert list(run_folder.list_records(tmp_path)) == [1, 7]
