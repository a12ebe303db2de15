"""Published networks by their shapes: config files without weights, filled with random numbers or empty on the meta device.

Parameters, memory, arithmetic and speed of a network follow from its shape. Nothing is downloaded.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from diffusion.models.families.base import Pipeline
from diffusion.models.families.dit import DiTSource
from diffusion.models.families.table import FAMILIES
from diffusion.models.loading import hub, weights
from diffusion.models.speed import devices
from diffusion.settings import DEFAULT_OPTIONS, ModelOptions
from diffusion.utils.files import read_json

# ---------------------------------------------------------------- config files, as published

KL_WIDTHS = [128, 256, 512, 512]  # of every VAE of these but Sana's, of which nobody asks them


class Size(NamedTuple):
    """What a published network takes at its default size.

    Attributes:
        gflop: of one evaluation, as `Bare.count` counts it.
        million_numbers: that the weights are.
        mb_in_32_bits, mb_in_16_bits: of a call, per input, as `Bare.bytes_per_call` counts them.
    """

    gflop: int
    million_numbers: float
    mb_in_32_bits: float
    mb_in_16_bits: float


@dataclass(frozen=True)
class Published:
    """A published pipeline by what its config files say.

    Attributes:
        family: its class of sources.
        pipeline: its class in diffusers.
        network, scheduler: the JSON of their configs.
        latent_channels, downscale: of the VAE.
        texts: folder of a text encoder -> its class in transformers, its config.
        size: what its network takes.
        same_shape, half_size: versions whose config files say the same, or that of half of the side of images.
    """

    family: type[Pipeline]
    pipeline: str
    network: Mapping[str, Any]
    latent_channels: int
    downscale: int
    scheduler: Mapping[str, Any]
    texts: Mapping[str, tuple[str, Mapping[str, Any]]]
    size: Size
    same_shape: tuple[str, ...] = ()
    half_size: tuple[str, ...] = ()

    def source(self, img_size: int | None = None) -> Pipeline:
        """The source that reading its config files would give. img_size: pixels a side; None: the model's own."""
        return self.family(
            source="random weights",
            revision=None,
            pipeline=self.pipeline,
            network={"_class_name": self.family.NETWORK_CLASS, **self.network},
            vae={"latent_channels": self.latent_channels, "downscale": self.downscale, "block_out_channels": KL_WIDTHS},
            scheduler=self.scheduler,
            encoders=self.family.encoders_of(self.pipeline, self.network),
            options=ModelOptions(img_size),
        )

    @property
    def text_configs(self) -> dict[str, Mapping[str, Any]]:
        """Folder of a text encoder -> its config."""
        return {part: config for part, (_, config) in self.texts.items()}

    def text_memory(self, dtype: str) -> dict[str, int]:
        """Text encoder -> bytes of its weights, as they are loaded beside a network of this dtype."""
        import torch

        sizes = {}
        for encoder in self.source().encoders:
            name, config = self.texts[encoder.part]
            cls: Any = weights.class_named(name)
            with torch.device("meta"):
                made = cls.config_class(**config)
                n = sum(p.numel() for p in cls(getattr(made, "encoder", made)).parameters())
            sizes[encoder.part] = n * devices.torch_dtype(encoder.dtype(dtype)).itemsize
        return sizes


@functools.cache
def pipelines() -> dict[str, Published]:
    """Version -> what published.json says of it, whose text encoders several share."""
    content = read_json(Path(__file__).with_name("published.json"))
    families = {family.__name__: family for family in FAMILIES}
    return {name: _published(families, content["text_encoders"], **row) for name, row in content["pipelines"].items()}


def _published(families: Mapping[str, Any], encoders: Mapping[str, Any], family: str, vae: Mapping[str, Any],
               texts: Mapping[str, list], size: Mapping[str, Any], **row: Any) -> Published:  # fmt: skip
    """A row. texts: part -> class, and the name of a config, or an object of names where the class has several configs."""
    read = {part: (cls, encoders[name] if isinstance(name, str) else {key: encoders[one] for key, one in name.items()})
            for part, (cls, name) in texts.items()}  # fmt: skip
    return Published(families[family], texts=read, size=Size(**size), **vae, **row)


