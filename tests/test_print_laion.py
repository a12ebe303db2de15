"""scripts/print_laion.py: LAION's filters counted by hand, sizes from the CSV, from files and from a data set, and bad input."""

import csv
from pathlib import Path

import pytest
from conftest import load_script
from PIL import Image
from scipy.stats import binomtest

ROWS = [  # width, height, aesthetic, unsafe: which of the three it passes
    (512, 512, 4.5, 0.1),  # all, at the borders
    (512, 511, 9, 0),  # too small on one side
    (2000, 600, 4.49, 0),  # not aesthetic enough
    (600, 2000, 5, 0.11),  # unsafe
    (1000, 1000, 6, 0.05),  # all
    (100, 100, 1, 1),  # none
]


@pytest.fixture
def laion(run_main):
    script = load_script("print_laion")
    return lambda *argv: run_main(script.main, *argv)


def write(header, rows, name="scores.csv"):
    with open(name, "w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return name


def shares(name="t.csv"):
    with open(name) as file:
        return {row["filter"]: row for row in csv.DictReader(file)}


def test_each_filter_and_all_three(laion):
    write("index,width,height,aesthetic,unsafe", [(i, *row) for i, row in enumerate(ROWS)])
    code, out, err = laion("scores.csv", "--dataset", "imagenet", "--csv", "t.csv")
    assert code == 0, err
    found = shares()
    right = {"resolution >= 512": 4, "aesthetic >= 4.5": 4, "unsafe <= 0.1": 4, "all three": 2}
    assert {name: round(6 * float(row["share"])) for name, row in found.items()} == right
    for name, n in right.items():
        wilson = binomtest(n, 6).proportion_ci(method="wilson")
        ends = float(found[name]["share_low"]), float(found[name]["share_high"])
        assert ends == pytest.approx((wilson.low, wilson.high)) and found[name]["share_n"] == "6"
    assert [row["published"] for row in found.values()] == ["", "", "", "3.4"]
    assert "n = 6" in out and "33.33 % (" in out and out.rstrip().endswith("3.4 %")


def test_a_set_that_the_paper_lacks_and_no_set(laion):
    write("index,width,height,aesthetic,unsafe", [(0, *ROWS[0])])
    for more in ([], ["--dataset", "eurosat"]):
        code, out, err = laion("scores.csv", *more)
        assert code == 0 and "100.00 %" in out and out.count(" %") == 5, err  # one in the header


def test_sizes_of_files_beside_the_csv(laion):
    Path("pictures").mkdir()
    for name, size in (("12", (512, 700)), ("b.jpg", (700, 300))):
        Image.new("RGB", size).save(f"pictures/{name}", format="JPEG")
    write("path,aesthetic,unsafe", [("12", 5, 0), ("b.jpg", 5, 0)], "pictures/scores.csv")
    assert laion("pictures/scores.csv", "--csv", "t.csv")[0] == 0
    assert [float(row["share"]) for row in shares().values()] == [0.5, 1, 1, 0.5]


def test_sizes_of_a_data_set(laion):
    for label, size in (("a", (600, 600)), ("b", (90, 90))):
        (Path("set") / label).mkdir(parents=True)
        Image.new("RGB", size).save(f"set/{label}/0.png")
    write("index,aesthetic,unsafe", [(1, 5, 0), (0, 5, 0.5)])
    code, _, err = laion("scores.csv", "--dataset", "folder", "--data_dir", "set", "--csv", "t.csv")
    assert code == 0 and [float(row["share"]) for row in shares().values()] == [0.5, 1, 0.5, 0], err


GOOD = [(0, 600, 600, 5, 0)]
FULL = "index,width,height,aesthetic,unsafe"


@pytest.mark.parametrize(
    ("header", "rows", "more", "told"),
    [
        (FULL, [], [], "no rows"),
        ("index,width,height,aesthetic", [(0, 1, 1, 5)], [], "column unsafe missing"),
        ("width,height,aesthetic,unsafe", [(1, 1, 5, 0)], [], "column index missing"),
        ("index,width,aesthetic,unsafe", [(0, 1, 5, 0)], [], "column height missing"),
        (FULL, [(0, 600, 600, "nan", 0)], [], "row 2 has aesthetic 'nan'"),
        (FULL, [*GOOD, (1, 600, 600, 5, 1.5)], [], "row 3 has unsafe '1.5'"),
        (FULL, [(0, 0, 600, 5, 0)], [], "row 2 has width '0'"),
        (FULL, [(0, 600, 600, 5)], [], "row 2 has unsafe None"),
        (FULL, [("-1", 600, 600, 5, 0)], [], "row 2 has index '-1'"),
        (FULL, [*GOOD, *GOOD], [], "index 0 stands there twice"),
        (FULL, GOOD, ["--data_dir", "x"], "--data_dir does nothing where scores.csv has width and height"),
        (FULL, GOOD, ["--dataset", "nonsense"], "--dataset"),
        ("index,aesthetic,unsafe", [(0, 5, 0)], [], "name the images' data set with --dataset"),
        ("index,aesthetic,unsafe", [(1000, 5, 0)], ["--dataset", "fashion_mnist"], "index 1000 is outside of fashion_mnist"),
        ("path,aesthetic,unsafe", [("none.png", 5, 0)], [], "none.png"),
        ("path,aesthetic,unsafe", [("scores.csv", 5, 0)], [], "scores.csv"),
    ],
)
def test_bad_input_is_one_line(header, rows, more, told, laion):
    write(header, rows)
    code, _, err = laion("scores.csv", *more)
    assert code == 2 and err.count("\n") == 1 and told in err, err


def test_a_file_that_is_none(laion):
    Path("folder").mkdir()
    for name in ("none.csv", "folder"):
        code, _, err = laion(name)
        assert code == 2 and err.count("\n") == 1 and name in err
