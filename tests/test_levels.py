"""--levels: those of diffusers' scheduler with that shift, or quantiles; errors in another space follow by a factor."""

import shutil

import numpy as np
import pytest
import torch
from conftest import load_script
from diffusers import FlowMatchEulerDiscreteScheduler
from scipy.special import expit
from scipy.stats import norm

import eval_prob_adaptive
from diffusion import models
from diffusion.analysis import tables
from diffusion.models.denoiser import Levels, flow
from diffusion.runs import run_folder
from diffusion.settings import SPACES, ModelOptions
from tests import tiny_pipelines


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    """A tiny random pipeline of Stable Diffusion 3, shift 3."""
    folder = tmp_path_factory.mktemp("sd3") / "model"
    tiny_pipelines.build("sd3-without-t5", folder)
    return folder


def levels(folder, spread):
    return models.text_to_image("mine", str(folder), ModelOptions(levels=spread)).levels()


@pytest.mark.parametrize(("spread", "shift"), [("uniform", 1.0), ("shift3", 3.0)])
def test_shifted_levels_are_a_schedulers(sd3, spread, shift):
    expected = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift).sigmas[:1000].flip(0)
    found = levels(sd3, spread)
    torch.testing.assert_close(found.sigma, expected)
    torch.testing.assert_close(found.times, 1000 * expected)


def test_logit_normal_levels_are_quantiles(sd3):
    expected = expit(norm.ppf((np.arange(1000) + 0.5) / 1000))
    np.testing.assert_allclose(levels(sd3, "logit-normal").sigma, expected, rtol=1e-6)


def test_a_flows_network_is_fed_as_before(sd3):
    """Whatever the spread, time is 1000 s: a level means the same to the network."""
    for spread in ("own", "uniform", "logit-normal"):
        found = levels(sd3, spread)
        torch.testing.assert_close(found.times, 1000 * found.sigma)


@pytest.mark.parametrize("model", ["tiny", "examples/edm_pixels.py"])
def test_other_models_have_their_own(model):
    path = model if model.endswith(".py") else None
    with pytest.raises(ValueError, match="--levels"):
        models.text_to_image("tiny", path, ModelOptions(32, levels="uniform"))


