"""Published shapes against published numbers and counts by hand, random weights against real ones."""

import math
from functools import cache

import pytest
import torch
from conftest import load_script, some_slow

from diffusion import models
from diffusion.kernel import blocks, scores
from diffusion.models import random_weights
from diffusion.models.denoiser import Conditions
from diffusion.models.speed import counting, devices
from diffusion.settings import ModelOptions
from DiT import architecture
from tests import tiny_pipelines

PUBLISHED = {  # billions of parameters, as papers and model cards have them
    "sdxl": 2.567,
    "sd3.5-large": 8.06,
    "flux-dev": 11.9,
    "pixart-alpha": 0.61,
    "sana": 1.6,
    "prx-512": 1.17,
    "lumina2": 2.6,
    "z-image": 6.15,
    "chroma1-hd": 8.9,
    "auraflow": 6.8,
}
LATENTS = {
    "1-5": (4, 64, 64),
    "2-0": (4, 64, 64),
    "sdxl": (4, 128, 128),
    "pixart-alpha": (4, 128, 128),
    "pixart-sigma": (4, 128, 128),
    "sana": (32, 32, 32),
    "auraflow": (4, 128, 128),
    "auraflow-0.3": (4, 128, 128),
    "prx-512": (16, 64, 64),
    "prx-512-dc-ae": (32, 16, 16),
}
TEXTS = {  # tokens and their width, width of the pooled text
    "1-5": ((77, 768), None),
    "2-0": ((77, 1024), None),
    "sdxl": ((77, 2048), 1280),
    "sd3-medium": ((77 + 256, 4096), 2048),
    "sd3.5-medium": ((77 + 256, 4096), 2048),
    "sd3.5-large": ((77 + 256, 4096), 2048),
    "flux-dev": ((512, 4096), 768),
    "flux-schnell": ((256, 4096), 768),
    "pixart-alpha": ((120, 4096), None),
    "pixart-sigma": ((300, 4096), None),
    "sana": ((300, 2304), None),
    "prx-512": ((256, 2304), None),
    "prx-512-dc-ae": ((256, 2304), None),
    "lumina2": ((256, 2304), None),
    "z-image": ((512, 2560), None),
    "chroma1-hd": ((512, 4096), None),
    "auraflow": ((256, 2048), None),
    "auraflow-0.3": ((256, 2048), None),
}
MASKED = ("pixart-alpha", "pixart-sigma", "sana", "prx-512", "prx-512-dc-ae", "lumina2", "z-image", "chroma1-hd")


@pytest.fixture(scope="module")
def script():
    return load_script("benchmark")


@pytest.fixture(scope="module")
def bare():
    """Name of a published pipeline -> its network without weights, at its default size."""
    found = {name: (published.source(), published.text_configs) for name, published in random_weights.pipelines().items()}
    return {name: random_weights.network_of(*parts) for name, parts in found.items()}


@pytest.fixture(scope="module")
def counted(bare):
    return cache(lambda name: bare[name].count())


def test_every_published_pipeline_has_a_version_and_passes_its_familys_checks():
    for name, published in random_weights.pipelines().items():
        source = published.source()
        assert name in published.family.VERSIONS and source.pipeline in published.family.PIPELINES
        source.check()
        latents = LATENTS.get(name, (16, 128, 128))
        assert source.default_size == latents[1] * source.vae["downscale"] and len(source.levels()) == 1000
    assert published.source(512).default_size == 512


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_number(name, bare):
    with torch.device("meta"):
        n = sum(p.numel() for p in bare[name].build().parameters())
    assert n == pytest.approx(1e9 * PUBLISHED[name], rel=0.01)


@pytest.mark.slow
def test_the_places_of_sd35_medium_are_not_learned(counted):
    """Its files hold 2.47 billion numbers (its card says 2.5), of which 384 x 384 places of width 1536 are a table of sines."""
    found = counted("sd3.5-medium")
    assert found["numbers"] == pytest.approx(2.47e9, rel=0.01)
    assert found["numbers"] - found["parameters"] == 384**2 * 1536


@pytest.mark.parametrize(("name", "millions"), [("1-5", 859.5), ("2-0", 865.9)])
def test_unets_of_stable_diffusion(name, millions, bare):
    found = bare[name].count()
    assert found["parameters"] == found["numbers"] == pytest.approx(1e6 * millions, rel=1e-4)
    if name == "2-0":
        assert found["flops_per_evaluation"] == pytest.approx(804e9, rel=1e-3)


