#!/usr/bin/env python
"""One example of a Winoground run drawn: two images, two captions, and where each caption predicts the noise better.

    python scripts/plot_winoground.py data/tiny_pairs/sd_vtiny_t20_1trials --example 0 --out example.png

Runs the model of that run once more on this example, with the run's own timesteps and noise. A column is an image, a row a
caption; green: this caption's error is the lower of the two there, pink: the other's.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion import cli, session


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder of run_winoground.py --model sd")
    parser.add_argument("--example", type=cli.at_least(0), required=True, metavar="ID", help="id of the example to draw")
    parser.add_argument("--out", type=Path, metavar="PNG", help="default: winoground_<ID>.png")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    args = parser.parse_args(argv)
    args.out = args.out or Path(f"winoground_{args.example}.png")
    return args


def read_run(args) -> tuple[Namespace, dict]:
    """Options and identity of the run. Raises ValueError for a folder that is no run of Stable Diffusion."""
    from diffusion import models, runlog

    if not args.folder.is_dir():
        raise ValueError(f"{args.folder} does not exist: give a run folder")
    config = runlog.read_config(args.folder)
    if not config or config["identity"].get("model") != "sd":
        raise ValueError(f"{args.folder} is no run of run_winoground.py --model sd: only such a run has maps of errors")
    return Namespace(**config["options"] | {"device": models.resolve_device(args.device)}), config["identity"]


def find_example(args, options, identity):
    """The set and the position of the example in it. Raises ValueError for another set and an id that it lacks."""
    from diffusion.datasets import pairs

    data = pairs.open_pairs(options.dataset, options.data_dir)
    if data.fingerprint() != identity["images"]:
        raise ValueError(f"{args.folder} was made on another set than {options.data_dir or options.dataset} is now")
    position = next((i for i, example in enumerate(data.examples) if example.id == args.example), None)
    if position is None:
        raise ValueError(f"--example {args.example}: the set has {len(data)} examples, from {data.examples[0].id} on")
    return data, position


def error_maps(options, identity, files, images, captions):
    """Squared errors of the noise, the mean over the run's timesteps and noises -> [2,2,h,w] (caption, image, position)."""
    import torch

    from diffusion import kernel, models, schedule, scores

    plan = schedule.interval_plan(options.t_interval, options.n_trials)
    noise, noise_identity = cli.open_noise(options, len(plan.t), models.latent_shape(files, options.img_size))
    if noise_identity != identity["noise"]:
        raise ValueError(f"--noise_path {options.noise_path} of the run holds other noise now")
    denoiser = models.load_sd(files, options.dtype, options.device)
    x0 = torch.stack([denoiser.encode(image) for image in images])
    t, batch = torch.from_numpy(plan.t), kernel.Batch(options.batch_size)
    return kernel.epsilon_errors(denoiser, x0, denoiser.embed(list(captions)), t, noise, scores.error_map, batch).mean(2)


def draw(path: Path, images, captions, maps):
    """The 2 x 2 cells. images: two [3,H,W] in [-1,1]; maps: [2,2,h,w] (caption, image)."""
    import numpy as np

    from diffusion.analysis import figures

    advantage = (maps.flip(0) - maps).numpy()  # above zero where this caption's error is the lower one
    span = np.abs(advantage).max() or 1.0
    figure = figures.pyplot().figure(figsize=(9, 9), layout="constrained")
    for c, row in enumerate(figure.subfigures(2, 1)):
        row.suptitle(f"caption {c}: {captions[c]}")
        axes = row.subplots(1, 2)
        for i, axis in enumerate(axes):
            scale = figures.overlay(axis, images[i], advantage[c, i], span)
            fits = "the better caption" if maps[c, i].mean() < maps[1 - c, i].mean() else "the worse caption"
            axis.set_title(f"image {i}: error {maps[c, i].mean():.5f}, {fits}", fontsize=10)
        row.colorbar(scale, ax=axes, shrink=0.8, label="other caption's squared error less this one's")
    figures.save(figure, path, dpi=80)


def main(argv=None) -> int:
    args = parse_args(argv)
    from diffusion import rerun
    from diffusion.datasets import transforms

    with cli.bad_input():
        options, identity = read_run(args)
        data, position = find_example(args, options, identity)
        files = rerun.find_sd(args.folder, options, identity)
        data.transform = transforms.sd_transform(options.img_size, options.interpolation)
        images, example = data[position]
        maps = error_maps(options, identity, files, images, example.captions)
        draw(args.out, images, example.captions, maps)
    for i in (0, 1):
        difference = (maps[1 - i, i] - maps[i, i]).mean().item()
        print(f"image {i}: its own caption's error is {'lower' if difference > 0 else 'higher'} by {abs(difference):.6f}")
    print(f"Drawn: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(session.run(main))
