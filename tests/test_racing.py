"""The race on tables of numbers: its rounds, its two rules against plain loops and simulations, and the fit of limits."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import table
from scipy.stats import t as student

from diffusion.analysis import race_fit, replay
from diffusion.analysis.tables import Grid
from diffusion.strategy import CalibratedRace, FirstRace, Race, of_identity
from diffusion.strategy.elimination import drive
from diffusion.strategy.race import (
    GapFit,
    GapRule,
    LevelRule,
    cell_weights,
    gaps_and_variance,
    neighbour_freedom,
    neighbour_variance,
    run_race,
)
from diffusion.strategy.schedule import growing_rounds, race_plan, timestep_grid


def over(limit):
    """A rule: whoever's mean lies further above the best than this."""
    return lambda values: values.mean(1) - values.mean(1).min() > limit


# ---------------------------------------------------------------- rounds


def test_rounds_by_hand():
    answer, requests = table([[1, 2, 1, 2, 1, 2, 1], [2, 1, 2, 1, 2, 1, 2], [9, 10, 9, 10, 9, 10, 9]])
    errors, winner, fell = drive(run_race([0, 1, 2], [4, 6, 7], over(1)), answer)
    assert requests == [([0, 1, 2], slice(0, 4)), ([0, 1], slice(4, 6)), ([0, 1], slice(6, 7))]
    assert winner == 0 and fell == {2: 1} and [len(e) for e in errors.values()] == [7, 7, 4]


def test_a_race_stops_when_one_class_is_left():
    """Rows 0 and 1 are two prompts of one class: they need not be told apart, and the lower mean says which wins."""
    answer, requests = table([[1, 2] * 4, [2, 1.5] * 4, [9, 10.5] * 4])
    _, winner, fell = drive(run_race([5, 5, 6], [2, 4, 8], over(1)), answer)
    assert fell == {2: 1} and winner == 0 and len(requests) == 1


def test_a_row_falls_to_a_better_one_of_its_class():
    answer, requests = table([[1, 1, 1, 1], [5, 5, 5, 5], [1, 1, 2, 2]])
    _, winner, fell = drive(run_race([0, 0, 1], [2, 4], over(0.4)), answer)
    assert fell == {1: 1, 2: 2} and winner == 0 and [rows for rows, _ in requests] == [[0, 1, 2], [0, 2]]


def test_a_race_without_a_difference_uses_all_pairs():
    answer, _ = table([[1.0, 2, 3, 4, 5]] * 3)
    ends = [2, 4, 5]
    for rule in (LevelRule(np.arange(5), ends, 0.2), GapRule(np.arange(5), dict.fromkeys(ends, (0.0, 1.0)))):
        errors, winner, fell = drive(run_race([0, 1, 2], ends, rule), answer)
        assert winner == 0 and not fell and all(len(e) == 5 for e in errors.values())


def test_a_race_refuses_nan():
    answer, _ = table([[1.0, np.nan, 1, 1], [1.0, 1, 1, 1]])
    with pytest.raises(FloatingPointError, match="1 of 8"):
        drive(run_race([0, 1], [4], over(1)), answer)


def test_rounds_grow_by_a_fifth():
    assert growing_rounds(14, 2, 1) == [2, 3, 4, 5, 6, 8, 10, 12, 14]
    assert growing_rounds(40, 10, 5) == [10, 15, 20, 25, 30, 36, 40]
    assert growing_rounds(3, 10, 5) == [3]


# ---------------------------------------------------------------- statistics


def test_cell_weights_by_hand():
    """Levels 0 .. 90 in steps of 10, each a cell of 10; of 20, 50 and 80 the borders are 35 and 65, the ends -5 and 95."""
    t = np.array([50, 20, 80, 0, 10, 30, 40, 60, 70, 90])
    np.testing.assert_allclose(cell_weights(t, 3), [0.3, 0.4, 0.3])
    np.testing.assert_allclose(cell_weights(t, 10), 0.1)
    np.testing.assert_allclose(cell_weights(np.repeat(t, 2), 20), 0.05)  # two noises at every level
    assert cell_weights(t, 1).tolist() == [1]


def test_a_weighted_beginning_of_a_slope_is_nearer_to_its_mean():
    t = race_plan(250, 1, 1000).t
    line = 3 + t / 1000
    for n in (7, 13, 50):
        weighted, plain = line[:n] @ cell_weights(t, n), line[:n].mean()
        assert abs(weighted - line.mean()) < abs(plain - line.mean()) / 2


def test_the_variance_is_what_estimates_scatter_by():
    """On a smooth curve with noise, sampled as a race does: not the spread over the curve, which an even sample does not have."""
    t, rng = race_plan(250, 1, 1000).t, np.random.default_rng(0)
    values = np.sin(np.pi * t / 1000) + 0.2 * rng.standard_normal((4000, 250))
    weights = cell_weights(t, 40)
    off = values[:, :40] @ weights - values.mean(1)
    said = np.sqrt((1 - 40 / 250) * neighbour_variance(values[:, :40], t[:40]) * (weights**2).sum())
    assert 0.9 < said.mean() / off.std() < 1.25
    assert values[:, :40].std(1).mean() / np.sqrt(40) > 1.5 * said.mean()


