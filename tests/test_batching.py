"""Several images at once: the errors of one at a time up to rounding, full calls of the network, and nothing left behind."""

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import TINY_SD20, said, with_method

import eval_prob_adaptive
import eval_prob_dit
from diffusion import classify
from diffusion.datasets import load_prompts, open_dataset
from diffusion.kernel import batching, blocks, scores
from diffusion.kernel.noise import Seeded
from diffusion.models.denoiser import Conditions, Denoiser, ddpm
from diffusion.strategy import Outcome, Race, Stages, Strategy, schedule
from diffusion.strategy.method import Method

STRATEGIES = {"stages": Stages((3, 1), (2, 8)), "race": Race(max_samples=12)}


@pytest.fixture(scope="module")
def clothes():
    return open_dataset("fashion_mnist", "test", None, "nowhere")


@pytest.fixture(scope="module")
def classifiers(clothes):
    """The shipped models, each loaded once: a text-to-image model, and a DiT with the terms of its bound."""
    prompts = load_prompts("fashion_mnist", clothes, None, None).prompts
    sd, dit = classify.text_to_image("tiny", prompts, loss="l1"), classify.class_conditional("tiny", loss="vlb")

    def get(model, strategy, **changes):
        classifier = {"sd": sd, "dit": dit}[model]
        return dataclasses.replace(with_method(classifier, strategy=strategy), batch=blocks.Batch(32), **changes)

    return get


def pictures(clothes, n):
    """(index, picture, label) of n images, of all classes."""
    return [(index, clothes.picture(index * 29), int(clothes.labels[index * 29])) for index in range(n)]


def ended(classifier, images, n):
    """index -> Result, or what was raised."""
    found = {}
    for index, call, _ in classifier.several(images, n):
        try:
            found[index] = call()
        except Exception as problem:
            found[index] = problem
    return found


TINY_KL = 1e-9  # bits per element; the bound's terms at high t are differences near 1e-6, whose rounding any batch size moves


def assert_equal(one, other, rtol):
    assert (one.label, one.evaluations, one.dropped) == (other.label, other.evaluations, other.dropped)
    for row, errors in one.errors.items():
        np.testing.assert_allclose(other.errors[row], errors, rtol=rtol, atol=TINY_KL if rtol else 0)


# ---------------------------------------------------------------- the same results


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sd", "dit"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_several_images_get_the_results_of_one_at_a_time(model, name, classifiers, clothes):
    classifier, images = classifiers(model, STRATEGIES[name]), pictures(clothes, 17)
    alone = {index: classifier(picture, index) for index, picture, _ in images}
    for n in (1, 3, 32):
        found = ended(classifier, images, n)
        assert sorted(found) == sorted(alone)
        for index in alone:
            assert_equal(alone[index], found[index], rtol=0 if n == 1 else 1e-5)


def test_cells_are_the_errors_of_their_image(classifiers):
    """The kernel by itself, of a U-Net that shares work and one that does not, in calls that cut images and pairs."""
    classifier = classifiers("sd", STRATEGIES["race"])
    g = torch.Generator().manual_seed(0)
    asked, expected = [], []
    for rows, n in (([0, 3, 7], 4), ([5], 1), (list(range(10)), 2)):
        x0, t, noise = (
            torch.randn(4, 8, 8, generator=g),
            torch.randint(1000, (n,), generator=g),
            torch.randn(n, 4, 8, 8, generator=g),
        )
        asked.append(batching.Cells(x0, rows, t, noise.__getitem__, range(len(rows) * n)))
        score = scores.SCORES["l2"]
        expected.append(blocks.errors(classifier.denoiser, x0, classifier.conditions[rows], t, noise, score, blocks.Batch(7)))
    for denoiser in (classifier.denoiser, dataclasses.replace(classifier.denoiser, shared=None)):
        for size in (1, 7, 100):
            found = batching.cell_errors(denoiser, asked, classifier.conditions, lambda x0: scores.l2, blocks.Batch(size))
            for cells, errors, right in zip(asked, found, expected, strict=True):
                torch.testing.assert_close(cells.table([errors[:2], errors[2:]]), right, rtol=1e-5, atol=0)


