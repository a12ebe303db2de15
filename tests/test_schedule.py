"""The published schedule, against counts and grids that the published code gives."""

import numpy as np
import pytest

from diffusion.strategy import schedule


@pytest.mark.parametrize(
    ("n_samples", "evaluated"),
    [
        ([20, 50, 100, 500], [20, 70, 150, 500]),
        ([50, 100, 500, 1000], [50, 150, 550, 1000]),
        ([50, 500], [50, 500]),
        ([5, 10, 20], [5, 15, 20]),
        ([25, 250], [25, 250]),
        ([1], [1]),
    ],
)
def test_cumulative_counts(n_samples, evaluated):
    stages = schedule.stage_timesteps(n_samples, 1000)
    assert np.cumsum([len(stage) for stage in stages]).tolist() == evaluated


@pytest.mark.parametrize("n_samples", [[7, 30], [3, 3], [10, 50], [1, 1000], [600]])
def test_stages_are_ascending_disjoint_and_in_range(n_samples):
    stages = schedule.stage_timesteps(n_samples, 1000)
    flat = [t for stage in stages for t in stage]
    assert all(stage == sorted(stage) for stage in stages)
    assert len(set(flat)) == len(flat)
    assert min(flat) >= 0 and max(flat) < 1000


def test_a_number_that_does_not_divide_1000():
    assert schedule.timestep_grid(30, 1000)[:3] == [16, 49, 82]
    assert len(schedule.timestep_grid(30, 1000)) == 30
    assert schedule.stage_timesteps([7, 30], 1000)[0] == [16 + 33 * (2 + 4 * k) for k in range(7)]


def test_trials_repeat_a_timestep_and_take_rows_of_their_own():
    plan = schedule.make_plan([2, 4], 3, 1000)
    assert plan.t.tolist() == [375] * 3 + [875] * 3 + [125] * 3 + [625] * 3
    assert plan.stages == (slice(0, 6), slice(6, 12))


def test_price_counts_the_candidates_alive_in_each_stage():
    assert schedule.count_evaluations(schedule.make_plan([50, 500], 1, 1000), 10, [5, 1]) == 2750  # published for CIFAR-10
    assert schedule.count_evaluations(schedule.make_plan([20, 50, 100, 500], 1, 1000), 101, [20, 10, 5, 1]) == 5570  # Food
    assert (
        schedule.count_evaluations(schedule.make_plan([50, 100, 500, 1000], 1, 1000), 1000, [500, 50, 10, 1]) == 124_500
    )  # ImageNet


def test_notice_when_the_grid_leaves_the_end_out():
    assert "599" in schedule.coverage_notice(600, 1000)
    assert schedule.coverage_notice(250, 1000) is None


@pytest.mark.parametrize(
    ("to_keep", "n_samples", "names"),
    [
        ([5, 2], [10, 20], "--to_keep"),
        ([2, 5, 1], [10, 20, 30], "--to_keep"),
        ([11, 1], [10, 20], "--to_keep"),
        ([5, 1], [10], "--n_samples"),
        ([0, 1], [10, 20], "--to_keep"),
        ([5, 1], [0, 20], "--n_samples"),
        ([5, 1], [10, 1001], "--n_samples"),
        ([5, 1], [20, 10], "--n_samples"),
    ],
)
def test_bad_stages_name_the_flag(to_keep, n_samples, names):
    with pytest.raises(ValueError, match=names):
        schedule.check_stages(to_keep, n_samples, n_candidates=10, n_levels=1000)


def test_good_stages_pass():
    schedule.check_stages([10, 1], [10, 10], n_candidates=10, n_levels=1000)


def test_another_table_of_levels():
    """100 levels: the same shapes, ten times as coarse."""
    assert schedule.timestep_grid(4, 100) == [12, 37, 62, 87]
    assert schedule.interval_plan(25, 1, 100).t.tolist() == [12, 37, 62, 87]
    assert sorted(schedule.race_plan(4, 1, 100).t.tolist()) == [12, 37, 62, 87]
    with pytest.raises(ValueError, match=r"1\.\.100"):
        schedule.check_stages([1], [101], n_candidates=10, n_levels=100)


@pytest.mark.parametrize("shift", [0, schedule.CENTRED, 0.35, 0.85])
@pytest.mark.parametrize("n", [1, 2, 10, 100, 250, 1000])
def test_every_prefix_of_the_spread_order_covers_the_range_evenly(n, shift):
    order = schedule.spread_order(n, shift)
    assert sorted(order) == list(range(n))
    for length in range(4, n + 1):
        points = np.sort(order[:length]) / n
        gaps = np.diff(np.concatenate([[0], points, [1]]))
        assert gaps.max() <= 4.1 / length  # perfectly even would be 1 / length


def test_race_plan_is_the_published_grid_in_another_order():
    plan = schedule.race_plan(50, 2, 1000)
    assert sorted(set(plan.t.tolist())) == schedule.timestep_grid(50, 1000) and len(plan.t) == 100
    assert (plan.t[::2] == plan.t[1::2]).all() and plan.t[:6:2].tolist() == [330, 970, 10]
