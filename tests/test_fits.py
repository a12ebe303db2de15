"""What fits belong to: race limits, level weights and calibrations of a run of other settings are refused, by every way in."""

import json
import re
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import tiny_pipelines
import torch
from conftest import ROOT, load_script
from safetensors.torch import save_file

import eval_prob_adaptive
import eval_prob_dit
from diffusion import classify, models
from diffusion.datasets.scenes import NOUNS
from diffusion.metrics import calibration
from diffusion.metrics.calibration import Fit
from diffusion.predict import predictions
from diffusion.runs import run_folder
from diffusion.settings import ABLATIONS
from diffusion.strategy import CalibratedRace, fits
from diffusion.strategy.level_weights import LevelWeights
from diffusion.strategy.open_race import TreeRace
from diffusion.strategy.race import GapFit

# ---------------------------------------------------------------- the list

IDENTITY = {"weights": "sha256 1", "loss": "l2", "img_size": 64, "interpolation": "bicubic", "dtype": "float32", "seed": 0}
OTHERS = {"weights": "sha256 2", "loss": "l1", "img_size": 96, "interpolation": "bilinear", "error_space": "x0",
          "levels": "uniform", "text_encoders": "clip", "level_weights": "3f00", "guidance": 1.0, "crop_errors": 1,
          "noise_kind": "zero"}  # fmt: skip
N_LEVELS = {"n_levels": 1000}


def limits_of(about):
    return GapFit(4, 1, (2, 4), (1.0, 0.0), (0.1, 0.1), 3, 0.99, 10, about)


KINDS = {  # identity of a run -> a fit on it; fit and identity of a run -> None, or ValueError
    "limits": (lambda run: limits_of(GapFit.belonging(run)), lambda fit, run: fit.check(run, 3, "fit.json")),
    "weights": (
        lambda run: LevelWeights((0.0, 0.0, 0.0), 1, LevelWeights.belonging(run | N_LEVELS), "fit.json"),
        lambda fit, run: fit.check(LevelWeights.belonging(run | N_LEVELS)),
    ),
    "calibration": (lambda run: Fit(1.0, 0.0, 1, run), lambda fit, run: predictions.check_fit(fit, run, "fit.json")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", fits.SETTINGS)
def test_a_fit_of_another_setting_is_refused(name, kind, tmp_path):
    """Read back from its file, whichever of the two runs it was made on."""
    fit_on, check = KINDS[kind]
    for fitted, now in ((IDENTITY, IDENTITY | {name: OTHERS[name]}), (IDENTITY | {name: OTHERS[name]}, IDENTITY)):
        fit_on(fitted).write(tmp_path / "fit.json")
        fit = type(fit_on(fitted)).read(tmp_path / "fit.json")
        check(fit, fitted | {"seed": 1, "dtype": "float16", "images": "others"})
        if (kind, name) == ("weights", "level_weights"):  # they are fitted on errors without any
            check(fit, now)
            continue
        there, here = (re.escape(str(run.get(name, "not set"))) for run in (fitted, now))
        told = rf"^--\w+ fit.json was fitted on a run of other settings: {name} \({there} there, {here} now\); fit it on [^\n]+$"
        with pytest.raises(ValueError, match=told if kind != "weights" else told.replace("fit.json ", ".*")):
            check(fit, now)


def test_a_setting_that_only_a_later_version_knows_is_refused():
    with pytest.raises(ValueError, match=r"dropout \(0.1 there, not set now\)"):
        limits_of(GapFit.belonging(IDENTITY) | {"dropout": 0.1}).check(IDENTITY, 3)


# ---------------------------------------------------------------- a model on the hub, whose commit does not tell T5

ON_HUB = "someone/sd3-tiny"
MODEL = ["--model_path", ON_HUB, "--img_size", 32, "--loss", "l2"]
RUN = [*MODEL, "--dataset", "fashion_mnist", "--split", "validation"]
FULL = ["--to_keep", 1, "--n_samples", 6]
CLIP = ["--text_encoders", "clip"]


def cached(root):
    """A hub's cache in this folder, with Stable Diffusion 3 in miniature, T5 included."""
    repository, commit = root / f"models--{ON_HUB.replace('/', '--')}", 10 * "c0de"
    tiny_pipelines.build("sd3", repository / "snapshots" / commit)
    for path, text in (("refs/main", commit), (f".no_exist/{commit}/tokenizer_3/config.json", "")):  # as the client keeps it
        (repository / path).parent.mkdir(parents=True)
        (repository / path).write_text(text)
    return root


def fit_all(folder, place):
    """The files of race limits, level weights and a calibration of the run in this folder, by the scripts that write them."""
    place.mkdir()
    limits, weights, calibration = (place / name for name in ("limits.json", "weights.json", "calibration.json"))
    assert load_script("fit_race").main([str(folder), "--target", "0.9", "-o", str(limits)]) == 0
    assert load_script("fit_weights").main([str(folder), "-o", str(weights)]) == 0
    assert load_script("calibrate").main([str(folder), "--write_fit", str(calibration)]) == 0
    return limits, weights, calibration


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A model in the hub's cache; of a run with T5, and of one without: its folder and the files of its fits."""
    root = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cached(root / "cache")))
        made = {}
        for name, more in (("all", []), ("clip", CLIP)):
            patch.setenv("LOG_DIR", str(root / name))
            assert eval_prob_adaptive.main([str(word) for word in [*RUN, *FULL, "--imgs_to_eval", 40, *more]]) == 0
            folder = next(path.parent for path in (root / name).rglob("config.json"))
            made[name] = folder, *fit_all(folder, root / f"fits of {name}")
        yield made


