#!/usr/bin/env python
"""Train the small models in shipped/. Or cut the images that ship beside them.

    python scripts/train_tiny.py vae --data_dir datasets/FashionMNIST/raw
    python scripts/train_tiny.py sd  --data_dir datasets/FashionMNIST/raw
    python scripts/train_tiny.py sd3 --data_dir datasets/FashionMNIST/raw
    python scripts/train_tiny.py dit --data_dir datasets/FashionMNIST/raw
    python scripts/train_tiny.py clip --data_dir datasets/FashionMNIST/raw
    python scripts/train_tiny.py heads --data_dir datasets/FashionMNIST/raw
    python scripts/train_tiny.py images --data_dir datasets/FashionMNIST/raw

The VAE first. In its latents: tokenizer, text encoder and U-Net (sd), two text encoders and the transformer of a rectified flow
(sd3, from the pictures and captions of sd), and the class-conditional transformer (dit). The
contrastive model (clip) needs none of them: it learns from the pictures and captions of sd, as pixels, and so does a network
with labels for an item and a colour (heads). All resume from `checkpoints/` when interrupted.
"""

import copy
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, settings
from diffusion.cli import parsing
from diffusion.datasets.scenes import CANVAS, N_FOLDS, NOUNS, Item, draw_single, folds
from diffusion.models.families.sd3 import T5_TOKENS
from diffusion.runs import loop as session
from diffusion.training import fashion_mnist, loop, two_heads
from diffusion.utils import files, paths

STEPS = {"vae": 1800, "sd": 5500, "sd3": 13000, "dit": 12000, "clip": 5500, "heads": 5500}
BATCH = {"vae": 32, "sd": 256, "sd3": 128, "dit": 256, "clip": 256, "heads": 256}
LR = {"vae": 2e-3, "sd": 1.5e-3, "sd3": 1.5e-3, "dit": 1.5e-3, "clip": 1e-3, "heads": 1e-3}


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("part", choices=[*STEPS, "images"], help="what to train, or the images to cut")
    parser.add_argument("--data_dir", default="datasets/FashionMNIST/raw", help="folder of the four original idx files")
    parser.add_argument("-o", "--out", type=Path, default=Path("my_models"),
                        help="folder of the models; shipped: over those that ship (default: my_models)")  # fmt: skip
    parser.add_argument("--checkpoint_dir", default="checkpoints", help="where an interrupted training resumes from")
    parser.add_argument("--steps", type=parsing.at_least(1), help=f"optimiser steps (default: {listed(STEPS)})")
    parser.add_argument("--batch_size", type=parsing.at_least(1), help=f"images per step (default: {listed(BATCH)})")
    parser.add_argument("--lr", type=parsing.positive, help=f"peak learning rate (default: {listed(LR)})")
    parser.add_argument("--seed", type=parsing.seed, default=0, help="default: 0")
    parser.add_argument("--fold", type=int, choices=range(N_FOLDS), default=0, metavar="K", help="which twelve of the 60 pairs "
                        "of colour and item are left out, 0 to 4 (default: 0, those of the models that ship)")  # fmt: skip
    parser.add_argument(
        "--keep_every",
        type=parsing.at_least(1),
        metavar="STEPS",
        help="sd: also keep the model of every so many steps, in --checkpoint_dir",
    )
    parser.add_argument(
        "--channels",
        type=parsing.at_least(8),
        metavar="C",
        help="sd: channels of the U-Net's first level, a multiple of 8; its second has twice as many (default: 64); width "
        "of the transformers of sd3 (default: 128), clip (192) and heads (256)",
    )
    args = parser.parse_args(argv)
    for name, defaults in (("steps", STEPS), ("batch_size", BATCH), ("lr", LR)):
        setattr(args, name, getattr(args, name) or defaults.get(args.part))
    for flag, parts in (("keep_every", ("sd",)), ("channels", ("sd", "sd3", "clip", "heads"))):
        if getattr(args, flag) and args.part not in parts:
            parser.error(f"--{flag} is for {' and '.join(parts)}")
    if (args.channels or 0) % 8:
        parser.error("--channels: give a multiple of 8, as the normalisation of a U-Net and the heads of a transformer want it")
    return args


def how_of(args) -> loop.Training:
    return settings.pick(loop.Training, vars(args))


def listed(defaults):
    return ", ".join(f"{value} for {part}" for part, value in defaults.items())


# ---------------------------------------------------------------- the images that ship


