"""Values that no option can take, whatever its type: empty ones, numbers that no machine holds, names that lead out of LOG_DIR.

Every option of every command is in the table of tests/hostile.py.
"""

import argparse
from pathlib import Path

import pytest
from conftest import TINY_SD20
from hostile import module_of

from diffusion import cli
from diffusion.cli import parsing
from diffusion.models.speed import devices


@pytest.mark.parametrize("kind", [str, int, Path, parsing.at_least(1), parsing.how_many, parsing.class_ranges])
@pytest.mark.parametrize("words", [["--new", ""], ["--new="], ["--new", "  "], ["-n", ""]])
def test_whatever_the_type_of_a_new_flag(kind, words, capsys):
    parser = parsing.Parser("")
    parser.add_argument_group("a group").add_argument("--new", "-n", type=kind, nargs="+")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(words)
    assert "--new" in capsys.readouterr().err and parser.parse_args([]).new is None


def test_a_home_folder_that_the_shell_left_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = parsing.Parser("")
    parser.add_argument("--place", type=Path, nargs="+")
    parser.add_argument("--label")
    args = parser.parse_args(["--place", "~/a b", "c~/d", "--label=~"])
    assert (args.place, args.label) == ([tmp_path / "a b", Path("c~/d")], "~")


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


def test_integers_are_those_of_numpy_and_seeds_those_of_torch():
    assert parsing.at_least(1)(str(2**63 - 1)) == 2**63 - 1 and parsing.seed(str(2**64 - 1)) == 2**64 - 1
    for kind, number in ((parsing.at_least(1), 2**63), (parsing.seed, 2**64), (parsing.seed, -1)):
        with pytest.raises(argparse.ArgumentTypeError, match=f"or (less|more), not {number}"):
            kind(str(number))


def test_the_limit_is_the_memory_of_this_machine(monkeypatch):
    """32 pairs of 4 x 8 x 8 elements and 10 errors each, all of four bytes."""
    monkeypatch.setattr(devices, "memory", lambda device: 32 * (256 + 10) * 4)
    cli.check_pairs(8, 4, 10, (4, 8, 8))
    with pytest.raises(ValueError, match="--n_trials 8, 40 "):
        cli.check_pairs(8, 5, 10, (4, 8, 8))


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
