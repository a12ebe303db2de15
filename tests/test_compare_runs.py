"""scripts/compare_runs.py on records by hand and on two real runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_SD20, load_script, staged_record

import eval_prob_adaptive
from diffusion import runlog


def save(folder, index, errors, pred, label, t=(125, 375, 625, 875)):
    Path(folder).mkdir(exist_ok=True)
    kept = {k: np.array(row, np.float32) for k, row in enumerate(errors)}
    runlog.save_record(Path(folder) / f"{index}.pt", staged_record(range(len(errors)), kept, torch.tensor(t), pred, label))


@pytest.fixture
def compare(run_main):
    return lambda *argv: run_main(load_script("compare_runs").main, *argv)


def test_hand_table(compare):
    """Three common images, two with the same prediction; errors 1 and 1.1, 2 and 1.9, ... at common pairs."""
    for index, (pred, other, label) in enumerate([(0, 0, 0), (1, 0, 1), (1, 1, 0)]):
        save("a", index, [[1, 2, 4, 4], [2, 2]], pred, label)
        save("b", index, [[1.1, 1.9, 4], [2, 3]], other, label)
    save("a", 9, [[1, 2], [1, 2]], 0, 0)
    code, out, err = compare("a", "b", "--json", "out.json")
    assert code == 0, err
    result = json.loads(Path("out.json").read_text())
    assert result["agreement"]["value"] == pytest.approx(2 / 3) and result["agreement"]["n"] == 3
    assert (result["accuracy"]["value"], result["accuracy_other"]["value"]) == pytest.approx((2 / 3, 1 / 3))
    assert (result["evaluations"], result["evaluations_other"], result["errors_compared"]) == (6, 5, 15)
    assert result["mean_relative_difference"] == pytest.approx((0.1 + 0.05 + 0 + 0 + 0.5) / 5, rel=1e-6)
    assert "66.67% (95% interval" in out and "mean 1.3e-01 over 15" in out


def test_other_orders_of_timesteps_have_other_noise(compare):
    save("a", 0, [[1, 2, 3, 4]] * 2, 0, 0)
    save("b", 0, [[1, 2, 3, 4]] * 2, 0, 0, t=(875, 125, 375, 625))
    assert "no error at the same timestep and noise" in compare("a", "b")[1]


def test_bfloat16_against_float32(compare, run_main):
    run = ["--dataset", "fashion_mnist", "--model_path", TINY_SD20, "--img_size", 64, "--imgs_to_eval", 2]
    run += ["--to_keep", 3, 1, "--n_samples", 2, 4]
    for dtype in ("float32", "bfloat16"):
        assert run_main(eval_prob_adaptive.main, *run, "--dtype", dtype, "--extra", dtype)[0] == 0
    name = "v2-0_1trials_3_1keep_2_4samples_64"
    code, _, err = compare(f"data/fashion_mnist_float32/{name}", f"data/fashion_mnist_bfloat16/{name}", "--json", "out.json")
    assert code == 0, err
    result = json.loads(Path("out.json").read_text())
    assert result["evaluations"] == 26 and 1e-6 < result["mean_relative_difference"] < 0.1


def test_bad_input(compare):
    save("a", 0, [[1.0] * 4] * 2, 0, 0)
    save("b", 1, [[1.0] * 4] * 2, 0, 0)
    save("c", 0, [[1.0] * 4] * 3, 0, 0)
    for other, told in (("b", "no image in common"), ("c", "different classes"), ("d", "no readable record")):
        code, _, err = compare("a", other)
        assert code == 2 and err.count("\n") == 1 and told in err, err
