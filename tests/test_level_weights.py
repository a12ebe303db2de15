"""Level weights: what the fit finds where the best weights are known, what a run with weights records, and that readers agree."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_SD20, load_script, write_run

import eval_prob_adaptive
import eval_prob_dit
from diffusion import classify
from diffusion.analysis import level_fit, reload, summary, tables
from diffusion.datasets import load_prompts, open_dataset
from diffusion.metrics import calibration
from diffusion.metrics.calibration import Fit
from diffusion.predict import predictions
from diffusion.runs import run_folder as runlog
from diffusion.strategy import Race, Stages, level_weights
from diffusion.strategy.elimination import drive
from diffusion.strategy.level_weights import LevelWeights, by_weighted_errors

STEEP = (4.0, -1.5, 2.0)  # which changes predictions of a network with random weights
ABOUT = {"weights": "w", "loss": "l2", "n_levels": 1000, "error_space": "epsilon", "levels": None, "img_size": 64}


def by_hand(coefficients, n_levels):
    """The weights of all levels by the formula, one by one."""
    raw = []
    for t in range(n_levels):
        u = 2 * t / (n_levels - 1) - 1
        raw.append(math.exp(sum(a * u**p for a, p in zip(coefficients, (1, 2, 3), strict=True))))
    return np.array(raw) / (sum(raw) / n_levels)


@pytest.mark.parametrize("coefficients", [(0.0, 0.0, 0.0), STEEP, (-10.0, 10.0, 10.0)])
def test_the_weights_are_the_formula_and_their_mean_is_one(coefficients):
    np.testing.assert_allclose(level_weights.curve(coefficients, 1000), by_hand(coefficients, 1000), rtol=1e-10)
    table = LevelWeights(coefficients, 1, ABOUT).table
    assert table.dtype == np.float32 and (table > 0).all() and np.isfinite(table).all()


def test_zeros_are_exactly_ones():
    assert (LevelWeights((0.0, 0.0, 0.0), 1, ABOUT).table == 1).all()


# ---------------------------------------------------------------- fits where the best weights are known


def gaussian(coefficients, n, n_levels=1000, s=40, classes=5, strength=0.1):
    """Errors whose best weights are those of these coefficients, and the best temperature.

    e_kt = shared_t + d_t [k is wrong] + normal noise of variance v_t has log p(e | class k) = -sum_t (d_t / v_t) e_kt, but for a
    constant of the image. So where d_t / v_t = strength w_t the logit is that of weights w and temperature 1 / (strength S).
    """
    rng = np.random.default_rng(1)
    t = np.arange(n_levels // s // 2, n_levels, n_levels // s)
    labels = rng.integers(0, classes, n)
    variance = rng.uniform(0.5, 2, s)
    d = strength * by_hand(coefficients, n_levels)[t] * variance
    wrong = np.arange(classes)[None] != labels[:, None]
    errors = rng.normal(5, 1, (n, 1, s)) + wrong[:, :, None] * d + rng.normal(size=(n, classes, s)) * np.sqrt(variance)
    return level_fit.Labelled(errors, t, n_levels, list(range(classes)), labels), 1 / (strength * s)


@pytest.mark.parametrize("coefficients", [(0.0, 0.0, 0.0), (1.2, -0.5, 0.3), (-0.8, 0.6, -0.4)])
def test_the_fit_finds_the_best_weights(coefficients):
    data, temperature = gaussian(coefficients, 8000)
    found = level_fit.fit_weights(data)
    np.testing.assert_allclose(level_weights.curve(found.coefficients, 1000)[data.t],
                               by_hand(coefficients, 1000)[data.t], rtol=0.2)  # fmt: skip
    assert found.temperature == pytest.approx(temperature, rel=0.1)
    best = level_fit.log_posterior(data, level_fit.Fitted(temperature, coefficients))
    assert calibration.posterior_scores(level_fit.log_posterior(data, found), data.columns)[0] < (
        calibration.posterior_scores(best, data.columns)[0] + 1e-3
    )


def test_where_only_high_levels_tell_classes_apart_weights_help_on_other_images():
    data, _ = gaussian((0.0, 0.0, 0.0), 800, strength=0.12)
    idle = data.t < 500
    errors = data.errors.copy()
    errors[:, :, idle] = np.random.default_rng(2).normal(5, 2, errors[:, :, idle].shape)  # the same for all classes
    data = level_fit.Labelled(errors, data.t, data.n_levels, data.class_of, data.columns)
    found = level_fit.compare(data, calibration.second_half(data.columns))
    assert found.difference.low > 0 and found.nll_difference.high < 0 and found.mcnemar.p_value < 0.01
    for half in found.halves:
        weights = level_weights.curve(half.coefficients, 1000)
        assert weights[900] > 5 * weights[100]


def test_where_all_levels_tell_alike_weights_bring_nothing():
    data, _ = gaussian((0.0, 0.0, 0.0), 2000, strength=0.25)
    found = level_fit.compare(data, calibration.second_half(data.columns))
    assert found.difference.low < 0 < found.difference.high and abs(found.nll_difference.value) < 0.01
    for half in found.halves:
        assert abs(np.log(level_weights.curve(half.coefficients, 1000)[data.t])).max() < 0.5


def test_few_images_are_not_learned_by_heart():
    """A standard normal prior: with a handful of images, all right, likelihood alone would send coefficients to their bounds."""
    data, _ = gaussian((2.0, 0.0, 0.0), 12, strength=0.5)
    assert np.abs(level_fit.fit_weights(data).coefficients).max() < 3


def test_a_comparison_by_hand():
    """Two halves judged by each other's fits, image by image; the last class has two prompts, of which the better one counts."""
    data, _ = gaussian((1.0, 0.0, 0.0), 60)
    data = level_fit.Labelled(data.errors, data.t, data.n_levels, [0, 1, 2, 3, 3], data.columns.clip(max=3))
    second = calibration.second_half(data.columns)
    found = level_fit.compare(data, second)
    right, losses = {}, {}
    for name, fit in (("plain", level_fit.fit_temperature), ("weighted", level_fit.fit_weights)):
        right[name], losses[name] = np.empty(60, bool), np.empty(60)
        on_first, on_second = fit(data, ~second), fit(data, second)
        for image in range(60):
            temperature, coefficients = on_first if second[image] else on_second
            rows = data.errors[image] @ by_hand(coefficients, 1000)[data.t] / 40
            means = np.array([*rows[:3], min(rows[3:])])
            odds = np.exp(-(means - means.min()) / temperature)
            losses[name][image] = -np.log(odds[data.columns[image]] / odds.sum())
            right[name][image] = means.argmin() == data.columns[image]
    assert found.plain.accuracy.value == right["plain"].mean() and found.weighted.accuracy.value == right["weighted"].mean()
    assert found.plain.nll == pytest.approx(losses["plain"].mean())
    assert found.weighted.nll == pytest.approx(losses["weighted"].mean())
    assert found.difference.value == pytest.approx(right["weighted"].mean() - right["plain"].mean())
    difference = losses["weighted"] - losses["plain"]
    assert found.nll_difference.value == pytest.approx(difference.mean())
    half = 1.959964 * difference.std(ddof=1) / math.sqrt(60)
    assert found.nll_difference.high - found.nll_difference.low == pytest.approx(2 * half, rel=1e-5)
    assert found.mcnemar.only_first == (right["weighted"] & ~right["plain"]).sum()


