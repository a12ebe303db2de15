"""What makes a network fast changes no number: sharing between candidates, padding for a compiled network, the batch size."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import TINY_SD20

import eval_prob_adaptive
import run_winoground
from diffusion import kernel, models, session
from diffusion.models import hardware, shared_unet
from diffusion.paths import TINY_SD


def block(denoiser, n_rows=3, n_latents=4, side=8):
    g = torch.Generator().manual_seed(0)
    conds = denoiser.embed([f"a photo of thing {i}." for i in range(n_rows)])
    return torch.randn(n_latents, 4, side, side, generator=g), torch.tensor([3, 999, 500, 250])[:n_latents], conds


@pytest.mark.parametrize("path", [TINY_SD20, TINY_SD])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_shared_block_is_the_plain_network(path, dtype):
    files = models.find_sd("2-0", str(path))
    fast, plain = (models.load_sd(files, dtype, "cpu", plain=plain) for plain in (False, True))
    assert fast.shared and plain.shared is None
    x_t, t, conds = block(fast)
    with torch.inference_mode():
        expected = plain.predict_block(x_t, t, conds).float()
        torch.testing.assert_close(
            fast.predict_block(x_t, t, conds).float(), expected, rtol=0, atol=1e-4 if dtype == "float32" else 0.1
        )
        alone = fast.predict(x_t[1:2], t[1:2], conds[2:]).float()  # one condition a latent, after a block
    torch.testing.assert_close(alone[0], expected[2 * 4 + 1], rtol=0, atol=1e-4 if dtype == "float32" else 0.1)


def test_the_fast_network_is_as_accurate_as_the_plain_one():
    """Errors of both against double precision: channels_last alone loses a digit."""
    from diffusers import UNet2DConditionModel

    files = models.find_sd("2-0", str(TINY_SD20))
    double = UNet2DConditionModel.from_pretrained(TINY_SD20, subfolder="unet").double().eval()
    g = torch.Generator().manual_seed(0)
    x, noise, t = torch.randn(50, 4, 8, 8, generator=g), torch.randn(50, 4, 8, 8, generator=g), torch.arange(0, 1000, 20)
    worst = {}
    for plain in (True, False):
        denoiser = models.load_sd(files, "float32", "cpu", plain=plain)
        cond = denoiser.embed(["a photo of a cat."])
        with torch.inference_mode():
            exact = double(x.double(), t, encoder_hidden_states=cond.expand(50, -1, -1).double(), return_dict=False)[0]
            ours = denoiser.predict_block(x, t, cond).double()
        expected, found = ((output - noise).square().mean((1, 2, 3)) for output in (exact, ours))
        worst[plain] = ((found - expected) / expected).abs().max().item()
    assert worst[False] < 3 * worst[True] < 3e-6


def test_what_does_not_depend_on_the_text_runs_once_a_latent():
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(TINY_SD20, subfolder="unet").eval()
    sizes = {}
    layers = {
        "conv_in": unet.conv_in,
        "conv_out": unet.conv_out,
        "keys": next(m for n, m in unet.named_modules() if "attn2.to_k" in n),
    }
    for name, layer in layers.items():
        layer.register_forward_hook(lambda module, inputs, output, name=name: sizes.__setitem__(name, len(output)))
    run = shared_unet.share(unet)
    with torch.inference_mode():
        run(torch.randn(5, 4, 8, 8), torch.arange(5), torch.randn(3, 77, unet.config.cross_attention_dim))
    assert sizes["conv_out"] == 15 and sizes["keys"] == 3


def test_a_block_that_fails_leaves_the_network_as_it_was():
    plain, fast = (
        models.load_sd(models.find_sd("2-0", str(TINY_SD20)), "float32", "cpu", plain=plain) for plain in (True, False)
    )
    x_t, t, conds = block(plain)
    with torch.inference_mode():
        with pytest.raises(RuntimeError):
            fast.predict_block(x_t, t, conds[..., :-1])
        torch.testing.assert_close(fast.predict(x_t[:3], t[:3], conds), plain.predict(x_t[:3], t[:3], conds), rtol=0, atol=1e-4)


def test_an_unknown_kind_of_unet_is_left_alone():
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(TINY_SD20, subfolder="unet")
    unet.register_to_config(only_cross_attention=True)
    before = {name: type(p) for name, p in unet.attn_processors.items()}
    assert shared_unet.share(unet) is None and {name: type(p) for name, p in unet.attn_processors.items()} == before


def test_a_compiled_block_is_the_block():
    """Through dynamo's tracing without a C++ compiler, which does not trace every size anew."""
    files = models.find_sd("2-0", str(TINY_SD20))
    plain = models.load_sd(files, "float32", "cpu")
    real, traced = torch.compile, []

    def counting(graph, inputs):
        traced.append(len(inputs))
        return graph.forward

    def compile_(function, dynamic, options):
        assert dynamic and options == {"freezing": True}
        return real(function, dynamic=True, backend=counting)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", compile_)
        fast = models.load_sd(files, "float32", "cpu", compile=True)
    sizes = ((3, 4), (2, 3), (4, 2), (3, 3), (2, 4))
    for n_rows, n_latents in sizes:
        x_t, t, conds = block(plain, n_rows, n_latents)
        with torch.inference_mode():
            torch.testing.assert_close(fast.predict_block(x_t, t, conds), plain.predict_block(x_t, t, conds), rtol=0, atol=1e-4)
    assert len(traced) <= 2 < len(sizes)


