"""--shortlist of eval_prob_adaptive.py: who is proposed, that they alone compete, what it costs, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script
from PIL import Image

import eval_prob_adaptive
from diffusion import datasets, metrics, settings
from diffusion.analysis.tables import Scored
from diffusion.baselines import runner, shortlist
from diffusion.datasets.prompts import PromptTable
from diffusion.runs import run_folder
from diffusion.strategy import candidate_sets

WORDS = ["--version", "tiny", "--dataset", "fashion_mnist", "--loss", "l1"]
STAGES = ["--to_keep", 3, 1, "--n_samples", 2, 5]
SHORT = ["--to_keep", 2, 1, "--n_samples", 2, 5]
RACE = ["--strategy", "race", "--max_samples", 10]
BY_CLIP = ["--shortlist", "openclip:tiny"]
PLACE = Path("data/fashion_mnist")
CLIP = PLACE / "openclip_tiny"


@pytest.fixture
def run(run_main):
    def run(*argv):
        code, out, err = run_main(eval_prob_adaptive.main, *WORDS, *argv)
        assert code == 0, err
        return out

    return run


@pytest.fixture
def refused(run_main):
    def refused(*argv):
        code, _, err = run_main(eval_prob_adaptive.main, *WORDS, *argv)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return refused


def records(folder):
    return {index: run_folder.load_record(path) for index, path in run_folder.list_records(folder).items()}


def the(pattern):
    (found,) = PLACE.glob(pattern)
    return found


def logits(record):
    return -np.array([float(record["errors"][row]["pred_errors"][0]) for row in record["errors"]])


# ---------------------------------------------------------------- who competes


@pytest.mark.parametrize("method", [STAGES, RACE])
def test_a_shortlist_of_all_classes_equals_none_bit_for_bit(method, run):
    run("--imgs_to_eval", 2, *method)
    run("--imgs_to_eval", 2, *method, *BY_CLIP, "--shortlist_size", 10)
    plain, listed = records(the("v*_64")), records(the("v*_shortlist10_openclip_tiny"))
    assert len(plain) == 2 and plain.keys() == listed.keys()
    for one, other in zip(plain.values(), listed.values(), strict=True):
        assert (one["pred"], one["label"], list(one["errors"])) == (other["pred"], other["label"], list(other["errors"]))
        for a, b in zip(one["errors"].values(), other["errors"].values(), strict=True):
            assert torch.equal(a["t"], b["t"]) and torch.equal(a["pred_errors"], b["pred_errors"])
        assert sorted(other["proposed"]) == list(range(10))
    assert "partial" not in run_folder.read_config(the("v*_shortlist10_openclip_tiny"))


def test_the_model_s_first_classes_compete_and_nobody_else(run, run_main):
    out = run("--imgs_to_eval", 4, *SHORT, *BY_CLIP, "--shortlist_size", 3)
    run("--imgs_to_eval", 4, *STAGES)
    listed, ranked, plain = records(the("v*_shortlist3_openclip_tiny")), records(CLIP), records(the("v*_64"))
    found = []
    for index, record in listed.items():
        best = np.argsort(-logits(ranked[index]), kind="stable")[:3].tolist()
        assert record["proposed"] == best and list(record["errors"]) == sorted(best) and record["pred"] in best
        for row in best:  # with the noise and the errors that they have among all
            assert torch.allclose(
                record["errors"][row]["pred_errors"][:2], plain[index]["errors"][row]["pred_errors"][:2], rtol=1e-4
            )
        found.append(record["label"] in best)
    assert f"Shortlist of 3: has the true class in {metrics.proportion(found)}; 1 evaluations of openclip_tiny per image" in out
    # 3 candidates on 2 pairs, 2 on 3 more
    assert {sum(len(e["pred_errors"]) for e in record["errors"].values()) for record in listed.values()} == {3 * 2 + 2 * 3}
    # the ranking is eval_clip.py's own run
    argv = ["--model", "openclip", "--version", "tiny", "--dataset", "fashion_mnist", "--imgs_to_eval", 4]
    code, out, err = run_main(load_script("eval_clip").main, *argv)
    assert code == 0 and "0 to do here, 4 of 4 done before" in out, err


@pytest.mark.slow
def test_records_and_rankings_are_made_once(run):
    argv = [*SHORT, "--shortlist_size", 3]
    run("--imgs_to_eval", 2, *argv, *BY_CLIP)
    before = {path: path.stat().st_mtime_ns for path in (*CLIP.glob("*.pt"), *the("v*_tiny").glob("*.pt"))}
    out = run("--imgs_to_eval", 2, *argv, "--shortlist", CLIP)  # the same rankings, so the same run
    assert "Images: 0 to do here, 2 of 2 done before" in out and "Shortlist of 3: " in out
    out = run("--imgs_to_eval", 3, *argv, *BY_CLIP)
    assert out.count("Images: 1 to do here, 2 of 3 done before") == 2
    assert all(path.stat().st_mtime_ns == then for path, then in before.items()) and len(before) == 4


def test_all_prompts_of_a_class_compete(run):
    names = datasets.load_prompts("fashion_mnist", None, None, "{}").classnames
    rows = [f"{text}{name}.,{name},{k}" for k, name in enumerate(names) for text in ("a photo of a ", "a ")]
    Path("two.csv").write_text("prompt,classname,classidx\n" + "\n".join(rows) + "\n")
    argv = ["--prompt_path", "two.csv", "--imgs_to_eval", 2, "--to_keep", 1, "--n_samples", 2]
    out = run(*argv, *BY_CLIP, "--shortlist_size", 2)
    assert "Price: 8 network evaluations per image" in out  # 2 classes, 2 prompts each, 2 timesteps
    for record in records(the("v*_shortlist2_openclip_tiny")).values():
        assert list(record["errors"]) == sorted(2 * k + i for k in record["proposed"] for i in (0, 1))


def test_of_images_with_candidates_of_their_own():
    scenes, rng = datasets.open_dataset("tiny_scenes", "10", None, "."), np.random.default_rng(0)
    classes = list(range(len(scenes.classes)))
    table = PromptTable(scenes.classes, scenes.classes, classes)
    identity = {"dataset": "tiny_scenes", "split": "10", "images": scenes.fingerprint()}
    candidates = {"labels": classes, "names": scenes.classes}
    run_folder.write_config(
        Path("earlier"), run_folder.describe("eval_clip", "classification", identity, {}, 2, candidates=candidates)
    )
    known = {index: rng.normal(size=len(classes)).astype(np.float32) for index in (0, 1)}
    for index, found in known.items():
        run_folder.save_record(
            Path(f"earlier/{index}.pt"), runner.record_of(torch.from_numpy(found), classes, scenes.labels[index])
        )
    np.save("two.npy", [0, 1])
    data, selection = settings.Data("tiny_scenes", "10"), settings.Selection("two.npy")
    images = runner.Images(data, selection, settings.Running(), scenes, 0)
    own = candidate_sets.of_dataset(scenes, classes)
    found = shortlist.find(settings.Shortlist("earlier", 4), images, table, own)
    for index, values in known.items():
        order = [k for k in np.argsort(-values) if k in scenes.candidates(index)]
        assert list(found.ranked[index].labels) == order[:4] and found.proposals.rows(index) == sorted(order[:4])
    with pytest.raises(ValueError, match="10 classes compete"):
        shortlist.find(settings.Shortlist("earlier", 11), images, table, own)


def test_ranking_of_what_was_dropped_and_of_what_was_never_tried():
    counts, means = np.array([2, 5, 0, 5, 2, 5]), np.array([0.1, 0.4, np.inf, 0.3, 0.2, 0.35])
    image = Scored(0, 7, 7, np.arange(5), means, counts, None, None, 19, None)
    assert shortlist.ranking(image, [7, 8, 9, 8, 10, 11]) == [8, 11, 7, 10]


@pytest.mark.slow
def test_an_earlier_diffusion_run_proposes(run):
    run("--imgs_to_eval", 3, *STAGES)
    earlier = the("v*_64")
    out = run("--imgs_to_eval", 3, "--seed", 0, *RACE, "--shortlist", earlier, "--shortlist_size", 4)
    for index, record in records(the("v*_shortlist4_*")).items():
        errors = {row: e["pred_errors"].double() for row, e in records(earlier)[index]["errors"].items()}
        best = sorted(errors, key=lambda row: (-len(errors[row]), float(errors[row].mean())))[:4]
        assert record["proposed"] == best and list(record["errors"]) == sorted(best)
    assert f"29 evaluations of {earlier.name} per image" in out  # 10 candidates on 2 pairs, 3 on 3 more


# ---------------------------------------------------------------- price and stages


def test_dry_run_counts_both_and_makes_nothing(run):
    out = run("--imgs_to_eval", 3, *SHORT, *BY_CLIP, "--shortlist_size", 3, "--dry_run")
    assert "Price: 1 network evaluations per image, 3 in all\n" in out
    assert "Price: 12 network evaluations per image, 36 in all; before, 3 images and 10 prompts through" in out
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("name", "n", "wanted"),
    [  # the paper's Table 7: 35 of 51 s, 150 of 1,000 s, and no shorter where there are no more classes
        ("food", 101, ((10, 5, 1), (50, 100, 500))),
        ("imagenet", 1000, ((10, 1), (500, 1000))),
        ("pets", 37, ((5, 1), (25, 250))),
    ],
)
def test_stages_that_would_drop_nobody_are_left_out(name, n, wanted):
    recipe = datasets.recipe_for(name, n).restrict(20)
    assert (recipe.to_keep, recipe.n_samples) == wanted
    assert recipe.restrict(2).to_keep == (1,) and recipe.restrict(1).to_keep == (1,)


# ---------------------------------------------------------------- workers, failures, readers


@pytest.mark.slow
def test_workers_rank_what_they_evaluate(run):
    argv = ["--imgs_to_eval", 5, *SHORT, *BY_CLIP, "--shortlist_size", 3, "--n_workers", 2]
    run(*argv, "--worker_idx", 1)
    first = set(records(CLIP))
    assert len(first) == 2 and set(records(the("v*_tiny"))) == first
    run(*argv, "--worker_idx", 0)
    shared = records(the("v*_tiny"))
    run(*argv[:-2], "--extra", "alone")
    alone = records(next(Path("data/fashion_mnist_alone").glob("v*_tiny")))
    assert len(alone) == 5 and alone.keys() == shared.keys()
    assert all(alone[i]["proposed"] == shared[i]["proposed"] and alone[i]["pred"] == shared[i]["pred"] for i in alone)


def test_a_damaged_picture_costs_only_itself(run_main):
    for name in ("bag", "boot", "coat"):
        Path(f"images/{name}").mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((64, 64, 3), 40 * i + 30, np.uint8)).save(f"images/{name}/{i}.png")
    Path("images/boot/1.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    argv = ["--version", "tiny", "--dataset", "folder", "--data_dir", "images", "--to_keep", 1, "--n_samples", 2]
    code, out, err = run_main(eval_prob_adaptive.main, *argv, *BY_CLIP, "--shortlist_size", 2)
    (folder,) = Path("data/folder_images").glob("v*")
    assert code == 1 and "1 images failed" in err and "boot/1.png" in err and "Shortlist of 2" in out
    assert sorted(records(folder)) == [0, 1, 2, 4, 5]


def test_what_reads_runs_reads_these(run, run_main):
    run("--imgs_to_eval", 4, "--to_keep", 1, "--n_samples", 5, *BY_CLIP, "--shortlist_size", 3)
    run("--imgs_to_eval", 4, "--to_keep", 1, "--n_samples", 5)
    listed, plain = the("v*_openclip_tiny"), the("v*_64")
    code, out, _ = run_main(load_script("print_acc").main, listed)
    assert code == 0 and "Cost: 15 evaluations per image" in out and "Top 5" not in out
    code, out, _ = run_main(load_script("compare_runs").main, plain, listed)
    assert code == 0 and f"over {4 * 3 * 5}" in out  # errors that both have
    code, _, err = run_main(load_script("report").main, listed, plain, CLIP, "-o", "report")
    assert code == 0, err
    code, out, err = run_main(load_script("replay").main, listed, "--stages", "2 1 / 1 5")
    assert code == 0 and "4 images, 3 candidates, 5 pairs each" in out, err
    code, _, err = run_main(load_script("calibrate").main, listed)
    assert code == 2 and "without --shortlist" in err and err.count("\n") == 1
    config = run_folder.read_config(listed)
    assert config["partial"] and (config["options"]["shortlist"], config["options"]["shortlist_size"]) == ("openclip:tiny", 3)


# ---------------------------------------------------------------- what is refused


def test_runs_that_are_of_something_else(run, refused):
    run("--imgs_to_eval", 2, *SHORT, *BY_CLIP, "--shortlist_size", 3)
    by_run = [*SHORT, "--shortlist", CLIP, "--shortlist_size", 3]
    assert "no readable record of image" in refused(*by_run, "--imgs_to_eval", 3)
    assert "its dataset is fashion_mnist" in refused(*by_run, "--dataset", "tiny_combos", "--imgs_to_eval", 2)
    assert "its split is test" in refused(*by_run, "--split", "validation", "--imgs_to_eval", 2)
    Path("few.csv").write_text("prompt,classname,classidx\na bag.,bag,8\na boot.,boot,9\na coat.,coat,4\n")
    assert "10 classes, this run about 3" in refused(*by_run, "--prompt_path", "few.csv", "--imgs_to_eval", 2)
    Path("none").mkdir()
    assert "none is no folder of a run" in refused(*SHORT, "--shortlist", "none")
    (CLIP / "config.json").write_text(json.dumps(run_folder.read_config(CLIP) | {"kind": "pairs"}))
    assert "no folder of a run that ranks classes" in refused(*by_run, "--imgs_to_eval", 2)


def test_a_ranking_with_other_prompts_is_another_run(run, refused):
    argv = ["--imgs_to_eval", 2, *SHORT, "--shortlist_size", 3]
    run(*argv, *BY_CLIP)
    run(*argv, *BY_CLIP, "--template", "a {}.", "--extra", "other")
    assert "prompts (" in refused(*argv, *BY_CLIP, "--template", "a {}.")  # the contrastive run's own folder
    assert "shortlist (" in refused(*argv, "--shortlist", "data/fashion_mnist_other/openclip_tiny")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--shortlist_size", 3], "--shortlist_size needs --shortlist"),
        ([*BY_CLIP, "--shortlist_size", 11], "10 classes compete"),
        ([*BY_CLIP, "--shortlist_size", 1], "--shortlist_size"),
        ([*BY_CLIP, "--shortlist_size", 2, "--to_keep", 3, 1, "--n_samples", 2, 5], "--to_keep starts with 3"),
        (["--shortlist", "openclip:nothing"], "--shortlist openclip:nothing: "),
        (["--shortlist", "openclip:ViT-B-32:nothing"], "nothing is no tag"),
        (["--shortlist", "clip:ViT-H-14"], "--shortlist clip:ViT-H-14: "),
        (["--shortlist", "nowhere"], "nowhere is no folder of a run"),
    ],
)
def test_options_that_mean_nothing(argv, told, refused):
    assert told in refused(*argv)
    assert not Path("data").exists()
