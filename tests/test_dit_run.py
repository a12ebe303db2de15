"""Whole runs of eval_prob_dit.py and print_dit_acc.py on a tiny real transformer with random weights."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, TINY_SD20, load_script, start, wait_for_records
from PIL import Image
from test_dit_model import TINY, randomised

import eval_prob_dit
from diffusion import datasets, metrics, models, paths, schedule, training

VAE = ["--vae_path", str(TINY_SD20 / "vae")]
CLOTHES = ["--dataset", "fashion_mnist"]
GRID = ["--t_interval", "200"]  # five timesteps
FOLDER = Path("data/fashion_mnist/DiT64x64_10classes_t200_1trials")
print_dit_acc = load_script("print_dit_acc")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A transformer of ten classes for 64 px, in the published format."""
    folder = tmp_path_factory.mktemp("dit")
    torch.save(randomised(num_classes=10).state_dict(), folder / "dit.pt")
    (folder / "config.json").write_text(json.dumps(TINY | {"num_classes": 10}))
    return folder / "dit.pt"


@pytest.fixture
def run(run_main, checkpoint):
    return lambda *argv: run_main(eval_prob_dit.main, "--model_path", checkpoint, *VAE, *argv)


def record(index, folder=FOLDER):
    return torch.load(folder / f"{index}.pt", weights_only=True)


def assert_same(a, b, rtol):
    """Two run folders hold the same records."""
    names = sorted(path.name for path in a.glob("*.pt"))
    assert names and names == sorted(path.name for path in b.glob("*.pt"))
    for name in names:
        for x, y in zip(*(torch.load(folder / name, weights_only=True).values() for folder in (a, b)), strict=True):
            if torch.is_tensor(x):
                torch.testing.assert_close(x, y, rtol=rtol, atol=rtol)
            else:
                assert x == y


# ---------------------------------------------------------------- records


def test_sums_belong_to_the_errors_and_give_the_prediction(run, run_main):
    code, out, err = run(*CLOTHES, *GRID, "--imgs_to_eval", 4, "--save_errors")
    assert code == 0, err
    assert "Price: 50 network evaluations an image, 200 in all" in out and "50 evaluations an image" in out
    right = {"L2": 0, "L1": 0, "VLB": 0, "L2+VLB": 0}
    for index in range(4):
        saved = record(index)
        assert list(saved) == ["classes", "t", "sums", "squares", "terms", "pred", "label"]
        terms = saved["terms"].double().numpy()
        assert terms.shape == (10, 5, 4) and saved["t"].tolist() == [100, 300, 500, 700, 900]
        np.testing.assert_allclose(saved["sums"], terms.sum(1), rtol=1e-12)
        np.testing.assert_allclose(saved["squares"], (terms**2).sum(1), rtol=1e-12)
        means = terms.mean(1)
        assert saved["pred"] == means[:, 0].argmin()
        columns = {"L2": means[:, 0], "L1": means[:, 1], "VLB": means[:, 2], "L2+VLB": means[:, 0] + means[:, 2]}
        for name, column in columns.items():
            right[name] += column.argmin() == saved["label"]
    code, told, err = run_main(print_dit_acc.main, FOLDER)
    assert code == 0 and [float(x) for x in re.findall(r": ([\d.]+)%", told)] == [25.0 * n for n in right.values()], err
    assert "Images: 4 of 4, 10 classes" in told and "Cost: 50 evaluations an image" in told
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
        assert list(staged) == ["errors", "pred", "label"] and sorted(staged["errors"]) == list(range(10))
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
    assert code == 0 and "Price: 52 network evaluations an image" in out and "Cost: 52 evaluations an image" in out
    folder = Path("data/fashion_mnist/DiT64x64_10classes_1trials_4_1keep_2_10samples")
    assert sorted(len(c["pred_errors"]) for c in record(0, folder)["errors"].values()) == [2] * 6 + [10] * 4
    code, told, err = run_main(print_dit_acc.main, folder)
    assert code == 0 and "by elimination" in told and "Cost: 52 evaluations an image" in told, err
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


