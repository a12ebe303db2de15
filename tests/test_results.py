"""--results FILE.json: every number against a plain loop over the records, when it is written and when it is refused."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script, staged_record, write_run
from scipy.stats import binomtest

import eval_prob_adaptive
import eval_prob_dit
import run_winoground
from diffusion.analysis import results
from diffusion.runs import loop, run_folder, tracking

CLIP_BENCHMARK = ["dataset", "model", "pretrained", "task", "metrics", "language"]
RACE = {"--version": "tiny", "--dataset": "fashion_mnist", "--imgs_to_eval": 3, "--to_keep": 1, "--n_samples": 2, "--loss": "l1"}
COMMANDS = {
    "eval_prob_adaptive": RACE,
    "eval_prob_dit": {"--model": "tiny", "--dataset": "fashion_mnist", "--imgs_to_eval": 3, "--t_interval": 500},
    "eval_clip": {"--version": "tiny", "--dataset": "tiny_combos", "--imgs_to_eval": 3},
}


def main_of(command):
    known = {"eval_prob_adaptive": eval_prob_adaptive, "eval_prob_dit": eval_prob_dit, "run_winoground": run_winoground}
    return (known.get(command) or load_script(command)).main


def words(options):
    return [word for pair in options.items() for word in pair]


def read(path="r.json"):
    return json.loads(Path(path).read_text())


def wilson(right, n):
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return [interval.low, interval.high]


def recall_by_hand(pairs):
    """As scikit-learn's balanced_accuracy_score: the mean over labels of the share that is right. pairs: (label, pred)."""
    of_label = {}
    for label, pred in pairs:
        of_label.setdefault(label, []).append(label == pred)
    return sum(sum(right) / len(right) for right in of_label.values()) / len(of_label)


@pytest.fixture
def errors():
    """Of 40 images and 7 candidates on 4 pairs, all different."""
    return np.random.default_rng(0).permutation(40 * 7 * 4).reshape(40, 7, 4).astype(np.float32)


# ---------------------------------------------------------------- numbers


def test_metrics_are_those_of_a_plain_loop(errors, tmp_path):
    labels = [i * i % 7 for i in range(40)]
    found = results.of_folder(write_run(tmp_path / "run", errors, [1, 3, 5, 7], labels))
    orders = [sorted(range(7), key=lambda k: image[k].mean()) for image in errors.astype(float)]
    first = [order[0] == label for order, label in zip(orders, labels, strict=True)]
    fifth = [label in order[:5] for order, label in zip(orders, labels, strict=True)]
    recall = recall_by_hand([(label, order[0]) for order, label in zip(orders, labels, strict=True)])
    assert found["metrics"] == pytest.approx({"acc1": sum(first) / 40, "acc5": sum(fifth) / 40, "mean_per_class_recall": recall})
    assert sum(first) < sum(fifth) < 40  # else acc5 is not tested
    assert found["intervals"]["acc1"] == pytest.approx(wilson(sum(first), 40))
    assert found["intervals"]["acc5"] == pytest.approx(wilson(sum(fifth), 40))
    low, high = found["intervals"]["mean_per_class_recall"]
    assert low < recall < high
    assert (found["n"], found["evaluations"], found["n_expected"]) == (40, 28, None)


def test_classes_of_several_prompts_rank_as_one_each(tmp_path):
    """Seven prompts of three classes rank three classes, so there is no acc5; of five it is the best five, by the best prompt."""
    for class_of, ranked in (([0, 0, 0, 1, 1, 2, 2], False), ([0, 0, 1, 2, 3, 4, 5], True)):
        folder = tmp_path / str(len(set(class_of)))
        means = [[1, 9, 2, 3, 4, 5, 6], [9, 8, 1, 2, 3, 4, 5]]  # class 0 first; class 0 sixth
        folder.mkdir()
        for index, row in enumerate(means):
            record = staged_record(
                range(7), {k: np.full(2, e, np.float32) for k, e in enumerate(row)}, [1, 2], class_of[np.argmin(row)], 0
            )
            run_folder.save_record(folder / f"{index}.pt", record)
        config = {"identity": {}, "candidates": {"labels": class_of, "names": ["x"] * 7}}
        (folder / "config.json").write_text(json.dumps(config))
        assert results.of_folder(folder)["metrics"].get("acc5") == (0.5 if ranked else None)


@pytest.mark.parametrize(("survivors", "wanted"), [(5, 0.5), (6, 0.5), (4, None), (1, None)])
def test_acc5_needs_five_classes_that_saw_everything(survivors, wanted, tmp_path):
    """A dropped class comes after those that were not, whatever its mean on fewer pairs."""
    for index, label in enumerate((0, 6)):
        rows = {k: np.full(4 if k < survivors else 2, 10 + k if k < survivors else 1, np.float32) for k in range(7)}
        run_folder.save_record(tmp_path / f"{index}.pt", staged_record(range(7), rows, [1, 2, 3, 4], 0, label))
    assert results.of_folder(tmp_path)["metrics"].get("acc5") == wanted


