"""Shared fixtures: the golden data set root, a tiny real Stable Diffusion pipeline, and a way to run a command's main()."""

import dataclasses
import gc
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GUARD = str(Path(__file__).parent / "guard")
sys.path.insert(0, GUARD)

import browser  # noqa: E402
import inside  # noqa: E402  before anything opens a file that no test has made
import numpy as np  # noqa: E402
import pytest  # noqa: E402

KEPT = Path(tempfile.gettempdir()) / f"diffusion-classifier-tests-{os.getuid()}"  # from one session to the next
KEPT.mkdir(mode=0o700, exist_ok=True)
assert KEPT.stat().st_uid == os.getuid(), f"{KEPT} belongs to somebody else"
if "PYTEST_XDIST_WORKER" not in os.environ:  # for all processes that this one starts
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [GUARD, os.environ.get("PYTHONPATH")]))
    CACHES = tempfile.TemporaryDirectory(prefix="caches-of-tests-", ignore_cleanup_errors=True)
    os.environ |= dict.fromkeys(("HF_HOME", "TORCH_HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME"), CACHES.name)
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # every process would compile all of torch anew
        os.environ["PYTHONPYCACHEPREFIX"] = str(KEPT / "bytecode")
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client: no test may depend on the network
if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: with several threads each they would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
TINY_SD20 = GOLDEN / "tiny-sd20"
SETTINGS = ("LOG_DIR", "DATASET_ROOT", "HF_TOKEN", "TOKEN_PATH")  # the caller's, which no test may see


NO_THREADS = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}  # of numpy's, torch's and arrow's


imported = 0  # modules when objects were last set aside


def pytest_runtest_logfinish():
    """What is imported stays: collections, which commands ask for, need not go through all of it again."""
    global imported
    if len(sys.modules) > imported + 20:
        gc.collect()
        gc.freeze()
        imported = len(sys.modules)


def pytest_unconfigure(config):
    gc.unfreeze()  # or libraries complain of what they have not freed


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
    from diffusion.runs import run_folder

    folder.mkdir(parents=True)
    for index, (image, label) in enumerate(zip(errors, labels, strict=True)):
        rows = {k: np.asarray(row, np.float32) for k, row in enumerate(image)}
        pred = int(np.mean(image, axis=1).argmin())
        run_folder.save_record(folder / f"{index}.pt", staged_record(range(len(rows)), rows, t, pred, int(label)))
    if names:
        candidates = {"labels": list(range(len(names))), "names": names}
        (folder / "config.json").write_text(json.dumps({"identity": {}, "candidates": candidates}))
    return folder


PROGRESS = re.compile(r"^ *\d+%.*\n", re.M)


def some_slow(names, slow):
    """What to parametrize a test with, so that these of its names are marked slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


def said(number=0):
    """What process `number` of the last that `forked` started in this folder has printed: (stdout, stderr).

    Without the lines of progress, of which a slow machine prints one a minute.
    """
    return Path(f"out.{number}").read_text(), PROGRESS.sub("", Path(f"err.{number}").read_text())


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

    def wait_for(self, happened, children):
        """Until happened() is true, which has to be before the processes end."""
        deadline = time.monotonic() + HANGS
        while not happened():
            over = all(self.ask(ended=children)) and not happened()
            assert not over and time.monotonic() < deadline, [said(i) for i in range(len(children))]
            time.sleep(0.01)

    def wait_for_records(self, folder, n, children):
        """Until the processes have written n records into the folder."""
        self.wait_for(lambda: enough_records(folder, n), children)


HANGS = 900  # seconds without an end: no machine is that slow


def enough_records(folder, n):
    return len(list(folder.glob("*.pt"))) >= n


def at_work(process: int) -> bool:
    """Whether it is in the loop over images, where it catches SIGTERM; a process may still load when others write records."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process}/status").read_text())[1]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


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


@pytest.fixture(scope="session")
def full_set():
    """Fashion-MNIST's training files, where somebody names them."""
    if not os.environ.get(inside.NAMED):
        pytest.skip(f"{inside.NAMED} names no folder with Fashion-MNIST's training files (Debian: dataset-fashion-mnist)")
    return Path(os.environ[inside.NAMED])


@pytest.fixture(scope="session")
def a_browser():
    """Skips here, in one place, so that a machine without one is told once, at the end."""
    if browser.BROWSER is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")


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