# ---------------------------------------------------------------- elimination on a table of numbers


STRATEGIES = [Stages((3, 1), (4, 20)), Race(0.05, 4, 2, 40)]


def played(strategy, errors, weights):
    plan = strategy.plan(1000)
    table = dict(zip(sorted(plan.t.tolist()), errors.T, strict=True))  # level -> [K]

    def answer(request):
        rows, pairs = request
        return torch.tensor(np.array([[table[t][row] for t in plan.t[pairs].tolist()] for row in rows], np.float32))

    return plan, table, drive(by_weighted_errors(strategy.eliminate([0, 1, 1, 2, 3], plan), weights, plan.t), answer)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.NAME)
def test_errors_come_back_unweighted_and_the_weighted_ones_decide(strategy):
    rng = np.random.default_rng(0)
    winners = set()
    for _ in range(20):
        errors = rng.normal(1, 0.2, (5, len(strategy.plan(1000).t))).astype(np.float32)
        plan, table, found = played(strategy, errors, LevelWeights(STEEP, 1, ABOUT))
        weights = by_hand(STEEP, 1000)
        products = {t: column * weights[t] for t, column in table.items()}
        _, _, same = played(strategy, np.stack([products[t] for t in sorted(products)], 1), None)  # the table itself weighted
        assert found.winner == same.winner and found.dropped == same.dropped
        for row, values in found.errors.items():
            assert values.dtype == np.float32 and len(values) == len(same.errors[row])
            assert values.tolist() == [table[t][row] for t in plan.t[: len(values)].tolist()]
        winners.add(found.winner == played(strategy, errors, None)[2].winner)
    assert winners == {True, False}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.NAME)
