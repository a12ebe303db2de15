"""The shipped set of caption pairs, by oracles of its own: words, colours in the pixels, where each item picture lies."""

import collections
import json
import re

import numpy as np
import pytest
from conftest import ROOT, load_script
from PIL import Image

from diffusion.datasets.scenes import HELD_OUT

SHIPPED = ROOT / "shipped" / "datasets" / "tiny_pairs"
RAW = ROOT / "shipped" / "datasets" / "FashionMNIST" / "raw"

EXAMPLES = [json.loads(line) for line in (SHIPPED / "examples.jsonl").read_text().splitlines()]
CLOTHES = np.frombuffer((RAW / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(-1, 28, 28)
LABELS = np.frombuffer((RAW / "t10k-labels-idx1-ubyte").read_bytes()[8:], np.uint8)
WORDS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
KINDS = ("Object", "Relation", "Both", "Unseen")
# which of red, green and blue a colour has at least half of, where its strongest has all
CHANNELS = {"red": "r", "green": "g", "blue": "b", "yellow": "rg", "purple": "rb", "cyan": "gb", None: "rgb"}
CAPTION = re.compile(r"a (?:(\w+) )?([\w-]+) (and|above|below|to the left of|to the right of) a (?:(\w+) )?([\w-]+)")


def pixels(example, k):
    image = Image.open(SHIPPED / "images" / f"{example[f'image_{k}']}.png")
    assert (image.size, image.mode) == ((64, 64), "RGB")
    return np.asarray(image)


def parse(caption):
    colour_1, noun_1, relation, colour_2, noun_2 = CAPTION.fullmatch(caption).groups()
    return relation, ((noun_1, colour_1), (noun_2, colour_2))


def template(number):
    return np.asarray(Image.fromarray(CLOTHES[number]).resize((32, 32), Image.Resampling.BICUBIC), float)


def find(image, number):
    """(x, y) of the test image in the picture, by normalised correlation of the brightest channel, and how well it fits."""
    wanted = template(number)
    windows = np.lib.stride_tricks.sliding_window_view(image.max(2).astype(np.float32), (32, 32))
    fit = np.tensordot(windows, wanted.astype(np.float32), 2)
    fit /= np.linalg.norm(wanted) * np.sqrt((windows**2).sum((2, 3))) + 1e-6
    y, x = np.unravel_index(fit.argmax(), fit.shape)
    return int(x), int(y), float(fit.max())


def colour_at(image, x, y):
    strength = image[y : y + 32, x : x + 32].reshape(-1, 3).astype(float).sum(0)
    return "".join(name for name, share in zip("rgb", strength / strength.max(), strict=True) if share > 0.5)


# ---------------------------------------------------------------- the captions


def test_layout_of_winoground_with_480_examples():
    assert [e["id"] for e in EXAMPLES] == list(range(480))
    assert collections.Counter(e["collapsed_tag"] for e in EXAMPLES) == dict.fromkeys(KINDS, 120)
    fields = {"id", "image_0", "image_1", "caption_0", "caption_1", "tag", "secondary_tag", "num_main_preds", "collapsed_tag"}
    assert all(fields <= set(e) for e in EXAMPLES)
    stems = sorted(e[f"image_{k}"] for e in EXAMPLES for k in (0, 1))
    assert stems == sorted(path.stem for path in (SHIPPED / "images").iterdir()) and len(set(stems)) == 960
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*.*")) < 4e6
    assert "Zalando" in (SHIPPED / "LICENSE").read_text()


def test_same_words_in_another_order():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(ROOT / "shipped" / "tiny-sd" / "tokenizer" / "tokenizer.json"))
    for e in EXAMPLES:
        first, second = (e[f"caption_{k}"].split() for k in (0, 1))
        assert first != second and sorted(first) == sorted(second)
        tokens = [sorted(tokenizer.encode(e[f"caption_{k}"]).ids) for k in (0, 1)]
        assert tokens[0] == tokens[1]


def test_what_each_kind_changes():
    for e in EXAMPLES:
        (said, (a, b)), (said_again, (c, d)) = parse(e["caption_0"]), parse(e["caption_1"])
        assert said == said_again and a[0] != b[0] and {a[0], b[0]} <= set(WORDS)
        assert (a[1] is None and b[1] is None) if e["collapsed_tag"] == "Object" else a[1] != b[1]
        if e["collapsed_tag"] == "Object":
            assert (c, d) == (b, a) and said != "and" and e["tag"] == f"Object swap, {said}"
        elif e["collapsed_tag"] == "Relation":
            assert (c, d) == ((a[0], b[1]), (b[0], a[1])) and said == "and" and e["tag"] == "Colour"
        elif e["collapsed_tag"] == "Unseen":
            assert (c, d) == ((a[0], b[1]), (b[0], a[1])) and said == "and" and e["tag"] == "Colour, unseen combinations"
        else:  # the nouns trade places and each gets the other's colour
            assert (c, d) == ((b[0], a[1]), (a[0], b[1])) and said != "and" and said in e["tag"]


def test_balanced_and_without_repetition():
    for kind in KINDS:
        chosen = [e for e in EXAMPLES if e["collapsed_tag"] == kind]
        layouts = collections.Counter(e["layout"] for e in chosen)
        assert layouts == {"above": 30, "below": 30, "to the left of": 30, "to the right of": 30}
        scenes = [parse(e["caption_0"])[1] for e in chosen]
        nouns = collections.Counter(noun for scene in scenes for noun, _ in scene)
        assert (min(nouns.values()), max(nouns.values())) == ((21, 25) if kind == "Unseen" else (24, 24))
        # items differ by nouns and layout, coloured ones by their colours too
        meanings = {(frozenset((e["caption_0"], e["caption_1"])), e["layout"]) for e in chosen}
        assert len(meanings) == 120
        worn = collections.Counter(colour for scene in scenes for _, colour in scene)
        low, high = {"Object": (240, 240), "Unseen": (35, 50)}.get(kind, (37, 41))
        assert low <= min(worn.values()) and max(worn.values()) <= high


def test_only_unseen_shows_what_training_left_out():
    """Both items of one of its images, none of the other's; and that image is the first one about as often as the second."""
    firsts = 0
    for e in EXAMPLES:
        unseen = [[(colour, noun) in HELD_OUT for noun, colour in parse(e[f"caption_{k}"])[1]] for k in (0, 1)]
        assert sorted(unseen) == ([[False] * 2, [True] * 2] if e["collapsed_tag"] == "Unseen" else [[False] * 2] * 2)
        firsts += unseen[0][0]
    assert 45 <= firsts <= 75


def test_kinds_take_turns():
    # any part is as even as the whole, as far as the kinds go
    assert [e["collapsed_tag"] for e in EXAMPLES] == [*KINDS] * 120


# ---------------------------------------------------------------- the images


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_image_k_shows_caption_k_and_not_the_other(kind):
    for e in (e for e in EXAMPLES if e["collapsed_tag"] == kind):
        numbers = {WORDS[LABELS[number]]: number for number in e["test_images"]}
        taken = []
        for k in (0, 1):
            image = pixels(e, k)
            relation, items = parse(e[f"caption_{k}"])
            assert set(numbers) == {noun for noun, _ in items}
            places = []
            for noun, colour in items:
                x, y, fit = find(image, numbers[noun])
                assert fit > 0.99, (e["id"], k, noun, fit)
                assert colour_at(image, x, y) == CHANNELS[colour], (e["id"], k, noun)
                places.append((x, y))
            (x1, y1), (x2, y2) = places
            beside, stacked = abs(x1 - x2) >= 32, abs(y1 - y2) >= 32
            assert beside != stacked and (stacked == (e["layout"] in ("above", "below")))
            wanted = {"to the left of": x1 < x2, "to the right of": x1 > x2, "above": y1 < y2, "below": y1 > y2}
            assert wanted[e["layout"] if relation == "and" else relation]
            taken.append(sorted(places))
        assert taken[0] == taken[1]  # the same two places, with the same two item pictures


# ---------------------------------------------------------------- where they come from


def test_each_test_image_is_used_once():
    numbers = [number for e in EXAMPLES for number in e["test_images"]]
    assert len(numbers) == len(set(numbers)) == 960 and max(numbers) < len(CLOTHES) == 1000
    assert len({CLOTHES[number].tobytes() for number in numbers}) == 960


def test_no_item_picture_is_a_training_image(full_set):
    training, _ = load_script("train_tiny").read_images(full_set, "train")
    seen = {image.tobytes() for image in training}
    assert len(training) == 60_000
    assert [n for e in EXAMPLES for n in e["test_images"] if CLOTHES[n].tobytes() in seen] == []


@pytest.mark.slow
def test_the_generator_writes_the_shipped_set(run_main, tmp_path):
    script = load_script("write_tiny_pairs")
    for name in ("one", "two"):
        code, out, _ = run_main(script.main, "--out", tmp_path / name)
        assert code == 0 and out == f"{tmp_path / name}: 480 examples\n"
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 961
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    assert (tmp_path / "one" / "examples.jsonl").read_bytes() == (SHIPPED / "examples.jsonl").read_bytes()
    for file in files[1:]:  # by pixels: another zlib may pack them otherwise
        ours, shipped = (np.asarray(Image.open(root / file)) for root in (tmp_path / "one", SHIPPED))
        assert np.array_equal(ours, shipped)


def test_another_seed_another_set():
    other = [line for line, _ in load_script("write_tiny_pairs").examples(1)]
    numbers = [number for e in other for number in e["test_images"]]
    assert len(other) == 480 and other != EXAMPLES and len(set(numbers)) == 960


def test_data_dir_reads_it():
    from diffusion.datasets import winoground

    ours, named = winoground.open_local(SHIPPED), winoground.open_pairs("tiny_pairs", None)
    assert len(ours) == 480 and ours.fingerprint() == named.fingerprint()
    assert ours[4][1].captions == (EXAMPLES[4]["caption_0"], EXAMPLES[4]["caption_1"])
