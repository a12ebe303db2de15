"""eval_prob_adaptive.py and print_acc.py against what the published code wrote: t exactly, errors within 1e-5."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT, TINY_SD20, load_script, some_slow

import eval_prob_adaptive

CASES = torch.load(GOLDEN / "cases.pt", weights_only=True)


@pytest.fixture
def noise_256():
    bank = torch.randn(1024, 4, 32, 32, generator=torch.Generator().manual_seed(42))
    torch.save(bank[:100].clone(), "noise_256.pt")


def here(word):
    """A word of a golden command with its files where this project keeps them."""
    if word.startswith("golden/"):
        return str(GOLDEN / "data" / word.removeprefix("golden/"))
    return str(ROOT / word) if word.startswith("prompts/") else word


@pytest.mark.parametrize("name", some_slow(CASES, CASES.keys() - {"a05_3stage", "d08_objectnet"}))
def test_golden_case(name, golden_root, noise_256, run_main):
    case = CASES[name]
    printed = ""
    for script, *argv in case["steps"]:
        main = eval_prob_adaptive.main if script == "eval_prob_adaptive.py" else load_script("print_acc").main
        model = ["--model_path", TINY_SD20] if main is eval_prob_adaptive.main else []
        code, out, err = run_main(main, *map(here, argv), *model)
        assert code == 0, err
        printed = out
    folder = Path(case["folder"])
    assert sorted(p.name for p in folder.glob("*.pt")) == sorted(case["records"])
    for file, expected in case["records"].items():
        compare(torch.load(folder / file, weights_only=True), expected)
    if case["accuracies"]:
        assert [float(x) for x in re.findall(r"acc: ([\d.]+)%", printed)] == case["accuracies"]


def compare(record, expected):
    assert list(record) == [*expected, "seconds"] and type(record["pred"]) is int
    assert (record["pred"], record["label"]) == (expected["pred"], expected["label"])
    assert list(record["errors"]) == list(expected["errors"])
    for row, candidate in expected["errors"].items():
        ours = record["errors"][row]
        assert list(ours) == list(candidate) and ours["pred_errors"].dtype == torch.float32
        assert torch.equal(ours["t"], candidate["t"])
        np.testing.assert_allclose(ours["pred_errors"], candidate["pred_errors"], rtol=1e-5)