@pytest.mark.parametrize("mode", [[], ["--save_per_class"]])
def test_kill_9_and_continue(mode, run, checkpoint):
    argv = [*CLOTHES, *GRID, "--imgs_to_eval", 30, *mode]
    watched = Path("data/fashion_mnist/DiT64x64_cls9_t200_1trials") if mode else FOLDER
    child = start("eval_prob_dit.py", "--model_path", checkpoint, *VAE, *argv)
    wait_for_records(watched, 2, child)
    child.kill()
    child.communicate()
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
    with pytest.warns(UserWarning, match="unreadable"):
        code, out, _ = run(*argv)
    assert code == 0 and "Images: 1 to do here, 1 of 2 done before" in out
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
    assert code == 0 and "Price: 250 network evaluations an image" in out, err
    folder = Path("data/objectnet/DiT256x256_125classes_t500_1trials")
    table = json.loads((paths.ROOT / "diffusion" / "objectnet_to_imagenet.json").read_text())
    names = list(table)
    for index in range(2):
        saved = record(index, folder)
        best = int(saved["classes"][saved["sums"][:, 0].argmin()])
        assert best in table[names[saved["pred"]]]
    printed = run_main(print_dit_acc.main, folder)[1]
    assert out.split("Top-1 accuracy: ")[1].splitlines()[0] == printed.split("for L2: ")[1].splitlines()[0]


def test_objectnets_class_folders_are_mapped_to_its_labels(run_main, golden_root, tmp_path):
    """Two ImageNet classes of one ObjectNet label: whichever of them wins, the label is right."""
    label_of = datasets.labels_of_classes("objectnet", 113)
    images = datasets.open_dataset("objectnet", "test", None, GOLDEN / "data")
    label = int(images.labels[0])
    several = [c for c, of in label_of.items() if of == label]
    other = next(c for c, of in label_of.items() if of != label)
    class_files(tmp_path / "runs", {several[-1]: {0: [1.0, 1.0]}, other: {0: [2.0, 2.0]}})
    code, out, err = run_main(print_dit_acc.main, tmp_path / "runs", "--dataset", "objectnet")
    assert code == 0 and "Accuracy for L2: 100.00%" in out, err


def test_classes_of_the_test_sets_that_reuse_imagenets():
    objectnet = datasets.labels_of_classes("objectnet", 113)
    assert len(objectnet) == 125 and sorted(set(objectnet.values())) == list(range(113)) and list(objectnet) == sorted(objectnet)
    names = datasets.class_names("objectnet")
    imagenet = datasets.class_names("imagenet")
    assert names[objectnet[954]].lower() == "banana" == imagenet[954]
    hard = datasets.labels_of_classes("imagenetA", 1000)
    assert len(hard) == 200 and all(i == label for i, label in hard.items()) and 6 in hard and 0 not in hard
    assert datasets.labels_of_classes("imagenet", 1000) == {i: i for i in range(1000)}


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--t_interval", 3], ["--t_interval 3", "1000", "take 2"]),
        (["--t_interval", 0], ["--t_interval 0"]),
        (["--cls", "10"], ["--cls 10", "0 to 9"]),
        (["--cls", "7-3"], ["--cls", "0-999"]),
        (["--cls", "a"], ["--cls", "0-999"]),
        (["--cls", "4", "--spatial", "--save_vb"], ["--spatial and --save_vb", "one of them"]),
        (["--save_vb"], ["--save_vb", "--save_per_class"]),
        (["--cls", "4", "--save_errors"], ["--save_errors", "--cls"]),
        (["--cls", "4", "--to_keep", 1, "--n_samples", 5], ["--to_keep", "--cls"]),
        (["--to_keep", 1], ["--to_keep", "--n_samples"]),
        (["--n_samples", 1], ["--to_keep", "--n_samples"]),
        (["--to_keep", 11, 1, "--n_samples", 5, 10], ["--to_keep", "10 candidates"]),
        (["--to_keep", 1, "--n_samples", 10, "--t_interval", 5], ["--t_interval", "--to_keep"]),
        (["--noise_path", "short.pt", "--randomize_noise"], ["short.pt", "[5, 4, 8, 8]", "save_noise.py --img_size 64"]),
        (["--noise_path", "shape.pt"], ["shape.pt", "[500, 4, 16, 16]"]),
        (["--image-size", 128], ["64 px", "128 px"]),
        (["--image-size", 65], ["65"]),
        (["--model", "DiT-M/3", "--model_path", "bare.pt", "--image-size", 64], ["DiT-M/3", "DiT-XL/2"]),
        (["--model_path", "cut/dit.pt"], ["cut/dit.pt", "truncated"]),
        (["--model_path", "nowhere.pt"], ["nowhere.pt"]),
        (["--vae_path", "."], ["--vae_path .", "config.json"]),
        (["--dataset", "cifar10"], ["cifar-10-batches-py"]),
    ],
)
def test_bad_input_is_one_line_before_any_work(argv, told, run, checkpoint, monkeypatch):
    def refuse(*args):
        raise AssertionError("a model was loaded before the input was checked")

    if "cut/dit.pt" not in argv:  # whose bytes have to be read
        monkeypatch.setattr(models, "load_dit", refuse)
    torch.save(torch.randn(5, 4, 8, 8), "short.pt")
    torch.save(torch.randn(500, 4, 16, 16), "shape.pt")
    Path("bare.pt").touch()
    Path("cut").mkdir()
    shutil.copy(checkpoint.parent / "config.json", "cut")
    Path("cut/dit.pt").write_bytes(checkpoint.read_bytes()[:20_000])
    before = sorted(Path().iterdir())
    code, _, err = run(*CLOTHES, *argv)
    assert code == 2 and err.count("\n") == 1 and all(words in err for words in told), err
    assert sorted(Path().iterdir()) == before


