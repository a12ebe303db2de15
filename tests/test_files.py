"""The one reader of JSON files: whatever is wrong with a file, the line names it, and the key where there is one."""

import json

import pytest

from diffusion.utils import files

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
