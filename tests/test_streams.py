"""Readers that have read enough, streams that are closed or full, and Ctrl-C at any moment: never a traceback."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY_SD20, at_work, said, staged_record, write_run
from test_ranks import crew  # noqa: F401

from diffusion.runs import run_folder

RUN = ["--dataset", "fashion_mnist", "--model_path", TINY_SD20, "--img_size", "64", "--to_keep", "1", "--n_samples", "2"]
COMMANDS = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")))


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", [[[0.5], [0.7]], [[0.9], [0.7]]], [500], [0, 0])


def start(command, *argv, **how):
    words = [sys.executable, str(ROOT / command), *map(str, argv)]
    return subprocess.run(words, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **how)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["nowhere"]])
@pytest.mark.parametrize("script", ["print_acc", "print_dit_acc", "replay"])
def test_a_reader_that_has_gone(script, more, folder):
    """As `| head` leaves it, when it has what it wants."""
    reading, writing = os.pipe()
    os.close(reading)
    ended = start(f"scripts/{script}.py", folder, *more, stdout=writing)
    os.close(writing)
    if more:
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    else:
        assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.slow
def test_a_reader_that_goes_while_a_run_works():
    reading, writing = os.pipe()
    os.close(reading)
    ended = start("eval_prob_adaptive.py", *RUN, "--imgs_to_eval", 1, stdout=writing)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.slow
def test_a_full_standard_output_is_one_line(folder):
    with open("/dev/full", "w") as full:
        ended = start("scripts/print_acc.py", folder, stdout=full)
    assert ended.returncode == 1 and re.fullmatch("error: standard output: .*No space left on device\n", ended.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("closed", [(1,), (0,), (2,), (0, 1, 2)])
def test_closed_streams_are_nobodys(closed, folder):
    """No file of ours may get the number of a stream, and then hold what is printed."""

    def close():
        for number in closed:
            os.close(number)

    ended = start("scripts/print_acc.py", folder, "--json", "a.json", "--csv", "a.csv", preexec_fn=close, stdout=subprocess.PIPE)
    assert ended.returncode == 0 and ended.stderr == ""
    assert json.loads(Path("a.json").read_text())["n"] == 2 and Path("a.csv").read_text().startswith("index,")
    assert bool(ended.stdout) == (1 not in closed)


# ---------------------------------------------------------------- Ctrl-C

INTERRUPTED = """
import os, runpy, signal, sys
_, moment, handler, command = sys.argv
class Finder:
    def find_spec(self, name, *of):
        if name == moment:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
handlers = {"default": signal.default_int_handler, "ignored": signal.SIG_IGN}
signal.signal(signal.SIGINT, handlers[handler])  # whatever started the tests
sys.path[0] = os.path.dirname(command)
sys.argv = [command, "--help"]
runpy.run_path(command, run_name="__main__")
"""


def interrupted(module, how, command):
    words = [sys.executable, "-c", INTERRUPTED, module, how, str(ROOT / command)]
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_while_modules_load_is_silent(command):
    ended = interrupted("numpy", "default", command)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["dataclasses", "diffusion.cli", "diffusion.runs.loop", "diffusion.models.clip"])
def test_ctrl_c_at_other_moments(module):
    ended = interrupted(module, "default", "run_winoground.py")
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.slow
def test_where_a_shell_ignores_ctrl_c_a_command_does_too():
    """As for what runs in the background of a script."""
    ended = interrupted("numpy", "ignored", "eval_prob_adaptive.py")
    assert ended.returncode == 0 and "usage" in ended.stdout and ended.stderr == ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc to see what a process waits for")
@pytest.mark.parametrize("again", [1, 2])
def test_ctrl_c_twice_under_torchrun(again, forked, crew):  # noqa: F811
    """The terminal sends it to the whole group."""
    children = forked.start(crew(2), RUN)
    forked.wait_for_records(Path("data/fashion_mnist/v2-0_1trials_1keep_2samples_64"), 5, children)
    forked.wait_for(lambda: all(map(at_work, children)), children)
    for _ in range(1 + again):
        for child in children:
            os.kill(child, signal.SIGINT)
    assert set(forked.wait(children)) <= {128 + signal.SIGINT, -signal.SIGINT}
    for rank in (0, 1):
        assert "Traceback" not in said(rank)[1] and "Exception" not in said(rank)[1], said(rank)


# ---------------------------------------------------------------- closing lines


@pytest.mark.slow
def test_a_folder_with_more_images_than_the_command_is_told(run_main):
    import eval_prob_adaptive
    import eval_prob_dit

    adaptive = (eval_prob_adaptive.main, RUN)
    tiny = ["--model", "tiny", "--dataset", "fashion_mnist", "--t_interval", 500]
    for main, argv in (adaptive, (eval_prob_dit.main, tiny), (eval_prob_dit.main, [*tiny, "--cls", "3,5", "--save_per_class"])):
        for n, told in ((6, False), (2, True), (6, False)):
            code, out, err = run_main(main, *argv, "--imgs_to_eval", n)
            assert code == 0 and ("about the 2 images of this command, the report about all 6 records" in out) == told, out + err
            assert "Note: these lines" in out or not told


def test_zero_errors_are_compared_as_zero(run_main):
    """A relative difference of two zeros is 0, of one zero that from the other; never nan."""
    from conftest import load_script

    for name, errors in (("a", [0.0, 0.0, 0.5]), ("b", [0.0, 0.5, 0.25])):
        Path(name).mkdir()
        run_folder.save_record(Path(name) / "0.pt", staged_record([0], {0: errors}, [1, 2, 3], 0, 0))
    code, out, _ = run_main(load_script("compare_runs").main, "a", "b", "--json", "c.json")
    assert code == 0 and "nan" not in out and "inf" not in out
    assert json.loads(Path("c.json").read_text())["mean_relative_difference"] == (0 + 1 + 0.5) / 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_a_class(encoding, run_main):
    from conftest import load_script

    Path("names.txt").write_text("tench\ngöldfish\n", encoding=encoding)
    code, _, err = run_main(load_script("write_prompts").main, "fish", "--classes", "names.txt", "-o", "out")
    expected = "prompt,classname,classidx\na photo of a tench.,tench,0\na photo of a göldfish.,göldfish,1\n"
    assert code == 0 and Path("out/fish_prompts.csv").read_text(encoding="utf-8") == expected, err
