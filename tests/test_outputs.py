"""What may be written: of every command with an option for a file, a regular file or none, no input, no file of a run."""

import json
import os
from pathlib import Path

import hostile
import pytest

from diffusion.utils import files, outputs

WRITERS = {c: [a for a in hostile.actions(c) if isinstance(a.type, outputs.Output)] for c in hostile.COMMANDS}
WRITERS = {command: actions for command, actions in WRITERS.items() if actions}
FILES_READ = {"--prompt_path", "--prompts", "--classes", "--fit", "--subset_path", "--level_weights", "--calibration"}


def refused(command: str, words, capsys) -> str:
    """The one line that a command's parse_args refuses these words with."""
    with pytest.raises(SystemExit) as stop:
        hostile.module_of(command).parse_args([word.replace("{image}", "0") for word in words])
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and errors.count("\n") == 1, errors
    return errors


def words(command: str, action, path, more=None) -> tuple[str, ...]:
    option = next((o for o in action.option_strings if o in hostile.GOOD[command]), action.option_strings[-1])
    return hostile.line(command, {option: str(path)} | (more or {}))


def suffix(action) -> str:
    return next(iter(action.type.suffixes), ".txt")


def place_link(path):
    path.with_name("there").write_text("kept")
    path.symlink_to("there")


def place_dangling(path):
    path.symlink_to("nowhere")


PLACES = {"link": place_link, "dangling link": place_dangling, "pipe": os.mkfifo, "directory": os.mkdir,
          "device": lambda path: path.symlink_to("/dev/null")}  # fmt: skip


@pytest.mark.parametrize("what", PLACES)
def test_no_command_writes_what_is_no_regular_file(what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command, actions in WRITERS.items():
        for action in actions:
            path = tmp_path / f"{command}_{action.dest}{suffix(action)}"
            PLACES[what](path)
            before = os.lstat(path)
            assert path.name in refused(command, words(command, action, path), capsys)
            assert os.lstat(path) == before


def test_no_command_writes_onto_an_input(tmp_path, monkeypatch, capsys):
    """Whatever the way to the file: by another spelling of its path, too."""
    monkeypatch.chdir(tmp_path)
    tried = 0
    for command, actions in WRITERS.items():
        inputs = [o for a in hostile.actions(command) for o in a.option_strings if o in FILES_READ and a.type in (None, Path)]
        positionals = [a for a in hostile.actions(command) if not a.option_strings and a.choices is None]
        for action in actions:
            path = tmp_path / f"same{suffix(action)}"
            path.write_text("kept")
            same = f"../{tmp_path.name}/{path.name}"
            places = {o: same for o in inputs} | {a: hostile.positional(command, a, same) for a in positionals}
            for more in ({o if isinstance(o, str) else "positional": value} for o, value in places.items()):
                assert "is an input of" in refused(command, words(command, action, path, more), capsys), more
                tried += 1
            assert path.read_text() == "kept"
    assert tried > 40


def test_two_outputs_of_one_name_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "one" in refused("print_acc", hostile.line("print_acc", {"--json": "one", "--csv": "./one"}), capsys)


def test_what_is_written_beside_is_no_input_either(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.csv").write_text("kept")
    line = hostile.line("plot_image", {"positional": "run", "--prompt_path": "out.csv"})
    assert "out.csv" in refused("plot_image", line, capsys)


@pytest.mark.parametrize("name", ["config.json", "0.pt", "12.pt", "features.npy", "head.safetensors"])
def test_no_command_writes_a_file_of_a_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"identity": {}}))
    for command, actions in WRITERS.items():
        for action in actions:
            if not action.type.suffixes or name.endswith(action.type.suffixes):
                assert name in refused(command, words(command, action, tmp_path / name), capsys)


def test_results_in_the_folder_of_a_run_that_begins(tmp_path):
    assert outputs.in_run(tmp_path / "config.json", tmp_path) and outputs.in_run(tmp_path / "sub" / ".." / "1.pt", tmp_path)
    assert not outputs.in_run(tmp_path / "results.json", tmp_path)


def test_what_lies_among_the_inputs_stays(tmp_path, monkeypatch, capsys):
    """A model's or a data set's folder is read whole; a new file in it harms nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    line = hostile.line("benchmark", {"--model_path": "model", "--json": "model/model_index.json"})
    assert "model_index.json" in refused("benchmark", line, capsys)
    new = hostile.line("benchmark", {"--model_path": "model", "--json": "model/new.json"})
    assert hostile.module_of("benchmark").parse_args(list(new)).json.name == "new.json"


def test_an_older_output_is_written_again(tmp_path):
    (tmp_path / "out.json").write_text("{}")
    (tmp_path / "64.pt").write_bytes(b"")  # named as a record is, and beside no config.json: of the published code
    outputs.check(tmp_path / "out.json", ["word", tmp_path / "in.json"], [tmp_path / "none"])
    with pytest.raises(ValueError, match=r"64\.pt"):
        outputs.check(tmp_path / "64.pt")


@pytest.mark.parametrize("make", [os.mkfifo, place_link])
def test_write_replaces_no_pipe_and_no_link(make, tmp_path):
    make(tmp_path / "out")
    with pytest.raises(OSError, match=r"pipe|link"):
        files.write_text(tmp_path / "out", "new")
    assert not list(tmp_path.glob(".*")) and files.irregular(tmp_path / "out")


@pytest.mark.parametrize("n", [250, 255])
def test_a_name_as_long_as_the_file_system_takes(n, tmp_path):
    files.write_text(tmp_path / ("n" * n), "whole")
    assert (tmp_path / ("n" * n)).read_text() == "whole" and len(list(tmp_path.iterdir())) == 1


def test_a_longer_name_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command, actions in WRITERS.items():
        for action in actions:
            name = "n" * (256 - len(suffix(action))) + suffix(action)
            assert "too long" in refused(command, words(command, action, name), capsys)
