"""Class-conditional Diffusion Transformers: the published DiT-XL/2, checkpoints of its format or diffusers', the shipped one."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from diffusion.files import hash_files, read_json
from diffusion.models import devices, hub
from diffusion.paths import TINY_DIT, TINY_SD

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
}


@dataclass(frozen=True)
class DiTSource:
    """A source of weights: where a checkpoint and its VAE are, and what is known of them before weights are read."""

    path: str | None  # checkpoint file or diffusers folder; None: the published weights
    file: Path  # what will be read; the published weights may still have to be downloaded to it
    model: str  # a published shape, "DiT-XL/2", for a checkpoint without a config.json
    default_size: int  # pixels a side, the only size that the checkpoint takes
    vae: str  # local folder or hub id
    vae_revision: str | None  # the hub's commit; None for a local folder
    num_classes: int
    latent_channels: int
    in_diffusers_layout: bool
    vae_width: int  # channels of the VAE's first feature map
    token_elements: int  # of the transformer's tokens, per position of the latent
    n_levels: int = 1000
    space: ClassVar[str] = "epsilon"
    learned_variance: ClassVar[bool] = True  # of which the variational bound is made

    @classmethod
    def find(cls, model: str, model_path: str | None = None, img_size: int | None = None, vae_path: str | None = None,
             expect: bool = False) -> "DiTSource":  # fmt: skip
        """Reads only config files. `tiny` is the shipped model and VAE.

        expect: the published VAE need not be there; its revision is then None. Raises ValueError or OSError, in one line, for
        unknown shapes, sizes that do not fit, and files that are not there.
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
            default_size=img_size,
            vae=vae,
            vae_revision=vae_revision,
            num_classes=config.get("num_classes", 1000),
            latent_channels=channels,
            in_diffusers_layout=in_diffusers_layout,
            vae_width=vae_width,
            token_elements=config["hidden_size"] // config["patch_size"] ** 2,
        )

    @property
    def null_class(self) -> int:
        """That stands for no class, of guidance."""
        return self.num_classes

    def describe(self) -> str:
        return self.path or f"{self.file} (published)"

    @property
    def unfetched(self) -> list[str]:
        """What a run fetches first."""
        weights = [] if self.path or self.file.is_file() else [self.file.name]
        return weights + ([self.vae] if hub.is_absent(self.vae, "config.json") else [])

    def notice(self) -> str | None:
        """What is assumed of the weights and cannot be known. Raises ValueError for a file that is damaged."""
        if not self.in_diffusers_layout:
            return None
        from DiT import loading

        return loading.shift_notice(self.path)

    def identity(self) -> str:
        """Tells two sets of weights apart: hashes of local files, the names of published ones."""
        config = self.file.parent / "config.json"  # the number of heads shows in no tensor's shape
        used = [self.file, *([config] if config.is_file() else [])]
        weights = hash_files(config.parent, used) if self.path else self.file.name
        return f"{weights}, VAE {hub.identity(self.vae, self.vae_revision)}"

    def latent_shape(self, img_size: int) -> tuple[int, int, int]:
        """(C, h, w) of an image's latent."""
        from DiT.architecture import VAE_FACTOR

        side = img_size // VAE_FACTOR
        return self.latent_channels, side, side

    def largest_maps(self, img_size: int) -> tuple[int, int]:
        """Elements of the VAE's first feature map for an image, and of the transformer's tokens for a latent."""
        _, h, w = self.latent_shape(img_size)
        return self.vae_width * img_size**2, self.token_elements * h * w

    def load(self, device: str, dtype: str, compile: bool = False, plain: bool = False):
        """The Denoiser. The transformer runs in dtype (a name); its VAE and the terms of the bound stay float32.

        compile: through torch.compile. plain: as PyTorch runs it by itself, which is what speeds are compared with.
        """
        from DiT import loading

        network = loading.load_dit(self.path, self.default_size, self.model, devices.torch_dtype(dtype)).to(device)
        encode = hub.vae_encoder(self.vae, device, revision=self.vae_revision)
        return denoiser_of(network, encode, device, dtype, compile, plain)


def check_vae(vae: str, channels: int, factor: int) -> tuple[str | None, int]:
    """The hub's commit of the VAE, and the channels of its first feature map. Raises ValueError for one whose latents are not
    those of the network."""
    config = hub.vae_config(vae, "config.json", "--vae_path", VAE_LAYOUT)
    if (config["downscale"], config["latent_channels"]) != (factor, channels):
        raise ValueError(f"--vae_path {vae}: a DiT needs {channels} latent channels at an eighth of the image's side")
    path = hub.fetch(vae, "config.json", "--vae_path", VAE_LAYOUT)
    return hub.revision_of(vae, path), config["block_out_channels"][0]


def check_scheduler(transformer: Path) -> None:
    """Raises ValueError where the scheduler beside a pipeline's transformer has another law of noise than DiT's."""
    path = transformer.parent / "scheduler" / "scheduler_config.json"
    if transformer.name != "transformer" or not path.is_file():
        return
    stated = {"prediction_type": "epsilon", "trained_betas": None, "rescale_betas_zero_snr": False} | read_json(path)
    other = next((key for key, value in LAW.items() if stated.get(key) != value), None)
    if other:
        raise ValueError(f"{path}: {other!r} is {stated.get(other)!r}, and the levels of a DiT are those of {LAW[other]!r}")


def denoiser_of(network, encode, device: str, dtype: str, compile: bool = False, plain: bool = False):
    """The Denoiser of a transformer; compile and plain as of `DiTSource.load`."""
    import torch

    from diffusion.models import hardware
    from diffusion.models.denoiser import Conditions, Denoiser, ddpm
    from DiT.gaussian import GaussianProcess

    network = network if plain else hardware.tune(network, device)
    run = hardware.compiled(network, device) if compile else network
    process, number = GaussianProcess(device), devices.torch_dtype(dtype)

    def embed(class_ids):
        return Conditions(ids=torch.tensor(class_ids, dtype=torch.int64, device=device))

    def predict(x_t, t, conditions):
        return run(x_t.to(number), t, conditions.ids)

    return Denoiser(encode, embed, predict, ddpm(process.alphas_cumprod), terms=process.errors)
