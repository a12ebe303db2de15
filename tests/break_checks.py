"""Breaks every check that the table of bad inputs guards, one after another, and says which row notices. Run by hand:

    python tests/break_checks.py
    python tests/break_checks.py --only parsing

A check is a `raise` of ours, or the type or the choices of an option. First all rows run, and it is noted which checks refuse
something there. Then each of these checks lets everything pass, and rows that it refused run again until one fails: that break is
caught. The modules are compiled with `if holds(...)` before each raise, so that an environment variable breaks one.
"""

import argparse
import ast
import builtins
import dataclasses
import os
import sys
import tempfile
from importlib.machinery import SourceFileLoader
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = tuple(str(ROOT / folder) for folder in ("diffusion", "DiT", "scripts", "eval_prob", "run_winoground"))
BROKEN, REACHED, COMMAND = "CHECK_BROKEN", "CHECKS_REACHED", "CHECKS_OF"  # in the environment of a command
TRIES = 12  # rows for one check


def holds(check: str) -> bool:
    """Whether this check is in force; that it has been reached is noted."""
    if REACHED in os.environ:
        with open(os.environ[REACHED], "a") as file:
            file.write(f"{check}\n")
    return os.environ.get(BROKEN) != check


class Breakable(ast.NodeTransformer):
    """Puts `if holds("file:line"):` before each raise but those that only hand on what they caught."""

    def __init__(self, name: str):
        self.name = name

    def visit_Raise(self, node):
        if node.exc is None:
            return node
        test = ast.Call(ast.Name("holds", ast.Load()), [ast.Constant(f"{self.name}:{node.lineno}")], [])
        return ast.copy_location(ast.If(test, [node], []), node)


def install() -> None:
    """Makes all our modules that are imported after it breakable, and the types and choices of options."""
    builtins.holds = holds
    compiled = SourceFileLoader.get_code

    def get_code(loader, name):
        if not loader.path.startswith(PRODUCT):
            return compiled(loader, name)
        tree = Breakable(str(Path(loader.path).relative_to(ROOT))).visit(ast.parse(Path(loader.path).read_bytes()))
        return compile(ast.fix_missing_locations(tree), loader.path, "exec", dont_inherit=True)

    SourceFileLoader.get_code = get_code
    for method in ("_get_value", "_check_value"):
        setattr(argparse.ArgumentParser, method, of_option(getattr(argparse.ArgumentParser, method), method))


def of_option(method, name: str):
    def checked(parser, action, value):
        try:
            return method(parser, action, value)
        except argparse.ArgumentError:
            option = (action.option_strings or [action.dest])[-1]
            if holds(f"{os.environ.get(COMMAND)} {option} {'type' if name == '_get_value' else 'choices'}"):
                raise
            return value

    return checked


# ---------------------------------------------------------------- rows


class Table:
    """All rows, each of which runs with one check broken or none."""

    def __init__(self, world: Path, forked, light):
        import hostile

        refused = [row for command in hostile.COMMANDS for row in hostile.refused_rows(command)]
        self.rows = [*refused, *hostile.all_rows()]  # in the order of what they cost
        self.n_refused = len(refused)
        self.world, self.forked, self.light = world, forked, light

    def fault(self, number: int, **environment) -> str | None:
        """What is wrong with how a row ended; None for nothing."""
        import test_hostile

        row = self.rows[number]
        environment[COMMAND] = row.command
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            if number >= self.n_refused:
                row = dataclasses.replace(row, environment=row.environment | environment)
                found = test_hostile.outcome(row, self.world, self.light if row.light else self.forked)
            else:
                found = self.fault_here(row, environment)
            os.chdir(ROOT)
        return found

    def fault_here(self, row, environment: dict) -> str | None:
        import test_hostile

        os.environ |= environment
        try:
            return test_hostile.refusal(row)
        except Exception as error:  # of a command that goes on with what nobody has checked
            return f"traceback: {type(error).__name__}: {error}"
        finally:
            for name in environment:
                del os.environ[name]

    def reached(self, number: int) -> set[str]:
        """The checks that refuse something where nothing is broken."""
        with tempfile.NamedTemporaryFile("r") as file:
            fault = self.fault(number, **{REACHED: file.name})
            if fault:
                print(f"fails with all checks in force: {self.rows[number].id}: {fault}", flush=True)
            return set(file.read().splitlines())


def check_all(table: Table, only: str) -> None:
    """Prints a line for each check, and how many breaks are caught."""
    from tqdm import tqdm

    reach: dict[str, list[int]] = {}
    for number in tqdm(range(len(table.rows)), unit="row"):
        for check in table.reached(number):
            reach.setdefault(check, []).append(number)
    chosen, caught = [check for check in sorted(reach) if only in check], 0
    for check in chosen:
        told = next(filter(None, (table.fault(number, **{BROKEN: check}) and table.rows[number].id
                                  for number in reach[check][:TRIES])), None)  # fmt: skip
        caught += told is not None
        print(f"{check}: {'caught by ' + told if told else 'NOT caught'}", flush=True)
    print(f"{caught} of {len(chosen)} breaks are caught, by {len(table.rows):,} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="checks with this in their name")
    args = parser.parse_args()
    install()
    with tempfile.TemporaryDirectory() as folder:
        start = f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\nimport break_checks\nbreak_checks.install()\n"
        Path(folder, "sitecustomize.py").write_text(start)
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        import hostile
        import test_hostile
        from conftest import Forked

        os.environ["PYTHONPATH"] = folder
        forked, light = Forked("preload"), Forked(*hostile.COMMANDS)
        forked.ask(load=test_hostile.MODULES)
        with test_hostile.kept_world(forked) as world:
            check_all(Table(world, forked, light), args.only)
        forked.end()
        light.end()


if __name__ == "__main__":
    main()
