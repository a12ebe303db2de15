"""What makes a network fast changes no number: sharing between candidates, padding for a compiled network, the batch size."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import TINY_SD20

import eval_prob_adaptive
import run_winoground
from diffusion import models
from diffusion.kernel import blocks
from diffusion.models.denoiser import Conditions
from diffusion.models.speed import shared_unet, tuning
from diffusion.runs import loop
from diffusion.utils.paths import TINY_SD


def block(denoiser, n_rows=3, n_latents=4, side=8):
    g = torch.Generator().manual_seed(0)
    conds = denoiser.embed([f"a photo of thing {i}." for i in range(n_rows)])
    return torch.randn(n_latents, 4, side, side, generator=g), torch.tensor([3, 999, 500, 250])[:n_latents], conds


@pytest.mark.parametrize("path", [TINY_SD20, TINY_SD])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_shared_block_is_the_plain_network(path, dtype):
    files = models.text_to_image("2-0", str(path))
    fast, plain = (files.load("cpu", dtype, plain=plain) for plain in (False, True))
    assert fast.shared and plain.shared is None
    x_t, t, conds = block(fast)
    with torch.inference_mode():
        expected = plain.predict_latents(x_t, t, conds, None).float()
        torch.testing.assert_close(
            fast.predict_latents(x_t, t, conds, None).float(), expected, rtol=0, atol=1e-4 if dtype == "float32" else 0.1
        )
        alone = fast.predict(x_t[1:2], t[1:2], conds[2:]).float()  # one condition a latent, after a block
    torch.testing.assert_close(alone[0], expected[2 * 4 + 1], rtol=0, atol=1e-4 if dtype == "float32" else 0.1)


def test_the_fast_network_is_as_accurate_as_the_plain_one():
    """Errors of both against double precision: channels_last alone loses a digit."""
    from diffusers import UNet2DConditionModel

    files = models.text_to_image("2-0", str(TINY_SD20))
    double = UNet2DConditionModel.from_pretrained(TINY_SD20, subfolder="unet").double().eval()
    g = torch.Generator().manual_seed(0)
    x, noise, t = torch.randn(50, 4, 8, 8, generator=g), torch.randn(50, 4, 8, 8, generator=g), torch.arange(0, 1000, 20)
    worst = {}
    for plain in (True, False):
        denoiser = files.load("cpu", "float32", plain=plain)
        cond = denoiser.embed(["a photo of a cat."])
        with torch.inference_mode():
            exact = double(x.double(), t, encoder_hidden_states=cond.sequence.expand(50, -1, -1).double(), return_dict=False)[0]
            ours = denoiser.predict_latents(x, t, cond, None).double()
        expected, found = ((output - noise).square().mean((1, 2, 3)) for output in (exact, ours))
        worst[plain] = ((found - expected) / expected).abs().max().item()
    assert worst[False] < 3 * worst[True] < 3e-6


def test_what_does_not_depend_on_the_text_runs_once_a_latent():
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(TINY_SD20, subfolder="unet").eval()
    sizes, second = {}, unet.down_blocks[1]  # the first has no cross-attention
    first, transformer = unet.down_blocks[0].resnets[0], second.attentions[0].transformer_blocks[0]
    layers = {"conv_in": unet.conv_in, "first": first, "resnet": second.resnets[0], "self-attention": transformer.attn1}
    layers |= {"keys": transformer.attn2.to_k, "middle": unet.mid_block.resnets[0], "conv_out": unet.conv_out}
    for name, layer in layers.items():
        layer.forward = noting(layer.forward, sizes, name)  # inside what `share` puts around it, where a hook would be outside
    run = shared_unet.share(unet)
    with torch.inference_mode():
        run(torch.randn(5, 4, 8, 8), torch.arange(5), Conditions(torch.randn(3, 77, unet.config.cross_attention_dim)))
    assert sizes == {"conv_in": 5, "first": 5, "resnet": 5, "self-attention": 5, "keys": 3, "middle": 15, "conv_out": 15}


def noting(forward, sizes, name):
    """forward, which notes how many outputs it computes."""

    def noted(*inputs, **named):
        output = forward(*inputs, **named)
        sizes[name] = len(output)
        return output

    return noted


def test_a_block_that_fails_leaves_the_network_as_it_was():
    plain, fast = (models.text_to_image("2-0", str(TINY_SD20)).load("cpu", "float32", plain=plain) for plain in (True, False))
    x_t, t, conds = block(plain)
    with torch.inference_mode():
        with pytest.raises(RuntimeError):
            fast.predict_latents(x_t, t, Conditions(conds.sequence[..., :-1]), None)
        torch.testing.assert_close(fast.predict(x_t[:3], t[:3], conds), plain.predict(x_t[:3], t[:3], conds), rtol=0, atol=1e-4)


def test_an_unknown_kind_of_unet_is_left_alone():
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(TINY_SD20, subfolder="unet")
    unet.register_to_config(only_cross_attention=True)
    before = {name: type(p) for name, p in unet.attn_processors.items()}
    assert shared_unet.share(unet) is None and {name: type(p) for name, p in unet.attn_processors.items()} == before


DOWN, UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")


def down(first):
    return {"down_block_types": (first, "CrossAttnDownBlock2D")}


def up(second, first="UpBlock2D"):
    return {"up_block_types": (first, second)}


KINDS = [  # every block that UNet2DConditionModel can run; whether it is shared
    ({}, True),
    (down("DownBlock2D"), True),
    (down("CrossAttnDownBlock2D"), True),
    (down("AttnDownBlock2D"), True),
    (down("ResnetDownsampleBlock2D"), True),
    (down("KDownBlock2D") | up("CrossAttnUpBlock2D", "KUpBlock2D"), True),
    (down("SimpleCrossAttnDownBlock2D"), False),
    (down("KCrossAttnDownBlock2D") | up("KCrossAttnUpBlock2D", "KUpBlock2D"), False),
    ({"down_block_types": ("DownBlock2D", "SimpleCrossAttnDownBlock2D")}, False),
    ({"mid_block_type": None}, True),
    ({"mid_block_type": "UNetMidBlock2D"}, True),
    ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, True),
    ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, False),
    (up("UpBlock2D"), True),
    (up("AttnUpBlock2D"), True),
    (up("ResnetUpsampleBlock2D"), True),
    (up("KUpBlock2D"), True),
    (up("SimpleCrossAttnUpBlock2D"), False),
    (up("KCrossAttnUpBlock2D"), False),
    ({"use_linear_projection": True}, True),
    ({"transformer_layers_per_block": 2}, True),
    ({"transformer_layers_per_block": 0}, True),
    ({"time_embedding_type": "fourier", "time_cond_proj_dim": 7, "center_input_sample": True}, True),
    ({"resnet_time_scale_shift": "scale_shift", "upcast_attention": True}, True),
    ({"mid_block_only_cross_attention": True}, True),  # read by the "Simple" middle only
    ({"mid_block_only_cross_attention": True, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, False),
    ({"only_cross_attention": True}, False),
    ({"only_cross_attention": (False, True)}, False),
    ({"cross_attention_norm": "layer_norm"}, False),
    ({"attention_type": "gated"}, False),
    ({"encoder_hid_dim": 12}, False),
]


@pytest.mark.parametrize(("changes", "shared"), KINDS)
@torch.inference_mode()
def test_every_kind_of_unet_is_shared_exactly_or_left_alone(changes, shared):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    sizes = {"sample_size": 8, "block_out_channels": (32, 32), "layers_per_block": 1, "cross_attention_dim": 12}
    kind = {"down_block_types": DOWN, "up_block_types": UP, **changes}
    unet = UNet2DConditionModel(**sizes, attention_head_dim=8, **kind).eval()
    x_t, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(3, 5, 12)
    expected = unet(x_t.repeat(3, 1, 1, 1), t.repeat(3), cond.repeat_interleave(2, dim=0)).sample
    processors = dict(unet.attn_processors)
    run = shared_unet.share(unet)
    assert bool(run) == shared
    if shared:
        torch.testing.assert_close(run(x_t, t, Conditions(cond)), expected, rtol=0, atol=1e-5)
    else:
        assert dict(unet.attn_processors) == processors and not any("forward" in vars(module) for module in unet.modules())


def test_cross_attention_of_two_texts_is_left_alone():
    """diffusers builds this kind and cannot run it."""
    from diffusers import UNet2DConditionModel

    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": 12, "attention_head_dim": 4}
    unet = UNet2DConditionModel(**sizes, down_block_types=DOWN, up_block_types=UP, dual_cross_attention=True)
    assert shared_unet.share(unet) is None


@pytest.mark.parametrize(
    ("room", "useful", "expected"), [(100, 1000, 64), (64, 1000, 64), (1000, 20, 32), (10**6, 10**6, 256), (1, 9, 1)]
)
def test_the_largest_power_of_two_that_fits(room, useful, expected, monkeypatch):
    def fits(n):
        if n > room:
            raise torch.OutOfMemoryError

    assert tuning.largest_batch(fits, "cuda:0", 256, useful) == expected


@pytest.mark.parametrize(
    ("likely", "expected"), [(64, [64, 128]), (256, [256, 128, 64]), (1024, [256, 128, 64]), (2, [2, 4, 8, 16, 32, 64, 128])]
)
def test_what_is_likely_is_tried_first(likely, expected):
    tried = []

    def fits(n):
        tried.append(n)
        if n > 100:
            raise torch.OutOfMemoryError

    assert tuning.largest_batch(fits, "cuda:0", 256, 1000, likely) == 64
    assert sorted(set(tried)) == sorted(expected) and tried[0] == expected[0]


def test_on_a_cpu_the_latent_decides():
    sizes = [tuning.largest_batch(None, "cpu", elements, 10**6) for elements in (1024, 4096, 65536, 10**6)]
    assert sizes == [128, 32, 2, 1]


# ---------------------------------------------------------------- in a run

RUN = ["--dataset", "fashion_mnist", "--model_path", TINY_SD20, "--img_size", 64, "--to_keep", 3, 1, "--n_samples", 2, 4]
CONFIG = Path("data/fashion_mnist/v2-0_1trials_3_1keep_2_4samples_64/config.json")


def test_a_batch_size_that_was_found_is_kept(run_main):
    code, out, err = run_main(eval_prob_adaptive.main, *RUN, "--imgs_to_eval", 1, "--batch_size", "auto")
    assert code == 0 and "Batch size: 32\n" in out, err  # 26 evaluations per image need no more
    config = json.loads(CONFIG.read_text())
    assert config["options"]["batch_size"] == "auto" and config["batch_size_found"] == 32
    CONFIG.write_text(json.dumps(config | {"batch_size_found": 16}))  # as another machine would have found
    code, out, _ = run_main(eval_prob_adaptive.main, *RUN, "--imgs_to_eval", 2, "--batch_size", "auto")
    assert code == 0 and "Batch size: 16\n" in out


@pytest.mark.parametrize("given", [[], ["--batch_size", 7]])
def test_auto_does_not_take_up_a_size_that_it_did_not_find(given, run_main):
    assert run_main(eval_prob_adaptive.main, *RUN, "--imgs_to_eval", 1, *given)[0] == 0
    for n in (2, 3):
        code, out, _ = run_main(eval_prob_adaptive.main, *RUN, "--imgs_to_eval", n, "--batch_size", "auto")
        assert code == 0 and "Batch size: 32\n" in out
    assert json.loads(CONFIG.read_text())["batch_size_found"] == 32


@pytest.mark.slow
def test_a_compiled_run_is_told_and_is_the_run(run_main, monkeypatch):
    """Compiled by dynamo's tracing alone, which needs no C++ compiler, and does not trace every size of a block anew."""
    argv = [*RUN[:6], "--to_keep", 5, 4, 3, 1, "--n_samples", 2, 4, 8, 16, "--imgs_to_eval", 1]
    assert run_main(eval_prob_adaptive.main, *argv)[0] == 0
    real, traced, executed, calls = torch.compile, [], [], []

    def backend(graph, inputs):
        traced.append(graph)
        return lambda *inputs: executed.append(graph) or graph.forward(*inputs)

    def compile_(function, dynamic, options):
        assert dynamic and options == {"freezing": True}
        run = real(function, dynamic=True, backend=backend)
        return lambda x_t, t, cond, latent: calls.append((len(cond), len(t))) or run(x_t, t, cond, latent)

    monkeypatch.setattr(torch, "compile", compile_)
    code, out, err = run_main(eval_prob_adaptive.main, *argv, "--compile", "--extra", "compiled")
    assert code == 0 and re.search(r"^Compiled in \d+ s$", out, re.M), err
    # candidates and pairs of the call that compiles and of the four stages
    assert calls == [(10, 3), (10, 2), (5, 4), (4, 8), (3, 2)]
    assert len(traced) <= 2 < len(calls) <= len(executed)
    one, other = (torch.load(next(Path(f"data/{name}").rglob("*.pt")), weights_only=True) for name in
                  ("fashion_mnist", "fashion_mnist_compiled"))  # fmt: skip
    assert len(one["errors"]) == 10
    for row, candidate in one["errors"].items():
        torch.testing.assert_close(candidate["pred_errors"], other["errors"][row]["pred_errors"], rtol=1e-5, atol=0)
    traced.clear()
    several = ["--images_in_flight", 3, "--imgs_to_eval", 4, "--batch_size", 10]
    code, _, err = run_main(eval_prob_adaptive.main, *argv, *several, "--compile", "--extra", "flight")
    assert code == 0 and len(traced) <= 4, err  # of blocks and of cells, each for any size
    name = next(Path("data/fashion_mnist").rglob("*.pt")).name
    other = torch.load(next(Path("data/fashion_mnist_flight").rglob(name)), weights_only=True)
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
        blocks.Batch(1).halve()

    assert loop.run(main) == 1
    assert re.fullmatch("error: one evaluation does not fit .* --img_size\n", capsys.readouterr().err)
