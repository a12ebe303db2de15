"""Sets of caption pairs: the local layout and what is wrong with one, the hub's two forms of it, tokens."""

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image

from diffusion.datasets import loader, transforms, winoground
from diffusion.utils import paths

FIELDS = {"id": 0, "image_0": "p", "image_1": "q", "caption_0": "a b", "caption_1": "b a", "collapsed_tag": "Object"}


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    for name in ("HF_TOKEN", "TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def picture(colour, size=(5, 4), mode="RGB"):
    return Image.new("RGB", size, colour).convert(mode)


@pytest.fixture
def make(tmp_path):
    """make(*lines): a folder `set` with two images and these lines, given as changes to a good one, or as text."""

    def build(*lines, name="set"):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True, exist_ok=True)
        picture("red").save(folder / "images" / "p.png")
        picture("blue").save(folder / "images" / "q.png")
        text = [line if isinstance(line, str) else json.dumps(FIELDS | line) for line in lines]
        (folder / "examples.jsonl").write_text("\n".join(text) + "\n")
        return folder

    return build


# ---------------------------------------------------------------- the local layout


def test_golden_set_by_its_lines():
    data = winoground.open_local(GOLDEN / "data" / "winoground")
    assert [e.id for e in data.examples] == list(range(8)) and len(data) == 8
    assert "".join(e.collapsed_tag[0] for e in data.examples) == "ORBORROR"  # Object, Relation, Both
    (first, second), example = data[5]
    assert example.captions == ("it rains, then shines!", "it shines, then rains!") and example.tag == "Adjective"
    assert (first.size, second.size) == ((64, 96), (80, 80))
    assert [p.name for p in example.images] == ["ex_5_img_0.png", "ex_5_img_1.png"]


def test_images_keep_their_mode_until_the_transform():
    data = winoground.open_local(GOLDEN / "data" / "winoground")
    modes = {image.mode for i in range(8) for image in data[i][0]}
    assert modes == {"RGB", "RGBA", "P", "L", "LA"}
    data.transform = transforms.sd_transform(32)
    for i in range(8):
        for tensor, path in zip(data[i][0], data.examples[i].images, strict=True):
            assert tensor.shape == (3, 32, 32)
            image = Image.open(path)
            scale = 32 / min(image.size)
            image = image.resize([int(side * scale) for side in image.size], Image.Resampling.BICUBIC)
            left, top = (round((side - 32) / 2) for side in image.size)
            expected = np.asarray(image.crop((left, top, left + 32, top + 32)).convert("RGB"), np.float32) / 127.5 - 1
            np.testing.assert_allclose(tensor.permute(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_other_suffixes_and_whole_names(make, suffix):
    folder = make({"image_0": "photo.v2", "image_1": f"photo.v2{suffix}"})
    picture("green").save(folder / "images" / f"photo.v2{suffix}")
    (first, second), _ = winoground.open_local(folder)[0]
    assert first.size == second.size == (5, 4)


def test_optional_fields_blank_lines_and_a_byte_order_mark(make):
    folder = make({"id": 7}, "", {"id": 3, "tag": "Noun", "secondary_tag": None, "more": [1]})
    path = folder / "examples.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    data = winoground.open_local(str(folder))
    assert [(e.id, e.tag, e.secondary_tag) for e in data.examples] == [(7, "", ""), (3, "Noun", "")]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ('{"id": 1, ', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1, 2]", "not a JSON object"),
        (json.dumps({k: v for k, v in FIELDS.items() if k != "caption_1"} | {"id": 1}), "lacks caption_1"),
        (json.dumps({k: v for k, v in FIELDS.items() if k not in ("id", "image_0")}), "lacks id, image_0"),
        ({"id": 1, "image_1": "gone"}, "names the image gone"),
        ({"id": 0}, "has the id 0 of line 1"),
        ({"id": "1"}, "id '1'"),
        ({"id": True}, "id True"),
        ({"id": -1}, "id -1"),
        ({"id": 1, "caption_0": " "}, "caption_0 ' '"),
        ({"id": 1, "caption_0": None}, "caption_0 None"),
        ({"id": 1, "image_0": 4}, "image_0 4"),
        ({"id": 1, "collapsed_tag": None}, "collapsed_tag None"),
    ],
)
def test_a_bad_line_is_named(make, bad, told):
    folder = make({}, "", bad)
    with pytest.raises(ValueError) as error:
        winoground.open_local(folder)
    message = str(error.value)
    assert f"{folder / 'examples.jsonl'}: line 3 " in message and told in message and "\n" not in message


def test_bytes_that_are_not_text(make):
    folder = make({})
    (folder / "examples.jsonl").write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        winoground.open_local(folder)


def test_nothing_there(make, tmp_path):
    with pytest.raises(ValueError, match=r"examples\.jsonl: no examples"):
        winoground.open_local(make(""))
    with pytest.raises(FileNotFoundError, match=r"--data_dir .*images/<stem>\.png"):
        winoground.open_local(tmp_path / "nowhere")


