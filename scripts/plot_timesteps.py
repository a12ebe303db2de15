#!/usr/bin/env python
"""Which timesteps tell classes apart: accuracy from one alone, by strategies of choosing several, and one image's errors.

the paper's figures 3 and 4, of a run that eliminated nobody (--to_keep 1 --n_samples N, or a DiT run with --save_errors):
  python scripts/plot_timesteps.py data/fashion_mnist/vtiny_1trials_1keep_250samples_l1_64 -o figures
and figure 2, the errors of one image by timestep and by noise (a run with --n_trials 4 has four noises per timestep):
  python scripts/plot_timesteps.py RUN -o figures --image 7 --format svg

Writes timesteps, strategies and image_<INDEX>, each as a picture and as a CSV of what is drawn. A timestep's errors are the mean
over its noises. Strategies of three timesteps go on outward from them, where the paper repeats them with new noise.
Intervals are over images: where all of them share one noise, as in a DiT run, the luck of that noise is not in them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, metrics
from diffusion.analysis import figures, sampling
from diffusion.analysis.pages import percent_and_interval
from diffusion.cli import parsing
from diffusion.metrics import curves
from diffusion.runs import loop
from diffusion.strategy import round_numbers
from diffusion.utils import drawing

COUNTS = (1, 2, 3, 5, 7, 10, 15, 20, 25, 35, 50, 75, 100, 150, 200, 250, 350, 500, 750, 1000)  # timesteps, points of figure 4
PANELS = 4  # noises of figure 2, as in the paper


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    figures.add_run_argument(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder of the figures")
    parser.add_argument("--image", type=parsing.at_least(0), metavar="INDEX", help="also draw the errors of this image")
    parser.add_argument("--format", choices=["png", "svg"], default="png", help="of the pictures (default: png)")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- what is drawn


def by_timestep(grid):
    """Errors [n,K,T], the mean over a timestep's noises, and the distinct timesteps [T]."""
    n, k, _ = grid.errors.shape
    return grid.errors.reshape(n, k, -1, grid.plan.n_trials).mean(3), grid.t[:: grid.plan.n_trials]


def accuracy(errors, grid, columns):
    """The Estimate from these columns alone."""
    return metrics.top1(curves.subset_preds(errors, grid.class_of, columns), grid.labels)


def timestep_rows(errors, t, grid) -> list[dict]:
    """Figure 3: one row a timestep."""
    return [{"t": int(t[i]), "accuracy": accuracy(errors, grid, [i])} for i in range(len(t))]


def strategy_rows(errors, t, grid, levels: int) -> list[dict]:
    """Figure 4: one row a strategy and number of timesteps, as far as the strategy has so many."""
    rows = []
    for strategy in sampling.strategies(levels):
        for count in sorted({c for c in COUNTS if c < len(t)} | {len(t)}):
            columns = sampling.sampling_columns(strategy, t, count, levels)
            if len(columns) == count:
                rows.append({"strategy": strategy, "timesteps": count, "accuracy": accuracy(errors, grid, columns)})
    return rows


def image_rows(grid, position: int, pair: tuple[int, int]) -> list[dict]:
    """Figure 2: one row a (timestep, noise); errors of the two rows of `pair`, winner and runner-up."""
    first, second = (grid.errors[position, row].astype(float).tolist() for row in pair)
    return [
        {"t": int(t), "noise": i % grid.plan.n_trials, "winner": a, "runner_up": b, "difference": b - a}
        for i, (t, a, b) in enumerate(zip(grid.t, first, second, strict=True))
    ]


# ---------------------------------------------------------------- pictures


def draw_lines(rows: list[dict], x: str, lines: str | None, **axis_settings):
    """Accuracy with its band against the cells `x`, a line for each value of the cells `lines`. Returns figure and axis."""
    figure, axis = drawing.pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    for name in dict.fromkeys(row[lines] if lines else None for row in rows):
        chosen = [row for row in rows if not lines or row[lines] == name]
        low, value, high = ([100 * getattr(row["accuracy"], end) for row in chosen] for end in ("low", "value", "high"))
        places = [row[x] for row in chosen]
        axis.plot(places, value, marker=".", markersize=4, linewidth=1.2, label=name)
        axis.fill_between(places, low, high, alpha=0.18, linewidth=0)
    axis.set(ylabel="accuracy, %", **axis_settings)
    axis.grid(alpha=0.3)
    if lines:
        axis.legend(title="timesteps")
    return figure, axis


def draw_timesteps(path: Path, rows: list[dict], chance: float, levels: int):
    title = f"accuracy from one timestep alone, n = {rows[0]['accuracy'].n}, 95 % intervals"
    figure, axis = draw_lines(rows, "t", None, xlabel="timestep t", title=title)
    axis.axhline(100 * chance, color="grey", linestyle=":", linewidth=1)
    axis.text(levels, 100 * chance, "chance", color="grey", ha="right", va="bottom", fontsize=9)
    axis.set(xlim=(0, levels), ylim=(0, None))
    figures.save(figure, path)


def draw_strategies(path: Path, rows: list[dict]):
    title = f"accuracy by choice of timesteps, n = {rows[0]['accuracy'].n}, 95 % intervals"
    figure, axis = draw_lines(rows, "timesteps", "strategy", xlabel="number of timesteps", title=title, xscale="log")
    most = max(row["timesteps"] for row in rows)
    axis.set_xticks(round_numbers(most + 1)[:-1])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    figures.save(figure, path)