@pytest.mark.parametrize(
    "name",
    some_slow(random_weights.pipelines(), ["sdxl", "flux-dev", "flux-schnell", "chroma1-hd", "auraflow-0.3", "sd3.5-large"]),
)
def test_arithmetic_that_is_told_at_once_is_the_networks_own(name, counted):
    assert round(counted(name)["flops_per_evaluation"] / 1e9) == random_weights.pipelines()[name].size.gflop
    source = random_weights.pipelines()[name].source()
    size = source.default_size
    assert (random_weights.gflop(source, size), random_weights.gflop(source, size // 2)) == (
        random_weights.pipelines()[name].size.gflop,
        random_weights.pipelines()[name].size.gflop / 4,
    )


def test_arithmetic_of_dit(script):
    config = architecture.SHAPES["DiT-XL/2"] | {"input_size": 32}
    assert round(script.bare_dit(config, (4, 32, 32)).count()["flops_per_evaluation"] / 1e9) == random_weights.DIT_XL.gflop
    source = models.class_conditional("DiT-XL/2", expect=True)
    assert (random_weights.gflop(source, 256), random_weights.gflop(source, 512)) == (237, 4 * 237)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [("prx-512-dc-ae", "float32"), ("sana", "bfloat16"), ("dit-xl", "bfloat16")])
def test_memory_that_is_told_at_once_is_counted(name, dtype, bare, script):
    one = bare[name] if name in bare else script.bare_dit(architecture.SHAPES["DiT-XL/2"] | {"input_size": 32}, (4, 32, 32))
    size = random_weights.pipelines()[name].size if name in bare else random_weights.DIT_XL
    _, numbers, *per_input = size
    assert one.bytes_per_call(dtype, 2) / 2e6 == pytest.approx(per_input[dtype != "float32"], rel=0.01)
    with torch.device("meta"):
        module = one.build()
    assert sum(t.numel() for t in (*module.parameters(), *module.buffers())) / 1e6 == pytest.approx(numbers, rel=1e-3)


def test_live_bytes_are_those_of_storages_that_somebody_holds():
    layer = torch.nn.Linear(100, 100, bias=False)
    with torch.no_grad(), counting.LiveBytes(layer.weight) as live:
        x = torch.zeros(10, 100)  # 4,000 bytes
        y = layer(x)  # as many; the weight's transpose is none
        assert live.now == 8000
        z = y.view(100, 10)
        del y
        z.add_(1)
        assert (live.now, live.peak) == (8000, 8000)
        del x, z
        torch.zeros(1000, dtype=torch.bfloat16)
    assert (live.now, live.peak) == (0, 8000)


def test_memory_on_a_card(monkeypatch):
    """SDXL in bfloat16: 5.13 GB of weights and 0.17 GB an input at 1024 pixels, a fourth of it at 512."""
    source = random_weights.pipelines()["sdxl"].source()
    tried = {}
    for gb in (4, 5.2, 8, 24):
        monkeypatch.setattr(devices, "memory", lambda device, gb=gb: int(gb * 1e9))
        tried[gb] = [models.registry.likely_batch(source, size, "cuda:0", "bfloat16") for size in (1024, 512)]
        if gb < 5.3:
            with pytest.raises(ValueError, match=r"one network input of 1024 pixels .* in bfloat16, takes .* --dtype"):
                models.check_memory(source, 1024, "cuda:0", "bfloat16", "auto", 100)
        else:
            models.check_memory(source, 1024, "cuda:0", "bfloat16", "auto", 100)
    assert tried == {4: [1, 1], 5.2: [1, 1], 8: [16, 64], 24: [64, 256]}
    assert models.likely_batch(models.text_to_image("tiny"), 64, "cuda:0", "bfloat16") == 1
    assert models.likely_batch(source, 1024, "cpu", "bfloat16") == 1


def test_small_networks_of_the_same_families_are_not_taken_for_them():
    for source in (models.text_to_image("tiny"), models.text_to_image("tiny-sd3"), models.class_conditional("tiny")):
        assert random_weights.gflop(source, 64) is None


@pytest.mark.parametrize("version", [v for family in models.TEXT_TO_IMAGE for v in family.VERSIONS if not v.startswith("tiny")])
def test_every_published_version_is_known_without_its_files(version):
    source = random_weights.expected(version)
    family, place = models.registry._known(version, "")
    assert isinstance(source, family) and source.source == place and source.unfetched == [place]
    half = family is models.StableDiffusion or version == "sdxl-turbo"
    said = int(version.split("-")[1]) if version.startswith("prx") else 512 if half else 1024
    assert source.default_size == said
    assert (
        source.n_levels == 1000 and source.latent_shape(source.default_size) and models.memory_message(source, "float16") is None
    )


def test_what_is_here_is_not_expected():
    assert (
        random_weights.expected("tiny", ModelOptions())
        is random_weights.expected("tiny-sd3", ModelOptions())
        is random_weights.expected("none", ModelOptions())
        is None
    )


