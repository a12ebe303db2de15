"""scripts/benchmark.py: what it measures is the same work, and it says so in numbers. Speeds themselves are not tested."""

import json
from dataclasses import replace

import pytest
from conftest import TINY_SD20, load_script

SMALL = (
    "--model_path",
    str(TINY_SD20),
    "--img_size",
    "64",
    "--device",
    "cpu",
    "--batch_size",
    "4",
    "--prompts",
    "3",
    "--timesteps",
    "5",
    "--repeats",
    "2",
)


@pytest.fixture(scope="module")
def script():
    return load_script("benchmark")


@pytest.mark.slow
def test_small_run_writes_every_number(script, tmp_path, capsys):
    assert script.main([*SMALL, "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["evaluations"] == 15
    assert {name: len(values) for name, values in result["evaluations_per_s"].items()} == {"plain": 2, "kernel": 2, "network": 2}
    positive = ("parameters", "threads", "kernel_over_plain", "peak_memory_mb", "matmul_flops_per_s", "flops_per_evaluation")
    assert all(result[name] > 0 for name in positive)
    assert result["fraction_of_matmul"] > 0 and result["outside_network"] < 1
    assert (result["dtype"], result["batch_size"], result["img_size"]) == ("float32", 4, 64)
    assert (result["plain_dtype"], result["plain_batch_size"], result["compiled"]) == ("float32", 32, False)
    assert result["max_relative_difference"] < 1e-5
    assert {"kernel", "plain loop", "time outside the network"} <= {
        line.strip().split("  ")[0] for line in capsys.readouterr().out.splitlines()
    }


@pytest.mark.slow
def test_half_precision_and_auto_are_the_kernels(script, tmp_path):
    argv = [*SMALL, "--dtype", "bfloat16", "--batch_size", "auto", "--json", tmp_path / "out.json"]
    assert script.main(list(map(str, argv))) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["dtype"], result["plain_dtype"], result["batch_size"]) == ("bfloat16", "float32", 16)  # 15 are useful
    assert 1e-5 < result["mean_relative_difference"] < 0.1


def test_plain_loop_and_kernel_agree_pair_by_pair(script):
    """Distinct errors, so that a transposed or shifted table could not pass."""
    import torch

    from diffusion.kernel import blocks, scores
    from diffusion.runs.loop import Network

    args = script.parse_args([*SMALL, "--img_size", "32"])
    subject = script.check(args)
    denoiser = subject.load("cpu", "float32")
    with torch.inference_mode():
        work = script.make_input(args, Network(denoiser, denoiser.embed(subject.candidates), None, None), subject)
        ours = blocks.errors(denoiser, **work, score=scores.l2, batch=blocks.Batch(4))
        plain = script.plain_errors(subject.load("cpu", "float32", plain=True), **work, dtype=torch.float32, batch_size=15)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=0)
    assert len(plain.unique()) == 15


@pytest.mark.slow
def test_the_shipped_transformer(script, tmp_path):
    argv = ["--model", "tiny-dit", "--device", "cpu", "--prompts", "2", "--timesteps", "3", "--repeats", "1"]
    assert script.main([*argv, "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["evaluations"] == 6 and result["max_relative_difference"] < 1e-4


def test_dit_xl_has_the_papers_size(script):
    """675 M parameters and 119 G multiply-adds at 256 px (DiT, tables 1 and 9), counted on the meta device."""
    subject = script.check(script.parse_args(["--model", "dit-xl-256", "--device", "cpu"]))
    found = subject.bare().count()
    assert subject.latent_shape == (4, 32, 32) and abs(found["parameters"] - 675e6) < 1e6
    assert abs(found["flops_per_evaluation"] / 2 - 119e9) < 1e9


def test_random_networks_of_both_kinds_have_finite_errors_that_differ(script, monkeypatch):
    import torch

    from diffusion.kernel import blocks, scores
    from diffusion.models import random_weights
    from diffusion.runs.loop import Network
    from DiT import architecture

    monkeypatch.setitem(architecture.SHAPES, "DiT-XL/2", {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 2})
    published = random_weights.pipelines()["2-0"]
    small = published.network | {"block_out_channels": [32] * 4, "attention_head_dim": 2, "cross_attention_dim": 16}
    text = {"text_encoder": ("CLIPTextModel", published.text_configs["text_encoder"] | {"hidden_size": 16})}
    monkeypatch.setitem(random_weights.pipelines(), "2-0", replace(published, network=small, texts=text))
    for name, more in (("sd2", ["--img_size", "64"]), ("dit-xl-256", [])):
        args = script.parse_args(["--model", name, "--device", "cpu", "--prompts", "3", "--timesteps", "2", *more])
        subject = script.check(args)
        denoiser = subject.load("cpu", "float32")
        with torch.inference_mode():
            work = script.make_input(args, Network(denoiser, denoiser.embed(subject.candidates), None, None), subject)
            errors = blocks.errors(denoiser, **work, score=scores.l2, batch=blocks.Batch(4))
        assert len(errors.unique()) == 6


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--device", "abacus"), "--device abacus"),
        (("--timesteps", "1001"), "--timesteps 1001"),
        (("--model", "sd2", "--img_size", "100"), "--img_size 100"),
        (("--model", "flux", "--img_size", "100"), "--img_size 100"),
        (("--model", "sd2"), "--model_path"),
        (("--model", "sana"), "--model_path"),
        (("--model_path", "mine.py:load"), "--model_path mine.py:load"),
        (("--model", "dit-xl-256"), "--model_path"),
        (("--json", "no/such/folder/out.json"), "--json"),
    ],
)
def test_bad_input_is_one_line(script, capsys, flags, named):
    wrong = () if "--img_size" in flags else SMALL
    with pytest.raises(SystemExit) as stop:
        script.main([*wrong, *flags])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert message.count("\n") == 1 and named in message
