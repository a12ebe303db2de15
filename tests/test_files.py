"""The one reader of JSON files: whatever is wrong with a file, the line names it, and the key where there is one."""

import contextlib
import json
import pickle
import warnings

import pytest
import torch

from diffusion.baselines import supervised
from diffusion.runs import run_folder
from diffusion.utils import files
from DiT import loading

KINDS = {"width": int, "name": str, "parts": list}
GOOD = {"width": 3, "name": "a", "parts": []}


@pytest.mark.parametrize(
    "content",
    [b"", b" ", b"{", b"{'a': 1}", b"\xff\xfe{}", b"\x00" * 50, b"PK\x03\x04", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000],
)
def test_what_is_not_json(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json (is not readable JSON|holds no JSON object)") as told:
        files.read_json(tmp_path / "x.json")
    assert "\n" not in str(told.value) and len(str(told.value)) < 300


@pytest.mark.parametrize("content", ["[]", "3", "null", "true", '"text"', "NaN"])
def test_json_that_is_no_object(content, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json holds no JSON object"):
        files.read_json(tmp_path / "x.json")


@pytest.mark.parametrize("key", KINDS)
def test_a_key_that_is_missing_or_of_another_type(key, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(GOOD))
    assert files.read_json(path, KINDS) == GOOD == files.read_json(str(path))
    path.write_text(json.dumps({name: value for name, value in GOOD.items() if name != key}))
    with pytest.raises(ValueError, match=rf"x\.json has no '{key}'"):
        files.read_json(path, KINDS)
    for value in (None, True, 1.5, {"a": 1}, [1] if key != "parts" else 1, "3" if key != "name" else 3):
        path.write_text(json.dumps(GOOD | {key: value}))
        with pytest.raises(ValueError, match=rf"x\.json: '{key}' is .* not of type {KINDS[key].__name__}"):
            files.read_json(path, KINDS)


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path):
    for path in (tmp_path / "gone.json", tmp_path):
        with pytest.raises(OSError, match=path.name):
            files.read_json(path)


# ---------------------------------------------------------------- pickled tensors

PICKLED = {  # what torch warns of at length before it refuses it
    "another protocol": lambda file: pickle.dump({"a": 1.0}, file, protocol=4),
    "another protocol of torch's": lambda file: torch.save({"a": torch.zeros(2)}, file, pickle_protocol=4),
    "sparse": lambda file: torch.save(torch.eye(2).to_sparse(), file),
}
READERS = {
    "tensors": files.load_tensors,
    "records": lambda path: run_folder.load_pair_records(path.parent, []),
    "DiT": loading.read_state,
    "networks": lambda path: supervised._read(str(path)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", PICKLED)
def test_what_is_wrong_with_a_file_is_told_without_the_librarys_warnings(kind, reader, tmp_path):
    with (tmp_path / "7.pt").open("wb") as file:
        PICKLED[kind](file)
    with warnings.catch_warnings(record=True) as told, contextlib.suppress(Exception):  # whose text is tested elsewhere
        warnings.simplefilter("always")
        READERS[reader](tmp_path / "7.pt")
    assert not told
