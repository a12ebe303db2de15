"""No test reads what only some machines have: no file outside the repository, its environment and the temporary folder."""

import json
import subprocess
import sys
from pathlib import Path

import inside
import pytest
from conftest import said

from diffusion.paper import targets

ELSEWHERE = targets.DEBIANS / "train-images-idx3-ubyte.gz"  # of a package that a machine has or not


@pytest.mark.parametrize("path", [ELSEWHERE, Path("/file of nobody")])
def test_a_file_outside_is_not_opened(path):
    with pytest.raises(inside.Outside, match=f"{path} is outside the repository"):
        path.open()


def test_nor_is_a_folder_listed():
    with pytest.raises(inside.Outside):
        list(targets.DEBIANS.iterdir())


def test_what_is_written_here_and_what_is_installed_is_read(tmp_path):
    (tmp_path / "a.json").write_text("1")
    assert json.loads((tmp_path / "a.json").read_text()) == 1 and Path(json.__file__).read_text()
    assert Path(__file__).read_text() and list(Path(__file__).parent.iterdir())


def test_a_python_that_a_test_starts_is_held_too():
    ended = subprocess.run([sys.executable, "-c", f"open({str(ELSEWHERE)!r})"], capture_output=True, text=True)
    assert ended.returncode == 1 and "inside.Outside" in ended.stderr


def test_a_command_that_is_forked_is_held_too(forked):
    assert forked.run([{}], ["--options", ELSEWHERE]) == [1] and "inside.Outside" in said()[1]
