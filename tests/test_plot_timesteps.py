"""scripts/plot_timesteps.py: the figures' data against plain loops and tables written by hand."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script, staged_record, write_run
from PIL import Image

from diffusion import metrics
from diffusion.analysis import sampling, tables
from diffusion.metrics import curves
from diffusion.runs import run_folder
from diffusion.strategy import schedule

T = (300, 100, 500, 700, 900)  # in an order of evaluation that is not ascending


@pytest.fixture
def script():
    return load_script("plot_timesteps")


@pytest.fixture
def errors():
    return np.random.default_rng(0).random((20, 3, 10)).astype(np.float32)


@pytest.fixture
def folder(errors):
    """20 images, 3 classes, 5 timesteps of 2 noises."""
    labels = np.arange(20) % 3
    return write_run(Path("run"), errors, np.repeat(T, 2), labels, ["a $5 or $^_6$ bag", "boot", "coat"])


@pytest.fixture
def grid(folder):
    return tables.grid_of(tables.read_run(folder))


@pytest.fixture
def plot(run_main, script):
    return lambda *argv: run_main(script.main, *argv)


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def right_by_loops(errors, columns):
    """How many of the images are right, by the mean over columns of the record's own order."""
    right = 0
    for image, of_image in enumerate(errors):
        sums = [sum(float(row[c]) for c in columns) for row in of_image]
        right += sums.index(min(sums)) == image % 3
    return right


# ---------------------------------------------------------------- figures 3 and 4


def test_one_timestep_alone_against_loops(script, grid, errors):
    rows = script.timestep_rows(*script.by_timestep(grid), grid)
    assert [row["t"] for row in rows] == sorted(T)
    for row in rows:
        at = T.index(row["t"])
        right = right_by_loops(errors, (2 * at, 2 * at + 1))
        assert row["accuracy"] == metrics.Estimate(right / 20, *metrics.wilson(right / 20, 20), 20)


def test_strategies_against_loops(script, grid, errors):
    taken = {  # timesteps in order, by hand
        "uniform": {1: [500], 2: [300, 700], 3: [100, 500, 900], 5: T},
        "even-10": {1: [100], 2: [100, 300], 3: [100, 300, 500], 5: T},
        "0, 500, 1000": {1: [100], 2: [100, 500], 3: [100, 500, 900], 5: T},
        "475, 500, 525": {1: [500], 2: [500, 300], 3: [500, 300, 700], 5: T},
    }
    rows = script.strategy_rows(*script.by_timestep(grid), grid, 1000)
    assert [(row["strategy"], row["timesteps"]) for row in rows] == [(s, n) for s in taken for n in taken[s]]
    for row in rows:
        places = [T.index(t) for t in taken[row["strategy"]][row["timesteps"]]]
        assert row["accuracy"].value == right_by_loops(errors, [c for at in places for c in (2 * at, 2 * at + 1)]) / 20
    assert len({row["accuracy"] for row in rows if row["timesteps"] == 5}) == 1  # everything is everything


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_command_draws_and_prints(suffix, plot, folder):
    code, out, err = plot(folder, "-o", "new/figures", "--image", 3, "--format", suffix)
    assert code == 0 and "20 images, 3 candidates, 5 timesteps of 2 noises" in out and "--n_trials" not in out, err
    rows = table("new/figures/timesteps.csv")
    best = max(rows, key=lambda row: float(row["accuracy"]))
    assert f"best t = {best['t']}, {100 * float(best['accuracy']):.2f} %" in out
    assert list(best) == ["t", "accuracy", "accuracy_low", "accuracy_high", "accuracy_n"] and best["accuracy_n"] == "20"
    for name in ("timesteps", "strategies", "image_3"):
        picture = Path(f"new/figures/{name}.{suffix}")
        assert str(picture) in out and len(table(picture.with_suffix(".csv"))) >= 5
        if suffix == "png":
            assert Image.open(picture).size[0] > 800
        else:
            assert "<svg" in picture.read_text()


# ---------------------------------------------------------------- timesteps of a strategy


