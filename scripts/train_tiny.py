#!/usr/bin/env python
"""Train the small latent text-to-image diffusion model that ships in shipped/tiny-sd, and cut the images that ship beside it.

    python scripts/train_tiny.py vae --data_dir /usr/share/datasets/fashion-mnist
    python scripts/train_tiny.py sd  --data_dir /usr/share/datasets/fashion-mnist
    python scripts/train_tiny.py images --data_dir /usr/share/datasets/fashion-mnist

The VAE first, then tokenizer, text encoder and U-Net in its latents. Both resume from `checkpoints/` when interrupted.
"""

import gzip
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from diffusion import cli


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("part", choices=["vae", "sd", "images"], help="what to train, or the test images to cut")
    parser.add_argument("--data_dir", default="datasets/FashionMNIST/raw", help="folder of the four original idx files")
    parser.add_argument("--out", default=str(ROOT / "shipped" / "tiny-sd"), help="pipeline folder to write")
    parser.add_argument("--checkpoint_dir", default="checkpoints", help="where an interrupted training resumes from")
    parser.add_argument("--steps", type=cli.at_least(1), help="optimiser steps (default: 1800 for vae, 5500 for sd)")
    parser.add_argument("--batch_size", type=cli.at_least(1), help="images a step (default: 32 for vae, 256 for sd)")
    parser.add_argument("--seed", type=cli.at_least(0), default=0, help="default: 0")
    args = parser.parse_args(argv)
    args.steps = args.steps or {"vae": 1800, "sd": 5500}.get(args.part)
    args.batch_size = args.batch_size or {"vae": 32, "sd": 256}.get(args.part)
    return args


# ---------------------------------------------------------------- data


def read_idx(folder, stem):
    """One idx file, plain or gzipped, as a uint8 array without its header (images [N,28,28], labels [N])."""
    import numpy as np

    path = next((p for p in (Path(folder) / stem, Path(folder) / f"{stem}.gz") if p.exists()), None)
    if path is None:
        sys.exit(cli.fail(f"no {stem}[.gz] in {folder}: give the folder of Fashion-MNIST's files with --data_dir"))
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dims = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(dims)


def write_idx(path, array):
    """The inverse of read_idx, unpacked: magic number, dimensions as big-endian int32, bytes."""
    import numpy as np

    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())


