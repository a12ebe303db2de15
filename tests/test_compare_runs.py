"""scripts/compare_runs.py on records by hand and on two real runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_SD20, load_script, staged_record

import eval_prob_adaptive
from diffusion.runs import run_folder


def save(folder, index, errors, pred, label, t=(125, 375, 625, 875)):
    Path(folder).mkdir(exist_ok=True)
    kept = {k: np.array(row, np.float32) for k, row in enumerate(errors)}
    run_folder.save_record(Path(folder) / f"{index}.pt", staged_record(range(len(errors)), kept, torch.tensor(t), pred, label))


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


def test_identical_records_are_counted(compare):
    for index, last in enumerate((4, 4, 4.0000005)):
        save("a", index, [[1, 2, 4, 4], [2, 2]], 0, 0)
        save("b", index, [[1, 2, 4, last], [2, 2]], index % 2, 0)
    assert re.search(r"identical to the last bit +1 of 3 records", compare("a", "b")[1])
    assert re.search(r"identical to the last bit +3 of 3 records", compare("a", "a")[1])


def test_sums_are_compared_by_their_means(compare):
    for folder, more in (("a", 0.0), ("b", 1e-9)):
        Path(folder).mkdir()
        sums = torch.tensor([[2.0, 1, 1, 1], [3 + more, 1, 1, 1]], dtype=torch.float64)
        record = {"classes": torch.arange(2), "t": torch.tensor([250, 750]), "sums": sums, "pred": 0, "label": 0}
        run_folder.save_record(Path(folder) / "0.pt", record)
    assert "1 of 1 records" in compare("a", "a")[1] and "0 of 1 records" in compare("a", "b")[1]


def test_two_runs_on_pairs(compare):
    """Ids 1 and 2 in common; the text of 1 is right in both, that of 2 in the first only; errors differ or do not."""
    right, wrong = (torch.tensor([[v]]) for v in (1.0, 2.0))
    fits = {"c0_i0": right, "c0_i1": wrong, "c1_i0": wrong, "c1_i1": right}
    misfits = {"c0_i0": wrong, "c0_i1": right, "c1_i0": right, "c1_i1": wrong}
    for folder, records in (("a", {0: fits, 1: fits, 2: fits}), ("b", {1: fits, 2: misfits, 3: fits})):
        run_folder.write_config(
            Path(folder), {"command": "run_winoground", "kind": "pairs", "identity": {}, "images_expected": 3}
        )
        for example_id, record in records.items():
            run_folder.save_record(Path(folder) / f"{example_id}.pt", record)
    code, out, err = compare("a", "b", "--json", "out.json")
    assert code == 0 and "same text score" in out and "evaluations per example" in out and "1 of 2 records" in out, err
    result = json.loads(Path("out.json").read_text())
    assert (result["accuracy"]["value"], result["accuracy_other"]["value"], result["agreement"]["value"]) == (1, 0.5, 0.5)
    assert (result["evaluations"], result["errors_compared"]) == (4, 8)
    assert result["mean_relative_difference"] == pytest.approx((4 * 0 + 2 * 1 + 2 * 0.5) / 8)


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