def test_a_broken_image_is_a_problem_of_its_example_only(make):
    folder = make({"id": 4}, {"id": 5, "image_1": "torn"}, {"id": 6})
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole, "PNG")
    (folder / "images" / "torn.png").write_bytes(whole.getvalue()[:500])
    data = winoground.open_local(folder)
    data.transform = transforms.sd_transform(4)
    found = list(loader.load_images(data, [0, 1, 2], 0))
    assert [(index, bool(problem)) for index, *_, problem in found] == [(0, False), (1, True), (2, False)]
    assert "image 1 of example 5" in found[1][3] and str(folder / "images" / "torn.png") in found[1][3]
    assert found[2][2] == data.examples[2] and found[2][1][1].shape == (3, 4, 4)


def test_examples_travel_between_processes():
    data = winoground.open_local(GOLDEN / "data" / "winoground")
    data.transform = transforms.sd_transform(8)
    assert pickle.loads(pickle.dumps(data.examples[0])) == data.examples[0]
    found = list(loader.load_images(data, [3, 1], 1))
    assert [(index, example) for index, _, example, _ in found] == [(3, data.examples[3]), (1, data.examples[1])]


def test_fingerprint_is_of_the_content(make):
    lines = [{"id": i} for i in range(3)]
    base = winoground.open_local(make(*lines)).fingerprint()
    assert winoground.open_local(make(*lines, name="copy")).fingerprint() == base
    for n, change in enumerate(
        ({"caption_1": "c"}, {"tag": "Noun"}, {"secondary_tag": "s"}, {"collapsed_tag": "Both"}, {"id": 9})
    ):
        assert winoground.open_local(make(*lines[:2], {"id": 2} | change, name=str(n))).fingerprint() != base
    assert winoground.open_local(make(*lines[::-1], name="order")).fingerprint() != base
    folder = make(*lines, name="repainted")
    picture((254, 0, 0)).save(folder / "images" / "p.png")
    assert winoground.open_local(folder).fingerprint() != base


def test_an_unreadable_image_does_not_stop_the_fingerprint(make):
    folder = make({})
    (folder / "images" / "p.png").write_text("no image")
    assert len(winoground.open_local(folder).fingerprint()) == 16


# ---------------------------------------------------------------- which set


def test_data_dir_wins_and_unknown_names_are_told(make, monkeypatch):
    monkeypatch.setattr(winoground, "open_hub", lambda token: f"hub {token}")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert winoground.open_pairs("winoground", None) == "hub secret"
    folder = make({"id": 77})
    for name in winoground.PAIR_DATASETS:
        assert [e.id for e in winoground.open_pairs(name, folder).examples] == [77]
    assert len(winoground.open_pairs("tiny_pairs", None)) == 480
    with pytest.raises(ValueError, match="--dataset aro: unknown; choose from winoground, tiny_pairs"):
        winoground.open_pairs("aro", None)


def test_token_from_either_variable(monkeypatch, tmp_path):
    assert paths.hub_token() is None
    (tmp_path / "token").write_text("from_file\n")
    monkeypatch.setenv("TOKEN_PATH", str(tmp_path / "token"))
    assert paths.hub_token() == "from_file"
    monkeypatch.setenv("HF_TOKEN", " from_env ")
    assert paths.hub_token() == "from_env"
    monkeypatch.setenv("HF_TOKEN", "")
    for name, content in (("absent", None), ("empty", " \n"), ("bytes", b"\xff\xfe\xff")):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        monkeypatch.setenv("TOKEN_PATH", str(path))
        with pytest.raises(ValueError, match=f"TOKEN_PATH {path}") as error:
            paths.hub_token()
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------- the hub, without a network


class Hub:
    """Stands for huggingface_hub.snapshot_download: revision -> a folder, or the error to raise; keeps what was asked."""

    def __init__(self, **answers):
        self.answers, self.requested = answers, []

    def __call__(self, repository, *, repo_type, revision, allow_patterns, token):
        self.requested.append((repository, repo_type, revision, token))
        answer = self.answers["parquet" if revision else "main"]
        if isinstance(answer, Exception):
            raise answer
        return str(answer)


def hub_error(name, status=None):
    """One of the client's errors, without the response object whose class depends on the client's version."""
    import huggingface_hub.errors

    kind = getattr(huggingface_hub.errors, name)
    error = kind.__new__(kind, "from the hub")
    if status:
        error.response = type("Response", (), {"status_code": status})()
    return error


@pytest.fixture
def hub(monkeypatch):
    def install(**answers):
        fake = Hub(**answers)
        monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
        return fake

    return install


def parquet_snapshot(folder):
    """The golden set as the hub converts it: images as {"bytes", "path"} in parquet files, here two."""
    import pyarrow
    from pyarrow import parquet

    source = GOLDEN / "data" / "winoground"
    rows = [json.loads(line) for line in (source / "examples.jsonl").read_text().splitlines()]
    for row in rows:
        for k in (0, 1):
            path = source / "images" / f"{row[f'image_{k}']}.png"
            row[f"image_{k}"] = {"bytes": path.read_bytes(), "path": path.name}
    (folder / "default" / "test").mkdir(parents=True)
    for number, part in enumerate((rows[:5], rows[5:])):
        parquet.write_table(pyarrow.Table.from_pylist(part), folder / "default" / "test" / f"000{number}.parquet")
    return folder