def cut_images(args):
    """The first 100 test images of every class, in their order, as torchvision's own files beside the model."""
    import numpy as np

    images, labels = (read_idx(args.data_dir, f"t10k-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:100] for c in range(10)]))
    folder = Path(args.out).parent / "datasets" / "FashionMNIST" / "raw"
    write_idx(folder / "t10k-images-idx3-ubyte", images[chosen])
    write_idx(folder / "t10k-labels-idx1-ubyte", labels[chosen])
    print(f"{folder}: {len(chosen)} images")


TEMPLATES = ("a photo of a {}.", "a {}.", "a picture of a {}.", "a photo of a {}, a type of clothing.")


def single_caption(rng, item):
    """Mostly the evaluation's template, some others, so that a user's own wording still means something."""
    name = item.phrase.removeprefix("a ")
    return TEMPLATES[rng.choice(4, p=[0.7, 0.1, 0.1, 0.1])].format(name)


def random_item(rng, images, labels, coloured):
    from diffusion.scenes import COLOURS, NOUNS, Item

    i = rng.integers(len(images))
    return Item(images[i], NOUNS[labels[i]], str(rng.choice(list(COLOURS))) if coloured else None)


def random_scene(rng, images, labels):
    """(picture, caption) of one coloured item (a quarter) or of two, with and without colours, with and without a relation."""
    from diffusion.scenes import PLACES, draw_pair, draw_single, pair_caption

    if rng.random() < 0.25:
        item = random_item(rng, images, labels, coloured=True)
        return draw_single(item), single_caption(rng, item)
    coloured = rng.random() < 0.6
    first, second = (random_item(rng, images, labels, coloured) for _ in range(2))
    relation = str(rng.choice(list(PLACES)))
    across = [0, 1] if relation.startswith("to the") else [1, 0]  # jitter only at right angles, so that items never overlap
    jitter = rng.integers(-8, 9, size=(2, 1)) * across
    said = None if coloured and rng.random() < 0.5 else relation
    return draw_pair(first, second, relation, jitter), pair_caption(first, second, said)


def to_batch(pictures):
    """PIL pictures -> [B,3,64,64] float32 in [-1,1]."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.stack([np.asarray(p.convert("RGB")) for p in pictures]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


# ---------------------------------------------------------------- the loop both parts share


def fit(modules, loss_at, args, lr, ema):
    """AdamW with warm-up and cosine decay under bfloat16 autocast; leaves the averaged weights in `modules` (a ModuleDict).

    Returns the checkpoint file, to be removed once the model is saved.

    `loss_at(step)` draws its randomness from generators seeded by the step, so a resumed run sees the same batches.
    """
    import math

    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    from tqdm import trange

    average = AveragedModel(modules, multi_avg_fn=get_ema_multi_avg_fn(ema))
    optimizer = torch.optim.AdamW(modules.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * min(1, s / args.steps))) + 1e-3
    )
    parts = {"modules": modules, "average": average, "optimizer": optimizer, "schedule": schedule}
    # the name holds what a run depends on, so that another seed or length does not continue this one
    checkpoint = Path(args.checkpoint_dir) / f"{args.part}_seed{args.seed}_{args.steps}x{args.batch_size}.pt"
    start = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        start = saved.pop("step")
        for name, state in saved.items():
            parts[name].load_state_dict(state)
    recent = None
    for step in (bar := trange(start, args.steps, initial=start, total=args.steps, mininterval=5)):
        # fused attention is slow backwards on short CPU sequences, with the plain one a step takes a quarter less
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss = loss_at(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update_parameters(modules)
        recent = loss.item() if recent is None else 0.98 * recent + 0.02 * loss.item()
        bar.set_postfix(loss=f"{recent:.4f}", refresh=False)
        if (step + 1) % 500 == 0:
            save_checkpoint(checkpoint, {"step": step + 1} | {k: v.state_dict() for k, v in parts.items()})
    modules.load_state_dict(average.module.state_dict())
    return checkpoint


def save_checkpoint(path, state):
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


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
        x = vae_batch(np.random.default_rng([args.seed, step]), images, labels, args.batch_size, only_colours=warmth < 0.25)
        posterior = vae.encode(x).latent_dist
        latent = posterior.mean + warmth * posterior.std * torch.randn_like(posterior.mean)
        error = vae.decode(latent).sample.float() - x
        colour = error - error.mean(1, keepdim=True)
        kl = posterior.kl().float().sum() / posterior.mean.numel()
        return error.square().mean() + 20 * (1 - warmth) * colour.square().mean() + 2e-4 * warmth * kl

    checkpoint = fit(modules, loss_at, args, lr=2e-3, ema=0.995)
    vae.eval()
    x = vae_batch(np.random.default_rng([args.seed, 10**9]), images, labels, 512)
    with torch.inference_mode():
        latents = vae.encode(x).latent_dist.mean
        error = (vae.decode(latents).sample - x).square().mean().sqrt()
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    vae.half().save_pretrained(Path(args.out) / "vae")
    checkpoint.unlink(missing_ok=True)
    print(f"VAE: {error:.4f} root mean squared error in [-1,1], scaling factor {vae.config.scaling_factor}")


def vae_batch(rng, images, labels, n, only_colours=False):
    """Half plain items, half scenes; or only single coloured items."""
    from diffusion.scenes import draw_single

    if only_colours:
        return to_batch([draw_single(random_item(rng, images, labels, coloured=True)) for _ in range(n)])
    singles = [draw_single(random_item(rng, images, labels, coloured=False)) for _ in range(n // 2)]
    return to_batch(singles + [random_scene(rng, images, labels)[0] for _ in range(n - n // 2)])


# ---------------------------------------------------------------- text encoder and U-Net

MAX_TOKENS = 24  # the longest caption of scenes.py has 20 tokens


def write_tokenizer(folder, captions):
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
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS, pad_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_text_encoder(tokenizer):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            projection_dim=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128),
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


def encoded(vae, pairs, total, label):
    """Yield-in, arrays-out: encodes (picture, caption) pairs 256 at a time, so that no pool of pictures is kept."""
    import torch
    from tqdm import tqdm

    latents, captions, waiting = [], [], []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for i, (picture, caption) in enumerate(tqdm(pairs, total=total, desc=label, mininterval=5), 1):
            waiting.append(picture)
            captions.append(caption)
            if len(waiting) == 256 or i == total:
                latents.append(vae.encode(to_batch(waiting)).latent_dist.mean.float())
                waiting = []
    return torch.cat(latents) * vae.config.scaling_factor, captions


def training_set(args, vae, images, labels):
    """Latents [N,4,8,8] and captions: every training image once, then as many scenes."""
    import numpy as np
    import torch

    from diffusion.scenes import NOUNS, Item, draw_single

    rng = np.random.default_rng(args.seed)
    items = (Item(x, NOUNS[y]) for x, y in zip(images, labels, strict=True))
    singles = encoded(vae, ((draw_single(i), single_caption(rng, i)) for i in items), len(images), "items")
    scenes = encoded(vae, (random_scene(rng, images, labels) for _ in images), len(images), "scenes")
    return torch.cat([singles[0], scenes[0]]), singles[1] + scenes[1]


def train_sd(args, images, labels):
    """Epsilon prediction, uniform timesteps, 62 % plain items and 38 % scenes, one caption in twenty dropped for guidance."""
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(Path(args.out) / "vae", torch_dtype=torch.float32).eval()
    latents, captions = training_set(args, vae, images, labels)
    tokenizer = write_tokenizer(Path(args.out) / "tokenizer", captions)
    tokens = tokenizer([*captions, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    modules = torch.nn.ModuleDict({"text_encoder": build_text_encoder(tokenizer), "unet": build_unet()})
    print({name: f"{sum(p.numel() for p in m.parameters()) / 1e6:.2f} M parameters" for name, m in modules.items()})
    scheduler = build_scheduler()
    n, n_plain = len(latents), len(images)

    def loss_at(step):
        g = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        b = args.batch_size
        scenes = int(0.38 * b)
        rows = torch.cat([torch.randint(n_plain, (b - scenes,), generator=g), torch.randint(n_plain, n, (scenes,), generator=g)])
        said = torch.where(torch.rand(b, generator=g) < 0.05, n, rows)
        x0, noise = latents[rows], torch.randn(b, 4, 8, 8, generator=g)
        t = torch.randint(1000, (b,), generator=g)
        text = modules["text_encoder"](tokens[said])[0]
        return (modules["unet"](scheduler.add_noise(x0, noise, t), t, text).sample.float() - noise).square().mean()

    checkpoint = fit(modules, loss_at, args, lr=1.5e-3, ema=0.999)
    save_pipeline(args.out, vae, tokenizer, scheduler, modules)
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
    draw_samples(pipeline, Path(out) / "samples.png")
    pipeline.to(torch.float16).save_pretrained(out)
    # transformers would load the text encoder in the dtype that its config names, diffusers the U-Net in float32
    amend_config(Path(out) / "text_encoder" / "config.json", dtype="float32")
    amend_config(Path(out) / "vae" / "config.json", _name_or_path=None)  # a path of this machine


def amend_config(path, **changes):
    """Sets these keys of a JSON file; None removes one."""
    config = json.loads(path.read_text()) | changes
    path.write_text(
        json.dumps({key: value for key, value in config.items() if key not in changes or value is not None}, indent=2) + "\n"
    )


def draw_samples(pipeline, path):
    """A grid of generated pictures: two rows of the ten classes, one row of scenes."""
    import torch
    from PIL import Image

    from diffusion.scenes import CANVAS, NOUNS

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


def main(argv=None):
    args = parse_args(argv)
    if args.part == "images":
        return cut_images(args)
    import torch

    images = read_idx(args.data_dir, "train-images-idx3-ubyte")
    labels = read_idx(args.data_dir, "train-labels-idx1-ubyte")
    torch.manual_seed(args.seed)
    {"vae": train_vae, "sd": train_sd}[args.part](args, images, labels)


if __name__ == "__main__":
    main()