@pytest.mark.parametrize(
    ("room", "useful", "expected"), [(100, 1000, 64), (64, 1000, 64), (1000, 20, 32), (10**6, 10**6, 256), (1, 9, 1)]
)
def test_the_largest_power_of_two_that_fits(room, useful, expected, monkeypatch):
    def fits(n):
        if n > room:
            raise torch.OutOfMemoryError

    assert hardware.largest_batch(fits, "cuda:0", 256, useful) == expected


def test_on_a_cpu_the_latent_decides():
    sizes = [hardware.largest_batch(None, "cpu", elements, 10**6) for elements in (1024, 4096, 65536, 10**6)]
    assert sizes == [128, 32, 2, 1]


# ---------------------------------------------------------------- in a run

RUN = ["--dataset", "fashion_mnist", "--model_path", TINY_SD20, "--img_size", 64, "--to_keep", 3, 1, "--n_samples", 2, 4]
CONFIG = Path("data/fashion_mnist/v2-0_1trials_3_1keep_2_4samples_64/config.json")


def test_a_batch_size_that_was_found_is_kept(run_main):
    code, out, err = run_main(eval_prob_adaptive.main, *RUN, "--imgs_to_eval", 1, "--batch_size", "auto")
    assert code == 0 and "Batch size: 32\n" in out, err  # 26 evaluations an image need no more
    config = json.loads(CONFIG.read_text())
    assert config["options"]["batch_size"] == 32
    CONFIG.write_text(json.dumps(config | {"options": config["options"] | {"batch_size": 7}}))
    code, out, _ = run_main(eval_prob_adaptive.main, *RUN, "--imgs_to_eval", 2, "--batch_size", "auto")
    assert code == 0 and "Batch size: 7\n" in out


def test_compiling_is_told_and_changes_no_number(run_main, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **how: network)  # no C++ compiler is needed for what is tested here
    code, out, err = run_main(eval_prob_adaptive.main, *RUN, "--imgs_to_eval", 1, "--compile", "--extra", "compiled")
    assert code == 0 and re.search(r"^Compiled in \d+ s$", out, re.M), err
    assert run_main(eval_prob_adaptive.main, *RUN, "--imgs_to_eval", 1)[0] == 0
    one, other = (torch.load(next(Path(f"data/{name}").rglob("*.pt")), weights_only=True) for name in
                  ("fashion_mnist", "fashion_mnist_compiled"))  # fmt: skip
    for row, candidate in one["errors"].items():
        torch.testing.assert_close(candidate["pred_errors"], other["errors"][row]["pred_errors"], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("main", "argv", "told"),
    [
        (eval_prob_adaptive.main, [*RUN, "--batch_size", "many"], "--batch_size"),
        (eval_prob_adaptive.main, [*RUN, "--batch_size", 0], "must be 1 or more"),
        (run_winoground.main, ["--version", "tiny", "--dataset", "tiny_pairs", "--noise_path", "x.pt", "--batch_size", "auto"],
         "--batch_size a number"),
    ],
)  # fmt: skip
def test_bad_input(main, argv, told, run_main):
    code, _, err = run_main(main, *argv)
    assert code == 2 and err.count("\n") == 1 and told in err, err


def test_memory_for_not_even_one_evaluation_is_one_line(capsys):
    def main():
        kernel.Batch(1).halve()

    assert session.run(main) == 1
    assert re.fullmatch("error: one evaluation does not fit .* --img_size\n", capsys.readouterr().err)
