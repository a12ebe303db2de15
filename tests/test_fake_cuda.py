"""The CUDA path of every published network without a GPU: tensors that say they are on cuda:0 and hold no data.

Operators check shapes, dtypes and devices by their own rules, so that a missing `.to(device)` or a float32 tensor among halves
ends in an error. What needs data is left out: `blocks.checked`, and the change of memory layout, which fake modules refuse.
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from diffusion.kernel import batching, blocks, scores
from diffusion.models import random_weights
from diffusion.models.families import dit
from diffusion.models.speed import devices, tuning
from DiT.architecture import SHAPES
from DiT.models import DiT

SIZES = {"2-1": ("2-0", 768)} | {
    name: (name, None) for name in random_weights.PIPELINES if name not in ("flux-schnell", "auraflow-0.3")
}
FEWER = {
    "lumina2": {"num_layers": 2},
    "z-image": {"n_layers": 2},
    "chroma1-hd": {"num_layers": 2, "num_single_layers": 2},
    "auraflow": {"num_mmdit_layers": 2, "num_single_dit_layers": 2},
}  # blocks of a kind, as all are alike
LARGE = ("sdxl", "sd3.5-large", "flux-dev")  # minutes each
CASES = [(name, "bfloat16") for name in SIZES if name not in LARGE] + [("1-5", "float16"), ("1-5", "float32")]


@contextmanager
def default_dtype(name: str):
    before = torch.get_default_dtype()
    torch.set_default_dtype(devices.torch_dtype(name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture
def fake_cuda(monkeypatch):
    monkeypatch.setattr(devices, "memory", lambda device: 80 * 10**9)
    monkeypatch.setattr(tuning, "tune", lambda network, device: network)
    monkeypatch.setattr(blocks, "checked", lambda values: values)
    # on the CPU Sana asks which prompts are short, others how long they are
    monkeypatch.setattr(FakeTensor, "tolist", lambda self: [False if self.dtype == torch.bool else 7] * len(self))
    with FakeTensorMode(), torch.inference_mode():
        yield


def made(build, dtype: str):
    """A network on fake CUDA; what computes beside it keeps float32."""
    with torch.device("cuda"), default_dtype(dtype):
        return build().eval().requires_grad_(False)


def pipeline(name: str, dtype: str, spoil=lambda module: None):
    """(Denoiser, its latents' shape) of a published pipeline."""
    published, size = random_weights.PIPELINES[SIZES[name][0]], SIZES[name][1]
    source = replace(published, network={**published.network, **FEWER.get(name, {})}).source(size)
    bare = random_weights.network_of(source, published.text_configs)
    module = made(bare.build, dtype)
    spoil(module)
    module = source.adapted(module, False)

    def reader(prompts):
        return random_weights._reader(source, published.text_configs, len(prompts), "cpu")

    return source.denoiser(lambda: module, bare.encoder("cuda"), reader, "cuda", dtype), bare.latent_shape


def works(denoiser, shape, candidates, loss: str = "l2"):
    """Blocks, guidance, and cells of two images, as a classifier asks for them."""
    conditions = denoiser.embed(candidates)
    x0, t = denoiser.encode(torch.zeros(3, 8, 8)), torch.tensor([3, 500, 900])
    assert x0.device.type == "cuda"
    noise = torch.randn(3, *shape)
    score = scores.scoring(loss, denoiser, x0, 0)[0]
    for guidance in (0.0, 0.5) if denoiser.terms is None else (0.0,):
        errors = blocks.errors(denoiser, x0, conditions, t, noise, score, blocks.Batch(4), guidance)
        assert errors.shape[:2] == (len(candidates), 3) and errors.dtype == torch.float32 and errors.device.type == "cpu"
    asked = [batching.Cells(x0, [0, 1], t[:2], lambda part: noise[:2][part], range(4)) for _ in range(2)]
    for errors in batching.cell_errors(denoiser, asked, conditions, lambda x0: score, blocks.Batch(3), 0.0):
        assert errors.device.type == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_published_networks(name, dtype, fake_cuda):
    works(*pipeline(name, dtype), ["", "a", "b"])


@pytest.mark.slow
@pytest.mark.parametrize("size", [256, 512])
def test_dit_xl(size, fake_cuda):
    dtype = "bfloat16"
    network = made(lambda: DiT(**(SHAPES["DiT-XL/2"] | {"input_size": size // 8})), dtype)
    shape = (4, size // 8, size // 8)
    denoiser = dit.denoiser_of(network, lambda image: torch.randn(shape, device="cuda"), "cuda", dtype)
    works(denoiser, shape, [1, 2, 3], "vlb")


def test_an_index_on_the_wrong_device_is_found(fake_cuda):
    denoiser, shape = pipeline("1-5", "float16")
    inner = denoiser.predict_latents
    planted = lambda x_t, t, rows, latent: inner(x_t, t, rows, latent) + torch.arange(x_t.shape[-1])  # noqa: E731
    object.__setattr__(denoiser, "shared", planted)
    with pytest.raises(RuntimeError, match=r"(?i)device"):
        works(denoiser, shape, ["", "a", "b"])


def test_a_weight_in_float32_is_found(fake_cuda):
    def spoil(module):
        layer = module.mid_block.resnets[0].conv1
        layer.weight = torch.nn.Parameter(torch.empty(layer.weight.shape, device="cuda"), requires_grad=False)

    with pytest.raises(RuntimeError, match=r"(?i)type|dtype"):
        works(*pipeline("1-5", "float16", spoil), ["", "a", "b"])
