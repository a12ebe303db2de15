"""A model in a Python file of the user's own: the examples, what is told of a file that does not do, and its identity."""

import json
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, load_script

import eval_prob_adaptive
import eval_prob_dit
from diffusion import classify, models
from diffusion.models.families import custom
from diffusion.runs import loop
from diffusion.strategy import Stages

CLOTHES = ["--dataset", "fashion_mnist", "--imgs_to_eval", 3]
GRID = ["--to_keep", 1, "--n_samples", 5]
EDM = ROOT / "examples" / "edm_pixels.py"

GOOD = """
import torch
from diffusion.models.denoiser import Conditions, Denoiser, Levels

IMG_SIZE = 16

def load(device, dtype):
    s = torch.arange(1, 21) / 20
    def encode(image):
        return image.mean(0, keepdim=True)
    def embed(prompts):
        return Conditions(pooled=torch.tensor([[len(p) / 10] for p in prompts]))
    def predict(x_t, t, conditions):
        return x_t * conditions.pooled[:, :, None, None]
    return Denoiser(encode, embed, predict, Levels(1 - s, s, flow=True), space="velocity")
"""


def written(text, name="my_model.py"):
    path = Path(name)
    path.write_text(textwrap.dedent(text))
    return path


def find(path, img_size=None):
    return custom.CustomModel.find(str(path), img_size, "cpu", "float32")


def test_the_name_of_the_file_and_not_the_default_versions_names_the_folder(run_main):
    path = written(GOOD)
    code, out, err = run_main(eval_prob_adaptive.main, "--model_path", path, *CLOTHES, *GRID)
    assert code == 0 and "20 noise levels, errors of velocity" in out, err
    assert Path("data/fashion_mnist/vmy_model_1trials_1keep_5samples_16").is_dir()
    code, _, err = run_main(eval_prob_adaptive.main, "--model_path", f"{path}:load", "--version", "mine", *CLOTHES, *GRID)
    assert code == 0 and Path("data/fashion_mnist/vmine_1trials_1keep_5samples_16").is_dir(), err


def test_errors_are_those_of_the_networks_velocity(run_main):
    """In double precision by hand: predict is linear in x_t."""
    image = torch.linspace(-1, 1, 3 * 16 * 16).view(3, 16, 16)
    prompts = ["four", "seventeen letters"]
    strategy = Stages((1,), (4,))
    classifier = classify.text_to_image("x", prompts, model_path=str(written(GOOD)), strategy=strategy, device="cpu", seed=5)
    result = classifier(image, 2)
    x0 = image.mean(0, keepdim=True).double().numpy()
    bank = classifier.noise(2, classifier.plan, (1, 16, 16)).double().numpy()
    for row, prompt in enumerate(prompts):
        for k, (t, noise) in enumerate(zip(result.t, bank, strict=True)):
            s = (t + 1) / 20
            wanted = np.mean((((1 - s) * x0 + s * noise) * len(prompt) / 10 - (noise - x0)) ** 2)
            np.testing.assert_allclose(result.errors[row][k], wanted, rtol=1e-5)


def test_another_image_size(run_main):
    code, _, err = run_main(eval_prob_adaptive.main, "--model_path", written(GOOD), "--img_size", 24, *CLOTHES, *GRID)
    assert code == 0 and Path("data/fashion_mnist/vmy_model_1trials_1keep_5samples_24").is_dir(), err
    written(GOOD.replace("IMG_SIZE = 16", ""))
    code, _, err = run_main(eval_prob_adaptive.main, "--model_path", "my_model.py", *CLOTHES, *GRID)
    assert code == 2 and "--img_size is needed: my_model.py does not say" in err


def test_the_example_is_edms_denoiser(monkeypatch):
    """Karras et al. 2022, eq. 7 and table 1, written down once more in double precision."""
    source = find(EDM)
    denoiser, module = source.load("cpu", "float32"), __import__("sys").modules["own_model_edm_pixels"]
    sigma = (0.002 ** (1 / 7) + np.arange(250) / 249 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    np.testing.assert_allclose(denoiser.levels.sigma, sigma, rtol=2e-4)
    torch.manual_seed(0)
    network = module.Network()
    x, t = torch.randn(2, 1, 32, 32), torch.tensor([3, 200])
    s = denoiser.levels.sigma[t].double().view(-1, 1, 1, 1)
    c_skip, c_out, c_in = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25).sqrt(), 1 / (s**2 + 0.25).sqrt()
    with torch.no_grad():
        raw = network.double()(c_in * x.double(), s.flatten().log() / 4, torch.tensor([5, 8]))
        ours = denoiser.predict(x, t, denoiser.embed(["a sandal", "a bag"]))
    torch.testing.assert_close(ours.double(), c_skip * x + c_out * raw, rtol=1e-4, atol=1e-5)