@pytest.mark.parametrize("n", [2, 3, 6, 30])
def test_its_degrees_of_freedom(n):
    """2 mean^2 / variance of 100,000 simulated ones: 1 of two values, about 2/3 of n - 1 of many."""
    found = neighbour_variance(np.random.default_rng(n).standard_normal((100_000, n)), np.arange(n))
    assert abs(2 * found.mean() ** 2 / found.var() / neighbour_freedom(n) - 1) < 0.05


def noisy_table(means, n, seed, noise=0.1):
    """Errors [K,n] that share what every timestep costs and differ by their means and a little noise of their own."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 3, n) + np.array(means)[:, None] + noise * rng.standard_normal((len(means), n))


@pytest.mark.parametrize("alpha", [0.05, 0.5])
def test_the_level_rule_by_a_plain_loop(alpha):
    t = race_plan(40, 1, 1000).t
    ends = growing_rounds(40, 4, 1)
    values = noisy_table([0, 0.02, 0.05, 0.1, 0.2], 12, seed=3)
    order = sorted(range(12), key=lambda i: t[i])
    levels = [t[i] for i in order]
    edges = [t.min() - 12.5, *((a + b) / 2 for a, b in itertools.pairwise(levels)), t.max() + 12.5]
    width = {i: (edges[k + 1] - edges[k]) / (edges[-1] - edges[0]) for k, i in enumerate(order)}
    means = [sum(width[i] * row[i] for i in order) for row in values]
    best = int(np.argmin(means))
    variances = {}
    for k, row in enumerate(values):
        if k != best:
            steps = [(row[b] - values[best][b]) - (row[a] - values[best][a]) for a, b in itertools.pairwise(order)]
            variances[k] = sum(step**2 for step in steps) / (2 * 11)
    freedom = 2 * 11**2 / (3 * 12 - 4)
    expected = []
    for k, variance in variances.items():
        moderated = (8 * np.mean(list(variances.values())) + freedom * variance) / (8 + freedom)
        error = (moderated * sum(w**2 for w in width.values()) * (1 - 12 / 40)) ** 0.5
        level = alpha / (len(ends) - 1) / 4
        expected += [k] if means[k] - means[best] > student.ppf(1 - level, 8 + freedom) * error else []
    assert np.flatnonzero(LevelRule(t, ends, alpha)(values)).tolist() == expected and 0 < len(expected) < 4


# ---------------------------------------------------------------- the level of a whole race

SCALE = 0.3 + 2.5 * np.exp(-4 * np.arange(250) / 250)  # differences that scatter most at low t
NOISES = {  # law -> [K,250]
    "normal": lambda rng, k: rng.standard_normal((k, 250)),
    "heavy tails that depend on t": lambda rng, k: SCALE * rng.standard_t(3, (k, 250)),
    "curves": lambda rng, k: SCALE * rng.standard_normal((k, 250)) + 2 * rng.standard_normal((k, 1)) * np.linspace(-1, 1, 250),
}
TIES = {  # what errors [K,250] become
    "one rival": lambda e: e + 4 * (np.arange(len(e)) > 1)[:, None],
    "all": lambda e: e,
    "to the last digit": lambda e: e - e.mean(1, keepdims=True) + 4 * (np.arange(len(e)) > 1)[:, None],
}


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("noise", NOISES)
def test_the_winner_is_lost_less_often_than_alpha(noise, ties):
    """150 races at alpha 0.2 among ten: with a true share of 0.2, more than 45 have a chance of one in 1,000."""
    rng, race, lost = np.random.default_rng(5), Race(), 0
    plan = race.plan(1000)
    place = np.argsort(np.argsort(plan.t))  # of a pair in a table whose columns ascend by t
    for _ in range(150):
        errors = TIES[ties](NOISES[noise](rng, 10))
        outcome = drive(race.eliminate(list(range(10)), plan), table(errors[:, place])[0])
        lost += outcome.winner != errors.astype(np.float32).mean(1, dtype=np.float64).argmin()
    assert lost <= 45


def test_a_race_finds_what_the_whole_table_says():
    """200 images of ten classes: the winner of the full grid, at a fraction of the evaluations."""
    race, agree, spent = Race(), 0, 0
    plan = race.plan(1000)
    for seed in range(200):
        errors = noisy_table(np.random.default_rng(1000 + seed).uniform(0, 0.5, 10), 250, seed)
        outcome = drive(race.eliminate(list(range(10)), plan), table(errors)[0])
        agree += outcome.winner == errors.mean(1).argmin()
        spent += sum(map(len, outcome.errors.values()))
    assert agree >= 190 and spent < 200 * 2500 / 8


# ---------------------------------------------------------------- limits from a run


def grid(n, seed, candidates=10, scale=1.0):
    """A run of n images on 100 levels of 1000, ascending by t; images differ in how much their errors scatter."""
    rng = np.random.default_rng(seed)
    noise = rng.lognormal(0, 0.5, (n, 1, 1)) * 0.15 * rng.standard_normal((n, candidates, 100))
    errors = rng.uniform(0, 3, (n, 1, 100)) + rng.uniform(0, 0.5, (n, candidates, 1)) + noise
    t = np.array(timestep_grid(100, 1000))
    return Grid((scale * errors).astype(np.float32), t, list(range(candidates)), np.zeros(n, int))


def test_gaps_and_spread_by_hand():
    """Means 1, 9, 2, 3 and 4: the three nearest rivals count, whose differences from the best step by 0, 2 and -4."""
    t = np.array([10, 30])
    values = np.array([[1, 1], [9, 9], [2, 2], [2, 4], [6, 2]], float)
    gaps, spread = gaps_and_variance(values, t)
    assert gaps.tolist() == [0, 8, 1, 2, 3]
    assert spread == pytest.approx((0 + 2**2 / 2 + 4**2 / 2) / 3)


def test_a_unit_is_drawn_towards_the_usual_one():
    assert GapRule.unit(1.0, 3.0, 2) == pytest.approx(((4 * 3 + 1 * 1) / 5) ** 0.5)
    rule = GapRule(np.array([10, 30]), {2: (2.0, 3.0)})
    limit = 2 * ((4 * 3 + 1 * 0) / 5) ** 0.5
    values = np.array([[1.0, 1], [1 + limit - 1e-9] * 2, [1 + limit + 1e-9] * 2])
    assert rule(values).tolist() == [False, False, True]


@pytest.mark.slow
def test_limits_keep_the_target_on_other_images():
    """Fitted on 300 images, raced on 1,000 others: the share that is kept is the target within its own chance."""
    fit = race_fit.fit_limits(grid(300, 0), 0.98, {})
    other = grid(1000, 1)
    preds, spent = replay.play(other, CalibratedRace(fit=fit))
    kept = (preds == other.errors.mean(2).argmin(1)).mean()
    assert kept > 0.96 and spent.mean() < 1000 / 3
    assert fit.ends[-1] == 100 and fit.units[-1] == 0 and fit.n_images == 300


@pytest.mark.slow
def test_a_higher_target_has_wider_limits_and_units_have_no_unit():
    low, high = (race_fit.fit_limits(grid(100, 2), target, {}) for target in (0.9, 0.99))
    assert all(a < b for a, b in zip(low.units[:-1], high.units[:-1], strict=True))
    scaled = race_fit.fit_limits(grid(100, 2, scale=8.0), 0.9, {})
    np.testing.assert_allclose(scaled.units, low.units, rtol=1e-5)
    np.testing.assert_allclose(scaled.variances, np.multiply(low.variances, 64), rtol=1e-5)


def test_one_candidate_and_another_grid_are_refused():
    with pytest.raises(ValueError, match="one candidate"):
        race_fit.fit_limits(grid(4, 0, candidates=1), 0.9, {})
    with pytest.raises(ValueError, match="no timestep"):
        race_fit.fit_limits(replace(grid(4, 0), t=np.arange(100)), 0.9, {})


def test_a_fit_is_read_back_and_its_hash_names_the_folder(tmp_path):
    fit = race_fit.fit_limits(grid(60, 0), 0.9, {"loss": "l1", "weights": "a"})
    fit.write(tmp_path / "race.json")
    read = CalibratedRace(str(tmp_path / "race.json"))
    assert read.fit == fit == of_identity(json.loads(json.dumps(read.identity()))).fit
    assert read.folder() != CalibratedRace(fit=replace(fit, target=0.95)).folder()
    fit.check({"loss": "l1", "weights": "a", "seed": 4}, 12)
    own = {"loss": "l1", "weights": "a"}
    others = ((own | {"loss": "l2"}, 10, "l1 there"), ({"loss": "l1"}, 10, "a there"), (own, 21, "has 21"), (own, 4, "has 4"))
    for identity, n, told in others:
        with pytest.raises(ValueError, match=told):
            fit.check(identity, n)


@pytest.mark.parametrize(
    "change",
    [
        {"ends": [2, 100]},
        {"ends": []},
        {"units": None},
        {"n_trials": 0},
        {"max_samples": "100"},
        {"about": 3},
        {"variances": [float("nan")] * 19},
        {"more": 1},
    ],
)
def test_a_file_that_is_no_fit_is_one_line(change, tmp_path):
    path = tmp_path / "race.json"
    race_fit.fit_limits(grid(60, 0), 0.9, {}).write(path)
    assert len(GapFit.read(path).ends) == 19
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"race.json is no fit of scripts/fit_race.py: [^\n]+$"):
        GapFit.read(path)


def test_a_race_of_the_first_edition_keeps_its_order():
    old = {"strategy": "race", "alpha": 0.05, "min_samples": 10, "round_size": 5, "max_samples": 50, "n_trials": 1}
    first, second = of_identity(old), of_identity(Race(max_samples=50).identity())
    assert isinstance(first, FirstRace) and type(second) is Race
    assert first.plan(1000).t[:3].tolist() == [10, 650, 330] and second.plan(1000).t[:3].tolist() == [330, 970, 10]
