"""scripts/check_device.py, whole, on the device that every machine has."""

import json

import pytest
import torch
from conftest import load_script
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def script():
    return load_script("check_device")


@pytest.mark.slow
def test_a_cpu_passes(script, tmp_path, capsys):
    """Without what is compiled and timed, which takes minutes: test_hardware and test_benchmark do both."""
    out = tmp_path / "found.json"
    assert script.main(["--device", "cpu", "--images", "1", "--skip", "compiled", "benchmark", "-o", str(out)]) == 0
    found = json.loads(out.read_text())
    lines = capsys.readouterr().out.splitlines()
    assert found["passed"] and found["verdict"] == lines[-1] and "1 left out" in lines[-1]
    rows = {check["name"]: check for check in found["checks"]}
    assert len(rows) == 15 + 2 + 1
    assert all(check["ok"] for name, check in rows.items() if name != "out of memory on purpose")


@pytest.mark.slow
def test_one_wrong_number_is_found(script, tmp_path, monkeypatch, capsys):
    """Of one candidate at one level of one image, and by so little that no prediction changes."""
    numbers = load_file(script.REFERENCE)
    numbers["tiny-dit"][1, 3, 2] *= 1.2
    save_file(numbers, tmp_path / "wrong.safetensors")
    monkeypatch.setattr(script, "REFERENCE", tmp_path / "wrong.safetensors")
    monkeypatch.setattr(script, "MODELS", ("tiny-dit",))
    argv = ["--device", "cpu", "--images", "2", "--skip", "compiled", "runs", "memory", "benchmark"]
    assert script.main([*argv, "-o", str(tmp_path / "found.json")]) == 1
    found = json.loads((tmp_path / "found.json").read_text())
    failed = [check["name"] for check in found["checks"] if not check["ok"]]
    assert "tiny-dit, float32" in failed and not found["passed"]
    assert "checks FAILED: tiny-dit, float32" in capsys.readouterr().out.splitlines()[-1]


def test_bounds(script):
    """A prediction that flips is found where every error is within its bound, and so is NaN."""
    errors = torch.tensor([[[0.5], [0.50001]]])
    assert script.compared("", "float32", errors, errors, 1.0).ok
    assert not script.compared("", "float32", errors.flip(1), errors, 1.0).ok
    assert script.compared("", "float16", errors.flip(1).repeat(1, 1, 1), errors, 1.0).ok is False  # one of one
    assert not script.compared("", "bfloat16", errors * float("nan"), errors, 1.0).ok


def test_what_fails_at_work_is_a_row(script):
    def broken(args):
        yield script.Check("first", True, "")
        raise RuntimeError("no kernel image\nis available")

    first, second = script.attempt("runs", broken, None)
    assert first.ok and second.ok is False and second.name == "runs" and "\n" not in second.result