def test_the_example_runs_as_its_first_lines_say(run_main):
    code, out, err = run_main(eval_prob_adaptive.main, "--model_path", EDM, *CLOTHES, "--strategy", "race")
    assert code == 0 and "n = 3" in out, err
    folder = Path("data/fashion_mnist/vedm_pixels_1trials_race_0.2alpha_2min_1round_250max_l1_32")
    config = json.loads((folder / "config.json").read_text())
    assert config["error_space"] == "x0" and config["n_levels"] == 250
    code, _, err = run_main(load_script("print_acc").main, folder)
    assert code == 0, err


@pytest.mark.slow
def test_the_class_conditional_example_runs_as_its_first_lines_say(run_main):
    argv = ["--model_path", ROOT / "examples" / "ddpm_unet.py", "--dataset", "fashion_mnist", "--imgs_to_eval", 3]
    code, out, err = run_main(eval_prob_dit.main, *argv, "--t_interval", 100)
    assert code == 0 and "n = 3" in out and "scripts/print_acc.py" in out, err
    folder = Path("data/fashion_mnist/ddpm_unet32x32_10classes_t100_1trials")
    code, _, err = run_main(load_script("print_acc").main, folder)
    assert code == 0, err
    code, _, err = run_main(load_script("plot_image").main, folder, "--image", 0, "--map", "-o", "image.png")
    assert code == 0, err
    for more, told in (
        (["--loss", "kl"], "--loss kl"),
        (["--save_errors"], "--save_errors"),
        (["--vae_path", "x"], "--vae_path"),
    ):
        code, _, err = run_main(eval_prob_dit.main, *argv, "--t_interval", 100, *more)
        assert (code, err.count("\n")) == (2, 1) and told in err, err
    code, _, err = run_main(eval_prob_dit.main, *argv, "--t_interval", 500, "--cls", 7)
    assert code == 0 and Path("data/fashion_mnist/ddpm_unet32x32_cls7_t500_1trials").is_dir(), err
    code, _, err = run_main(eval_prob_dit.main, *argv, "--strategy", "race", "--loss", "l1", "--max_samples", 20)
    assert code == 0, err


def test_class_conditional_errors_in_another_space(run_main):
    """Those of epsilon times (sigma / signal)^2 of the scheduler's law, in another folder; refused of a learned variance."""
    from diffusers import DDPMScheduler

    path = str(ROOT / "examples" / "ddpm_unet.py")
    given = {"model_path": path, "strategy": Stages((1,), (4,)), "device": "cpu"}
    usual, other = (classify.class_conditional("x", [2, 7], error_space=space, **given) for space in (None, "x0"))
    image = torch.linspace(-1, 1, 3 * 32 * 32).view(3, 32, 32)
    first, second = usual(image, 1), other(image, 1)
    alphas = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod[torch.from_numpy(first.t)].double().numpy()
    for row in (0, 1):
        np.testing.assert_allclose(second.errors[row], first.errors[row] * (1 - alphas) / alphas, rtol=1e-3)
    argv = ["--dataset", "fashion_mnist", "--imgs_to_eval", 1, "--t_interval", 500, "--error_space", "x0"]
    code, _, err = run_main(eval_prob_dit.main, "--model_path", path, *argv)
    assert code == 0 and Path("data/fashion_mnist/ddpm_unet32x32_10classes_t500_1trials_x0").is_dir(), err
    code, _, err = run_main(eval_prob_dit.main, "--model", "tiny", *argv)
    assert code == 2 and "--error_space x0: the variance of" in err