def archive_snapshot(folder, kind):
    """The golden set as its own repository holds it: data/examples.jsonl and an archive of a folder of images."""
    source = GOLDEN / "data" / "winoground"
    (folder / "data").mkdir(parents=True)
    shutil.copyfile(source / "examples.jsonl", folder / "data" / "examples.jsonl")
    images = sorted((source / "images").iterdir())
    if kind == "zip":
        with zipfile.ZipFile(folder / "data" / "images.zip", "w") as archive:
            for path in images:
                archive.write(path, f"images/{path.name}")
                archive.writestr(f"__MACOSX/images/._{path.name}", b"resource fork")
            archive.writestr("../outside.png", b"must stay inside")
        return folder
    with tarfile.open(folder / "data" / f"images.{kind}", "w:gz" if kind == "tar.gz" else "w") as archive:
        for path in images:
            archive.add(path, f"deep/er/{path.name}")
    return folder


def assert_is_the_golden_set(data):
    expected = winoground.open_local(GOLDEN / "data" / "winoground")
    assert data.fingerprint() == expected.fingerprint()
    for (ours, _), (theirs, _) in zip(data, expected, strict=True):
        for image, wanted in zip(ours, theirs, strict=True):
            assert image.mode == wanted.mode and image.tobytes() == wanted.tobytes()


def test_parquet_conversion_first(hub, tmp_path):
    fake = hub(parquet=parquet_snapshot(tmp_path / "snapshot"))
    assert_is_the_golden_set(winoground.open_hub("secret"))
    assert fake.requested == [("facebook/winoground", "dataset", "refs/convert/parquet", "secret")]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("absent", ["error", "no files"])
def test_own_archive_when_there_is_no_conversion(hub, tmp_path, kind, absent):
    (tmp_path / "empty").mkdir()
    parquet = tmp_path / "empty" if absent == "no files" else hub_error("RevisionNotFoundError", 404)
    fake = hub(parquet=parquet, main=archive_snapshot(tmp_path / "cache" / "snapshot", kind))
    assert_is_the_golden_set(winoground.open_hub(None))
    assert [asked[2] for asked in fake.requested] == ["refs/convert/parquet", None]
    assert not list(tmp_path.rglob("outside.png")) and not list(tmp_path.rglob("*.part"))


def test_unpacked_once(hub, tmp_path):
    snapshot = parquet_snapshot(tmp_path / "snapshot")
    hub(parquet=snapshot)
    first = winoground.open_hub(None)
    for path in snapshot.rglob("*.parquet"):
        path.write_bytes(b"not read again")
    assert [e.images for e in winoground.open_hub(None).examples] == [e.images for e in first.examples]


def test_a_torn_download_leaves_nothing_behind(hub, tmp_path):
    snapshot = archive_snapshot(tmp_path / "snapshot", "zip")
    archive = snapshot / "data" / "images.zip"
    archive.write_bytes(archive.read_bytes()[:3000])
    hub(parquet=hub_error("RevisionNotFoundError", 404), main=snapshot)
    with pytest.raises(ValueError, match="cannot be unpacked") as error:
        winoground.open_hub(None)
    assert str(snapshot / "data") in str(error.value) and "\n" not in str(error.value)
    assert sorted(p.name for p in (snapshot / "data").iterdir()) == ["examples.jsonl", "images.zip"]


def test_neither_form_on_the_hub(hub, tmp_path):
    hub(parquet=tmp_path, main=tmp_path)
    with pytest.raises(ValueError, match=r"neither parquet files nor an images archive.*--data_dir"):
        winoground.open_hub(None)


REFUSALS = [("GatedRepoError", 403), ("GatedRepoError", None), ("RepositoryNotFoundError", 401), ("HfHubHTTPError", 401)]


@pytest.mark.parametrize(("name", "status"), REFUSALS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_refusal_says_where_to_accept_and_how_to_log_in(hub, name, status, wrapped):
    error = hub_error(name, status)
    if wrapped:
        error, error.__cause__ = FileNotFoundError("not in the cache"), error
    fake = hub(parquet=error)
    with pytest.raises(ValueError) as told:
        winoground.open_hub(None)
    message = str(told.value)
    for word in ("https://huggingface.co/datasets/facebook/winoground", "hf auth login", "HF_TOKEN", "TOKEN_PATH"):
        assert word in message
    assert "\n" not in message and len(fake.requested) == 1


def test_offline_with_the_real_client(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError) as told:
        winoground.open_hub(None)
    message = str(told.value)
    assert "--data_dir" in message and "--dataset tiny_pairs" in message and "\n" not in message


def test_no_second_folder_for_a_slower_process(tmp_path, monkeypatch):
    """Another process finishes while this one unpacks: its folder stays, ours goes."""
    done = tmp_path / "pairs"

    def write(folder: Path):
        (folder / "mine").write_text("")
        done.mkdir()
        (done / "theirs").write_text("")

    assert winoground._unpack_once(tmp_path, write) == done
    assert [p.name for p in tmp_path.rglob("*")] == ["pairs", "theirs"]
