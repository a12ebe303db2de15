"""scripts/plot_candidates.py on records written by hand: costs that follow a known law, and pairs of runs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import load_script, staged_record
from PIL import Image

from diffusion.runs import run_folder
from diffusion.strategy.open_race import SurrogateRace


def write(name, k, spent, wrong=(), images="a", **identity):
    """A run with k candidates whose image i has spent[i] evaluations: the winner, 0, has those that the others leave."""
    folder = Path(name)
    folder.mkdir()
    for index, n in enumerate(spent):
        rows = {row: np.full(1, 2.0, np.float32) for row in range(1, k)}
        rows = {0: np.ones(n - k + 1, np.float32)} | rows
        t = np.arange(n - k + 1)
        run_folder.save_record(folder / f"{index}.pt", staged_record(range(k), rows, t, 0, int(index in wrong)))
    candidates = {"labels": list(range(k)), "names": [str(row) for row in range(k)]}
    config = {"identity": {"images": images, **identity}, "candidates": candidates}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


RACE = {"strategy": "race", "edition": 2}


@pytest.fixture
def plot(run_main):
    return lambda *argv: run_main(load_script("plot_candidates").main, *argv)


def test_a_law_is_found(plot):
    """Evaluations 3 K^2, of every image: the exponent is 2 without doubt, and shares of the race are those of the sums."""
    races = [write(f"race{k}", k, [3 * k**2] * 6, images=str(k), **RACE) for k in (4, 8, 16)]
    stages = [write(f"stages{k}", k, [k**2] * 3, wrong=[1], images=str(k), to_keep=[1], n_samples=[2]) for k in (4, 8, 16)]
    code, out, err = plot(*stages, *races, "--csv", "a.csv", "-o", "a.png")
    assert code == 0 and out.count("to the power of 2.00 (2.00 to 2.00)") == 2, (out, err)
    rows = list(csv.DictReader(Path("a.csv").read_text().splitlines()))
    assert [(row["strategy"], row["candidates"]) for row in rows] == [
        (s, k) for s in ("stages", "race") for k in ("4", "8", "16")
    ]
    for row, k in zip(rows[:3], (4, 8, 16), strict=True):
        assert float(row["evaluations"]) == k**2 and row["accuracy_n"] == "3" == row["agreement_n"]
        assert float(row["accuracy"]) == pytest.approx(2 / 3) and float(row["agreement"]) == 1
        assert [float(row[f"share{end}"]) for end in ("", "_low", "_high")] == pytest.approx([1 / 3] * 3)
    assert rows[3]["agreement"] == ""
    assert Image.open("a.png").size[0] > 800


def test_intervals_of_a_bootstrap(plot):
    """The mean's: near the closed form, half of 1.96 standard errors, of many images."""
    spent = np.random.default_rng(1).integers(10, 60, 400)
    plot(write("a", 4, spent, **RACE), "--csv", "a.csv")
    (row,) = csv.DictReader(Path("a.csv").read_text().splitlines())
    half = 1.96 * spent.std() / 20
    assert float(row["evaluations"]) == pytest.approx(spent.mean())
    assert float(row["evaluations_high"]) - spent.mean() == pytest.approx(half, rel=0.1)
    assert spent.mean() - float(row["evaluations_low"]) == pytest.approx(half, rel=0.1)


def test_an_exponent_is_a_line_through_logarithms(plot):
    """Against numpy's polyfit, of runs with other images each."""
    sizes, costs = (4, 9, 20), ([12, 19, 30], [40, 33], [150, 90, 70, 210])
    folders = [write(f"r{k}", k, spent, images=str(k), **RACE) for k, spent in zip(sizes, costs, strict=True)]
    slope = np.polyfit(np.log(sizes), np.log([np.mean(spent) for spent in costs]), 1)[0]
    assert f"to the power of {slope:.2f} (" in plot(*folders)[1]


def test_other_images_are_not_compared(plot):
    race = write("race", 4, [20, 20], **RACE)
    other = write("other", 4, [10, 10], images="b", to_keep=[1], n_samples=[2])
    code, out, _ = plot(race, other)
    assert code == 0 and "n = 2" not in out and "power" not in out


def test_bad_input(plot):
    race, same = write("race", 4, [20, 20], **RACE), write("same", 4, [30], **RACE)
    unnamed = write("unnamed", 4, [20], **RACE)
    (unnamed / "config.json").unlink()
    Path("empty").mkdir()
    for argv, told in (([race, same], "are both race with 4"), ([unnamed], "no config.json"), (["empty"], "no readable record")):
        code, _, err = plot(*argv)
        assert code == 2 and err.count("\n") == 1 and told in err, err


def test_candidates_of_a_shortlisted_run_are_those_that_compete(plot):
    folder = write("short", 10, [30, 40], shortlist="hash", shortlist_size=3, **SurrogateRace().identity())
    assert plot(folder, "--csv", "a.csv")[0] == 0
    (row,) = csv.DictReader(Path("a.csv").read_text().splitlines())
    assert row["candidates"] == "3"
