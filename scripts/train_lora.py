#!/usr/bin/env python
"""Train a LoRA of a Stable Diffusion on a few labelled images: for --lora of the commands.

two classes that the shipped model confuses (4: coat, 6: shirt), from images that neither its training nor its test uses:
  python scripts/train_lora.py --version tiny --dataset fashion_mnist --split validation --class_labels 4 6 -o coat.safetensors
  python eval_prob_adaptive.py --version tiny --dataset fashion_mnist --strategy race --lora coat.safetensors
  python scripts/print_acc.py RUN --class_labels 4 6
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, datasets, models
from diffusion.cli import parsing
from diffusion.datasets import DATASETS, transforms
from diffusion.models.families.sd import StableDiffusion
from diffusion.models.speed import devices
from diffusion.runs import loop
from diffusion.utils import files, outputs

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # of the U-Net's attention, as diffusers' own training script has them
TEMPERATURE = 0.02  # of the contrast, in mean errors: that of one pair differs by a few hundredths between classes


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    cli.add_data_options(parser, list(DATASETS), class_list=False)
    group = parser.add_argument_group("model")
    group.add_argument("--version", default="2-0", help="1-1 ... 1-5, 2-0, 2-1, tiny (default: 2-0)")
    group.add_argument("--model_path", help="local pipeline folder or hub id in place of the version's weights")
    group.add_argument("--device", help="default: cuda if there is one, else cpu")
    group = parser.add_argument_group("training")
    renamed = group.add_argument("--class_labels", type=parsing.at_least(0), nargs="+", metavar="LABEL", required=True,
                        help="labels to learn, "
                       "two or more; their prompts are the dataset's")  # fmt: skip
    parser.rename("--classes", renamed)
    group.add_argument("--per_class", type=parsing.at_least(1), default=32, metavar="N", help="images of each (default: 32)")
    group.add_argument("--rank", type=parsing.at_least(1), default=8, help="of the LoRA (default: 8)")
    group.add_argument("--steps", type=parsing.at_least(1), default=300, help="optimiser steps (default: 300)")
    group.add_argument("--batch_size", type=parsing.at_least(1), default=32, metavar="N", help="images per step (default: 32)")
    group.add_argument("--lr", type=parsing.positive, default=1e-3, help="learning rate (default: 0.001)")
    group.add_argument("--contrast", type=parsing.positive, metavar="W", help="also W times the cross-entropy of the classes by "
                       "their errors, one evaluation per class (default: the right class's error only)")  # fmt: skip
    group.add_argument("--seed", type=parsing.seed, default=0, help="of images, timesteps and noise (default: 0)")
    group.add_argument(
        "-o", "--out", type=outputs.Output(".safetensors"), required=True, metavar="FILE", help="the .safetensors file to write"
    )
    args = parser.parse_args(argv)
    if len(set(args.class_labels)) < max(2, len(args.class_labels)):
        parser.error("--class_labels: give two or more different labels")
    return args


@dataclass(frozen=True)
class Job:
    """What is learned from. images: indices [n]; target: [n], which of the prompts is right."""

    dataset: Any
    images: list[int]
    target: list[int]
    prompts: list[str]
    source: StableDiffusion
    device: str


def prepare(args) -> Job:
    """Raises ValueError or OSError for what is not there or does not fit."""
    options = vars(args)
    files.try_file(args.out)
    dataset = datasets.open_images(cli.data_of(options | {"classes": None}))  # which are labels here
    table = datasets.load_prompts(args.dataset, dataset, None, None)
    lacking = [label for label in args.class_labels if label not in table.classidx]
    if lacking:
        raise ValueError(
            f"--class_labels {lacking[0]} is no class of {args.dataset}: take of {min(table.classidx)}..{max(table.classidx)}"
        )
    source, device = models.text_to_image(args.version, args.model_path), devices.resolve_device(args.device)
    if not isinstance(source, StableDiffusion):
        raise ValueError(f"--model_path {args.model_path or args.version}: this trains Stable Diffusion's U-Net only")
    dataset.transform = transforms.sd_transform(source.default_size, "bicubic")
    rows = [chosen(dataset.labels, label, args.per_class, args.seed) for label in args.class_labels]
    target = [k for k, part in enumerate(rows) for _ in part]
    prompts = [table.prompts[table.classidx.index(label)] for label in args.class_labels]
    return Job(dataset, [int(i) for part in rows for i in part], target, prompts, source, device)


def chosen(labels, label: int, n: int, seed: int):
    """n of the images with this label, at random. Raises ValueError where there are fewer."""
    import numpy as np

    of_class = np.flatnonzero(labels == label)
    if len(of_class) < n:
        raise ValueError(f"--per_class {n}: class {label} has {len(of_class)} images in this split")
    return np.random.default_rng([seed, label]).permutation(of_class)[:n]


def adapted_unet(job: Job, rank: int):
    """The U-Net in float32, in which a new LoRA is all that learns, and that LoRA's config."""
    import torch
    from peft import LoraConfig

    unet = job.source.weights.load("unet", job.device, torch.float32)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights="gaussian")
    unet.add_adapter(config)
    return unet, config


