"""scripts/report.py: every number against a table made by hand, and a page that is whole, safe and readable in a browser."""

import base64
import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import BROWSER
from conftest import GOLDEN, HANGS, TINY_SD20, load_script, staged_record
from PIL import Image
from scipy.stats import ttest_rel

import eval_prob_adaptive
from diffusion import datasets, metrics
from diffusion.analysis import summary, web
from diffusion.metrics import curves
from diffusion.runs import run_folder

NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt"]
T = torch.tensor([125, 375, 625, 875])
PLAIN = {k: [1 + k / 10] * 4 for k in range(7)}  # errors of candidates that a table does not name

# image -> label, prediction, seconds, errors; pairs ascend by t, and a report takes them in the order 0 2 1 3
FULL = {
    0: (2, 2, 1.0, {2: [0.5] * 4, 3: [0.1, 2, 2, 2]}),  # right from the second pair on
    1: (2, 3, 2.0, {2: [0.5, 0.9, 0.5, 0.9], 3: [0.4] * 4}),  # second best; margin 0.3 in sd / sqrt(4) = 0.11547
    2: (6, 0, 3.0, {6: [1.5, 1.7, 1.5, 1.7]}),  # last; margin 0.6 in 0.057735
    3: (0, 0, 10.0, {}),
}
RACE = {
    0: (2, 2, None, {k: [1.0, 1.0] for k in range(7)} | {2: [0.5] * 4, 3: [0.1, 0.8, 2, 2]}),  # 18 evaluations; wrong after two
    1: (2, 2, None, {k: [1.0, 1.0] for k in range(7)} | {2: [0.5, 0.5]}),  # 14
    2: (6, 6, None, {k: [1.0] for k in range(7)} | {6: [0.5] * 3}),  # 9
    3: (0, 1, None, {k: [1.0, 1.2] for k in range(7)} | {1: [0.5] * 4}),  # 16; margin 0.6 in sd / sqrt(2) = 0.1
}


def describe(folder, labels, names, **changes):
    """A config.json as an entry script writes it."""
    fingerprint = datasets.open_dataset("fashion_mnist", "test", None, "nowhere").fingerprint()
    about = {"dataset": "fashion_mnist", "split": "test"}
    identity = about | {"images": fingerprint, "weights": "sha256 12ab", "seed": 0, "loss": "l2"} | changes
    options = about | {"data_dir": "datasets", "loss": "l2", "prompt_path": None} | changes
    config = {
        "identity": identity,
        "options": options,
        "images_expected": 5,
        "versions": {"torch": "2.9"},
        "git_commit": "c0ffee",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {"candidates": {"labels": labels, "names": names}}))


def write_run(name, table, names=NAMES, **changes):
    folder = Path("data/fashion_mnist") / name
    describe(folder, list(range(len(names))), names, **changes)
    for index, (label, pred, seconds, errors) in table.items():
        rows = {k: np.array(e, np.float32) for k, e in (PLAIN | errors).items() if k < len(names)}
        record = staged_record(list(range(len(names))), rows, T, pred, label)
        run_folder.save_record(folder / f"{index}.pt", record | ({"seconds": seconds} if seconds else {}))
    return folder


def write_sums(name, means, labels, preds):
    """A DiT's run that kept sums. means: [n,K]."""
    folder = Path("data/fashion_mnist") / name
    describe(folder, list(range(len(means[0]))), [f"class {k}" for k in range(len(means[0]))])
    for index, (row, label, pred) in enumerate(zip(means, labels, preds, strict=True)):
        sums = 4 * torch.tensor(row, dtype=torch.float64)[:, None].repeat(1, 4)
        record = {"classes": torch.arange(len(row)), "t": T, "sums": sums, "squares": sums, "pred": pred, "label": label}
        run_folder.save_record(folder / f"{index}.pt", record)
    return folder


@pytest.fixture
def runs():
    return write_run("full", FULL), write_run("race", RACE, strategy="race", alpha=0.05)


