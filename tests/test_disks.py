"""Disks that are full, read-only or gone: one line with path and cause, what was there stays, and what a kill left is removed."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT, TINY_SD20, load_script
from PIL import Image

import eval_prob_adaptive
import eval_prob_dit
import run_winoground
from diffusion.baselines import sd_features
from diffusion.models.families.sd import StableDiffusion
from diffusion.runs import run_folder
from diffusion.utils import files

pytestmark = pytest.mark.slow

MODEL = ["--model_path", TINY_SD20, "--img_size", 64]
RUN = ["--dataset", "fashion_mnist", *MODEL, "--imgs_to_eval", 4, "--to_keep", 1, "--n_samples", 2]


@contextlib.contextmanager
def room_for(n_bytes):
    """No file of this process grows beyond n_bytes; the kernel refuses the rest as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FILLS = {
    "bytes": lambda file: file.write(bytes(100_000)),
    "small pieces": lambda file: [file.write(b"x" * 10) for _ in range(10_000)],
    "torch": lambda file: torch.save(torch.zeros(100_000), file),
    "torch, small tensors": lambda file: torch.save([torch.zeros(10) for _ in range(2000)], file),
    "numpy": lambda file: np.save(file, np.zeros(100_000)),
    "png": lambda file: Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(file, "PNG"),
}


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
@pytest.mark.parametrize("room", [0, 1, 5000])
def test_a_full_disk_leaves_the_older_file_and_tells_path_and_cause(fill, room, tmp_path):
    path = tmp_path / "file"
    path.write_text("older")
    with room_for(room), pytest.raises(OSError) as told:
        files.write(path, fill)
    assert files.one_line(told.value) == f"{path}: File too large"
    assert path.read_text() == "older" and os.listdir(tmp_path) == ["file"]
    files.write(path, fill)
    assert path.stat().st_size > 5000


def test_an_error_that_is_not_the_disks_is_left_as_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError):
        files.write(tmp_path / "file", lambda file: 1 / 0)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_goes_while_a_file_is_written(tmp_path):
    path = tmp_path / "folder" / "file"
    with pytest.raises(FileNotFoundError) as told:
        files.write(path, lambda file: shutil.rmtree(path.parent))
    assert files.one_line(told.value) == f"{path}: No such file or directory"


