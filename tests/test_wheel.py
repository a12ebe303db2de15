"""The wheel, built from the sdist and installed beside borrowed dependencies: it works from an empty folder."""

import csv
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conftest import NO_THREADS, ROOT, SETTINGS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("setuptools"), reason="needs setuptools: uv run --group test pytest"),
    pytest.mark.skipif(not importlib.util.find_spec("ensurepip"), reason="needs ensurepip (Debian: python3-venv)"),
]
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
INSIDE = {
    "diffusion": "diffusion",
    "DiT": "DiT",
    **{name: f"diffusion/_suite/{name}" for name in ("scripts", "prompts", "shipped")},
}

TINY = ("eval_prob_adaptive", "--version", "tiny", "--dataset", "fashion_mnist")


def run(*words, folder):
    """Of a command that ends well: its standard output. It sees none of our paths and settings."""
    environment = {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", *SETTINGS)} | NO_THREADS
    done = subprocess.run([str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def unpacked(place):
    """The sdist of a clone, unpacked; it is made in a folder of links, as the build writes beside its source."""
    source, ignored = place / "clone", [*(ROOT / ".gitignore").read_text().split(), ".git"]
    source.mkdir()
    for path in ROOT.iterdir():
        if not any(fnmatch(path.name, pattern.strip("/")) for pattern in ignored):
            (source / path.name).symlink_to(path)
    run(sys.executable, "-c", BUILD, "build_sdist", place, folder=source)
    [sdist] = place.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    return place / sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    place = tmp_path_factory.mktemp("build")
    run(sys.executable, "-c", BUILD, "build_wheel", place, folder=unpacked(place))
    [wheel] = place.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of commands of an environment that holds the wheel alone, and has dependencies from the running one."""
    place = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", place, folder=place)
    run(place / "bin" / "pip", "install", "--no-index", "--no-deps", wheel, folder=place)
    borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    [packages] = place.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    return place / "bin"


def test_it_holds_everything_in_two_packages(wheel):
    here = {f"diffusion/_suite/{path.name}" for path in ROOT.glob("*.py")}
    for top, inside in INSIDE.items():
        files = [path.relative_to(ROOT / top).as_posix() for path in (ROOT / top).rglob("*") if path.is_file()]
        here |= {
            f"{inside}/{name}"
            for name in files
            if not name.endswith((".pyc", ".sbatch")) and (top, name) != ("scripts", "README.md")
        }
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == here


def test_the_command_and_the_package_are_the_wheel_s(installed, tmp_path):
    assert "eval_prob_adaptive" in run(installed / "diffusion-classifier", "list", folder=tmp_path)
    code = "import diffusion, DiT; print(diffusion.__file__, DiT.__file__, sep='\\n')"
    found = run(installed / "python", "-c", code, folder=tmp_path).split()
    assert len(found) == 2 and all(Path(file).is_relative_to(installed.parent) for file in found)


def test_the_demonstration_runs(installed, tmp_path):
    out = run(installed / "diffusion-classifier", *TINY, "--imgs_to_eval", 4, folder=tmp_path)
    folder = Path("data/fashion_mnist/vtiny_1trials_5_1keep_10_50samples_l1_64")
    assert re.search(r"^Top-1 accuracy: .* n = 4\)$", out, re.M)
    assert out.splitlines()[-1] == f"Report: diffusion-classifier print_acc {folder}"
    assert len(list((tmp_path / folder).glob("*.pt"))) == 4
    assert "n = 4" in run(installed / "python", "-m", "diffusion", "print_acc", folder, folder=tmp_path)


def test_a_picture_is_classified(installed, tmp_path):
    picture = ROOT / "shipped" / "datasets" / "tiny_pairs" / "images" / "ex_0_img_0.png"
    words = ["--version", "tiny", "--labels", "bag", "boot", "-o", "table.csv"]
    run(installed / "diffusion-classifier", "classify", picture, *words, folder=tmp_path)
    with open(tmp_path / "table.csv", newline="") as file:
        [row] = csv.DictReader(file)
    assert {"bag", "boot"} >= {row["label"]}


def test_the_lines_of_python_run(installed, tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    out = run(installed / "python", "-c", code, folder=tmp_path)
    assert sorted(re.findall(r"\d+", out.splitlines()[0])) == ["0", "1", "2"]


def test_shipped_files_are_found_and_left_alone(installed, tmp_path):
    run(installed / "diffusion-classifier", "write_prompts", "pets", folder=tmp_path)
    assert (tmp_path / "prompts" / "pets_prompts.csv").read_bytes() == (ROOT / "prompts" / "pets_prompts.csv").read_bytes()
    fit = "shipped/races/tiny-sd_l1.json"
    words = [*TINY, "--loss", "l1", "--strategy", "race_calibrated", "--race_fit", fit, "--dry_run"]
    assert fit in run(installed / "diffusion-classifier", *words, folder=tmp_path)