@pytest.fixture
def report(run_main):
    """report(*argv) -> the file's text; report.printed: what the terminal showed."""

    def write(*argv, format="html"):
        code, write.printed, err = run_main(load_script("report").main, *argv, "-o", "out", "--format", format)
        assert (code, err) == (0, ""), err
        return Path(f"out/report.{format}").read_text()

    return write


# ---------------------------------------------------------------- the maths


@pytest.mark.parametrize(("label", "rank"), [(7, 0), (8, 1), (9, 2), (4, 3)])
def test_class_rank_takes_a_class_s_best_row_and_the_lower_row_at_a_tie(label, rank):
    assert curves.class_rank([0.5, 0.2, 0.2, 0.1], [8, 8, 9, 7], label) == rank  # 4 has no row: after all three classes


def test_per_class_and_confusion_count():
    preds, labels = [1, 2, 2, 1], [1, 1, 2, 1]
    assert {c: (e.value, e.n) for c, e in summary.per_class(preds, labels).items()} == {1: (2 / 3, 3), 2: (1.0, 1)}
    assert summary.confusion(preds, labels) == [(1, 1, 2), (1, 2, 1), (2, 2, 1)]


def test_paired_margin_is_a_mean_in_standard_errors():
    errors, best = [0.5, 0.9, 0.5, 0.9], [0.4] * 4
    assert curves.paired_margin(errors, best) == pytest.approx(0.3 / (math.sqrt(0.16 / 3) / 2))
    assert curves.paired_margin(errors, best) == pytest.approx(ttest_rel(errors, best).statistic, rel=1e-12)
    assert curves.paired_margin([1.0], [0.5]) is None and curves.paired_margin([1.0, 2.0], [0.0, 1.0]) is None


def test_running_predictions_leave_out_the_fallen():
    errors = [[1.0, 1.0], [0.5, 3.0, 0.1, 0.1], [0.9, 2.0, 3.0, 3.0]]
    labels, spent = curves.running_predictions(errors, [4, 5, 6], [1, 2, 3, 9])
    assert labels.tolist() == [5, 4, 5, 5] and spent.tolist() == [3, 6, 8, 10]


def test_quantile_groups_keep_equal_values_together():
    groups = curves.quantile_groups([5, 1, 1, 1, 9, 7], 3)
    assert [g.tolist() for g in groups] == [[1, 2, 3], [0], [4, 5]]
    assert [g.tolist() for g in curves.quantile_groups([2, 2], 5)] == [[0, 1]]
    assert [len(g) for g in curves.quantile_groups(range(100), 5)] == [20] * 5


# ---------------------------------------------------------------- the numbers


def test_every_number_of_a_full_run_by_hand(runs, report):
    found = json.loads(report(runs[0], format="json"))["runs"][0]
    assert (found["n"], found["n_expected"], found["kept"], found["unreadable"]) == (4, 5, "full", [])
    assert {key: (found[key]["value"], found[key]["n"]) for key in ("top1", "top5", "mean_per_class")} == {
        "top1": (0.5, 4),
        "top5": (0.75, 4),
        "mean_per_class": (0.5, 4),  # 1/1, 1/2, 0/1
    }
    assert (found["top5"]["low"], found["top5"]["high"]) == metrics.wilson(0.75, 4)
    assert found["evaluations"] == {"median": 28, "mean": 28, "p95": 28, "total": 112}
    assert found["seconds"] == pytest.approx({"median": 2.5, "mean": 4, "p95": 8.95, "total": 16, "n": 4})
    assert {c: (e["value"], e["n"]) for c, e in found["classes"].items()} == {"0": (1, 1), "2": (0.5, 2), "6": (0, 1)}
    assert found["confusion"] == [[0, 0, 1], [2, 2, 1], [2, 3, 1], [6, 0, 1]]
    curve = [(p["pairs"], p["evaluations"], p["accuracy"]["value"]) for p in found["curve"]]
    assert curve == [(1, 7, 0.25), (2, 14, 0.5), (4, 28, 0.5)] and found["groups"] == []
    mistakes = [(m["index"], m["label"], m["pred"], m["unit"], m["pairs"]) for m in found["mistakes"]]
    assert mistakes == [(2, 6, 0, "SE", 4), (1, 2, 3, "SE", 4)]
    assert [m["margin"] for m in found["mistakes"]] == pytest.approx([0.6 / 0.0577350, 0.3 / 0.1154701], rel=1e-5)


