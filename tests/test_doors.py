"""What a stranger adds: a strategy, a score, a dataset, a kind of model with another law of noise, each in one place.

Every one is written here as it would be in a file or a row of its own, and then goes through whole commands.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import TINY_SD20, load_script
from PIL import Image

import eval_prob_adaptive
import eval_prob_dit
import run_winoground
from diffusion import datasets, models, strategy
from diffusion.datasets import DatasetSpec
from diffusion.kernel import scores
from diffusion.models.denoiser import Conditions, Denoiser, Levels
from diffusion.runs import run_folder
from diffusion.strategy import Outcome, Strategy, elimination, option, schedule

SD = ["--dataset", "fashion_mnist", "--model_path", TINY_SD20, "--img_size", 64, "--imgs_to_eval", 3]


# ---------------------------------------------------------------- a strategy


@dataclass(frozen=True)
class RandomHalving(Strategy):
    """Half of the candidates, drawn at random, is dropped after every `step` timesteps: a baseline that looks at no error."""

    step: int = option(2, "timesteps in a round", least=1)
    steps: int = option(4, "rounds", least=1)
    goes: str = option("random", "which half is dropped", type=str, choices=("random", "last"))

    NAME: ClassVar = "halving"

    def plan(self, n_levels):
        return schedule.race_plan(self.step * self.steps, 1, n_levels)

    def eliminate(self, class_of, plan):
        rng, alive, fell = np.random.default_rng(0), list(range(len(class_of))), {}
        errors = {row: np.empty(0, np.float32) for row in alive}
        for number in range(self.steps):
            elimination.append_errors(errors, alive, (yield alive, slice(number * self.step, (number + 1) * self.step)))
            losers = (rng.permutation(alive) if self.goes == "random" else alive[::-1])[: len(alive) // 2]
            losers = list(map(int, losers))
            fell |= dict.fromkeys(losers, number + 1)
            alive = [row for row in alive if row not in losers]
        return Outcome(errors, elimination.survivors({row: errors[row].mean() for row in alive}, 1)[0], fell)

    def folder(self):
        return f"halving_{self.step}x{self.steps}"

    @classmethod
    def from_text(cls, text, grid):
        """`2 4`: timesteps in a round, rounds."""
        return cls(*map(int, text.split()))


@pytest.fixture
def halving(monkeypatch):
    monkeypatch.setitem(strategy.STRATEGIES, "halving", RandomHalving)


def test_a_strategy(halving, run_main, tiny_dit):
    argv = ["--strategy", "halving", "--step", 3, "--loss", "l2"]
    code, out, err = run_main(eval_prob_adaptive.main, *SD, *argv)
    assert code == 0 and "Price: 120 network evaluations per image" in out and "Cost: 60 evaluations per image" in out, err
    folder = Path("data/fashion_mnist/v2-0_halving_3x4_64")  # 10, 5, 3 and 2 candidates see 3, 6, 9 and 12 pairs
    saved = torch.load(next(folder.glob("*.pt")), weights_only=True)
    assert sorted(len(c["t"]) for c in saved["errors"].values()) == [3] * 5 + [6] * 2 + [9] + [12] * 2
    assert saved["evaluations"] == 60 and len(saved["fell"]) == 9 and saved["pred"] not in saved["fell"]
    config = json.loads((folder / "config.json").read_text())
    assert config["identity"]["strategy"] == "halving" and config["identity"]["step"] == 3
    assert run_main(eval_prob_adaptive.main, *SD, *argv)[1].count("0 to do here, 3 of 3 done before") == 1
    code, _, err = run_main(eval_prob_adaptive.main, *SD, *argv, "--goes", "first")
    assert code == 2 and "argument --goes: invalid choice: 'first'" in err and err.count("\n") == 1
    code, out, err = run_main(eval_prob_adaptive.main, *SD, "--step", 3)
    assert code == 2 and "--step is for --strategy halving" in err
    code, out, err = run_main(eval_prob_dit.main, *tiny_dit, "--dataset", "fashion_mnist", "--imgs_to_eval", 1, *argv)
    assert code == 0 and Path("data/fashion_mnist/DiT64x64_10classes_halving_3x4").is_dir(), err


def test_a_strategy_is_read_back_and_replayed(halving, run_main):
    run_main(eval_prob_adaptive.main, *SD, "--strategy", "halving", "--loss", "l2")
    folder = "data/fashion_mnist/v2-0_halving_2x4_64"
    code, _, err = run_main(load_script("report").main, folder, "-o", "report", "--format", "json")
    assert code == 0, err
    report = json.loads(Path("report/report.json").read_text())["runs"][0]
    assert report["kept"] == "halving" and [p["pairs"] for p in report["curve"]] == [1, 2, 5, 8]
    code, _, err = run_main(load_script("replay").main, folder)
    assert code == 2 and "--to_keep 1" in err  # it dropped candidates
    run_main(eval_prob_adaptive.main, *SD, "--to_keep", 1, "--n_samples", 8)
    code, out, err = run_main(load_script("replay").main, "data/fashion_mnist/v2-0_1trials_1keep_8samples_64", "--halving", "2 4")
    assert code == 0 and "halving 2 4" in out and "40.0" in out, err  # 10, 5, 3 and 2 candidates twice, of 80


# ---------------------------------------------------------------- a score


def cosine(target, output, *_):
    """One less the cosine between prediction and truth -> [B]."""
    return 1 - torch.nn.functional.cosine_similarity(output.flatten(1), target.flatten(1))


def test_a_score(run_main, monkeypatch):
    monkeypatch.setitem(scores.SCORES, "cosine", cosine)
    code, _, err = run_main(eval_prob_adaptive.main, *SD, "--loss", "cosine", "--to_keep", 1, "--n_samples", 4)
    assert code == 0, err
    saved = torch.load(next(Path("data/fashion_mnist/v2-0_1trials_1keep_4samples_cosine_64").glob("*.pt")), weights_only=True)
    means = [float(c["pred_errors"].mean()) for c in saved["errors"].values()]
    assert 0 < min(means) < max(means) < 2 and saved["pred"] == int(np.argmin(means))


# ---------------------------------------------------------------- a dataset


class Colours:
    """Pictures of one colour each; classes are the colours."""

    classes: ClassVar = ["red", "green", "blue"]
    targets: ClassVar = [0, 1, 2, 1]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return Image.new("RGB", (40, 30), self.classes[self.targets[index]]), self.targets[index]


@pytest.fixture
def colours(monkeypatch):
    spec = DatasetSpec(lambda root, split, download: Colours(), ("test",), "nothing", None, None, False)
    monkeypatch.setitem(datasets.DATASETS, "colours", spec)


def test_a_dataset(colours, run_main):
    argv = ["--dataset", "colours", "--model_path", TINY_SD20, "--img_size", 64, "--to_keep", 1, "--n_samples", 2]
    code, out, err = run_main(eval_prob_adaptive.main, *argv, "--template", "a {} wall")
    assert code == 0 and '3, such as "a red wall"' in out and "n = 4" in out, err


# ---------------------------------------------------------------- a kind of model with another law of noise

RGB = {"red": (1, -1, -1), "green": (-1, 0, -1), "blue": (-1, -1, 1)}


@dataclass(frozen=True)
class ColourFlow(models.Source):
    """A flow on 100 levels, on pixels, whose network believes that every picture is of one colour, the one that the prompt names.

    Its velocity error has a closed form: with x_s = (1 - s) x0 + s e and the belief c, v = (x_s - c) / s, so v - (e - x0) is
    (x0 - c) / s at every pixel.
    """

    default_size: int = 16
    n_levels: int = 100

    VERSIONS: ClassVar = {"colours": "nowhere"}
    PIPELINES: ClassVar = ("ColourFlowPipeline",)
    space: ClassVar = "velocity"

    @classmethod
    def find(cls, source, asked):
        return cls()

    def describe(self):
        return "a closed form"

    def identity(self):
        return "colours, first edition"

    def latent_shape(self, img_size):
        return 3, img_size, img_size

    def load(self, device, dtype, compile=False, plain=False):
        s = torch.arange(1, 101) / 100
        levels = Levels(1 - s, s, times=s, flow=True)

        def embed(prompts):
            return Conditions(pooled=torch.tensor([RGB[prompt.split()[1]] for prompt in prompts], dtype=torch.float32))

        def predict(x_t, t, conditions):
            return (x_t - conditions.pooled[:, :, None, None]) / levels.time(t).view(-1, 1, 1, 1)

        return Denoiser(lambda image: image, embed, predict, levels, space="velocity")


@pytest.fixture
def colour_flow(monkeypatch):
    monkeypatch.setattr(models.registry, "TEXT_TO_IMAGE", [*models.TEXT_TO_IMAGE, ColourFlow])
    return ["--version", "colours"]


def test_a_kind_of_model(colours, colour_flow, run_main):
    argv = ["--dataset", "colours", *colour_flow, "--template", "a {} wall", "--loss", "l2"]
    code, out, err = run_main(eval_prob_adaptive.main, *argv, "--to_keep", 1, "--n_samples", 25)
    assert code == 0 and "Top-1 accuracy: 100.00%" in out, err
    folder = Path("data/colours/vcolours_1trials_1keep_25samples_16")
    config = json.loads((folder / "config.json").read_text())
    assert config["n_levels"] == 100 and config["error_space"] == "velocity"
    for index, label in enumerate(Colours.targets):
        saved, truth = torch.load(folder / f"{index}.pt", weights_only=True), RGB[Colours.classes[label]]
        for row, (t, errors) in enumerate((c["t"], c["pred_errors"]) for c in saved["errors"].values()):
            assert t.tolist() == list(range(2, 100, 4))
            belief = RGB[Colours.classes[row]]
            green = 2 * 128 / 255 - 1  # PIL's green is 128
            squared = np.mean([((green if x == 0 else x) - c) ** 2 for x, c in zip(truth, belief, strict=True)])
            np.testing.assert_allclose(errors, squared / ((t.numpy() + 1) / 100) ** 2, rtol=2e-3, atol=1e-4)


def test_a_kind_of_model_is_found_by_the_pipeline_of_a_folder(colour_flow, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "ColourFlowPipeline"}))
    assert isinstance(models.text_to_image("2-0", str(tmp_path)), ColourFlow)


def test_a_kind_of_model_in_races_reports_figures_and_pairs(colours, colour_flow, run_main, tmp_path):
    argv = ["--dataset", "colours", *colour_flow, "--template", "a {} wall", "--loss", "l2"]
    code, out, err = run_main(eval_prob_adaptive.main, *argv, "--strategy", "race", "--max_samples", 50)
    assert code == 0 and "Top-1 accuracy: 100.00%" in out, err
    code, _, err = run_main(eval_prob_adaptive.main, *argv, "--strategy", "race", "--max_samples", 250)
    assert code == 2 and "100" in err and "--max_samples 250" in err
    run_main(eval_prob_adaptive.main, *argv, "--to_keep", 1, "--n_samples", 25)
    folder = "data/colours/vcolours_1trials_1keep_25samples_16"
    for script, more in (("plot_timesteps", ["-o", "figures"]), ("report", ["-o", "report"]), ("replay", []),
                         ("plot_image", ["--image", 2, "--map", "-o", "image.png"])):  # fmt: skip
        code, _, err = run_main(load_script(script).main, folder, *more)
        assert code == 0, (script, err)
    pairs = tmp_path / "pairs"
    (pairs / "images").mkdir(parents=True)
    for colour in ("red", "blue"):
        Image.new("RGB", (20, 20), colour).save(pairs / "images" / f"{colour}.png")
    line = {"id": 0, "image_0": "red", "image_1": "blue", "caption_0": "a red wall", "caption_1": "a blue wall"}
    (pairs / "examples.jsonl").write_text(json.dumps(line | {"collapsed_tag": "Object"}))
    code, out, err = run_main(run_winoground.main, *colour_flow, "--data_dir", pairs, "--t_interval", 10)
    assert code == 0 and "Overall group score:  100.0" in out, err
    assert len(run_folder.load_pairs(Path("data/winoground/sd_vcolours_t10_1trials"))) == 1
