"""scripts/collect.py: one table of results files and run folders, in three formats, each read back by another reader."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
from conftest import load_script, write_run

from diffusion.analysis import results

OURS = {
    "dataset": "pets",
    "model": "2-0",
    "pretrained": "a|b_c",
    "task": "zeroshot_classification",
    "metrics": {"acc1": 0.911, "mean_per_class_recall": 0.875},
    "language": "en",
    "split": "test",
    "intervals": {"acc1": [0.892, 0.927], "mean_per_class_recall": [0.85, 0.9]},
    "n": 999,
    "n_expected": 1000,
    "evaluations": 1234.5,
    "command": "eval_prob_adaptive.py --dataset pets",
    "identity": "abcd",
    "run": "data/pets/v2-0",
}
CLIP_BENCHMARK = """{"dataset": "wds/pets", "model": "ViT-B-32", "pretrained": "openai", "task": "zeroshot_classification",
 "metrics": {"acc1": 0.5, "acc5": NaN, "mean_per_class_recall": 0.4}, "language": "en"}"""  # which writes NaN
PAIRS = OURS | {
    "task": "image_caption_selection",
    "metrics": {"text_acc": 0.5, "image_acc": 0.25, "acc": 0.125},
    "intervals": {"text_acc": [0.4, 0.6]},
    "n_expected": 999,
}


@pytest.fixture
def collect(run_main):
    def run(*argv, wanted=0):
        code, out, err = run_main(load_script("collect").main, *argv)
        assert code == wanted and err.count("\n") == (wanted > 0), err
        return err if wanted else out

    return run


@pytest.fixture
def files():
    """Three results files in a folder, and what is none beside them."""
    folder = Path("many")
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(OURS))
    (folder / "b.json").write_text(CLIP_BENCHMARK)
    (folder / "c.json").write_text(json.dumps(PAIRS))
    (folder / "notes.txt").write_text("no results")
    return folder


def test_csv_has_fractions(files, collect):
    first, second, third = csv.DictReader(io.StringIO(collect(files)))
    assert [float(first[f"acc1{end}"]) for end in ("", "_low", "_high")] == [0.911, 0.892, 0.927]
    assert (first["n"], first["n_expected"], first["evaluations"], first["identity"]) == ("999", "1000", "1234.5", "abcd")
    assert first["command"] == OURS["command"] and first["pretrained"] == "a|b_c"
    assert (second["acc1"], second["acc1_low"], second["n"], second["model"]) == ("0.5", "", "", "ViT-B-32")
    assert (third["acc1"], third["text_acc"], third["text_acc_high"], third["acc_low"]) == ("", "0.5", "0.6", "")
    assert "acc5" not in first  # nobody has one


def test_markdown_has_percent_with_intervals(files, collect):
    head, rule, *rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in collect(files, "--format", "markdown").splitlines()]
    assert {len(line) for line in (head, rule, *rows)} == {len(head)} and all(cell == " --- " for cell in rule)
    table = [dict(zip(map(str.strip, head), map(str.strip, row), strict=True)) for row in rows]
    assert (
        table[0]["acc1"] == "91.10 % (89.2 to 92.7)" and table[0]["n"] == "999 of 1,000" and table[0]["pretrained"] == r"a\|b_c"
    )
    assert table[1]["acc1"] == "50.00 %" and table[1]["n"] == "" and table[2]["n"] == "999" and table[2]["acc"] == "12.50 %"
    assert not {"identity", "command", "n_expected", "acc5"} & table[0].keys() and table[0]["evaluations"] == "1,234"


def test_latex_is_escaped(files, collect):
    text = collect(files, "--format", "latex")
    rows = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if " & " in line]
    columns = "l" * len(rows[0])
    assert [len(row) for row in rows] == [len(columns)] * 4 and text.startswith(f"\\begin{{tabular}}{{{columns}}}")
    assert r"91.10 \% (89.2 to 92.7)" in rows[1] and r"mean\_per\_class\_recall" in rows[0] and r"a|b\_c" in rows[1]
    assert not re.search(r"(?<!\\)[%_#$]", text)


def test_a_file_to_write(files, collect):
    out = collect(files / "a.json", "-o", "deep/table.csv")
    assert out == "Table: deep/table.csv\n" and pandas.read_csv("deep/table.csv").acc1.tolist() == [0.911]


def test_a_run_folder_is_what_its_results_file_would_be(collect, tmp_path):
    errors = np.random.default_rng(0).random((12, 6, 4))
    folder = write_run(tmp_path / "run", errors, [1, 2, 3, 4], [0, 1, 2] * 4)
    (folder / "3.pt").write_bytes(b"")
    results.write("r.json", results.of_folder(folder))
    (of_file,) = csv.DictReader(io.StringIO(collect("r.json")))
    assert of_file["n"] == "11" and of_file["run"] == str(folder)
    script = load_script("collect")
    assert script.rows_of(script.read(folder)) == script.rows_of([results.read("r.json")])


def test_a_results_file_in_a_run_folder_speaks_for_it(collect, tmp_path):
    folder = write_run(tmp_path / "run", np.random.default_rng(0).random((3, 6, 4)), [1, 2, 3, 4], [0, 1, 2])
    (folder / "r.json").write_text(json.dumps(OURS))
    assert "0.911" in collect(folder) and collect(folder) == collect(folder / "r.json")


def test_records_that_do_not_count_are_told(run_main, tmp_path):
    folder = write_run(tmp_path / "run", np.random.default_rng(0).random((3, 6, 4)), [1, 2, 3, 4], [0, 1, 2])
    (folder / "1.pt").write_bytes(b"")
    code, out, err = run_main(load_script("collect").main, folder)
    assert code == 0 and err.startswith(f"Note: {folder}: 1 unreadable record, not counted: 1.pt") and out.count("\n") == 2


@pytest.mark.parametrize(
    "content", ["[]", '{"task": "x"}', json.dumps(OURS | {"n": "many"}), json.dumps(OURS | {"metrics": {"a": "b"}})]
)
def test_a_file_of_another_kind_is_named(content, files, collect):
    (files / "d.json").write_text(content)
    assert "many/d.json" in collect(files, wanted=2)


def test_a_folder_without_anything(collect):
    Path("empty").mkdir()
    assert "empty holds no readable record" in collect("empty", wanted=2)