def test_the_folder_and_the_identity_say_so(sd3, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOG_DIR", str(tmp_path))
    run = ["--model_path", str(sd3), "--dataset", "fashion_mnist", "--imgs_to_eval", "1", "--to_keep", "1", "--n_samples", "2"]
    for spread in ("own", "logit-normal"):
        assert eval_prob_adaptive.main([*run, "--levels", spread]) == 0
    capsys.readouterr()
    own, other = sorted((tmp_path / "fashion_mnist").iterdir())
    assert other.name == own.name + "_logit-normal"
    identities = [run_folder.read_config(folder)["identity"] for folder in (own, other)]
    assert identities[1] == identities[0] | {"levels": "logit-normal"}


# ---------------------------------------------------------------- errors in another space


@pytest.mark.parametrize("law", ["ddpm", "flow"])
def test_errors_in_another_space_are_these_times_a_factor(law):
    """Against predictions converted one by one, and their errors."""
    s = torch.tensor([0.1, 0.4, 0.8])
    table = flow(s, 1000) if law == "flow" else Levels((1 - s).sqrt(), s.sqrt())
    g = torch.Generator().manual_seed(0)
    x0, noise, off = (torch.randn(3, 4, 8, 8, generator=g) for _ in range(3))
    t = torch.arange(3)
    for one in SPACES:
        prediction = table.target(one, x0, noise, t) + off
        for other in SPACES:
            converted = table.conversion(one, other)(prediction, table.add_noise(x0, noise, t), t)
            error = (converted - table.target(other, x0, noise, t)).abs().mean((1, 2, 3))
            factor = table.error_factor(one, other)
            torch.testing.assert_close(error, (factor * off.abs().mean((1, 2, 3))).float(), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def runs(sd3, tmp_path_factory):
    """space -> folder of a real run of six images, four levels, in it."""
    root = tmp_path_factory.mktemp("runs")
    run = ["--model_path", str(sd3), "--dataset", "fashion_mnist", "--imgs_to_eval", "6", "--to_keep", "1", "--n_samples", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOG_DIR", str(root))
        for space in SPACES:
            assert eval_prob_adaptive.main([*run, "--loss", "l1", "--error_space", space, "--extra", space]) == 0
    return {space: next((root / f"fashion_mnist_{space}").iterdir()) for space in SPACES}


def test_print_spaces_gives_what_runs_in_those_spaces_give(runs, capsys):
    script, expected = load_script("print_spaces"), {}
    for space, folder in runs.items():
        grid = tables.grid_of(tables.read_run(folder))
        preds = [min(range(10), key=lambda k, e=errors: sum(map(float, e[k]))) for errors in grid.errors]
        expected[space] = sum(p == label for p, label in zip(preds, grid.labels, strict=True)) / 6
    for folder in runs.values():
        found = {row["space"]: row["top1"].value for row in script.rows_of(folder, None)}
        assert found == pytest.approx(expected)
    assert script.main([str(runs["x0"]), "--n_samples", "2", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and "x0 l1" in lines[2] and "n = 6" in lines[6]


def test_thinned_levels_are_those_of_a_shorter_run(runs):
    grid = tables.grid_of(tables.read_run(runs["velocity"]))
    thin = load_script("print_spaces").thinned(grid, 2)
    assert grid.t.tolist() == [125, 375, 625, 875] and thin.t.tolist() == [375, 875]
    assert np.array_equal(thin.errors, grid.errors[:, :, [1, 3]])


def test_print_spaces_refuses_what_does_not_follow(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOG_DIR", str(tmp_path))
    run = ["--version", "tiny", "--dataset", "fashion_mnist", "--imgs_to_eval", "1"]
    assert eval_prob_adaptive.main([*run, "--to_keep", "1", "--n_samples", "2", "--loss", "huber"]) == 0
    assert eval_prob_adaptive.main([*run, "--to_keep", "5", "1", "--n_samples", "1", "2"]) == 0
    capsys.readouterr()
    folders = sorted((tmp_path / "fashion_mnist").iterdir(), key=lambda folder: "huber" in folder.name)
    for folder, told in zip(folders, ("eliminated", "huber"), strict=True):
        with pytest.raises(SystemExit) as ended:
            load_script("print_spaces").main([str(folder)])
        assert ended.value.code == 2 and told in capsys.readouterr().err


# ---------------------------------------------------------------- a space that travels with the weights


@pytest.fixture
def stating(sd3, tmp_path):
    """The same pipeline, whose folder states a space."""

    def state(text):
        folder = tmp_path / "stating"
        shutil.copytree(sd3, folder, dirs_exist_ok=True)
        (folder / "classifier.json").write_text(text)
        return folder

    return state


def test_a_folder_may_state_its_error_space(sd3, stating):
    folder = stating('{"error_space": "epsilon"}')
    plain, stated = (models.text_to_image("mine", str(path)) for path in (sd3, folder))
    assert (plain.space, stated.space, stated.prediction) == ("velocity", "epsilon", "velocity")
    assert stated.identity() == plain.identity() + ", errors in epsilon"
    spaces = [models.load(stated, "cpu", "float32", space=space).space for space in (None, "velocity", "x0")]
    assert spaces == ["epsilon", "velocity", "x0"]


@pytest.mark.parametrize("text", ['{"error_space": "noise"}', "{}", "[]", "epsilon", '{"error_space": 1}'])
def test_a_statement_that_says_nothing_is_refused(stating, text):
    with pytest.raises(ValueError, match=r"classifier\.json"):
        models.text_to_image("mine", str(stating(text)))
