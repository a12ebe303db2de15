"""The kept world of the table of bad inputs: made once, by one of all who want it, and again when it is not as it was."""

import threading

import pytest
import worlds


@pytest.fixture
def made():
    """The folders that `build` has filled."""
    return []


@pytest.fixture
def build(made):
    def fill(folder):
        made.append(folder)
        (folder / "file").write_text("x")

    return fill


def test_all_who_want_it_get_the_one_that_is_made(made, build, tmp_path):
    seen = []

    def use():
        with worlds.world("here-1", build, tmp_path) as folder:
            seen.append((folder / "file").read_text())

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["x"] * 4 and made == [tmp_path / "here-1"]


def test_what_somebody_has_changed_is_told_and_made_again(made, build, tmp_path):
    with pytest.raises(AssertionError, match="a test has written there"), worlds.world("here-1", build, tmp_path) as folder:
        (folder / "file").write_text("xyz")
    with worlds.world("here-1", build, tmp_path) as folder:
        assert (folder / "file").read_text() == "x" and len(made) == 2


def test_one_that_was_not_finished_is_made_again(made, build, tmp_path):
    def fail(folder):
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), worlds.world("here-1", fail, tmp_path):
        pass
    with worlds.world("here-1", build, tmp_path) as folder:
        assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_checkout_keeps_one_besides_those_in_use(build, tmp_path):
    for name in ("here-1", "there-1"):
        with worlds.world(name, build, tmp_path):
            pass
    with worlds.world("here-2", build, tmp_path), worlds.world("here-3", build, tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["here-2", "here-3", "there-1"]


def test_the_name_is_by_place_and_content(tmp_path):
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name / "diffusion").mkdir(parents=True)
        (tmp_path / name / "diffusion" / "cli.py").write_text(text)
    a, b, c = (worlds.key(tmp_path / name).split("-") for name in "abc")
    assert a[1] == b[1] != c[1] and len({a[0], b[0], c[0]}) == 3
