"""Every pair of colour and item left out once: the folds, their statistics, and the two commands around the trainings."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import load_script

from diffusion.datasets import open_dataset
from diffusion.datasets.scenes import COLOURS, HELD_OUT, NOUNS, folds
from diffusion.datasets.shipped import PAIRS
from diffusion.metrics.folds import draw_folds, fold_scores
from diffusion.training import two_heads

LABELS = open_dataset("tiny_combos", "folds", None, "nowhere").labels


def test_the_folds_share_the_pairs_evenly():
    parts = folds()
    assert parts[0] == HELD_OUT and sorted(pair for part in parts for pair in part) == sorted(PAIRS)
    for part in parts:
        assert set(Counter(colour for colour, _ in part).values()) == {2}
        assert set(Counter(noun for _, noun in part).values()) == {1, 2} and len(part) == 12


def test_the_test_pictures_are_as_many_of_every_pair():
    assert np.bincount(LABELS).tolist() == [16] * len(PAIRS)


def test_the_sample_comes_first_and_weights_are_shares():
    held_out = np.array([[True, False, False, False], [False, True, True, False]])
    accuracies = np.array([[0.5, 1, 0.6, 0.8], [0.9, 0.1, 0.3, 0.7]])
    unseen, seen = draw_folds(held_out, draws=50)
    assert unseen.shape == (51, 2, 4) and np.allclose(unseen.sum((1, 2)), 1) and np.allclose(seen.sum((1, 2)), 1)
    assert not unseen[:, ~held_out].any() and not seen[:, held_out].any()
    scores = fold_scores(accuracies, unseen, seen)
    assert scores.unseen.value == pytest.approx((0.5 + 0.2) / 2)  # each training counts alike
    assert scores.seen.value == pytest.approx((0.8 + 0.8) / 2)
    assert scores.harmonic.value == pytest.approx(2 * 0.35 * 0.8 / 1.15)


def test_the_interval_is_that_of_means_of_trainings():
    """Where all classes of a training are alike, the bootstrap's variance is that of the mean of F draws from F values."""
    levels = np.array([0.2, 0.4, 0.5, 0.7, 0.9])
    held_out = np.arange(60)[None] // 12 == np.arange(5)[:, None]
    unseen, seen = draw_folds(held_out)
    means = np.einsum("dfc,fc->d", unseen, np.repeat(levels[:, None], 60, 1))[1:]
    assert means.mean() == pytest.approx(levels.mean(), abs=0.005)
    assert means.var() == pytest.approx(levels.var() / 5, rel=0.05)
    flat = fold_scores(np.full((5, 60), 0.75), unseen, seen)
    assert (flat.unseen.low, flat.seen.high, flat.harmonic.value) == pytest.approx((0.75, 0.75, 0.75))


def predict(kind, fold, of_unseen):
    """The predictions of a model that is right on what it saw."""
    unseen = np.array([PAIRS[label] in folds()[fold] for label in LABELS])
    preds = np.where(unseen, [of_unseen(int(label)) for label in LABELS], LABELS).tolist()
    path = Path("folds/predictions") / f"{kind}_{fold}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"kind": kind, "fold": fold, "preds": preds}))


def test_the_table_tells_kinds_apart(run_main):
    for fold in range(3):
        predict("unet", fold, lambda label: label)
        predict("heads", fold, lambda label: (label + 1) % 60 if label % 6 < 5 else label)  # the next colour, or right
    code, out, err = run_main(load_script("print_folds").main, "folds")
    assert code == 0, err
    rows = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "100.0 (100.0 to 100.0)" in rows["unet"] and rows["unet"].split()[-3:] == ["0", "0", "0"]
    right = sum(pair[0] == "cyan" for fold in range(3) for pair in folds()[fold]) / 36
    assert f"{100 * right:.1f}" in rows["heads"] and rows["heads"].split()[-3:] == [str(16 * 30), "0", "0"]
    assert f"{100 * (right - 1):+.1f}" in rows["heads less unet"] and rows["heads less unet"].endswith("+0.0 (+0.0 to +0.0)")


def test_what_is_no_folder_of_predictions_is_refused(run_main):
    print_folds = load_script("print_folds").main
    code, _, err = run_main(print_folds, "folds")
    assert code == 2 and "no predictions/*.json" in err and err.count("\n") == 1
    predict("unet", 0, lambda label: label)
    code, _, err = run_main(print_folds, "folds")
    assert code == 2 and "only 1 folds are complete" in err
    Path("folds/predictions/flow_0.json").write_text('{"kind": "flow", "fold": 0, "preds": [1]}')
    code, _, err = run_main(print_folds, "folds")
    assert code == 2 and "flow_0.json" in err


def test_a_dry_run_says_what_is_left(run_main):
    script = load_script("train_folds")
    code, out, _ = run_main(script.main, "--dry_run", "--kinds", "heads", "unet")
    assert code == 0 and "10 of 10 trainings" in out
    predict("unet", 0, lambda label: label)
    code, out, _ = run_main(script.main, "--dry_run", "--kinds", "heads", "unet")
    assert "9 of 10 trainings" in out and "fold 0: unet" not in out and "fold 0: heads" in out
    code, _, err = run_main(script.main, "--data_dir", "nowhere")
    assert code == 2 and "--data_dir nowhere" in err and err.count("\n") == 1


def test_captions_become_shares_of_items_and_colours():
    targets = dict(zip([*NOUNS, *COLOURS, None], two_heads.targets("a red bag above a blue bag"), strict=True))
    assert {name for name, share in targets.items() if share} == {"bag", "red", "blue"}
    assert (targets["bag"], targets["red"], targets["blue"]) == (1, 0.5, 0.5)
    grey = two_heads.targets("a photo of a t-shirt, a type of clothing.")
    assert grey == [1.0, *[0.0] * 15, 1.0]