def test_every_number_of_a_race_and_the_comparison_by_hand(runs, report):
    found = json.loads(report(*runs, format="json"))
    race = found["runs"][1]
    assert (race["kept"], race["top5"], race["seconds"], race["top1"]["value"]) == ("race", None, None, 0.75)
    assert race["evaluations"] == pytest.approx({"median": 15, "mean": 14.25, "p95": 17.7, "total": 57})
    curve = [(p["pairs"], p["evaluations"], p["accuracy"]["value"]) for p in race["curve"]]
    assert curve == [(1, 7, 0.5), (2, 12.5, 0.5), (4, 14.25, 0.75)]
    groups = [(g["from"], g["to"], g["accuracy"]["value"], g["accuracy"]["n"]) for g in race["groups"]]
    assert groups == [(9, 9, 1, 1), (14, 14, 1, 1), (16, 16, 0, 1), (18, 18, 1, 1)]
    assert [(m["index"], m["pairs"]) for m in race["mistakes"]] == [(3, 2)]
    assert race["mistakes"][0]["margin"] == pytest.approx(6, rel=1e-5)
    (compared,) = found["comparisons"]
    expected = metrics.paired_difference([1, 0, 0, 1], [1, 1, 1, 0])
    assert compared["difference"] == expected.as_dict() and (expected.value, expected.n) == (-0.25, 4)
    assert (compared["only_first"], compared["only_second"], compared["p_value"]) == (1, 2, 1.0)


def test_stages_stop_where_stages_end(report):
    images = {0: (2, 2, None, {k: [1.0] for k in range(7)} | {1: [0.2, 3, 3, 3], 2: [0.5] * 4})}
    found = json.loads(report(write_run("stages", images), format="json"))["runs"][0]
    assert [(p["pairs"], p["evaluations"], p["accuracy"]["value"]) for p in found["curve"]] == [(1, 7, 0), (4, 13, 1)]
    assert found["kept"] == "stages" and found["mistakes"] == []


def test_sums_rank_classes_but_have_no_curve(report):
    folder = write_sums("sums", [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [2, 1, 3, 4, 5, 6]], [0, 5, 0], [0, 0, 1])
    found = json.loads(report(folder, format="json"))["runs"][0]
    assert (found["kept"], found["curve"]) == ("sums", [])
    assert found["top5"]["value"] == pytest.approx(2 / 3)
    margins = [(m["index"], m["margin"], m["unit"]) for m in found["mistakes"]]
    assert margins == [(1, pytest.approx(500), "%"), (2, pytest.approx(100), "%")]
    assert "--save_errors" in report(folder)


def test_five_classes_have_no_top5(report):
    assert "one of at most five classes" in report(write_sums("few", [[1, 2, 3, 4, 5]], [0], [0]))


def test_many_classes_show_the_worst(report):
    labels = list(range(60)) * 2
    preds = [59 - label if label < 25 else label for label in labels]
    means = [[0.5 if k == pred else 1.0 for k in range(60)] for pred in preds]
    page = report(write_sums("many", means, labels, preds))
    assert "The 20 of 60 classes with the lowest accuracy" in page and "The 20 most confused pairs" in page
    assert "Confusion matrix" not in page and len(re.findall('<td class="bar">', page)) == 20