def test_a_real_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        (disk / "file").write_text("older")
        for fill in FILLS.values():
            with pytest.raises(OSError) as told:
                files.write(disk / "file", lambda file, fill=fill: [fill(file) for _ in range(20)])
            assert files.one_line(told.value) == f"{disk / 'file'}: No space left on device"
        assert (disk / "file").read_text() == "older" and os.listdir(disk) == ["file"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_save_noise_keeps_the_bank_that_was_there(run_main):
    main = load_script("save_noise").main
    assert run_main(main, "--img_size", 64, "--n", 8)[0] == 0
    before = Path("noise_64.pt").read_bytes()
    with room_for(4096):
        code, out, err = run_main(main, "--img_size", 64, "--n", 64)
    assert (code, out, err) == (2, "", "error: noise_64.pt: File too large\n")
    assert Path("noise_64.pt").read_bytes() == before and os.listdir() == ["noise_64.pt"]


# ---------------------------------------------------------------- whole runs

COMMANDS = {
    "eval_prob_adaptive": (eval_prob_adaptive.main, RUN),
    "eval_prob_dit": (eval_prob_dit.main, ["--dataset", "fashion_mnist", "--t_interval", 500, "--imgs_to_eval", 4]),
    "per class": (eval_prob_dit.main, ["--dataset", "fashion_mnist", "--t_interval", 500, "--imgs_to_eval", 4, "--cls", "3,5",
                                       "--save_per_class"]),
    "run_winoground": (run_winoground.main, [*MODEL, "--t_interval", 500, "--data_dir", GOLDEN / "data" / "winoground"]),
}  # fmt: skip


@pytest.mark.parametrize("problem", ["full", "folder gone", "folder a file"])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_breaks_in_mid_run_ends_in_one_line_after_the_results(command, problem, run_main, tiny_dit, monkeypatch):
    main, argv = COMMANDS[command]
    argv = [*tiny_dit, *argv] if main is eval_prob_dit.main else argv
    save, saved = run_folder.save_record, []

    def save_two(path, record):
        if len(saved) < 2:
            saved.append(path)
            return save(path, record)
        if problem != "full":
            shutil.rmtree(path.parent)
        if problem == "folder a file":
            path.parent.write_text("a file")
        with room_for(100 if problem == "full" else 10**9):
            return save(path, record)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_record", save_two)
        code, out, err = run_main(main, *argv)
    cause = {"full": "File too large", "folder gone": "No such file or directory", "folder a file": "Not a directory"}[problem]
    assert code == 1 and err.count("\n") == 1 and err.endswith(f".pt: {cause}\n") and str(saved[0].parent.parent) in err, err
    assert "error: a record could not be written, run the same command again to continue: " in err
    assert "Report: python " in out
    if problem == "full":
        assert all(path.stat().st_size for path in saved) and not list(Path("data").rglob(".*.tmp"))
        code, out, err = run_main(main, *argv)
        assert code == 0 and f"{1 if command == 'per class' else 2} of " in out, err


@pytest.mark.parametrize("log_dir", ["/proc/nowhere", "file", "file/below", "link", "/dev/full", "x" * 300])
@pytest.mark.parametrize("command", ["eval_prob_adaptive", "run_winoground"])
def test_where_runs_cannot_be_written_is_told_before_a_model_is_loaded(command, log_dir, run_main, monkeypatch):
    def refuse(*args):
        raise AssertionError("a model was loaded before the folder was tried")

    monkeypatch.setattr(StableDiffusion, "load", refuse)
    monkeypatch.setenv("LOG_DIR", log_dir)
    Path("file").write_text("mine")
    Path("link").symlink_to("/proc/nowhere")
    main, argv = COMMANDS[command]
    code, _, err = run_main(main, *argv)
    assert code == 2 and err.count("\n") == 1 and log_dir[:255] in err and err.startswith("error: "), err
    assert sorted(os.listdir()) == ["file", "link"] and Path("file").read_text() == "mine"


def test_a_disk_that_is_full_at_the_start(run_main):
    with room_for(1000):
        code, _, err = run_main(eval_prob_adaptive.main, *RUN)
    assert code == 2 and err.count("\n") == 1 and "File too large" in err and "data" in err
    assert not Path("data").exists()


def test_trying_leaves_nothing(tmp_path):
    files.try_writing(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- what a kill leaves

HEX = "0123456789abcdef" * 2
WRITER = """
import sys, time
from diffusion.utils import files
def fill(file):
    file.write(b'x')
    file.flush()
    print('writing', flush=True)
    time.sleep(600)
files.write(sys.argv[1], fill)
"""


@pytest.fixture
def writer():
    """writer(path): a process in the midst of writing a file."""
    started = []

    def start(path):
        words = [sys.executable, "-c", WRITER, str(path)]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "writing\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def age(folder):
    """Makes all temporary files older than any start."""
    found = list(folder.glob(".*.tmp"))
    for path in found:
        os.utime(path, (1e9, 1e9))
    return found


def test_only_what_killed_processes_left_is_removed(writer, tmp_path):
    living, dead, stopped = (writer(tmp_path / f"{i}.pt") for i in range(3))
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    stopped.send_signal(signal.SIGSTOP)
    (tmp_path / f".3.pt.{HEX}.tmp").write_bytes(b"half")
    for name in (".notes.tmp", "4.pt.tmp", f"5.pt.{HEX}.tmp", ".hidden", "6.pt"):  # nothing that we would have written
        (tmp_path / name).write_bytes(b"mine")
    age(tmp_path)
    (tmp_path / f".7.pt.{HEX}.tmp").write_bytes(b"younger than the start")
    files.remove_temporaries(tmp_path, time.time() - 60)
    left = sorted(path.name.split(".")[1] if path.name.startswith(".") else path.name for path in tmp_path.iterdir())
    assert left == sorted(["0", "2", "notes", "hidden", "7", "4.pt.tmp", f"5.pt.{HEX}.tmp", "6.pt"])
    assert living.poll() is None


@pytest.mark.parametrize("command", COMMANDS)
def test_the_next_start_of_a_run_removes_what_was_left(command, run_main, tiny_dit, writer):
    main, argv = COMMANDS[command]
    argv = [*tiny_dit, *argv] if main is eval_prob_dit.main else argv
    assert run_main(main, *argv)[0] == 0
    folders = {path.parent for path in Path("data").rglob("*") if path.suffix in (".pt", ".json")}
    assert len(folders) == (4 if command == "per class" else 1)  # of their records and of their configs
    for folder in folders:
        (folder / f".206.pt.{HEX}.tmp").write_bytes(b"half")
    process = writer(sorted(folders)[0].resolve() / "7.pt")
    for folder in folders:
        age(folder)
    code, _, err = run_main(main, *argv, "--dry_run")
    assert code == 0 and len(list(Path("data").rglob(".*.tmp"))) == len(folders) + 1, err
    assert run_main(main, *argv)[0] == 0
    assert [path.name[:6] for path in Path("data").rglob(".*.tmp")] == [".7.pt."] and process.poll() is None


def test_the_next_start_cleans_the_folders_of_a_cache_too(tmp_path):
    cache = sd_features.Cache(tmp_path / "kept", {"images": "0"})
    cache.begin("sd_features", {}, 1)
    for folder in (cache.folder, cache.path(0).parent):
        folder.mkdir(exist_ok=True)
        (folder / f".0000000.npy.{HEX}.tmp").write_bytes(b"half")
        age(folder)
    cache.begin("sd_features", {}, 1)
    assert [path.name for path in tmp_path.rglob("*.tmp")] == []


def test_writers_lose_nothing_to_a_remover(tmp_path):
    """A remover that takes every file for old, as by a clock that is wrong, while another process writes."""
    code = "import sys; from pathlib import Path; from diffusion.utils import files\n"
    code += "for i in range(300):\n    files.write(f'{sys.argv[1]}/{i % 3}', lambda file: file.write(b'whole'))\n"
    code += "    files.try_writing(Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        files.remove_temporaries(tmp_path, time.time() + 3600)
    assert process.returncode == 0, process.stderr.read()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys("012", b"whole")
