"""Run folders that earlier versions wrote: still read with the same numbers, and continued by the same command.

tests/old_runs/README.md says which commit made them and how; old_runs/expected has what that commit's scripts found in them.
"""

import csv
import json
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import ROOT, load_script, some_slow

from diffusion.runs import run_folder
from diffusion.utils import paths

OLD = ROOT / "tests" / "old_runs"
FOLDERS = {path.parent.relative_to(OLD).as_posix() for path in OLD.glob("*/*/config.json")}
EXPECTED = {path.stem: json.loads(path.read_text()) for path in (OLD / "expected").glob("*.json")}

# script -> what follows the folders in its command line; {image} is the first that the folder has
OPTIONS = {
    "print_acc": "--json out/a.json --csv out/a.csv",
    "print_dit_acc": "--json out/a.json",
    "print_winoground": "--json out/a.json --csv out/a.csv",
    "report": "--format json -o out",
    "replay": "--csv out/a.csv --stages '3 1 / 2 10'",
    "calibrate": "--csv out/a.csv",
    "compare_runs": "{run} --json out/a.json",
    "plot_timesteps": "-o out",
    "plot_image": "--image {image} --map -o out/a.png",
    "plot_winoground": "--example 2 --out out/a.png",
}
# script -> numbers that it prints; of the others the files say all
PRINTED = {
    "print_acc": r"acc: ([\d.]+) ?%|(\d+) of (\d+)|([\d.]+) evaluations",
    "print_dit_acc": r"^Accuracy .*: ([\d.]+) ?%|(\d+) of (\d+)|([\d.]+) evaluations",
    "print_winoground": r"score: +([-+\d.]+)",
    "calibrate": r"^Top-1 accuracy: ([\d.]+) ?%|^unscaled +([\d.]+)",
    "plot_image": r"lower by ([\d.]+)",
    "plot_winoground": r"lower by ([\d.]+)",
}


@pytest.fixture
def old_runs(tmp_path, monkeypatch):
    """A working folder with the old runs in runs/, and what their options name beside it."""
    shutil.copytree(OLD, "runs", ignore=shutil.ignore_patterns("expected", "*.md"))
    shutil.move("runs/noise.pt", "noise.pt")
    Path("pairs").mkdir()
    Path("pairs/images").symlink_to(paths.TINY_PAIRS / "images")
    lines = (paths.TINY_PAIRS / "examples.jsonl").read_text().splitlines()
    Path("pairs/examples.jsonl").write_text("\n".join(lines[:4]))
    monkeypatch.setenv("LOG_DIR", "runs")
    return tmp_path


# ---------------------------------------------------------------- read by the scripts


def number(text):
    """A CSV's field as what it says."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def content(path):
    """A table as a list of rows, a JSON file as it is."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with open(path) as file:
        return [{name: number(field) for name, field in row.items()} for row in csv.DictReader(file)]


def read(script, words, run_main):
    """The exit code of a script on these words, folders of OLD among them, the numbers it printed, and the files it wrote."""
    argv = [f"runs/{word}" if word in FOLDERS else word for word in words.split()]
    indices = sorted(int(path.stem) for path in Path(argv[0]).glob("*.pt"))
    options = OPTIONS[script].format(run=argv[0], image=indices[0])
    Path("out").mkdir()
    code, out, err = run_main(load_script(script).main, *argv, *shlex.split(options))
    assert code == 0 or err.splitlines()[-1].startswith("error: "), err
    files = {path.name: content(path) for path in Path("out").iterdir() if path.suffix in (".json", ".csv")}
    shutil.rmtree("out")
    groups = re.findall(PRINTED[script], out, re.M) if script in PRINTED and code == 0 else []
    printed = [float(part) for group in groups for part in ([group] if isinstance(group, str) else group) if part]
    return {"code": code, "printed": printed, "files": files}


def differences(expected, found, where=""):
    """Where something that is expected is not found; there may be more than that. Numbers with a point may differ by 1e-3."""
    if isinstance(expected, dict) and isinstance(found, dict):
        pairs = [(found.get(name), value, f"{where} {name}") for name, value in expected.items()]
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = [(a, b, f"{where} {i}") for i, (a, b) in enumerate(zip(found, expected, strict=True))]
    else:
        same = found == (pytest.approx(expected, rel=1e-3, abs=1e-5) if isinstance(expected, float) else expected)
        return [] if same else [f"{where}: {found} is not {expected}"]
    return [line for a, b, place in pairs for line in differences(b, a, place)]


