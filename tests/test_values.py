"""Values that no option can take: empty ones, numbers that no machine holds, names that would lead out of LOG_DIR.

The cases are made from the parsers themselves, so that a new flag is covered.
"""

import importlib
from pathlib import Path

import pytest
from conftest import ROOT, TINY_SD20, load_script

from diffusion import cli, parsing
from diffusion.models import devices

ENTRIES = sorted(path.stem for path in ROOT.glob("*.py"))
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))


class Caught(Exception):
    """Carries a parser out of the parse_args that made it."""


def module_of(command):
    return importlib.import_module(command) if command in ENTRIES else load_script(command)


def parser_of(module, monkeypatch):
    def leave(self, *words):
        raise Caught(self)

    with monkeypatch.context() as patch:
        patch.setattr(parsing.Parser, "parse_args", leave)
        with pytest.raises(Caught) as caught:
            module.parse_args([])
    return caught.value.args[0]


def with_values(parser):
    """Every option and positional argument that takes text."""
    return [action for action in parser._actions if action.nargs != 0]


@pytest.mark.parametrize("command", ENTRIES + SCRIPTS)
def test_no_option_of_any_command_takes_an_empty_value(command, monkeypatch, capsys):
    module = module_of(command)
    actions = with_values(parser_of(module, monkeypatch))
    assert actions
    for action in actions:
        for empty in ("", "  "):
            words = [f"{flag}={empty}" for flag in action.option_strings if flag.startswith("--")] or [empty]
            for word in words:
                with pytest.raises(SystemExit) as stop:
                    module.parse_args([word])
                err = capsys.readouterr().err
                assert stop.value.code == 2 and err.count("\n") == 1 and "empty" in err, (word, err)
                assert not action.option_strings or action.option_strings[0] in err, (word, err)


@pytest.mark.parametrize("kind", [str, int, Path, parsing.at_least(1), parsing.how_many, parsing.class_ranges])
@pytest.mark.parametrize("words", [["--new", ""], ["--new="], ["-n", ""]])
def test_whatever_the_type_of_a_new_flag(kind, words, capsys):
    parser = parsing.Parser("")
    parser.add_argument_group("a group").add_argument("--new", "-n", type=kind, nargs="+")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(words)
    assert "--new" in capsys.readouterr().err and parser.parse_args([]).new is None


def test_what_was_given_is_known_apart_from_defaults():
    parser = parsing.Parser("")
    parser.add_argument("--on", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    assert parser.parse_args(["--seed", "0"]).given == {"seed"} and parser.parse_args(["--on"]).given == {"on"}
    assert parser.parse_args([]).given == frozenset()


# ---------------------------------------------------------------- too large

TINY = ["--version", "tiny", "--dataset", "fashion_mnist"]
TINY_DIT = ["--model", "tiny", "--dataset", "fashion_mnist"]
PAIRS = ["--version", "tiny", "--dataset", "tiny_pairs"]
HUGE = (10**9, 10**15, 2**63 - 1)


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("eval_prob_adaptive", [*TINY, "--n_trials"]),
        ("eval_prob_adaptive", [*TINY, "--strategy", "race", "--n_trials"]),
        ("eval_prob_dit", [*TINY_DIT, "--n_trials"]),
        ("eval_prob_dit", [*TINY_DIT, "--to_keep", 1, "--n_samples", 1, "--n_trials"]),
        ("run_winoground", [*PAIRS, "--n_trials"]),
        ("run_winoground", [*PAIRS, "--t_interval", 1000, "--n_trials"]),
        ("save_noise", ["--n"]),
        ("save_noise", ["--channels"]),
        ("benchmark", ["--prompts"]),
    ],
)
def test_what_no_memory_holds_is_told_before_it_is_allocated(command, argv, number, run_main):
    code, _, err = run_main(module_of(command).main, *argv, number)
    assert code == 2 and err.count("\n") == 1 and " GB" in err and f"{argv[-1]} {number}" in err, err
    assert not list(Path().iterdir())


@pytest.mark.parametrize("number", [2**63, 10**30, 10**400, "9" * 5000])
@pytest.mark.parametrize("command", ENTRIES + SCRIPTS)
def test_no_option_takes_an_integer_that_numpy_does_not(command, number, monkeypatch, capsys):
    module = module_of(command)
    for action in with_values(parser_of(module, monkeypatch)):
        if getattr(action.type, "__qualname__", "").startswith("at_least") and action.dest != "seed":
            with pytest.raises(SystemExit) as stop:
                module.parse_args([f"{action.option_strings[0]}={number}"])
            err = capsys.readouterr().err
            assert stop.value.code == 2 and err.count("\n") == 1 and action.option_strings[0] in err, err


def test_the_limit_is_the_memory_of_this_machine(monkeypatch):
    """32 pairs of 4 x 8 x 8 elements and 10 errors each, all of four bytes."""
    monkeypatch.setattr(devices, "memory", lambda device: 32 * (256 + 10) * 4)
    cli.check_pairs(8, 4, 10, (4, 8, 8))
    with pytest.raises(ValueError, match="--n_trials 8, 40 "):
        cli.check_pairs(8, 5, 10, (4, 8, 8))


@pytest.mark.parametrize("text", ["0-9999999999", "5,0-1000000", f"0-{10**30}", "-1", "3-1", "1-2-3", "x", ","])
def test_class_ranges_are_counted_before_they_are_written_out(text, capsys, run_main):
    code, _, err = run_main(module_of("eval_prob_dit").main, *TINY_DIT, f"--cls={text}")
    assert code == 2 and err.count("\n") == 1 and "--cls" in err and not list(Path().iterdir())


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30, "1e3", 1.5])
@pytest.mark.parametrize(("command", "argv"), [("eval_prob_adaptive", TINY), ("eval_prob_dit", TINY_DIT), ("save_noise", [])])
def test_seeds_are_those_of_torch(command, argv, seed, run_main):
    code, _, err = run_main(module_of(command).main, *argv, f"--seed={seed}")
    assert code == 2 and err.count("\n") == 1 and "--seed" in err and not list(Path().iterdir())


# ---------------------------------------------------------------- out of LOG_DIR


@pytest.mark.parametrize("name", ["/../../escaped", "../x", "a/b", "/", "a\\b", "new\nline", "\x1b[0m"])
@pytest.mark.parametrize(
    ("command", "argv"), [("eval_prob_adaptive", TINY), ("eval_prob_dit", TINY_DIT), ("run_winoground", PAIRS)]
)
def test_no_name_leads_out_of_the_folder_of_runs(command, argv, name, run_main):
    for flag in ("--extra", "--version") if command == "eval_prob_adaptive" else ("--extra",):
        code, _, err = run_main(module_of(command).main, *argv, flag, name, "--dry_run")
        assert code == 2 and err.count("\n") == 1 and flag in err, err


def test_a_version_of_pairs_with_slashes_stays_in_one_folder(run_main):
    argv = ["--dataset", "tiny_pairs", "--model_path", TINY_SD20, "--img_size", 64, "--t_interval", 100, "--dry_run"]
    code, out, err = run_main(module_of("run_winoground").main, *argv, "--version", "a/../../b")
    assert code == 0 and "Run folder: data/tiny_pairs/sd_va_.._.._b_t100_1trials" in out, err
