"""Several processes on one run: SLURM's shares, torchrun's hand-out of images, and what is left when processes die."""

import heapq
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, HANGS, ROOT, TINY_SD20, at_work, enough_records, said
from PIL import Image
from torch.distributed import TCPStore

import eval_prob_adaptive
from diffusion.datasets import loader
from diffusion.models.speed import devices
from diffusion.runs import loop, run_folder, sharding
from diffusion.utils import distributed as team_room
from diffusion.utils.distributed import HandedOut, Share, Team

MODEL = ["--model_path", str(TINY_SD20), "--img_size", "64"]
RUN = ["--dataset", "fashion_mnist", *MODEL, "--to_keep", "3", "1", "--n_samples", "2", "4"]
FOLDER = Path("data/fashion_mnist/v2-0_1trials_3_1keep_2_4samples_64")


def comparable(value):
    """A record without its time, as plain Python values that are equal only bit by bit."""
    if isinstance(value, dict):
        return {key: comparable(part) for key, part in value.items() if key != "seconds"}
    return (value.dtype, value.tolist()) if torch.is_tensor(value) else value


def records(folder=FOLDER):
    return {path.name: comparable(torch.load(path, weights_only=True)) for path in sorted(folder.glob("*.pt"))}


# ---------------------------------------------------------------- shares by SLURM


def srun(task, tasks, **more):
    """What a task of srun finds in its environment."""
    names = {"SLURM_JOB_ID": 7, "SLURM_STEP_ID": 0, "SLURM_PROCID": task, "SLURM_NTASKS": tasks, "SLURM_LOCALID": task}
    return {name: str(value) for name, value in (names | more).items()}


def array(number, first, count, step=1, **more):
    words = {"ID": number, "MIN": first, "COUNT": count, "STEP": step, **more}
    return {"SLURM_JOB_ID": "7", **{f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in words.items()}}


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}


@pytest.mark.parametrize(
    "change",
    [{"RANK": "4"}, {"RANK": "-1"}, {"RANK": "a"}, {"RANK": None}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": None}, {"RANK": "²"}],
)
def test_variables_of_torchrun_that_contradict_each_other(change, monkeypatch, capsys):
    for name, value in (TORCHRUN | change).items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    team_room.team.cache_clear()
    try:
        with pytest.raises(SystemExit) as stop:
            team_room.team()
    finally:
        team_room.team.cache_clear()
    assert stop.value.code == 2 and "TORCHELASTIC_RUN_ID is set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (0, 1)),
        (srun(0, 4), (0, 4)),
        (srun(3, 4), (3, 4)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, (2, 4)),  # without the job's variables
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 4)),
        (srun(1, 8, SLURM_STEP_NUM_TASKS=2), (1, 2)),  # a step with fewer tasks than its job
        (srun(0, 1), (0, 1)),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, (0, 1)),  # the shell of a batch script
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, (0, 1)),  # the shell of salloc
        (srun(0, 4, SLURM_STEP_ID=4294967290), (0, 1)),  # the same, where salloc's shell is an interactive step
        (array(0, 0, 8, MAX=7), (0, 8)),
        (array(7, 3, 4, 2), (2, 4)),
        (array(10, 1, 4, 3, MAX=12), (3, 4)),
        (array(5, 5, 1, MAX=5), (0, 1)),  # one element once more does what is left of all
        (array(6, 5, 2) | srun(1, 3), (4, 6)),  # every element runs three tasks
        (TORCHRUN | srun(1, 2), (0, 1)),  # torchrun's processes share among themselves
        (TORCHRUN | array(1, 0, 2) | srun(1, 2), (1, 2)),
    ],
)
def test_the_share_by_slurm(environment, share):
    assert sharding.launched_share(environment) == share


