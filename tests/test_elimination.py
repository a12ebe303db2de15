"""The staged elimination on tables of numbers."""

import itertools

import numpy as np
import pytest

from diffusion.elimination import clearly_worse, run_race, run_stages, survivors, systematic_error
from diffusion.schedule import make_plan, race_plan
from diffusion.strategy import Race

STAGES = (slice(0, 2), slice(2, 4))


def table(rows):
    """A callback that reads a table [candidates, pairs] and notes what it was asked for."""
    errors, asked = np.array(rows, np.float32), []

    def evaluate(alive, pairs):
        asked.append((list(alive), pairs))
        return errors[alive][:, pairs]

    return evaluate, asked


def test_hand_table():
    evaluate, asked = table([[3, 3, 9, 9], [1, 1, 5, 5], [2, 2, 1, 1]])
    errors, winner = run_stages(evaluate, 3, STAGES, [2, 1])
    assert winner == 2  # means of all four: row 1 has 3, row 2 has 1.5
    assert asked == [([0, 1, 2], STAGES[0]), ([1, 2], STAGES[1])]
    assert {row: values.tolist() for row, values in errors.items()} == {0: [3, 3], 1: [1, 1, 5, 5], 2: [2, 2, 1, 1]}


def test_the_score_is_the_mean_of_all_errors_so_far():
    evaluate, _ = table([[0, 0, 5, 5], [2, 2, 2, 2]])
    assert run_stages(evaluate, 2, STAGES, [2, 1])[1] == 1
    evaluate, _ = table([[0, 0, 3, 3], [2, 2, 2, 2]])
    assert run_stages(evaluate, 2, STAGES, [2, 1])[1] == 0  # the last stage alone would say 1


def test_ties_go_to_the_lower_row():
    evaluate, asked = table([[5] * 4, [1] * 4, [1] * 4, [1] * 4])
    assert run_stages(evaluate, 4, STAGES, [2, 1])[1] == 1
    assert asked[1][0] == [1, 2]
    assert survivors({7: 1.0, 3: 1.0, 5: 0.5}, 2) == [3, 5]


def test_means_of_many_float32_are_taken_in_double():
    values = np.full((2, 1000), 0.1, np.float32)
    values[1, 0] = np.nextafter(np.float32(0.1), np.float32(0))
    assert run_stages(lambda rows, pairs: values[rows][:, pairs], 2, (slice(0, 1000),), [1])[1] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_error_that_is_not_finite_is_never_predicted(bad):
    evaluate, _ = table([[1, 1, 1, 1], [bad, 0, 0, 0]])
    with pytest.raises(FloatingPointError, match="1 of 4"):
        run_stages(evaluate, 2, STAGES, [1, 1])


@pytest.mark.parametrize("n_samples", [[50, 50], [4, 5, 6, 8]])
def test_a_stage_that_adds_no_timestep_eliminates_on_what_is_known(n_samples):
    plan = make_plan(n_samples, 1, 1000)
    errors = np.arange(4)[:, None] + np.zeros((4, len(plan.t)), np.float32)

    def evaluate(alive, pairs):
        assert pairs.stop > pairs.start  # a network is never called for nothing
        return errors[alive][:, pairs]

    kept, winner = run_stages(evaluate, 4, plan.stages, [3, 2, 2, 1][-len(n_samples) :])
    assert winner == 0 and len(kept[0]) == len(plan.t)


# ---------------------------------------------------------------- the race

RULE = (0.05, lambda seen, n_alive: 2 if seen else 4)  # level, and pairs of the next round


