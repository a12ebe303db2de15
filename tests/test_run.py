"""Whole runs of eval_prob_adaptive.py on a tiny real model with random weights: bookkeeping, resuming, failures."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_SD20, load_script, said, staged_record
from PIL import Image

import eval_prob_adaptive
from diffusion.datasets import open_dataset
from diffusion.datasets.loader import load_images
from diffusion.datasets.transforms import sd_transform
from diffusion.runs import run_folder
from diffusion.utils import paths
from diffusion.utils.files import fingerprint

MODEL = ["--model_path", str(TINY_SD20), "--img_size", "64"]
RUN = ["--dataset", "fashion_mnist", *MODEL, "--to_keep", "3", "1", "--n_samples", "2", "4"]
FOLDER = Path("data/fashion_mnist/v2-0_1trials_3_1keep_2_4samples_64")


@pytest.fixture
def run(run_main):
    return lambda *argv: run_main(eval_prob_adaptive.main, *argv)


def records(folder=FOLDER):
    return {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))}


def flat(record):
    return [torch.cat([c["pred_errors"] for c in record["errors"].values()]), record["pred"], record["label"]]


def assert_same(a, b, exact=True):
    assert a.keys() == b.keys()
    for name in a:
        (x, *rest), (y, *others) = flat(a[name]), flat(b[name])
        assert rest == others
        torch.testing.assert_close(x, y, rtol=0 if exact else 1e-5, atol=0)


def test_dry_run_prints_the_price_and_writes_nothing(run, tmp_path):
    code, out, _ = run(*RUN, "--imgs_to_eval", 50, "--dry_run")
    assert code == 0
    assert "Price: 26 network evaluations per image, 1,300 in all" in out  # 10 prompts x 2, then 3 x 2
    assert "Images: 50 to do here, 0 of 50 done before" in out and str(FOLDER) in out
    assert "shipped test images" in out
    assert not list(tmp_path.iterdir())


def test_records_config_and_closing_lines(run, run_main):
    code, out, err = run(*RUN, "--imgs_to_eval", 6)
    assert code == 0, err
    saved = records()
    assert len(saved) == 6 and all(len(name) == len("000.pt") for name in saved)
    for record in saved.values():
        assert sorted(len(c["pred_errors"]) for c in record["errors"].values()) == [2] * 7 + [4] * 3
        full = {row: c["pred_errors"].mean() for row, c in record["errors"].items() if len(c["pred_errors"]) == 4}
        assert record["pred"] == min(full, key=full.get)
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["images_expected"] == 6 and config["options"]["batch_size"] == 32
    assert config["identity"]["weights"].startswith("sha256") and torch.__version__.startswith(config["versions"]["torch"])
    code, told, _ = run_main(load_script("print_acc").main, FOLDER)
    top1 = out.split("Top-1 accuracy: ")[1].splitlines()[0]
    assert f"Top 1 acc: {top1}" in told and "Images: 6 of 6" in told and "26 evaluations per image" in told
    assert "26 evaluations per image" in out and f"python scripts/print_acc.py {FOLDER}" in out


def test_resume_redoes_only_what_is_missing_or_broken(run):
    run(*RUN, "--imgs_to_eval", 4)
    first = records()
    missing, broken, *kept = sorted(FOLDER.glob("*.pt"))
    missing.unlink()
    broken.write_bytes(b"half")
    times = [path.stat().st_mtime_ns for path in kept]
    code, out, _ = run(*RUN, "--imgs_to_eval", 4, "--load_stats")
    assert f"Note: 1 unreadable record, redone: {broken.name} (" in out
    assert code == 0 and "Images: 2 to do here, 2 of 4 done before" in out and "n = 4" in out
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert_same(records(), first)


def test_a_run_can_grow(run):
    run(*RUN, "--imgs_to_eval", 2)
    code, out, _ = run(*RUN, "--imgs_to_eval", 5)
    assert code == 0 and "Images: 3 to do here, 2 of 5 done before" in out
    assert json.loads((FOLDER / "config.json").read_text())["images_expected"] == 5


def test_shards_are_bit_identical_to_one_process(run, tmp_path, monkeypatch):
    run(*RUN, "--imgs_to_eval", 5)
    whole = records()
    monkeypatch.setenv("LOG_DIR", str(tmp_path / "shards"))
    for worker in (1, 0):
        code, _, err = run(*RUN, "--imgs_to_eval", 5, "--n_workers", 2, "--worker_idx", worker)
        assert code == 0, err
    assert_same(records(tmp_path / "shards" / FOLDER.relative_to("data")), whole)


def test_batch_size_and_image_selection_do_not_change_numbers(run, tmp_path, monkeypatch):
    np.save("subset.npy", np.array([7, 900]))
    run(*RUN, "--subset_path", "subset.npy")
    whole = records()
    monkeypatch.setenv("LOG_DIR", str(tmp_path / "other"))
    np.save("subset.npy", np.array([900, 3, 7]))
    run(*RUN, "--subset_path", "subset.npy", "--batch_size", 5)
    other = records(tmp_path / "other" / FOLDER.relative_to("data"))
    assert_same({name: other[name] for name in whole}, whole, exact=False)


@pytest.mark.parametrize("change", [["--seed", 1], ["--split", "test", "--dtype", "bfloat16"], ["--template", "a {}"]])
def test_a_run_that_would_mix_is_refused(run, change):
    run(*RUN, "--imgs_to_eval", 1)
    before = records()
    code, _, err = run(*RUN, "--imgs_to_eval", 2, *change)
    assert code == 2 and err.count("\n") == 1 and "--extra" in err
    assert {"--seed": "seed (0 there, 1 now)", "--split": "dtype (float32", "--template": "prompts"}[change[0]] in err
    assert_same(records(), before)


def test_options_that_change_no_number_may_differ(run):
    run(*RUN, "--imgs_to_eval", 1)
    assert run(*RUN, "--imgs_to_eval", 2, "--batch_size", 7, "--dtype", "float32", "--n_workers", 1)[0] == 0


def test_recipes_fill_in_what_was_not_given(run):
    tiny = ["--dataset", "fashion_mnist", "--model_path", TINY_SD20, "--img_size", 64, "--dry_run"]
    recipe = eval_prob_adaptive.DATASETS["fashion_mnist"].recipe
    assert options(run(*tiny)[1]) == (" ".join(map(str, recipe.to_keep)), recipe.loss)
    out = run(*tiny, "--to_keep", 2, 1, "--n_samples", 5, 10)[1]
    assert options(out) == ("2 1", "l2") and "2_1keep_5_10samples_64" in out  # the published default when stages are given


def options(out):
    """(to_keep, loss) as the command printed them."""
    return tuple(re.search(rf"^  {name} +(.*)$", out, re.M)[1] for name in ("to_keep", "loss"))


# ---------------------------------------------------------------- signals and kills


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_image_in_work(number, run, forked):
    children = forked.start([{}], RUN)
    forked.wait_for_records(FOLDER, 2, children)
    os.kill(children[0], number)
    assert forked.wait(children) == [128 + number]
    out, err = said()
    assert f"Stopped by {number.name}: run the same command to continue." in err and "Traceback" not in err
    saved = records()
    assert 2 <= len(saved) < 1000 and f"n = {len(saved)}" in out
    code, out, _ = run(*RUN, "--dry_run")
    assert code == 0 and f"{len(saved)} of 1000 done before" in out


@pytest.mark.slow
def test_kill_9_and_continue(run, forked):
    children = forked.start([{}], [*RUN, "--imgs_to_eval", 40])
    forked.wait_for_records(FOLDER, 3, children)
    os.kill(children[0], signal.SIGKILL)
    forked.wait(children)
    code, out, err = run(*RUN, "--imgs_to_eval", 40)
    assert code == 0, err
    killed = records()
    assert len(killed) == 40 and "n = 40" in out
    shutil.rmtree("data")
    run(*RUN, "--imgs_to_eval", 40)
    whole = records()
    assert_same(killed, whole, exact=False)  # the killed process had one thread, this one may have more


# ---------------------------------------------------------------- failures in the work


def picture_folder(root, broken=()):
    for label, name in enumerate(("apple_tree", "zebra")):
        (root / name).mkdir(parents=True)
        for i in range(2):
            path = root / name / f"{i}.png"
            Image.fromarray(np.full((70, 80), 50 + 100 * label + i, np.uint8)).save(path)
    for name in broken:
        (root / name).write_bytes((root / name).read_bytes()[:40])


SMALL = [*MODEL, "--to_keep", "1", "--n_samples", "3"]


def test_an_unreadable_image_is_reported_and_all_others_are_done(run, tmp_path):
    picture_folder(tmp_path / "pictures", broken=["zebra/0.png"])
    code, out, err = run("--dataset", "folder", "--data_dir", tmp_path / "pictures", *SMALL)
    assert code == 1 and "n = 3" in out
    assert "1 images failed" in err and "2: image 2" in err and "zebra/0.png" in err
    assert sorted(records(Path("data/folder_pictures/v2-0_1trials_1keep_3samples_64"))) == ["0.pt", "1.pt", "3.pt"]


def test_nan_errors_are_reported_never_predicted(run, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(TINY_SD20, tmp_path / "nan")
    path = tmp_path / "nan" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.bias"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    code, _, err = run(*RUN, "--model_path", tmp_path / "nan", "--imgs_to_eval", 2)
    assert code == 1 and "2 images failed" in err and "not finite: try --dtype bfloat16" in err
    assert records() == {}


@pytest.mark.parametrize("workers", [0, 2])
def test_images_come_in_order_from_this_process_or_from_others(tmp_path, workers):
    picture_folder(tmp_path / "pictures", broken=["zebra/1.png"])
    dataset = open_dataset("folder", "test", sd_transform(64), tmp_path / "pictures")
    loaded = list(load_images(dataset, [3, 0, 2], workers))
    assert [index for index, *_ in loaded] == [3, 0, 2] and [label for _, _, label, _ in loaded] == [None, 0, 1]
    assert "image 3" in loaded[0][3] and loaded[0][1] is None
    assert all(problem is None and torch.equal(image, dataset[index][0]) for index, image, _, problem in loaded[1:])


def own_sets():
    """Two folders with other pictures: one/pictures and two/pictures."""
    for name, grey in (("one", 200), ("two", 0)):
        picture_folder(Path(name) / "pictures")
        Image.fromarray(np.full((70, 80), grey, np.uint8)).save(Path(name) / "pictures" / "zebra" / "1.png")


def test_another_set_of_the_same_name_and_size_is_refused_by_its_place(run):
    own_sets()
    assert run("--dataset", "folder", "--data_dir", "one/pictures", *SMALL)[0] == 0
    code, _, err = run("--dataset", "folder", "--data_dir", "two/pictures", *SMALL)
    assert code == 2 and "data/folder_pictures/v2-0_1trials_1keep_3samples_64 holds another run, which differs in images " in err
    assert "images (--data_dir one/pictures there, two/pictures now). Use its settings, or start a new run folder" in err
    Image.fromarray(np.zeros((70, 80), np.uint8)).save("one/pictures/apple_tree/0.png")
    err = run("--dataset", "folder", "--data_dir", "one/pictures", *SMALL)[2]
    assert re.search(r"images \(other content of --data_dir one/pictures: \w{16} there, \w{16} now\)", err)


def test_a_folder_from_before_sets_had_names_goes_on_and_stops_nobody_else(run):
    own_sets()
    folder, one = ["--dataset", "folder", "--data_dir"], "one/pictures"
    assert run(*folder, one, *SMALL, "--imgs_to_eval", 2)[0] == 0
    Path("data/folder_pictures").rename("data/folder")
    code, out, err = run(*folder, one, *SMALL)
    assert code == 0 and "Run folder: data/folder/v2" in out and "2 to do here, 2 of 4 done before" in out, err
    Path("two/pictures").rename("two/others")
    for place, more in (("two/others", []), (one, ["--seed", 1])):
        code, out, err = run(*folder, place, *SMALL, *more)
        assert code == 0 and f"Run folder: data/folder_{Path(place).name}/v2" in out and "0 of 4 done before" in out, err
    assert len(records(Path("data/folder/v2-0_1trials_1keep_3samples_64"))) == 4


# ---------------------------------------------------------------- own data


def test_folder_prompts_come_from_the_class_names(run, tmp_path):
    picture_folder(tmp_path / "pictures")
    code, _, err = run(
        "--dataset", "folder", "--data_dir", tmp_path / "pictures", *SMALL, "--template", "an oil painting of a {}"
    )
    assert code == 0, err
    saved = records(Path("data/folder_pictures/v2-0_1trials_1keep_3samples_64"))
    assert [r["label"] for r in saved.values()] == [0, 0, 1, 1]
    config = json.loads(Path("data/folder_pictures/v2-0_1trials_1keep_3samples_64/config.json").read_text())
    assert config["identity"]["prompts"] == fingerprint(["an oil painting of a apple tree", "an oil painting of a zebra"], [0, 1])


def test_hugging_face_set_from_disk(run, tmp_path):
    from datasets import load_dataset

    picture_folder(tmp_path / "pictures")
    load_dataset("imagefolder", data_dir=str(tmp_path / "pictures"), cache_dir=str(tmp_path / "cache"))["train"].save_to_disk(
        "saved"
    )
    code, out, err = run("--dataset", "hf", "--data_dir", "saved", *SMALL)
    assert code == 0, err
    assert "n = 4" in out and len(records(Path("data/hf_saved/v2-0_1trials_1keep_3samples_64"))) == 4


# ---------------------------------------------------------------- the offline report


def test_print_acc_merges_workers_and_writes_files(run, run_main, tmp_path, monkeypatch):
    folders = []
    for worker in (0, 1):
        monkeypatch.setenv("LOG_DIR", str(tmp_path / f"w{worker}"))
        run(*RUN, "--imgs_to_eval", 5, "--n_workers", 2, "--worker_idx", worker)
        folders.append(tmp_path / f"w{worker}" / FOLDER.relative_to("data"))
    main = load_script("print_acc").main
    code, out, err = run_main(main, *folders, "--json", "acc.json", "--csv", "acc.csv")
    assert code == 0 and "Images: 5 of 5" in out, err
    assert "Images: 3 of 5" in run_main(main, folders[0])[1]
    lines = Path("acc.csv").read_text().splitlines()
    assert lines[0] == "index,label,pred,evaluations" and len(lines) == 6
    right = sum(line.split(",")[1] == line.split(",")[2] for line in lines[1:])
    written = json.loads(Path("acc.json").read_text())
    assert written["top1"]["value"] == right / 5 and written["top1"]["n"] == 5 and written["evaluations_per_image"] == 26


def test_print_acc_refuses_folders_of_other_settings(run, run_main, tmp_path, monkeypatch):
    for seed in (0, 1):
        monkeypatch.setenv("LOG_DIR", str(tmp_path / str(seed)))
        run(*RUN, "--imgs_to_eval", 1, "--seed", seed)
    folders = [tmp_path / str(seed) / FOLDER.relative_to("data") for seed in (0, 1)]
    code, _, err = run_main(load_script("print_acc").main, *folders)
    assert code == 2 and err.count("\n") == 1 and "differ in seed" in err


def test_print_acc_refuses_folders_that_contradict_each_other(run_main, tmp_path):
    for name, pred in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        record = staged_record([1, 2], {1: [0.5], 2: [0.5]}, [5], pred, 1)
        run_folder.save_record(tmp_path / name / "0.pt", record)
    code, _, err = run_main(load_script("print_acc").main, tmp_path / "a", tmp_path / "b")
    assert code == 2 and "image 0 has two results" in err


def test_save_noise_is_the_published_bank(run_main):
    code, out, _ = run_main(load_script("save_noise").main, "--img_size", 64, "--n", 100)
    expected = torch.randn(1024, 4, 8, 8, generator=torch.Generator().manual_seed(42))[:100]
    assert code == 0 and torch.equal(torch.load("noise_64.pt", weights_only=True), expected) and "[100, 4, 8, 8]" in out


# ---------------------------------------------------------------- the shipped model


@pytest.mark.slow
def test_the_readme_command_on_a_few_images(run):
    code, out, err = run("--version", "tiny", "--dataset", "fashion_mnist", "--imgs_to_eval", 10)
    assert code == 0, err
    accuracy = float(out.split("Top-1 accuracy: ")[1].split("%")[0])
    assert accuracy >= 60  # ten classes: chance is 10; measured on all 1,000: see the model card


def test_the_shipped_pipeline_opens_in_diffusers_and_draws():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(paths.TINY_SD)
    picture = pipeline("a photo of a bag.", height=64, width=64, num_inference_steps=3, output_type="np").images[0]
    assert picture.shape == (64, 64, 3) and np.isfinite(picture).all()
    assert sum(path.stat().st_size for path in paths.SHIPPED.glob("tiny-sd/**/*")) < 16e6


def test_the_shipped_images_are_a_hundred_a_class():
    shipped = open_dataset("fashion_mnist", "test", None, "nowhere")
    assert np.bincount(shipped.labels).tolist() == [100] * 10
    assert "1,000 shipped test images" in shipped.notice
