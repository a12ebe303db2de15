"""Accuracies and intervals against scipy and hand counts."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest

from diffusion import metrics


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (91, 100), (1, 1000), (500, 1000)])
def test_wilson_against_scipy(right, n):
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert metrics.wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_top1_counts():
    estimate = metrics.top1([1, 2, 3, 4], [1, 2, 0, 4])
    assert (estimate.value, estimate.n) == (0.75, 4)
    assert estimate.low < 0.75 < estimate.high
    assert str(estimate).startswith("75.00% (95% interval 30.1 to 95.4, n = 4)")


def test_mean_per_class_weighs_classes_equally():
    labels = [0] * 8 + [1] * 2
    preds = [0] * 8 + [0, 1]
    assert metrics.mean_per_class(preds, labels).value == pytest.approx((1 + 0.5) / 2)


def test_mean_per_class_of_equal_classes_is_top1_with_a_similar_interval():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 100)
    preds = np.where(rng.random(1000) < 0.9, labels, (labels + 1) % 10)
    a, b = metrics.top1(preds, labels), metrics.mean_per_class(preds, labels)
    assert b.value == pytest.approx(a.value)
    assert (b.high - b.low) == pytest.approx(a.high - a.low, rel=0.1)


def test_mean_per_class_interval_covers_its_target():
    """Classes of unequal size and difficulty: about 95 of 100 intervals hold the true mean."""
    rng = np.random.default_rng(1)
    sizes, truth = np.array([200, 50, 20, 10]), np.array([0.9, 0.7, 0.5, 0.95])
    labels = np.repeat(np.arange(4), sizes)
    estimates = [
        metrics.mean_per_class(np.where(rng.random(len(labels)) < truth[labels], labels, -1), labels) for _ in range(400)
    ]
    covered = np.mean([e.low <= truth.mean() <= e.high for e in estimates])
    assert 0.92 <= covered <= 0.99


def test_wald_is_the_published_half_width():
    assert metrics.wald(0.25, 8) == pytest.approx(1.96 * (0.25 * 0.75 / 8) ** 0.5)
    assert metrics.wald(0.0, 3) == metrics.wald(1.0, 3) == 0
    assert f"{100 * metrics.wald(0.25, 8):.1f}" == "30.0"  # as a published log has it


def test_proportion_is_a_mean_with_wilson():
    estimate = metrics.proportion([True, False, 1, 0])
    expected = binomtest(2, 4).proportion_ci(0.95, method="wilson")
    assert (estimate.value, estimate.n) == (0.5, 4)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


# (c0_i0, c0_i1, c1_i0, c1_i1) -> text, image, group
PAIRS = [
    ((1, 0, 0, 1), (True, True, True)),
    ((0, 1, 1, 0), (False, False, False)),
    ((3, 0, 2, 1), (True, False, False)),  # caption 1 likes image 0 better
    ((3, 2, 0, 1), (False, True, False)),  # image 1 likes caption 0 better
    ((1, 0, 0, 0.5), (True, True, True)),
    ((1, 0, 1, 2), (False, True, False)),  # a tie between the captions of image 0
    ((1, 1, 0, 2), (True, False, False)),  # a tie between the images of caption 0
    ((1, 1, 1, 1), (False, False, False)),
    ((-1.0, -2.0, -2.0, -1.0), (True, True, True)),
]


@pytest.mark.parametrize(("scores", "right"), PAIRS)
def test_pair_correct_by_hand(scores, right):
    found = metrics.pair_correct(metrics.PairScores(*scores))
    assert found == right and (found.text, found.image, found.group) == right


def test_pairs_of_many_examples_at_once():
    columns = np.array([scores for scores, _ in PAIRS], float).T
    np.testing.assert_array_equal(np.array(metrics.pair_correct(columns)).T, [right for _, right in PAIRS])


def test_chance_of_the_published_scores():
    right = metrics.pair_correct(np.random.default_rng(0).random((4, 200_000)))
    assert [round(float(np.mean(part)), 2) for part in right] == [0.25, 0.25, 0.17]
    right = metrics.pair_correct(metrics.normalise_pairs(np.random.default_rng(0).random((4, 200_000))))
    assert [round(float(np.mean(part)), 2) for part in right] == [0.25, 0.5, 0.25]


def test_normalised_is_the_score_less_its_image_s_mean():
    scores = np.random.default_rng(1).normal(size=(2, 2, 1000))  # [caption, image, example]
    expected = scores - scores.mean(0, keepdims=True)
    found = metrics.normalise_pairs(scores.reshape(4, -1))
    np.testing.assert_allclose(np.array(found), expected.reshape(4, -1), atol=1e-12)
    plain, fair = metrics.pair_correct(scores.reshape(4, -1)), metrics.pair_correct(found)
    np.testing.assert_array_equal(plain.text, fair.text)
    np.testing.assert_array_equal(fair.group, fair.text)
    shifted = scores + np.array([5.0, -3.0])[None, :, None]  # image 0 easier under any caption
    np.testing.assert_array_equal(metrics.pair_correct(metrics.normalise_pairs(shifted.reshape(4, -1))).image, fair.image)


def exact_p(first, second):
    """Two-sided p value of a fair coin's throws in integers: twice the smaller tail, at most 1."""
    n = first + second
    tail = sum(math.comb(n, k) for k in range(min(first, second) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**n)))