@pytest.mark.parametrize("environment", [array(5, 0, 3, MAX=5), array(0, 0, 3, MAX=5), array(5, 0, 3), array(2, 1, 2, 2)])
def test_an_uneven_array_is_refused(environment, run_main, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, err = run_main(eval_prob_adaptive.main, *RUN, "--dry_run")
    assert code == 2 and err.count("\n") == 1 and "--array=0-7" in err and "--n_workers" in err
    assert run_main(eval_prob_adaptive.main, *RUN, "--n_workers", 1, "--dry_run")[0] == 0


@pytest.mark.parametrize(
    ("environment", "n_gpus", "device"),
    [
        ({}, 8, None),
        (TORCHRUN, 0, None),
        (TORCHRUN, 8, "cuda:3"),
        (TORCHRUN | srun(1, 2), 8, "cuda:3"),
        (srun(2, 4), 4, "cuda:2"),
        (srun(2, 4), 1, "cuda:0"),  # --gpus-per-task=1
    ],
)
def test_the_gpu_of_a_process(environment, n_gpus, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    assert devices.local_gpu(environment) == device


def test_tasks_of_slurm_share_the_images_and_flags_win(run_main, monkeypatch):
    argv = [*RUN, "--imgs_to_eval", 5]
    selected = sharding.select(1000, None, 5, 0)
    found = set()
    for task in (1, 0, 2):
        for name, value in srun(task, 3).items():
            monkeypatch.setenv(name, value)
        code, out, err = run_main(eval_prob_adaptive.main, *argv)
        assert code == 0 and f"SLURM says that this is task {task} of 3" in out, err
        new = {int(name.split(".")[0]) for name in records()} - found
        assert sorted(new) == selected[task::3]
        found |= new
    code, out, _ = run_main(eval_prob_adaptive.main, *argv, "--extra", "flags", "--n_workers", 5, "--worker_idx", 1, "--dry_run")
    assert code == 0 and "Images: 1 to do here" in out and "SLURM" not in out
    code, _, err = run_main(eval_prob_adaptive.main, *argv, "--n_workers", 3)
    assert code == 2 and err.count("\n") == 1 and "--worker_idx" in err


def test_the_batch_script_runs_what_it_is_given(tmp_path):
    """With an srun that starts four tasks one after the other, and a python that says what it was called with."""
    (tmp_path / "bin").mkdir()
    programs = {"python": 'echo "$SLURM_PROCID: $*"', "srun": 'for i in 0 1 2 3; do SLURM_PROCID=$i "$@"; done'}
    for name, does in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_PROCID": "0"}
    words = ["bash", ROOT / "scripts" / "slurm.sbatch", "eval_prob_adaptive.py", "--template", "a {}"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    command = "eval_prob_adaptive.py --template a {}"
    assert done.stdout.splitlines() == [f"0: {command} --dry_run", *(f"{i}: {command}" for i in range(4))], done.stderr


# ---------------------------------------------------------------- images handed out by torchrun's store


@pytest.fixture
def store():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def idleness(shares, cost) -> float:
    """Longest idle time at the end, as a part of the whole, by simulated clocks: whoever is free first asks for the next image.

    A process that asks for an image ahead does so when it begins its last one, as the loader does.
    """
    takers = [iter(share) for share in shares]
    ahead = [next(taker, None) for taker in takers]
    clocks = [(0.0, rank) for rank in range(len(takers))]
    ended, worked = [], []
    while clocks:
        now, rank = heapq.heappop(clocks)
        for _ in range(2):  # a None is nothing to do: what follows it is taken now
            image = ahead[rank]
            ahead[rank] = next(takers[rank], "end") if image != "end" else image
            if image is not None:
                break
        if image == "end":
            ended.append(now)
        else:
            worked.append(image)
            heapq.heappush(clocks, (now + cost[image], rank))
    assert sorted(worked) == list(range(len(cost)))
    return 1 - min(ended) / max(ended)


def costs(kind, rng):
    """Of 1,000 images, up to 10 times as high for one as for another."""
    return {
        "spread": lambda: 10 ** rng.random(1000),
        "one class in ten": lambda: np.where(np.arange(1000) % 10 == 0, 10.0, 1.0),
        "dear ones last": lambda: np.sort(10 ** rng.random(1000)),
        "every eighth": lambda: np.where(np.arange(1000) % 8 == 0, 10.0, 1.0),
    }[kind]()


@pytest.mark.parametrize("kind", ["spread", "one class in ten", "dear ones last", "every eighth"])
def test_no_process_is_idle_at_the_end(kind, store):
    from torch.distributed import PrefixStore

    for seed in range(3):
        cost = costs(kind, np.random.default_rng(seed))
        handed = [HandedOut(range(1000), PrefixStore(f"{kind}{seed}", store), 8) for _ in range(8)]
        static = [Share(sharding.shard(range(1000), rank, 8)) for rank in range(8)]
        dynamic, fixed = idleness(handed, cost), idleness(static, cost)
        print(f"{kind}: {100 * dynamic:.1f} % idle, {100 * fixed:.1f} % with static shares")
        assert dynamic < 0.05
        assert kind != "every eighth" or fixed > 0.5


@pytest.mark.parametrize("workers", [0, 1])
def test_every_image_is_taken_once_and_late_ones_only_when_they_are_due(workers, store):
    """The loader's process is forked from one that talks to the store."""

    class Numbers:
        def __getitem__(self, index):
            return index, 0

    shares = [HandedOut(range(100, 160), store, 2) for _ in range(2)]
    streams = [iter(loader.load_images(Numbers(), share, workers)) for share in shares]
    found = []
    while len(found) < 60:
        found.append(next(streams[len(found) % 7 == 0])[0])
        held = store.add("taken", 0) - len(found)
        assert held <= (2 * workers if len(found) < 40 else workers if len(found) < 50 else 0), len(found)
    assert sorted(found) == list(range(100, 160)) and [next(stream, None) for stream in streams] == [None, None]
    assert [share.finish() for share in shares] == [1, 2]


# ---------------------------------------------------------------- processes that do not answer


class Clock:
    """In place of the module `time`: nobody waits, and what is due at a moment is done when a wait comes to it."""

    def __init__(self):
        self.now, self.due = 0.0, []

    def monotonic(self):
        return self.now

    def at(self, moment, do):
        self.due.append((moment, do))

    def sleep(self, seconds):
        self.now += seconds
        for moment, do in [part for part in self.due if part[0] <= self.now]:
            self.due.remove((moment, do))
            do()


@pytest.fixture
def teams(store, monkeypatch):
    """The two members of a team, which have met in the store, and have patience with a slow machine."""
    monkeypatch.setattr(team_room, "connect", lambda: store)

    def meet():
        members = [Team(rank, 2, HANGS) for rank in range(2)]
        threads = [threading.Thread(target=lambda member=member: member.store) for member in members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return members

    return meet


def test_a_lost_process_is_left_out_and_a_living_one_is_awaited(teams, monkeypatch):
    monkeypatch.setattr(team_room, "_beat", lambda *of: None)
    leader, follower = teams()
    clock, leader.patience = Clock(), 1.5
    monkeypatch.setattr(team_room, "time", clock)
    for moment in range(1, 6):
        clock.at(moment / 2, lambda: follower.store.add("beat/1", 1))
    clock.at(3, lambda: follower.store.set("end/1", team_room._pack("late")))
    assert leader.gather("mine", lambda: False) == ["mine", "late"]  # twice the patience, with signs of life
    assert 3 <= clock.now < 3.1


def test_a_process_without_a_sign_of_life_is_lost(teams, monkeypatch):
    monkeypatch.setattr(team_room, "_beat", lambda *of: None)
    leader, follower = teams()
    monkeypatch.setattr(team_room, "time", clock := Clock())
    leader.patience = follower.patience = 1.5
    assert leader.gather("mine", lambda: False) == ["mine"] and 1.5 < clock.now < 1.7
    with pytest.raises(SystemExit, match="rank 1 has lost contact with rank 0"):
        follower.follow()


def test_a_process_gives_signs_of_life(store):
    """Until its main thread ends."""
    threading.Thread(target=team_room._beat, args=(store, 1, 0.01), daemon=True).start()
    deadline = time.monotonic() + HANGS
    while store.add("beat/1", 0) < 3:
        assert time.monotonic() < deadline


def test_processes_that_do_not_come_are_not_awaited_for_ever(teams, store):
    for rank in range(2):
        with pytest.raises(SystemExit, match=f"rank {rank} waited 0.3 s for the other 1 processes"):
            Team(rank, 2, 0.3).store  # noqa: B018
    first, again = teams()[0], teams()[0]  # what the two above left in the store does no harm
    assert first.store.add("taken", 1) == again.store.add("taken", 1) == 1


def test_those_that_follow_wait_and_exit_as_the_leader_does(teams, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *of: None)
    leader, follower = teams()
    threading.Timer(0.2, leader.passed).start()
    follower.follow()
    threading.Timer(0.2, leader.refuse).start()
    with pytest.raises(SystemExit) as stop:
        follower.follow()
    assert stop.value.code == 2


def test_a_store_that_is_missing_or_gone_is_one_line(monkeypatch, capsys):
    from torch.distributed import DistNetworkError

    def fail(error):
        raise error

    assert loop.run(lambda: fail(DistNetworkError("reset"))) == 1
    assert re.fullmatch("error: lost contact with .*\n", capsys.readouterr().err)
    with pytest.raises(RuntimeError, match="another"):
        loop.run(lambda: fail(RuntimeError("another")))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    with pytest.raises(SystemExit, match="--rdzv_backend c10d"):
        Team(1, 2).store  # noqa: B018


# ---------------------------------------------------------------- whole runs: torchrun itself


def launch(*words):
    """Python on these words, in one thread, its output in pipes."""
    words, environment = [sys.executable, *map(str, words)], os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_kill_9_of_one_of_four_and_restart_gives_the_bits_of_one_process(forked):
    """Under torchrun's own agent, with one restart."""
    argv = [*RUN, "--imgs_to_eval", "40"]
    launcher = launch(ROOT / "tests" / "elastic.py", 4, *argv)
    deadline = time.monotonic() + HANGS
    while not (enough_records(FOLDER, 5) and Path("rank.2").exists() and Path("rank.2").read_text()):
        assert launcher.poll() is None and time.monotonic() < deadline, launcher.communicate()
        time.sleep(0.01)
    os.kill(int(Path("rank.2").read_text()), signal.SIGKILL)
    early = {path: path.stat().st_mtime_ns for path in FOLDER.glob("*.pt")}
    out, err = launcher.communicate(timeout=HANGS)
    assert launcher.returncode == 0, err
    first, second = re.findall(r"Images: (\d+) to do here, (\d+) of 40 done before", out)
    assert first == ("40", "0") and int(second[1]) >= 5, out
    # all processes together did what was left, once; a fast machine may have left nothing
    assert (f"({second[0]} in " in out) == (int(second[0]) > 0) and "n = 40" in out
    assert all(path.stat().st_mtime_ns == when for path, when in early.items()) and "Traceback" not in err
    shared = records()
    shutil.rmtree("data")
    assert forked.run([{}], argv) == [0]
    assert shared == records() and len(shared) == 40


@pytest.mark.slow
def test_bad_input_is_one_line_for_all_processes():
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    launcher = launch(*torchrun, ROOT / "eval_prob_adaptive.py", *RUN, "--n_samples", "50", "10")
    out, err = launcher.communicate(timeout=HANGS)
    assert out == "" and err.count("--n_samples") == 1 and "error: --n_samples" in err
    assert "exitcode  : 2" in err and not re.search(r"exitcode  : [^2]", err), err
    assert not Path("data").exists()


# ---------------------------------------------------------------- whole runs: processes forked from one, for speed


@pytest.fixture(scope="module")
def crew():
    """size -> environments of that many processes of torchrun, which meet in a store like that of its agent."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def environments(size):
        common = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": str(size)}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]

    return environments


def problems(err):
    """Lines of standard error but those of progress, which a slow machine prints."""
    return [line for line in err.splitlines() if not re.match(r" *\d+% \d+/\d+ \[", line)]


PAIRS = ["--model", "sd", *MODEL, "--t_interval", 250, "--data_dir", GOLDEN / "data" / "winoground"]
CLOTHES = ["--dataset", "fashion_mnist", "--t_interval", 200, "--imgs_to_eval", 20]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["eval_prob_adaptive", "eval_prob_dit", "per class", "run_winoground"])
def test_a_team_gives_the_bits_of_one_process(command, forked, crew, tiny_dit):
    argv = {
        "eval_prob_adaptive": [*RUN, "--imgs_to_eval", 20, "--strategy", "stages"],
        "eval_prob_dit": [*tiny_dit, *CLOTHES],
        "per class": [*tiny_dit, *CLOTHES, "--cls", "3,5", "--save_per_class"],
        "run_winoground": PAIRS,
    }[command]
    command = "eval_prob_dit" if command == "per class" else command
    n = 8 if command == "run_winoground" else 20
    assert forked.run(crew(3), argv, command) == [0, 0, 0], [said(rank) for rank in range(3)]
    out, err = said()
    assert problems(err) == [] and f"{n} to do here" in out and f"({n} in " in out
    assert [said(rank) for rank in (1, 2)] == [("", "")] * 2
    shared = {path: comparable(torch.load(path, weights_only=True)) for path in sorted(Path("data").rglob("*.pt"))}
    shutil.rmtree("data")
    assert forked.run([{}], argv, command) == [0]
    alone = {path: comparable(torch.load(path, weights_only=True)) for path in sorted(Path("data").rglob("*.pt"))}
    assert alone == shared and len(shared) == n * (2 if "--cls" in argv else 1)
    results = [line for line in said()[0].splitlines() if "interval" in line]
    assert results == [line for line in out.splitlines() if "interval" in line]


@pytest.mark.slow
def test_failures_of_every_process_are_told_by_the_first(forked, crew, tmp_path):
    for i in range(12):
        path = tmp_path / "pictures" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((70, 80), 20 * i, np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[: 40 if i % 2 else None])
    argv = ["--dataset", "folder", "--data_dir", tmp_path / "pictures", *MODEL, "--to_keep", "1", "--n_samples", "3"]
    assert forked.run(crew(3), argv) == [1, 0, 0]
    out, err = said()
    assert "error: 6 images failed, all others were evaluated" in err and err.count(".png") >= 6 and "n = 6" in out
    assert said(1) == said(2) == ("", "")


@pytest.mark.slow
def test_an_error_of_one_process_only_is_its_own_to_tell(forked, crew, tmp_path):
    assert forked.run([{"LOG_DIR": str(tmp_path / "other")}], [*RUN, "--imgs_to_eval", 1, "--seed", 1]) == [0]
    leader, follower = crew(2)
    children = forked.start([leader, follower | {"LOG_DIR": str(tmp_path / "other")}], [*RUN, "--imgs_to_eval", 2])
    assert forked.wait(children[1:]) == [2]
    assert re.fullmatch("error: rank 1: .* seed .*\n", said(1)[1])
    os.kill(children[0], signal.SIGKILL)  # as torchrun does
    assert forked.wait(children[:1]) == [-signal.SIGKILL]


@pytest.mark.slow
@pytest.mark.parametrize("argv", [["--imgs_to_eval", "0"], ["--prompt_path", "none.csv"]])
def test_what_is_wrong_for_all_is_told_once(argv, forked, crew):
    assert forked.run(crew(3), [*RUN, *argv]) == [2, 2, 2]
    assert [line.partition(":")[0] for line in problems(said()[1])] == ["error"] and said(1) == said(2) == ("", "")


@pytest.mark.slow
def test_sigterm_stops_all_after_the_image_in_work(forked, crew):
    children = forked.start(crew(3), RUN)
    forked.wait_for_records(FOLDER, 60, children)
    forked.wait_for(lambda: all(map(at_work, children)), children)  # before that a signal ends a process at once
    for child in children:
        os.kill(child, signal.SIGTERM)
    assert forked.wait(children) == [128 + signal.SIGTERM] * 3
    assert "Stopped by SIGTERM: run the same command to continue." in said()[1] and said(1) == said(2) == ("", "")
    assert 60 <= len(records()) < 1000


@pytest.mark.slow
def test_two_processes_on_one_share_lose_and_break_nothing(forked):
    argv = [*RUN, "--imgs_to_eval", 12]
    assert forked.run([{}, {}], argv) == [0, 0]
    twice = records()
    assert len(twice) == 12 and not list(FOLDER.glob(".*")) and "n = 12" in said(1)[0]
    shutil.rmtree("data")
    assert forked.run([{}], argv) == [0] and records() == twice


@pytest.mark.slow
def test_twenty_kills_leave_whole_records_and_none_is_made_twice(forked, crew):
    """Five starts of four processes, which die one by one at random moments of starting, working and writing."""
    rng, written, argv = random.Random(0), {}, [*RUN, "--imgs_to_eval", 400]
    for number in range(5):
        children = forked.start(crew(4), argv)
        if number % 4:
            forked.wait_for_records(FOLDER, min(len(written) + 1, 400), children)
        for child in rng.sample(children, 4):
            time.sleep(rng.uniform(0, 0.3))
            os.kill(child, signal.SIGKILL)
        assert set(forked.wait(children)) <= {-signal.SIGKILL, 0}
        now = {path: path.stat().st_mtime_ns for path in FOLDER.glob("*.pt")}
        assert written == {path: now[path] for path in written}
        written = now
    assert len(run_folder.load_outcomes(run_folder.list_records(FOLDER))) == len(written) > 0
    assert forked.run(crew(4), argv) == [0, 0, 0, 0]
    (out, err), left = said(), 400 - len(written)
    assert problems(err) == [] and f"{left} to do here, {len(written)} of 400 done before" in out and "n = 400" in out
    assert (f"({left} in " in out) == (left > 0) and len(records()) == 400  # a fast machine may have left nothing