def test_weights_of_ones_change_nothing(strategy):
    errors = np.random.default_rng(0).normal(1, 0.2, (5, len(strategy.plan(1000).t))).astype(np.float32)
    one, other = (played(strategy, errors, w)[2] for w in (LevelWeights((0.0, 0.0, 0.0), 1, ABOUT), None))
    assert (one.winner, one.dropped, list(one.errors)) == (other.winner, other.dropped, list(other.errors))
    assert all(one.errors[row].tolist() == other.errors[row].tolist() for row in one.errors)


# ---------------------------------------------------------------- real runs

SD = ["--model_path", TINY_SD20, "--img_size", 64, "--dataset", "fashion_mnist", "--imgs_to_eval", 6, "--loss", "l1"]
FULL = ["--to_keep", 1, "--n_samples", 8]
RACE = ["--strategy", "race", "--min_samples", 3, "--round_size", 2, "--max_samples", 8]


def run_folder(root, main, *argv):
    """The folder of a run below a LOG_DIR of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOG_DIR", str(root))
        assert main([str(word) for word in argv]) == 0
    return next(path.parent for path in root.rglob("config.json"))


def weights_for(folder, path, coefficients=STEEP, **about):
    """A file of weights that belong to the run in this folder."""
    LevelWeights(coefficients, 50, tables.read_unweighted(folder).belonging | about).write(path)
    return path


def load(folder):
    return {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run that dropped nobody, weights of its model, and the same run with them."""
    root = tmp_path_factory.mktemp("world")
    plain = run_folder(root / "plain", eval_prob_adaptive.main, *SD, *FULL)
    file = weights_for(plain, root / "weights.json")
    weighted = run_folder(root / "weighted", eval_prob_adaptive.main, *SD, *FULL, "--level_weights", file)
    return plain, file, weighted


def pred_by_hand(record):
    """The candidate with the lowest mean of its recorded errors, each times its level's weight."""
    weights, means = by_hand(STEEP, 1000), {}
    for key, candidate in record["errors"].items():
        pairs = zip(candidate["t"].tolist(), candidate["pred_errors"].double().tolist(), strict=True)
        means[key] = sum(weights[t] * e for t, e in pairs) / len(candidate["t"])
    return min(means, key=means.get)


def test_records_keep_unweighted_errors_and_the_prediction_is_by_weights(world):
    plain, weighted = load(world[0]), load(world[2])
    assert len(plain) == 6 and plain.keys() == weighted.keys()
    for name, record in weighted.items():
        assert record.keys() == plain[name].keys()
        for key, candidate in record["errors"].items():
            assert torch.equal(candidate["pred_errors"], plain[name]["errors"][key]["pred_errors"])
        assert record["pred"] == pred_by_hand(record)
    assert any(record["pred"] != plain[name]["pred"] for name, record in weighted.items())


def test_the_folder_says_which_weights(world):
    plain, file, weighted = world
    config, weights = runlog.read_config(weighted), LevelWeights.read(str(file))
    assert weighted.name == f"{plain.name}_{weights.name}" and re.fullmatch("weights[0-9a-f]{6}", weights.name)
    assert config["identity"] == runlog.read_config(plain)["identity"] | {"level_weights": weights.identity}
    assert config["level_weights"] == json.loads(file.read_text()) and config["options"]["level_weights"] == str(file)


def test_a_run_goes_on_and_other_weights_are_another_folder(world, run_main, monkeypatch, tmp_path):
    plain, file, weighted = world
    monkeypatch.setenv("LOG_DIR", str(weighted.parents[1]))
    code, out, err = run_main(eval_prob_adaptive.main, *SD, *FULL, "--level_weights", file, "--dry_run")
    assert code == 0 and "Images: 0 to do here, 6 of 6 done before" in out, err
    other = weights_for(plain, tmp_path / "weights.json", (0.1, 0.2, 0.3))
    code, out, err = run_main(eval_prob_adaptive.main, *SD, *FULL, "--level_weights", other, "--dry_run")
    assert code == 0 and "0 of 6 done before" in out, err


