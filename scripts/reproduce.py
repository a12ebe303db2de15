#!/usr/bin/env python
"""The paper's tables and figures: the command for each number, its price, and our numbers beside the published ones.

  what there is, and what of it is at hand
    python scripts/reproduce.py list
  Table 1 by the run folders that are there, and what is missing, on a GPU that does 100 evaluations/s
    python scripts/reproduce.py table1 --rate 100
  the same table in miniature, on the shipped models; --run does what is missing
    python scripts/reproduce.py table1-tiny --run --imgs_to_eval 100

Run folders are looked for in $LOG_DIR (default: data), where the commands put them. Every command can be run by hand as well, on
other machines too; --run goes on with what was interrupted, and with --n_workers each process does its share of every command.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli
from diffusion.analysis import figures, pages
from diffusion.cli import parsing
from diffusion.paper import reproduction, targets
from diffusion.paper.reproduction import Row, Target
from diffusion.runs import loop, printing
from diffusion.utils import commands, files, outputs

LIST = "list"
WITHOUT_TABLE = ("run", "only", "out")  # what a list has no use for
STOPPED = (128 + 2, 128 + 15, -2, -15)  # exit codes of a command that was interrupted


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    known = (LIST, *targets.TARGETS)
    parser.add_argument("target", choices=known, metavar="TARGET", help=f"one of: {', '.join(known)}")
    parser.add_argument("--only", metavar="TEXT", help="rows whose method or data set has this in its name")
    cli.add_rate_option(parser)
    parser.add_argument("--format", choices=list(FORMATS), default="text", help="of the table; csv has fractions (default: text)")
    parser.add_argument("-o", "--out", type=outputs.Output(), metavar="FILE", help="write the table there (default: print it)")
    group = parser.add_argument_group("what is missing")
    group.add_argument("--run", action="store_true", help="do it, one command after the other")
    group.add_argument("--imgs_to_eval", type=parsing.at_least(1), metavar="N", help="be content with N images of each run")
    group.add_argument("--n_workers", type=parsing.at_least(1), default=1, help="processes that share it (default: 1)")
    group.add_argument("--worker_idx", type=parsing.at_least(0), default=0, help="number of this process, from 0 (default: 0)")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Ask:
    """most: images of a run; share: worker and workers; rate: evaluations per second, None: not known"""

    most: int | None
    share: tuple[int, int]
    rate: float | None

    def left(self, rows) -> list[tuple[Row, int]]:
        """What is still to be done, with its evaluations; each run once, however many rows are read from it."""
        left = {row.made: (row, n) for row in rows if (n := row.left(self.most)) is not None}
        return list(left.values())

    def cost_text(self, evaluations: int) -> str:
        """`2,000 evaluations, 0.1 h`"""
        return f"{evaluations:,} evaluations{printing.hours(evaluations, self.rate)}"


# ---------------------------------------------------------------- tables


def rows_of(name: str, target: Target, only: str | None) -> tuple[Row, ...]:
    """Raises ValueError where none is left."""
    rows = target.rows
    chosen = tuple(row for row in rows if not only or only.lower() in f"{row.method} {row.column}".lower())
    if not chosen:
        columns = ", ".join(dict.fromkeys(row.column for row in rows))
        raise ValueError(f"--only {only}: no row of {name} is called like it; its columns are {columns}")
    return chosen


def cells(row: Row, target: Target) -> dict:
    """A line of a table; raises ValueError or OSError where a run cannot be read."""
    reproduced, percent = row.reproduced(), target.unit == "%"
    number = None if row.published is None else row.published / (100 if percent else 1)
    known = {"method": row.method, "data": row.column, "published": number}
    if reproduced is None:
        return known
    inside = reproduced.estimate.low <= number <= reproduced.estimate.high if percent and number is not None else None
    return known | {
        "ours": reproduced.estimate if percent else reproduced.estimate.value,
        "n": reproduced.n,
        "of": row.n,
        "inside": inside,
        "evaluations": reproduced.evaluations,
    }


def table_of(target: Target, rows) -> list[dict]:
    """The table of rows with numbers, in their order."""
    return [cells(row, target) | {"about": row.about} for row in rows if row.read or row.published is not None]


def text_table(target: Target, lines: list[dict]) -> pages.Table:
    """Columns that are empty throughout are left out."""
    shown = [{column: text(line, target) for column, text in COLUMNS.items()} for line in lines]
    columns = [column for column in COLUMNS if any(line[column] for line in shown)]
    return pages.Table(target.title, columns, [[line[column] for column in columns] for line in shown], target.note)


def published_text(line: dict, target: Target) -> str:
    value = line["published"]
    return "" if value is None else f"{100 * value:.1f} %" if target.unit == "%" else f"{value:,}"


def ours_text(line: dict, target: Target) -> str:
    return "" if "ours" not in line else pages.cell_text(line["ours"])


def n_text(line: dict, target: Target) -> str:
    if "n" not in line:
        return ""
    return f"{line['n']:,}" if line["n"] >= line["of"] else f"{line['n']:,} of {line['of']:,}"


def inside_text(line: dict, target: Target) -> str:
    return {True: "yes", False: "no", None: ""}[line.get("inside")]


def evaluations_text(line: dict, target: Target) -> str:
    return "" if line.get("evaluations") is None or target.unit != "%" else f"{line['evaluations']:,.0f}"


COLUMNS = {
    "method": lambda line, target: line["method"],
    "data": lambda line, target: line["data"],
    "learned from": lambda line, target: line["about"],
    "published": published_text,
    "ours (95 %)": ours_text,
    "n": n_text,
    "published inside": inside_text,
    "evaluations per image": evaluations_text,
}


def as_text(target: Target, lines: list[dict]) -> str:
    table = text_table(target, lines)
    return "\n".join([target.title, pages.plain(table), *([f"Note: {target.note}"] if target.note else [])]) + "\n"


def as_csv(target: Target, lines: list[dict]) -> str:
    return files.csv_text(figures.flat_rows([{name: cell for name, cell in line.items() if cell is not None} for line in lines]))


FORMATS = {
    "text": as_text,
    "markdown": lambda target, lines: pages.markdown(text_table(target, lines), "##"),
    "latex": lambda target, lines: pages.latex(text_table(target, lines)),
    "csv": as_csv,
}


# ---------------------------------------------------------------- what is missing


def missing_lines(left: list[tuple[Row, int]], ask: Ask) -> list[str]:
    """Every command with its price, and all of them together. left: as of Ask."""
    if not left:
        return ["Missing: nothing"]
    commands = "1 command" if len(left) == 1 else f"{len(left)} commands"
    lines = [f"  {reproduction.command_line(row.line(ask.most, ask.share))}\n    {ask.cost_text(price)}" for row, price in left]
    return [f"Missing: {commands}, at most {ask.cost_text(sum(price for _, price in left))}", *lines]


def run_missing(left: list[tuple[Row, int]], ask: Ask) -> int:
    """One command after the other; the exit code: of the one that was interrupted, 1 where one failed, else 0."""
    print("\n".join(missing_lines(left, ask)), flush=True)
    failed = []
    for number, (row, _) in enumerate(left, 1):
        line = row.line(ask.most, ask.share)
        print(f"\n[{number}/{len(left)}] {reproduction.command_line(line)}", flush=True)
        code = subprocess.run([sys.executable, *commands.start_of(line)]).returncode
        if code in STOPPED:
            return code if code > 0 else 128 - code
        failed += [f"{row.method}, {row.column}"] if code else []
    print()
    if failed:
        print(f"error: {len(failed)} of {len(left)} commands failed, see above: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


# ---------------------------------------------------------------- the command


def list_lines(ask: Ask) -> list[str]:
    """Every target: what is at hand of it, and the price of the rest."""
    lines = []
    for name, make in targets.TARGETS.items():
        target = make()
        commands = {row.made for row in target.rows if row.words}
        left = ask.left(target.rows)
        at_hand = f"{len(commands) - len(left)} of {len(commands)}"
        lines.append([name, target.title, at_hand, ask.cost_text(sum(price for _, price in left)) if left else "nothing"])
    return [pages.plain(pages.Table("", ["target", "what", "done", "missing, at most"], lines))]


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        check(args)
        ask = Ask(args.imgs_to_eval, (args.worker_idx, args.n_workers), args.rate)
        if args.target == LIST:
            print("\n".join(list_lines(ask)))
            return 0
        target = targets.TARGETS[args.target]()
        rows = rows_of(args.target, target, args.only)
    code = run_missing(ask.left(rows), ask) if args.run else 0
    with cli.bad_input():
        table = FORMATS[args.format](target, table_of(target, rows))
        if args.out:
            files.write_text(args.out, table)
    print(f"Table: {args.out}" if args.out else table, end="\n" if args.out else "")
    if args.format == "text" or args.out:
        print("\n".join(missing_lines(ask.left(rows), ask) + pictures(rows)))
    return code


def check(args) -> None:
    """Raises ValueError for options at odds."""
    if args.target == LIST:
        cli.refuse_idle(vars(args), [*WITHOUT_TABLE, "format"], "with list")
    if args.worker_idx >= args.n_workers:
        raise ValueError(f"--worker_idx {args.worker_idx} must be below --n_workers {args.n_workers}: workers count from 0")
    if args.out:
        files.try_file(args.out)


def pictures(rows) -> list[str]:
    there = [str(row.place) for row in rows if row.words and row.read is None and row.place.exists()]
    return [f"Made: {', '.join(there)}"] if there else []


if __name__ == "__main__":
    sys.exit(loop.run(main))