def test_a_part_of_cells_asks_for_its_own_pairs_only(classifiers):
    """Cells 7 to 10 of three rows are of pairs 2 and 3."""
    drawn = []

    def noise(pairs):
        drawn.append(pairs)
        return torch.zeros(2, 4, 8, 8)

    cells = batching.Cells(torch.zeros(4, 8, 8), [4, 5, 6], torch.arange(5), noise, range(15))
    _, t, _, pair, rows = batching._joined([cells.part(7, 11)])
    assert (t.tolist(), pair.tolist(), rows, drawn) == ([2, 3], [0, 0, 1, 1], [5, 6, 4, 5], [slice(2, 4)])


def test_less_memory_halves_calls_and_changes_no_result(classifiers, clothes):
    classifier, images = classifiers("dit", STRATEGIES["stages"]), pictures(clothes, 5)
    sizes = []

    def predict(x_t, t, conditions):
        if len(x_t) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(x_t))
        return classifier.denoiser.predict(x_t, t, conditions)

    small = dataclasses.replace(classifier, denoiser=dataclasses.replace(classifier.denoiser, predict=predict))
    with pytest.warns(UserWarning, match="going on with [84] evaluations"):
        found = ended(small, images, 3)
    assert small.batch.size == 4 and sum(sizes) == sum(result.evaluations for result in found.values())
    for index, picture, _ in images:
        assert_equal(classifier(picture, index), found[index], rtol=1e-5)


# ---------------------------------------------------------------- failures


def test_an_image_with_nan_errors_fails_alone(classifiers, clothes):
    classifier, images = classifiers("sd", STRATEGIES["race"]), pictures(clothes, 4)
    spoilt = [(i, torch.full((3, 64, 64), torch.nan) if i == 1 else picture, label) for i, picture, label in images]
    found = ended(classifier, spoilt, 3)
    assert isinstance(found[1], FloatingPointError) and "errors are not finite" in str(found[1])
    for index in (0, 2, 3):
        assert_equal(classifier(images[index][1], index), found[index], rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Broken(Stages):
    """Stages that cannot divide by zero once they have seen row 0's errors."""

    def eliminate(self, class_of, plan):
        yield [0], slice(0, 1)
        return 1 / 0


def test_a_failure_in_an_elimination_is_that_images(classifiers, clothes):
    found = ended(classifiers("sd", Broken((1,), (2,))), pictures(clothes, 3), 2)
    assert [type(problem) for problem in found.values()] == [ZeroDivisionError] * 3


def test_an_image_that_cannot_be_encoded_fails_alone(classifiers, clothes):
    images = [(0, torch.zeros(3), 0), *pictures(clothes, 2)[1:]]
    found = ended(classifiers("sd", STRATEGIES["stages"]), images, 2)
    assert isinstance(found[0], ValueError) and found[1].evaluations == 38


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_the_network_raises_ends_all_images(error, classifiers, clothes):
    classifier, calls = classifiers("dit", STRATEGIES["race"]), []

    def predict(x_t, t, conditions):
        calls.append(len(x_t))
        if len(calls) == 5:
            raise error("in the network")
        return classifier.denoiser.predict(x_t, t, conditions)

    broken = dataclasses.replace(classifier, denoiser=dataclasses.replace(classifier.denoiser, predict=predict))
    with pytest.raises(error, match="in the network"):
        ended(broken, pictures(clothes, 6), 4)


# ---------------------------------------------------------------- the scheduler, on a simulated device


@dataclasses.dataclass(frozen=True)
class OneByOne(Strategy):
    """Two pairs for all, then pair by pair for those that are near the best: what starves a device."""

    NAME: ClassVar = "one by one"

    def plan(self, n_levels):
        return schedule.race_plan(60, 1, n_levels)

    def eliminate(self, class_of, plan):
        alive, seen = list(range(len(class_of))), 2
        errors = dict(enumerate(np.asarray((yield alive, slice(0, 2)))))
        while len(alive) > 1 and seen < len(plan.t):
            for row, new in zip(alive, np.asarray((yield alive, slice(seen, seen + 1))), strict=True):
                errors[row] = np.append(errors[row], new)
            seen += 1
            best = min(errors[row].mean() for row in alive)
            alive = [row for row in alive if errors[row].mean() < best + 0.15 / seen**0.5]
        return Outcome(errors, min(alive, key=lambda row: errors[row].mean()))

    def folder(self):
        return "one_by_one"


class Device:
    """A network of ten candidates whose errors rise by 0.01 and more from one to the next, on a device with a clock of its own: a
    call takes a moment, and a 16th of one for each input."""

    def __init__(self, strategy, size=32):
        self.calls, self.encoded, self.begun, self.clock = [], 0, [], 0.0
        denoiser = Denoiser(self.encode, None, self.predict, ddpm(torch.linspace(0.99, 0.01, 1000)))
        conditions = Conditions(torch.arange(10.0)[:, None])
        labels, batch = list(range(10)), blocks.Batch(size)
        self.classifier = classify.Classifier(denoiser, conditions, labels, Method(strategy), Seeded(0), batch)

    def encode(self, image):
        self.encoded += 1
        return image

    def predict(self, x_t, t, conditions):
        self.calls.append(len(x_t))
        self.begun.append(self.encoded)  # images, before this call
        self.clock += 1 + len(x_t) / 16
        return (0.1 * conditions.sequence).view(-1, 1, 1, 1).expand(x_t.shape)

    def run(self, n, n_images=96):
        """Share of the calls' places that were filled."""
        images = [(index, torch.zeros(1, 4, 4), 0) for index in range(n_images)]
        self.results = {index: call() for index, call, _ in self.classifier.several(images, n)}
        assert sum(self.calls) == sum(result.evaluations for result in self.results.values())
        return sum(self.calls) / (len(self.calls) * self.classifier.batch.size)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [Race(max_samples=60), OneByOne()], ids=["race", "one by one"])
