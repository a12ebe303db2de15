#!/usr/bin/env python
"""DDIM inversion of a picture under a caption: what comes back under the right, edited and wrong captions (figure 7).

offline, on the shipped model and images:
  python scripts/plot_inversion.py --version tiny --dataset fashion_mnist --image 29 --caption "a photo of a dress." \\
      --under "a photo of a coat." "a red dress" "a photo of a boot." -o inversion.png
a picture of your own, in a folder of class folders:
  python scripts/plot_inversion.py --dataset folder --data_dir pictures --image 0 --caption "a dog on a sofa" \\
      --under "a cat on a sofa" -o inversion.png

Both ways are diffusers' DDIM schedulers, without guidance. Two errors are told of every caption: of the latent, against that of
the picture, and of the pixels in 0..1, against the picture. Writes the picture and a CSV of the errors beside it.
"""

import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, datasets, models
from diffusion.analysis import figures
from diffusion.cli import parsing
from diffusion.datasets import DATASETS, transforms
from diffusion.models.families import custom
from diffusion.models.speed import devices
from diffusion.runs import loop, printing
from diffusion.utils import drawing, files

ROUND_TRIP = "(autoencoder alone)"  # in place of a caption


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    group = cli.add_data_options(parser, list(DATASETS))
    group.add_argument("--image", type=parsing.at_least(0), required=True, metavar="INDEX", help="index of the picture")
    cli.add_resize_options(group)
    group = cli.add_weights_options(parser)
    group.add_argument("--device", help="default: cuda if there is one, else cpu")
    group = parser.add_argument_group("method")
    group.add_argument("--caption", required=True, metavar="TEXT", help="under which the picture is inverted, and comes back")
    group.add_argument("--under", nargs="+", required=True, metavar="TEXT", help="other captions under which it comes back")
    group.add_argument("--steps", type=parsing.at_least(1), default=50, metavar="N", help="of DDIM, each way (default: 50)")
    group.add_argument("--dry_run", action="store_true", help="print the price, and stop")
    parser.add_argument("-o", "--out", type=figures.picture_and_table, required=True, metavar="FILE", help=".png or .svg")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Job:
    """What is to be done, before any weights are loaded. captions: that of the inversion first."""

    dataset: Any
    source: Any
    captions: list[str]
    steps: int
    device: str

    @property
    def price(self) -> int:
        return self.steps * (1 + len(self.captions))


def prepare(options: dict) -> Job:
    """Checks every option. Raises ValueError or OSError."""
    files.try_file(options["out"])
    dataset = datasets.open_images(cli.data_of(options), options["dry_run"])
    printing.require(dataset)
    if options["image"] >= len(dataset):
        raise ValueError(f"--image {options['image']}: {options['dataset']} has {len(dataset)} images, counted from 0")
    device, path = devices.resolve_device(options["device"]), options["model_path"]
    if custom.is_python_file(path):
        raise ValueError(f"--model_path {path}: a Python file has no decoder to look at the result with: give a pipeline")
    source = cli.source_of(options, device, "float32")
    if source.FLOW:
        raise ValueError(f"{source.describe()} is a flow, and DDIM inverts models of noise on a DDPM's levels: give one of those")
    if options["steps"] > source.n_levels // 2:
        most = source.n_levels // 2
        raise ValueError(
            f"--steps {options['steps']}: of {source.n_levels} noise levels DDIM takes at most every second: {most} or less"
        )
    size = options["img_size"] or source.default_size
    source.latent_shape(size)
    models.check_memory(source, size, device, "float32", 1 + len(options["under"]), 1 + len(options["under"]))
    dataset.transform = transforms.sd_transform(size, options["interpolation"])
    dataset.picture(options["image"])
    return Job(dataset, source, [options["caption"], *options["under"]], options["steps"], device)


# ---------------------------------------------------------------- the two ways


def schedulers(levels, steps: int):
    """diffusers' DDIMInverseScheduler and DDIMScheduler of these levels, which are given predictions of epsilon."""
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    abar = levels.signal.double().cpu() ** 2
    betas = 1 - abar / abar.roll(1)
    betas[0] = 1 - abar[0]
    kept = {"num_train_timesteps": len(abar), "trained_betas": betas.tolist(), "clip_sample": False, "set_alpha_to_one": False,
            "steps_offset": 1, "timestep_spacing": "leading", "prediction_type": "epsilon"}  # fmt: skip
    both = DDIMInverseScheduler(**kept), DDIMScheduler(**kept)
    for scheduler in both:
        scheduler.set_timesteps(steps)
    return both


