"""From Python: `diffusion.classify` gives what the commands record, and touches nothing but its arguments."""

import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY_SD20
from PIL import Image

import eval_prob_adaptive
import eval_prob_dit
from diffusion import classify
from diffusion.classify import Result
from diffusion.datasets import load_prompts, open_dataset
from diffusion.metrics.calibration import Fit
from diffusion.strategy import Grid, Race, Stages

CLOTHES = ["--dataset", "fashion_mnist", "--imgs_to_eval", 2]


@pytest.fixture(scope="module")
def clothes():
    return open_dataset("fashion_mnist", "test", None, "nowhere")


def record(folder, index):
    return torch.load(next(Path(folder).glob(f"*{index}.pt")), weights_only=True)


def assert_is_record(result, saved):
    assert result.label == saved["pred"] and result.ranking[0] == saved["pred"]
    for row, candidate in saved["errors"].items():
        assert torch.equal(torch.from_numpy(result.errors[row]), candidate["pred_errors"])
        assert result.t[: len(candidate["t"])].tolist() == candidate["t"].tolist()


@pytest.mark.parametrize("strategy", [Stages((3, 1), (2, 6)), Race(0.2, 3, 2, 8)])
def test_a_result_is_the_commands_record(strategy, clothes, run_main):
    argv = ["--strategy", strategy.NAME, *(word for name, value in vars(strategy).items() if name != "n_trials"
            for word in (f"--{name}", *(value if isinstance(value, tuple) else [value])))]  # fmt: skip
    model = ["--model_path", TINY_SD20, "--img_size", 64, "--loss", "l1", "--seed", 3]
    code, _, err = run_main(eval_prob_adaptive.main, *CLOTHES, *model, *argv)
    assert code == 0, err
    files = sorted(Path("data").rglob("*.pt"))
    prompts = load_prompts("fashion_mnist", clothes, None, None).prompts
    classifier = classify.text_to_image(
        "2-0", prompts, model_path=str(TINY_SD20), img_size=64, strategy=strategy, loss="l1", seed=3
    )
    for file in files:
        index = int(file.stem)
        assert_is_record(classifier(clothes.picture(index), index), torch.load(file, weights_only=True))


def test_a_class_conditional_result_is_the_commands_record(clothes, tiny_dit, run_main):
    stages = ["--to_keep", 2, 1, "--n_samples", 2, 4, "--loss", "kl"]
    code, _, err = run_main(eval_prob_dit.main, *CLOTHES, *tiny_dit, *stages)
    assert code == 0, err
    paths = {"model_path": str(tiny_dit[1]), "vae_path": str(tiny_dit[3])}
    classifier = classify.class_conditional("DiT-XL/2", loss="kl", strategy=Stages((2, 1), (2, 4)), **paths)
    saved = record("data/fashion_mnist/DiT64x64_10classes_1trials_2_1keep_2_4samples_kl", 1)
    # the command's images share the noise of index 0
    assert_is_record(classifier(clothes.picture(1), 0), saved)


def test_it_prints_nothing_writes_nothing_and_reads_no_environment(clothes, capsys, monkeypatch):
    class NoEnvironment(dict):
        def __getitem__(self, name):
            assert name not in ("LOG_DIR", "DATASET_ROOT", "HF_TOKEN"), name
            return super().__getitem__(name)

        get = __getitem__

    classifier = classify.text_to_image("tiny", ["a photo of a bag.", "a photo of a boot."], strategy=Race(max_samples=20))
    monkeypatch.setattr(os, "environ", NoEnvironment(os.environ))
    classifier(clothes.picture(0))
    out = capsys.readouterr()
    assert out.out == "" and not list(Path().iterdir())


def test_pictures_of_any_mode_and_size(clothes):
    classifier = classify.text_to_image("tiny", ["a photo of a bag.", "a photo of a boot."], strategy=Stages((1,), (2,)))
    for mode, size in (("L", (28, 28)), ("RGBA", (90, 70)), ("P", (64, 200)), ("RGB", (300, 300))):
        picture = clothes.picture(0).resize(size).convert("RGB").convert(mode)
        result = classifier(picture)
        assert result.evaluations == 4 and np.isfinite(result.means).all()


def test_the_readme_s_lines(monkeypatch, capsys):
    """Word for word, from the repository's root."""
    monkeypatch.chdir(ROOT)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert len(code.splitlines()) <= 12
    exec(compile(code, "README.md", "exec"), {})
    ranking, evaluations, label = capsys.readouterr().out.splitlines()
    assert f"# {ranking}:" in code and f"# {evaluations} network" in code and f"# {label}\n" in code


# ---------------------------------------------------------------- a result


def by_hand(**changes):
    """Rows 0 and 1 are two prompts of class 7; row 2, dropped first, is class 5; row 3, dropped later, is class 9."""
    errors = {0: [2, 2, 2, 2], 1: [1, 1, 1, 1], 2: [0.5], 3: [3, 3]}
    errors = {row: np.array(e, np.float32) for row, e in errors.items()}
    return Result(**{"class_of": [7, 7, 5, 9], "winner": 1, "errors": errors, "t": np.arange(4)} | changes)


def test_ranking_evaluations_and_means_by_hand():
    result = by_hand()
    assert result.ranking == [7, 9, 5] and result.label == 7 and result.evaluations == 11
    assert result.means.tolist() == [2, 1, 0.5, 3]