def test_weights_of_ones_give_the_same_run(world, tmp_path):
    ones = weights_for(world[0], tmp_path / "ones.json", (0.0, 0.0, 0.0))
    plain = load(run_folder(tmp_path / "plain", eval_prob_adaptive.main, *SD, *RACE))
    same = load(run_folder(tmp_path / "same", eval_prob_adaptive.main, *SD, *RACE, "--level_weights", ones))
    assert plain.keys() == same.keys()
    for name, record in same.items():
        one, other = ({key: value for key, value in r.items() if key not in ("errors", "seconds")} for r in (record, plain[name]))
        assert one == other
        for key, candidate in record["errors"].items():
            assert torch.equal(candidate["pred_errors"], plain[name]["errors"][key]["pred_errors"])


def accuracy_of(out):
    return re.search(r"(?:Top 1 acc|Top-1 accuracy|Accuracy for .*): (.*)", out)[1]


def test_all_readers_find_the_run_s_winners(world, run_main, tmp_path):
    plain, file, weighted = world
    preds = {int(Path(name).stem): record["pred"] for name, record in load(weighted).items()}
    run = tables.read_run(weighted)
    assert {image.index: run.class_of[int(image.means.argmin())] for image in run.images} == preds
    assert summary.curve(run)[-1].accuracy == summary.summarise(1, run).top1
    told = run_main(load_script("print_acc").main, weighted, "--csv", tmp_path / "own.csv")
    assert told[0] == 0, told[2]
    code, out, err = run_main(load_script("print_acc").main, plain, "--level_weights", file, "--csv", tmp_path / "by.csv")
    assert code == 0 and accuracy_of(out) == accuracy_of(told[1]), err
    assert (tmp_path / "own.csv").read_text() == (tmp_path / "by.csv").read_text()
    full = {}
    for name, argv in {"own": [weighted], "by": [plain, "--level_weights", file]}.items():
        code, full[name], err = run_main(load_script("replay").main, *argv, "--stages", "1 / 8")
        assert code == 0, err
    assert full["own"] == full["by"] and full["own"] != run_main(load_script("replay").main, plain, "--stages", "1 / 8")[1]


def test_weights_of_a_file_are_of_the_errors_as_recorded(world, tmp_path):
    """Not of those times the run's own weights."""
    ones = weights_for(world[0], tmp_path / "ones.json", (0.0, 0.0, 0.0))
    run, plain = tables.read_run(world[2], weights_path=ones), tables.read_run(world[0])
    assert [image.means.tolist() for image in run.images] == [image.means.tolist() for image in plain.images]


def test_two_runs_are_compared_by_their_recorded_errors(world, run_main):
    code, _, err = run_main(load_script("compare_runs").main, world[0], world[2], "--json", "x.json")
    assert code == 0, err
    assert json.loads(Path("x.json").read_text())["mean_relative_difference"] == 0


def test_scripts_that_weights_do_not_go_with_refuse_them(world, run_main):
    code, _, err = run_main(load_script("print_spaces").main, world[2])
    assert code == 2 and err.count("\n") == 1 and "--level_weights" in err


def test_a_fit_of_probabilities_is_of_the_weights_too(world):
    identity = runlog.read_config(world[2])["identity"]
    predictions.check_fit(Fit(1.0, 0.0, 1, identity), identity, "fit.json")
    with pytest.raises(ValueError, match="level_weights"):
        predictions.check_fit(Fit(1.0, 0.0, 1, identity), runlog.read_config(world[0])["identity"], "fit.json")


def test_from_python_as_the_command(world):
    _, file, weighted = world
    clothes = open_dataset("fashion_mnist", "test", None, "nowhere")
    prompts = load_prompts("fashion_mnist", clothes, None, None).prompts
    how = {"model_path": str(TINY_SD20), "img_size": 64, "strategy": Stages((1,), (8,)), "level_weights": str(file)}
    classifier = classify.text_to_image("2-0", prompts, loss="l1", **how)
    for name, record in load(weighted).items():
        result = classifier(clothes.picture(int(Path(name).stem)), int(Path(name).stem))
        assert result.label == result.ranking[0] == record["pred"]
        assert all(torch.equal(torch.from_numpy(result.errors[k]), e["pred_errors"]) for k, e in record["errors"].items())
        best = result.probabilities(Fit(1e-3, 0.0, 1, {}))
        assert max(best, key=best.get) == record["pred"]
    with pytest.raises(ValueError, match=r"--level_weights .* loss \(l1 there, l2 now\)"):
        classify.text_to_image("2-0", prompts, loss="l2", **how)


