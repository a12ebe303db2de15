"""What all scripts share: -o is --out, files are whole or absent, Ctrl-C is one line."""

import csv
import json
import os
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, load_script, write_run

from diffusion.cli import parsing
from diffusion.utils import files

SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_out_has_its_short_form(name, run_main):
    code, out, _ = run_main(load_script(name).main, "--help")
    options = [line.strip() for line in out.splitlines() if line.startswith("  -")]
    assert code == 0 and [o for o in options if re.match(r"--out\b", o)] == []
    assert all("--out" in o for o in options if o.startswith("-o"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_ctrl_c_is_one_line(name, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(parsing.Parser, "parse_args", interrupt)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    assert stop.value.code == 130 and capsys.readouterr().err.count("\n") == 1


def run_folder():
    """24 images, 3 classes, 5 timesteps; some of the predictions wrong."""
    errors = np.random.default_rng(0).random((24, 3, 5))
    return write_run(Path("run"), errors, [100, 300, 500, 700, 900], np.arange(24) % 3)


WRITERS = [  # script, arguments, the files that they write
    ("print_acc", ["run", "--json", "new/a.json", "--csv", "new/a.csv"], ["a.csv", "a.json"]),
    ("calibrate", ["run", "--csv", "new/c.csv", "--write_fit", "new/c.json", "-o", "new/c.png"], ["c.csv", "c.json", "c.png"]),
    ("compare_runs", ["run", "run", "--json", "new/d.json"], ["d.json"]),
    ("replay", ["run", "--csv", "new/e.csv", "-o", "new/e.png"], ["e.csv", "e.png"]),
    ("plot_image", ["run", "--image", "0", "-o", "new/f.svg"], ["f.csv", "f.svg"]),
    ("save_noise", ["--img_size", "64", "--n", "2", "-o", "new/n.pt"], ["n.pt"]),
    ("write_subset", ["--dataset", "fashion_mnist", "--n", "5", "-o", "new/s.npy"], ["s.npy"]),
    ("write_prompts", ["pets", "-o", "new"], ["pets_prompts.csv", "pets_templates.txt"]),
]


@pytest.mark.parametrize(("name", "argv", "written"), WRITERS, ids=[name for name, *_ in WRITERS])
def test_files_are_whole_or_absent(name, argv, written, run_main, monkeypatch):
    run_folder()
    main = load_script(name).main
    code, _, err = run_main(main, *argv)
    assert code == 0 and sorted(path.name for path in Path("new").iterdir()) == written, err
    for path in Path("new").iterdir():
        path.write_text("older")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    code, _, err = run_main(main, *argv)
    assert code == 2 and err.splitlines()[-1].endswith(": no space left")
    assert {path.name: path.read_text() for path in Path("new").iterdir()} == dict.fromkeys(written, "older")


def test_csv_holds_what_it_was_given(tmp_path):
    rows = [["name", "value"], ['a "b", c', 1.5], ["two\nlines", ""], ["é", 3]]
    files.write_csv(tmp_path / "new" / "t.csv", rows)
    with open(tmp_path / "new" / "t.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [[str(cell) for cell in row] for row in rows]
    assert b"\r" not in (tmp_path / "new" / "t.csv").read_bytes()


def test_json_of_a_report_keeps_its_keys():
    from diffusion.analysis import figures, summary

    estimate = summary.Estimate(0.5, 0.25, 0.75, 4)
    group = summary.Group(10, 20, estimate)
    expected = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    assert json.loads(figures.to_json({"g": [group]})) == {"g": [{"from": 10, "to": 20, "accuracy": expected}]}
    assert json.loads(figures.to_json(summary.Seconds(1.0, 2.0, 3.0, 4.0, 5))) == dict(median=1, mean=2, p95=3, total=4, n=5)
