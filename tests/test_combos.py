"""Combinations of colour and item: what training leaves out, the test set made of them, and the table of a run on it."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script
from PIL import Image
from scipy import stats

import eval_prob_adaptive
from diffusion.datasets import open_dataset, shipped
from diffusion.datasets.scenes import COLOURS, HELD_OUT, NOUNS, tint
from diffusion.runs import run_folder
from diffusion.training import fashion_mnist

BRIGHT = {colour: tint(np.full((1, 1), 200, np.uint8), colour)[0, 0] / 200 for colour in COLOURS}


@pytest.fixture(scope="module")
def combos():
    return open_dataset("tiny_combos", "test", None, "nowhere")


def colours_in(picture) -> set:
    """Colour words of the bright pixels of a picture, by the nearest of the six directions; empty for a grey one."""
    pixels = np.asarray(picture, float).reshape(-1, 3)
    pixels = pixels[pixels.max(1) > 100]
    pixels /= pixels.max(1, keepdims=True)
    coloured = pixels[pixels.min(1) < 0.6]
    if len(coloured) < 0.5 * len(pixels):
        return set()
    wanted = np.stack([direction / direction.max() for direction in BRIGHT.values()])
    nearest = np.linalg.norm(coloured[:, None] - wanted, axis=2).argmin(1)
    shares = np.bincount(nearest, minlength=6) / len(coloured)
    return {colour for colour, share in zip(COLOURS, shares, strict=True) if share > 0.05}


# ---------------------------------------------------------------- what training leaves out


def test_the_held_out_pairs_are_those_that_seed_0_draws():
    rng = np.random.default_rng(0)
    nouns = [*NOUNS, *rng.choice(NOUNS, 2, replace=False)]
    drawn = set()
    while len(drawn) < 12:  # again when a pair came twice
        drawn = {(str(c), str(n)) for c, n in zip(rng.permutation(list(COLOURS) * 2), nouns, strict=True)}
    assert drawn == HELD_OUT
    for k, names in enumerate((COLOURS, NOUNS)):
        times = Counter(pair[k] for pair in HELD_OUT)
        assert set(times) == set(names) and min(times.values()) >= 1 and max(times.values()) <= 3


def training_images(n=400):
    """Test images will do: which of them are drawn in which colours depends on their labels only."""
    data = shipped.Clothes("test")
    return data.data[:n], data.targets[:n]


def test_no_caption_and_no_picture_of_a_training_has_a_held_out_pair():
    """Every colour that a picture shows is in its caption, and no caption names a pair that is held out."""
    seen = set()
    for picture, caption in fashion_mnist.captioned(3, *training_images(), HELD_OUT):
        said = re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(NOUNS)})", caption)
        assert not HELD_OUT & set(said), caption
        assert colours_in(picture) <= {colour for colour, _ in said}, caption
        seen.update(said)
    assert len(seen) == 48  # all others are there


def test_nor_has_the_vaes():
    images, labels = training_images(1000)
    rng = np.random.default_rng(0)
    items = [fashion_mnist.random_item(rng, images, labels, True, HELD_OUT) for _ in range(4000)]
    assert {(item.colour, item.noun) for item in items} == {(c, n) for c in COLOURS for n in NOUNS} - HELD_OUT
    script = load_script("train_tiny")
    assert script.fashion_mnist.random_item is fashion_mnist.random_item  # the only place where an item is coloured
    grey = fashion_mnist.random_item(rng, images, labels, False, HELD_OUT)
    assert grey.colour is None


def test_a_colour_of_the_oracle_is_seen():
    """The test above can fail: the colours of the pictures are found."""
    for colour in COLOURS:
        assert colours_in(Image.fromarray(tint(np.full((8, 8), 220, np.uint8), colour))) == {colour}
    assert colours_in(Image.fromarray(tint(np.full((8, 8), 220, np.uint8), None))) == set()


# ---------------------------------------------------------------- the validation images


def test_set_aside_takes_as_many_of_every_class_and_nothing_twice():
    labels = np.random.default_rng(1).integers(0, 10, 3000)
    training, validation = fashion_mnist.set_aside(labels, per_class=20)
    assert np.bincount(labels[validation]).tolist() == [20] * 10
    assert sorted([*training, *validation]) == list(range(3000))
    assert np.array_equal(fashion_mnist.set_aside(labels, per_class=20)[1], validation)
    with pytest.raises(ValueError, match="set aside for validation"):
        fashion_mnist.set_aside(labels, per_class=np.bincount(labels).min())


def test_the_shipped_validation_images_are_those_that_no_training_sees(full_set):
    images, labels = load_script("train_tiny").read_images(full_set, "train")
    training, validation = fashion_mnist.set_aside(labels)
    ours = open_dataset("fashion_mnist", "validation", None, "nowhere")
    assert np.array_equal(ours.raw.data, images[validation]) and np.array_equal(ours.labels, labels[validation])
    seen = {image.tobytes() for image in images[training]}
    twins = sum(image.tobytes() in seen for image in ours.raw.data)
    assert twins == 0, f"{twins} validation images are training images too"


def test_the_validation_split_is_named_and_other_images_than_the_test_split():
    test, validation = (open_dataset("fashion_mnist", split, None, "nowhere") for split in ("test", "validation"))
    assert len(test) == len(validation) == 1000 and test.fingerprint() != validation.fingerprint()
    assert "validation images" in validation.notice
    assert not {x.tobytes() for x in test.raw.data} & {x.tobytes() for x in validation.raw.data}


# ---------------------------------------------------------------- the set


def test_sixty_classes_with_enough_of_each(combos):
    assert combos.classes == [f"{colour} {noun}" for noun in NOUNS for colour in COLOURS]
    sizes = Counter(combos.labels.tolist())
    assert all(sizes[i] == (25 if tuple(name.split(" ")) in HELD_OUT else 10) for i, name in enumerate(combos.classes))
    assert len(combos) == 780


def test_pictures_are_the_classes_items_in_their_colours_and_no_item_comes_twice(combos):
    numbers = combos.raw.numbers
    assert len(set(numbers.tolist())) == 780
    for i in range(len(combos)):
        colour, noun = combos.classes[combos.labels[i]].split(" ")
        assert combos.raw.clothes.targets[numbers[i]] == NOUNS.index(noun)
        picture = combos.picture(i)
        grey = Image.fromarray(combos.raw.clothes.data[numbers[i]]).resize((64, 64), Image.Resampling.BICUBIC)
        brightest, grey = np.asarray(picture, float).max(2).ravel(), np.asarray(grey, float).ravel()
        assert picture.size == (64, 64) and np.corrcoef(brightest, grey)[0, 1] > 0.995
        assert colours_in(picture) in ({colour}, set())  # a dark item has no bright pixels


def test_a_beginning_has_its_share_of_held_out_classes(combos):
    held_out = np.array([tuple(name.split(" ")) in HELD_OUT for name in combos.classes])[combos.labels]
    for n in (60, 100, 200, 390):
        assert abs(held_out[:n].mean() - held_out.mean()) < 0.06


def test_the_same_set_everywhere(combos):
    """A recipe and a seed are the set only as long as they give the same images."""
    assert combos.fingerprint() == "cc3b98586c07dc09"


# ---------------------------------------------------------------- the table of a run


def write_run(folder, dataset, outcomes):
    folder.mkdir(parents=True)
    for i, (label, pred) in enumerate(outcomes):
        error = {"t": torch.tensor([500]), "pred_errors": torch.ones(1)}
        record = {"errors": {row: error for row in range(60)}, "pred": pred, "label": label}
        run_folder.save_record(folder / f"{i:03d}.pt", record)
    config = run_folder.describe("eval_prob_adaptive", run_folder.CLASSIFICATION, {"dataset": dataset}, {}, len(outcomes))
    run_folder.write_config(folder, config)
    return folder


def label(colour, noun):
    return shipped.PAIRS.index((colour, noun))


def test_what_is_wrong_is_told_apart(tmp_path, run_main):
    bag, boot = label("red", "bag"), label("red", "boot")  # held out, seen
    wrong = [label("blue", "bag"), boot, label("blue", "boot"), label("cyan", "dress")]
    one = write_run(tmp_path / "one", "tiny_combos", [(bag, bag), *((bag, pred) for pred in wrong), (boot, boot), (boot, bag)])
    code, out, err = run_main(load_script("print_combos").main, one)
    assert code == 0, err
    assert "held out: 20.00% (95% interval 3.6 to 62.4, n = 5); wrong: colour 1, item 1, both 2" in out
    assert "seen: 50.00% (95% interval 9.5 to 90.5, n = 2); wrong: colour 0, item 1, both 0" in out
    two = write_run(tmp_path / "two", "tiny_combos", [(bag, boot), *[(bag, bag)] * 4, (boot, boot)])
    code, out, err = run_main(load_script("print_combos").main, one, two)
    assert "held out: only the first is right on 1, only the second on 4 of 5, p = 0.38" in out
    assert "seen: only the first is right on 0, only the second on 0 of 1, p = 1" in out


def test_over_combinations_the_interval_is_student_s(tmp_path, run_main):
    """By scipy, of three held-out combinations with 0, 1 and 2 of 2 pictures right, against a run that has all right."""
    classes = [label("red", "bag"), label("red", "shirt"), label("blue", "shirt")]
    seen = label("red", "boot")
    outcomes = [(one, one if picture < right else seen) for right, one in enumerate(classes) for picture in range(2)]
    one = write_run(tmp_path / "one", "tiny_combos", outcomes)
    two = write_run(tmp_path / "two", "tiny_combos", [(one, one) for one, _ in outcomes])
    code, out, err = run_main(load_script("print_combos").main, one, two)
    low, high = stats.t.interval(0.95, 2, loc=0.5, scale=stats.sem([0, 0.5, 1]))
    assert code == 0 and f"over 3 combinations {100 * max(0, low):.1f} to {100 * min(1, high):.1f}; wrong" in out, err
    assert f"points, over 3 combinations {100 * max(-1, low - 1):.1f} to {100 * (high - 1):.1f}" in out
    assert "the first less the second -50.0 points" in out


def test_a_run_of_another_set_is_refused(tmp_path, run_main):
    other = write_run(tmp_path / "other", "pets", [(0, 0)])
    code, out, err = run_main(load_script("print_combos").main, other)
    assert (code, out) == (2, "") and "is a run on pets: give a run on tiny_combos" in err and err.count("\n") == 1
    (tmp_path / "empty").mkdir()
    assert run_main(load_script("print_combos").main, tmp_path / "empty")[0] == 2


@pytest.mark.slow
def test_a_whole_run_on_the_shipped_model(run_main):
    argv = ["--version", "tiny", "--dataset", "tiny_combos", "--imgs_to_eval", 8, "--to_keep", 1, "--n_samples", 2]
    code, out, err = run_main(eval_prob_adaptive.main, *argv)
    assert code == 0 and "60, such as" in out and "coloured items" in out, err
    (run,) = Path("data/tiny_combos").iterdir()
    code, out, err = run_main(load_script("print_combos").main, run)
    assert code == 0 and out.count("n = ") == 2, err