def test_a_map_of_errors_is_the_weighted_mean(world, run_main):
    """Its mean over positions is the squared error of the pairs, times their weights."""
    past = reload.Past(world[2], runlog.read_config(world[2]))
    dataset = reload.open_images(past)
    index = int(next(world[2].glob("*.pt")).stem)
    maps = reload.error_maps(past, dataset[index][0], reload.candidates_of(past, dataset), [0, 3], index, "cpu")
    prompts = load_prompts("fashion_mnist", dataset, None, None).prompts
    classifier = classify.text_to_image("2-0", prompts, model_path=str(TINY_SD20), img_size=64, strategy=Stages((1,), (8,)))
    result = classifier(dataset[index][0], index)
    expected = [(result.errors[row] * by_hand(STEEP, 1000)[result.t]).mean() for row in (0, 3)]
    np.testing.assert_allclose(maps.mean((1, 2)), expected, rtol=1e-4)


# ---------------------------------------------------------------- a DiT

CLOTHES = ["--dataset", "fashion_mnist", "--imgs_to_eval", 4]


def test_a_dit_s_grid_and_stages(tiny_dit, run_main, tmp_path):
    dit = [*tiny_dit, *CLOTHES, "--loss", "kl"]
    grid = ["--t_interval", 200, "--save_errors"]
    plain = run_folder(tmp_path / "plain", eval_prob_dit.main, *dit, *grid)
    file = weights_for(plain, tmp_path / "weights.json")
    weighted = run_folder(tmp_path / "weighted", eval_prob_dit.main, *dit, *grid, "--level_weights", file)
    one, other = load(plain), load(weighted)
    assert one.keys() == other.keys() and len(one) == 4
    for name, record in other.items():
        assert torch.equal(record["terms"], one[name]["terms"]) and torch.equal(record["sums"], one[name]["sums"])
        means = record["terms"][..., 2].double().numpy() @ by_hand(STEEP, 1000)[record["t"].numpy()]
        assert record["pred"] == means.argmin()
    assert any(record["pred"] != one[name]["pred"] for name, record in other.items())
    stages = ["--to_keep", 1, "--n_samples", 5]
    alike = load(run_folder(tmp_path / "stages", eval_prob_dit.main, *dit, *stages, "--level_weights", file))
    assert {name: record["pred"] for name, record in alike.items()} == {name: record["pred"] for name, record in other.items()}
    code, told, err = run_main(load_script("print_acc").main, weighted)
    assert code == 0, err
    code, out, err = run_main(load_script("print_dit_acc").main, weighted)
    assert code == 0 and accuracy_of(out) == accuracy_of(told) and out.count("Accuracy for") == 1, err
    code, _, err = run_main(load_script("replay").main, weighted, "--loss", "l1")
    assert code == 2 and err.count("\n") == 1 and "--loss l1" in err and "kl" in err


def test_from_python_a_dit(tiny_dit, tmp_path):
    plain = run_folder(tmp_path / "plain", eval_prob_dit.main, *tiny_dit, *CLOTHES, "--to_keep", 1, "--n_samples", 2)
    file = str(weights_for(plain, tmp_path / "weights.json"))
    where = {"model_path": str(tiny_dit[1]), "vae_path": str(tiny_dit[3])}
    assert classify.class_conditional("DiT-XL/2", level_weights=file, **where).method.level_weights == LevelWeights.read(file)
    with pytest.raises(ValueError, match="loss"):
        classify.class_conditional("DiT-XL/2", level_weights=file, loss="l1", **where)


# ---------------------------------------------------------------- wrong files


@pytest.mark.parametrize(("name", "value"), [("weights", "another"), ("loss", "l2"), ("n_levels", 500), ("levels", "shift3"),
                                             ("error_space", "x0"), ("img_size", 128)])  # fmt: skip
def test_weights_of_something_else_are_refused(name, value, world, run_main, tmp_path):
    file = weights_for(world[0], tmp_path / "other.json", **{name: value})
    for command in ([eval_prob_adaptive.main, *SD, *FULL], [load_script("print_acc").main, world[0]],
                    [load_script("replay").main, world[0]]):  # fmt: skip
        code, _, err = run_main(*command, "--level_weights", file)
        assert code == 2 and err.count("\n") == 1 and f"--level_weights {file}" in err and f"{name} ({value} there" in err
    assert not Path("data").exists()