def test_a_run_says_that_t5_was_not_there_and_the_hub_s_commit_does_not(hub):
    one, other = (run_folder.read_config(hub[name][0])["identity"] for name in ("all", "clip"))
    assert one["weights"] == other["weights"] == f"{ON_HUB} at commit {10 * 'c0de'}"
    assert other == one | {"text_encoders": "clip"}


@pytest.mark.parametrize(("made", "now"), [("all", "clip"), ("clip", "all"), ("all", "all"), ("clip", "clip")])
def test_fits_made_with_and_without_t5_are_told_apart(made, now, hub, run_main):
    _, limits, weights, calibration = hub[made]
    run = [*RUN, *(CLIP if now == "clip" else []), "--dry_run"]
    for main, argv in (
        (eval_prob_adaptive.main, [*run, "--strategy", "race_calibrated", "--race_fit", limits]),
        (eval_prob_adaptive.main, [*run, *FULL, "--level_weights", weights]),
        (load_script("collect").main, [hub[now][0], "--samples", "s.parquet", "--calibration", calibration]),
    ):
        code, _, err = run_main(main, *argv)
        assert code == (0 if made == now else 2) and ("text_encoders" in err) == (made != now), err


# ---------------------------------------------------------------- every option that changes errors, by command and from Python

CHANGED = {"text_encoders": "clip", "levels": "uniform", "error_space": "epsilon", "interpolation": "bilinear", "img_size": 16,
           "loss": "l1", "guidance": 1.0, "crop_errors": 1, "noise": "zero", "lora": "lora.safetensors"}  # fmt: skip
IN_IDENTITY = {"noise": "noise_kind", "lora": "weights"}


def write_lora():
    """A file that fits the model, in this folder."""
    lora = {"A": torch.ones(2, 16), "B": torch.ones(16, 2)}
    save_file({f"transformer.transformer_blocks.0.attn.to_q.lora_{k}.weight": v for k, v in lora.items()}, CHANGED["lora"])