def test_32_images_in_flight_fill_a_device_that_one_starves(strategy, capsys):
    filled = {}
    for n in (1, 8, 32):
        device = Device(strategy)
        filled[n] = device.run(n)
        evaluations = sum(device.calls)
        full = evaluations / 32 * 3 / device.clock
        speed = f"{100 * full:.1f} % of the speed at full ones"
        with capsys.disabled():
            print(
                f"\n{strategy.NAME}, {n} in flight, {evaluations} evaluations: calls {100 * filled[n]:.1f} % full, {speed}",
                end="",
            )
    assert filled[1] < filled[8] <= filled[32] and filled[32] >= 0.95


@pytest.mark.slow
def test_half_of_a_call_s_size_in_flight_fills_it():
    """What auto takes on a GPU: as long as there are images to begin, calls are full, and with two images less they are not."""
    short = {}
    for n in (15, batching.width("auto", "cuda", 32)):
        device = Device(OneByOne())
        device.run(n)
        short[n] = [size for size, begun in zip(device.calls, device.begun, strict=True) if begun < 96 and size < 32]
    assert short[15] and short[17] == []


@pytest.mark.parametrize(
    ("asked", "device", "batch_size", "n"),
    [("auto", "cpu", 32, 1), ("auto", "cuda:1", 32, 17), ("auto", "cuda", 7, 4), ("auto", "cuda", "auto", "auto"),
     ("auto", "cpu", "auto", 1), (5, "cpu", 32, 5), (None, "cuda", 32, None)],
)  # fmt: skip
def test_how_many_auto_takes(asked, device, batch_size, n):
    assert batching.width(asked, device, batch_size) == n


def test_those_that_waited_longest_come_first_and_no_more_are_held_than_asked():
    """Jobs that ask for one cell, three times over; they are begun only when there is room."""
    begun, served = [], []

    class Cell:
        def __init__(self, key):
            self.key = key

        def __len__(self):
            return 1

        def part(self, start, stop):
            return self

        def table(self, pieces):
            return torch.tensor(pieces)

    def classification(key):
        begun.append(key)
        errors = []
        for _ in range(3):
            errors.append((yield Cell(key)))
        return errors

    def evaluate(parts):
        served.append([cell.key for cell in parts])
        return [float(cell.key) for cell in parts]

    ended = []
    for key, end in batching.together(((key, classification(key)) for key in range(9)), 4, lambda: 3, evaluate):
        assert end() == [torch.tensor([key])] * 3
        ended.append(key)
        assert len(begun) - len(ended) < 4
    four = [[0, 1, 2], [3, 0, 1], [2, 3, 0], [1, 2, 3]]
    assert ended == list(range(9)) and served == [*four, *([key + 4 for key in call] for call in four), [8], [8], [8]]


