"""Noise banks of --noise_path: everything that is no standard normal noise is told before a model loads, and how to make one."""

from pathlib import Path

import numpy as np
import pytest
import torch

import eval_prob_adaptive
from diffusion.kernel import noise
from diffusion.models.families.sd import StableDiffusion

SHAPE = (20, 4, 8, 8)
GOOD = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def with_value(value, place=(3, 1, 2, 2)):
    bank = GOOD.clone()
    bank[place] = value
    return bank


def with_row(value):
    bank = GOOD.clone()
    bank[7] = value
    return bank


BAD = {
    "nan": (with_value(float("nan")), "not finite, in row 3"),
    "infinite": (with_value(-float("inf"), (9, 0, 0, 0)), "not finite, in row 9"),
    "beyond float32": (with_value(1.0).double() * 1e300, "not finite"),
    "integers": (GOOD.round().to(torch.int32), "int32"),
    "bytes": (GOOD.to(torch.uint8), "uint8"),
    "bool": (GOOD > 0, "bool"),
    "complex": (torch.complex(GOOD, GOOD), "complex64"),
    "sparse": (GOOD.to_sparse(), "sparse_coo"),
    "meta": (GOOD.to("meta"), "meta"),
    "zeros": (torch.zeros(SHAPE), "row 0"),
    "ones": (torch.ones(SHAPE), "row 0"),
    "a row of zeros": (with_row(0.0), "row 7"),
    "a small scale": (GOOD / 10, "deviation 0.099"),
    "a large scale": (GOOD * 5, "deviation 5"),
    "shifted": (GOOD + 3, "mean 3"),
    "between 0 and 1": ((GOOD - GOOD.min()) / (GOOD.max() - GOOD.min()), "mean 0.5"),
    "a number": (torch.tensor(1.0), "[]"),
    "empty": (torch.empty(0, 4, 8, 8), "[0, 4, 8, 8]"),
    "a list": ([1.0], "list"),
    "an array": (np.zeros(3), "cannot be read"),
    "text": ("noise", "str"),
}


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    def refuse(*args):
        raise AssertionError("a model was loaded before the noise was checked")

    monkeypatch.setattr(StableDiffusion, "load", refuse)


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_noise_is_told_in_one_line(kind, run_main):
    content, told = BAD[kind]
    torch.save(content, "bank.pt")
    argv = ["--version", "tiny", "--dataset", "fashion_mnist", "--to_keep", 1, "--n_samples", 20, "--noise_path", "bank.pt"]
    code, _, err = run_main(eval_prob_adaptive.main, *argv)
    assert code == 2 and err.count("\n") == 1 and "--noise_path bank.pt" in err and told in err, err
    assert "save_noise.py --img_size 64" in err and "dtype" not in err and "--out noise_64.pt" in err
    assert not Path("data").exists()


@pytest.mark.parametrize("content", [b"", b"not a bank", b"PK\x03\x04", b"\x80\x02."])
def test_files_that_are_no_tensors(content):
    Path("bank.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"--noise_path bank\.pt cannot be read"):
        noise.read_noise("bank.pt", 10, (4, 8, 8), 64)
    with pytest.raises(ValueError, match=r"--noise_path \. is no file"):
        noise.read_noise(".", 10, (4, 8, 8), 64)
    with pytest.raises(ValueError, match=r"none\.pt does not exist; .* --out none\.pt"):
        noise.read_noise("none.pt", 10, (4, 8, 8), 64)


def test_rows_that_are_not_used_are_not_looked_at():
    torch.save(with_row(0.0), "bank.pt")
    assert torch.equal(noise.read_noise("bank.pt", 7, (4, 8, 8), 64), GOOD[:7])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_become_float32(dtype):
    torch.save(torch.nn.Parameter(GOOD.to(dtype)), "bank.pt")
    bank = noise.read_noise("bank.pt", 20, (4, 8, 8), 64)
    assert bank.dtype == torch.float32 and not bank.requires_grad and torch.equal(bank, GOOD.to(dtype).float())
    assert noise.Bank(bank).identity()


@pytest.mark.slow
def test_chance_alone_is_never_refused():
    """The smallest bank that there is, one row of a latent of four numbers, a thousand times."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(1000):
        torch.save(torch.randn(1, 4, 1, 1, generator=generator), "bank.pt")
        noise.read_noise("bank.pt", 1, (4, 1, 1), 8)
