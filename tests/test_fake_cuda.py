"""The CUDA path of every published network without a GPU: tensors that say they are on cuda:0 and hold no data.

Operators check shapes, dtypes and devices by their own rules, so that a missing `.to(device)` or a float32 tensor among halves
ends in an error. What needs data is left out: `blocks.checked`, and the change of memory layout, which fake modules refuse.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from diffusion import classify
from diffusion.kernel import batching, blocks, scores
from diffusion.models import random_weights
from diffusion.models.families import dit
from diffusion.models.loading import hub, text_encoders, weights
from diffusion.models.speed import devices, tuning
from DiT.architecture import SHAPES
from DiT.models import DiT

# one or two blocks of a kind, as all are alike
FEWER = {name: {"num_layers": 2} for name in ("sd3-medium", "sd3.5-large", "pixart-alpha", "sana", "lumina2")}
FEWER |= {name: {"num_layers": 2, "num_single_layers": 2} for name in ("flux-dev", "chroma1-hd")}
FEWER |= {"auraflow": {"num_mmdit_layers": 2, "num_single_dit_layers": 2}, "prx-512": {"depth": 2}, "z-image": {"n_layers": 2},
          "sdxl": {"transformer_layers_per_block": [1, 1, 1]}}  # fmt: skip
# another's network, but for its size or an input
SAME = ("2-0", "flux-schnell", "prx-512-dc-ae", "sd3.5-medium", "pixart-sigma", "auraflow-0.3")
SIZES = {"2-1": ("2-0", 768)} | {name: (name, None) for name in random_weights.pipelines() if name not in SAME}
DTYPES = ("bfloat16", "float16", "float32")
CASES = [(name, DTYPES[i % 3]) for i, name in enumerate(SIZES)]  # every network once, every format several times
# every published text encoder; beside a network in float16 the large ones are in bfloat16
TEXTS = [("1-5", "float32"), ("2-0", "float16"), ("sdxl", "bfloat16"), ("sd3-medium", "float16"), ("flux-dev", "float32"),
         ("pixart-sigma", "bfloat16"), ("sana", "float16"), ("prx-512", "bfloat16"), ("auraflow", "float16")]  # fmt: skip
KL_BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2}


PRODUCTS = [getattr(torch.ops.aten, name) for name in ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "convolution")]


class OneDtype(TorchDispatchMode):
    """Raises RuntimeError for a product of two number formats, which fake linear layers let pass and real ones refuse."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in PRODUCTS:
            kinds = {x.dtype for x in tree_leaves(args) if isinstance(x, torch.Tensor)}
            if len(kinds) > 1:
                raise RuntimeError(f"{func}: more than one dtype, {kinds}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fake_cuda(monkeypatch):
    monkeypatch.setattr(devices, "memory", lambda device: 80 * 10**9)
    monkeypatch.setattr(tuning, "tune", lambda network, device: network)
    monkeypatch.setattr(blocks, "checked", lambda values: values)
    # on the CPU Sana asks which prompts are short, others how long they are
    monkeypatch.setattr(FakeTensor, "tolist", lambda self: [False if self.dtype == torch.bool else 7] * len(self))
    with FakeTensorMode(), OneDtype(), torch.inference_mode():
        yield


def made(build, dtype: str):
    """A network on fake CUDA; what computes beside it keeps float32."""
    with torch.device("cuda"):
        return random_weights.without_data(build, dtype)


def pipeline(name: str, dtype: str, spoil=lambda module: None):
    """(Denoiser, its latents' shape) of a published pipeline."""
    published, size = random_weights.pipelines()[SIZES[name][0]], SIZES[name][1]
    source = replace(published, network={**published.network, **FEWER.get(name, {})}).source(size)
    bare = random_weights.network_of(source, published.text_configs)
    module = made(bare.build, dtype)
    spoil(module)
    module = source.adapted(module, False)

    def reader(prompts):
        return random_weights._reader(source, published.text_configs, len(prompts), "cpu")

    return source.denoiser(lambda: module, bare.encoder("cuda"), reader, "cuda", dtype), bare.latent_shape


def works(denoiser, shape, candidates, loss: str = "l2"):
    """Blocks, guidance, error maps, and cells of two images, as a classifier asks for them."""
    conditions = denoiser.embed(candidates)
    x0, t = denoiser.encode(torch.zeros(3, 8, 8)), torch.tensor([3, 500, 900])
    assert x0.device.type == "cuda"
    noise = torch.randn(3, *shape)
    score = scores.scoring(loss, denoiser, x0, 0)[0]
    guidance = 0.5 if denoiser.terms is None else 0.0
    errors = blocks.errors(denoiser, x0, conditions, t, noise, score, blocks.Batch(6), guidance)
    assert errors.shape[:2] == (len(candidates), 3) and errors.dtype == torch.float32 and errors.device.type == "cpu"
    maps = classify.error_maps(denoiser, x0, conditions[1:], t[:1], noise[:1], blocks.Batch(6))
    assert maps.shape == (len(candidates) - 1, *shape[1:]) and maps.device.type == "cpu"
    asked = [batching.Cells(x0, [0, 1], t[:1], lambda part: noise[:1][part], range(2)) for _ in range(2)]
    for errors in batching.cell_errors(denoiser, asked, conditions, lambda x0: score, blocks.Batch(4), 0.0):
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


class Tokenizer:
    """Tokens without a vocabulary: the prompt's end is in the middle of each row."""

    model_max_length = 77

    def encode(self, text):
        return [2]

    def __call__(self, prompts, max_length, **_):
        mask = torch.ones(len(prompts), max_length, dtype=torch.int64)
        return SimpleNamespace(input_ids=mask, attention_mask=mask)


class Texts:
    """models.weights.Weights of text encoders without weights."""

    source, revision, embeddings = "random weights", None, SimpleNamespace(written=lambda part, prompts: prompts)

    def __init__(self, published):
        self.texts = published.texts

    def load_text(self, part, device, dtype, tokenizer):
        name, config = self.texts[part]
        cls = weights.class_named(name)
        config = cls.config_class(**config)
        config.use_cache = False  # which starts with a tensor that has data
        return made(lambda: cls(getattr(config, "encoder", config)), str(dtype).removeprefix("torch."))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), TEXTS)
