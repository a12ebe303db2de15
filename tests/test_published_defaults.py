"""Defaults of the published commands that decide numbers: which noise row a timestep takes when only --noise_path is given."""

from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, TINY_SD20

import eval_prob_dit
import run_winoground

SD = [
    "--model",
    "sd",
    "--model_path",
    TINY_SD20,
    "--img_size",
    64,
    "--t_interval",
    250,
    "--data_dir",
    GOLDEN / "data" / "winoground",
]


def commands(tiny_dit):
    """name -> main, argv for few evaluations, number of pairs."""
    clothes = ["--dataset", "fashion_mnist", "--t_interval", 250, "--imgs_to_eval", 1, "--cls", 3]
    return {"dit": (eval_prob_dit.main, [*tiny_dit, *clothes], 4), "winoground": (run_winoground.main, SD, 4)}


def records(folder):
    found = {path.name: torch.load(path, weights_only=True) for path in sorted(Path(folder).rglob("*.pt"))}
    assert found
    return {name: torch.stack(list(record.values())) if isinstance(record, dict) else record for name, record in found.items()}


@pytest.mark.parametrize("name", ["dit", "winoground"])
@pytest.mark.slow
def test_without_a_batch_size_every_timestep_takes_the_first_row(name, tiny_dit, run_main, monkeypatch):
    """The published --batch_size is 1, so that the position in the batch, which chooses the row, is 0 for all."""
    main, argv, n_pairs = commands(tiny_dit)[name]
    bank = torch.randn(n_pairs, 4, 8, 8)
    torch.save(bank, "bank.pt")
    torch.save(bank[:1].expand(n_pairs, -1, -1, -1).clone(), "first.pt")
    runs = {
        "none": ["--noise_path", "bank.pt"],
        "first row for all": ["--noise_path", "first.pt", "--randomize_noise"],
        "one": ["--noise_path", "bank.pt", "--batch_size", 1],
        "all": ["--noise_path", "bank.pt", "--batch_size", n_pairs],
        "row i for i": ["--noise_path", "bank.pt", "--randomize_noise"],
    }
    found = {}
    for run, more in runs.items():
        monkeypatch.setenv("LOG_DIR", run)
        code, _, err = run_main(main, *argv, *more)
        assert code == 0, err
        found[run] = records(run)
    for file, errors in found["none"].items():
        torch.testing.assert_close(errors, found["first row for all"][file], rtol=1e-5, atol=0)
        torch.testing.assert_close(errors, found["one"][file], rtol=1e-5, atol=0)
        torch.testing.assert_close(found["all"][file], found["row i for i"][file], rtol=1e-5, atol=0)
        assert not torch.allclose(errors, found["all"][file], rtol=1e-2)


def test_one_row_is_enough_and_another_batch_size_is_another_run(tiny_dit, run_main):
    main, argv, _ = commands(tiny_dit)["dit"]
    torch.save(torch.randn(1, 4, 8, 8), "bank.pt")
    assert run_main(main, *argv, "--noise_path", "bank.pt")[0] == 0
    code, _, err = run_main(main, *argv, "--noise_path", "bank.pt", "--batch_size", 4)
    assert code == 2 and "bank.pt holds [1, 4, 8, 8], needed is [4 or more" in err
    code, out, _ = run_main(main, *argv, "--noise_path", "bank.pt", "--batch_size", 1, "--dry_run")
    assert code == 0 and "0 to do here, 1 of 1 done before" in out