def cut_images(args):
    """100 test images of every class, the first ones, and the validation images, as idx files beside the models."""
    import numpy as np

    images, labels = read_images(args.data_dir, "t10k")
    test = np.sort(np.concatenate([np.flatnonzero(labels == c)[:100] for c in range(10)]))
    ship(args.out, "t10k", images[test], labels[test])
    images, labels = read_images(args.data_dir, "train")
    _, validation = fashion_mnist.set_aside(labels)
    ship(args.out, "validation", images[validation], labels[validation])


def read_images(folder, part):
    """images [N,28,28] and labels [N] uint8 of "train" or "t10k"."""
    return tuple(fashion_mnist.read_idx(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))


def ship(out, part, images, labels):
    folder = out / "datasets" / "FashionMNIST" / "raw"
    fashion_mnist.write_idx(folder / f"{part}-images-idx3-ubyte", images)
    fashion_mnist.write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    print(f"{folder}: {len(labels)} {part} images")


# ---------------------------------------------------------------- the VAE


def build_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,  # more groups would normalise an item's colour away in layers of 8 channels
        sample_size=64,
    )


VAE_WARM_UP = 600  # steps from an autoencoder of colours to a VAE of everything


def train_vae(args, images, labels):
    """Squared error plus a small KL: the weight 2e-4 is a Gaussian decoder of standard deviation 0.07.

    Left to itself the network learns shapes, then stays grey for good. So it starts on single coloured items, with the
    colour part of the error weighted up and without posterior noise; all three fade over the warm-up.
    """
    import numpy as np
    import torch

    vae = build_vae()
    modules = torch.nn.ModuleDict({"vae": vae})

    def loss_at(step):
        torch.manual_seed(args.seed * 1_000_003 + step)
        warmth = min(1.0, step / VAE_WARM_UP)
        rng = np.random.default_rng([args.seed, step])
        x = vae_batch(rng, images, labels, folds()[args.fold], args.batch_size, only_colours=warmth < 0.25)
        posterior = vae.encode(x).latent_dist
        latent = posterior.mean + warmth * posterior.std * torch.randn_like(posterior.mean)
        error = vae.decode(latent).sample.float() - x
        colour = error - error.mean(1, keepdim=True)
        kl = posterior.kl().float().sum() / posterior.mean.numel()
        return error.square().mean() + 20 * (1 - warmth) * colour.square().mean() + 2e-4 * warmth * kl

    checkpoint = loop.fit(modules, loss_at, how_of(args), ema=0.995)
    vae.eval()
    x = vae_batch(np.random.default_rng([args.seed, 10**9]), images, labels, folds()[args.fold], 512)
    with torch.inference_mode():
        latents = vae.encode(x).latent_dist.mean
        error = (vae.decode(latents).sample - x).square().mean().sqrt()
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    vae.half().save_pretrained(args.out / "tiny-sd" / "vae")
    checkpoint.unlink(missing_ok=True)
    print(f"VAE: {error:.4f} root mean squared error in [-1,1], scaling factor {vae.config.scaling_factor}")