def test_names_line_and_picture_by_hand():
    """Rows 0 and 1 are of one label; row 2 was dropped after two of four pairs, whose levels are 30 10 20 10."""
    errors = {0: [4, 2, 3, 4], 1: [1, 2, 3, 2], 2: [5, 3]}
    errors = {row: np.array(values, np.float32) for row, values in errors.items()}
    result = Result([7, 7, 9], 1, errors, np.array([30, 10, 20, 10]), {0: 1, 2: 0}, names={7: "bag"})
    assert result.top(3) == [("bag", 2.0), ("9", 4.0)]
    assert repr(result) == "<Result: 'bag' before '9', mean error 2.000000, 10 network evaluations>"
    thin, _ = [line for line in result.plot().lines if len(set(line.get_ydata())) > 1]
    assert thin.get_xdata().tolist() == [10, 30] and thin.get_ydata().tolist() == [1, 4]


def test_probabilities_are_a_softmax_of_the_gaps():
    """Without weight for standard errors: exp(-gap / temperature) of each class's best row, on the pairs that both saw."""
    result = by_hand(errors={row: np.array(e, np.float32) for row, e in enumerate([[2, 3], [1, 2], [4, 5], [1.5, 2.5]])})
    found = result.probabilities(Fit(temperature=2.0, weight=0.0, n=100, about={}))
    expected = {5: np.exp(-3 / 2), 7: 1.0, 9: np.exp(-0.5 / 2)}
    assert list(found) == [5, 7, 9]
    for label, weight in expected.items():
        assert found[label] == pytest.approx(weight / sum(expected.values()))


def test_threads_share_a_classifier(clothes, monkeypatch):
    """Each block of each thread has its own size: a second thread evaluates one while the first is inside another."""
    classifier = classify.text_to_image("tiny", ["a bag", "a boot", "a coat"], strategy=Grid(500), device="cpu", batch_size=6)
    [image, other], found, calls = (clothes.picture(i) for i in range(2)), [], []
    alone = classifier(image).means, classifier(other).means
    attention = F.scaled_dot_product_attention

    def interrupted(*inputs, **named):
        calls.append(threading.current_thread())
        if calls[-1] is threading.main_thread() and len(found) < 6:  # in the VAE, and then in the U-Net
            thread = threading.Thread(target=lambda: found.append(classifier(other).means))
            thread.start()
            thread.join()
        return attention(*inputs, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", interrupted)
    assert np.array_equal(classifier(image).means, alone[0]) and np.array_equal(found, [alone[1]] * 6)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"labels": [0]}, "2 candidates and 1 labels"),
        ({"strategy": Stages((3, 1), (2, 4))}, "2 candidates"),
        ({"strategy": Race(max_samples=1001)}, "1000"),
        ({"strategy": Grid(3)}, "--t_interval 3"),
        ({"img_size": 65}, "multiple of 16"),
        ({"loss": "l3"}, "l3"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_weights_are_read(arguments, told, monkeypatch):
    from diffusion.models.families.sd import StableDiffusion

    monkeypatch.setattr(StableDiffusion, "load", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=told):
        classify.text_to_image("tiny", ["a", "b"], **arguments)


NUMBERS = [0.5, -1, True, "3", None, float("nan")]


@pytest.mark.parametrize(
    "arguments",
    [
        *({"prompts": p} for p in (None, "a bag", [], ["a", None], ["a", 3], ["a", b"b"], ["a", " "])),
        *({"labels": [0, n]} for n in NUMBERS),
        *({"labels": labels} for labels in ("01", [], [0])),
        *({name: n} for name in ("seed", "batch_size", "img_size") for n in NUMBERS if not (n is None and name == "img_size")),
        {"seed": 2**64}, {"img_size": 10**9}, {"interpolation": "nearest"}, {"loss": None}, {"guidance": float("nan")},
        {"crop_errors": -1}, {"crop_errors": 0.5}, {"noise": "pink"}, {"noise": None}, {"error_space": "z"}, {"levels": "odd"},
        {"text_encoders": "none"}, {"dtype": "float8"}, {"version": "9-9"},
    ],
)  # fmt: skip
def test_what_a_command_would_refuse_python_refuses_too(arguments):
    given = {"version": "tiny", "prompts": ["a bag", "a boot"]} | arguments
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        classify.text_to_image(given.pop("version"), given.pop("prompts"), device="cpu", **given)


@pytest.mark.parametrize("classes", [[0, 10], [0, -1], [0, 0.5], [0, True], [0, None], ["0", "1"], [3, 3], "01", []])
def test_classes_that_the_model_lacks(classes):
    """Of ten; the eleventh is the one that stands for none, and could win."""
    with pytest.raises(ValueError, match=r"^classes"):
        classify.class_conditional("tiny", classes, device="cpu")


def test_a_picture_may_be_a_tensor_too(clothes):
    classifier = classify.text_to_image("tiny", ["a photo of a bag.", "a photo of a boot."], strategy=Stages((1,), (2,)))
    picture = Image.fromarray(np.zeros((28, 28), np.uint8))
    one, other = classifier(picture), classifier(classifier.transform(picture))
    assert all(np.array_equal(one.errors[row], other.errors[row]) for row in (0, 1))