@pytest.mark.parametrize(
    ("both", "first", "second", "none"),
    [(3, 0, 0, 2), (0, 1, 0, 0), (5, 6, 1, 4), (9, 3, 3, 0), (9, 4, 60, 5), (0, 3, 0, 0), (2, 0, 40, 1), (7, 300, 301, 7)],
)
def test_mcnemar_against_integers(both, first, second, none):
    a = [True] * (both + first) + [False] * (second + none)
    b = [True] * both + [False] * first + [True] * second + [False] * none
    found, mirrored = metrics.mcnemar(a, b), metrics.mcnemar(b, a)
    assert (found.only_first, found.only_second) == (first, second) == (mirrored.only_second, mirrored.only_first)
    assert found.p_value == pytest.approx(exact_p(first, second), rel=1e-12) == mirrored.p_value


def test_mcnemar_for_every_split_and_for_thousands():
    for n in (1, 2, 7, 30):
        for first in range(n + 1):
            found = metrics.mcnemar([True] * first + [False] * (n - first), [False] * first + [True] * (n - first))
            assert found.p_value == pytest.approx(exact_p(first, n - first), rel=1e-12)
    many = metrics.mcnemar([True] * 1500 + [False] * 1000, [False] * 1500 + [True] * 1000)
    assert many.p_value == pytest.approx(exact_p(1500, 1000), rel=1e-9) and 0 < many.p_value < 1e-20
    with pytest.raises(ValueError, match="one length"):
        metrics.mcnemar([True], [True, False])


def pair(both, first, second, none):
    return [True] * (both + first) + [False] * (second + none), [True] * both + [False] * first + [True] * second + [False] * none


def test_paired_difference_against_newcombe_s_table():
    found = metrics.paired_difference(*pair(36, 12, 2, 0))  # Newcombe 1998, method 10
    assert (round(found.value, 4), round(found.low, 4), round(found.high, 4), found.n) == (0.2, 0.0569, 0.3404, 50)


@pytest.mark.parametrize("shares", [(0.8, 0.08, 0.04, 0.08), (0.6, 0.1, 0.2, 0.1), (0.95, 0.02, 0.01, 0.02)])
def test_paired_difference_covers_the_truth(shares):
    rng, covered = np.random.default_rng(0), 0
    for _ in range(500):
        found = metrics.paired_difference(*pair(*rng.multinomial(150, shares)))
        covered += found.low <= shares[1] - shares[2] <= found.high
    assert 0.93 <= covered / 500 <= 0.99


def test_paired_difference_at_its_borders():
    same = metrics.paired_difference(*pair(90, 0, 0, 10))
    assert same.value == 0 and same.low == pytest.approx(-same.high) and 0 < same.high < 0.05
    assert metrics.paired_difference([True], [False]).high == 1.0 and metrics.paired_difference([1, 1], [1, 1]).value == 0
    with pytest.raises(ValueError, match="one length"):
        metrics.paired_difference([True], [True, False])
