"""Class-conditional Diffusion Transformers: the published DiT-XL/2, checkpoints of its format or diffusers', the shipped one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from diffusion.models.loading import hub
from diffusion.models.source import Source
from diffusion.models.speed import devices
from diffusion.utils.files import hash_files, read_json
from diffusion.utils.paths import TINY_DIT, TINY_SD

if TYPE_CHECKING:  # which import torch
    from torch import Tensor, nn

    from diffusion.models.denoiser import Denoiser

VAE = "stabilityai/sd-vae-ft-ema"  # the one that the published checkpoints were trained with
VAE_WIDTH = 128  # channels of its first feature map
VAE_LAYOUT = "the folder of an AutoencoderKL"
LAW = {  # of the published networks, in diffusers' words
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
    "use_flow_sigmas": False,
}


@dataclass(frozen=True)
class DiTSource(Source):
    """The weights of a DiT: where a checkpoint and its VAE are, and what is known of them before weights are read.

    Attributes:
        path: checkpoint file or diffusers folder; None: the published weights.
        file: what will be read; the published weights may still have to be downloaded to it.
        model: a published shape, "DiT-XL/2", for a checkpoint without a config.json.
        img_size: pixels a side, the only size that the checkpoint takes.
        vae: local folder or hub id.
        vae_revision: the hub's commit; None for a local folder.
        latent_channels: of the VAE's latents, which the transformer takes.
        in_diffusers_layout: whether the file has diffusers' names.
        vae_width: channels of the VAE's first feature map.
        token_elements: of the transformer's tokens, per position of the latent.
        num_classes: without the null class, which is the next id.
    """

    path: str | None
    file: Path
    model: str
    img_size: int
    vae: str
    vae_revision: str | None
    latent_channels: int
    in_diffusers_layout: bool
    vae_width: int
    token_elements: int
    num_classes: int = 1000
    n_levels: int = 1000
    learned_variance: ClassVar[bool] = True

    @classmethod
    def find(cls, model: str, model_path: str | None = None, img_size: int | None = None, vae_path: str | None = None,
             expect: bool = False) -> DiTSource:  # fmt: skip
        """Read config files, but no weights.

        Args:
            model: a published shape, or `tiny` for the shipped model and VAE.
            model_path: checkpoint file or diffusers folder; None: the published weights.
            img_size: pixels a side; None: those of the checkpoint.
            vae_path: local folder or hub id of the VAE; None: the one that the published checkpoints were trained with.
            expect: whether the published VAE may be absent; its revision is then None.

        Raises:
            ValueError, OSError: a shape is unknown, sizes do not fit, or a file is not there.
        """
        from DiT import architecture

        if model == "tiny":
            model_path, vae_path = model_path or str(TINY_DIT / "model.safetensors"), vae_path or str(TINY_SD / "vae")
        img_size = img_size or architecture.default_size(model_path)
        file = architecture.locate(model_path, model, img_size)
        config, in_diffusers_layout = architecture.architecture(file, model, img_size)
        unit = architecture.VAE_FACTOR * config["patch_size"]
        if img_size % unit:
            raise ValueError(f"--image-size {img_size} must be a multiple of {unit} for this model")
        check_scheduler(file.parent)
        channels = config.get("in_channels", 4)
        vae = vae_path or VAE
        known = expect and vae == VAE and hub.is_absent(vae, "config.json")
        vae_revision, vae_width = (None, VAE_WIDTH) if known else check_vae(vae, channels, architecture.VAE_FACTOR)
        return cls(
            path=model_path,
            file=file,
            model=model,
            img_size=img_size,
            vae=vae,
            vae_revision=vae_revision,
            num_classes=config.get("num_classes", 1000),
            latent_channels=channels,
            in_diffusers_layout=in_diffusers_layout,
            vae_width=vae_width,
            token_elements=config["hidden_size"] // config["patch_size"] ** 2,
        )

    @property
    def default_size(self) -> int:
        return self.img_size

    @property
    def null_class(self) -> int:
        return self.num_classes

    def describe(self) -> str:
        return self.path or f"{self.file} (published)"

    @property
    def unfetched(self) -> list[str]:
        """What a run fetches first."""
        weights = [] if self.path or self.file.is_file() else [self.file.name]
        return weights + ([self.vae] if hub.is_absent(self.vae, "config.json") else [])

    def notice(self) -> str | None:
        """A line on what is assumed of a checkpoint in diffusers' layout."""
        if not self.in_diffusers_layout:
            return None
        from DiT import loading

        return loading.shift_notice(self.path)

    def identity(self) -> str:
        """The hashes of local files, the names of published ones; of the transformer and of the VAE."""
        config = self.file.parent / "config.json"  # the number of heads shows in no tensor's shape
        used = [self.file, *([config] if config.is_file() else [])]
        weights = hash_files(config.parent, used) if self.path else self.file.name
        return f"{weights}, VAE {hub.identity(self.vae, self.vae_revision)}"

    def latent_shape(self, img_size: int) -> tuple[int, int, int]:
        from DiT.architecture import VAE_FACTOR

        side = img_size // VAE_FACTOR
        return self.latent_channels, side, side

    def largest_maps(self, img_size: int) -> tuple[int, int]:
        """Elements of the VAE's first feature map for one image, and of the transformer's tokens for one latent."""
        _, h, w = self.latent_shape(img_size)
        return self.vae_width * img_size**2, self.token_elements * h * w

    def load(self, device: str, dtype: str, compile: bool = False, plain: bool = False) -> Denoiser:
        """The Denoiser. The transformer runs in dtype; its VAE and the terms of the bound stay float32."""
        from DiT import loading

        network = loading.load_dit(self.path, self.img_size, self.model, devices.torch_dtype(dtype)).to(device)
        encode = hub.vae_encoder(self.vae, device, revision=self.vae_revision)
        return denoiser_of(network, encode, device, dtype, compile, plain)