def draw_image(path: Path, rows: list[dict], names: tuple[str, str], title: str):
    """A panel a noise, and one of the difference that decides. With several noises, errors less their mean at each timestep."""
    import numpy as np

    n_trials = 1 + max(row["noise"] for row in rows)
    shown = min(n_trials, PANELS)
    t, *cells = (np.array([row[key] for row in rows]).reshape(-1, n_trials) for key in ("t", "winner", "runner_up", "difference"))
    base = (cells[0] + cells[1]).mean(1) / 2 if n_trials > 1 else 0
    figure, axes = drawing.pyplot().subplots(1, shown + 1, figsize=(max(9, 3.2 * (shown + 1)), 3.8), layout="constrained")
    for noise, axis in enumerate(axes[:-1]):
        for name, errors in zip(names, cells, strict=False):
            axis.plot(t[:, 0], errors[:, noise] - base, linewidth=1, label=name)
        axis.set_title(f"noise {noise + 1}" if n_trials > 1 else "error")
        axis.sharey(axes[0])
    for noise in range(shown):
        axes[-1].plot(t[:, 0], cells[2][:, noise], linewidth=1)
    axes[-1].axhline(0, color="grey", linewidth=0.8)
    axes[-1].set_title("runner-up minus winner")
    axes[0].set_ylabel("error minus the mean at t" if n_trials > 1 else "error")
    axes[0].legend(fontsize=9)
    for axis in axes:
        axis.set_xlabel("timestep t")
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    figures.save(figure, path)


# ---------------------------------------------------------------- tables


def print_timesteps(rows: list[dict], chance: float):
    best = max(rows, key=lambda row: row["accuracy"].value)
    print(f"One timestep alone: best t = {best['t']}, {percent_and_interval(best['accuracy'])}; chance {100 * chance:.1f} %")
    for row in rows[:: max(1, len(rows) // 10)]:
        print(f"  t = {row['t']:<4} {percent_and_interval(row['accuracy'])}")


def print_strategies(rows: list[dict], t):
    steps = f"{len(t)} timesteps, {t[0]} to {t[-1]}"
    print(f"Several timesteps, the nearest that the run has ({steps}):")
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    cells = {(row["strategy"], row["timesteps"]): percent_and_interval(row["accuracy"]) for row in rows}
    print(f"  {'':>5}" + "".join(f"  {name:24}" for name in strategies))
    for count in sorted({row["timesteps"] for row in rows}):
        print(f"  {count:5}" + "".join(f"  {cells.get((name, count), '-'):24}" for name in strategies))


def print_image(rows: list[dict], names: tuple[str, str], title: str):
    import numpy as np

    n_trials = 1 + max(row["noise"] for row in rows)
    print(f"{title}; standard deviations of its errors:")
    print(f"  {'':30}{'over timesteps':>16}{'over noises':>14}")
    for key, name in (("winner", names[0]), ("runner_up", names[1]), ("difference", "their difference")):
        spread = curves.error_spread(np.array([row[key] for row in rows]).reshape(-1, n_trials))
        by_noise = f"{spread.by_noise:14.6f}" if n_trials > 1 else f"{'-':>14}"
        print(f"  {name:30}{spread.by_t:16.6f}{by_noise}")
    if n_trials == 1:
        print(
            "  This run has one noise per timestep, so only the spread over timesteps is shown: --n_trials 4 keeps four noises."
        )


# ---------------------------------------------------------------- the command


def figure_2(args, run, grid, position: int):
    means = grid.errors[position].mean(1, dtype=float)
    first, second = curves.rank_classes(means, grid.class_of)[:2]
    names = (run.names[grid.class_of[first]], run.names[grid.class_of[second]])
    label = int(grid.labels[position])
    title = f"image {args.image} ({run.names.get(label, label)}): {names[0]} before {names[1]}"
    rows = image_rows(grid, position, (first, second))
    path = args.out / f"image_{args.image}.{args.format}"
    draw_image(path, rows, names, title)
    figures.write_csv(path.with_suffix(".csv"), rows)
    print_image(rows, names, title)
    return path


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        run, grid = figures.read_grid(args.folder, args.loss, args.prompt_path)
        position = None if args.image is None else figures.position_of(run, args.image)
        figures.check_several(grid, run.folder)
        errors, t = by_timestep(grid)
        levels = grid.n_levels
        chance = 1 / len(set(grid.class_of))
        paths = [args.out / f"{name}.{args.format}" for name in ("timesteps", "strategies")]
        alone, several = timestep_rows(errors, t, grid), strategy_rows(errors, t, grid, levels)
        draw_timesteps(paths[0], alone, chance, levels)
        draw_strategies(paths[1], several)
        for path, rows in zip(paths, (alone, several), strict=True):
            figures.write_csv(path.with_suffix(".csv"), rows)
        print(f"{len(grid.labels)} images, {len(grid.class_of)} candidates, {len(t)} timesteps of {grid.plan.n_trials} noises")
        print_timesteps(alone, chance)
        print_strategies(several, t)
        if position is not None:
            paths.append(figure_2(args, run, grid, position))
    print(f"Drawn, each with a .csv beside it: {' '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
