"""The rooms: imports point down, --help needs nothing heavy, and what the README shows can be typed."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, load_script

LEVELS = (
    {
        "paths",
        "schedule",
        "scores",
        "metrics",
        "transforms",
        "prompts",
        "noise",
        "scenes",
        "hardware",
        "shared_unet",
        "team",
        "pages",
    },
    {"hub_images", "imagenet_variants"},  # siblings that only datasets.py opens
    {"kernel", "elimination", "runlog", "datasets", "winoground", "sharding", "loader"},
    {"models", "baselines", "tables"},
    {"cli", "figures", "strategy", "summary", "training"},
    {"rerun", "session"},
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
HEAVY = ("torch", "torchvision", "diffusers", "transformers", "open_clip", "datasets", "pandas")


def imports(source):
    """What a source imports, at its top or inside a function: our rooms and commands by bare name, "DiT", and other packages."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module == "diffusion"):
            found |= {f"diffusion.{node.module or alias.name}" for alias in node.names if node.module != "diffusion"}
            found |= {f"diffusion.{alias.name}" for alias in node.names if node.module == "diffusion"}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def rooms_of(source):
    return {name.split(".")[1] for name in imports(source) if name.startswith("diffusion.")}


def packages_of(source):
    return {name.split(".")[0] for name in imports(source)}


ENTRIES = {path.stem for path in (*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py"))}


def upward(name, source):
    """Imports of a room that do not point down."""
    wrong = {other for other in rooms_of(source) if LEVEL[other] >= LEVEL[name]}
    return wrong | (packages_of(source) & (ENTRIES | ({"DiT"} if name != "models" else set())))


def test_imports_point_down():
    rooms = {path.stem: path.read_text() for path in (ROOT / "diffusion").glob("*.py") if path.stem != "__init__"}
    assert set(rooms) == set(LEVEL), "every room has a level here and in docs/design.md"
    assert {name: upward(name, source) for name, source in rooms.items() if upward(name, source)} == {}


def test_commands_and_scripts_do_not_import_each_other():
    files = [*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")]
    assert [path.name for path in files if packages_of(path.read_text()) & ENTRIES] == []


def test_dit_imports_nothing_of_ours():
    assert [path.name for path in (ROOT / "DiT").glob("*.py") if packages_of(path.read_text()) & {"diffusion", *ENTRIES}] == []


@pytest.mark.parametrize(
    ("name", "source", "wrong"),
    [
        ("schedule", "from diffusion.kernel import epsilon_errors", {"kernel"}),
        ("schedule", "def f():\n    from diffusion import noise", {"noise"}),
        ("kernel", "import diffusion.models", {"models"}),
        ("cli", "import eval_prob_adaptive", {"eval_prob_adaptive"}),
        ("cli", "from diffusion import metrics, runlog", set()),
        ("cli", "from .elimination import run_stages", set()),
        ("metrics", "from . import runlog", {"runlog"}),
        ("kernel", "from DiT.models import DiT", {"DiT"}),
        ("hub_images", "import datasets", set()),  # Hugging Face's, not our room
    ],
)
def test_the_import_check_can_fail(name, source, wrong):
    assert upward(name, source) == wrong


COMMANDS = sorted(p.relative_to(ROOT).as_posix() for p in (*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")))


HELP = f"""
import os, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
commands, sys.argv = sys.argv[1:], ["x", "--help"]
for number, command in enumerate(commands):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    os.dup2(os.open(f"help.{{number}}", os.O_WRONLY | os.O_CREAT), 1)
    code = None
    try:
        runpy.run_path(command, run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    print("exit code and heavy imports:", code or 0, [name for name in {HEAVY!r} if name in sys.modules], flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def help_of(tmp_path_factory):
    """command -> what it prints for --help, and a line with its exit code and heavy imports; all forked from a bare Python."""
    folder = tmp_path_factory.mktemp("help")
    words = [sys.executable, "-c", HELP, *(str(ROOT / command) for command in COMMANDS)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return {command: (folder / f"help.{number}").read_text() for number, command in enumerate(COMMANDS)}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command, help_of):
    *text, last = help_of[command].splitlines()
    assert last == "exit code and heavy imports: 0 []"
    assert re.search("python (scripts/|eval|run)", "\n".join(text))  # an example to copy


# ---------------------------------------------------------------- README


def commands_of(text):
    """argv of every `python x.py ...` or `uv run x.py ...` line in the README's code blocks, continuation lines joined."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)).replace("\\\n", " ")
    words = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    for line in words:
        for part in " ".join(shlex.quote(w) if w != "&&" else w for w in line).split("&&"):
            argv = [word for word in shlex.split(part) if word != "&"]
            start = next((i for i, w in enumerate(argv) if w.endswith(".py")), None)
            if start is not None:
                yield argv[start:]


def test_every_command_in_the_readme_parses():
    found = list(commands_of((ROOT / "README.md").read_text()))
    assert len(found) >= 8
    for script, *argv in found:
        assert (ROOT / script).is_file(), script
        module = load_script(Path(script).stem) if script.startswith("scripts/") else __import__(Path(script).stem)
        module.parse_args(argv)


def test_the_losses_offered_are_the_scores_there_are():
    from diffusion import cli, scores

    assert tuple(scores.SCORES) == cli.LOSSES


def test_dependencies_are_written_once():
    conda = (ROOT / "environment.yml").read_text()
    assert "-r requirements.txt" in conda and "torch" not in conda
    assert "requirements.txt" in (ROOT / "pyproject.toml").read_text()