def test_a_set_of_other_classes_than_the_model_is_refused(run, golden_root):
    code, _, err = run("--dataset", "objectnet")
    assert code == 2 and "1000 classes and the model about 10" in err
    Path("pictures/a").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save("pictures/a/0.png")
    code, _, err = run("--dataset", "folder", "--data_dir", "pictures")
    assert code == 2 and "1 classes and the model about 10" in err and "--model_path" in err


@pytest.mark.parametrize("t_interval", [0, -5, 3, 1001, 999])
def test_intervals_that_do_not_divide(t_interval):
    with pytest.raises(ValueError, match="--t_interval"):
        schedule.interval_plan(t_interval)


def test_interval_plan():
    plan = schedule.interval_plan(250, 2)
    assert plan.t.tolist() == [125, 125, 375, 375, 625, 625, 875, 875] and plan.stages == (slice(0, 8),)


@pytest.mark.parametrize(
    ("text", "classes"),
    [("7", [7]), ("0-3", [0, 1, 2, 3]), ("6,11,13", [6, 11, 13]), ("5,1-2,2", [1, 2, 5]), ("all", None), ("3-3", [3])],
)
def test_class_ranges(text, classes):
    assert eval_prob_dit.cli.class_ranges(text) == classes


def test_another_number_of_heads_is_another_model(run, checkpoint):
    """It shows in no tensor's shape, only in config.json."""
    run(*CLOTHES, *GRID, "--imgs_to_eval", 1)
    before = (checkpoint.parent / "config.json").read_text()
    try:
        (checkpoint.parent / "config.json").write_text(json.dumps(TINY | {"num_classes": 10, "num_heads": 2}))
        code, _, err = run(*CLOTHES, *GRID, "--imgs_to_eval", 2)
    finally:
        (checkpoint.parent / "config.json").write_text(before)
    assert code == 2 and "weights (" in err


def test_images_of_other_classes_than_the_chosen_are_told(run):
    assert "count as wrong" in run(*CLOTHES, *GRID, "--cls", "3,5", "--dry_run")[1]
    assert "count as wrong" not in run(*CLOTHES, *GRID, "--dry_run")[1]


# ---------------------------------------------------------------- print_dit_acc


def class_files(root, errors):
    """Folders as the reference writes them: errors {class: {index: tensor}}."""
    for c, files in errors.items():
        folder = root / f"DiT64x64_cls{c}_t500_1trials"
        folder.mkdir(parents=True)
        for index, values in files.items():
            torch.save(torch.tensor(values).view(2, 1), folder / f"{index}.pt")


def test_only_images_that_every_class_has_count(run_main, tmp_path):
    labels = datasets.open_dataset("fashion_mnist", "test", None, "nowhere").labels
    a, b = sorted({int(labels[0]), int(labels[1])})
    class_files(tmp_path / "runs", {a: {0: [1.0, 3.0], 1: [2.0, 2.0], 2: [0.0, 0.0]}, b: {0: [2.0, 2.0], 1: [1.0, 9.0]}})
    code, out, err = run_main(print_dit_acc.main, tmp_path / "runs", *CLOTHES)
    assert code == 0 and "Found 2 shared files across all 2 subdirs." in out, err
    expected = metrics.top1([a, a], labels[:2])  # a tie at image 0: the lower class
    assert f"Accuracy for L2: {expected}" in out and "L1" not in out and "Images: 2 of an unknown number, 2 classes" in out


