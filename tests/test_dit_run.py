"""Whole runs of eval_prob_dit.py on a tiny real transformer with random weights: records, interruptions, other test sets."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, TINY_SD20, load_script
from PIL import Image
from test_dit_model import TINY, randomised

import eval_prob_dit
from diffusion import datasets, models
from diffusion.models.families import dit
from diffusion.training import fashion_mnist
from diffusion.utils import paths

VAE = ["--vae_path", str(TINY_SD20 / "vae")]
CLOTHES = ["--dataset", "fashion_mnist"]
GRID = ["--t_interval", "200"]  # five timesteps
FOLDER = Path("data/fashion_mnist/DiT64x64_10classes_t200_1trials")
print_dit_acc = load_script("print_dit_acc")


@pytest.fixture
def run(run_main, tiny_dit):
    return lambda *argv: run_main(eval_prob_dit.main, *tiny_dit, *argv)


def record(index, folder=FOLDER):
    return torch.load(folder / f"{index}.pt", weights_only=True)


def assert_same(a, b, rtol):
    """Two run folders hold the same records."""
    names = sorted(path.name for path in a.glob("*.pt"))
    assert names and names == sorted(path.name for path in b.glob("*.pt"))
    for name in names:
        one, other = (torch.load(folder / name, weights_only=True) for folder in (a, b))
        assert one.keys() == other.keys()
        for x, y in ((one[key], other[key]) for key in one if key != "seconds"):
            if torch.is_tensor(x):
                torch.testing.assert_close(x, y, rtol=rtol, atol=rtol)
            else:
                assert x == y


# ---------------------------------------------------------------- records


def test_sums_belong_to_the_errors_and_give_the_prediction(run, run_main):
    code, out, err = run(*CLOTHES, *GRID, "--imgs_to_eval", 4, "--save_errors")
    assert code == 0, err
    assert "Price: 50 network evaluations per image, 200 in all" in out and "50 evaluations per image" in out
    right = {"L2": 0, "L1": 0, "VLB": 0, "L2+VLB": 0}
    for index in range(4):
        saved = record(index)
        assert list(saved) == ["classes", "t", "sums", "terms", "pred", "label", "seconds"]
        terms = saved["terms"].double().numpy()
        assert terms.shape == (10, 5, 4) and saved["t"].tolist() == [100, 300, 500, 700, 900]
        np.testing.assert_allclose(saved["sums"], terms.sum(1), rtol=1e-12)
        means = terms.mean(1)
        assert saved["pred"] == means[:, 0].argmin()
        columns = {"L2": means[:, 0], "L1": means[:, 1], "VLB": means[:, 2], "L2+VLB": means[:, 0] + means[:, 2]}
        for name, column in columns.items():
            right[name] += column.argmin() == saved["label"]
    code, told, err = run_main(print_dit_acc.main, FOLDER)
    assert code == 0 and [float(x) for x in re.findall(r": ([\d.]+)%", told)] == [25.0 * n for n in right.values()], err
    assert "Images: 4 of 4, 10 classes" in told and "Cost: 50 evaluations per image" in told
    assert out.split("Top-1 accuracy: ")[1].splitlines()[0] == told.split("for L2: ")[1].splitlines()[0]


def test_only_sums_are_kept_unless_asked(run):
    run(*CLOTHES, *GRID, "--imgs_to_eval", 1)
    assert "terms" not in record(0) and (FOLDER / "0.pt").stat().st_size < 5000


def test_classes_one_by_one_and_all_at_once_give_the_same_numbers(run, run_main):
    images = [*CLOTHES, *GRID, "--imgs_to_eval", 2]
    run(*images, "--save_errors")
    code, out, err = run(*images, "--save_per_class", "--save_vb", "--cls", "0-9")
    assert code == 0, err
    for c in range(10):
        for index in range(2):
            single = record(index, Path(f"data/fashion_mnist/DiT64x64_cls{c}_t200_1trials"))
            assert single.shape == (5, 1, 4)
            torch.testing.assert_close(single[:, 0], record(index)["terms"][c], rtol=1e-5, atol=1e-6)
    pattern, *command = out.split("Report: python scripts/print_dit_acc.py ")[1].split()
    command = [*Path().glob(pattern), *command]  # as the shell does
    of_classes = run_main(print_dit_acc.main, *command)
    of_records = run_main(print_dit_acc.main, FOLDER, "--json", "acc.json")
    assert of_classes[0] == of_records[0] == 0, of_classes[2] + of_records[2]
    accuracies = [re.findall("Accuracy.*", printed) for _, printed, _ in (of_classes, of_records)]
    assert len(accuracies[0]) == 4 and accuracies[0] == accuracies[1]
    assert json.loads(Path("acc.json").read_text())["L2"]["n"] == 2


def test_one_class_gets_the_published_folder(run):
    for argv, name, shape in [
        ([], "DiT64x64_cls7_t200_2trials", (5, 2)),
        (["--spatial", "--randomize_noise"], "DiT64x64_cls7_t200_2trials_randnoise_spatial", (5, 2, 8, 8)),
        (["--save_eps"], "DiT64x64_cls7_t200_2trials_eps", (5, 2, 4, 8, 8)),
        (["--save_eps_and_var"], "DiT64x64_cls7_t200_2trials_epsvar", (5, 2, 8, 8, 8)),
    ]:
        code, _, err = run(*CLOTHES, *GRID, "--imgs_to_eval", 1, "--cls", 7, "--n_trials", 2, *argv)
        assert code == 0, err
        assert record(0, Path("data/fashion_mnist") / name).shape == shape
    errors = record(0, Path("data/fashion_mnist/DiT64x64_cls7_t200_2trials"))
    maps = record(0, Path("data/fashion_mnist/DiT64x64_cls7_t200_2trials_randnoise_spatial"))
    torch.testing.assert_close(maps.mean((2, 3)), errors)
    both = record(0, Path("data/fashion_mnist/DiT64x64_cls7_t200_2trials_epsvar"))
    torch.testing.assert_close(both[:, :, :4], record(0, Path("data/fashion_mnist/DiT64x64_cls7_t200_2trials_eps")))


def test_stages_without_elimination_are_the_grid(run):
    """One noise at every timestep, so that the stages' order of evaluation meets the same noise as the grid's."""
    torch.save(torch.randn(1, 4, 8, 8).expand(10, -1, -1, -1).clone(), "bank.pt")
    images = [*CLOTHES, "--imgs_to_eval", 3, "--loss", "l1", "--noise_path", "bank.pt"]
    run(*images, "--t_interval", 100, "--save_errors")
    code, _, err = run(*images, "--to_keep", 10, 1, "--n_samples", 2, 10)
    assert code == 0, err
    for index in range(3):
        grid = record(index, Path("data/fashion_mnist/DiT64x64_10classes_t100_1trials"))
        staged = record(index, Path("data/fashion_mnist/DiT64x64_10classes_1trials_10_1keep_2_10samples_l1"))
        assert list(staged) == ["errors", "pred", "label", "seconds"] and sorted(staged["errors"]) == list(range(10))
        assert staged["pred"] == grid["pred"] == int(grid["sums"][:, 1].argmin())
        for c, candidate in staged["errors"].items():
            order = np.argsort(candidate["t"])
            assert candidate["t"][order].tolist() == grid["t"].tolist()
            torch.testing.assert_close(candidate["pred_errors"][order], grid["terms"][c, :, 1], rtol=1e-5, atol=1e-6)


def test_stages_see_the_same_noise_as_a_grid_of_the_same_timesteps(run):
    run(*CLOTHES, "--t_interval", 100, "--imgs_to_eval", 1, "--save_errors")
    run(*CLOTHES, "--to_keep", 1, "--n_samples", 10, "--imgs_to_eval", 1)
    staged = record(0, Path("data/fashion_mnist/DiT64x64_10classes_1trials_1keep_10samples"))
    grid = record(0, Path("data/fashion_mnist/DiT64x64_10classes_t100_1trials"))
    for c in range(10):
        torch.testing.assert_close(staged["errors"][c]["pred_errors"], grid["terms"][c, :, 0])


def test_elimination_evaluates_what_it_says(run, run_main):
    argv = ["--to_keep", 4, 1, "--n_samples", 2, 10, "--imgs_to_eval", 3]
    code, out, _ = run(*CLOTHES, *argv)
    assert code == 0 and "Price: 52 network evaluations per image" in out and "Cost: 52 evaluations per image" in out
    folder = Path("data/fashion_mnist/DiT64x64_10classes_1trials_4_1keep_2_10samples")
    assert sorted(len(c["pred_errors"]) for c in record(0, folder)["errors"].values()) == [2] * 6 + [10] * 4
    code, told, err = run_main(print_dit_acc.main, folder)
    assert code == 0 and "by elimination" in told and "Cost: 52 evaluations per image" in told, err
    code, told, err = run_main(load_script("print_acc").main, folder)
    assert code == 0 and "n = 3" in told, err


@pytest.mark.parametrize("loss", ["kl", "vlb"])
def test_the_bound_takes_nll_at_the_first_timestep(loss, run):
    run(*CLOTHES, "--to_keep", 1, "--n_samples", 1000, "--imgs_to_eval", 1, "--loss", loss, "--cls", "0,1", "--batch_size", 250)
    run(*CLOTHES, "--t_interval", 1, "--imgs_to_eval", 1, "--cls", "0,1", "--save_errors", "--batch_size", 250)
    staged = record(0, Path(f"data/fashion_mnist/DiT64x64_2classes_1trials_1keep_1000samples_{loss}"))["errors"][1]["pred_errors"]
    terms = record(0, Path("data/fashion_mnist/DiT64x64_2classes_t1_1trials"))["terms"][1]
    torch.testing.assert_close(staged[1:], terms[1:, 2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(staged[0], terms[0, 3 if loss == "vlb" else 2], rtol=1e-4, atol=1e-5)


def test_batch_size_does_not_change_numbers(run, monkeypatch):
    run(*CLOTHES, *GRID, "--imgs_to_eval", 2)
    monkeypatch.setenv("LOG_DIR", "other")
    run(*CLOTHES, *GRID, "--imgs_to_eval", 2, "--batch_size", 7)
    assert_same(FOLDER, Path("other") / FOLDER.relative_to("data"), rtol=1e-5)


def test_a_bank_is_read_by_position_in_the_batch_as_published(run):
    """Four rows serve any grid at batch size 4: sample 4 meets row 0 again, where --randomize_noise asks for a fifth."""
    torch.save(torch.randn(4, 4, 8, 8), "noise.pt")
    code, _, err = run(*CLOTHES, *GRID, "--imgs_to_eval", 1, "--noise_path", "noise.pt", "--batch_size", 4)
    assert code == 0, err
    code, _, err = run(*CLOTHES, *GRID, "--imgs_to_eval", 1, "--noise_path", "noise.pt", "--batch_size", 4, "--randomize_noise")
    assert code == 2 and err.count("\n") == 1 and "noise.pt holds [4, 4, 8, 8], needed is [5 or more" in err
    code, _, err = run(*CLOTHES, *GRID, "--imgs_to_eval", 1, "--noise_path", "noise.pt", "--batch_size", 3)
    assert code == 2 and "noise" in err  # another pairing: the run in the folder is another one


def test_workers_share_the_images(run, run_main):
    argv = [*CLOTHES, *GRID, "--imgs_to_eval", 3, "--n_workers", 2]
    assert run(*argv, "--worker_idx", 0)[0] == run(*argv, "--worker_idx", 1)[0] == 0
    assert sorted(path.name for path in FOLDER.glob("*.pt")) == ["0.pt", "1.pt", "2.pt"]
    assert "Images: 3 of 3" in run_main(print_dit_acc.main, FOLDER)[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_networks_give_float32_terms_near_those_of_float32(dtype, run):
    run(*CLOTHES, *GRID, "--imgs_to_eval", 1, "--save_errors")
    code, _, err = run(*CLOTHES, *GRID, "--imgs_to_eval", 1, "--save_errors", "--dtype", dtype, "--extra", dtype)
    assert code == 0, err
    whole, half = record(0)["terms"], record(0, Path(f"data/fashion_mnist_{dtype}") / FOLDER.name)["terms"]
    assert half.dtype == torch.float32 and not torch.equal(whole, half)
    torch.testing.assert_close(half[..., :2], whole[..., :2], rtol=0.05, atol=0.01)


# ---------------------------------------------------------------- interruptions


@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], ["--save_per_class"]])
def test_kill_9_and_continue(mode, run, tiny_dit, forked):
    argv = [*CLOTHES, *GRID, "--imgs_to_eval", 30, *mode]
    watched = Path("data/fashion_mnist/DiT64x64_cls9_t200_1trials") if mode else FOLDER
    children = forked.start([{}], [*tiny_dit, *argv], "eval_prob_dit")
    forked.wait_for_records(watched, 2, children)
    os.kill(children[0], signal.SIGKILL)
    forked.wait(children)
    code, out, err = run(*argv)
    assert code == 0 and re.search(r"Images: \d+ to do here, [1-9]\d* of 30 done before", out), err
    killed = Path("killed")
    shutil.move("data", killed)
    run(*argv)
    if mode:
        for c in range(10):
            name = Path(f"fashion_mnist/DiT64x64_cls{c}_t200_1trials")
            for i in range(30):
                torch.testing.assert_close(record(i, killed / name), record(i, Path("data") / name), rtol=1e-5, atol=1e-6)
    else:
        assert_same(killed / FOLDER.relative_to("data"), FOLDER, rtol=1e-5)


def test_a_missing_class_of_an_image_is_made_up_for(run):
    argv = [*CLOTHES, *GRID, "--imgs_to_eval", 2, "--cls", "3,5", "--save_per_class"]
    run(*argv)
    one = Path("data/fashion_mnist/DiT64x64_cls5_t200_1trials/1.pt")
    before = torch.load(one, weights_only=True)
    one.write_bytes(b"half")
    code, out, _ = run(*argv)
    assert code == 0 and "Images: 1 to do here, 1 of 2 done before" in out
    assert "Note: 1 unreadable record, redone: class 5: 1.pt (" in out
    assert torch.equal(torch.load(one, weights_only=True), before)


def test_a_run_that_would_mix_is_refused(run):
    run(*CLOTHES, *GRID, "--imgs_to_eval", 1, "--cls", "1,2")
    for change, named in [(["--cls", "1,3"], "classes"), (["--cls", "1,2", "--seed", 1], "seed"),
                          (["--cls", "1,2", "--save_errors"], "saved"), (["--cls", "1,2", "--loss", "l1"], "loss")]:  # fmt: skip
        code, _, err = run(*CLOTHES, *GRID, "--imgs_to_eval", 1, *change)
        assert code == 2 and err.count("\n") == 1 and named in err and "--extra" in err


@pytest.mark.parametrize("channel", [0, 4])
def test_nan_errors_are_reported_never_predicted(channel, run_main, tmp_path):
    """In epsilon, and in the variance, which l2 does not see but the kept KL and NLL do."""
    state = randomised(num_classes=10).state_dict()
    state["final_layer.linear.bias"][channel] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"num_classes": 10}))
    for more in (GRID, [*GRID, "--cls", "4", "--save_vb"], ["--to_keep", 2, 1, "--n_samples", 2, 5]):
        argv = ["--model_path", tmp_path / "nan.pt", *VAE, *CLOTHES, "--imgs_to_eval", 1, *more]
        code, _, err = run_main(eval_prob_dit.main, *argv)
        assert code == 1 and "1 images failed" in err and "not finite" in err
    assert not list(Path("data").rglob("*.pt"))


# ---------------------------------------------------------------- images and classes of ImageNet


def test_images_of_any_mode_are_converted(run, tmp_path):
    for label, mode in enumerate(["L", "P", "CMYK", "RGBA", "RGB", "1", "LA", "I;16", "RGB", "L"]):
        folder = tmp_path / "pictures" / f"class{label}"
        folder.mkdir(parents=True)
        source = Image.fromarray(np.random.default_rng(label).integers(0, 256, (80, 70, 3), dtype=np.uint8))
        picture = source.convert("L" if mode == "I;16" else mode)
        picture = Image.fromarray(np.asarray(picture, np.uint16) * 256) if mode == "I;16" else picture
        picture.save(folder / f"a.{'tif' if mode == 'CMYK' else 'png'}")
    code, out, err = run("--dataset", "folder", "--data_dir", tmp_path / "pictures", *GRID)
    assert code == 0 and "n = 10" in out, err


def test_objectnet_predicts_its_own_labels(run_main, golden_root):
    model = ["--model_path", GOLDEN / "tiny-dit" / "DiT-XL-2-256x256.pt", *VAE]
    argv = ["--dataset", "objectnet", "--t_interval", 500, "--imgs_to_eval", 2, "--batch_size", 64]
    code, out, err = run_main(eval_prob_dit.main, *model, *argv)
    assert code == 0 and "Price: 250 network evaluations per image" in out, err
    folder = Path("data/objectnet/DiT256x256_125classes_t500_1trials")
    table = json.loads((paths.ROOT / "diffusion" / "datasets" / "readers" / "objectnet_to_imagenet.json").read_text())
    names = list(table)
    for index in range(2):
        saved = record(index, folder)
        best = int(saved["classes"][saved["sums"][:, 0].argmin()])
        assert best in table[names[saved["pred"]]]
    printed = run_main(print_dit_acc.main, folder)[1]
    assert out.split("Top-1 accuracy: ")[1].splitlines()[0] == printed.split("for L2: ")[1].splitlines()[0]


def test_classes_of_the_test_sets_that_reuse_imagenets():
    objectnet = datasets.labels_of_classes("objectnet", 113)
    assert len(objectnet) == 125 and sorted(set(objectnet.values())) == list(range(113)) and list(objectnet) == sorted(objectnet)
    names = datasets.class_names("objectnet")
    imagenet = datasets.class_names("imagenet")
    assert names[objectnet[954]].lower() == "banana" == imagenet[954]
    hard = datasets.labels_of_classes("imagenetA", 1000)
    assert len(hard) == 200 and all(i == label for i, label in hard.items()) and 6 in hard and 0 not in hard
    assert datasets.labels_of_classes("imagenet", 1000) == {i: i for i in range(1000)}


# ---------------------------------------------------------------- the shipped model


def test_the_shipped_model_on_a_few_images(run_main):
    code, out, err = run_main(eval_prob_dit.main, "--model", "tiny", *CLOTHES, *GRID, "--imgs_to_eval", 30, "--batch_size", 64)
    assert code == 0, err
    accuracy = float(out.split("Top-1 accuracy: ")[1].split("%")[0])
    assert accuracy >= 60  # ten classes: chance is 10; 91.8 on all 1,000: see the model card
    assert sum(path.stat().st_size for path in paths.TINY_DIT.iterdir()) < 10e6


def test_the_training_writes_what_the_command_reads(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    fashion_mnist.write_idx(tmp_path / "raw" / "train-images-idx3-ubyte", rng.integers(0, 256, (1020, 28, 28), dtype=np.uint8))
    fashion_mnist.write_idx(tmp_path / "raw" / "train-labels-idx1-ubyte", (np.arange(1020) % 10).astype(np.uint8))
    argv = ["dit", "--data_dir", tmp_path / "raw", "--out", tmp_path / "out", "--steps", 2, "--batch_size", 4]
    load_script("train_tiny").main([*map(str, argv), "--checkpoint_dir", str(tmp_path / "checkpoints")])
    monkeypatch.setattr(dit, "TINY_DIT", tmp_path / "out" / "tiny-dit")
    source = models.class_conditional("tiny")
    assert (source.default_size, source.num_classes, source.latent_shape(64)) == (64, 10, (4, 8, 8))
    denoiser = source.load("cpu", "float32")
    output = denoiser.predict(torch.randn(2, 4, 8, 8), torch.tensor([1, 9]), denoiser.embed([0, 9]))
    assert output.shape == (2, 8, 8, 8) and output.isfinite().all()
