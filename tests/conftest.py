"""Shared fixtures: the golden data set root, a tiny real Stable Diffusion pipeline, and a way to run a command's main()."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client: no test may depend on the network
if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: with several threads each they would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
TINY_SD20 = GOLDEN / "tiny-sd20"
SETTINGS = ("LOG_DIR", "DATASET_ROOT", "HF_TOKEN", "TOKEN_PATH")  # the caller's, which no test may see


NO_THREADS = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}  # of numpy's, torch's and arrow's


def load_script(name):
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(rows):
    """Answers requests for errors from a table [candidates, pairs], and the requests that it was sent."""
    errors, requests = np.array(rows, np.float32), []

    def answer(request):
        alive, pairs = request
        requests.append((list(alive), pairs))
        return errors[alive][:, pairs]

    return answer, requests


def with_method(classifier, **changes):
    """A classify.Classifier with another strategy, loss, level weights or ablation."""
    return dataclasses.replace(classifier, method=dataclasses.replace(classifier.method, **changes))


def staged_record(keys, rows, t, pred, label):
    """A record as the published code writes it: key -> errors of the first pairs; t [S] in order of evaluation."""
    import torch

    t = torch.as_tensor(t)
    errors = {key: {"t": t[: len(rows[key])].clone(), "pred_errors": torch.as_tensor(rows[key])} for key in keys}
    return {"errors": errors, "pred": pred, "label": label}


def write_run(folder, errors, t, labels, names=None):
    """A run folder of records with all errors: errors [n,K,S], t [S] in order of evaluation, labels [n]; names as config.json."""
    from diffusion import runlog

    folder.mkdir(parents=True)
    for index, (image, label) in enumerate(zip(errors, labels, strict=True)):
        rows = {k: np.asarray(row, np.float32) for k, row in enumerate(image)}
        pred = int(np.mean(image, axis=1).argmin())
        runlog.save_record(folder / f"{index}.pt", staged_record(range(len(rows)), rows, t, pred, int(label)))
    if names:
        candidates = {"labels": list(range(len(names))), "names": names}
        (folder / "config.json").write_text(json.dumps({"identity": {}, "candidates": candidates}))
    return folder


def said(number=0):
    """What process `number` of the last that `forked` started in this folder has printed: (stdout, stderr)."""
    return Path(f"out.{number}").read_text(), Path(f"err.{number}").read_text()


class Forked:
    """Starts commands through tests/forking.py, in one thread each; modules: what that imports first."""

    def __init__(self, *modules):
        words = [sys.executable, str(ROOT / "tests" / "forking.py"), *modules]
        environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | NO_THREADS
        self.server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.server.stdout.readline() == "ready\n"

    def ask(self, **request):
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, environments, argv, command="eval_prob_adaptive"):
        """A process for each environment -> their ids."""
        argv = [str(word) for word in argv]
        return self.ask(command=command, argv=argv, folder=str(Path.cwd()), environments=environments)

    def wait(self, children):
        """Their exit codes, once all have ended; negative for signals."""
        return self.ask(wait=children)

    def end(self):
        self.server.stdin.close()
        self.server.wait()

    def run(self, environments, argv, command="eval_prob_adaptive"):
        return self.wait(self.start(environments, argv, command))

    def wait_for_records(self, folder, n, children):
        """Until the processes have written n records into the folder."""
        deadline = time.monotonic() + 180
        while not enough_records(folder, n):
            over = all(self.ask(ended=children)) and not enough_records(folder, n)
            assert not over and time.monotonic() < deadline, [said(i) for i in range(len(children))]
            time.sleep(0.01)


def enough_records(folder, n):
    return len(list(folder.glob("*.pt"))) >= n


@pytest.fixture(scope="session")
def forked():
    started = Forked("preload")
    yield started
    started.end()


@pytest.fixture
def tiny_dit(tmp_path_factory):
    """Options of eval_prob_dit.py for a random transformer of ten classes at 64 px, in the published format, and a VAE."""
    import torch
    from test_dit_model import TINY, randomised

    folder = tmp_path_factory.mktemp("dit")
    torch.save(randomised(num_classes=10).state_dict(), folder / "dit.pt")
    (folder / "config.json").write_text(json.dumps(TINY | {"num_classes": 10}))
    return ["--model_path", folder / "dit.pt", "--vae_path", TINY_SD20 / "vae"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own, offline, without the caller's settings."""
    monkeypatch.chdir(tmp_path)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def golden_root(monkeypatch):
    """DATASET_ROOT with a few images of four sets; their files lack the sums that torchvision checks."""
    import torchvision.datasets as sets

    monkeypatch.setenv("DATASET_ROOT", str(GOLDEN / "data"))
    monkeypatch.setattr(sets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(sets.STL10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(sets.cifar, "check_integrity", lambda path, md5=None: Path(path).exists())


@pytest.fixture
def run_main(capsys):
    """run_main(main, *argv) -> (exit code, stdout, stderr), whether main returns or exits."""

    def run(main, *argv):
        try:
            code = main([str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return run