def test_images_of_only_one_run_are_not_compared(report):
    first, second = write_run("full", FULL), write_run("part", {k: RACE[k] for k in (1, 3)}, strategy="race")
    assert json.loads(report(first, second, format="json"))["comparisons"][0]["difference"]["n"] == 2
    other = write_run("other", {9: RACE[0]}, strategy="race")
    assert json.loads(report(first, other, format="json"))["comparisons"] == []
    report(first, other)


# ---------------------------------------------------------------- formats


def rows_of_md(text):
    """The cells of all tables, without their heads."""
    lines = text.splitlines()
    rows = [
        line for line, after in zip(lines, [*lines[1:], ""], strict=True) if line[:1] == "|" and "| --- |" not in line + after
    ]
    return [[cell.strip().replace("\\\\", "\\") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_the_formats_hold_the_same_numbers(runs, report):
    page, md = text_of(report(*runs)), report(*runs, format="md")
    table, whole = list(csv.DictReader(io.StringIO(report(*runs, format="csv")))), json.loads(report(*runs, format="json"))
    cells = [cell for row in rows_of_md(md) for cell in row]
    assert len(cells) > 200 and [cell for cell in cells if cell not in page] == []
    values = {(row["run"], row["quantity"], row["item"]): row for row in table}
    for run in whole["runs"]:
        for key in ("top1", "top5", "mean_per_class"):
            if run[key]:
                row = values[str(run["number"]), key, ""]
                assert [float(row[k]) for k in ("value", "low", "high", "n")] == list(run[key].values())
                told = f"{100 * run[key]['low']:.1f} to {100 * run[key]['high']:.1f}, n = 4"
                assert told in page and told in md
        assert sum(int(r["value"]) for r in table if (r["run"], r["quantity"]) == (str(run["number"]), "confusion")) == run["n"]
    assert float(values["1 less 2", "difference", ""]["low"]) == whole["comparisons"][0]["difference"]["low"]
    assert {row["quantity"] for row in table} >= {"accuracy_after_pairs", "accuracy_by_evaluations", "margin_SE", "p_value"}


def test_the_terminal_shows_the_runs(runs, report):
    report(*runs)
    lines = report.printed.splitlines()
    assert len(lines) == 4 and lines[3] == f"Written: {Path('out/report.html')}"
    for line, told in zip(lines[1:], ("1: full  50.00 % (15.0 to 85.0)", "2: race  75.00 % (30.1 to 95.4)"), strict=False):
        assert line.startswith(told) and "4 of 5" in line
    assert lines[1].split()[-1] == "4" and "14.2" in lines[2] and "not recorded" in lines[2]  # means


def test_what_was_run_is_told(runs, report):
    page = text_of(report(*runs))
    for told in ("sha256 12ab", "torch 2.9", "c0ffee", "--dataset", "Where the runs differ", "alpha", "0.05"):
        assert told in page
    assert "--prompt_path" not in page


def test_half_written_records_are_skipped_counted_and_named(runs, report):
    (runs[0] / "4.pt").write_bytes(b"PK\x03\x04 half")
    for format in ("html", "md", "json", "csv"):
        text = report(runs[0], format=format)
        assert ("4.pt" in text) or (format == "csv" and "1,unreadable,,1" in text)
        assert "1 unreadable record, not counted: 4.pt" in report.printed


def test_a_folder_of_the_published_code(report):
    folder = Path("old")
    folder.mkdir()
    shutil.copy(GOLDEN / "reference_record.pt", folder / "0.pt")
    page = text_of(report(folder))
    assert (
        "of an unknown number" in page
        and "the published code wrote it" in page
        and "has no config.json, so neither its images nor its model are known" in page
    )


def test_a_real_run(report, run_main):
    argv = ["--dataset", "fashion_mnist", "--model_path", TINY_SD20, "--img_size", 64, "--imgs_to_eval", 3]
    code, _, err = run_main(eval_prob_adaptive.main, *argv, "--to_keep", 3, 1, "--n_samples", 2, 4)
    assert code == 0, err
    page = report(next(Path("data/fashion_mnist").iterdir()))
    wrong = 3 - round(3 * float(re.search(r"<b>([\d.]+) %</b>", page)[1]) / 100)
    assert len(check(page).images) == wrong > 0 and "not recorded" not in page


# ---------------------------------------------------------------- the page

VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """What a page holds; `open` is empty at the end of a balanced one."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.loads, self.images, self.text, self.tags = [], [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.loads += [given[name] for name in ("src", "href", "srcset", "data") if name in given]
        self.images += [given] if tag == "img" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += [data] if self.open[-1:] != ["style"] else []


def text_of(page):
    return "\n".join(Page(page).text)


def check(text):
    """A page that is balanced, has each id once, loads nothing, and whose pictures are pictures with a text."""
    page = Page(text)
    assert page.open == [] and len(page.ids) == len(set(page.ids)) and "script" not in page.tags
    assert all(re.match("data:|#", load) for load in page.loads), page.loads
    assert {load[1:] for load in page.loads if load.startswith("#")} <= set(page.ids)
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    for image in page.images:
        assert image["alt"]
        Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1], validate=True))).load()
    return page


def test_the_page_is_whole_and_loads_nothing(runs, report):
    page = check(report(*runs))
    assert len(page.images) == 3 and page.ids.count("run-1") == 1
    data = datasets.open_dataset("fashion_mnist", "test", None, "nowhere")
    shown = Image.open(io.BytesIO(base64.b64decode(page.images[0]["src"].split(",")[1])))
    np.testing.assert_array_equal(np.asarray(shown.convert("L")), data[2][0])  # the first mistake, as it is
    assert page.images[0]["alt"] == "image 2: Shirt, taken for T-shirt/top"


def test_large_pictures_are_made_small():
    uri = web.data_uri(Image.new("RGBA", (1000, 500), "red"))
    assert uri.startswith("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (192, 96)


def test_names_are_escaped(report):
    names = ["<script>alert(1)</script>", 'a|"b"', "&amp;", "</title>", "x" * 90, "'", "\\"]
    folder = write_run("<b>&run", FULL, names=names, weights="<i>")
    page = check(report(folder))
    assert not {"script", "b>", "i"} & set(page.tags)
    text = "\n".join(page.text)
    assert all(name in text for name in [*names, "<b>&run", "<i>"])
    md = report(folder, format="md")
    assert "<script" not in md and "\\|" in md
    widths = {len(row) for row in rows_of_md(md[md.index("### Confusion") : md.index("### Most")])}
    assert widths == {8}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dataset": "cifar10"}, "set --data_dir"),
        ({"images": "0"}, "made with other images"),
        ({"data_dir": "nowhere", "dataset": "folder"}, "expected <class name>"),
    ],
)
def test_mistakes_without_their_images(changes, told, report):
    page = report(write_run("full", FULL, **changes))
    assert "not available" in page and told in text_of(page) and check(page).images == []
    assert "10.39 SE on 4 pairs" in page


def test_images_from_another_place(report):
    folder = write_run("moved", FULL, data_dir="/nowhere")
    assert len(check(report(folder, "--data_dir", "here")).images) == 2


# ---------------------------------------------------------------- bad input


def bad_folders(runs):
    full = runs[0]
    dit, pairs, broken, half = (Path(name) for name in ("DiT64x64_cls1_t250_1trials", "pairs", "broken", "half"))
    for folder in (dit, pairs, broken, Path("empty")):
        folder.mkdir()
    torch.save(torch.ones(4, 1), dit / "0.pt")
    torch.save(dict.fromkeys(("c0_i0", "c0_i1", "c1_i0", "c1_i1"), torch.ones(2, 1)), pairs / "0.pt")
    shutil.copytree(full, half)
    (half / "config.json").write_text('{"options": {}}')
    (broken / "config.json").write_text("{")
    Path("file").write_text("mine")
    yield ["empty"], "empty holds no readable record"
    yield ["nowhere"], "nowhere holds no readable record"
    yield [dit], "scripts/print_dit_acc.py"
    yield [pairs], "scripts/print_winoground.py"
    yield [broken], "not readable JSON"
    yield [half], "has no 'identity'"
    yield [full, full], "given twice"
    yield [full, "-o", "file"], "-o file is a file"
    yield [full, "--prompt_path", "none.csv", "--format", "pdf"], "--format"
    yield [full, write_run("other", FULL, dataset="cifar10")], "--dataset (fashion_mnist, cifar10)"
    yield [full, write_run("train", FULL, split="train")], "--split"
    yield [full, write_run("copy", FULL, images="0")], "--data_dir"
    yield [full, write_run("few", {3: FULL[3]}, names=NAMES[:3])], "classes to choose from (7, 3 of them)"
    yield [full, write_run("labels", {3: (1, *FULL[3][1:])})], "two labels"
    yield [], "RUN"


def test_bad_input_is_one_line(runs, run_main):
    for argv, told in bad_folders(runs):
        argv = argv if "-o" in argv else [*argv, "-o", "out"]
        code, _, err = run_main(load_script("report").main, *argv)
        assert code == 2 and err.count("\n") == 1 and told in err, (argv, err)
    assert not Path("out").exists() and Path("file").read_text() == "mine"


def test_nothing_half_written(runs, report, run_main, monkeypatch):
    before = report(runs[0])

    def fail(*paths):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    code, _, err = run_main(load_script("report").main, *runs, "-o", "out")
    assert code == 2 and "no space left" in err
    assert [p.name for p in Path("out").iterdir()] == ["report.html"] and Path("out/report.html").read_text() == before


# ---------------------------------------------------------------- a real browser

PROBE = """<script>
const problems = [];
addEventListener("error", e => problems.push(String(e.message || e.target.src)), true);
addEventListener("load", () => parent.postMessage({
  problems, images: document.images.length, broken: [...document.images].filter(image => !image.naturalWidth).length,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth}, "*"));
</script>"""
FRAME = """<!DOCTYPE html><iframe src="page.html" style="width: {width}px; height: 800px; border: 0"></iframe><pre></pre><script>
addEventListener("message", e => document.querySelector("pre").textContent = JSON.stringify(e.data));</script>"""
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=3000", "--enable-logging=stderr"]


def browse(text, width):
    """What a page of this width says of itself, and what the console shows. In a frame: a window has a least width."""
    Path("page.html").write_text(text.replace("<head>", f"<head>{PROBE}", 1))
    Path("frame.html").write_text(FRAME.format(width=width))
    command = [BROWSER, *FLAGS, f"--user-data-dir={Path('profile').resolve()}", Path("frame.html").resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    found = re.search("<pre>(.+)</pre>", done.stdout)
    assert found, done.stderr
    return json.loads(found[1]) | {"console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}


FINE = {"problems": [], "broken": 0, "overflow": 0, "console": []}


@pytest.mark.slow
@pytest.mark.usefixtures("a_browser")
def test_the_page_in_a_browser(runs, report):
    long = write_run("race_" + "x" * 90, RACE, names=[*NAMES[:6], "y" * 60], strategy="race")
    page = report(runs[0], long)
    for width in (360, 1280):
        assert browse(page, width) == FINE | {"images": 3}


@pytest.mark.slow
@pytest.mark.usefixtures("a_browser")
def test_the_browser_check_can_fail():
    bad = '<html><head></head><body><p style="width: 999px">x<img src="data:image/png;base64,AAAA"><script>nope()</script></body>'
    found = browse(bad, 360)
    assert found["broken"] == 1 and found["overflow"] > 600 and len(found["problems"]) == 2 and len(found["console"]) == 1
