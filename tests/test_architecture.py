"""The map: imports point down, --help needs nothing heavy, and what the README shows can be typed."""

import ast
import importlib
import itertools
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import hostile
import pytest
from conftest import ROOT, load_script

from diffusion import models

HEAVY = ("torch", "torchvision", "diffusers", "transformers", "open_clip", "datasets", "pandas")
PACKAGE = ROOT / "diffusion"


def module_name(path):
    """`models.loading.hub` of diffusion/models/loading/hub.py, `models` of diffusion/models/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


OUTSIDE = (PACKAGE / "__init__.py", PACKAGE / "__main__.py")  # the version, and the command that starts the others
MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py") if path not in OUTSIDE}
ENTRIES = {path.stem for path in (*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py"))}


def imports(source, module=""):
    """Dotted names that a source imports, at its top or inside a function; module: where relative imports start from."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node.module, node.level, module)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def absolute(name, level, module):
    """The module of a from-import; with a level, below the package that the importing module is in."""
    if not level:
        return name
    package = ["diffusion", *module.split(".")]
    package = package if module in MODULES and MODULES[module].name == "__init__.py" else package[:-1]
    return ".".join([*package[: len(package) - level + 1], *([name] if name else [])])


def module_of(name):
    """The module that a dotted name below `diffusion.` is in, or None."""
    parts = name.split(".")[1:]
    return next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in MODULES), None)


def modules_of(source, module=""):
    return {module_of(name) for name in imports(source, module) if name.startswith("diffusion.")} - {None, module}


def packages_of(source):
    return {name.split(".")[0] for name in imports(source)}


def table_of(text):
    """folder -> level, of the lines `| `folder` | what is in it | level |` of docs/dev/design.md."""
    return {folder: int(level) for folder, level in re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", text, re.M)}


DESIGN = (ROOT / "docs" / "dev" / "design.md").read_text()
LEVEL = table_of(DESIGN)


def folder(module):
    """The name at the package's first level."""
    return module.split(".")[0]


def upward(module, source):
    """Imports of a module that do not point down: of a folder that is not lower, of commands, and of DiT/."""
    wrong = {other for other in modules_of(source, module) if folder(other) != folder(module)}
    wrong = {other for other in wrong if LEVEL[folder(other)] >= LEVEL[folder(module)]}
    return wrong | (packages_of(source) & (ENTRIES | ({"DiT"} if module != "models.families.dit" else set())))


def circle(graph):
    """Modules of a circle of imports, in order, or None. graph: module -> modules that it imports."""
    ended, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module) :]
        if module not in ended:
            path.append(module)
            found = next(filter(None, map(visit, sorted(graph[module]))), None)
            if found:
                return found
            ended.add(path.pop())
        return None

    return next(filter(None, map(visit, graph)), None)


def test_the_map_of_design_md_names_every_folder_and_file_once():
    folders = re.findall(r"^\| `(\w+)` \| (.*) \| \d+ \|$", DESIGN, re.M)
    assert sorted(name for name, _ in folders) == sorted({folder(module) for module in MODULES})
    assert len(folders) <= 16
    for name, told in folders:
        files = {module.split(".")[1] for module in MODULES if module.startswith(f"{name}.")} - {"__init__"}
        assert files - set(re.findall(r"`(\w+)/?`", told)) == set(), name


def test_imports_point_down():
    assert {module: wrong for module, path in MODULES.items() if (wrong := upward(module, path.read_text()))} == {}


def test_no_file_is_part_of_a_circle():
    assert circle({module: modules_of(path.read_text(), module) for module, path in MODULES.items()}) is None
    assert circle({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"e"}, "e": {"f"}, "f": {"e"}}) == ["e", "f"]


def test_a_folder_s_level_is_no_higher_than_its_imports_ask():
    below = {name: set() for name in LEVEL}
    for module, path in MODULES.items():
        below[folder(module)] |= {folder(other) for other in modules_of(path.read_text(), module)} - {folder(module)}
    assert {name: 1 + max((LEVEL[o] for o in others), default=-1) for name, others in below.items()} == LEVEL


def test_commands_and_scripts_do_not_import_each_other():
    files = [*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")]
    assert [path.name for path in files if packages_of(path.read_text()) & ENTRIES] == []


def test_dit_imports_nothing_of_ours():
    assert [path.name for path in (ROOT / "DiT").glob("*.py") if packages_of(path.read_text()) & {"diffusion", *ENTRIES}] == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("strategy.schedule", "from diffusion.kernel.blocks import errors", {"kernel.blocks"}),
        ("strategy.schedule", "def f():\n    from diffusion.kernel import noise", {"kernel.noise"}),
        ("kernel.blocks", "import diffusion.models", {"models"}),
        ("kernel.blocks", "from diffusion.models.loading import hub", {"models.loading.hub"}),
        ("cli.options", "import eval_prob_adaptive", {"eval_prob_adaptive"}),
        ("cli.options", "from diffusion.runs import run_folder", set()),
        ("utils.files", "from .. import classify", {"classify"}),
        ("models.loading.hub", "from ...runs import run_folder", {"runs.run_folder"}),
        ("models.loading.hub", "from ...utils.files import write", set()),
        ("kernel.blocks", "from DiT.models import DiT", {"DiT"}),
        ("datasets.readers.hub", "import datasets", set()),  # Hugging Face's, not ours
    ],
)
def test_the_import_check_can_fail(module, source, wrong):
    assert upward(module, source) == wrong


