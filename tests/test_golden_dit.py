"""eval_prob_dit.py and print_dit_acc.py against what the published code wrote: 1e-5, KL 1e-4, NLL 1e-3."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, TINY_SD20, load_script, some_slow

import eval_prob_dit

CASES = torch.load(GOLDEN / "dit_cases.pt", weights_only=True)
MODEL = ["--model_path", str(GOLDEN / "tiny-dit" / "DiT-XL-2-256x256.pt"), "--vae_path", str(TINY_SD20 / "vae")]
TOLERANCE = (1e-5, 1e-5, 1e-4, 1e-3)  # of mse, l1, kl, nll


@pytest.fixture(autouse=True)
def noise_256(golden_root):
    bank = torch.randn(1024, 4, 32, 32, generator=torch.Generator().manual_seed(42))
    torch.save(bank[:100].clone(), "noise_256.pt")


def compare(path, expected):
    ours = torch.load(path, weights_only=True)
    assert ours.shape == expected.shape and ours.dtype == torch.float32
    if ours.ndim == 2:
        return np.testing.assert_allclose(ours, expected, rtol=1e-5)
    for column, tolerance in enumerate(TOLERANCE):
        np.testing.assert_allclose(ours[..., column], expected[..., column], rtol=tolerance)


@pytest.mark.parametrize("name", some_slow(CASES, ["x04_vb_print"]))
def test_golden_case(name, run_main):
    case = CASES[name]
    for script, *argv in case["steps"]:
        dit = script == "eval_prob_dit.py"
        main = eval_prob_dit.main if dit else load_script("print_dit_acc").main
        code, printed, err = run_main(main, *argv, *(MODEL if dit else ()))
        assert code == 0, err
    for file, expected in case["records"].items():
        compare(Path("data") / file, expected)
    assert len(list(Path("data").rglob("*.pt"))) == len(case["records"])
    if case["accuracies"]:
        assert "Found 15 shared files across all 5 subdirs." in printed
        percents = [float(x) for x in re.findall(r"Accuracy for \S+: ([\d.]+)%", printed)]
        assert percents == [round(100 * a, 2) for a in case["accuracies"]]


def test_several_classes_in_one_process_write_the_same_files(run_main):
    case = CASES["x01_default"]
    argv = [word for word in case["steps"][0][1:]][:-1]  # everything but the number of --cls
    code, _, err = run_main(eval_prob_dit.main, *argv, "0-1", "--save_per_class", *MODEL)
    assert code == 0, err
    for file, expected in case["records"].items():
        compare(Path("data") / file, expected)