def test_one_image_that_ranks_fewer_leaves_acc5_out(errors, tmp_path):
    folder = write_run(tmp_path / "run", errors, [1, 3, 5, 7], [0] * 40)
    assert "acc5" in results.of_folder(folder)["metrics"]
    rows = {k: errors[0][k][: 4 if k < 4 else 2] for k in range(7)}
    run_folder.save_record(folder / "0.pt", staged_record(range(7), rows, [1, 3, 5, 7], 0, 0))
    assert results.of_folder(folder)["metrics"].keys() == {"acc1", "mean_per_class_recall"}


def test_some_images_of_a_folder(errors, tmp_path):
    folder = write_run(tmp_path / "run", errors, [1, 3, 5, 7], errors.mean(2).argmin(1))
    found = results.of_folder(folder, only=[3, 5, 77])
    assert (found["n"], found["n_expected"], found["metrics"]["acc1"]) == (2, 3, 1.0)


def test_records_that_do_not_count_are_told(errors, tmp_path):
    folder = write_run(tmp_path / "run", errors, [1, 3, 5, 7], [0] * 40)
    (folder / "7.pt").write_bytes(b"")
    unreadable = []
    assert results.of_folder(folder, unreadable=unreadable)["n"] == 39 and unreadable[0].startswith("7.pt")


@pytest.mark.parametrize("fell", [[1], {9: 1}, {0: "a"}, 3])
def test_rounds_that_no_race_wrote(fell, tmp_path):
    record = staged_record(range(2), {0: [1.0, 2.0], 1: [3.0, 4.0]}, [1, 2], 0, 0)
    run_folder.save_record(tmp_path / "0.pt", record | {"fell": {1: 2}, "evaluations": 4})
    assert results.of_folder(tmp_path)["evaluations"] == 4
    run_folder.save_record(tmp_path / "1.pt", record | {"fell": fell, "evaluations": 4})
    unreadable = []
    assert results.of_folder(tmp_path, unreadable=unreadable)["n"] == 1 and "1.pt" in unreadable[0]


def test_scores_of_pairs(tmp_path):
    """Winoground's three scores by a plain loop; normalised, the image score is another."""
    scores = np.random.default_rng(1).normal(size=(50, 4))
    for i, row in enumerate(scores):
        record = dict(zip(("c0_i0", "c0_i1", "c1_i0", "c1_i1"), map(torch.tensor, row), strict=True))
        run_folder.save_record(tmp_path / f"{i}.pt", record)
    text = [a > c and d > b for a, b, c, d in scores]
    image = [a > b and d > c for a, b, c, d in scores]
    both = [t and i for t, i in zip(text, image, strict=True)]
    found = results.of_folder(tmp_path)
    assert found["task"] == "image_caption_selection" and found["score_mode"] == "conditional" and found["evaluations"] == 4
    assert found["metrics"] == pytest.approx({"text_acc": sum(text) / 50, "image_acc": sum(image) / 50, "acc": sum(both) / 50})
    assert found["intervals"]["acc"] == pytest.approx(wilson(sum(both), 50))
    normalised = results.of_folder(tmp_path, score_mode="normalised")
    margins = [(a - c) - (b - d) for a, b, c, d in scores]
    assert normalised["metrics"]["image_acc"] == pytest.approx(sum(m > 0 for m in margins) / 50)


@pytest.mark.parametrize(("kind", "told"), [(run_folder.ONE_CLASS, "print_dit_acc"), (run_folder.PAIRS, "no readable record")])
def test_folders_of_which_nothing_follows(kind, told, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"identity": {}, "command": "x", "kind": kind}))
    with pytest.raises(ValueError, match=told):
        results.of_folder(tmp_path)


