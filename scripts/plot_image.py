#!/usr/bin/env python
"""One image of a run drawn: the errors of its best classes against the timestep, and where winner and runner-up differ.

from the records alone, with the image if the dataset is available:
  python scripts/plot_image.py data/fashion_mnist/vtiny_1trials_1keep_250samples_l1_64 --image 7 -o image.png
with a map, for which the run's model evaluates this image again, on the run's own timesteps and noise:
  python scripts/plot_image.py RUN --image 7 -o image.png --map

Curves: a class's error minus the winner's, thin at each timestep and thick as a running mean; below zero it beats the winner
there. Map: squared errors in the latent, green where the winner's is below the runner-up's, pink where it is above.
Writes the picture, and beside it a CSV of the curves and one of the map (<FILE>_map.csv).
"""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli
from diffusion.analysis import figures, reload
from diffusion.cli import parsing
from diffusion.metrics import curves
from diffusion.runs import loop
from diffusion.utils import drawing, files, outputs

PICTURE = outputs.Output(".png", ".svg", beside=(".csv", "_map.csv"))


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    figures.add_run_argument(parser)
    parser.add_argument("--image", type=parsing.at_least(0), required=True, metavar="INDEX", help="index of the image")
    parser.add_argument("-o", "--out", type=PICTURE, required=True, metavar="FILE", help=".png or .svg")
    parser.add_argument(
        "--top",
        type=parsing.at_least(2),
        default=5,
        metavar="N",
        help="number of best classes to draw, besides the true one (default: 5)",
    )
    parser.add_argument("--map", action="store_true", help="also draw where winner and runner-up differ: needs the model")
    parser.add_argument("--data_dir", help="folder of the datasets (default: the run's)")
    parser.add_argument("--device", help="of the model (default: cuda if there is one, else cpu)")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- what is drawn


def choose_rows(errors, class_of: list[int], label: int, top: int) -> list[int]:
    """The best row of each of the `top` best classes and of the true class, best first. errors: [K,S] of the image."""
    ranked = curves.rank_classes(errors.mean(1, dtype=float), class_of)
    return [row for place, row in enumerate(ranked) if place < top or class_of[row] == label]


def curve_rows(run, grid, position: int, rows: list[int]) -> list[dict]:
    """One row a class and timestep: its error, the mean over noises, and that less the winner's."""
    errors = grid.errors[position, rows].astype(float).reshape(len(rows), -1, grid.plan.n_trials).mean(2)
    differences, t = (errors - errors[0]).tolist(), grid.t[:: grid.plan.n_trials].tolist()
    return [
        {"row": row, "class": run.names[grid.class_of[row]], "t": t[j], "error": error, "difference": differences[i][j]}
        for i, row in enumerate(rows)
        for j, error in enumerate(errors[i].tolist())
    ]


def by_class(rows: list[dict]) -> list[list[dict]]:
    """The rows of each class, in their order."""
    return [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["row"])]


def find_advantage(args, run, rows: list[int]):
    """The image, and the runner-up's squared error minus the winner's [h,w]; None for what is not at hand or not asked for."""
    past = reload.Past(run.folder, run.config)
    try:
        dataset = reload.open_images(past, args.data_dir)
        image = dataset[args.image][0]
    except (ValueError, OSError) as error:
        if args.map:
            raise
        print(f"Note: drawn without the image: {files.one_line(error)}", file=sys.stderr)
        return None, None
    if not args.map:
        return image, None
    maps = reload.error_maps(past, image, reload.candidates_of(past, dataset), rows[:2], args.image, args.device)
    winner, runner_up = maps.numpy()
    return image, runner_up - winner


def map_rows(advantage) -> list[dict]:
    """One row a latent position."""
    return [{"y": y, "x": x, "advantage": float(a)} for y, line in enumerate(advantage) for x, a in enumerate(line)]


# ---------------------------------------------------------------- what comes out


def draw_curves(axis, rows: list[dict], label: str):
    drawn = [
        (curve[0]["class"] + (" (true)" if curve[0]["class"] == label else ""), [row["t"] for row in curve],
         [row["difference"] for row in curve])
        for curve in by_class(rows)
    ]  # fmt: skip
    drawing.draw_differences(axis, drawn)
    axis.set_title("the best classes")
    axis.legend(fontsize=9)


def draw(path: Path, rows: list[dict], image, advantage, title: str, label: str):
    """Curves, after them the image and the map, as far as there are any."""
    pictures = [p for p in (image, advantage) if p is not None]
    widths = [2.2] + [1] * len(pictures)
    figure, axes = drawing.pyplot().subplots(
        1, len(widths), figsize=(7 + 3.6 * len(pictures), 4.2), width_ratios=widths, layout="constrained", squeeze=False
    )
    draw_curves(axes[0, 0], rows, label)
    if image is not None:
        figures.draw_image(axes[0, 1], image, "the image")
    if advantage is not None:
        label = "runner-up's squared error minus the winner's"
        figures.draw_map(figure, axes[0, 2], image, advantage, "winner and runner-up", label)
    figure.suptitle(title)
    figures.save(figure, path)


def print_table(rows: list[dict]):
    """Mean differences with the standard error of what they vary over timesteps."""
    import numpy as np

    print(f"  {'':24}{'mean error':>12}{'minus winner':>13}{'std. error':>12}{'below winner at':>18}")
    for curve in by_class(rows):
        errors, difference = (np.array([row[key] for row in curve]) for key in ("error", "difference"))
        standard_error = difference.std(ddof=1) / len(difference) ** 0.5
        below = f"{(difference < 0).sum()} of {len(difference)} t"
        print(f"  {curve[0]['class']:24}{errors.mean():12.6f}{difference.mean():13.6f}{standard_error:12.6f}{below:>18}")


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        if not args.map:
            cli.refuse_idle(vars(args), ["device"], "without --map")
        run, grid = figures.read_grid(args.folder, args.loss, args.prompt_path)
        position = figures.position_of(run, args.image)
        figures.check_several(grid, run.folder)
        rows = choose_rows(grid.errors[position], grid.class_of, int(grid.labels[position]), args.top)
        image, advantage = find_advantage(args, run, rows)
        lines, label = curve_rows(run, grid, position, rows), run.names.get(int(grid.labels[position]), "none of the classes")
        title = f"image {args.image}, {label}: {lines[0]['class']} wins"
        draw(args.out, lines, image, advantage, title, label)
        figures.write_csv(args.out.with_suffix(".csv"), lines)
        if advantage is not None:
            figures.write_csv(args.out.with_name(f"{args.out.stem}_map.csv"), map_rows(advantage))
    print(f"{title}; {len(grid.t)} pairs of timestep and noise")
    print_table(lines)
    if advantage is not None:
        places = f"{(advantage > 0).sum()} of {advantage.size} positions"
        print(f"Map: the winner's squared error is lower by {advantage.mean():.6f} on average, and at {places}")
    print(f"Drawn, with its .csv beside it: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
