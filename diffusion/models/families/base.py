"""What the families of diffusers' pipelines have in common: their files, their memory, the order in which parts are loaded.

A family is a subclass in a file of its own, with what only it has: parts, levels, conditions, the call of its network.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from diffusion.models.loading import hub, schedulers, text_encoders
from diffusion.models.loading.checkpoint import SingleFile
from diffusion.models.loading.lora import Adapters
from diffusion.models.loading.textual_inversion import Embeddings
from diffusion.models.loading.tokens import Tokens
from diffusion.models.loading.weights import Weights
from diffusion.models.source import Source
from diffusion.models.speed import devices
from diffusion.settings import DEFAULT_OPTIONS, SPACES, ModelOptions
from diffusion.utils.files import fingerprint

if TYPE_CHECKING:  # which import torch
    from torch import Tensor, nn

    from diffusion.models.denoiser import Conditions, Denoiser, Levels

    # (text encoder's folder, take) -> take(its output, mask), put together for all prompts (texts.Encoder.read)
    Read = Callable[[str, Callable[[Any, Tensor], tuple[Tensor, ...]]], tuple[Tensor, ...]]

STATED = "classifier.json"
SHARE = 0.1  # of a device's memory that the embeddings of all candidates may take; more stay on the CPU, and rows travel


@dataclass(frozen=True)
class Pipeline(Source):
    """The weights of a pipeline in diffusers' layout, by its config files.

    Attributes:
        source: local folder or hub id.
        revision: the hub's commit; None for a local folder.
        pipeline: its class in diffusers.
        network, vae, scheduler: their configs as JSON; the VAE's with what `hub.vae_config` adds.
        encoders: the text encoders in use, in the pipeline's order.
        options: the size, text encoders, levels, LoRAs and embeddings of the run.
        stated_space: the space that its folder's STATED file states.
    """

    source: str
    revision: str | None
    pipeline: str
    network: Mapping[str, Any] = field(repr=False)
    vae: Mapping[str, Any] = field(repr=False)
    scheduler: Mapping[str, Any] = field(repr=False)
    encoders: tuple[text_encoders.Encoder, ...]
    options: ModelOptions = DEFAULT_OPTIONS
    stated_space: str | None = None

    VERSIONS: ClassVar[dict[str, str]]
    PIPELINES: ClassVar[tuple[str, ...]]
    NETWORK: ClassVar[str] = "transformer"  # its folder
    NETWORK_CLASS: ClassVar[str]  # in diffusers
    OLDER_CLASS: ClassVar[str | None] = None  # in config files from before that class name
    TITLE: ClassVar[str]  # what people call it
    SPACE: ClassVar[str] = "velocity"  # of SPACES, what the network predicts, and errors are taken in
    DYNAMIC: ClassVar[bool] = False  # whether a flow's shift may grow with the image
    TO_IMAGE: ClassVar[bool] = False  # whether a flow's network counts time from noise to image, and gives x0 - noise
    TEMPLATE: ClassVar[bool] = False  # whether `written` puts prompts into a text, which then tells runs apart
    # keys of its network's config by which it would want more inputs, or others, than `call` gives it -> what they may be
    INPUTS: ClassVar[dict[str, tuple]] = {}
    OUTPUTS: ClassVar[tuple[int, ...]] = (1,)  # channels that the network may give, in multiples of those that it takes
    CHANNELS_LAST: ClassVar[bool] = False  # whether the network is convolutions, fastest in that memory format
    ENCODERS: ClassVar[tuple[text_encoders.Encoder, ...]]
    OPTIONAL: ClassVar[tuple[str, ...]] = ()  # text encoders that it also runs without

    @classmethod
    def find(cls, source: str, options: ModelOptions = DEFAULT_OPTIONS) -> Pipeline:
        """Read config files, and what is added to weights, but no weights of the model.

        Args:
            source: local folder or hub id.
            options: which text encoders, and what is added to the weights.

        Raises:
            ValueError: a file is not to be had, the layout is another one, or text encoders cannot be left out.
        """
        flag, layout = options.flag, f"a folder of {' or '.join(cls.PIPELINES)}"
        index = hub.read_config(source, "model_index.json", {"_class_name": str}, flag, layout)
        network_file = f"{cls.NETWORK}/config.json"
        network = hub.read_config(source, network_file, {"in_channels": int}, flag, layout)
        vae = hub.vae_config(source, "vae/config.json", flag, layout, shift=True)
        scheduler = hub.read_config(source, schedulers.CONFIG, {"_class_name": str}, flag, layout)
        every = cls.encoders_of(index["_class_name"], network)
        here = [encoder for encoder in every if text_encoders.model_class(index, encoder.part)]
        lacking = [e.part for e in every if e not in here and e.part not in cls.OPTIONAL]
        if lacking:
            raise ValueError(f"{flag} {source}: model_index.json names no {lacking[0]}: give {layout}")
        if options.text_encoders == "clip":
            if not cls.OPTIONAL:
                raise ValueError(f"--text_encoders clip: {source} cannot do without any of its text encoders")
            here = [encoder for encoder in here if encoder.part not in cls.OPTIONAL]
        revision, name = hub.revision_of(source, hub.fetch(source, network_file)), index["_class_name"]
        pipeline = cls(source, revision, name, network, vae, scheduler, tuple(here), options, stated_space(source))
        pipeline.check()
        pipeline.weights.check(pipeline.load_tokenizer)
        return pipeline

    @classmethod
    def encoders_of(cls, pipeline: str, network: Mapping[str, Any]) -> tuple[text_encoders.Encoder, ...]:
        """All text encoders of a pipeline of this class in diffusers, beside a network with this config."""
        return cls.ENCODERS

    def check(self) -> None:
        """Check that the configs make sense and that the parts belong together.

        Raises:
            ValueError: a size is none, a part is of another class, or two parts do not fit.
        """
        where, name = f"{self.where}: {self.NETWORK}/config.json", self.network.get("_class_name")
        if name not in (self.NETWORK_CLASS, self.OLDER_CLASS):
            raise ValueError(f"{where} is of a {name}, and a {self.pipeline} has a {self.NETWORK_CLASS}")
        known = ("in_channels", "patch_size", "sample_size", "pos_embed_max_size", "block_out_channels", "joint_attention_dim")
        hub.check_sizes(where, **{key: self.network[key] for key in known if self.network.get(key) is not None})
        hub.check_known(where, self.network, self.INPUTS)
        n = self.network["in_channels"]
        hub.check_known(where, self.network, {"out_channels": (None, *(factor * n for factor in self.OUTPUTS))})
        self._check_scheduler()
        if self.network["in_channels"] != self.network_channels:
            latents = f"vae/config.json has latents of {self.vae['latent_channels']} channels"
            taken = f"{self.NETWORK}/config.json takes {self.network['in_channels']}"
            raise ValueError(f"{self.where}: {latents}, and {taken}")

    def _check_scheduler(self) -> None:
        hub.check_sizes(self.scheduler_file, num_train_timesteps=self.n_levels)
        for key in ("shift", "flow_shift", "base_shift", "max_shift"):
            value = self.scheduler.get(key, 1)
            if type(value) not in (int, float) or not 0 < value < 100:
                raise ValueError(f"{self.scheduler_file}: {key!r} is {value!r}, which is no shift")
        if self.FLOW:
            schedulers.check_flow(self.scheduler_file, self.scheduler, self.options.levels == "own", self.DYNAMIC)
        else:
            schedulers.check_ddpm(self.scheduler_file, {"num_train_timesteps": 1000} | dict(self.scheduler))
        self.prediction  # noqa: B018 - raises

    # ------------------------------------------------------------ known by its configs

    @property
    def where(self) -> str:
        """The flag and the place of its configs, for an error."""
        return f"{self.options.flag} {self.source}"

    @property
    def scheduler_file(self) -> str:
        """The flag and the place of its scheduler's config, for an error."""
        return f"{self.where}: {schedulers.CONFIG}"

    @property
    def prediction(self) -> str:
        """What the network predicts, of settings.SPACES."""
        stated = self.scheduler.get("prediction_type", "epsilon")
        return self.SPACE if self.FLOW else schedulers.prediction_of(stated, self.scheduler_file)

    @property
    def space(self) -> str:
        return self.stated_space or self.SPACE

    @property
    def network_channels(self) -> int:
        """Channels that the network is fed for a latent of the VAE."""
        return self.vae["latent_channels"]

    @property
    def patch(self) -> int:
        """Latent elements along one side that the network takes as one."""
        return self.network.get("patch_size", 1)

    @property
    def places(self) -> int | None:
        """Patches along one side that it has places for; None: no limit."""
        return self.network.get("pos_embed_max_size")

    @property
    def sample_size(self) -> int:
        """Latent elements along one side that it was trained on."""
        return self.network.get("sample_size") or 128

    @property
    def default_size(self) -> int:
        """Pixels a side of the run's options, else those that it was trained on."""
        return self.options.img_size or self.sample_size * self.vae["downscale"]

    @property
    def n_levels(self) -> int:
        return self.scheduler.get("num_train_timesteps", 1000)

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders in use."""
        return (self.NETWORK, "vae", "scheduler", *(name for e in self.encoders for name in (e.part, e.tokenizer)))

    @property
    def unfetched(self) -> list[str]:
        return [self.source] if self.revision is None and not Path(self.source).is_dir() else []

    def describe(self) -> str:
        n, n_all = len(self.encoders), len(self.ENCODERS)
        left_out = f", {n} of {n_all} text encoders" if n < n_all else ""
        place = self.weights.describe() if self.options.file else self.source  # of a bare shape there is no folder
        return f"{place} ({self.pipeline}, {self.n_levels} noise levels{left_out})"

    @cached_property
    def weights(self) -> Weights:
        """Where the weights of its parts are, and what is added to them."""
        encoders = self.encoder_classes()
        layers = self.network.get("layers_per_block", 2)
        loras = Adapters(self.pipeline, (self.NETWORK, *encoders), self.options.loras, layers)
        classes = {self.NETWORK: self.NETWORK_CLASS, "vae": hub.vae_class(self.vae)} | encoders
        embeddings = Embeddings(self.pipeline, self.source, tuple(encoders), self.options.embeddings)
        known = (self.NETWORK, "vae", *(encoder.part for encoder in self.encoders_of(self.pipeline, self.network)))
        file = SingleFile(self.options.file, self.pipeline, self.NETWORK, known, self.source) if self.options.file else None
        return Weights(self.source, self.revision, classes, loras, embeddings, file)

    def encoder_classes(self) -> dict[str, str]:
        """Folder of each text encoder in use -> its class in transformers."""
        index = hub.read_config(self.source, "model_index.json")
        return {encoder.part: name for encoder in self.encoders if (name := text_encoders.model_class(index, encoder.part))}

    def identity(self) -> str:
        """The identity of the weights of the parts in use (`Weights.identity`), the space that its folder states, and the text
        around prompts."""
        stated = [f"errors in {self.stated_space}"] if self.stated_space else []
        stated += [f"prompts as {fingerprint(self.written(['']))}"] if self.TEMPLATE else []
        return ", ".join([self.weights.identity(self.parts), *stated])

    def latent_shape(self, img_size: int) -> tuple[int, int, int]:
        unit, side = self.vae["downscale"] * self.patch, img_size // self.vae["downscale"]
        if img_size % unit:
            low, high = img_size // unit * unit, -(-img_size // unit) * unit
            raise ValueError(f"--img_size {img_size} must be a multiple of {unit} for this model: take {low or high} or {high}")
        if self.places and side > self.places * self.patch:
            largest = self.places * unit
            raise ValueError(f"--img_size {img_size}: this model has places for images up to {largest} pixels: take {largest}")
        return self.vae["latent_channels"], side, side

    def memory(self, dtype: str) -> dict[str, int]:
        dtypes = {self.NETWORK: dtype, "vae": "float32"} | {encoder.part: encoder.dtype(dtype) for encoder in self.encoders}
        counts = {part: self.weights.n_parameters(part) for part in dtypes}
        return {part: n * (4 if dtypes[part] == "float32" else 2) for part, n in counts.items() if n}

    def tokens(self, prompts: Sequence[str]) -> Tokens:
        return text_encoders.merged([self.encoder(e.part).tokens(self.weights, self.written(prompts)) for e in self.encoders])

    def unused_additions(self, prompts: Sequence[str]) -> str | None:
        return self.weights.embeddings.notice(prompts)

    def flow_levels(self, shift: float, scale: float, last: float = 1.0) -> Levels:
        """The levels of a flow on the run's schedule (--levels); shift, scale, last: the model's own (schedulers.flow_levels)."""
        if self.options.levels == "logit-normal":
            return schedulers.logit_normal_levels(self.n_levels, scale, self.TO_IMAGE)
        shift, last = {"own": (shift, last), "uniform": (1.0, 1.0), "shift3": (3.0, 1.0)}[self.options.levels]
        return schedulers.flow_levels(self.n_levels, shift, scale, last, self.TO_IMAGE)

    def static_levels(self, scale: float) -> Levels:
        """`flow_levels` of the one shift that the scheduler states."""
        last = 1 - 1 / self.n_levels if "flow_shift" in self.scheduler else 1.0  # of a solver for DDPMs, which stops before noise
        return self.flow_levels(self.scheduler.get("flow_shift", self.scheduler.get("shift", 1.0)), scale, last)

    def own_levels(self, scale: float) -> Levels:
        """`flow_levels` of the shift that the scheduler states, which may grow with the image: exp(mu), mu a line through (256
        tokens, base_shift) and (4096, max_shift)."""
        config = self.scheduler
        if not config.get("use_dynamic_shifting"):
            return self.static_levels(scale)
        n0, n1 = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        mu0, mu1 = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        _, h, w = self.latent_shape(self.default_size)
        return self.flow_levels(math.exp(mu0 + (h * w // self.patch**2 - n0) * (mu1 - mu0) / (n1 - n0)), scale)

    def written(self, prompts: Sequence[str]) -> list[str]:
        """Prompts as they are tokenized."""
        return list(prompts)

    def encoder(self, part: str) -> text_encoders.Encoder:
        """The text encoder in this folder."""
        return next(encoder for encoder in self.encoders if encoder.part == part)

    def load_tokenizer(self, part: str):
        """The tokenizer of the text encoder in this folder. Raises ValueError for one that is missing or damaged."""
        return self.encoder(part).load_tokenizer(self.source, self.revision)

    # ------------------------------------------------------------ what a family gives

    @abstractmethod
    def levels(self) -> Levels: ...

    @abstractmethod
    def conditions(self, prompts: list[str], read: Read, plain: bool) -> Conditions:
        """What the network is conditioned on.

        Args:
            prompts: K of them.
            read: (part, take) -> take(output, mask) of the text encoder in this folder for all prompts; output: of transformers'
                class, with hidden states; mask: int64 [B,L]; what take makes of them: tensors [B,...], returned as [K,...].
            plain: as in `load`.
        """

    @abstractmethod
    def call(self, network: nn.Module, x_t: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """What the network predicts.

        Args:
            network: of NETWORK_CLASS.
            x_t: [B,C,h,w] in the network's dtype.
            times: [B], what the network is fed for the level.
            conditions: B rows.

        Returns:
            [B,C,h,w] in the network's dtype, with the network's own sign.
        """

    def adapted(self, network: nn.Module, plain: bool) -> nn.Module:
        """The network made fit for `conditions`, and unless plain in the memory format that is fastest."""
        if plain or not self.CHANNELS_LAST:
            return network
        from diffusion.models.speed import tuning

        return tuning.tune(network, str(network.device))

    def share(self, network: nn.Module) -> Callable[..., Tensor] | None:
        """The network's call on latents that several candidates share; None where nothing is saved by it.

        Returns:
            (x_t [P,C,h,w], times [P], conditions, latent) -> as `call`, with `latent` as in `Denoiser.shared`.
        """
        return None

    # ------------------------------------------------------------ weights

    def load(self, device: str, dtype: str, compile: bool = False, plain: bool = False) -> Denoiser:
        """The Denoiser, with errors in SPACE. Its `embed` loads the text encoders one by one and, when they are freed, the
        network."""
        network = cache(lambda: self._network(device, dtype, plain))
        reader = self.reader(device, dtype)
        return self.denoiser(network, self.weights.vae_encoder(device), reader, device, dtype, compile, plain)

    def reader(self, device: str, dtype: str) -> Callable[[Sequence[str]], Read]:
        """K prompts -> `read` as in `conditions`, by the text encoders beside a network of this dtype."""

        def reader(prompts):
            def read(part, take):
                return self.encoder(part).read(self.weights, self.written(prompts), take, device, dtype)

            return read

        return reader

    def denoiser(self, network: Callable[[], nn.Module], encode: Callable[[Tensor], Tensor],
                 reader: Callable[[Sequence[str]], Read], device: str, dtype: str, compile: bool = False,
                 plain: bool = False) -> Denoiser:  # fmt: skip
        """The Denoiser of parts that are there, or will be.

        Args:
            network: () -> what `call` takes; called when all prompts are read.
            encode: as in Denoiser.
            reader: K prompts -> `read` as in `conditions`.
            device, dtype, compile, plain: as in `load`.
        """
        import torch

        from diffusion.models.denoiser import Denoiser, evaluations, one_by_one
        from diffusion.models.speed import tuning

        levels = self.levels().to(device)
        convert = levels.conversion(self.prediction, self.SPACE)
        layout = torch.channels_last if self.CHANNELS_LAST and not plain else torch.preserve_format

        @cache
        def ready():
            """(network, its call, `share` of it); what blocks of candidates go through is compiled."""
            module, call = network(), self.call
            share = None if plain else self.share(module)
            if compile and share:
                share = tuning.compiled(share, device)
            elif compile:
                call = tuning.compiled(call, device)
            return module, call, share

        def embed(prompts):
            conditions = self.conditions(list(prompts), reader(prompts), plain)
            conditions = placed(conditions.to(devices.torch_dtype(dtype)), device)
            ready()  # so that whatever is wrong with the network is reported at the start
            return conditions

        def predict(x_t, t, conditions):
            module, call, _ = ready()
            output = call(module, x_t.to(module.dtype, memory_format=layout), levels.time(t), conditions.to(x_t.device))
            return convert(levels.predicted(output), x_t, t)

        def shared(x_t, t, conditions, latent):
            module, _, share = ready()
            if share is None:
                return one_by_one(predict, x_t, t, conditions, latent)
            output = share(x_t.to(module.dtype, memory_format=layout), levels.time(t), conditions.to(x_t.device), latent)
            return convert(levels.predicted(output), *evaluations(x_t, t, len(conditions), latent))

        return Denoiser(encode, embed, predict, levels, self.SPACE, shared=None if plain else shared)

    def _network(self, device: str, dtype: str, plain: bool) -> nn.Module:
        return self.adapted(self.weights.load(self.NETWORK, device, devices.torch_dtype(dtype)), plain)


class UNetPipeline(Pipeline):
    """A pipeline with a U-Net on the levels of a discrete DDPM, as all of Stable Diffusion before 3; errors in epsilon."""

    NETWORK: ClassVar[str] = "unet"
    NETWORK_CLASS: ClassVar[str] = "UNet2DConditionModel"
    SPACE: ClassVar[str] = "epsilon"
    SINGLE_FILE: ClassVar[bool] = True
    INPUTS: ClassVar[dict[str, tuple]] = dict.fromkeys(
        ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim"), (None,)
    )
    CHANNELS_LAST: ClassVar[bool] = True

    @property
    def patch(self) -> int:
        """What the U-Net divides the latent's side by on its way down."""
        return 2 ** (len(self.network["block_out_channels"]) - 1)

    def levels(self) -> Levels:
        return schedulers.ddpm_levels(self.scheduler)


def stated_space(source: str) -> str | None:
    """The space in a local folder's STATED file, which was chosen for these weights and travels with them.

    Returns:
        None without such a file.

    Raises:
        ValueError: the file states none of settings.SPACES.
    """
    if not (Path(source) / STATED).is_file():
        return None
    space = hub.read_config(source, STATED, {"error_space": str})["error_space"]
    if space not in SPACES:
        raise ValueError(f"--model_path {source}: {STATED}: 'error_space' is {space!r}, and has to be {', '.join(SPACES)}")
    return space


def without_padding(sequence: Tensor, mask: Tensor) -> Conditions:
    """Conditions of sequence [K,L,D] and mask [K,L] as far as the last token that counts for any prompt.

    Exact where the network masks what does not count, as padding is on the right.
    """
    from diffusion.models.denoiser import Conditions

    n = max(mask.sum(1).tolist())
    return Conditions(sequence=sequence[:, :n].contiguous(), mask=mask[:, :n].contiguous())


def placed(conditions: Conditions, device: str) -> Conditions:
    """Conditions on the device, or on the CPU where they would take more than SHARE of its memory."""
    most = devices.memory(device)
    return conditions if most is not None and conditions.n_bytes > SHARE * most else conditions.to(device)
