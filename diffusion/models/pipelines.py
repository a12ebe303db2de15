"""What the families of diffusers' pipelines have in common: their files, their memory, the order in which parts are loaded.

A family is a subclass in a file of its own, which says what is its own: parts, levels, conditions, the call of its network.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

from diffusion.models import devices, hub, texts
from diffusion.models.adapters import Adapters
from diffusion.models.embeddings import Embeddings
from diffusion.models.single_file import SingleFile
from diffusion.models.tokens import Tokens
from diffusion.models.weights import Weights
from diffusion.settings import AS_IT_IS, SPACES, Asked

STATED = "classifier.json"
SCHEDULER = "scheduler/scheduler_config.json"
SHARE = 0.1  # of a device's memory that the embeddings of all candidates may take; more stay on the CPU, and rows travel


@dataclass(frozen=True)
class Pipeline(ABC):
    """A source of weights: where a pipeline is, and what its config files say.

    network, vae, scheduler: their configs; encoders: in use, in the pipeline's order
    """

    source: str  # local folder or hub id
    revision: str | None  # the hub's commit; None for a local folder
    pipeline: str  # its class in diffusers
    network: Mapping[str, Any] = field(repr=False)
    vae: Mapping[str, Any] = field(repr=False)
    scheduler: Mapping[str, Any] = field(repr=False)
    encoders: tuple[texts.Encoder, ...]
    asked: Asked = AS_IT_IS
    stated_space: str | None = None  # in which its folder wants errors to be taken, by a STATED file

    VERSIONS: ClassVar[dict[str, str]]
    PIPELINES: ClassVar[tuple[str, ...]]
    NETWORK: ClassVar[str] = "transformer"  # its folder
    NETWORK_CLASS: ClassVar[str]  # in diffusers
    OLDER_CLASS: ClassVar[str | None] = None  # that config files from before that class name
    SPACE: ClassVar[str] = "velocity"  # of SPACES, what the network predicts, and errors are taken in
    ENCODERS: ClassVar[tuple[texts.Encoder, ...]]
    FLOW: ClassVar[bool] = False  # whether `levels` are `flow_levels`, which can be spread otherwise
    SINGLE_FILE: ClassVar[bool] = False  # whether its weights may be those of a single file
    OPTIONAL: ClassVar[tuple[str, ...]] = ()  # encoders without which it runs, too

    @classmethod
    def find(cls, source: str, asked: Asked = AS_IT_IS) -> "Pipeline":
        """Reads only config files, and what is added to weights.

        Raises ValueError for what is not to be had, for another layout, and for encoders that cannot be left out.
        """
        flag, layout = asked.flag, f"a folder of {' or '.join(cls.PIPELINES)}"
        index = hub.read_config(source, "model_index.json", {"_class_name": str}, flag, layout)
        network = f"{cls.NETWORK}/config.json"
        configs = {
            "network": hub.read_config(source, network, {"in_channels": int}, flag, layout),
            "vae": hub.vae_config(source, "vae/config.json", flag, layout, shift=True),
            "scheduler": hub.read_config(source, SCHEDULER, {"_class_name": str}, flag, layout),
        }
        every = cls.encoders_of(index["_class_name"])
        here = [encoder for encoder in every if texts.model_class(index, encoder.part)]
        lacking = [e.part for e in every if e not in here and e.part not in cls.OPTIONAL]
        if lacking:
            raise ValueError(f"{flag} {source}: model_index.json names no {lacking[0]}: give {layout}")
        if asked.text_encoders == "clip":
            if not cls.OPTIONAL:
                raise ValueError(f"--text_encoders clip: {source} cannot do without any of its text encoders")
            here = [encoder for encoder in here if encoder.part not in cls.OPTIONAL]
        revision = hub.revision_of(source, hub.fetch(source, network))
        stated = stated_space(source)
        found = cls(source, revision, index["_class_name"], encoders=tuple(here), asked=asked, stated_space=stated, **configs)
        found.check()
        found.weights.check(lambda part: found.encoder(part).load_tokenizer(source, revision))
        return found

    @classmethod
    def encoders_of(cls, pipeline: str) -> tuple[texts.Encoder, ...]:
        """All text encoders of a pipeline of this class."""
        return cls.ENCODERS

    def check(self) -> None:
        """Raises ValueError for a config that says nothing sensible, and where the parts do not belong together."""
        where, found = f"{self.where}: {self.NETWORK}/config.json", self.network.get("_class_name")
        if found not in (self.NETWORK_CLASS, self.OLDER_CLASS):
            raise ValueError(f"{where} is of a {found}, and a {self.pipeline} has a {self.NETWORK_CLASS}")
        known = ("in_channels", "patch_size", "sample_size", "pos_embed_max_size", "block_out_channels", "joint_attention_dim")
        hub.check_sizes(where, **{key: self.network[key] for key in known if self.network.get(key) is not None})
        self._check_scheduler(f"{self.where}: {SCHEDULER}")
        if self.network["in_channels"] != self.network_channels:
            latents = f"vae/config.json has latents of {self.vae['latent_channels']} channels"
            taken = f"{self.NETWORK}/config.json takes {self.network['in_channels']}"
            raise ValueError(f"{self.where}: {latents}, and {taken}")

    def _check_scheduler(self, where: str) -> None:
        hub.check_sizes(where, num_train_timesteps=self.n_levels)
        for key in ("shift", "flow_shift", "base_shift", "max_shift"):
            value = self.scheduler.get(key, 1)
            if type(value) not in (int, float) or not 0 < value < 100:
                raise ValueError(f"{where}: {key!r} is {value!r}, which is no shift")

    # ------------------------------------------------------------ what it says of itself

    @property
    def where(self) -> str:
        """The flag and the place that its configs are from."""
        return f"{self.asked.flag} {self.source}"

    @property
    def prediction(self) -> str:
        """Of settings.SPACES, what the network predicts."""
        return self.SPACE

    @property
    def space(self) -> str:
        """In which errors are taken."""
        return self.stated_space or self.SPACE

    @property
    def network_channels(self) -> int:
        """That the network is fed, for the VAE's latents."""
        return self.vae["latent_channels"]

    @property
    def patch(self) -> int:
        """Latent elements along one side that the network takes as one."""
        return self.network.get("patch_size", 1)

    @property
    def sample_size(self) -> int:
        """Latent elements along one side that it was trained on."""
        return self.network.get("sample_size") or 128

    @property
    def default_size(self) -> int:
        return self.asked.img_size or self.sample_size * self.vae["downscale"]

    @property
    def n_levels(self) -> int:
        return self.scheduler.get("num_train_timesteps", 1000)

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders in use."""
        return (self.NETWORK, "vae", "scheduler", *(name for e in self.encoders for name in (e.part, e.tokenizer)))

    def describe(self) -> str:
        n, n_all = len(self.encoders), len(self.ENCODERS)
        left_out = f", {n} of {n_all} text encoders" if n < n_all else ""
        place = self.weights.describe() if self.asked.file else self.source  # of a bare shape there is no folder
        return f"{place} ({self.pipeline}, {self.n_levels} noise levels{left_out})"

    @cached_property
    def weights(self) -> Weights:
        """Of its models."""
        index = hub.read_config(self.source, "model_index.json")
        encoders = {encoder.part: texts.model_class(index, encoder.part) for encoder in self.encoders}
        layers = self.network.get("layers_per_block", 2)
        loras = Adapters(self.pipeline, (self.NETWORK, *encoders), self.asked.loras, layers)
        classes = {self.NETWORK: self.NETWORK_CLASS, "vae": hub.vae_class(self.vae)} | encoders
        embeddings = Embeddings(self.pipeline, self.source, tuple(encoders), self.asked.embeddings)
        known = (self.NETWORK, "vae", *(encoder.part for encoder in self.encoders_of(self.pipeline)))
        file = SingleFile(self.asked.file, self.pipeline, self.NETWORK, known, self.source) if self.asked.file else None
        return Weights(self.source, self.revision, classes, loras, embeddings, file)

    def identity(self) -> str:
        """As of `Weights`, of the parts in use; and in which space its folder wants errors to be taken."""
        stated = [f"errors in {self.stated_space}"] if self.stated_space else []
        return ", ".join([self.weights.identity(self.parts), *stated])

    def latent_shape(self, img_size: int) -> tuple[int, int, int]:
        """(C, h, w) of an image's latent. Raises ValueError for a size that the patches cannot divide, or is too large."""
        unit, side = self.vae["downscale"] * self.patch, img_size // self.vae["downscale"]
        if img_size % unit:
            low, high = img_size // unit * unit, -(-img_size // unit) * unit
            raise ValueError(f"--img_size {img_size} must be a multiple of {unit} for this model: take {low or high} or {high}")
        most = self.network.get("pos_embed_max_size")
        if most and side > most * self.patch:
            largest = most * unit
            raise ValueError(f"--img_size {img_size}: this model has places for images up to {largest} pixels: take {largest}")
        return self.vae["latent_channels"], side, side

    def memory(self, dtype: str) -> dict[str, int]:
        """Bytes of each part's weights, as they are loaded beside a network of this dtype; what is not known is left out."""
        dtypes = {self.NETWORK: dtype, "vae": "float32"} | {encoder.part: encoder.dtype(dtype) for encoder in self.encoders}
        counts = {part: self.weights.n_parameters(part) for part in dtypes}
        return {part: n * (4 if dtypes[part] == "float32" else 2) for part, n in counts.items() if n}

    def tokens(self, prompts: Sequence[str]) -> Tokens:
        """What the text encoders are given of prompts."""
        return texts.merged([self.encoder(e.part).tokens(self.weights, self.written(prompts)) for e in self.encoders])

    def flow_levels(self, shift: float, scale: float, last: float = 1.0):
        """`flow_levels` at the spread asked for; shift, last: of the model's own."""
        spreads = {"own": (shift, last), "uniform": (1.0, 1.0), "shift3": (3.0, 1.0)}
        if self.asked.levels == "logit-normal":
            return logit_normal_levels(self.n_levels, scale)
        shift, last = spreads[self.asked.levels]
        return flow_levels(self.n_levels, shift, scale, last)

    def written(self, prompts: Sequence[str]) -> list[str]:
        """Prompts as they are tokenized."""
        return list(prompts)

    def encoder(self, part: str) -> texts.Encoder:
        """The one in this folder."""
        return next(encoder for encoder in self.encoders if encoder.part == part)

    # ------------------------------------------------------------ what a family says

    @abstractmethod
    def levels(self):
        """models.denoiser.Levels, on the CPU."""

    @abstractmethod
    def conditions(self, prompts: list[str], read, plain: bool):
        """models.denoiser.Conditions of K prompts. read(part, take): what an encoder makes of them, as of texts.Encoder.read."""

    @abstractmethod
    def call(self, network, x_t, times, conditions):
        """What the network predicts, [B,C,h,w], of latents [B,C,h,w] in the network's dtype."""

    def adapted(self, network, plain: bool):
        """The network, made to take `conditions`."""
        return network

    # ------------------------------------------------------------ weights

    def load(self, device: str, dtype: str, compile: bool = False, plain: bool = False):
        """The Denoiser, of errors in SPACE. Its `embed` loads the text encoders one by one and, when they are gone, the network.

        compile: through torch.compile; plain: as diffusers runs it by itself.
        """

        def reader(prompts):
            def read(part, take):
                return self.encoder(part).read(self.weights, self.written(prompts), take, device, dtype)

            return read

        network = cache(lambda: self._network(device, dtype, plain))
        return self.denoiser(network, self.weights.vae_encoder(device), reader, device, dtype, compile, plain)

    def denoiser(self, network, encode, reader, device: str, dtype: str, compile: bool = False, plain: bool = False):
        """The Denoiser of parts that are there, or will be.

        network: () -> what `call` takes, asked for when all prompts are read; encode: as of Denoiser; reader: K prompts -> `read`
        as of `conditions`; compile, plain: as of `load`.
        """
        from diffusion.models import hardware
        from diffusion.models.denoiser import Denoiser

        levels = self.levels().to(device)
        convert = levels.conversion(self.prediction, self.SPACE)
        run = hardware.compiled(self.call, device) if compile else self.call

        def embed(prompts):
            conditions = self.conditions(list(prompts), reader(prompts), plain)
            conditions = placed(conditions.to(devices.torch_dtype(dtype)), device)
            network()  # so that what is wrong with it is told at the start
            return conditions

        def predict(x_t, t, conditions):
            ready = network()
            output = run(ready, x_t.to(ready.dtype), levels.time(t), conditions.to(x_t.device))
            return convert(output.float(), x_t, t)

        return Denoiser(encode, embed, predict, levels, self.SPACE)

    def _network(self, device: str, dtype: str, plain: bool):
        return self.adapted(self.weights.load(self.NETWORK, device, devices.torch_dtype(dtype)), plain)