@pytest.mark.parametrize(
    ("line", "found"),
    [("| `kernel` | one loop | 0 |", {"kernel": 0}), ("| `a` | `b`, `c` | 12 |", {"a": 12}), ("| kernel | x | 0 |", {})],
)
def test_the_table_is_read(line, found):
    assert table_of(f"text\n{line}\n") == found


TRIP = """
import os, sys
sys.path.insert(0, sys.argv[1])
import eval_prob_adaptive
from diffusers import UNet2DConditionModel

forward, told = UNet2DConditionModel.forward, []

def first_call(self, *inputs, **named):
    frame, frames = sys._getframe(1), []
    while frame:
        code = frame.f_code
        file = os.path.relpath(code.co_filename, sys.argv[1])
        if (file.startswith("diffusion/") or "/" not in file) and code.co_name != "<module>":
            frames.append((code.co_name, file))
        frame = frame.f_back
    if not told and any(name == "main" for name, _ in frames):
        told.extend(reversed(frames))
    return forward(self, *inputs, **named)

UNet2DConditionModel.forward = first_call
argv = "--version tiny --dataset fashion_mnist --imgs_to_eval 1 --to_keep 1 --n_samples 1 --device cpu"
eval_prob_adaptive.main(argv.split())
for name, file in told:
    print("frame", name, file)
"""