def carried(denoiser, x, conditions, scheduler, tell):
    """Latents [K,C,h,w] of K conditions after all of a scheduler's steps. tell(n): n evaluations were done."""
    import torch

    for step in scheduler.timesteps:
        t = torch.full((len(x),), int(step), dtype=torch.int64, device=x.device)
        with torch.inference_mode():
            epsilon = denoiser.predict(x, t, conditions).float()
        x = scheduler.step(epsilon, int(step), x).prev_sample
        tell(len(x))
    return x


def there_and_back(denoiser, x0, conditions, steps: int, tell):
    """Latents [K,C,h,w] that come back under K conditions, when x0 [C,h,w] was inverted under the first of them."""
    inverse, forward = schedulers(denoiser.levels, steps)
    noised = carried(denoiser, x0[None], conditions[[0]], inverse, tell)
    return carried(denoiser, noised.repeat(len(conditions), 1, 1, 1), conditions, forward, tell)


def work(job: Job, image):
    """Pictures [1+K,3,H,W] in [-1,1], of the autoencoder alone and of every caption, and their rows."""
    import torch

    from diffusion.models.denoiser import in_space

    denoiser = in_space(models.load(job.source, job.device, "float32"), "epsilon")
    conditions, decode = denoiser.embed(job.captions), job.source.weights.vae_decoder(job.device)
    x0 = denoiser.encode(image)
    with loop.progress(job.price) as bar:
        latents = there_and_back(denoiser, x0, conditions, job.steps, bar.update)
    pictures = torch.stack([decode(latent).cpu() for latent in (x0, *latents)])
    errors = [0.0, *(latents - x0).square().mean((1, 2, 3)).tolist()]
    of_pixels = ((pictures - image) / 2).square().mean((1, 2, 3)).tolist()
    rows = zip([ROUND_TRIP, *job.captions], errors, of_pixels, strict=True)
    kinds = ["autoencoder", "inverted", *["other"] * (len(job.captions) - 1)]
    return pictures, [
        {"kind": kind, "caption": c, "latent_mse": e, "pixel_mse": p} for kind, (c, e, p) in zip(kinds, rows, strict=True)
    ]


# ---------------------------------------------------------------- what comes out


def draw(path: Path, image, pictures, rows: list[dict]) -> None:
    """The picture, and beside it what came back, with the errors of pixels."""
    n = 1 + len(rows)
    figure, axes = drawing.pyplot().subplots(1, n, figsize=(2.6 * n, 3.6), layout="constrained")
    figures.draw_image(axes[0], image, "the picture")
    for axis, picture, row in zip(axes[1:], pictures, rows, strict=True):
        title = textwrap.fill(row["caption"] + (" (inverted under)" if row["kind"] == "inverted" else ""), 24)
        figures.draw_image(axis, picture.clamp(-1, 1), f"{title}\nerror of pixels {row['pixel_mse']:.4f}")
    for axis in axes:
        axis.title.set_fontsize(9)
    figures.save(figure, path)


def print_rows(rows: list[dict]) -> None:
    width = max(len(row["caption"]) for row in rows)
    print(f"{'':{width}}  {'latent':>10}{'pixels':>10}  mean squared error")
    for row in rows:
        print(f"{row['caption']:{width}}  {row['latent_mse']:10.5f}{row['pixel_mse']:10.5f}")


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        job = prepare(vars(args))
        print(
            f"Price: {job.price:,} network evaluations, {job.steps} to invert and {job.steps} back for each caption", flush=True
        )
    if args.dry_run:
        return 0
    with cli.bad_input():
        image = job.dataset[args.image][0]
        pictures, rows = work(job, image)
        draw(args.out, image, pictures, rows)
        figures.write_csv(args.out.with_suffix(".csv"), rows)
    print_rows(rows)
    print(f"Drawn: {args.out}, its errors: {args.out.with_suffix('.csv')}")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