def check_vae(vae: str, channels: int, factor: int) -> tuple[str | None, int]:
    """Check that a VAE's latents are those of the network.

    Args:
        vae: local folder or hub id.
        channels: that the network takes.
        factor: pixels a side per latent element.

    Returns:
        The hub's commit, None for a local folder, and the channels of the VAE's first feature map.

    Raises:
        ValueError: they are not, or the VAE's config is not to be had.
    """
    config = hub.vae_config(vae, "config.json", "--vae_path", VAE_LAYOUT)
    if (config["downscale"], config["latent_channels"]) != (factor, channels):
        raise ValueError(f"--vae_path {vae}: a DiT needs {channels} latent channels at an eighth of the image's side")
    path = hub.fetch(vae, "config.json", "--vae_path", VAE_LAYOUT)
    return hub.revision_of(vae, path), config["block_out_channels"][0]


def check_scheduler(transformer: Path) -> None:
    """Check that the scheduler beside a pipeline's transformer states DiT's law of noise. Raises ValueError for another one."""
    path = transformer.parent / "scheduler" / "scheduler_config.json"
    if transformer.name != "transformer" or not path.is_file():
        return
    off = {"trained_betas": None, "rescale_betas_zero_snr": False, "use_flow_sigmas": False}
    stated = {"prediction_type": "epsilon"} | off | read_json(path)
    other = next((key for key, value in LAW.items() if stated.get(key) != value), None)
    if other:
        raise ValueError(f"{path}: {other!r} is {stated.get(other)!r}, and the levels of a DiT are those of {LAW[other]!r}")


def denoiser_of(network: nn.Module, encode: Callable[[Tensor], Tensor], device: str, dtype: str, compile: bool = False,
                plain: bool = False) -> Denoiser:  # fmt: skip
    """The Denoiser of a transformer.

    Args:
        network: a DiT on the device.
        encode: as in Denoiser.
        device, dtype, compile, plain: as in `Source.load`.
    """
    import torch

    from diffusion.models.denoiser import Conditions, Denoiser, ddpm
    from diffusion.models.speed import tuning
    from DiT.gaussian import GaussianProcess

    network = network if plain else tuning.tune(network, device)
    run = tuning.compiled(network, device) if compile else network
    process, number = GaussianProcess(device), devices.torch_dtype(dtype)

    def embed(class_ids):
        return Conditions(ids=torch.tensor(class_ids, dtype=torch.int64, device=device))

    def predict(x_t, t, conditions):
        return run(x_t.to(number), t, conditions.ids)

    return Denoiser(encode, embed, predict, ddpm(process.alphas_cumprod), terms=process.errors)
