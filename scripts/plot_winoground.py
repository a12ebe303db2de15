#!/usr/bin/env python
"""One example of a Winoground run drawn: two images, two captions, and where each caption predicts the noise better.

    python scripts/plot_winoground.py data/tiny_pairs/sd_vtiny_t20_1trials --example 0 --out example.png

Runs that run's model again on this example, with the run's own timesteps and noise. A column is an image, a row a
caption; green: this caption's error is the lower of the two there, pink: the other's.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli
from diffusion.analysis import figures, reload
from diffusion.cli import parsing
from diffusion.runs import loop, run_folder
from diffusion.utils import drawing


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder of run_winoground.py --model sd")
    parser.add_argument("--example", type=parsing.at_least(0), required=True, metavar="ID", help="id of the example to draw")
    parser.add_argument("-o", "--out", type=figures.picture_file, metavar="PNG", help="default: winoground_<ID>.png")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    args = parser.parse_args(argv)
    args.out = args.out or Path(f"winoground_{args.example}.png")
    return args


def read_run(folder: Path) -> reload.Past:
    """Raises ValueError for a folder that is no run of a diffusion model on pairs."""
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist: give a run folder")
    config = run_folder.read_config(folder)
    if not config or config["identity"].get("model") != "sd":
        raise ValueError(f"{folder} is not a run of run_winoground.py --model sd: only such runs have error maps")
    return reload.Past(folder, config)


def find_example(past: reload.Past, example: int):
    """The two images [3,H,W] and the example. Raises ValueError for another set and an id that it lacks."""
    data = reload.open_pairs(past)
    position = next((i for i, known in enumerate(data.examples) if known.id == example), None)
    if position is None:
        raise ValueError(f"--example {example}: the set has {len(data)} examples, from {data.examples[0].id} on")
    return data[position]


def error_maps(past: reload.Past, images, captions, device: str | None):
    """Squared errors of the noise, the mean over the run's pairs -> [2,2,h,w] (caption, image, position)."""
    return reload.error_maps(past, images, list(captions), slice(None), 0, device)


def draw(path: Path, images, captions, maps):
    """The 2 x 2 cells. images: two [3,H,W] in [-1,1]; maps: [2,2,h,w] (caption, image)."""
    import numpy as np

    advantage = (maps.flip(0) - maps).numpy()  # above zero where this caption's error is the lower one
    span = np.abs(advantage).max() or 1.0
    figure = drawing.pyplot().figure(figsize=(9, 9), layout="constrained")
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
    with cli.bad_input():
        past = read_run(args.folder)
        images, example = find_example(past, args.example)
        maps = error_maps(past, images, example.captions, args.device)
        draw(args.out, images, example.captions, maps)
    for i in (0, 1):
        difference = (maps[1 - i, i] - maps[i, i]).mean().item()
        print(f"image {i}: its own caption's error is {'lower' if difference > 0 else 'higher'} by {abs(difference):.6f}")
    print(f"Drawn: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