@pytest.mark.parametrize("option", CHANGED)
def test_a_command_with_another_option_refuses_the_fit(option, hub, run_main):
    write_lora()
    _, limits, weights, calibration = hub["all"]
    race, weighted = ["--strategy", "race_calibrated", "--race_fit", limits], [*FULL, "--level_weights", weights]
    commands = [(eval_prob_adaptive.main, [*RUN, *how]) for how in (race, weighted)]
    if option not in ("guidance", "crop_errors", "noise"):
        picture = [ROOT / "shipped" / "tiny-sd" / "samples.png", *MODEL, "--labels", *"abcdefghij"]
        calibrated = ["--strategy", "stages", *FULL, "--fit", calibration]
        commands += [(load_script("classify").main, [*picture, *how]) for how in (race, calibrated)]
    for main, argv in commands:
        code, _, err = run_main(main, *argv, f"--{option}", CHANGED[option], "--dry_run")
        told = f"was fitted on a run of other settings: {IN_IDENTITY.get(option, option)} ("
        assert code == 2 and err.count("\n") == 1 and told in err, err


@pytest.mark.parametrize("option", [*CHANGED, None])
def test_from_python_too(option, hub, monkeypatch):
    """Before the weights are loaded."""
    write_lora()
    monkeypatch.setattr(models, "load", lambda *_, **__: 1 / 0)
    _, limits, weights, _ = hub["all"]
    changed = {option: [CHANGED[option]] if option == "lora" else CHANGED[option]} if option else {}
    settings = {"model_path": ON_HUB, "img_size": 32, "device": "cpu"} | changed
    for how in ({"strategy": CalibratedRace(str(limits))}, {"level_weights": str(weights)}):
        told = f"other settings: {IN_IDENTITY.get(option, option)} \\("
        with pytest.raises(ValueError, match=told) if option else pytest.raises(ZeroDivisionError):
            classify.text_to_image("mine", [f"a photo of a {noun}." for noun in NOUNS[1:11]], **settings, **how)


# of an identity: which images, candidates and draws of noise; names; what rounding does and what is kept
IRRELEVANT = {"dataset", "split", "images", "subset", "prompts", "classes", "seed", "noise", "randomize_noise", "version",
              "dtype", "saved"}  # fmt: skip


def test_the_list_holds_what_else_a_run_s_identity_says(hub):
    """So that whoever adds a setting has to say here, or in `fits.SETTINGS`, whether fits belong to it."""
    more = {f"--{name}": value for name, value in CHANGED.items() if name not in ("img_size", "loss", "lora")}
    argv = [str(word) for word in [*RUN, *FULL, *(word for option in more.items() for word in option)]]
    said = set(eval_prob_adaptive.prepare(vars(eval_prob_adaptive.parse_args(argv))).identity)
    assert said - IRRELEVANT - set(predictions.STRATEGY) == set(fits.SETTINGS) - {"level_weights"}
    argv = ["--model", "tiny", "--dataset", "fashion_mnist", "--guidance", "0", "--noise", "zero", "--crop_errors", "1"]
    said = set(eval_prob_dit.prepare(vars(eval_prob_dit.parse_args(argv))).identity)
    assert said - IRRELEVANT - set(predictions.STRATEGY) <= set(fits.SETTINGS)


# ---------------------------------------------------------------- files of before


@pytest.mark.parametrize("made", ["all", "clip"])
def test_limits_and_weights_of_before_mean_what_they_meant(made, hub, run_main):
    """They do not say whether T5 was there, so they may be of either, and know no ablations, as there were none."""
    old = [["--strategy", "race_calibrated", "--race_fit", "limits.json"], [*FULL, "--level_weights", "weights.json"]]
    for path in hub[made][1:3]:
        content = json.loads(path.read_text())
        content["about"] = {k: v for k, v in content["about"].items() if k not in (*fits.LATER, *ABLATIONS)}
        Path(path.name).write_text(json.dumps(content))
    for argv in old:
        assert run_main(eval_prob_adaptive.main, *RUN, *CLIP, *argv, "--dry_run")[0] == 0
        assert run_main(eval_prob_adaptive.main, *RUN, *argv, "--dry_run")[0] == 0
        code, _, err = run_main(eval_prob_adaptive.main, *RUN, *argv, "--guidance", 1, "--dry_run")
        assert code == 2 and "guidance (not set there, 1.0 now)" in err
        code, _, err = run_main(eval_prob_adaptive.main, *RUN, *argv, "--levels", "uniform", "--dry_run")
        assert code == 2 and "levels (not set there, uniform now)" in err