def test_uniform_is_the_published_thinning():
    for size, n in [(1000, 50), (250, 25), (250, 250), (100, 4), (500, 1)]:
        grid = np.array(schedule.timestep_grid(size, 1000))
        stride = size // n
        assert sampling.sampling_columns("uniform", grid, n, 1000) == list(range(size))[stride // 2 :: stride][:n]


def test_the_published_timesteps():
    wanted = sampling.wanted_timesteps(1000)
    assert list(wanted) == ["even-10", "0, 500, 1000", "475, 500, 525"]
    assert list(wanted.values()) == [tuple(range(10, 1001, 10)), (0, 500, 1000), (475, 500, 525)]


def test_another_table_of_levels_has_the_same_fractions():
    assert sampling.strategies(40) == ("uniform", "even-0.4", "0, 20, 40", "19, 20, 21")
    coarse, fine = np.arange(0, 40, 2), np.arange(0, 1000, 50)  # the same places in both
    for name, other in zip(sampling.strategies(40), sampling.strategies(1000), strict=True):
        for n in (1, 3, 20):
            assert sampling.sampling_columns(name, coarse, n, 40) == sampling.sampling_columns(other, fine, n, 1000)


def test_the_figures_of_a_run_with_another_table_of_levels(plot, script, errors, monkeypatch):
    drawn = {}
    monkeypatch.setattr(script.figures, "save", lambda figure, path: drawn.update({path.stem: figure.axes[0]}))
    folder = write_run(Path("coarse"), errors, np.repeat([3, 1, 5, 7, 9], 2), np.arange(20) % 3, ["a", "b", "c"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_levels": 10}))
    code, out, err = plot(folder, "-o", "figures")
    assert code == 0 and "475" not in out and "4.75, 5, 5.25" in out, err
    assert drawn["timesteps"].get_xlim() == (0, 10)
    assert {row["strategy"] for row in table("figures/strategies.csv")} == {"uniform", "even-0.1", "0, 5, 10", "4.75, 5, 5.25"}


def test_the_strategies_on_a_fine_grid():
    grid = np.arange(2, 1000, 4)
    timesteps = {name: grid[sampling.sampling_columns(name, grid, 250, 1000)].tolist() for name in sampling.strategies(1000)}
    assert timesteps["even-10"][:4] == [10, 18, 30, 38] and len(timesteps["even-10"]) == 100
    assert timesteps["0, 500, 1000"][:7] == [2, 498, 998, 502, 6, 494, 506]
    assert timesteps["475, 500, 525"][:5] == [474, 498, 526, 502, 478]
    assert timesteps["475, 500, 525"][-2:] == [2, 998]  # both 473 from the nearest of the three: the lower first
    for name in ("uniform", "0, 500, 1000", "475, 500, 525"):
        assert sorted(timesteps[name]) == grid.tolist()


def test_a_strategy_takes_no_timestep_twice():
    for size, name in itertools.product((1, 2, 3, 7, 40), sampling.strategies(1000)):
        grid = np.array(schedule.timestep_grid(size, 1000))
        for n in range(1, size + 1):
            columns = sampling.sampling_columns(name, grid, n, 1000)
            assert len(set(columns)) == len(columns) <= n and all(0 <= c < size for c in columns)
            assert len(columns) == n or name == "even-10"


def test_a_tie_goes_to_the_lower_row_and_rows_of_one_class_share_it():
    errors = np.array([[[2.0, 1], [1, 2], [9, 0]]])  # means 1.5, 1.5, 4.5
    assert curves.subset_preds(errors, [7, 8, 7], [0, 1]).tolist() == [7]
    assert curves.subset_preds(errors, [7, 8, 7], [0]).tolist() == [8]
    assert curves.rank_classes([3.0, 2, 1, 2], [0, 1, 1, 2]) == [2, 3, 0]


# ---------------------------------------------------------------- figure 2


def test_the_errors_of_one_image(script, grid, errors):
    rows = script.image_rows(grid, 3, (2, 0))
    assert [(row["t"], row["noise"]) for row in rows] == [(t, noise) for t in sorted(T) for noise in (0, 1)]
    for row in rows:
        column = 2 * T.index(row["t"]) + row["noise"]
        a, b = float(errors[3, 2, column]), float(errors[3, 0, column])
        assert (row["winner"], row["runner_up"], row["difference"]) == (a, b, b - a)


def test_spread_by_hand():
    spread = curves.error_spread([[1, 3], [5, 5]])  # means 2 and 5; variances at a timestep 2 and 0
    assert spread == pytest.approx((np.sqrt(4.5), 1.0))
    one = curves.error_spread([[1], [2], [3]])
    assert one.by_t == 1 and np.isnan(one.by_noise)


def test_one_noise_is_said_with_the_flag_that_keeps_more(plot, errors):
    write_run(Path("one"), errors[:, :, :5], T, np.arange(20) % 3)
    code, out, _ = plot("one", "-o", "figures", "--image", 0)
    assert code == 0 and "--n_trials 4 keeps four noises" in out


# ---------------------------------------------------------------- bad input


def test_half_written_records_are_skipped_and_named(plot, folder):
    (folder / "4.pt").write_bytes((folder / "4.pt").read_bytes()[:100])
    code, out, err = plot(folder, "-o", "figures")
    assert code == 0 and "19 images" in out
    assert err.count("\n") == 1 and "1 unreadable record" in err and "4.pt" in err
    code, _, err = plot(folder, "-o", "figures", "--image", 4)
    assert code == 2 and "--image 4" in err


def test_bad_input_is_one_line(plot, folder, errors):
    Path("empty").mkdir()
    write_run(Path("single"), errors[:, :, :1], T[:1], np.arange(20) % 3)
    Path("pruned").mkdir()
    rows = {0: errors[0, 0], 1: errors[0, 1, :4]}
    run_folder.save_record(Path("pruned/0.pt"), staged_record([0, 1], rows, torch.arange(10), 0, 0))
    sums = {"classes": torch.arange(2), "t": torch.arange(3), "sums": torch.ones(2, 4), "pred": 0, "label": 0}
    Path("sums").mkdir()
    run_folder.save_record(Path("sums/0.pt"), sums)
    for argv, told in [
        (("empty",), "no readable record"),
        (("nowhere",), "nowhere"),
        (("pruned",), "--to_keep 1 --n_samples N"),
        (("sums",), "--save_errors"),
        (("single",), "--n_samples"),
        ((folder, "--image", 20), "--image 20"),
        ((folder, "--image", -1), "--image"),
    ]:
        code, _, err = plot(*argv, "-o", "figures")
        assert code == 2 and err.count("\n") == 1 and told in err, (argv, err)
    assert plot(folder)[0] == 2  # no -o
