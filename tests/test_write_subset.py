"""scripts/write_subset.py: which images are chosen, from labels alone, and what is refused."""

import layouts
import numpy as np
import pytest
from conftest import GOLDEN, load_script


@pytest.fixture(scope="module")
def script():
    return load_script("write_subset")


@pytest.fixture
def root(tmp_path):
    """An image folder: 3 images of class 0, 5 of class 1, 4 of class 2."""
    for name, count in (("ant", 3), ("bee", 5), ("cat", 4)):
        for number in range(count):
            layouts.save_picture(tmp_path / "set" / name / f"{number}.png", number)
    return tmp_path / "set"


LABELS = [0] * 3 + [1] * 5 + [2] * 4


def run(script, root, out, *flags):
    return script.main(["--dataset", "folder", "--data_dir", str(root), "--out", str(out), *map(str, flags)])


def counts(indices):
    return np.bincount(np.array(LABELS)[indices], minlength=3).tolist()


def test_n_per_class(script, root, tmp_path, capsys):
    out = tmp_path / "new" / "s.npy"
    assert run(script, root, out, "--per_class", 2) == 0
    indices = np.load(out)
    assert indices.dtype == np.int64
    assert indices.tolist() == sorted(set(indices.tolist()))
    assert counts(indices) == [2, 2, 2]
    assert capsys.readouterr().out == f"{out}: 6 of 12 images\n"
    assert [path.name for path in out.parent.iterdir()] == ["s.npy"]


@pytest.mark.parametrize("n", range(1, 13))
def test_n_in_all_is_as_even_as_the_classes_allow(script, n):
    indices = script.choose(np.array(LABELS), None, n, seed=0)
    assert len(indices) == len(set(indices.tolist())) == n
    found = counts(indices)
    most = max(found)
    assert all(count >= min(most - 1, available) for count, available in zip(found, [3, 5, 4], strict=True))


def test_the_seed_decides(script):
    labels = np.arange(1000) % 10
    first, again, other = (script.choose(labels, 5, None, seed) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_the_odd_ones_come_from_random_classes(script):
    labels = np.arange(1000) % 10
    chosen = {int(labels[script.choose(labels, None, 1, seed)[0]]) for seed in range(100)}
    assert chosen == set(range(10))


def test_no_image_is_decoded(script, root, tmp_path):
    for path in root.rglob("*.png"):
        path.write_bytes(b"not an image")
    assert run(script, root, tmp_path / "s.npy", "--n", 4) == 0


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--per_class", 4], "--per_class 4: class 0 has 3 images"),
        (["--n", 13], "--n 13: the split has 12 images"),
        (["--n", 0], "--n"),
        (["--per_class", -1], "--per_class"),
        (["--n", 3, "--seed", -1], "--seed"),
        (["--n", 3, "--per_class", 1], "--per_class"),
        ([], "--per_class --n"),
        (["--n", 3, "--split", "train"], "--split train: folder has test"),
        (["--n", 3, "--data_dir", "nowhere"], "expected <class name>"),
        (["--n", 3, "--dataset", "birds"], "--dataset: invalid choice: 'birds'"),
        (["--n", 3, "--out", "s.txt"], "--out: s.txt must end in .npy"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(flags, message, script, root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        run(script, root, "s.npy", *flags)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_dataset_root_is_used_without_data_dir(script, tmp_path, monkeypatch):
    monkeypatch.setenv("DATASET_ROOT", str(GOLDEN / "data"))
    assert script.main(["--dataset", "imagenet", "--n", "5", "--out", str(tmp_path / "s.npy")]) == 0
    assert len(set(np.load(tmp_path / "s.npy") // 3)) == 5  # five classes of three images each


def test_a_folder_has_to_be_named(script, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--dataset", "folder", "--n", "3", "--out", str(tmp_path / "s.npy")])
    assert stop.value.code == 2 and "--data_dir" in capsys.readouterr().err
