"""Class-conditional Diffusion Transformers: the published DiT-XL/2, checkpoints of its format or diffusers', the shipped one."""

from dataclasses import dataclass
from pathlib import Path

from diffusion.files import hash_files
from diffusion.models import devices, hub
from diffusion.paths import TINY_DIT, TINY_SD

VAE = "stabilityai/sd-vae-ft-ema"  # the one that the published checkpoints were trained with
VAE_LAYOUT = "the folder of an AutoencoderKL"


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
    n_levels: int = 1000

    @classmethod
    def find(
        cls, model: str, model_path: str | None = None, img_size: int | None = None, vae_path: str | None = None
    ) -> "DiTSource":
        """Reads only config files. `tiny` is the shipped model and VAE.

        Raises ValueError or OSError, in one line, for unknown shapes, sizes that do not fit, and files that are not there.
        """
        from DiT import loading

        if model == "tiny":
            model_path, vae_path = model_path or str(TINY_DIT / "model.safetensors"), vae_path or str(TINY_SD / "vae")
        img_size = img_size or loading.default_size(model_path)
        file = loading.locate(model_path, model, img_size)
        config, _ = loading.architecture(file, model, img_size)
        unit = loading.VAE_FACTOR * config["patch_size"]
        if img_size % unit:
            raise ValueError(f"--image-size {img_size} must be a multiple of {unit} for this model")
        channels = config.get("in_channels", 4)
        vae = vae_path or VAE
        return cls(
            path=model_path,
            file=file,
            model=model,
            default_size=img_size,
            vae=vae,
            vae_revision=check_vae(vae, channels, loading.VAE_FACTOR),
            num_classes=config.get("num_classes", 1000),
            latent_channels=channels,
        )

    def describe(self) -> str:
        return self.path or f"{self.file} (published)"

    def identity(self) -> str:
        """Tells two sets of weights apart: hashes of local files, the names of published ones."""
        config = self.file.parent / "config.json"  # the number of heads shows in no tensor's shape
        used = [self.file, *([config] if config.is_file() else [])]
        weights = hash_files(config.parent, used) if self.path else self.file.name
        return f"{weights}, VAE {hub.identity(self.vae, self.vae_revision)}"

    def latent_shape(self, img_size: int) -> tuple[int, int, int]:
        """(C, h, w) of an image's latent."""
        from DiT import loading

        side = img_size // loading.VAE_FACTOR
        return self.latent_channels, side, side

    def load(self, device: str, dtype: str, compile: bool = False, plain: bool = False):
        """The Denoiser. The transformer runs in dtype (a name); its VAE and the terms of the bound stay float32.

        compile: through torch.compile. plain: as PyTorch runs it by itself, which is what speeds are compared with.
        """
        from DiT import loading

        network = loading.load_dit(self.path, self.default_size, self.model, devices.torch_dtype(dtype)).to(device)
        encode = hub.vae_encoder(self.vae, device, revision=self.vae_revision)
        return denoiser_of(network, encode, device, dtype, compile, plain)


def check_vae(vae: str, channels: int, factor: int) -> str | None:
    """The hub's commit of the VAE. Raises ValueError for one whose latents are not those of the network."""
    path = hub.fetch(vae, "config.json", "--vae_path", VAE_LAYOUT)
    config = hub.read_config(vae, "config.json", "--vae_path", VAE_LAYOUT)
    if "block_out_channels" not in config:
        raise ValueError(f"--vae_path {vae}: its config.json describes no AutoencoderKL")
    if 2 ** (len(config["block_out_channels"]) - 1) != factor or config.get("latent_channels", 4) != channels:
        raise ValueError(f"--vae_path {vae}: a DiT needs {channels} latent channels at an eighth of the image's side")
    return hub.revision_of(vae, path)


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