def test_print_dit_acc_says_what_is_wrong(run_main, tmp_path):
    for argv, told in [
        ([tmp_path / "none"], "does not exist"),
        ([tmp_path], "holds neither"),
    ]:
        code, _, err = run_main(print_dit_acc.main, *argv)
        assert code == 2 and err.count("\n") == 1 and told in err
    class_files(tmp_path / "runs", {1: {0: [1.0, 3.0]}})
    code, _, err = run_main(print_dit_acc.main, tmp_path / "runs")
    assert code == 2 and "--dataset" in err
    (tmp_path / "runs" / "DiT64x64_cls1_t250_1trials").mkdir()
    code, _, err = run_main(print_dit_acc.main, tmp_path / "runs", *CLOTHES)
    assert code == 2 and "2 runs" in err and "cls*" in err
    code, _, err = run_main(print_dit_acc.main, tmp_path)
    assert code == 2 and "did you mean" in err and "cls1_t500" in err


def test_labels_come_from_the_images_that_were_evaluated(run, run_main, tmp_path):
    run(*CLOTHES, *GRID, "--imgs_to_eval", 1, "--cls", "0-1", "--save_per_class")
    folders = sorted(Path("data/fashion_mnist").iterdir())
    Path("pictures/a").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save("pictures/a/0.png")
    code, _, err = run_main(print_dit_acc.main, *folders, "--dataset", "folder", "--data_dir", "pictures")
    assert code == 2 and err.count("\n") == 1
    class_files(tmp_path / "old", {1: {5000: [1.0, 3.0]}})
    code, _, err = run_main(print_dit_acc.main, tmp_path / "old", *CLOTHES)
    assert code == 2 and "image 5000" in err and "1000 images" in err


def test_nan_in_a_log_is_left_out_and_counted(run_main, tmp_path):
    class_files(tmp_path / "runs", {1: {0: [1.0, 3.0], 1: [1.0, float("nan")]}, 2: {0: [2.0, 3.0], 1: [1.0, 1.0]}})
    code, out, err = run_main(print_dit_acc.main, tmp_path / "runs", *CLOTHES)
    assert code == 0 and "Images: 1 of" in out and "Left out: 1 images" in out, err


# ---------------------------------------------------------------- the shipped model


def test_the_shipped_model_on_a_few_images(run_main):
    code, out, err = run_main(eval_prob_dit.main, "--model", "tiny", *CLOTHES, *GRID, "--imgs_to_eval", 30, "--batch_size", 64)
    assert code == 0, err
    accuracy = float(out.split("Top-1 accuracy: ")[1].split("%")[0])
    assert accuracy >= 60  # ten classes: chance is 10; 91.1 on all 1,000: see the model card
    assert sum(path.stat().st_size for path in paths.TINY_DIT.iterdir()) < 10e6


def test_the_training_writes_what_the_command_reads(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    training.write_idx(tmp_path / "raw" / "train-images-idx3-ubyte", rng.integers(0, 256, (20, 28, 28), dtype=np.uint8))
    training.write_idx(tmp_path / "raw" / "train-labels-idx1-ubyte", np.arange(20, dtype=np.uint8) % 10)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tiny-sd").symlink_to(paths.TINY_SD)
    argv = ["dit", "--data_dir", tmp_path / "raw", "--out", tmp_path / "out", "--steps", 2, "--batch_size", 4]
    load_script("train_tiny").main([*map(str, argv), "--checkpoint_dir", str(tmp_path / "checkpoints")])
    monkeypatch.setattr(models, "TINY_DIT", tmp_path / "out" / "tiny-dit")
    files = models.find_dit("tiny", None, None, None)
    assert (files.img_size, files.num_classes, files.latent_shape) == (64, 10, (4, 8, 8))
    output = models.load_dit(files, "float32", "cpu").predict(torch.randn(2, 4, 8, 8), torch.tensor([1, 9]), torch.tensor([0, 9]))
    assert output.shape == (2, 8, 8, 8) and output.isfinite().all()
