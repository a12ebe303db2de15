"""One command for everything: which scripts it lists, what it answers, and how commands are written for its users."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from test_architecture import COMMANDS, HEAVY

from diffusion import __version__
from diffusion.cli import parsing
from diffusion.datasets.prompts import read_prompts
from diffusion.paper import reproduction
from diffusion.utils import commands, paths

CALL = "import sys; sys.argv[0] = 'bin/diffusion-classifier'; from diffusion.__main__ import main; sys.exit(main())"


def start(*words, **more):
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {CALL}", *map(str, words)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def call(*words):
    """(exit code, standard output, standard error) of diffusion-classifier, in the test's own folder."""
    process = start(*words)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture
def behind(monkeypatch):
    """As if this process had been started by the command."""
    monkeypatch.setattr(commands, "starter", "diffusion-classifier")
    monkeypatch.setattr(sys, "argv", ["scripts/print_acc.py"])


# ---------------------------------------------------------------- list


def test_every_script_has_one_task():
    assert sorted(commands.NAMES) == sorted(command.removeprefix("scripts/").removesuffix(".py") for command in COMMANDS)
    assert {commands.file_of(name).relative_to(ROOT).as_posix() for name in commands.NAMES} == set(COMMANDS)


@pytest.mark.parametrize("name", commands.NAMES)
def test_its_line_is_how_its_docstring_begins(name):
    doc, line = ast.get_docstring(ast.parse(commands.file_of(name).read_text())), commands.line_of(name)
    assert doc.startswith(line) and re.match(r"[.:?]?\s", doc.removeprefix(line))
    assert 10 < len(line) <= 80 and line.count("(") == line.count(")")


def test_the_index_of_scripts_is_the_list():
    text = (ROOT / "scripts" / "README.md").read_text()
    assert re.findall(r"^## (\w+)$", text, re.M) == [task.capitalize() for task in commands.TASKS]
    rows = [(name, commands.line_of(name)) for name in commands.NAMES]
    assert re.findall(r"^\| \[(\w+)\]\(.*?\) \| (.*) \|$", text, re.M) == rows


def test_list_shows_all_and_needs_nothing_heavy():
    shown = f"import atexit, sys; atexit.register(lambda: print([name for name in {HEAVY!r} if name in sys.modules]))"
    words = [sys.executable, "-c", f"{shown}; sys.path.insert(0, {str(ROOT)!r}); {CALL}", "list"]
    done = subprocess.run(words, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and done.stderr == "" and lines[-1] == "[]"
    assert [line for line in lines if line in commands.TASKS] == list(commands.TASKS)
    assert [line.split()[0] for line in lines if line.startswith("  ")] == commands.NAMES


def test_a_reader_that_has_read_enough_is_no_error():
    process = start("list")
    process.stdout.close()
    assert process.wait() == 141 and process.stderr.read() == ""
    process.stderr.close()


# ---------------------------------------------------------------- other answers


def test_the_version_is_the_same_everywhere():
    assert call("--version") == (0, f"diffusion-classifier {__version__}\n", "")
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {__version__}\n" in (ROOT / "HISTORY.md").read_text()


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_shows_examples(words):
    code, out, err = call(*words)
    assert code == 0 and err == "" and "  diffusion-classifier list\n" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["clasify"], "'clasify': did you mean classify? `diffusion-classifier list` shows all"),
        (["eval-prob-dit.py"], "did you mean eval_prob_dit"),
        (["scripts/print_acc.py", "RUN"], "did you mean print_acc"),
        (["--versoin"], "did you mean --version"),
        (["q"], "there is no command 'q': `diffusion-classifier list` shows all"),
        ([""], "there is no command ''"),
        (["list", "all of"], "list takes nothing else: leave out 'all of'"),
    ],
)
def test_words_that_are_no_command(words, told):
    code, out, err = call(*words)
    assert code == 2 and out == "" and err.startswith("error: ") and told in err and err.count("\n") == 1


# ---------------------------------------------------------------- a script behind the command


def test_a_script_s_help_says_how_it_was_called():
    code, out, _ = call("print_acc", "--help")
    assert code == 0 and out.startswith("usage: diffusion-classifier print_acc [-h]")
    assert "\ndiffusion-classifier print_acc RUN --level_weights weights.json\n" in out and ".py RUN" not in out


def test_a_script_s_errors_and_exit_code_are_its_own():
    code, _, err = call("print_acc", "none")
    assert code == 2 and err.count("\n") == 1 and "none" in err
    code, _, err = call("eval_prob_adaptive", "--dataset", "fashion_mnist", "--version", "tiny", "--strategy", "race_calibrated")
    assert (
        code == 2
        and err == "error: --strategy race_calibrated needs --race_fit FILE, which diffusion-classifier fit_race writes\n"
    )


def test_the_python_module_is_the_same_command():
    words = [sys.executable, "-m", "diffusion", "print_acc", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m diffusion print_acc [-h]")


def test_a_script_is_noted_as_it_was_called(behind):
    args = parsing.Parser("a script").parse_args([])
    assert args.command == "diffusion-classifier print_acc"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("python scripts/print_acc.py a b", "diffusion-classifier print_acc a b"),
        ("python eval_prob_dit.py", "diffusion-classifier eval_prob_dit"),
        ("a fit of scripts/calibrate.py --fit", "a fit of diffusion-classifier calibrate --fit"),
        ("as eval_prob_dit.py and the published print_dit_acc.py", "as eval_prob_dit.py and the published print_dit_acc.py"),
        ("my_scripts/report.py, scripts/own.py, python own.py", "my_scripts/report.py, scripts/own.py, python own.py"),
    ],
)
def test_commands_in_texts(behind, text, told):
    assert commands.typed(text) == told


def test_the_extra_is_named_as_pip_finds_it(behind, monkeypatch):
    assert commands.typed("pip install '.[demo]'") == "pip install '.[demo]'"
    monkeypatch.setattr(paths, "CLONE", False)
    assert commands.typed("pip install '.[demo]'") == "pip install 'diffusion-classifier-suite[demo]'"


def test_commands_in_texts_of_a_clone():
    assert commands.starter is None and commands.typed("python scripts/print_acc.py") == "python scripts/print_acc.py"


def test_what_reproduce_starts(behind, monkeypatch):
    line = ("scripts/eval_clip.py", "--dataset", "pets")
    assert reproduction.command_line(line) == "diffusion-classifier eval_clip --dataset pets"
    assert commands.start_of(line) == ["-m", "diffusion", "eval_clip", "--dataset", "pets"]
    monkeypatch.setattr(commands, "starter", None)
    assert commands.start_of(line) == [str(ROOT / "scripts" / "eval_clip.py"), "--dataset", "pets"]


# ---------------------------------------------------------------- files that ship


def test_shipped_files_are_found_from_any_folder(tmp_path):
    name = "prompts/pets_prompts.csv"
    assert paths.at_hand(name) == ROOT / name and len(read_prompts(name).prompts) == 37
    own = tmp_path / "prompts" / "pets_prompts.csv"
    own.parent.mkdir()
    own.write_text("prompt,classname,classidx\na cat,cat,0\n")
    assert read_prompts(name).prompts == ["a cat"]
    assert str(paths.at_hand("prompts/none.csv")) == "prompts/none.csv"


def test_what_ships_is_written_anew_in_its_place_or_here(monkeypatch):
    assert paths.made_anew(paths.TREES) == ROOT / "shipped" / "trees"
    monkeypatch.setattr(paths, "CLONE", False)
    assert str(paths.made_anew(paths.TREES)) == "shipped/trees"