def vae_batch(rng, images, labels, held_out, n, only_colours=False):
    """Half plain items, half scenes; or only single coloured items."""

    def singles(n, coloured):
        return [draw_single(fashion_mnist.random_item(rng, images, labels, coloured, held_out)) for _ in range(n)]

    if only_colours:
        return fashion_mnist.to_batch(singles(n, True))
    scenes = (fashion_mnist.random_scene(rng, images, labels, held_out)[0] for _ in range(n - n // 2))
    return fashion_mnist.to_batch([*singles(n // 2, False), *scenes])


def load_vae(args):
    """The trained one, else the one that ships, float32."""
    import torch
    from diffusers import AutoencoderKL

    trained = args.out / "tiny-sd" / "vae"
    return AutoencoderKL.from_pretrained(trained if trained.is_dir() else paths.TINY_SD / "vae", torch_dtype=torch.float32).eval()


def captioned(args, images, labels):
    """The (picture, caption) pairs that text-to-image, contrastive and labelled models learn from."""
    return fashion_mnist.captioned(args.seed, images, labels, folds()[args.fold])


# ---------------------------------------------------------------- text encoder and U-Net

MAX_TOKENS = 24  # the longest caption of scenes.py has 16, with those for begin and end


def write_tokenizer(folder, captions, max_tokens=MAX_TOKENS):
    """CLIP's byte-level BPE with a vocabulary of these captions' words: vocab.json, merges.txt and the configs."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    words = pre_tokenizers.Split(Regex(r"[a-z]+|[^a-z\s]+"), "removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(captions, trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in json.loads(bpe.to_str())["model"]["merges"]]
    vocabulary = bytes_ + [b + "</w>" for b in bytes_] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2"] + [" ".join(m) for m in merges]) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=max_tokens, pad_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    return tokenizer


def text_config(tokenizer, hidden_size, num_hidden_layers):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        projection_dim=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_text_encoder(tokenizer):
    from transformers import CLIPTextModel

    return CLIPTextModel(text_config(tokenizer, 128, 3))


def build_unet(channels):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(channels, 2 * channels),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=8,
        use_linear_projection=True,
    )


def build_scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def train_sd(args, images, labels):
    """Epsilon prediction, uniform timesteps, 62 % plain items and 38 % scenes, one caption in twenty dropped for guidance."""
    import torch

    vae = load_vae(args)
    latents, captions = fashion_mnist.encoded(vae, captioned(args, images, labels), 2 * len(images))
    tokenizer = write_tokenizer(args.out / "tiny-sd" / "tokenizer", captions)
    tokens = tokenizer([*captions, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    modules = torch.nn.ModuleDict({"text_encoder": build_text_encoder(tokenizer), "unet": build_unet(args.channels or 64)})
    print({name: f"{sum(p.numel() for p in m.parameters()) / 1e6:.2f} M parameters" for name, m in modules.items()})
    scheduler = build_scheduler()
    n, n_plain = len(latents), len(images)

    def loss_at(step):
        g = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        b = args.batch_size
        rows = fashion_mnist.mixed_rows(g, b, n_plain, n)
        said = torch.where(torch.rand(b, generator=g) < 0.05, n, rows)
        distinct, caption = tokens[said].unique(dim=0, return_inverse=True)  # half of a batch are the same forty captions
        x0, noise = latents[rows], torch.randn(b, 4, 8, 8, generator=g)
        t = torch.randint(1000, (b,), generator=g)
        text = modules["text_encoder"](distinct)[0][caption]
        return (modules["unet"](scheduler.add_noise(x0, noise, t), t, text).sample.float() - noise).square().mean()

    def keep(step, averaged):
        now = copy.deepcopy((vae, averaged))  # what is saved is in half precision from then on
        save_pipeline(Path(args.checkpoint_dir) / f"tiny-sd-{step}", now[0], tokenizer, scheduler, now[1])

    checkpoint = loop.fit(modules, loss_at, how_of(args), ema=0.999, keep=keep)
    save_pipeline(args.out / "tiny-sd", vae, tokenizer, scheduler, modules)
    checkpoint.unlink(missing_ok=True)


def save_pipeline(out, vae, tokenizer, scheduler, modules):
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=modules["text_encoder"].eval(),
        tokenizer=tokenizer,
        unet=modules["unet"].eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    out.mkdir(parents=True, exist_ok=True)
    draw_samples(pipeline, out / "samples.png")
    pipeline.to(torch.float16).save_pretrained(out)
    prefix_names(out / "text_encoder" / "model.safetensors")
    # transformers would load the text encoder in the dtype that its config names, diffusers the U-Net in float32
    loop.amend_config(out / "text_encoder" / "config.json", dtype="float32")
    loop.amend_config(out / "vae" / "config.json", _name_or_path=None)  # a path of this machine


def prefix_names(path):
    """transformers 5 writes `embeddings...` where 4 reads `text_model.embeddings...`, which 5 reads too."""
    from safetensors.torch import load_file, save_file

    state = {"text_model." + name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})


def draw_samples(pipeline, path):
    """A grid of generated pictures: two rows of the ten classes, one row of scenes."""
    import torch
    from PIL import Image

    scenes = ["a red bag and a blue sneaker", "a blue bag and a red sneaker", "a bag to the left of a sneaker"]
    scenes += ["a sneaker to the left of a bag", "a dress above a boot", "a boot above a dress", "a photo of a green coat."]
    scenes += ["a yellow shirt to the right of a purple trouser", "a cyan sandal below a red bag", "a photo of a red boot."]
    prompts = [f"a photo of a {noun}." for noun in NOUNS] * 2 + scenes
    settings = {"height": CANVAS, "width": CANVAS, "num_inference_steps": 50, "guidance_scale": 2.0}
    pictures = pipeline(prompts, **settings, generator=torch.Generator().manual_seed(0)).images
    grid = Image.new("RGB", (10 * CANVAS, 3 * CANVAS))
    for i, picture in enumerate(pictures):
        grid.paste(picture, (i % 10 * CANVAS, i // 10 * CANVAS))
    grid.save(path)


# ---------------------------------------------------------------- the flow model

# 16 tokens of 2x2 latent elements beside 16 of the text and one that stands for the zeros in the place of T5's
TINY_SD3 = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 4, "qk_norm": "rms_norm"}
TINY_SD3 |= {"num_attention_heads": 4, "pos_embed_max_size": 4}
TINY_SD3_TOKENS = 16
TINY_SD3_TEXT = [{"hidden_size": 64, "num_hidden_layers": 3}, {"hidden_size": 96, "num_hidden_layers": 2}]


def train_sd3(args, images, labels):
    """Rectified flow with logit-normal times (Esser et al. 2024, eq. 13 and 19): squared error of the velocity, noise - x0.

    The pictures, captions and mixture of train_sd. Text encoders and transformer learn together, without T5.
    """
    import torch
    from transformers import CLIPTextModelWithProjection

    vae = load_vae(args)
    latents, captions = fashion_mnist.encoded(vae, captioned(args, images, labels), 2 * len(images))
    latents = centred(vae, latents)
    tokenizer = write_tokenizer(args.out / "tiny-sd3" / "tokenizer", captions, TINY_SD3_TOKENS)
    tokens = tokenizer([*captions, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    encoders = torch.nn.ModuleList(CLIPTextModelWithProjection(text_config(tokenizer, **size)) for size in TINY_SD3_TEXT)
    modules = torch.nn.ModuleDict({"text_encoders": encoders, "transformer": build_sd3(args.channels or 128)})
    print({name: f"{sum(p.numel() for p in m.parameters()) / 1e6:.2f} M parameters" for name, m in modules.items()})
    network = torch.compile(modules["transformer"])  # a step takes a third less
    n, n_plain, b = len(latents), len(images), args.batch_size

    def loss_at(step):
        g = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        rows = fashion_mnist.mixed_rows(g, b, n_plain, n)
        said = torch.where(torch.rand(b, generator=g) < 0.05, n, rows)
        distinct, caption = tokens[said].unique(dim=0, return_inverse=True)
        x0, noise = latents[rows], torch.randn(b, 4, 8, 8, generator=g)
        s = logit_normal(b, g)
        sequence, pooled = sd3_conditions(encoders, distinct)
        x_s = torch.lerp(x0, noise, s.view(-1, 1, 1, 1))
        velocity = network(x_s, sequence[caption], pooled[caption], 1000 * s).sample.float()
        return (velocity - (noise - x0)).square().mean()

    checkpoint = loop.fit(modules, loss_at, how_of(args), ema=0.999)
    save_sd3(args.out / "tiny-sd3", vae, tokenizer, modules)
    checkpoint.unlink(missing_ok=True)


def logit_normal(n, generator):
    """Times s [n] in (0, 1), whose logits are normal: one in each of n equally likely intervals, for a steadier gradient."""
    import torch

    even = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
    return torch.special.ndtri(even.clamp(1e-6, 1 - 1e-6)).sigmoid()


def centred(vae, latents):
    """Latents of mean 0 and variance 1, and the vae with the shift and scale that make them so, which SD3 has and SD has not."""
    raw = latents / vae.config.scaling_factor
    shift, scale = round(raw.mean().item(), 5), round(1 / raw.std().item(), 5)
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    return (raw - shift) * scale


def build_sd3(width):
    """The transformer of this width; the blocks' gates are closed and a first output is zero, as a DiT begins (Peebles and Xie
    2023)."""
    import torch
    from diffusers import SD3Transformer2DModel

    from diffusion.models.speed.joint_attention import CountedJointAttention

    text = sum(size["hidden_size"] for size in TINY_SD3_TEXT)
    size = {"attention_head_dim": width // 4, "caption_projection_dim": width}
    transformer = SD3Transformer2DModel(joint_attention_dim=text, pooled_projection_dim=text, **size, **TINY_SD3)
    for name, parameter in transformer.named_parameters():
        if (".linear." in name and "norm" in name) or name.startswith("proj_out"):
            torch.nn.init.zeros_(parameter)
    transformer.set_attn_processor(CountedJointAttention(T5_TOKENS))
    return transformer


def sd3_conditions(encoders, tokens):
    """(sequence [K,17,160], pooled [K,160]) of tokens [K,16]: both encoders' last states but one, and a zero for T5's."""
    import torch

    outputs = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
    sequence = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    zero = torch.zeros_like(sequence[:, :1])
    return torch.cat([sequence, zero], 1), torch.cat([output.text_embeds for output in outputs], -1)


def save_sd3(out, vae, tokenizer, modules):
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from diffusers.models.attention_processor import JointAttnProcessor2_0

    transformer = modules["transformer"].eval()
    transformer.set_attn_processor(JointAttnProcessor2_0())
    first, second = modules["text_encoders"].eval()
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    out.mkdir(parents=True, exist_ok=True)
    draw_samples(pipeline, out / "samples.png")
    pipeline.to(torch.float16).save_pretrained(out)
    for name in ("text_encoder", "text_encoder_2"):
        prefix_names(out / name / "model.safetensors")
        loop.amend_config(out / name / "config.json", dtype="float32")
    loop.amend_config(out / "vae" / "config.json", _name_or_path=None)


# ---------------------------------------------------------------- the class-conditional transformer

# 16 tokens of 2x2 latent elements; the keys are those that DiT/loading.py reads from a config.json beside the weights
TINY_DIT = {"input_size": 8, "patch_size": 2, "hidden_size": 192, "depth": 4, "num_heads": 3, "num_classes": 10}


def train_dit(args, images, labels):
    """Plain items by class, squared error of the noise plus the variational bound for the learned variance.

    Improved DDPM, section 3.1: the bound's gradient reaches the variance only, here with a tenth of the weight that the published
    DiT gives it, as the few steps are for the noise. One label in ten is dropped, for guidance.
    """
    import torch

    from DiT.gaussian import GaussianProcess
    from DiT.models import DiT

    items = ((draw_single(Item(x, NOUNS[y])), y) for x, y in zip(images, labels, strict=True))
    latents, _ = fashion_mnist.encoded(load_vae(args), items, len(images))
    y = torch.from_numpy(labels.astype("int64"))
    modules = torch.nn.ModuleDict({"dit": DiT(**TINY_DIT)})
    process = GaussianProcess()

    def loss_at(step):
        g = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        torch.manual_seed(args.seed * 1_000_003 + step)  # for the dropped labels
        rows = torch.randint(len(latents), (args.batch_size,), generator=g)
        x0, noise = latents[rows], torch.randn(args.batch_size, 4, 8, 8, generator=g)
        t = torch.randint(1000, (args.batch_size,), generator=g)
        x_t = process.q_sample(x0, t, noise)
        prediction, variance = modules["dit"](x_t, t, y[rows]).float().chunk(2, dim=1)
        bound = process.errors(x0, x_t, t, noise, torch.cat([prediction.detach(), variance], dim=1))
        return (prediction - noise).square().mean() + 0.1 * torch.where(t == 0, bound[:, 3], bound[:, 2]).mean()

    checkpoint = loop.fit(modules, loss_at, how_of(args), ema=0.999)
    save_dit(args.out / "tiny-dit", modules["dit"])
    checkpoint.unlink(missing_ok=True)


def save_dit(out, dit):
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in dit.state_dict().items()}, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(TINY_DIT, indent=2) + "\n")


# ---------------------------------------------------------------- the contrastive model

# 4.77 million parameters, where the text encoder and U-Net of tiny-sd have 4.66 million
TINY_CLIP = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": CANVAS, "patch_size": 16, "width": 192, "layers": 6, "head_width": 32},
    "text_cfg": {"context_length": MAX_TOKENS, "width": 192, "heads": 6, "layers": 4},
}


def train_clip(args, images, labels):
    """The pictures and captions that train_sd sees, in its mixture, matched by symmetric InfoNCE with a learned temperature."""
    import open_clip
    import torch

    pictures, captions = fashion_mnist.drawn(captioned(args, images, labels), 2 * len(images))
    tokenizer = write_tokenizer(args.out / "tiny-clip" / "tokenizer", captions)  # the same words give that of train_sd
    distinct = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    tokens = tokenizer(list(distinct), padding="max_length", truncation=True, return_tensors="pt").input_ids
    caption_of = torch.tensor([distinct[caption] for caption in captions])
    config = clip_config(args.channels, len(tokenizer))
    model = open_clip.CLIP(**config)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(distinct)} distinct captions")

    def loss_at(step):
        g = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        rows = fashion_mnist.mixed_rows(g, args.batch_size, len(images), len(pictures))
        said, column = caption_of[rows].unique(return_inverse=True)
        x, y = model.encode_image(two_heads.clip_input(pictures[rows])), model.encode_text(tokens[said])
        return contrastive_loss(x.float(), y.float(), model.logit_scale, column)

    checkpoint = loop.fit(torch.nn.ModuleDict({"clip": model}), loss_at, how_of(args), ema=0.998)
    save_clip(args.out / "tiny-clip", model, config)
    checkpoint.unlink(missing_ok=True)


def clip_config(width, n_tokens):
    """open_clip's, of towers of this width; None: those that ship."""
    sizes = (
        {"vision_cfg": {"width": width, "head_width": 16}, "text_cfg": {"width": width, "heads": width // 16}} if width else {}
    )
    config = TINY_CLIP | {name: TINY_CLIP[name] | size for name, size in sizes.items()}
    return config | {"text_cfg": config["text_cfg"] | {"vocab_size": n_tokens}}


def contrastive_loss(pictures, captions, logit_scale, column):
    """Symmetric InfoNCE (Radford et al. 2021, section 2.3) of B pictures with the U distinct captions that they have.

    pictures [B,D], captions [U,D], before normalisation; logit_scale: log of 1/temperature; column [B]: whose caption is which.
    In this data a batch says "a photo of a bag." many times. Each caption is therefore one column: a picture's own words are
    never its negative, and a caption's positives are all pictures that it was given to.
    """
    import math

    import torch
    from torch.nn.functional import cross_entropy, normalize

    with torch.autocast("cpu", enabled=False):  # bfloat16 has steps of 0.25 among logits up to 100
        scale = logit_scale.clamp(max=math.log(100)).exp()
        logits = scale * normalize(pictures, dim=-1) @ normalize(captions, dim=-1).T
        to_picture = -logits.log_softmax(0).gather(1, column[:, None]).mean()
        return (cross_entropy(logits, column) + to_picture) / 2


def save_clip(out, model, config):
    """open_clip's config and a state dict in half precision, where diffusion/models/clip.py finds them."""
    from safetensors.torch import save_file

    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, out / "tiny-clip.safetensors")
    (out / "tiny-clip.json").write_text(json.dumps(config, indent=2) + "\n")


# ---------------------------------------------------------------- the labelled model


def train_heads(args, images, labels):
    """The pictures that train_clip sees, in its mixture, with the words of their captions as labels of two softmax heads.

    What a discriminative network makes of the same words when nothing is asked of it but an item and a colour.
    """
    import torch
    from safetensors.torch import save_file
    from torch.nn.functional import cross_entropy

    pictures, captions = fashion_mnist.drawn(captioned(args, images, labels), 2 * len(images))
    targets = torch.tensor([two_heads.targets(caption) for caption in captions])
    network = two_heads.build(args.channels)
    print(f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters")

    def loss_at(step):
        g = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        rows = fashion_mnist.mixed_rows(g, args.batch_size, len(images), len(pictures))
        outputs = network(two_heads.clip_input(pictures[rows])).float().split(two_heads.SIZES, 1)
        wanted = targets[rows].split(two_heads.SIZES, 1)
        return sum(cross_entropy(output, target) for output, target in zip(outputs, wanted, strict=True))

    checkpoint = loop.fit(torch.nn.ModuleDict({"heads": network}), loss_at, how_of(args), ema=0.998)
    out = args.out / "tiny-heads"
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}, out / "model.safetensors")
    checkpoint.unlink(missing_ok=True)


def main(argv=None) -> int:
    args = parse_args(argv)
    if args.part == "images":
        cut_images(args)
        return 0
    import torch

    with cli.bad_input():
        for folder in (args.out, Path(args.checkpoint_dir)):
            files.try_writing(folder)
        images, labels = read_images(args.data_dir, "train")
        rows, _ = fashion_mnist.set_aside(labels)
    torch.manual_seed(args.seed)
    {"vae": train_vae, "sd": train_sd, "sd3": train_sd3, "dit": train_dit, "clip": train_clip, "heads": train_heads}[args.part](
        args, images[rows], labels[rows]
    )
    return 0


if __name__ == "__main__":
    sys.exit(session.run(main))