@pytest.mark.slow
def test_the_trip_of_one_image_is_the_one_in_design_md(tmp_path):
    """From main to the network's forward: our frames, in the order of the page, each name once."""
    done = subprocess.run([sys.executable, "-c", TRIP, str(ROOT)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    trip = [line.split() for line in done.stdout.splitlines() if line.startswith("frame ")]
    assert [(name, file) for _, name, file in trip] == re.findall(r"^\d+\. `(\S+)` in `(\S+)`", DESIGN, re.M)
    names, files = [name for _, name, _ in trip], {file for *_, file in trip}
    assert len(names) == len(set(names)) <= 10 and len(files) <= 7


def namespaces(source):
    """Functions of a source that take or hand on an argparse Namespace: a parameter called args or options without a type."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return [
        f.name
        for f in functions
        if any(a.arg == "args" or (a.arg == "options" and not a.annotation) for a in f.args.args + f.args.kwonlyargs)
    ]


def test_nothing_below_the_commands_sees_a_namespace():
    """Settings end in `main`; `cli` takes the options as a dict."""
    found = {module: names for module, path in MODULES.items() if (names := namespaces(path.read_text()))}
    assert found == {}
    assert namespaces("def f(args): pass\ndef g(options: dict): pass\ndef h(x, options): pass") == ["f", "h"]


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


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_what_most_runs_need_and_help_all_the_rest(command, help_of, capsys):
    """At most 30 options, besides -h and --help_all."""
    some, every = set(re.findall(r"^  (?:-\w, )?(--\w[\w-]*)", help_of[command], re.M)), hostile.all_options(Path(command).stem)
    assert len(some - {"--help", "--help_all"}) <= 30
    with pytest.raises(SystemExit):
        hostile.parser_of(Path(command).stem).parse_args(["--help_all"])
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  .*{option}\b", shown, re.M) for option in every)


TINY = ["--device", "cpu", "--dry_run"]
DRY_RUNS = {
    "eval_prob_adaptive.py": ["--version", "tiny", "--dataset", "fashion_mnist", *TINY],
    "eval_prob_dit.py": ["--model", "tiny", "--dataset", "fashion_mnist", *TINY],
    "run_winoground.py": ["--version", "tiny", "--dataset", "tiny_pairs", *TINY],
    "scripts/demo.py": ["--port", "47861", *TINY],
    "scripts/classify.py": [f"{ROOT}/shipped/tiny-sd/samples.png", "--labels", "bag", "boot", "--version", "tiny", *TINY],
}


@pytest.mark.parametrize("command", DRY_RUNS)
def test_a_dry_run_imports_nothing_heavy(command, tmp_path):
    code = f"""
        import runpy, sys
        sys.argv, sys.path[:0] = ["x", *{DRY_RUNS[command]!r}], [{str(ROOT)!r}]
        try:
            runpy.run_path({str(ROOT / command)!r}, run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, stop.code
        print("heavy:", [m for m in {HEAVY!r} if m in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Price: " in done.stdout and done.stdout.splitlines()[-1] == "heavy: []"


# ---------------------------------------------------------------- README and docs/


PAGES = [ROOT / "README.md", ROOT / "scripts" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BY_NAME = {"ids": lambda page: page.name}


def commands_of(text):
    """argv, from the script on, of every command in ```bash blocks that runs a .py file, whatever stands before it: python,
    uv run, torchrun, srun, sbatch. Continuation lines are joined; a comment and what follows && are told apart."""
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M)).replace("\\\n", " ")
    for line in blocks.splitlines():
        words = shlex.split(line, comments=True)
        for _, part in itertools.groupby(words, key=lambda word: word == "&&"):
            argv = list(part)
            start = next((i for i, word in enumerate(argv) if word.endswith(".py")), None)
            if start is not None:
                yield argv[start:]


def test_commands_are_found_behind_every_launcher():
    text = """```bash
pip install uv && uv run a.py --x "a photo of a {}." # a comment
torchrun --nnodes 2 \\
    b.py -y
CUDA_VISIBLE_DEVICES=1 srun --ntasks=8 python c.py && python scripts/d.py
uv run pytest
```

```
python not_a_command.py
```
"""
    assert list(commands_of(text)) == [["a.py", "--x", "a photo of a {}."], ["b.py", "-y"], ["c.py"], ["scripts/d.py"]]


@pytest.mark.parametrize("page", PAGES, **BY_NAME)
def test_every_command_on_the_page_parses(page, monkeypatch):
    monkeypatch.chdir(ROOT)  # where a file of --options is looked for
    for script, *argv in commands_of(page.read_text()):
        assert (ROOT / script).is_file(), script
        if script.startswith("tests/"):  # of pytest, which takes more of them
            assert all((ROOT / file).is_file() for file in argv), argv
            continue
        module = load_script(Path(script).stem) if script.startswith("scripts/") else importlib.import_module(Path(script).stem)
        module.parse_args(argv)


def test_the_pages_show_every_command_and_script():
    shown = {script for page in PAGES for script, *_ in commands_of(page.read_text())}
    assert set(COMMANDS) - shown == set()


@pytest.mark.parametrize("page", PAGES, **BY_NAME)
def test_no_command_hides_outside_a_bash_block(page):
    """An indented block or one of another language would not be parsed."""
    outside = re.sub(r"^```bash\n.*?^```", "", page.read_text(), flags=re.S | re.M)
    assert re.findall(r"^\s*(?:\w+=\S+ )*(?:python|uv run|torchrun|srun|sbatch) .*\.py.*", outside, re.M) == []


def anchors_of(text):
    """The anchors of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


CARDS = sorted((ROOT / "shipped").glob("**/README.md"))


@pytest.mark.parametrize("page", [*PAGES, *CARDS, ROOT / "CONTRIBUTING.md", ROOT / "HISTORY.md"], **BY_NAME)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors_of(linked.read_text()), target


def test_the_set_up_commands_of_the_readme():
    """Newcomers copy the first block; .ci/run finds the one block with pytest in it."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    demo = "eval_prob_adaptive.py --version tiny --dataset fashion_mnist --imgs_to_eval 100"
    assert blocks[0] == f"pip install uv && uv run {demo}\n"
    test = 'pip install uv && uv run --group test pytest -n auto --dist worksteal -m "not slow"\n'
    assert [block for block in blocks if "pytest" in block] == [test]


def test_dependencies_are_written_once():
    conda = (ROOT / "environment.yml").read_text()
    assert "-r requirements.txt" in conda and "torch" not in conda
    assert "requirements.txt" in (ROOT / "pyproject.toml").read_text()


# ---------------------------------------------------------------- what users import or subclass says what it takes

PUBLIC = ("classify", "settings", "strategy.base", "models.denoiser", "models.source", "models.registry", "datasets.registry",
          "metrics.accuracy")  # fmt: skip


def documented(tree, prefix=""):
    """(name, arguments, docstring) of every public function and method that has a docstring of its own or is a function."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from documented(node, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            text = ast.get_docstring(node)
            if text or not prefix:  # a method without one has that of the class that it fills in
                given = [*node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
                mine = [arg.arg for arg in given if arg and not (prefix and arg.arg in ("self", "cls"))]
                yield prefix + node.name, mine, text or ""


@pytest.mark.parametrize("module", PUBLIC)
def test_a_public_docstring_names_every_argument(module):
    for name, arguments, text in documented(ast.parse(MODULES[module].read_text())):
        section = re.search(r"^Args:\n((?:    .*\n?|\n)*)", text, re.M)
        told = re.findall(r"^    ([\w, ]+):", section[1], re.M) if section else []
        assert {word for line in told for word in line.split(", ")} == set(arguments), name


def test_prose_names_every_family():
    """One list, in the order of the table, wherever families are named."""
    titles = ", ".join(family.TITLE for family in models.TEXT_TO_IMAGE)
    for page, times in (("README.md", 2), ("docs/own-data-and-models.md", 1)):
        assert (ROOT / page).read_text().count(titles) == times, (page, titles)
