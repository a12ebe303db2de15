#!/usr/bin/env python
"""Text, image and group scores of Winoground-like runs: ours and the reference's, without a model; two runs are compared.

python scripts/print_winoground.py data/tiny_pairs/sd_vtiny_t20_1trials
two runs on the examples that both have, difference in points and McNemar's exact test:
  python scripts/print_winoground.py data/tiny_pairs/openclip_tiny data/tiny_pairs/sd_vtiny_t20_1trials
a log of the reference, which does not say what its examples are:
  python scripts/print_winoground.py data/winoground/sd_v2-0_t100_1trials --dataset winoground
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, metrics
from diffusion.analysis import figures, reload
from diffusion.cli import parsing
from diffusion.datasets import winoground
from diffusion.datasets.winoground import PAIR_DATASETS, SCORE_MODE_HELP, SCORE_MODES
from diffusion.runs import loop, run_folder
from diffusion.utils import files, outputs


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="RUN", help="run folder; every further one is compared with the first"
    )
    parser.add_argument("--dataset", choices=PAIR_DATASETS, help="whose tags to use (default: what the run says)")
    parser.add_argument("--data_dir", help="local folder with examples.jsonl and images/ (default: what the run says)")
    parser.add_argument("--by_tag", action="store_true", help="every `tag` too, not only the collapsed tags")
    parser.add_argument("--score_mode", default="conditional", choices=SCORE_MODES, help=SCORE_MODE_HELP)
    parser.add_argument(
        "--json",
        type=outputs.Output(),
        metavar="FILE",
        help="also write scores and comparisons as JSON; a difference there is `second` less `first`",
    )
    parser.add_argument(
        "--csv", type=outputs.Output(), metavar="FILE", help="also write every example: tags, right or wrong, four scores"
    )
    return parser.parse_args(argv)


@dataclass
class Run:
    """What was read of one run folder."""

    folder: Path
    n_expected: int | None
    pairs: dict[int, Any]  # example id -> four scores
    right: dict[int, Any]  # example id -> text, image, group
    unreadable: list[str]  # names of records that do not count


# ---------------------------------------------------------------- reading


def read_configs(folders) -> dict[Path, dict]:
    """Folder -> config.json of those that have one. Raises ValueError for a folder that is none, or of another command."""
    configs = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} does not exist: give a run folder")
        config = run_folder.read_config(folder)
        if config and config["kind"] != run_folder.PAIRS:
            raise ValueError(f"{folder} is a run of {config['command']}.py: give one of run_winoground.py")
        configs |= {folder: config} if config else {}
    return configs


def open_data(args):
    """The set that the flags name, or that the runs say they are about. Raises ValueError when they do not agree on one."""
    configs = read_configs(args.folders)
    names = sorted({name for config in configs.values() if (name := config["identity"].get("dataset"))})
    if len(names) > 1:
        raise ValueError(f"these runs are on {' and '.join(names)}: compare runs on the same set")
    if not (args.dataset or args.data_dir or names):
        raise ValueError(f"{args.folders[0]} does not say what its examples are: give --dataset or --data_dir")
    first = next(iter(configs.values()), {})
    saved = first.get("options", {}).get("data_dir") if args.dataset in (None, *names) else None
    data = winoground.open_pairs(args.dataset or (names[0] if names else "winoground"), args.data_dir or saved, pictures=False)
    if not data.has_pictures:
        print("Note: the pictures of this set are not there, so nothing shows that the runs are about them", file=sys.stderr)
    for folder, config in configs.items() if data.has_pictures else ():
        reload.check_images(reload.Past(folder, config), data, "this set")
    return data


def read_run(folder: Path, data, score_mode: str) -> Run:
    """Raises ValueError for a folder without records, or with records of examples that the set does not have."""
    unreadable = []
    scored = run_folder.load_pairs(folder, unreadable)
    if not scored:
        inner = sorted({path.parent for path in folder.glob("**/[0-9]*.pt")} - {folder})
        hint = f"; did you mean {inner[0]}?" if inner else ": give a run folder"
        raise ValueError(f"{folder} holds no readable record <id>.pt of four scores{hint}")
    unknown = sorted(set(scored) - {example.id for example in data.examples})
    if unknown:
        raise ValueError(f"{folder} has a record of example {unknown[0]}, which this set lacks: give its --dataset or --data_dir")
    return Run(folder, run_folder.images_expected([folder]), scored, winoground.correct(scored, score_mode), unreadable)


# ---------------------------------------------------------------- two runs


def compare(first: Run, second: Run, named: dict[str, list[int]]) -> dict[str, dict[str, dict]]:
    """Subset -> text, image, group -> n, difference (second less first, in 0..1) and McNemar's test, on the ids of both."""
    table = {}
    for name, ids in named.items():
        rows = [(first.right[i], second.right[i]) for i in ids if i in first.right and i in second.right]
        for part in rows[0][0]._fields if rows else ():
            a, b = ([getattr(row[k], part) for row in rows] for k in (0, 1))
            test = metrics.mcnemar(a, b).as_dict()
            table.setdefault(name, {})[part] = {"n": len(rows), "difference": (sum(b) - sum(a)) / len(rows)} | test
    return table