@pytest.mark.parametrize("script", some_slow(OPTIONS, ["plot_winoground", "plot_timesteps"]))
@pytest.mark.filterwarnings("ignore:.*unreadable")
def test_scripts_find_what_they_found(script, old_runs, run_main):
    expected = EXPECTED[script]
    assert {word for words in expected for word in words.split() if word in FOLDERS} == FOLDERS
    found = {words: read(script, words, run_main) for words in expected}
    assert differences(expected, found) == []


def test_the_comparison_can_fail():
    expected = {"a": [1, 0.5, "x"], "b": None}
    assert differences(expected, expected | {"c": 3}) == differences(expected, {"a": [1, 0.5004, "x"], "b": None}) == []
    for other in ([2, 0.5, "x"], [1, 0.51, "x"], [1, 0.5, "y"], [1, 0.5], None):
        assert len(differences(expected, {"a": other, "b": None})) == 1
    assert differences(expected, {"b": None}) == [" a: None is not [1, 0.5, 'x']"]


def test_what_is_expected_is_no_accident():
    """Every script reads some folders and refuses others, and what it reads has numbers in it."""
    for script, runs in EXPECTED.items():
        read_well = [run for run in runs.values() if run["code"] == 0]
        assert 0 < len(read_well) < len(runs), script
        assert all(run["printed"] or run["files"] for run in read_well), script


# ---------------------------------------------------------------- continued by the same command


def same(one, other):
    """Two records hold the same, but for the seconds, and sums of squares that are no longer kept.

    Floats to 1e-4, as this machine may not be the one that wrote the other.
    """
    if isinstance(one, dict):
        keys, others = ({*record} - {"seconds", "squares"} for record in (one, other))
        return keys == others and all(same(one[key], other[key]) for key in keys)
    if torch.is_tensor(one):
        return one.dtype == other.dtype and one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    return one == other


RUNS = [line[7:] for line in (OLD / "README.md").read_text().splitlines() if re.match(r"python (eval|run)_", line)]
CONTINUED = [words for words in RUNS if "--prune_img_size" not in words and "--strategy race" not in words]
RACES = [f"{words} --alpha 0.05" for words in RUNS if "--strategy race" in words]  # the default of that time


@pytest.mark.parametrize("words", CONTINUED)
def test_a_run_is_known_as_done_and_redoes_what_is_missing(words, old_runs, run_main):
    command, *argv = shlex.split(words)
    main = import_module(command.removesuffix(".py")).main
    code, out, err = run_main(main, *argv, "--dry_run")
    assert code == 0 and re.search(r"0 to do here, (\d+) of \1 done before", out), out + err
    folder = Path(re.search(r"Run folder: (\S+)", out)[1])
    path = sorted(folder.glob("*.pt"))[1]
    before = torch.load(path, weights_only=True)
    path.unlink()
    code, out, err = run_main(main, *argv)
    assert code == 0 and "1 to do here" in out, out + err
    assert same(torch.load(path, weights_only=True), before)


@pytest.mark.parametrize("words", RACES)
def test_a_race_of_another_edition_is_not_mixed_with_this_one(words, old_runs, run_main):
    command, *argv = shlex.split(words)
    code, _, err = run_main(import_module(command.removesuffix(".py")).main, *argv)
    assert code == 2 and err.count("\n") == 1 and "edition (None there, 2 now)" in err and "--extra" in err


def test_every_folder_has_its_command(old_runs, run_main, monkeypatch):
    """The commands above name all folders there are but that of the option that is no more."""
    known = set()
    monkeypatch.setattr(run_folder, "check_config", lambda *_: None)  # which refuses the races
    for words in CONTINUED + RACES:
        command, *argv = shlex.split(words)
        out = run_main(import_module(command.removesuffix(".py")).main, *argv, "--dry_run")[1]
        first = Path(re.search(r"Run folder: (\S+)", out)[1]).relative_to("runs").as_posix()
        known |= {first, first.replace("_cls3_", "_cls5_")}
    assert FOLDERS - known == {"fashion_mnist/vtiny_1trials_3_1keep_1_5samples_64_32prune"} and known <= FOLDERS
