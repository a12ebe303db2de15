"""scripts/reproduce.py: rows are commands that run, with price and folder as their own dry runs tell them; its tables."""

import csv
import io
import json
import re
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from conftest import TINY_SD20, load_script, write_run
from test_dit_model import TINY, randomised
from test_winoground_run import few_tiny_pairs

import eval_prob_adaptive
import eval_prob_dit
import run_winoground
from diffusion.paper import reproduction, targets
from diffusion.runs import run_folder
from diffusion.utils import paths

TOP = {"eval_prob_adaptive.py": eval_prob_adaptive, "eval_prob_dit.py": eval_prob_dit, "run_winoground.py": run_winoground}


def rows_of_targets():
    return {(row.words, row.made): row for make in targets.TARGETS.values() for row in make().rows if row.words}


ROWS = rows_of_targets()
SD = ("--model_path", TINY_SD20, "--img_size", 512)


def module_of(words):
    return TOP.get(words[0]) or load_script(Path(words[0]).stem)


@pytest.fixture
def sets(monkeypatch):
    """All data sets in miniature, and 10,000 images of Fashion-MNIST, which a row learns from; none that Debian brings."""
    layouts.forget_sums(monkeypatch)
    monkeypatch.setattr(targets, "DEBIANS", Path("nowhere"))
    root = Path("sets")
    layouts.idx(root, "FashionMNIST", test_labels=range(10), train_labels=[i % 10 for i in range(10_000)])
    for name in ("cifar10", "stl10", "pets", "flowers", "food", "aircraft", "imagenet", "imagenetv2", "imagenetA", "objectnet"):
        layouts.LAYOUTS[name].write(root)
    layouts.imagenet(Path("imagenet_train"))
    monkeypatch.setenv("DATASET_ROOT", str(root))
    Path("data").mkdir()
    np.save(f"data/{targets.SHARED}", np.array([0]))