def expected(version: str, options: ModelOptions = DEFAULT_OPTIONS) -> Pipeline | None:
    """The source of a published version whose config files are not in the hub's cache, as if they had been read, but without a
    revision; None for all others. It knows what a price depends on, and has no identity."""
    published = next((one for name, one in pipelines().items() if version in (name, *one.same_shape, *one.half_size)), None)
    place = published.family.VERSIONS.get(version) if published else None
    if published is None or place is None or not hub.is_absent(place, f"{published.family.NETWORK}/config.json"):
        return None
    if version in published.half_size:
        published = replace(published, network={**published.network, "sample_size": published.network["sample_size"] // 2})
    return replace(published.source(), source=place, options=options)


# ---------------------------------------------------------------- arithmetic of these networks

DIT_XL = Size(237, 675.1, 13.02, 6.51)  # DiT-XL/2 at 256 pixels


def gflop(source, img_size: int) -> float | None:
    """GFLOP of an evaluation at this size, roughly, as if they grew with the image's area; None for a network of no published
    shape.

    torch is not needed, so that it can be told at once.
    """
    known = _known(source, img_size)
    return known and known[0].gflop * known[1]


def _known(source, img_size: int) -> tuple[Size, float] | None:
    """(size of the published network of this shape, the image's area by that of its default size)."""
    if isinstance(source, DiTSource):
        return (DIT_XL, (img_size / 256) ** 2) if source.token_elements == 1152 // 2**2 else None  # width, patch
    one = next((one for one in pipelines().values() if _is_of_shape(source, one)), None)
    return (one.size, (img_size / one.source().default_size) ** 2) if one else None


def call_bytes(source, img_size: int, dtype: str, n: int) -> int | None:
    """Memory of one call of the network on n inputs, with its weights, in bytes, counted and not measured; None for a network of
    no published shape. Like `gflop` as if it grew with the image's area, and told at once.

    A call's largest sum of live bytes is that of one input times their number, to a hundredth.
    """
    known = _known(source, img_size)
    if known is None:
        return None
    size, area = known
    bytes_each, per_input = (4, size.mb_in_32_bits) if dtype == "float32" else (2, size.mb_in_16_bits)
    return round(1e6 * (size.million_numbers * bytes_each + n * area * per_input))


def _is_of_shape(source, published: Published) -> bool:
    """But for the size that it was trained at."""
    if type(source) is not published.family:
        return False
    return all(source.network.get(key) == value for key, value in published.network.items() if key != "sample_size")


# ---------------------------------------------------------------- networks of these shapes


@dataclass(frozen=True)
class Bare:
    """A network without weights.

    Attributes:
        build: () -> the module.
        latent_shape: (C, h, w) of what it is fed.
        call: (module, x_t [B,C,h,w], times [B], Conditions of B) -> its output.
        conditions: (K, device) -> random Conditions of K candidates.
    """

    build: Callable
    latent_shape: tuple[int, int, int]
    call: Callable
    conditions: Callable

    def filled(self, device: str, dtype: str):
        """The module with random numbers, which every dtype rounds from the same float32; on the meta device it has none.

        It never takes more memory than its weights in this dtype and one of them in float32.
        """
        import torch

        with torch.device("meta"):
            module = self.build().eval().requires_grad_(False)
        torch.nn.Module.to(module, devices.torch_dtype(dtype))  # diffusers' own `to` warns of modules that it does not name
        module.to_empty(device=device)
        for tensor in (*module.parameters(), *module.buffers()):
            std = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.5  # outputs are about as large as inputs
            tensor.copy_(std * torch.randn(tensor.shape, device=device))
        return module

    def encoder(self, device: str) -> Callable:
        """A function of an image that gives a random latent [C,h,w]."""
        import torch

        return lambda image: torch.randn(self.latent_shape, device=device)

    def count(self) -> dict[str, int]:
        """Its size: parameters; numbers in memory, which are these and buffers; flops_per_evaluation."""
        import torch

        module = self.filled("meta", "float32")
        x_t, times = torch.zeros(1, *self.latent_shape, device="meta"), torch.zeros(1, device="meta")
        conditions = self.conditions(1, "meta")
        n_parameters, n_buffers = (sum(t.numel() for t in part()) for part in (module.parameters, module.buffers))
        return {
            "parameters": n_parameters,
            "numbers": n_parameters + n_buffers,
            "flops_per_evaluation": flops(lambda: self.call(module, x_t, times, conditions)),
        }

    def bytes_per_call(self, dtype: str, n: int) -> int:
        """Largest sum of live bytes of one call on n inputs, without the weights, counted on tensors that hold no data.

        Attention counts as one fused operator, as it runs on GPUs: without its logits. Workspaces, fragmentation and what a
        compiler saves are not known.
        """
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode

        from diffusion.models.speed.counting import LiveBytes

        kind = devices.torch_dtype(dtype)
        random = self.conditions(1, "cpu").to(kind).repeat_one(n)  # outside, as Sana's asks for values
        with FakeTensorMode(), torch.no_grad():
            module = without_data(self.build, dtype)
            with LiveBytes(*module.parameters(), *module.buffers()) as live:
                conditions = random._each(lambda part: torch.empty(part.shape, dtype=part.dtype))
                x_t, times = torch.zeros(n, *self.latent_shape, dtype=kind), torch.zeros(n)
                self.call(module, x_t, times, conditions).float()
        return live.peak


def without_data(build: Callable, dtype: str):
    """The module of build() in this dtype, under FakeTensorMode, where modules cannot be converted once they are made."""
    import torch

    kind, before = devices.torch_dtype(dtype), torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        module = build().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    for part in module.modules():  # tables come in float32 whatever the default is
        for name, x in part._parameters.items():
            part._parameters[name] = None if x is None else torch.nn.Parameter(x.to(kind), requires_grad=False)
        for name, x in part._buffers.items():
            part._buffers[name] = x.to(kind) if x is not None and x.is_floating_point() else x
    return module


def flops(work: Callable[[], object]) -> int:
    """The arithmetic of work(): two operations per multiply-add of matrix products and convolutions. Attention counts as two
    matrix products, however it is fused; everything else as nothing."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def network_of(source: Pipeline, text_configs: Mapping[str, Mapping[str, Any]]) -> Bare:
    """A pipeline's network, to be called with random conditions.

    Args:
        source: of the pipeline's configs.
        text_configs: folder of a text encoder -> its config.
    """
    import diffusers

    cls = getattr(diffusers, source.NETWORK_CLASS)

    def build():
        with hub.quiet():  # of PRX's size, which is not in its network's config
            return cls.from_config(dict(source.network))

    return Bare(
        build=build,
        latent_shape=source.latent_shape(source.default_size),
        call=source.call,
        conditions=lambda n, device: source.conditions([""] * n, _reader(source, text_configs, n, device), plain=True),
    )


def text_configs(source: Pipeline) -> dict[str, Mapping[str, Any]]:
    """Folder of each text encoder -> its config, of a pipeline that has files. Raises ValueError for a missing or damaged one."""
    return {encoder.part: hub.read_config(source.source, f"{encoder.part}/config.json") for encoder in source.encoders}


def _reader(source: Pipeline, text_configs: Mapping[str, Mapping[str, Any]], n: int, device: str) -> Callable:
    """`read` as in Pipeline.conditions, in which every text encoder gives random states of all its tokens."""
    import torch

    def random(*shape):
        return torch.randn(n, *shape, device=device)

    def read(part, take):
        config = text_configs[part]
        config = config.get("encoder", config)  # T5Gemma's is the whole model's
        width = config.get("d_model") or config["hidden_size"]
        length = {e.part: e.length for e in source.encoders}[part] or config["max_position_embeddings"]
        states = random(length, width)
        pooled = {"pooler_output": random(width), "text_embeds": random(config.get("projection_dim", width))}
        output = SimpleNamespace(last_hidden_state=states, hidden_states=(states, states), **pooled)
        return take(output, torch.ones(n, length, dtype=torch.int64, device=device))

    return read


def load(source: Pipeline, text_configs: Mapping[str, Mapping[str, Any]], device: str, dtype: str, compile: bool = False,
         plain: bool = False):  # fmt: skip
    """The Denoiser of a pipeline whose weights, texts and latents are random.

    Args:
        source, text_configs: as in `network_of`.
        device, dtype, compile, plain: as in Pipeline.load.
    """
    network = network_of(source, text_configs)
    module = source.adapted(network.filled(device, dtype), plain)

    def reader(prompts):
        return _reader(source, text_configs, len(prompts), "cpu")  # where texts are kept

    return source.denoiser(lambda: module, network.encoder(device), reader, device, dtype, compile, plain)