def train(args, job: Job):
    """The trained U-Net and its LoRA's config."""
    import torch
    from tqdm import trange

    torch.manual_seed(args.seed)
    denoiser = job.source.load(job.device, "float32", plain=True)
    x0 = torch.stack([denoiser.encode(job.dataset[i][0]) for i in job.images])
    texts, target = denoiser.embed(job.prompts).sequence.clone(), torch.tensor(job.target)
    unet, config = adapted_unet(job, args.rank)
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.01)
    g, recent = torch.Generator().manual_seed(args.seed), None
    for _ in (bar := trange(args.steps, mininterval=2)):
        rows = torch.randint(len(x0), (args.batch_size,), generator=g)
        t = torch.randint(len(denoiser.levels), (args.batch_size,), generator=g).to(x0.device)
        noise = torch.randn(args.batch_size, *x0.shape[1:], generator=g).to(x0.device)
        right = target[rows].to(x0.device)
        candidates = right[None] if args.contrast is None else torch.arange(len(texts), device=x0.device)[:, None]
        errors = errors_of(unet, denoiser.levels, job.source.prediction, x0[rows], t, noise, texts, candidates)
        loss = errors.mean() if args.contrast is None else contrasted(errors, right, args.contrast)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        recent = loss.item() if recent is None else 0.95 * recent + 0.05 * loss.item()
        bar.set_postfix(loss=f"{recent:.4f}", refresh=False)
    return unet, config


def errors_of(unet, levels, prediction: str, x0, t, noise, texts, candidates):
    """Mean squared errors [R,B] of what the U-Net predicts of B noised latents under R candidates for each.

    candidates: int64 [R,B], or [R,1] for the same ones everywhere: rows of texts
    """
    x_t, wanted = levels.add_noise(x0, noise, t), levels.target(prediction, x0, noise, t)
    n, rows = len(candidates), candidates.expand(-1, len(t)).flatten()
    output = unet(x_t.repeat(n, 1, 1, 1), t.repeat(n), texts[rows]).sample
    return (output - wanted.repeat(n, 1, 1, 1)).square().mean((1, 2, 3)).view(n, len(t))


def contrasted(errors, right, weight: float):
    """The error of the right class, and weight times the cross-entropy of a softmax over minus the errors [R,B]; a smooth form of
    the paper's appendix D, which raises the error of the wrong class."""
    from torch.nn.functional import cross_entropy

    matching = errors.gather(0, right[None])
    logits = -errors.T / (TEMPERATURE * errors.detach().mean())
    return matching.mean() + weight * cross_entropy(logits, right)


def save(unet, config, out: Path):
    """In diffusers' format, whole or not at all."""
    import tempfile

    from diffusers import StableDiffusionPipeline
    from peft import get_peft_model_state_dict

    about = {"unet_lora_layers": get_peft_model_state_dict(unet), "unet_lora_adapter_metadata": config.to_dict()}
    with tempfile.TemporaryDirectory(dir=out.parent) as place:
        StableDiffusionPipeline.save_lora_weights(place, weight_name=out.name, **about)
        (Path(place) / out.name).replace(out)


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        job = prepare(args)
    each = 1 if args.contrast is None else len(args.class_labels)
    print(f"{len(job.images)} images of {', '.join(job.prompts)} on {job.device}")
    print(f"Price: {args.steps * args.batch_size * each:,} network evaluations, forward and backward", flush=True)
    with cli.bad_input():
        unet, config = train(args, job)
    save(unet, config, args.out)
    print(f"{args.out}: give it to a command with --lora {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