def test_errors_of_the_class_conditional_example_are_diffusers_training_loss():
    """Its scheduler's add_noise, its network's sample, mean squared error of the noise."""
    import sys

    from diffusers import DDPMScheduler

    image = torch.linspace(-1, 1, 3 * 32 * 32).view(3, 32, 32)
    path = str(ROOT / "examples" / "ddpm_unet.py")
    classifier = classify.class_conditional("x", [2, 7], model_path=path, strategy=Stages((1,), (4,)), device="cpu")
    result = classifier(image, 1)
    noise, t = classifier.noise(1, classifier.plan, (3, 32, 32)), torch.from_numpy(result.t)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    network = sys.modules["own_model_ddpm_unet"].build()
    x_t = scheduler.add_noise(image[None].expand(4, -1, -1, -1), noise, t)
    for row, label in enumerate((2, 7)):
        with torch.no_grad():
            loss = (network(x_t, t, class_labels=torch.full((4,), label)).sample - noise).square().mean((1, 2, 3))
        np.testing.assert_allclose(result.errors[row], loss, rtol=1e-5)


def test_examples_are_short():
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) < 50, path


# ---------------------------------------------------------------- what is told

WRONG = {  # fault -> (what changes in GOOD, told)
    "async": (("def load(", "async def load("), "load(device, dtype) failed (TypeError: it is an async function"),
    "async predict": (("def predict(", "async def predict("), "predict failed (TypeError: it is an async function"),
    "no function": (("def load(", "def lead("), "has no function load(device, dtype)"),
    "bad syntax": (("def load(", "def load(("), "the file failed (SyntaxError"),
    "raises": (("s = torch.arange(1, 21) / 20", "s = 1 / 0"), "my_model.py, line 8: load(device, dtype) failed"),
    "returns nothing": (("return Denoiser(", "Denoiser("), "load gives nothing"),
    "no method": (("Denoiser(encode, embed,", "Denoiser(encode, None,"), "embed of the Denoiser gives nothing"),
    "no levels": (("Levels(1 - s, s, flow=True)", "s"), "levels of the Denoiser gives float32 [20]"),
    "levels of two lengths": (("Levels(1 - s, s,", "Levels(1 - s, s[:5],"), "levels.sigma gives float32 [5]"),
    "a level without noise": (("torch.arange(1, 21)", "torch.arange(0, 20)"), "levels.sigma gives 0 at level 0"),
    "another space": (('"velocity"', '"pixels"'), "space of the Denoiser gives 'pixels'"),
    "size is no number": (("IMG_SIZE = 16", "IMG_SIZE = '16'"), "IMG_SIZE is '16'"),
    "no latent": (("image.mean(0, keepdim=True)", "image.mean()"), "encode gives float32 []"),
    "a latent of NaN": (("image.mean(0, keepdim=True)", "image[:1] * torch.nan"), "encode gives numbers that are not finite"),
    "no conditions": (("return Conditions(pooled=", "return (") , "embed gives float32"),
    "too few conditions": (("for p in prompts]", "for p in prompts[1:]]"), "rows of pooled, and has to give a row for each"),
    "conditions of the whole": (("len(p) / 10]", "len(prompts) / 10]"), "embed gives other pooled for a part of the candidates"),
    "another shape": (("return x_t *", "return x_t[:, :, 1:] *"), "predict gives float32 [2, 1, 15, 16], and has to give"),
    "predicts NaN": (("return x_t *", "return torch.nan * x_t *"), "predict gives numbers that are not finite"),
    "not in eval mode": (("return x_t *", "return torch.rand_like(x_t) *"), "put the network in eval mode"),
    "predict raises": (("return x_t *", "return missing *"), "line 14: predict failed (NameError"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_missing_or_of_the_wrong_shape_is_told_by_name(fault, run_main, recwarn):
    (old, new), told = WRONG[fault]
    assert old in GOOD
    written(GOOD.replace(old, new, 1))
    code, _, err = run_main(eval_prob_adaptive.main, "--model_path", "my_model.py", *CLOTHES, *GRID)
    assert (code, err.count("\n")) == (2, 1) and told in err and "my_model.py" in err, err
    assert not list(Path().rglob("*.pt")) and not list(Path().rglob("config.json"))
    assert not recwarn.list


LATER = {  # what the third call of predict does
    "raise ValueError('too cold')": "line 15: predict failed (ValueError: too cold)",
    "raise OSError(28, 'No space left')": "line 15: predict failed (OSError: ",
    "raise StopIteration": "line 15: predict failed (StopIteration: StopIteration)",
    "raise MemoryError": "line 15: predict failed (MemoryError: MemoryError)",
    "import sys; sys.exit(0)": "line 15: predict failed (SystemExit: 0)",
    "return None": "predict gives ",
    "return x_t[:1]": "predict gives float32 [1, 1, 16, 16]",  # which would broadcast
    "return x_t.mean((2, 3), keepdim=True)": "predict gives float32 [50, 1, 1, 1]",
}


@pytest.mark.parametrize("act", LATER)
def test_faults_of_a_model_at_work_are_its_own(act, run_main):
    """Images before it are kept, and the same command goes on when the file is mended."""
    third = f"        calls.append(1)\n        if len(calls) == 3: {act}\n        return x_t * cond"  # the first is a try
    path = written("calls = []\n" + GOOD.lstrip().replace("        return x_t * cond", third))
    words = ["--model_path", path, *CLOTHES, *GRID, "--batch_size", 50]
    code, _, err = run_main(lambda argv: loop.run(partial(eval_prob_adaptive.main, argv)), *words)
    told = err.splitlines()[-1]
    assert code == 1 and told.startswith(f"error: {path}") and LATER[act] in told, err
    assert len(list(Path("data").rglob("*.pt"))) == 1


def test_a_lack_of_memory_is_no_fault_of_the_model(run_main):
    act = "raise torch.OutOfMemoryError('out of memory')"
    path = written(GOOD.replace("        return x_t * cond", f"        if len(x_t) > 20: {act}\n        return x_t * cond"))
    with pytest.warns(UserWarning, match="going on with 16 evaluations"):
        code, _, err = run_main(eval_prob_adaptive.main, "--model_path", path, *CLOTHES, *GRID)
    assert code == 0, err


@pytest.mark.parametrize("path", ["none.py", "none.py:load", "my_model.py:save"])
def test_a_file_or_function_that_is_not_there(path, run_main):
    written(GOOD)
    code, _, err = run_main(eval_prob_adaptive.main, "--model_path", path, *CLOTHES, *GRID)
    assert (code, err.count("\n")) == (2, 1) and "--model_path" in err and path in err, err


# ---------------------------------------------------------------- identity


def test_the_identity_is_that_of_the_file_its_neighbours_and_the_files_that_they_name(run_main):
    written("WIDTH = 3\nWEIGHTS = 'weights.pt'\n", "parts.py")
    written("OTHER = 1\n", "stranger.py")
    Path("weights.pt").write_bytes(b"one")
    path = written("import parts\n" + GOOD)
    first = find(path).identity()
    assert first == find(path).identity()
    for name, content in (("parts.py", b"WIDTH = 4\nWEIGHTS = 'weights.pt'\n"), ("weights.pt", b"two"), (path.name, b"\n")):
        before, place = Path(name).read_bytes(), Path(name)
        place.write_bytes(before + content if name == path.name else content)
        assert find(path).identity() != first, name
        place.write_bytes(before)
    Path("stranger.py").write_text("OTHER = 2\n")
    assert find(path).identity() == first
    assert run_main(eval_prob_adaptive.main, "--model_path", path, *CLOTHES, *GRID)[0] == 0
    Path("weights.pt").write_bytes(b"two")
    code, _, err = run_main(eval_prob_adaptive.main, "--model_path", path, *CLOTHES, *GRID)
    assert code == 2 and "holds another run, which differs in weights" in err


def test_only_python_files_are_the_users_own():
    assert custom.is_python_file("a/b.py") and custom.is_python_file("b.py:make") and custom.name_of("a/b.py:make") == "b"
    assert not any(map(custom.is_python_file, ("org/model", None, "folder/model.safetensors")))
    assert models.text_to_image("tiny").default_size == 64


# ---------------------------------------------------------------- a level that drowns the others


@pytest.mark.parametrize(("scale", "noted"), [(1.0, False), (60.0, True)])
def test_a_level_of_huge_errors_is_told_after_ten_images(scale, noted, run_main, caplog):
    path = written(GOOD.replace("x_t * cond", f"torch.where(t == 3, {scale}, 1.0).view(-1, 1, 1, 1) * x_t * cond"))
    caplog.set_level("INFO", "diffusion")
    words = ["--dataset", "fashion_mnist", "--imgs_to_eval", 12, "--to_keep", 1, "--n_samples", 20]
    code, _, err = run_main(eval_prob_adaptive.main, "--model_path", path, *words)
    assert code == 0, err
    notes = [line for line in caplog.messages if "of the variance" in line]
    assert len(notes) == noted and all(line.startswith("Note: 1 of the 20 timesteps seen (3)") for line in notes), notes


# ---------------------------------------------------------------- fewer timesteps than the defaults


@pytest.mark.parametrize(
    "words, folder, told",
    [
        ([], "5_1keep_10_20samples_l1", "--n_samples is 10 20, not 10 50"),
        (["--to_keep", 3, 1], "3_1keep_10_20samples", "--n_samples is 10 20, not 10 50"),
        (["--strategy", "race"], "race_0.2alpha_2min_1round_20max_l1", "--max_samples is 20, not 250"),
        (["--strategy", "surrogate"], "surrogate_48first_32wide_2.5caution_0.2alpha_3min_20max_l1", "--max_samples is 20, not"),
        (["--strategy", "tree"], "tree_48first_32wide_2.5caution_0.2alpha_3min_20max_l1", "--max_samples is 20, not 250"),
    ],
)
def test_defaults_are_cut_to_the_models_timesteps(words, folder, told, run_main, caplog):
    path = written(GOOD)
    caplog.set_level("INFO", "diffusion")
    code, _, err = run_main(eval_prob_adaptive.main, "--model_path", path, *CLOTHES[:-1], 1, *words)
    assert code == 0 and f"Note: the model has 20 timesteps: {told}" in caplog.text, err
    assert Path(f"data/fashion_mnist/vmy_model_1trials_{folder}_16").is_dir(), list(Path("data/fashion_mnist").iterdir())


def test_stages_that_would_add_no_timestep_are_left_out():
    stages = Stages((100, 10, 1), (10, 50, 250))
    assert stages.within(40) == Stages((100, 1), (10, 40))
    assert stages.within(5) == Stages((1,), (5,)) and stages.within(1000) is stages
    assert stages.within(40, {"to_keep"}) == Stages((100, 10, 1), (10, 40, 40)) and stages.within(40, {"n_samples"}) is stages


def test_what_was_given_is_not_cut_and_the_line_says_what_to_type(run_main):
    path = written(GOOD)
    for words, advice in (
        (["--strategy", "race", "--max_samples", 250], "give --max_samples 20 or less"),
        (["--strategy", "race", "--min_samples", 30], "give --min_samples 20 or less"),
        (["--to_keep", 5, 1, "--n_samples", 25, 250], "must lie in 1..20"),
    ):
        code, _, err = run_main(eval_prob_adaptive.main, "--model_path", path, *CLOTHES, *words)
        assert (code, err.count("\n")) == (2, 1) and advice in err, err


CLASSES = GOOD.replace("len(p)", "p").replace("1, 21) / 20", "1, 31) / 30") + "\nNUM_CLASSES = 12\n"


def test_a_grid_takes_an_interval_that_divides_and_names_the_model(run_main, caplog):
    """30 levels, of which 4 is no part; 12 classes, of which the data has the first ten."""
    caplog.set_level("INFO", "diffusion")
    path = written(CLASSES)
    argv = ["--model_path", path, *CLOTHES]
    code, _, err = run_main(eval_prob_dit.main, *argv)
    assert (code, err.count("\n")) == (2, 1) and "--cls 0-9" in err, err
    code, out, err = run_main(eval_prob_dit.main, *argv, "--cls", "0-9")
    assert code == 0 and "Note: the model has 30 timesteps: --t_interval is 3, not 4" in caplog.text, err
    assert "DiT-XL/2" not in out and "my_model" in out
    config = json.loads(Path("data/fashion_mnist/my_model16x16_10classes_t3_1trials/config.json").read_text())
    assert config["options"]["model"] == "my_model"
    code, _, err = run_main(load_script("plot_image").main, *Path("data/fashion_mnist").iterdir(), "--image", 0, "-o", "a.png")
    assert code == 0, err


def test_a_folder_that_hides_behind_ours_is_told(run_main):
    for line in ("from diffusion.mine import Net", "from diffusion import mine", "import diffusion.mine"):
        Path("diffusion").mkdir(exist_ok=True)
        Path("diffusion/mine.py").write_text("Net = 1\n")
        path = written(f"{line}\n{GOOD}")
        code, _, err = run_main(eval_prob_adaptive.main, "--model_path", path, *CLOTHES, *GRID)
        assert (code, err.count("\n")) == (2, 1) and "diffusion beside it hides behind this project's: rename it" in err, err


def test_the_api_cuts_its_own_race():
    classifier = classify.text_to_image("x", ["a", "bag"], model_path=str(written(GOOD)), device="cpu")
    assert len(classifier.plan.t) == 20