@pytest.mark.parametrize(("name", "folder"), [("tiny-sd_l1", "9ec8344a"), ("tiny-dit_l2", "7722c9ff")])
def test_a_run_s_identity_holds_the_limits_as_their_file_does(name, folder):
    """Run folders that were begun with them go on."""
    path = ROOT / "shipped" / "races" / f"{name}.json"
    race = CalibratedRace(str(path))
    assert race.identity()["fit"] == json.loads(path.read_text())
    assert race.folder() == f"1trials_race_calibrated_{folder}"


# ---------------------------------------------------------------- numbers that no fit can have

HUGE = int("9" * 400)
DEEP = json.loads('{"a":' * 300 + "1" + "}" * 300)


def nested(depth):
    tree = 0
    for height in range(1, depth + 1):
        tree = {"height": height, "parts": [tree]}
    return tree


@pytest.mark.parametrize("value", [HUGE, -HUGE, 1e-200, 1e200, 0, -1, True, "1", None, [1.0], float("nan"), float("inf")])
def test_temperatures_that_would_divide_by_nothing(value, tmp_path):
    (tmp_path / "f.json").write_text(json.dumps({"temperature": value, "weight": 0.5, "n": 9, "about": {}}))
    with pytest.raises(ValueError, match=r"--fit .*f\.json is no fit of"):
        calibration.Fit.read(tmp_path / "f.json")


@pytest.mark.parametrize("changed", [{"n": HUGE}, {"weight": HUGE}, {"about": {"img_size": HUGE}}, {"about": {"a": [HUGE]}},
                                     {"about": DEEP}, {"weight": 1e-400 - 1}])  # fmt: skip
def test_other_numbers_of_a_fit(changed, tmp_path):
    (tmp_path / "f.json").write_text(json.dumps({"temperature": 1.0, "weight": 0.5, "n": 9, "about": {}} | changed))
    with pytest.raises(ValueError, match=r"--fit .*f\.json is no fit of"):
        calibration.Fit.read(tmp_path / "f.json")


@pytest.mark.parametrize("temperature", [1e-30, 1e-12, 1e30])
def test_the_smallest_and_largest_temperature_give_probabilities(temperature):
    fit = calibration.Fit(temperature, 1.0, 9, {})
    found = calibration.probabilities([np.ones(3), np.full(3, 1e3)], 0, [0, 1], fit)
    assert sum(found.values()) == pytest.approx(1) and found[0] >= 0.5


@pytest.mark.parametrize("tree", [{"height": HUGE, "parts": [0, 1]}, {"height": 1e-200, "parts": [0]},
                                  {"height": 1, "parts": [0, 0]}, nested(400), nested(2000)])  # fmt: skip
def test_trees_that_cannot_be(tree, tmp_path):
    text = "1"
    try:
        text = json.dumps(tree)
    except RecursionError:
        text = '{"height":1,"parts":[' * 2000 + "0" + "]}" * 2000
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=r"t\.json is no tree: "):
        TreeRace(tree=str(tmp_path / "t.json")).read()


def test_a_tree_that_lacks_a_class_is_refused_before_there_is_a_folder(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps({"height": 2, "parts": [0, 1]}))
    race = TreeRace(tree=str(tmp_path / "t.json"))
    race.check_run({}, 2, [0, 1])
    with pytest.raises(ValueError, match=r"t\.json lacks 1 of the candidates' classes, such as 5"):
        race.check_run({}, 3, [0, 1, 5])