def test_a_run_that_dropped_candidates_cannot_be_judged_by_other_weights(world, run_main, tmp_path):
    race = run_folder(tmp_path / "race", eval_prob_adaptive.main, *SD, *RACE)
    for script in ("print_acc", "replay"):
        code, _, err = run_main(load_script(script).main, race, "--level_weights", world[1])
        assert code == 2 and err.count("\n") == 1 and "--to_keep 1" in err


@pytest.mark.parametrize("saved", [{}, {"coefficients": [0.1, 0.2, 0.3], "n": 1, "about": []}, {"coefficients": 3}])
def test_a_config_whose_weights_are_none_is_refused(saved, world, run_main, tmp_path):
    folder = write_run(tmp_path / "run", np.random.default_rng(0).random((3, 2, 4)), [100, 300, 500, 700], [0, 1, 0], ["a", "b"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"level_weights": saved}))
    code, _, err = run_main(load_script("report").main, folder, "-o", "out")
    assert code == 2 and err.count("\n") == 1 and "level_weights" in err and str(folder) in err


# ---------------------------------------------------------------- scripts/fit_weights.py


@pytest.fixture
def fit_weights(run_main):
    return lambda *argv: run_main(load_script("fit_weights").main, *argv)


def written_run(folder, identity=None, n=80):
    """A run whose high levels tell more."""
    data, _ = gaussian((1.5, 0.0, 0.0), n, strength=0.15)
    folder = write_run(folder, data.errors, data.t, data.columns, names=list("abcde"))
    config = json.loads((folder / "config.json").read_text()) | {"identity": identity or {}, "error_space": "epsilon"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, data


def test_what_is_printed_and_written(fit_weights, tmp_path):
    folder, data = written_run(tmp_path / "run", {"weights": "w", "loss": "l2", "img_size": 64})
    code, out, err = fit_weights(folder, "-o", "w.json")
    assert code == 0 and "80 images, 5 candidates of 5 classes, 40 pairs, loss l2" in out, err
    shown = float(re.search(r"unweighted +([\d.]+) %", out)[1])
    assert shown == pytest.approx(100 * (data.errors.mean(2).argmin(1) == data.columns).mean(), abs=0.01)
    assert re.search(r"weighted +[\d.]+ % \([\d.]+ to [\d.]+\) +\d\.\d{4}\n", out) and "McNemar p = " in out
    found = LevelWeights.read("w.json")
    assert found.about == dict.fromkeys(LevelWeights.BELONGS_TO) | ABOUT and found.n == 80
    row = [float(x) for x in re.search(r"all images +(.*)", out)[1].split()]
    np.testing.assert_allclose(row, by_hand(found.coefficients, 1000)[[0, 250, 500, 749, 999]], atol=6e-4)
    assert row == sorted(row)  # what high levels tell counts more


def test_a_run_without_a_known_model_is_fitted_but_not_written(fit_weights, tmp_path):
    folder, _ = written_run(tmp_path / "run")
    assert fit_weights(folder)[0] == 0
    code, _, err = fit_weights(folder, "-o", "w.json")
    assert code == 2 and err.count("\n") == 1 and "-o w.json" in err and not Path("w.json").exists()


def test_runs_that_say_nothing_are_refused(fit_weights, tmp_path):
    few, _ = written_run(tmp_path / "few", n=12)
    code, _, err = fit_weights(few)
    assert code == 2 and err.count("\n") == 1 and "12 readable images" in err
    nan = tmp_path / "nan"
    errors = np.random.default_rng(0).random((30, 3, 4))
    errors[3, 1, 2] = np.nan
    write_run(nan, errors, [100, 300, 500, 700], [0] * 30, ["a", "b", "c"])
    code, _, err = fit_weights(nan)
    assert code == 0 and "1 unreadable record, not counted: 3.pt (errors of candidate 1 are not finite)" in err


def test_a_fit_of_a_run_with_weights_is_of_its_recorded_errors(fit_weights, tmp_path):
    folder, data = written_run(tmp_path / "run", {"weights": "w", "loss": "l2"})
    plain = fit_weights(folder)[1]
    config = json.loads((folder / "config.json").read_text())
    weights = LevelWeights(STEEP, 1, ABOUT)
    for index, path in runlog.list_records(folder).items():  # the predictions are by weighted errors
        pred = data.class_of[int((data.errors[index] @ weights.table[data.t]).argmin())]
        runlog.save_record(path, runlog.load_record(path) | {"pred": pred})
    (folder / "config.json").write_text(json.dumps(config | {"level_weights": weights.as_json()}))
    assert fit_weights(folder)[1] == plain