def test_text_encoders(name, dtype, fake_cuda, monkeypatch):
    """Prompts to conditions: each has the parts and shapes that the network is called with in the test above."""
    real = torch.tensor  # of a number, as Gemma 2's factor, it would have data
    monkeypatch.setattr(torch, "tensor", lambda x, **named: (torch.scalar_tensor if type(x) is float else real)(x, **named))
    monkeypatch.setattr(PreTrainedModel, "init_weights", lambda self: None)  # which makes such a tensor
    monkeypatch.setattr(text_encoders.Encoder, "load_tokenizer", lambda *_: Tokenizer())
    published = random_weights.pipelines()[name]
    source = published.source()

    def conditions(read):
        return source.conditions(["a", "b"], read, False).to(devices.torch_dtype(dtype))._parts()

    def read(part, take):
        return source.encoder(part).read(Texts(published), ["a", "b"], take, "cuda", dtype)

    expected = conditions(random_weights._reader(source, published.text_configs, 2, "cpu"))
    assert {k: (v.shape, v.dtype, v.device) for k, v in conditions(read).items()} == {
        k: (v.shape, v.dtype, v.device) for k, v in expected.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(("side", "channels"), [(512, 4), (1024, 16)])
def test_vae(side, channels, fake_cuda):
    config = KL_BLOCKS | {"block_out_channels": random_weights.KL_WIDTHS, "latent_channels": channels, "shift_factor": 0.1}
    encode = hub.encoder_of(made(lambda: AutoencoderKL(**config), "float32"), "cuda")
    x0 = encode(torch.zeros(3, side, side))
    assert x0.shape == (channels, side // 8, side // 8) and x0.device.type == "cuda" and x0.dtype == torch.float32


@pytest.mark.slow
def test_sanas_vae(fake_cuda):
    x0 = hub.encoder_of(made(AutoencoderDC, "float32"), "cuda")(torch.zeros(3, 1024, 1024))  # its defaults are the published ones
    assert x0.shape == (32, 32, 32) and x0.device.type == "cuda" and x0.dtype == torch.float32


def test_an_index_on_the_wrong_device_is_found(fake_cuda):
    denoiser, shape = pipeline("1-5", "float16")
    inner = denoiser.predict_latents
    planted = lambda x_t, t, rows, latent: inner(x_t, t, rows, latent) + torch.arange(x_t.shape[-1])  # noqa: E731
    object.__setattr__(denoiser, "shared", planted)
    with pytest.raises(RuntimeError, match=r"(?i)device"):
        works(denoiser, shape, ["", "a", "b"])


@pytest.mark.parametrize("place", ["resnets.0.conv1", "attentions.0.proj_in", "attentions.0.transformer_blocks.0.ff.net.2"])
def test_a_weight_in_float32_is_found(place, fake_cuda):
    def spoil(module):
        layer = module.mid_block.get_submodule(place)
        layer.weight = torch.nn.Parameter(torch.empty(layer.weight.shape, device="cuda"), requires_grad=False)

    with pytest.raises(RuntimeError, match=r"(?i)type"):
        works(*pipeline("1-5", "float16", spoil), ["", "a", "b"])