def sd3_layers(n_image: int, n_text: int):
    """(inputs, outputs, rows) of every linear layer of SD3-medium (Esser et al. 2024, figure 2) and of its convolution."""
    width = 64 * 24
    yield from [(4 * 16, width, n_image), (4096, width, n_text), (width, 4 * 16, n_image)]  # patches, text, patches again
    yield from [(256, width, 1), (width, width, 1), (2048, width, 1), (width, width, 1)]  # time, pooled text
    yield (width, 2 * width, 1)  # modulation of the output
    for block in range(24):
        last = block == 23  # which makes no text
        for rows, modulated, whole in ((n_image, 6, True), (n_text, 2 if last else 6, not last)):
            yield (width, modulated * width, 1)
            yield from [(width, width, rows)] * (4 if whole else 3)  # queries, keys, values, and what attention gives
            yield from [(width, 4 * width, rows), (4 * width, width, rows)] if whole else []


def test_parameters_and_arithmetic_of_sd3_are_a_count_by_hand(counted):
    found = counted("sd3-medium")
    n_image, n_text = (1024 // 16) ** 2, 77 + 256
    layers = list(sd3_layers(n_image, n_text))
    assert found["parameters"] == sum(n_in * n_out + n_out for n_in, n_out, _ in layers) == pytest.approx(2.03e9, rel=0.01)
    attention = 24 * 2 * 2 * (n_image + n_text) ** 2 * 64 * 24  # queries with keys, and weights with values
    assert found["flops_per_evaluation"] == sum(2 * n_in * n_out * rows for n_in, n_out, rows in layers) + attention


@pytest.mark.parametrize(("name", "of_table"), [("lumina2", 0.89), ("z-image", 0.84)])
def test_arithmetic_that_candidates_share(name, of_table, bare):
    """Ten candidates of 60 tokens on a latent, beside ten times the table's number."""
    source, network = random_weights.pipelines()[name].source(), bare[name]
    module, whole = network.filled("meta", "float32"), network.conditions(10, "meta")
    x_t, times = torch.zeros(1, *network.latent_shape, device="meta"), torch.zeros(1, device="meta")
    read = Conditions(sequence=whole.sequence[:, :60], mask=whole.mask[:, :60])
    found = random_weights.flops(lambda: source.share(module)(x_t, times, read, None))
    assert found / (10 * 1e9 * random_weights.pipelines()[name].size.gflop) == pytest.approx(of_table, abs=0.005)


def test_flops_of_known_layers():
    """A linear layer: two operations per weight and row; a convolution: two per weight and place."""
    linear, conv = torch.nn.Linear(8, 16, bias=False), torch.nn.Conv2d(4, 6, 3, padding=1, groups=2)
    assert random_weights.flops(lambda: linear(torch.zeros(3, 8))) == 2 * 8 * 16 * 3
    assert random_weights.flops(lambda: conv(torch.zeros(1, 4, 5, 5))) == 2 * (6 * 2 * 3 * 3) * 25


@pytest.mark.parametrize("name", random_weights.pipelines())
def test_latents_and_conditions_have_the_published_shapes(name, bare):
    (length, width), pooled = TEXTS[name]
    conditions = bare[name].conditions(2, "meta")
    assert bare[name].latent_shape == LATENTS.get(name, (16, 128, 128))
    assert conditions.sequence.shape == (2, length, width)
    assert (conditions.pooled.shape if pooled else conditions.pooled) == ((2, pooled) if pooled else None)
    assert (conditions.mask is None) == (name not in MASKED)


def test_text_encoders_have_the_published_sizes():
    """CLIP L and bigG: 124 and 695 million, in float32; T5 XXL's encoder 4.76 billion, in bfloat16 beside a float16 network."""
    found = random_weights.pipelines()["sd3-medium"].text_memory("float16")
    millions = (found["text_encoder"] / 4e6, found["text_encoder_2"] / 4e6, found["text_encoder_3"] / 2e6)
    assert millions == pytest.approx((123.7, 694.7, 4762), rel=1e-3)
    assert random_weights.pipelines()["sana"].text_memory("float32")["text_encoder"] == pytest.approx(
        4 * 2.614e9, rel=1e-3
    )  # Gemma 2 2B


# ---------------------------------------------------------------- random weights


@pytest.fixture(
    scope="module", params=["sdxl", "sd3", "flux-dev", "pixart-alpha", "sana", "prx", "lumina2", "z-image", "chroma", "auraflow"]
)
def small(request, tmp_path_factory):
    """(source of a pipeline on the disk, diffusers' pipeline)."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = tiny_pipelines.build(request.param, folder)
    return models.text_to_image("mine", str(folder), ModelOptions(16)), pipeline


def test_a_network_without_weights_is_the_files_network(small, script):
    source, pipeline = small
    network, module = random_weights.network_of(source, random_weights.text_configs(source)), getattr(pipeline, source.NETWORK)
    found = network.count()
    assert found["parameters"] == sum(p.numel() for p in module.parameters())
    real, random = source.load("cpu", "float32", plain=True).embed(["a bag", "a boot"]), network.conditions(2, "cpu")
    described = [{name: (part.shape, part.dtype) for name, part in script.parts_of(c).items()} for c in (real, random)]
    assert described[0] == described[1]
    x_t, times = torch.zeros(1, *network.latent_shape), torch.zeros(1)
    assert found["flops_per_evaluation"] == random_weights.flops(
        lambda: source.call(module, x_t, times, real[:1])
    )  # weights or none


def test_the_kernel_and_the_plain_loop_agree_on_random_weights(small, script):
    source, _ = small
    loaded = []
    for plain in (False, True):
        torch.manual_seed(0)
        loaded.append(random_weights.load(source, random_weights.text_configs(source), "cpu", "float32", plain=plain))
    ours, plain = loaded
    conditions, x0 = ours.embed(["a", "b", "c"]), ours.encode(None)
    work = {"x0": x0, "conditions": conditions, "t": torch.tensor([10, 600]), "noise": torch.randn(2, *x0.shape)}
    with torch.inference_mode():
        found = blocks.errors(ours, **work, score=scores.l2, batch=blocks.Batch(4))
        expected = script.plain_errors(plain, **work, dtype=torch.float32, batch_size=5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    assert len(found.unique()) == 6


def test_random_weights_are_the_same_in_every_dtype_and_as_large_as_they_should_be():
    network = random_weights.Bare(lambda: torch.nn.Linear(400, 300), (1,), None, None)
    filled = []
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        filled.append(network.filled("cpu", dtype))
    assert [module.weight.dtype for module in filled] == [torch.float32, torch.bfloat16]
    torch.testing.assert_close(filled[0].weight.bfloat16(), filled[1].weight, rtol=0, atol=0)
    assert filled[0](torch.randn(100, 400)).std() == pytest.approx(math.hypot(1, 0.5), rel=0.1)


# ---------------------------------------------------------------- the command


def test_a_dry_run_prints_and_writes_what_follows_from_the_shape(script, tmp_path, capsys):
    argv = ["--model", "pixart", "--img_size", "256", "--device", "cpu", "--dry_run", "--json", str(tmp_path / "out.json")]
    assert script.main(argv) == 0
    out = capsys.readouterr().out
    assert "256 px, latents 4 x 32 x 32" in out and "PixArtAlphaPipeline" in out and "evaluations/s" not in out
    result = script.json.loads((tmp_path / "out.json").read_text())
    assert f"{result['parameters']:,}" in out and f"{result['flops_per_evaluation'] / 1e9:,.3f} GFLOP" in out
    assert result["weights_bytes"]["float32"] == 2 * result["weights_bytes"]["bfloat16"] >= 4 * result["parameters"]


def test_what_does_not_fit_is_counted_and_not_timed(script, monkeypatch, capsys):
    monkeypatch.setattr(devices, "memory", lambda device: int(2.4e9))
    assert script.main(["--model", "sd1", "--img_size", "64", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "GFLOP" in out and "Not timed: 3.4 GB of weights (float32) do not fit into 80% of the 2.4 GB of cpu" in out
    args = script.parse_args(["--dtype", "bfloat16", "--device", "cpu"])
    weights = {"float32": 4, "float16": 2, "bfloat16": 2}
    for most, copies in ((2.4, 0), (2.5, 1), (7.4, 1), (7.5, 2)):
        monkeypatch.setattr(devices, "memory", lambda device, most=most: most)
        assert script.copies_that_fit(args, weights) == copies


def test_a_pipeline_is_timed_without_the_plain_loop_where_only_one_copy_fits(script, monkeypatch, tmp_path, capsys):
    tiny_pipelines.build("sana", tmp_path / "sana")
    monkeypatch.setattr(script, "copies_that_fit", lambda args, weights: 1)
    argv = ["--model_path", str(tmp_path / "sana"), "--img_size", "16", "--device", "cpu", "--prompts", "2", "--timesteps", "2"]
    assert script.main([*argv, "--repeats", "1", "--json", str(tmp_path / "out.json")]) == 0
    result = script.json.loads((tmp_path / "out.json").read_text())
    assert set(result["evaluations_per_s"]) == {"kernel", "network"} and "kernel_over_plain" not in result
    assert "plain loop" not in capsys.readouterr().out
    assert set(result["text_encoder_bytes"]) == {"text_encoder"}


def test_conditions_that_were_looked_at_reach_the_plain_loop(script):
    conditions = Conditions(sequence=torch.zeros(2, 3), mask=torch.ones(2, 3))
    assert len(conditions) == 2  # which keeps a tensor beside the parts
    assert Conditions(**script.parts_of(conditions)).mask.shape == (2, 3)
