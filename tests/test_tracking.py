"""--tracker: what trackio or wandb is told, with a module in its place that writes down its calls."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, load_script

from diffusion.runs import loop, tracking

ARGV = ["--version", "tiny", "--dataset", "tiny_combos", "--imgs_to_eval", "3", "--tracker", "trackio"]
PACKAGE = """
import json
calls = []
def _note(*call):
    calls.append(call)
    with open("calls.jsonl", "a") as file:
        file.write(json.dumps(call) + "\\n")
def init(project, name, config): _note("init", project, name, config)
def log(metrics, step=None): _note("log", metrics, step)
def finish(): _note("finish")
"""


@pytest.fixture
def package(monkeypatch):
    """trackio, as a module that appends its calls to calls.jsonl."""
    Path("site").mkdir()
    Path("site/trackio.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(Path("site").resolve()))
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    yield
    sys.modules.pop("trackio", None)


def calls():
    path = Path("calls.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_run_tells_options_progress_and_metrics(package, run_main):
    code, _, err = run_main(load_script("eval_clip").main, *ARGV, "--results", "r.json")
    assert code == 0, err
    (_, project, name, options), *logged, last, end = calls()
    assert (project, name, end) == (tracking.PROJECT, "openclip_tiny", ["finish"])
    assert (options["imgs_to_eval"], options["dataset"], options["tracker"]) == (3, "tiny_combos", "trackio")
    assert logged[0][0] == "log" and logged[0][2] == 1 and logged[0][1]["accuracy"] in (0, 1)
    assert logged[0][1]["evaluations_per_second"] > 0
    found = json.loads(Path("r.json").read_text())
    assert last[1]["acc1"] == found["metrics"]["acc1"] and last[1]["acc1_low"] == found["intervals"]["acc1"][0]
    assert (last[1]["n"], last[1]["evaluations"], last[2]) == (3, 1, None)


def test_metrics_are_told_without_a_results_file(package, run_main):
    assert run_main(load_script("eval_clip").main, *ARGV)[0] == 0
    assert "acc1" in calls()[-2][1] and calls()[-1] == ["finish"] and not list(Path().glob("*.json"))


def test_a_dry_run_tells_nothing(package, run_main):
    assert run_main(load_script("eval_clip").main, *ARGV, "--dry_run")[0] == 0 and calls() == []


@pytest.mark.parametrize("tracker", tracking.TRACKERS)
def test_a_package_that_is_not_there(tracker, run_main, monkeypatch):
    """A folder of its name, as wandb leaves one beside the runs, is none."""
    Path("site", tracker).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(Path("site").resolve()), *(p for p in sys.path if not Path(p, tracker).is_dir())])
    code, _, err = run_main(load_script("eval_clip").main, *ARGV[:-1], tracker)
    assert code == 2 and err.count("\n") == 1 and f"--tracker {tracker}: the package {tracker} is not installed" in err
    assert [path.name for path in Path().iterdir()] == ["site"]


def test_a_package_that_refuses(package, run_main):
    Path("site/trackio.py").write_text("def init(**options):\n    raise RuntimeError('no login:\\nrun x login')\n")
    code, _, err = run_main(load_script("eval_clip").main, *ARGV)
    assert code == 2 and err == "error: --tracker trackio: no login: run x login\n"


def test_a_package_that_fails_while_the_run_works(package, run_main):
    """The run goes on, and says so once."""
    Path("site/trackio.py").write_text(PACKAGE + "\ndef log(metrics, step=None): raise OSError('disk full')\n")
    code, out, err = run_main(load_script("eval_clip").main, *ARGV)
    assert code == 0 and "Top-1 accuracy" in out and err.count("Note: --tracker trackio goes no further: disk full") == 1


def test_once_a_second_at_most(package, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: now[0])
    tracker = tracking.Tracker("trackio").start({}, "x")
    tally = loop.Tally()
    for moment in (100.0, 100.5, 101.2, 101.9, 102.3):
        now[0] = moment
        tally.add(SimpleNamespace(right=None, evaluations=5))
        tracker.progress(tally)
    assert [call[2] for call in calls()[1:]] == [1, 3, 5]
    assert all("accuracy" not in call[1] for call in calls()[1:])  # nothing is predicted


def test_a_stopped_run_finishes_without_metrics(package):
    tracking.Tracker("trackio").start({}, "x").end({})
    assert [call[0] for call in calls()] == ["init", "finish"]


def test_of_torchrun_s_processes_only_rank_0_tells(package):
    code = "from diffusion.runs import tracking; print(tracking.Tracker('trackio').start({}, 'x').listens)"
    for rank in ("0", "1"):
        torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "WORLD_SIZE": "2", "PYTHONPATH": f"{ROOT}:{Path('site').resolve()}"}
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | torchrun, capture_output=True, text=True)
        assert done.stdout == f"{rank == '0'}\n", done.stderr
    assert len(calls()) == 1


def test_without_it_nothing_is_imported():
    tracker = tracking.Tracker(None).start({}, "x")
    tracker.progress(loop.Tally())
    tracker.end({"metrics": {}, "intervals": {}, "n": 1, "evaluations": 1})
    assert not tracker.listens and "trackio" not in sys.modules
