#!/usr/bin/env python
"""Accuracy against cost, replayed: any stages and any race on a run that kept every candidate's errors, without its network.

A setting is played on the run's own errors. A real run has the same ones: seeded noise belongs to (image, timestep, trial).

a run that eliminated nobody (--to_keep 1 --n_samples N), or a DiT run with --save_errors:
  python scripts/replay.py data/fashion_mnist/vtiny_1trials_1keep_250samples_l1_64
settings of your own, and a picture:
  python scripts/replay.py RUN --stages "5 1 / 25 250" --stages "2 1 / 10 250" --race "0.2 2 1" --out replay.png
races for many candidates, whose texts are embedded by the run's model:
  python scripts/replay.py RUN --race "0.2 2 1" --surrogate "48 32 2.5 0.2 3" --tree "48 32 2.5 0.2 3"
"""

import sys
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, metrics
from diffusion.analysis import figures, reload, replay, tables
from diffusion.analysis.pages import percent_and_interval
from diffusion.cli import parsing
from diffusion.runs import loop
from diffusion.strategy import STRATEGIES, Stages, Strategy
from diffusion.strategy.level_weights import LevelWeights
from diffusion.utils import drawing, outputs

# those that errors alone decide; the others say so by leaving from_text as it is
PLAYABLE = {name: cls for name, cls in STRATEGIES.items() if cls.from_text.__func__ is not Strategy.from_text.__func__}


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    figures.add_run_argument(parser)
    for name, strategy in PLAYABLE.items():
        written = strategy.from_text.__doc__.rstrip(".")
        parser.add_argument(f"--{name}", action="append", metavar="'...'", help=f"{written} (default: several)")
    parser.add_argument("--part", choices=["all", "even", "odd"], default="all", help="images by index: choose on "
                        "one half, confirm on the other (default: all)")  # fmt: skip
    cli.add_level_weights(parser)
    parser.add_argument("--csv", type=outputs.Output(), metavar="FILE", help="also write the table")
    parser.add_argument("-o", "--out", type=figures.picture_file, metavar="FILE", help="also draw accuracy against evaluations")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- one setting


@dataclass
class Result:
    """What a setting gave: predictions and evaluations, [n] each."""

    kind: str
    setting: str
    preds: Any
    evaluations: Any


def play_all(args, grid, identity: dict, embeddings) -> list[Result]:
    """The full grid first, then the settings. identity: of the run; embeddings: as of `Strategy.bind`. Raises ValueError for
    a setting that cannot be played, or that was made for another run."""
    given = {name: getattr(args, name) for name in PLAYABLE}
    full = Stages((1,), (grid.plan.n_timesteps,), grid.plan.n_trials)
    results = [Result(full.NAME, f"1 / {grid.plan.n_timesteps}", *replay.play(grid, full))]
    for name, strategy in PLAYABLE.items():
        for setting in given[name] or ([] if any(given.values()) else strategy.examples(grid.plan)):
            try:
                chosen = strategy.from_text(setting, grid.plan)
                chosen.check(grid.n_candidates, grid.n_levels)
                chosen.check_run(identity, grid.n_candidates, grid.class_of)
                results.append(Result(name, setting, *replay.play(grid, chosen.bind(grid.class_of, embeddings))))
            except (ValueError, IndexError) as error:
                if given[name]:
                    raise ValueError(f"--{name} {setting!r}: {error}") from None  # of examples, some do not fit
    return results


# ---------------------------------------------------------------- what comes out


def rows_of(results: list[Result], labels) -> list[dict]:
    """One row a setting; agreement is with the full grid, which is the first result."""
    full = results[0]
    return [
        {
            "kind": r.kind,
            "setting": r.setting,
            "evaluations": float(r.evaluations.mean()),
            "share": float(r.evaluations.mean() / full.evaluations.mean()),
            "accuracy": metrics.top1(r.preds, labels),
            "agreement": metrics.top1(r.preds, full.preds),
            "p": metrics.mcnemar(full.preds == labels, r.preds == labels).p_value,
        }
        for r in results
    ]


def print_rows(rows: list[dict]):
    width = max(8, *(1 + len(r["kind"]) for r in rows))
    print(f"{'':{width}}{'setting':24}{'evaluations':>12}{'of full':>9}  {'accuracy (95 %)':26}{'as the full grid (95 %)':28}p")
    for r in rows:
        accuracy, agreement = percent_and_interval(r["accuracy"]), percent_and_interval(r["agreement"])
        print(f"{r['kind']:{width}}{r['setting']:24}{r['evaluations']:12,.1f}{100 * r['share']:8.1f}%  {accuracy:26}"
              f"{agreement:28}{r['p']:.2g}")  # fmt: skip


def csv_rows(rows: list[dict]) -> list[dict]:
    """The table's rows as the file names them."""
    return [
        {key: r[key] for key in ("kind", "setting", "evaluations")}
        | {"accuracy": r["accuracy"].value, "low": r["accuracy"].low, "high": r["accuracy"].high}
        | {"agreement": r["agreement"].value, "agreement_low": r["agreement"].low, "n": r["accuracy"].n, "p": r["p"]}
        for r in rows
    ]


def draw(path: Path, rows: list[dict]):
    """Accuracy and agreement against evaluations, a point a setting."""
    from matplotlib.ticker import LogLocator

    figure, axes = drawing.pyplot().subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, name in zip(axes, ("accuracy", "agreement"), strict=True):
        for kind, marker in zip(PLAYABLE, "so^vDX", strict=False):
            chosen = [r for r in rows if r["kind"] == kind]
            x, y = [r["evaluations"] for r in chosen], [100 * r[name].value for r in chosen]
            below = [100 * max(0, r[name].value - r[name].low) for r in chosen]  # rounding can leave -1e-16
            above = [100 * max(0, r[name].high - r[name].value) for r in chosen]
            axis.errorbar(x, y, yerr=(below, above), fmt=marker, label=kind, capsize=2, alpha=0.8)
        axis.set(xscale="log", xlabel="network evaluations per image", ylabel=f"{name}, %")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.grid(alpha=0.3)
    axes[0].legend()
    axes[0].set_title(f"accuracy, n = {rows[0]['accuracy'].n}, 95 % intervals")
    axes[1].set_title("same prediction as the full grid")
    figures.save(figure, path)


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        run = tables.read_run(args.folder, args.loss, args.part, args.prompt_path, args.level_weights)
        grid, identity = tables.grid_of(run, uneven=True), run.config["identity"] | {"loss": run.loss}
        if args.level_weights:
            identity["level_weights"] = LevelWeights.read(args.level_weights).identity
        embeddings = cache(partial(reload.embeddings, reload.Past(args.folder, run.config)))
        rows = rows_of(play_all(args, grid, identity, embeddings), grid.labels)
        if args.csv:
            figures.write_csv(args.csv, csv_rows(rows))
        if args.out:
            draw(args.out, rows)
    size = f"{len(grid.labels)} images, {grid.n_candidates} candidates, {len(grid.t)} pairs each"
    print(f"{size}; p: McNemar's exact test against the full grid")
    print_rows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