@pytest.fixture
def weights(tmp_path_factory):
    """Script -> options that give it small weights in place of the paper's."""
    folder = tmp_path_factory.mktemp("weights")
    for pixels in (256, 512):
        config = TINY | {"num_classes": 1000, "input_size": pixels // 8}
        (folder / str(pixels)).mkdir()
        torch.save(randomised(**config).state_dict(), folder / str(pixels) / "dit.pt")
        (folder / str(pixels) / "config.json").write_text(json.dumps(config))

    def of(words):
        script = Path(words[0]).stem
        if "tiny" in words:
            return ()
        if script == "eval_prob_dit":
            return ("--model_path", folder / words[words.index("--image-size") + 1] / "dit.pt", "--vae_path", TINY_SD20 / "vae")
        if script == "run_winoground":
            contrastive = "--model" in words
            return ("--data_dir", paths.TINY_PAIRS, "--model_path", paths.TINY_CLIP if contrastive else TINY_SD20)
        known = {"eval_clip": ("--model_path", paths.TINY_CLIP), "eval_supervised": (), "eval_prob_adaptive": SD,
                 "sd_features": SD, "synthetic_data": SD}  # fmt: skip
        return known[script]

    return of


@pytest.mark.parametrize("words", [row.words for row in ROWS.values()], ids=lambda words: "-".join(words)[:80])
def test_every_row_parses_with_its_command(words):
    assert (paths.ROOT / words[0]).is_file()
    module_of(words).parse_args(list(words[1:]))


@pytest.mark.slow
def test_price_and_folder_are_those_of_the_dry_run(sets, weights, run_main):
    priced = {row.made: row for row in rows_of_targets().values() if row.price}
    assert len(priced) > 100
    mains = {}
    for row in priced.values():
        if (row.method == "SD features" and row.column != "cifar10") or (
            row.words[0] == "scripts/synthetic_data.py" and row.column == "imagenet"
        ):
            continue  # the miniatures have too few images to hold some back; ten million to draw take a while to count
        main = mains.setdefault(row.words[0], module_of(row.words).main)
        code, out, err = run_main(main, *row.words[1:], *weights(row.words), "--dry_run")
        assert code == 0, (row.words, err)
        assert re.findall(r"^Run folder: (.*)$", out, re.M)[-1] == f"data/{row.made}"  # of a shortlist's two runs the second
        price = re.findall(r"^Price: (?:at most )?([\d,]+) network evaluations per (?:image|example)", out, re.M)[-1]
        assert int(price.replace(",", "")) == row.price, row.words
        if row.words[0] == "scripts/synthetic_data.py":
            before = re.search(r"are to be drawn first, .* ([\d,]+) in all", out).group(1)
            assert int(before.replace(",", "")) == row.before


# ---------------------------------------------------------------- tables


@pytest.fixture
def reproduce(run_main):
    def run(*argv):
        return run_main(load_script("reproduce").main, *argv)

    return run


def scored_run(place, right, n):
    """A run of a contrastive model on so many images, of which the first `right` are."""
    errors = np.ones((n, 10, 1), np.float32)
    errors[np.arange(n), [0 if i < right else 1 for i in range(n)], 0] = 0
    return write_run(Path("data") / place, errors, [0], [0] * n, [str(i) for i in range(10)])


def test_ours_stand_beside_the_published_ones(reproduce):
    scored_run("cifar10/clip_RN50", 70, 100)
    scored_run("cifar10/clip_RN50_18templates", 100, 100)
    code, out, err = reproduce("table1", "--only", "rn50", "--format", "csv")
    assert code == 0, err
    lines = {(line["method"], line["data"]): line for line in csv.DictReader(io.StringIO(out))}
    assert len(lines) == 8 + 5  # both readings where CLIP has several templates
    one, several = (lines[f"CLIP RN50, {how}", "cifar10"] for how in ("one prompt", "CLIP's templates"))
    low, high = proportion_confint(70, 100, method="wilson")
    assert [float(one[name]) for name in ("published", "ours", "ours_low", "ours_high")] == pytest.approx([0.756, 0.7, low, high])
    assert (one["n"], one["of"], one["inside"], several["inside"]) == ("100", "10000", "True", "False")
    assert lines["CLIP RN50, CLIP's templates", "food"]["ours"] == ""


def proportion_confint(k, n, method):
    from scipy.stats import binomtest

    return tuple(binomtest(k, n).proportion_ci(method=method))


def test_what_is_missing_has_its_price_and_hours(reproduce):
    scored_run("cifar10/clip_RN50", 70, 100)
    code, out, _ = reproduce("table1", "--only", "cifar10", "--rate", 1000)
    assert code == 0 and "70.00 % (60.4 to 78.1)" in out and "100 of 10,000" in out
    told = out.split("Missing: ")[1].splitlines()
    # stages; drawing 100,000 images of 100 evaluations; features of 50,000 in 100 epochs; four contrastive runs, one begun
    evaluations = 10_000 * 2750 + 10_000_000 + 10_000 + 5_000_000 + 10_000 + 3 * 10_000 + 9_900
    assert told[0] == f"7 commands, at most {evaluations:,} evaluations, {evaluations / 3.6e6:,.1f} h"
    assert sum(line.startswith("  python ") for line in told) == 7
    assert "9,900 evaluations, 0.0 h" in out
    assert "Missing: nothing" in reproduce("table1", "--only", "RN50, one prompt cifar10", "--imgs_to_eval", 100)[1]


def test_a_run_that_several_rows_are_read_from_is_priced_once(reproduce):
    out = reproduce("list")[1]
    line = next(line for line in out.splitlines() if line.startswith("table3 "))
    assert "0 of 3" in line and f"{400 * (4000 + 4 + 4):,} evaluations" in line


def test_every_target_has_its_table(reproduce):
    for name in targets.TARGETS:
        code, out, err = reproduce(name)
        assert code == 0 and targets.TARGETS[name]().title in out and "Missing: " in out, err
    assert reproduce("list")[1].count("\n") == len(targets.TARGETS) + 1


def test_formats(reproduce):
    for form in ("text", "markdown", "latex", "csv"):
        assert reproduce("table9", "--format", form, "-o", f"table9.{form}")[0] == 0
    tables = {form: Path(f"table9.{form}").read_text() for form in ("text", "markdown", "latex", "csv")}
    assert tables["markdown"].count("\n| DiT-XL/2") == 8 == tables["text"].count("\nDiT-XL/2")
    assert r"74.9 \%" in tables["latex"] and "0.749" in tables["csv"]


def test_dit_s_columns_are_read_from_one_run(reproduce):
    row = next(row for row in targets.table9().rows if row.column == "imagenetA" and "256" in row.method)
    ids = torch.tensor(list(targets.datasets.labels_of_classes("imagenetA", 1000)))
    sums = torch.ones(200, 4, dtype=torch.float64)
    sums[3, 1], sums[7, 0] = 0, 0  # l1 is for the fourth class, l2 for the eighth
    record = {"t": torch.arange(250), "sums": sums, "classes": ids, "pred": int(ids[7]), "label": int(ids[3])}
    row.place.mkdir(parents=True)
    run_folder.save_record(row.place / "0.pt", record)
    config = {"identity": {"dataset": "imagenetA"}, "kind": run_folder.CLASSIFICATION, "command": "eval_prob_dit", "options": {}}
    (row.place / "config.json").write_text(json.dumps(config))
    shown = {name: list(csv.DictReader(io.StringIO(reproduce(name, "--only", "imagenetA", "--format", "csv")[1])))
             for name in ("table9", "table4")}  # fmt: skip
    assert [line["ours"] for line in shown["table9"]] == ["1.0", ""]
    assert next(line["ours"] for line in shown["table4"] if line["method"] == "DiT-XL/2 256 px") == "0.0"


def test_winoground_s_scores_are_by_tag(reproduce, run_main):
    code, _, err = run_main(run_winoground.main, "--model", "openclip", "--version", "tiny", *few_tiny_pairs(4))
    assert code == 0, err
    folder = Path("data/tiny_pairs/openclip_tiny")
    printed = run_main(load_script("print_winoground").main, folder)[1]
    overall = reproduction.text_score("Overall")(folder).estimate
    assert f"Overall text score:  {100 * overall.value:.1f} " in printed and overall.n == len(run_folder.list_records(folder))
    with pytest.raises(ValueError, match="no example with the tag Symbolic"):
        reproduction.text_score("Symbolic")(folder)


def test_shares_of_laion_are_read_from_its_table(reproduce, sets, run_main):
    Path("laion_cifar10.csv").write_text("index,aesthetic,unsafe,width,height\n0,5,0,600,600\n1,5,0.5,600,600\n2,6,0,600,600\n")
    row = next(row for row in targets.table2().rows if row.column == "cifar10")
    assert run_main(module_of(row.words).main, *row.words[1:])[0] == 0
    found = row.reproduced().estimate
    assert (round(found.value, 6), found.n) == (round(2 / 3, 6), 3)


# ---------------------------------------------------------------- doing what is missing


@pytest.mark.slow
def test_run_does_what_is_missing_once(reproduce):
    only = ("table1-tiny", "--only", "tiny", "--imgs_to_eval", 3)
    code, out, err = reproduce(*only, "--run")
    assert code == 0 and "Missing: nothing" in out and "3 of 1,000" in out, err
    written = {path: path.stat().st_mtime_ns for path in Path("data").glob("**/*.pt")}
    assert len(written) == 3
    out = reproduce(*only, "--run")[1]
    assert "[1/" not in out and {path: path.stat().st_mtime_ns for path in Path("data").glob("**/*.pt")} == written


def test_a_worker_s_commands_say_its_share(reproduce):
    out = reproduce("figure3", "--imgs_to_eval", 3, "--n_workers", 2, "--worker_idx", 1)[1]
    run, drawing = (line for line in out.splitlines() if line.startswith("  python "))
    assert run.endswith("--imgs_to_eval 3 --n_workers 2 --worker_idx 1") and "worker" not in drawing
    out = reproduce("table3", "--imgs_to_eval", 3)[1]
    assert "--imgs_to_eval" not in out  # which run_winoground.py does not have


def test_a_command_that_fails_does_not_stop_the_others(reproduce):
    code, out, err = reproduce("table12", "--only", "zero", "--run")  # no data
    assert code == 1 and "error: 1 of 1 commands failed, see above: noise zero, pets" in err and "Missing: 1 command" in out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("table1", "--only", "nowhere"), "--only nowhere: no row of table1 is called like it"),
        (("list", "--run"), "--run does nothing with list"),
        (("list", "--only", "pets"), "--only does nothing with list"),
        (("table1", "--n_workers", 2, "--worker_idx", 2), "--worker_idx 2 must be below --n_workers 2"),
        (("table11",), "argument TARGET: invalid choice"),
        (("table1", "--rate", 0), "--rate"),
    ],
)
def test_bad_input_is_one_line(reproduce, argv, told):
    code, out, err = reproduce(*argv)
    assert code == 2 and told in err and err.strip().count("\n") == 0 and not out
