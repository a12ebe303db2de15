"""The first images of a Hugging Face set, streamed: the same as those of the whole set, and nothing is read beyond them."""

import io
import json
import shutil
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from conftest import TINY_SD20

import eval_prob_adaptive
from diffusion.analysis import reload
from diffusion.cli import parsing
from diffusion.datasets import open_dataset
from diffusion.datasets.readers import hub
from diffusion.runs import run_folder

MODEL = ["--model_path", TINY_SD20, "--img_size", 64, "--device", "cpu", "--to_keep", 1, "--n_samples", 2]
N = 7
LABELS = [1, 0, 2, 2, 1, 0, 1]


@pytest.fixture(autouse=True)
def at(tmp_path, monkeypatch):
    """A folder, and a cache of the library's own in it."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(named=True):
    import datasets

    label = datasets.ClassLabel(names=["ant", "bee", "cow"]) if named else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "note": datasets.Value("string"), "label": label})
    rows = {"image": [layouts.picture(i) for i in range(N)], "note": ["x"] * N, "label": LABELS}
    return datasets.Dataset.from_dict(rows, features=features)


def parquet(root=Path("set"), **how):
    """Two files of parquet."""
    root.mkdir()
    whole = table(**how)
    whole.select(range(4)).to_parquet(str(root / "test-00000-of-00002.parquet"))
    whole.select(range(4, N)).to_parquet(str(root / "test-00001-of-00002.parquet"))


def saved(root=Path("set"), **how):
    import datasets

    datasets.DatasetDict({"test": table(**how), "train": table(**how).select([6, 5])}).save_to_disk(str(root))


def files(root=Path("set")):
    """Images in folders, of which a stream says names only."""
    for i, label in enumerate(LABELS):
        layouts.save_picture(root / "test" / ("ant", "bee", "cow")[label] / f"{i}.png", i)


KINDS = {"parquet": parquet, "saved": saved, "files": files}


def streamed(limit, split="test", **more):
    return open_dataset("hf", split, None, "set", streaming=True, limit=limit, **more)


def refused(*arguments, **more):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        streamed(*arguments, **more)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("--")
    return message


@pytest.mark.parametrize("limit", [1, 3, 5, N, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_images_are_those_of_the_whole_set(kind, limit):
    KINDS[kind]()
    whole, first = open_dataset("hf", "test", None, "set"), streamed(limit)
    n = min(limit, N)
    assert len(first) == n and first.classes == whole.classes and first.labels.tolist() == whole.labels[:n].tolist()
    assert all(np.array_equal(first[i][0], whole[i][0]) for i in (*range(n), 0))  # in any order, as often as asked
    assert first.labels.dtype == np.int64
    told = f"the first {n} images of the stream" + (", fewer than --limit 100" if limit == 100 else "")
    assert told in first.notice
    part = open_dataset("hf", f"test[:{n}]", None, "set")
    assert first.fingerprint() == part.fingerprint()
    if limit == N:
        assert first.fingerprint() == whole.fingerprint()


def test_nothing_is_read_beyond_the_limit():
    """A row that no reader gets through, behind those that are asked for."""
    import datasets

    def rows():
        for i in range(10):
            if i == 3:
                raise RuntimeError("row 3 was read")
            yield {"image": layouts.picture(i), "label": 0}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant"])})
    stream = datasets.IterableDataset.from_generator(rows, features=features)
    first, _ = hub._first(stream, "test", None, None, None, 3)
    assert len(first) == 3
    with pytest.raises(ValueError, match=r"--streaming: row 3 cannot be read .*row 3 was read"):
        hub._first(stream, "test", None, None, None, 4)


def test_pictures_stay_compressed_as_they_are(monkeypatch):
    """A JPEG that was decoded and encoded anew would be another one."""
    import datasets
    from PIL import Image

    content = io.BytesIO()
    layouts.picture(0, size=(64, 64)).save(content, "jpeg", quality=60)
    rows = {"image": [{"bytes": content.getvalue(), "path": None}], "label": [0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant"])})
    Path("set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet("set/test.parquet")
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a picture was decoded"))
    first = streamed(1)
    stored = first.raw.table.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]
    assert stored == content.getvalue() and f"({len(stored) / 1e6:.1f} MB)" in first.notice


def test_a_fraction_of_a_set_that_says_how_many_it_has():
    saved()
    assert [len(streamed(limit)) for limit in (0.1, 0.5, 3 / 7, 0.99)] == [1, 4, 3, 7]  # rounded up
    assert len(streamed(0.5, "train")) == 1


def test_a_fraction_of_one_that_does_not():
    parquet()
    assert "--limit 0.5: this set does not say how many images --split test has: give their number" in refused(0.5)


def test_labels_without_names_need_a_list():
    parquet(named=False)
    assert "--classes is needed: column label does not name the classes" in refused(3)
    Path("names.txt").write_text("zebra\nyak\nwasp\nvole\n")
    first = streamed(2, classes="names.txt")
    assert first.classes == ["zebra", "yak", "wasp", "vole"] and first.labels.tolist() == [1, 0]
    Path("names.txt").write_text("zebra\nyak\n")
    assert "label 2, and the 2 classes are 0..1" in refused(3, classes="names.txt")


def test_what_is_read_is_bounded(monkeypatch):
    parquet()
    size = sum(len(layouts.png(i)) for i in range(3))
    monkeypatch.setattr(hub, "MOST_STREAMED", size)
    assert len(streamed(3)) == 3
    assert "--limit 4: 3 images already take" in refused(4)


def test_columns_splits_and_slices():
    parquet()
    assert "--label_column x: no such column" in refused(2, label_column="x")
    assert "--image_column note holds no images" in refused(2, image_column="note")
    assert "--split train: " in refused(2, "train")
    assert "--split test[:2]: " in refused(2, "test[:2]")
    with pytest.raises(ValueError, match="--streaming and --limit belong together"):
        open_dataset("hf", "test", None, "set", streaming=True)
    with pytest.raises(ValueError, match="--streaming and --limit belong together"):
        open_dataset("hf", "test", None, "set", limit=2)


@pytest.mark.parametrize("name", ["parquet", "webdataset", "imagefolder"])
def test_a_folder_that_is_called_as_a_reader_of_the_library(name):
    parquet(Path(name))
    Path("notes.txt").write_text("beside it\n")
    for more in ({}, {"streaming": True, "limit": N}):
        assert open_dataset("hf", "test", None, name, **more).labels.tolist() == LABELS


def test_a_damaged_file_is_one_line():
    parquet()
    path = Path("set/test-00001-of-00002.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    assert len(streamed(4)) == 4  # the second file is not asked for
    assert "set" in refused(5)


def test_a_row_without_an_image_fails_by_itself():
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    Path("set").mkdir()
    rows = {"image": [layouts.picture(0), None], "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet("set/test.parquet")
    dataset = streamed(2)
    assert np.array_equal(dataset[0][0], layouts.picture(0))
    with pytest.raises(OSError, match="image 1 cannot be read: the row holds no image"):
        dataset[1]


# ---------------------------------------------------------------- the command


def test_a_run_has_the_records_of_a_run_without_streaming(run_main):
    parquet()
    argv = ["--dataset", "hf", "--data_dir", "set", *MODEL]
    code, out, err = run_main(eval_prob_adaptive.main, *argv, "--streaming", "--limit", 3, "--extra", "stream")
    assert code == 0 and "n = 3" in out and "Note: the first 3 images of the stream, kept in memory" in out, err
    code, _, err = run_main(eval_prob_adaptive.main, *argv, "--split", "test[:3]", "--extra", "whole")
    assert code == 0, err
    one, other = (run_folder.list_records(next(Path(f"data/hf_set_{name}").iterdir())) for name in ("stream", "whole"))
    assert [path.name for path in one.values()] == [path.name for path in other.values()] == ["0.pt", "1.pt", "2.pt"]
    for index, path in one.items():
        ours, theirs = run_folder.load_record(path), run_folder.load_record(other[index])
        assert ours["pred"] == theirs["pred"] and ours["label"] == theirs["label"] == LABELS[index]
        assert all(torch.equal(ours["errors"][k]["pred_errors"], theirs["errors"][k]["pred_errors"]) for k in range(3))


def test_it_goes_on_is_read_back_and_tells_other_images(run_main):
    parquet()
    argv = ["--dataset", "hf", "--data_dir", "set", *MODEL, "--streaming", "--limit", 4]
    assert run_main(eval_prob_adaptive.main, *argv, "--imgs_to_eval", 2)[0] == 0
    code, out, err = run_main(eval_prob_adaptive.main, *argv)
    assert code == 0 and "2 to do here, 2 of 4 done before" in out, err
    folder = next(Path("data/hf_set").iterdir())
    past = reload.Past(folder, run_folder.read_config(folder))
    assert len(reload.open_images(past)) == 4 and past.options["limit"] == 4 and past.options["streaming"] is True
    code, _, err = run_main(eval_prob_adaptive.main, *argv[:-1], 5)
    assert code == 2 and "holds another run, which differs in images" in err
    shutil.rmtree("set")
    with pytest.raises((ValueError, OSError), match="--dataset hf"):
        reload.open_images(past)


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("250", 250), ("0.25", 0.25), ("1e-3", 0.001)])
def test_a_limit_is_a_number_or_a_fraction(text, value):
    assert parsing.limit(text) == value and type(parsing.limit(text)) is type(value)
    assert json.loads(json.dumps(parsing.limit(text))) == value
