"""The staged elimination on tables of numbers."""

import numpy as np
import pytest
from conftest import table

from diffusion.strategy.elimination import drive, run_stages, survivors
from diffusion.strategy.schedule import make_plan

STAGES = (slice(0, 2), slice(2, 4))


def test_hand_table():
    answer, requests = table([[3, 3, 9, 9], [1, 1, 5, 5], [2, 2, 1, 1]])
    errors, winner = drive(run_stages(3, STAGES, [2, 1]), answer)
    assert winner == 2  # means of all four: row 1 has 3, row 2 has 1.5
    assert requests == [([0, 1, 2], STAGES[0]), ([1, 2], STAGES[1])]
    assert {row: values.tolist() for row, values in errors.items()} == {0: [3, 3], 1: [1, 1, 5, 5], 2: [2, 2, 1, 1]}


def test_the_score_is_the_mean_of_all_errors_so_far():
    answer, _ = table([[0, 0, 5, 5], [2, 2, 2, 2]])
    assert drive(run_stages(2, STAGES, [2, 1]), answer)[1] == 1
    answer, _ = table([[0, 0, 3, 3], [2, 2, 2, 2]])
    assert drive(run_stages(2, STAGES, [2, 1]), answer)[1] == 0  # the last stage alone would say 1


def test_ties_go_to_the_lower_row():
    answer, requests = table([[5] * 4, [1] * 4, [1] * 4, [1] * 4])
    assert drive(run_stages(4, STAGES, [2, 1]), answer)[1] == 1
    assert requests[1][0] == [1, 2]
    assert survivors({7: 1.0, 3: 1.0, 5: 0.5}, 2) == [3, 5]


def test_means_of_many_float32_are_taken_in_double():
    values = np.full((2, 1000), 0.1, np.float32)
    values[1, 0] = np.nextafter(np.float32(0.1), np.float32(0))
    assert drive(run_stages(2, (slice(0, 1000),), [1]), table(values)[0])[1] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_error_that_is_not_finite_is_never_predicted(bad):
    answer, _ = table([[1, 1, 1, 1], [bad, 0, 0, 0]])
    with pytest.raises(FloatingPointError, match="1 of 4"):
        drive(run_stages(2, STAGES, [1, 1]), answer)


@pytest.mark.parametrize("n_samples", [[50, 50], [4, 5, 6, 8]])
def test_a_stage_that_adds_no_timestep_eliminates_on_what_is_known(n_samples):
    plan = make_plan(n_samples, 1, 1000)
    errors = np.arange(4)[:, None] + np.zeros((4, len(plan.t)), np.float32)

    answer, requests = table(errors)
    kept, winner = drive(run_stages(4, plan.stages, [3, 2, 2, 1][-len(n_samples) :]), answer)
    assert winner == 0 and len(kept[0]) == len(plan.t)
    assert all(pairs.stop > pairs.start for _, pairs in requests)  # a network is never called for nothing