# ---------------------------------------------------------------- whole runs


RUN = ["--dataset", "fashion_mnist", "--model_path", TINY_SD20, "--img_size", 64, "--to_keep", 3, 1, "--n_samples", 2, 4]
FOLDER = Path("data/fashion_mnist/v2-0_1trials_3_1keep_2_4samples_64")


def records(folder=FOLDER):
    return {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))}


def assert_records(found, expected, rtol=1e-5):
    assert found.keys() == expected.keys()
    for name, record in expected.items():
        assert (record["pred"], record["label"]) == (found[name]["pred"], found[name]["label"])
        for row, candidate in record["errors"].items():
            other = found[name]["errors"][row]
            assert torch.equal(other["t"], candidate["t"])
            torch.testing.assert_close(other["pred_errors"], candidate["pred_errors"], rtol=rtol, atol=0)


def test_a_run_tells_how_many_and_mixes_with_one_at_a_time(run_main):
    assert "images_in_flight  1\n" in run_main(eval_prob_adaptive.main, *RUN, "--imgs_to_eval", 9, "--dry_run")[1]
    code, out, err = run_main(eval_prob_adaptive.main, *RUN, "--imgs_to_eval", 9)
    assert code == 0, err
    alone = records()
    for path in sorted(FOLDER.glob("*.pt"))[2:]:
        path.unlink()
    code, out, err = run_main(eval_prob_adaptive.main, *RUN, "--imgs_to_eval", 9, "--images_in_flight", 4)
    assert code == 0 and "images_in_flight  4\n" in out and "7 to do here, 2 of 9 done" in out and "n = 9" in out, err
    assert_records(records(), alone)


def test_a_class_conditional_run(run_main, tiny_dit, monkeypatch):
    argv = ["--dataset", "fashion_mnist", *tiny_dit, "--to_keep", 3, 1, "--n_samples", 2, 4, "--loss", "kl", "--imgs_to_eval", 5]
    assert run_main(eval_prob_dit.main, *argv)[0] == 0
    monkeypatch.setenv("LOG_DIR", "other")
    code, _, err = run_main(eval_prob_dit.main, *argv, "--images_in_flight", 3)
    assert code == 0, err
    folder = next(Path("data").rglob("0.pt")).parent
    assert_records(records("other" / folder.relative_to("data")), records(folder))


@pytest.mark.slow
def test_the_first_signal_lets_those_in_flight_finish(forked):
    children = forked.start([{}], [*RUN, "--images_in_flight", 5])
    forked.wait_for_records(FOLDER, 2, children)
    os.kill(children[0], signal.SIGINT)
    assert forked.wait(children) == [128 + signal.SIGINT]
    out, err = said()
    assert "Stopped by SIGINT: run the same command to continue." in err and "Traceback" not in err
    assert 2 <= len(records()) < 1000 and f"n = {len(records())}" in out and "failed" not in err


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(forked):
    argv = [*RUN, "--imgs_to_eval", 30, "--images_in_flight", 5]
    children = forked.start([{}], argv)
    forked.wait_for_records(FOLDER, 3, children)
    os.kill(children[0], signal.SIGKILL)
    forked.wait(children)
    early = {path: path.stat().st_mtime_ns for path in FOLDER.glob("*.pt")}
    assert forked.run([{}], argv) == [0]
    out, killed = said()[0], records()
    assert f"{30 - len(early)} to do here, {len(early)} of 30 done before" in out and len(killed) == 30
    assert all(path.stat().st_mtime_ns == when for path, when in early.items())
    shutil.rmtree("data")
    assert forked.run([{}], argv[:-2]) == [0]
    assert_records(killed, records())


def test_a_record_that_cannot_be_written_ends_the_run(run_main, monkeypatch):
    from diffusion.runs import run_folder

    save = run_folder.save_record

    def full(path, record):
        if len(records()) == 2:
            raise OSError(28, "No space left on device", str(path))
        save(path, record)

    monkeypatch.setattr(run_folder, "save_record", full)
    code, _, err = run_main(eval_prob_adaptive.main, *RUN, "--imgs_to_eval", 9, "--images_in_flight", 3)
    assert code == 1 and "a record could not be written" in err and "No space left" in err and len(records()) == 2