def stated_space(source: str) -> str | None:
    """What a local folder's STATED file says: a space that was chosen for these weights, and travels with them.

    None without such a file. Raises ValueError for one that says nothing of the kind.
    """
    if not (Path(source) / STATED).is_file():
        return None
    space = hub.read_config(source, STATED, {"error_space": str})["error_space"]
    if space not in SPACES:
        raise ValueError(f"--model_path {source}: {STATED}: 'error_space' is {space!r}, and has to be {', '.join(SPACES)}")
    return space


def placed(conditions, device: str):
    """Conditions on the device, or on the CPU where they would take more than SHARE of its memory."""
    most = devices.memory(device)
    return conditions if most is not None and conditions.n_bytes > SHARE * most else conditions.to(device)


def logit_normal_levels(n_levels: int, scale: float):
    """A flow's levels at the quantiles (r - 1/2) / n_levels of the logit-normal distribution (Esser et al. 2024, eq. 19)."""
    import torch

    from diffusion.models.denoiser import flow

    even = (torch.arange(n_levels, dtype=torch.float64) + 0.5) / n_levels
    return flow(torch.special.ndtri(even).sigmoid(), scale)


def flow_levels(n_levels: int, shift: float, scale: float, last: float = 1.0):
    """A flow's levels at s = shift r / (1 + (shift - 1) r) (Esser et al. 2024, eq. 23), r even up to `last`; fed scale * s."""
    import torch

    from diffusion.models.denoiser import flow

    r = torch.arange(1, n_levels + 1, dtype=torch.float64) / n_levels * last
    return flow(shift * r / (1 + (shift - 1) * r), scale)


def ddpm_levels(config):
    """The levels of a pipeline whose scheduler has this config."""
    from diffusers import DDPMScheduler

    from diffusion.models.denoiser import ddpm

    return ddpm(DDPMScheduler.from_config(dict(config)).alphas_cumprod)