def noisy_table(means, n, seed, noise=0.1):
    """Errors [K,n] that share what every timestep costs and differ by their means and a little noise of their own."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 3, n) + np.array(means)[:, None] + noise * rng.standard_normal((len(means), n))


def test_race_rounds_by_hand():
    """Row 2 is always worse by the same, so it falls at once; rows 0 and 1 swap places and go on to the end."""
    evaluate, asked = table([[1, 2, 1, 2, 1, 2, 1], [2, 1, 2, 1, 2, 1, 2], [9, 10, 9, 10, 9, 10, 9]])
    errors, winner, fell = run_race(evaluate, [0, 1, 2], range(7), *RULE)
    assert asked == [([0, 1, 2], slice(0, 4)), ([0, 1], slice(4, 6)), ([0, 1], slice(6, 7))]
    assert (
        winner == 0 and fell == {2: 1, 1: 3} and [len(e) for e in errors.values()] == [7, 7, 4]
    )  # all seen: nothing is left open


def test_race_stops_when_one_class_is_left():
    """Rows 0 and 1 are two prompts of one class: they need not be told apart, and the lower mean says which wins."""
    evaluate, asked = table([[1, 2] * 4, [2, 1] * 4, [9, 10.5] * 4])
    _, winner, fell = run_race(evaluate, [5, 5, 6], range(8), *RULE)
    assert fell == {2: 1} and winner == 0 and len(asked) == 1


def test_clearly_worse_by_hand():
    """Scipy's quantile, and the standard error of successive differences in the order of t, in a plain loop."""
    from scipy.stats import t as student

    order = np.random.default_rng(1).permutation(40)  # of the timesteps of all 40 pairs; the first 12 were seen
    errors = noisy_table([0, 0.02, 0.05, 0.1, 0.2], 12, seed=3)
    rows, best = dict(enumerate(errors)), int(errors.mean(1).argmin())
    for level in (0.2, 0.05, 0.001):
        expected = []
        for k in rows:
            d = [errors[k][i] - errors[best][i] for i in sorted(range(12), key=lambda i: order[i])]
            variance = sum((b - a) ** 2 for a, b in itertools.pairwise(d)) / (2 * 11)
            if k != best and np.mean(d) > student.ppf(1 - level, 11) * (variance / 12 * (1 - 12 / 40)) ** 0.5:
                expected.append(k)
        assert clearly_worse(rows, list(range(5)), order, level) == expected
    assert clearly_worse({0: np.ones(1), 1: np.zeros(1)}, [0, 1], range(9), 0.05) == []  # one pair says nothing


def test_the_standard_error_is_what_estimates_scatter_by():
    """On a smooth curve with noise, sampled as a race does: not the spread over the curve, which an even sample does not have."""
    plan, rng = race_plan(250, 1, 1000), np.random.default_rng(0)
    t = plan.t[:40]
    curve = np.sin(np.pi * plan.t / 1000)
    values = curve + 0.2 * rng.standard_normal((4000, 250))
    off = values[:, :40].mean(1) - values.mean(1)
    said = systematic_error(values[:, :40], plan.t)
    assert len(t) == 40 and 0.9 < said.mean() / off.std() < 1.25
    assert values[:, :40].std(1).mean() / np.sqrt(40) > 1.6 * said.mean()
    np.testing.assert_allclose(systematic_error(values, plan.t), 0, atol=1e-12)


def test_race_finds_what_the_whole_table_says_and_is_never_dearer():
    """200 images of ten classes: the winner of the full grid in all but alpha of them, at a fraction of the evaluations."""
    agree, spent = 0, 0
    for seed in range(200):
        errors = noisy_table(np.random.default_rng(1000 + seed).uniform(0, 0.5, 10), 250, seed)
        evaluate, _ = table(errors)
        seen, winner, _ = run_race(evaluate, list(range(10)), race_plan(250, 1, 1000).t, 0.05, Race().size)
        agree += winner == errors.mean(1).argmin()
        spent += sum(map(len, seen.values()))
        assert sum(map(len, seen.values())) <= 2500
    assert agree >= 190 and spent < 200 * 2500 / 5


def test_race_without_a_difference_uses_all_pairs():
    evaluate, _ = table([[1.0, 2, 3, 4, 5]] * 3)
    errors, winner, fell = run_race(evaluate, [0, 1, 2], range(5), *RULE)
    assert winner == 0 and not fell and all(len(e) == 5 for e in errors.values())


def test_race_refuses_nan():
    evaluate, _ = table([[1.0, np.nan, 1, 1], [1.0, 1, 1, 1]])
    with pytest.raises(FloatingPointError, match="1 of 8"):
        run_race(evaluate, [0, 1], range(4), *RULE)


def test_few_candidates_get_longer_rounds():
    race = Race(alpha=0.05, min_samples=10, round_size=5)
    assert [race.size(0, 10), race.size(10, 10), race.size(15, 4), race.size(15, 2)] == [10, 5, 8, 16]
