"""Bad input of every kind to every command: one line that names the flag or the file, exit code 2, nothing written.

The rows are made in tests/hostile.py from the parsers. What argparse refuses is tried here; each other row runs the whole command
in a process of its own, forked from one that has imported everything, with limits on memory and time.
"""

import argparse
import contextlib
import io
from collections import Counter
from pathlib import Path

import hostile
import hostile_files
import pytest
import worlds
from conftest import Forked, said
from hostile import Row

from diffusion.cli import parsing

ROWS = hostile.all_rows()
MODULES = [
    "scipy.io",
    "scipy.stats",
    "scipy.optimize",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "open_clip",
    "datasets",
    "pandas",
    "torchvision.datasets",
    "diffusers.models",
    "safetensors.torch",
    "tokenizers",
    "DiT.models",
    *hostile.SCRIPTS,
]
LIMITS = {"memory": 4 << 30, "seconds": 20}  # beyond what the server has; of CPU time


@pytest.fixture(scope="session")
def light():
    """Starts commands from a process without torch, which most command lines do not come to: a fork takes a tenth."""
    started = Forked(*hostile.COMMANDS)
    yield started
    started.end()


@pytest.fixture(scope="session")
def world(forked):
    """The folder of good and bad files."""
    forked.ask(load=MODULES)
    with kept_world(forked) as folder:
        yield folder


def kept_world(forked):
    def run_command(command, words, at):
        children = forked.ask(command=command, argv=words, folder=str(at), environments=[{}])
        assert forked.wait(children) == [0], (at / "err.0").read_text()

    return worlds.world(worlds.key(), lambda folder: hostile_files.build(folder, run_command))


def execute(row: Row, world: Path, forked) -> tuple[int, str]:
    """Its exit code and what it has printed as errors; the words of the row find their places here."""
    image = min(int(path.stem) for path in (world / "grid run").glob("*.pt"))
    argv = [place(word, world).replace("{image}", str(image)) for word in row.argv]
    environment = {"LOG_DIR": "logs"} | {name: place(value, world) for name, value in row.environment.items()}
    [code] = forked.wait(
        forked.ask(command=row.command, argv=argv, folder=str(Path.cwd()), environments=[environment], limits=LIMITS)
    )
    return code, said()[1]


def place(word: str, world: Path) -> str:
    return str(world / word[1:]) if word.startswith("@") else word


def fault_of(row: Row, code: int, errors: str, told: list[str], left: list[str]) -> str | None:
    """What is wrong with how a row ended; None for nothing."""
    last = errors.strip().rpartition("\n")[2][:150]
    if "Traceback" in errors or code < 0:
        return f"signal {-code}" if code < 0 else f"traceback: {last}"
    if row.wanted:
        return None if code == 0 else f"refused: {last}"
    if code == 0:
        return "accepted"
    if code != 2:
        return f"exit {code}: {last}"
    if errors.count("\n") != 1:
        return f"{errors.count(chr(10))} lines: {last}"
    if left:
        return f"written: {', '.join(left)[:100]}"
    return None if any(part in errors for part in told) else f"names neither flag nor file: {last}"


def left() -> list[str]:
    """What a command has written."""
    return [str(path) for path in Path().rglob("*") if path.name not in ("out.0", "err.0")]


def outcome(row: Row, world: Path, forked) -> str | None:
    code, errors = execute(row, world, forked)
    return fault_of(row, code, errors, [place(part, world) for part in row.told], left())


def refusal(row: Row) -> str | None:
    """As outcome, in this process: what the command's parse_args makes of the words."""
    code, errors = 0, io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            hostile.module_of(row.command).parse_args([word.replace("{image}", "0") for word in row.argv])
    except SystemExit as stop:
        code = stop.code
    return fault_of(row, code, errors.getvalue(), row.told, left())


@pytest.mark.parametrize("command", hostile.COMMANDS)
def test_what_argparse_refuses_is_one_line(command):
    rows = hostile.refused_rows(command)
    assert rows and {row.id: fault for row in rows if (fault := refusal(row))} == {}


@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_bad_input_is_one_line(row, world, forked, light):
    fault = outcome(row, world, light if row.light else forked)
    assert fault is None, said()[1][-1500:]


@pytest.mark.parametrize("command", [command for command in hostile.COMMANDS if command not in hostile.LONG])
def test_the_lines_that_rows_change_work(command, world, forked):
    """Else a row could be refused for something else than its fault."""
    code, errors = execute(Row(command, "good", hostile.line(command, {}), ()), world, forked)
    assert code == 0, errors


# ---------------------------------------------------------------- the table itself


def test_every_option_is_in_the_table():
    """What argparse takes of it: each fault on some command, and one on every command that has the option."""
    assert len(ROWS) >= 300 and max(Counter(row.id for row in ROWS).values()) == 1
    somewhere = {row.name for row in ROWS}
    for command in hostile.COMMANDS:
        here = {row.name for row in ROWS if row.command == command}
        for action in hostile.actions(command):
            rows = hostile.rows_of(command, action).values()
            taken = {row.name for row in rows if row.parsed}
            assert rows and taken <= somewhere and (not taken or taken & here), f"{command} {hostile.name_of(action)}"


def test_an_option_that_says_not_what_it_names_is_told(monkeypatch):
    parser = parsing.Parser("")
    known, unknown = parser.add_argument("--n", type=parsing.at_least(1)), parser.add_argument("--colours_path")
    assert hostile.kind_of("report", known) == "integer"
    with pytest.raises(LookupError, match=r"report --colours_path: add a line to TYPES .* or NAMED .* in tests/hostile.py"):
        hostile.kind_of("report", unknown)
    monkeypatch.setitem(hostile.NAMED, "colours_path", "noise")
    assert {"missing", "nan", "cut"} <= hostile.bad_values("report", unknown).keys()
    assert isinstance(known, argparse.Action)


@pytest.mark.parametrize(
    ("code", "errors", "left", "fault"),
    [
        (2, "error: --n 0 must be 1\n", [], None),
        (2, "error: must be 1\n", [], "names neither"),
        (2, "error: --n 0 must be 1\n", ["logs"], "written"),
        (2, "note\nerror: --n 0 must be 1\n", [], "2 lines"),
        (1, "error: --n 0 must be 1\n", [], "exit 1"),
        (0, "", [], "accepted"),
        (1, "Traceback (most recent call last):\nKeyError: 'n'\n", [], "traceback: KeyError"),
        (-9, "", [], "signal 9"),
    ],
)
def test_a_row_can_fail(code, errors, left, fault):
    found = fault_of(Row("report", "--n zero", (), ("--n",)), code, errors, ["--n"], left)
    assert found is None if fault is None else found.startswith(fault)
