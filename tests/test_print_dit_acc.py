"""scripts/print_dit_acc.py on folders of one class, ours and as the reference writes them, and what it refuses."""

from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, load_script
from PIL import Image

import eval_prob_dit
from diffusion import datasets, metrics

print_dit_acc = load_script("print_dit_acc")
CLOTHES = ["--dataset", "fashion_mnist"]
GRID = ["--t_interval", "200"]  # five timesteps


@pytest.fixture
def run(run_main, tiny_dit):
    return lambda *argv: run_main(eval_prob_dit.main, *tiny_dit, *argv)


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