# ---------------------------------------------------------------- the commands


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_writes_what_its_records_say(command, run_main):
    argv = [*words(COMMANDS[command]), "--results", "out/r.json"]
    code, out, err = run_main(main_of(command), *argv)
    assert code == 0 and "Results: out/r.json\n" in out, err
    found, folder = read("out/r.json"), next(Path("data").rglob("config.json")).parent
    assert list(found)[:6] == CLIP_BENCHMARK and found["dataset"] == COMMANDS[command]["--dataset"] and found["model"] == "tiny"
    records = [run_folder.load_record(path) for path in run_folder.list_records(folder).values()]
    right = sum(record["pred"] == record["label"] for record in records)
    assert found["metrics"]["acc1"] == pytest.approx(right / 3) and found["n"] == found["n_expected"] == 3
    assert found["metrics"]["mean_per_class_recall"] == pytest.approx(recall_by_hand([(r["label"], r["pred"]) for r in records]))
    assert found["evaluations"] == {"eval_prob_adaptive": 20, "eval_prob_dit": 20, "eval_clip": 1}[command]
    assert found["run"] == str(folder) and found["command"].endswith(" ".join(map(str, argv)))

    of_folder = results.of_folder(folder)
    assert {**found, "command": None} == of_folder

    Path("out/r.json").unlink()  # all of it was done before
    assert run_main(main_of(command), *argv)[0] == 0 and read("out/r.json") == found


@pytest.mark.slow
def test_winoground(run_main):
    argv = ["--model", "openclip", "--version", "tiny", "--dataset", "tiny_pairs", "--score_mode", "normalised"]
    code, _, err = run_main(run_winoground.main, *argv, "--results", "r.json")
    assert code == 0, err
    found = read()
    scores = run_folder.load_pairs(Path(found["run"]))
    text = [s.c0_i0 > s.c1_i0 and s.c1_i1 > s.c0_i1 for s in scores.values()]
    assert found["n"] == len(text) == 480 and found["metrics"]["text_acc"] == pytest.approx(sum(text) / 480)
    assert found["metrics"]["acc"] == found["metrics"]["text_acc"] and found["score_mode"] == "normalised"


def test_only_the_images_of_the_command(run_main):
    """A folder can hold more; two runs of one identity say so."""
    main, more = load_script("eval_clip").main, COMMANDS["eval_clip"] | {"--imgs_to_eval": 8}
    assert run_main(main, *words(more), "--results", "more.json")[0] == 0
    assert run_main(main, *words(COMMANDS["eval_clip"]), "--results", "r.json")[0] == 0
    assert (read("more.json")["n"], read()["n"]) == (8, 3) and read("more.json")["identity"] == read()["identity"]
    assert run_main(main, *words(more), "--templates", write_templates(), "--results", "t.json")[0] == 0
    assert read("t.json")["identity"] != read()["identity"]


def write_templates():
    Path("templates.txt").write_text("a photo of a {}.\na {}.\n")
    return "templates.txt"


def test_a_dry_run_writes_none(run_main):
    assert run_main(eval_prob_adaptive.main, *words(RACE), "--results", "r.json", "--dry_run")[0] == 0
    assert not Path("r.json").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_cannot_be_written_is_refused_before_work(command, run_main):
    Path("taken").mkdir()
    code, _, err = run_main(main_of(command), *words(COMMANDS[command]), "--results", "taken")
    assert (
        code == 2 and err == "error: argument --results: taken is a directory: name another file\n" and not Path("data").exists()
    )


@pytest.mark.parametrize("cls", [["--cls", "7"], ["--save_per_class"]])
def test_class_folders_predict_nothing(cls, run_main):
    code, _, err = run_main(eval_prob_dit.main, *words(COMMANDS["eval_prob_dit"]), *cls, "--results", "r.json")
    assert code == 2 and "--results does nothing with a folder per class" in err and not list(Path().iterdir())


# ---------------------------------------------------------------- how a run can end


@pytest.fixture
def ended():
    return loop.Ended(loop.Tally(), {})


def test_a_run_that_was_stopped_writes_none(errors, ended, tmp_path):
    folder = write_run(tmp_path / "run", errors, [1, 3, 5, 7], [0] * 40)
    for stopped in (ended._replace(signal=signal.SIGINT), ended._replace(unwritten="disk full")):
        assert results.at_end("r.json", tracking.Tracker(), stopped, folder, range(40), "x") == [] and not Path("r.json").exists()
    failed = ended._replace(failures={"3": "damaged"})  # the others count
    assert (
        results.at_end("r.json", tracking.Tracker(), failed, folder, range(40), "x") == ["Results: r.json"]
        and read()["command"] == "x"
    )


def test_every_image_failed(ended, tmp_path):
    [line] = results.at_end("r.json", tracking.Tracker(), ended, tmp_path, [1, 2], "x")
    assert line.startswith("No results: ") and not Path("r.json").exists()


def test_a_file_that_cannot_be_written_in_the_end(errors, ended, tmp_path):
    folder = write_run(tmp_path / "run", errors, [1, 3, 5, 7], [0] * 40)
    Path("r.json").mkdir()
    with pytest.raises(OSError, match=r"r\.json"):
        results.at_end("r.json", tracking.Tracker(), ended, folder, range(40), "x")
    assert not list(Path().glob(".*tmp"))