def short_names(folders) -> list[str]:
    """As many of the last parts of each folder's path as tell different folders apart."""
    paths = [folder.resolve().parts for folder in folders]
    for n in range(1, max(map(len, paths))):
        names = ["/".join(path[-n:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return list(map(str, folders))


def comparison_lines(table: dict, first: str, second: str) -> list[str]:
    """first, second: names of the runs; as in the difference, the second comes first."""
    return [
        f"{name} {part} score:  {100 * cell['difference']:+.1f} points"
        f"  (n = {cell['n']}, only {second} right: {cell['only_second']}, only {first} right: {cell['only_first']}, "
        f"p = {cell['p_value']:.2g})"
        for name, parts in table.items()
        for part, cell in parts.items()
    ]


# ---------------------------------------------------------------- writing


def print_run(run: Run, scores: dict) -> None:
    print(f"Run folder: {run.folder}")
    print(f"Examples: {len(run.pairs)} of {run.n_expected or 'an unknown number'}")
    if message := run_folder.unreadable_message(run.unreadable, "not counted"):
        print(message)
    print("\n".join(winoground.score_lines(scores)))


def print_comparison(first: Run, second: Run, names: tuple[str, str], table: dict) -> None:
    n = len(first.pairs.keys() & second.pairs.keys())
    print(f"\n{names[1]} less {names[0]}, on the {n} examples of both (McNemar's exact test):")
    print("\n".join(comparison_lines(table, *names)) or "none")


def csv_rows(runs: list[Run], data):
    yield ("run", "id", "tag", "collapsed_tag", "text", "image", "group", "c0_i0", "c0_i1", "c1_i0", "c1_i1")
    for run in runs:
        for e in data.examples:
            if e.id in run.pairs:
                yield (run.folder, e.id, e.tag, e.collapsed_tag, *map(int, run.right[e.id]), *run.pairs[e.id])


def write_files(args, runs: list[Run], data, scores: list[dict], comparisons: list[dict]) -> None:
    """--json and --csv, as far as asked for."""
    if args.json:
        about = [
            {"folder": str(run.folder), "n": len(run.pairs), "n_expected": run.n_expected, "scores": table}
            for run, table in zip(runs, scores, strict=True)
        ]
        others = zip(runs[1:], comparisons, strict=True)
        comparisons = [{"first": str(runs[0].folder), "second": str(run.folder), "scores": table} for run, table in others]
        result = {"score_mode": args.score_mode, "runs": about, "comparisons": comparisons}
        files.write_text(args.json, figures.to_json(result))
    if args.csv:
        files.write_csv(args.csv, csv_rows(runs, data))


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        data = open_data(args)
        runs = [read_run(folder, data, args.score_mode) for folder in args.folders]
        named = winoground.subsets(data.examples, args.by_tag)
        scores = [winoground.summarise(run.right, named) for run in runs]
        comparisons = [compare(runs[0], run, named) for run in runs[1:]]
        write_files(args, runs, data, scores, comparisons)
    print(f"Score mode: {args.score_mode}" + (", as published" if args.score_mode == "conditional" else ""))
    for run, table in zip(runs, scores, strict=True):
        print_run(run, table)
    names = short_names(args.folders)
    for run, name, table in zip(runs[1:], names[1:], comparisons, strict=True):
        print_comparison(runs[0], run, (names[0], name), table)
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
