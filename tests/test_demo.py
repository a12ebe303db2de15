"""scripts/demo.py: the page and what is behind it - rounds, labels, uploads, messages, the queue - and the page in Chromium."""

import asyncio
import json
import os
import re
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from browser import Browser
from conftest import TINY_SD20, Forked, load_script, said, with_method
from layouts import save_picture
from PIL import Image

from diffusion import classify, models
from diffusion.analysis import web
from diffusion.classify import Classifier, Result, Round
from diffusion.datasets import prompts
from diffusion.metrics import calibration, curves
from diffusion.predict import page_backend, page_guard, page_widgets, predictions
from diffusion.predict.predictions import Candidate, Prediction
from diffusion.strategy import Race, Stages

try:
    import gradio
except ImportError:
    gradio = None

LABELS = ["bag", "boot", "coat", "dress"]
TEMPLATE = "a photo of a {}."
MODEL = ["--model_path", str(TINY_SD20), "--img_size", "64", "--device", "cpu"]
RULE = ["--alpha", "0.2", "--min_samples", "3", "--round_size", "2", "--max_samples", "12"]
needs_gradio = pytest.mark.skipif(gradio is None, reason="gradio is not installed (the extra demo)")


@pytest.fixture(scope="module")
def script():
    return load_script("demo")


@pytest.fixture(scope="module")
def offers(script):
    """The tiny pipeline's, on whatever port is free."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(script, "check_gradio", lambda: None)
        return script.prepare(vars(script.parse_args([*MODEL, *RULE, "--port", str(free_port())])))


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def noise_picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8))


# ---------------------------------------------------------------- rounds


def classifier_of(strategy):
    names = [TEMPLATE.format(label) for label in LABELS]
    return classify.text_to_image("2-0", names, model_path=str(TINY_SD20), img_size=64, strategy=strategy, seed=3, device="cpu")


@pytest.fixture(scope="module")
def racing():
    return classifier_of(Race(0.8, 3, 2, 12))


def same(ours: Result, theirs: Result) -> bool:
    errors = all(np.array_equal(ours.errors[row], theirs.errors[row]) for row in theirs.errors)
    return errors and (ours.winner, ours.dropped, ours.ranking) == (theirs.winner, theirs.dropped, theirs.ranking)


@pytest.mark.parametrize("index", [0, 1, 5])
def test_the_last_round_is_the_call(racing, index):
    *before, last = racing.rounds(noise_picture(index), index)
    called = racing(noise_picture(index), index)
    assert same(last.result, called) and last.alive == [row for row in range(4) if row not in called.dropped]
    for number, standing in enumerate(before, 1):
        fell = {row: when for row, when in called.dropped.items() if when <= number}
        assert standing.alive == [row for row in range(4) if row not in fell] and standing.result.dropped == fell
        n = len(standing.result.errors[standing.alive[0]])
        for row, errors in standing.result.errors.items():  # a beginning of what the call saw
            assert len(errors) == min(n, len(called.errors[row])) and np.array_equal(errors, called.errors[row][: len(errors)])
        means = {row: called.errors[row][:n].mean(dtype=float) for row in standing.alive}
        assert standing.result.winner == min(means, key=means.get)


def test_some_race_has_rounds_in_which_somebody_is_dropped(racing):
    """Else the test above says little."""
    assert any(len({len(one.alive) for one in racing.rounds(noise_picture(index), index)}) > 1 for index in (0, 1, 5))


def test_stages_have_a_round_each():
    first, second = classifier_of(Stages((2, 1), (2, 6))).rounds(noise_picture())
    means = {row: errors.mean(dtype=float) for row, errors in first.result.errors.items()}
    assert first.alive == sorted(sorted(means, key=means.get)[:2]) and second.alive == [second.result.winner]


def test_errors_that_are_not_finite_end_it_as_they_end_a_call(racing, monkeypatch):
    monkeypatch.setattr(Classifier, "_errors", lambda *_: np.full((4, 3), np.nan, np.float32))
    with pytest.raises(FloatingPointError, match="12 of 12"):
        list(racing.rounds(noise_picture()))


# ---------------------------------------------------------------- labels, pictures


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("a cat, a dog", ["a cat", "a dog"]),
        ("a cat\n\n  a dog \r\n", ["a cat", "a dog"]),
        ("a cat, sitting\na dog", ["a cat, sitting", "a dog"]),
        (",a,,b,", ["a", "b"]),
        ("one", ["one"]),
        (" , ", []),
        ("", []),
    ],
)
def test_labels_as_they_are_typed(text, labels):
    assert prompts.labels_of(text) == labels


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "there are no labels"),
        (None, "there are no labels"),
        ("bag", "'bag' is the only label"),
        ("bag, boot, bag", "'bag' stands there for two labels"),
        ("\n".join(map(str, range(501))), "501 labels: write at most 500"),
    ],
)
def test_labels_that_are_no_choice(text, told):
    with pytest.raises(ValueError, match=told) as refused:
        page_backend.read_labels(text, TEMPLATE)
    assert "\n" not in str(refused.value)


def test_a_picture_is_that_of_the_command_line():
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    image.save("a.jpg", exif=exif)
    found = page_backend.read_picture("a.jpg")
    assert found.image.size == (20, 40) and found.key == predictions.content_key("a.jpg")
    assert found.image.getpixel((10, 5))[2] > 200 and found.image.getpixel((10, 35))[0] > 200


def bad_pictures():
    """name -> what is told of it."""
    Path("notes.png").write_text("no picture")
    Path("empty.png").write_bytes(b"")
    noise_picture().save("whole.png")
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:2000])
    Image.new("L", (9000, 6000)).save("many.png")
    Image.new("L", (1, 500)).save("thin.png")
    Path("heavy.png").write_bytes(b"x" * (page_backend.MOST_BYTES + 1))
    Path("drawn.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'></svg>")
    none, broken = "no picture that can be read", "this picture cannot be read"
    return {"notes.png": none, "empty.png": none, "drawn.svg": none, "cut.png": broken, "thin.png": broken,
            "many.png": "9,000 x 6,000 pixels are too many", "heavy.png": "larger than 20 MB"}  # fmt: skip


def test_what_is_no_picture_is_one_line():
    for name, told in bad_pictures().items():
        with pytest.raises(ValueError, match=told) as refused:
            page_backend.read_picture(name)
        assert "\n" not in str(refused.value) and str(Path.cwd()) not in str(refused.value)


def test_the_shipped_pictures_show_what_they_are_called():
    found = page_backend.shipped_pictures()
    assert len(found) >= 8 and len({picture.key for _, picture, _ in found}) == len(found)
    for name, picture, labels in found:
        assert name in labels and len(set(labels)) == len(labels) and picture.image.mode == "RGB"
    red = np.asarray({name: picture for name, picture, _ in found}["red bag"].image, float).mean((0, 1))
    assert red[0] > 3 * red[2]


# ---------------------------------------------------------------- what is shown


def test_differences_by_timestep():
    t = np.array([500, 100, 500, 900, 100])
    steps, found = curves.difference_by_t([3.0, 5.0, 4.0, 9.0], [1.0, 1.0, 1.0, 1.0, 7.0], t)
    assert steps.tolist() == [100, 500, 900] and found.tolist() == [4, (2 + 3) / 2, 8]


def standing():
    errors = {0: [4.0, 6.0], 1: [1.0, 1.0, 1.0, 1.0], 2: [2.0, 4.0, 2.0, 4.0]}
    errors = {row: np.array(e, np.float32) for row, e in errors.items()}
    return Round([1, 2], Result([0, 1, 2], 1, errors, np.arange(4), {0: 2}))


def test_the_table_of_a_race_by_hand():
    table = page_widgets.race_table(standing(), ["<a>", "b", "c"])
    assert table.rows == [["b", 4, "leads"], ["c", 4, ""], ["<a>", 2, "round 2"]] and table.kinds == ["", "", "out"]
    deviation = np.std([1, 3, 1, 3], ddof=1) / 2
    assert [mark.value for mark in table.marks] == [0, 2, 4]  # of the pairs that both saw
    assert table.marks[1].low == pytest.approx(2 - 2 * deviation)
    other = np.std([3, 5], ddof=1) / 2**0.5
    assert table.span == pytest.approx((0, 4 + 2 * other))
    html = page_widgets.race(standing(), ["<a>", "b", "c"])
    assert "<a>" not in html and "&lt;a&gt;" in html and html.count('<tr class="out">') == 1


def test_a_long_race_shows_some_labels_and_counts_the_others():
    result = Result(list(range(30)), 0, {row: np.full(2, row, np.float32) for row in range(30)}, np.arange(2))
    html = page_widgets.race(Round(list(range(30)), result), list(map(str, range(30))))
    assert html.count("<tr>") == 1 + page_widgets.MOST_ROWS and "And 5 labels more" in html


def test_what_is_found_is_escaped_and_takes_the_page_s_colours():
    candidates = tuple(Candidate(f"<{row}>", 1 / 3, row, 0.5, 4) for row in (1, 2, 0))
    found = Prediction(candidates, 12, 1.0)
    errors = [standing().result.errors[row] for row in range(3)]
    drawn = page_widgets.error_curves(found, errors, np.arange(4))
    image = np.zeros((3, 8, 8), np.float32)
    parts = [page_widgets.ranking(found, "told"), drawn, page_widgets.error_map(image, np.eye(2), "<1>", "<2>")]
    assert not re.search(r"<\d>", "".join(parts)) and all("&lt;1&gt;" in part for part in parts)
    assert "currentColor" in drawn and "var(--s3)" in drawn and "#00000" not in drawn and "http-equiv" not in drawn


def test_the_style_of_a_part_has_every_colour_twice():
    style = web.part_style(".x", ".dark .x")
    light, dark = style.split("\n.dark .x {")
    names = set(re.findall(r"(--\w+):", web.style())) - {"--c"}  # of a line, one of these
    assert light.startswith(".x {") and ":root" not in style
    assert names <= set(re.findall(r"(--\w+):", light)) and names <= set(re.findall(r"(--\w+):", dark))


# ---------------------------------------------------------------- the command


@pytest.fixture
def run(run_main, script, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr(script, "open_page", lambda *_: pytest.fail("the page was opened"))
    monkeypatch.setattr(script, "find_spec", lambda name: SimpleNamespace(origin=name))
    return lambda *argv: run_main(script.main, *argv)


def test_a_dry_run_tells_what_would_be_served(run):
    port = free_port()
    code, out, err = run("--dry_run", "--port", port, "--device", "cpu")
    assert code == 0, err
    assert re.findall(r"^Model: ([\w-]+), 64 pixels", out, re.M) == ["tiny", "tiny-sd3"]
    assert "Price: at most 250 network evaluations per label of a picture, and 500 for the map" in out
    assert out.splitlines()[-1] == f"Page: http://127.0.0.1:{port} (this machine only)" and not list(Path().iterdir())


def test_a_port_that_is_taken(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run("--dry_run", "--port", port)
    assert code == 2 and err == f"error: --port {port} cannot be had (Address already in use): give another\n"


@pytest.mark.parametrize("found", [None, SimpleNamespace(origin=None)], ids=["nothing", "a folder of that name"])
def test_without_gradio(run, script, monkeypatch, found):
    monkeypatch.setattr(script, "find_spec", lambda name: found)
    code, _, err = run("--dry_run")
    assert code == 2 and err == "error: gradio is not installed --- install the extra: pip install '.[demo]'\n"


BAD = [
    (["--version", "nonsense"], "--version nonsense"),
    (["--model_path", "none"], "none"),
    (["--template", "a photo"], "--template"),
    (["--fit", "none.json"], "none.json"),
    (["--fit", "other.json"], "other.json was fitted on a run of other settings: weights"),
    (["--levels", "uniform"], "--levels uniform"),
    (["--to_keep", "1"], "--to_keep is for --strategy stages"),
    (["--max_samples", "2000"], "--max_samples 2000"),
    (["--port", "0"], "--port"),
    (["--device", "nonsense"], "nonsense"),
]


@pytest.mark.parametrize(("argv", "told"), BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input_is_one_line(run, argv, told):
    calibration.Fit(0.01, 0.5, 40, {"weights": "0", "loss": "l2"}).write("other.json")
    code, _, err = run(*(["--port", free_port()] if "--port" not in argv else []), *argv)
    assert code == 2 and err.count("\n") == 1 and told in err, err


def test_a_fit_belongs_to_the_model_that_it_was_made_with(script, offers):
    assert [one.fit for one in offers] == [None]
    about = offers[0].identity(page_backend.read_labels("x, y, z", TEMPLATE)) | {"dataset": "pets"}
    other = page_backend.replace(offers[0], loss="l1")
    fit = calibration.Fit(0.01, 0.0, 40, about)
    assert [one.fit for one in page_backend.with_fit([other, offers[0]], fit, TEMPLATE, "f.json")] == [None, fit]


# ---------------------------------------------------------------- the page without a browser


class Told(list):
    """What gradio is to a Page that nobody looks at: a note that pops up is kept."""

    def Warning(self, text):
        self.append(text)

    def skip(self):
        return "same"


@pytest.fixture
def page(script, offers):
    Path("uploads").mkdir()
    return script.Page(Told(), {offers[0].name: offers[0]}, TEMPLATE, Path("uploads"))


def text_of(html):
    return re.sub(r"<[^>]*>", "", html)


def put(name):
    """An upload as gradio makes it, in a folder of its own."""
    place = Path("uploads") / f"of {name}" / name
    place.parent.mkdir()
    place.write_bytes(Path(name).read_bytes())
    return str(place)


def test_an_upload_is_deleted_when_it_was_read(page, script):
    save_picture(Path("a.png"), size=(70, 64))
    kept, picture, shown, told = page.take(put("a.png"))
    assert (kept, told) == (None, "") and picture.key == predictions.content_key("a.png") and "data:image/" in shown
    assert list(Path("uploads").iterdir()) == []
    assert page.take(None) == ("same",) * 4


def test_an_upload_that_is_no_picture_is_deleted_too(page):
    for name, told in bad_pictures().items():
        kept, picture, _, shown = page.take(put(name))
        assert kept is None and picture == "same" and told in text_of(shown), name
        assert page.gradio[-1] == text_of(shown) and list(Path("uploads").iterdir()) == []


def test_a_second_tab_with_the_same_picture(page):
    """gradio gives both one place, and the first to read it discards the file."""
    save_picture(Path("a.png"), size=(70, 64))
    place = put("a.png")
    first, second = page.take(place), page.take(place)
    assert second[1] == first[1] and second[3] == ""
    assert "the upload is gone" in text_of(page.take("uploads/none/b.png")[3])


def answer(guard, path="/", method="POST", **headers):
    """The status that a request gets, 200 where it comes through."""
    sent = []

    async def send(message):
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), str(value).encode()) for name, value in headers.items()]
    asyncio.run(guard({"type": "http", "path": path, "method": method, "headers": raw}, None, send))
    return sent[0]["status"]


@pytest.fixture
def guard():
    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    Path("uploads").mkdir()
    return page_guard.Guard(page, frozenset(["127.0.0.1:7860", "localhost:7860"]), Path("uploads"), 100, 250)


OWN = {"host": "127.0.0.1:7860"}


@pytest.mark.parametrize("host", ["evil.example:7860", "127.0.0.1", "127.0.0.1:80", "localhost.evil.example:7860", ""])
def test_a_foreign_name_for_this_machine_is_refused(host, guard):
    assert answer(guard, host=host) == answer(guard) == 403 and answer(guard, **OWN) == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:7860", "http://127.0.0.1:80", "127.0.0.1:7860"]
)
def test_what_a_foreign_page_sends_is_refused(origin, guard):
    assert answer(guard, origin=origin, **OWN) == 403
    assert answer(guard, origin="http://localhost:7860", **OWN) == 200


def test_all_uploads_together_have_a_limit(guard):
    upload = lambda n, **more: answer(guard, "/gradio_api/upload", content_length=n, **OWN, **more)  # noqa: E731
    assert [upload(100), upload(101), upload("x")] == [200, 413, 413] and guard.coming == 0
    assert answer(guard, "/gradio_api/upload", **OWN) == 413
    for name in "ab":
        Path("uploads", name).write_bytes(bytes(100))
    assert [upload(50), upload(51)] == [200, 507]
    os.utime("uploads/a", (0, 0))  # forgotten
    assert upload(100) == 200 and [path.name for path in Path("uploads").iterdir()] == ["b"]


def test_what_a_killed_page_left_goes_at_the_next_start(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, young = (tmp_path / f"{page_guard.PREFIX}{name}" for name in ("left", "young"))
    for folder in (left, young):
        folder.mkdir()
    (left / page_guard.LOCK).touch()
    (left / "upload.png").write_text("x")
    with page_guard.upload_folder() as one:
        assert not left.exists() and young.exists() and one.exists()
        with page_guard.upload_folder() as two:  # a page that is served keeps its own
            assert one.exists() and two != one
    assert not one.exists()


def test_nothing_outside_the_folder_of_uploads_is_deleted(page):
    Path("notes.png").write_text("mine")
    page.take("notes.png")
    page.take("uploads/../notes.png")
    assert Path("notes.png").read_text() == "mine"


def test_a_run_shows_the_race_and_then_what_it_found(page, offers, racing):
    picture = page_backend.Picture(noise_picture(), "00000000000000a1")
    started, *rounds, drawing, last = page.run(picture, "\n".join(LABELS), offers[0].name, 3, True)
    assert f"Loading PyTorch and {offers[0].name}" in started[0]
    strategy = Race(0.2, 3, 2, 12)
    *standings, ended = with_method(racing, strategy=strategy).rounds(picture.image, 0xA1)
    counts = [int(re.search(r"Round \d+: (\d) of 4 labels left", text_of(status))[1]) for status, _, _ in rounds]
    assert counts == [len(one.alive) for one in (*standings, ended)]
    best = predictions.predict(ended.result, dict(enumerate(LABELS))).candidates
    assert f"Best: {best[0].label}. {len(counts)} rounds, {ended.result.evaluations} evaluations" in text_of(last[0])
    assert "Drawing the map" in text_of(drawing[0]) and "disagree" not in drawing[2] and "disagree" in last[2]
    assert "Probabilities are uncalibrated" in last[2] and f"{best[0].probability:.4f}" in last[2]
    assert f"Green: {best[0].label} has the lower" in last[2] and page.gradio == []


def test_the_map_s_mean_is_the_difference_of_the_two_errors(offers):
    picture = page_backend.Picture(noise_picture(2), "a1")
    trial = page_backend.Trial(page_backend.replace(offers[0], strategy=lambda n: Stages((1,), (5,))), picture,
                       page_backend.read_labels("bag, boot", TEMPLATE), 0)  # fmt: skip
    *_, last = trial.rounds()
    prediction = trial.prediction(last.result)
    image, advantage = trial.disagreement(prediction)
    first, second = prediction.candidates
    assert advantage.shape == (8, 8) and advantage.mean() == pytest.approx(second.error - first.error, abs=3e-6)
    assert tuple(image.shape) == (3, 64, 64)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"labels": ""}, "there are no labels"),
        ({"labels": "bag"}, "'bag' is the only label"),
        ({"labels": "bag, bag"}, "'bag' stands there for two labels"),
        ({"labels": "a b, a_b"}, "labels:"),  # the same prompt, as _ becomes a space
        ({"labels": "<b>, <b>"}, "'<b>' stands there"),
        ({"picture": None}, "there is no picture"),
        ({"model": "other"}, "no model 'other'"),
        ({"seed": None}, "the seed must be"),
        ({"seed": -1}, "the seed must be"),
    ],
)
def test_what_cannot_be_run_is_a_message(page, offers, changed, told):
    given = {"picture": page_backend.Picture(noise_picture(), "a1"), "labels": "bag, boot", "model": offers[0].name, "seed": 0}
    *loading, (shown, race, found) = page.run(*(given | changed).values(), True)
    assert len(loading) == (told == "labels:")  # what only the tokenizer knows
    assert told in unescape(text_of(shown)) and 'class="warning"' in shown and (race, found) == ("", "")
    assert [unescape(note) for note in page.gradio] == [unescape(text_of(shown))] and "<b>" not in shown


# ---------------------------------------------------------------- the page as it is served


@pytest.fixture(scope="module")
def served(script, offers, tmp_path_factory):
    """(address, folder of uploads), without a browser."""
    if gradio is None:
        pytest.skip("gradio is not installed (the extra demo)")
    folder, port = tmp_path_factory.mktemp("uploads"), free_port()
    with pytest.MonkeyPatch.context() as patched:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
            patched.setenv(name, "")  # to be put back
        blocks = script.open_page(offers, TEMPLATE, port, folder)
        yield f"http://127.0.0.1:{port}/", folder
        blocks.close(verbose=False)


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
@needs_gradio
def test_an_upload_over_the_wire_leaves_no_file(served):
    from gradio_client import Client, handle_file

    address, folder = served
    save_picture(Path("a.png"), size=(70, 64))
    Path("notes.png").write_text("no picture")
    client = Client(address, verbose=False)
    for name, told in (("a.png", ""), ("notes.png", "no picture that can be read")):
        *_, shown = client.predict(handle_file(name), api_name="/take")
        assert told in str(shown) and files_in(folder) == []
    *_, (status, _, found) = client.submit("bag, boot", "tiny-sd20", 0, False, api_name="/run")
    assert "Best: " in status and "Ranking" in found and files_in(folder) == []
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "notes.png"]  # nor in the folder of the command


@pytest.mark.slow
@needs_gradio
def test_one_runs_and_the_others_wait(served, monkeypatch):
    from gradio_client import Client

    spans, rounds = [], page_backend.Trial.rounds

    def watched(trial):
        start = time.monotonic()
        yield from rounds(trial)
        spans.append((start, time.monotonic()))

    monkeypatch.setattr(page_backend.Trial, "rounds", watched)
    clients = [Client(served[0], verbose=False) for _ in range(3)]
    jobs = [client.submit("bag, boot, coat", "tiny-sd20", 0, False, api_name="/run") for client in clients]
    assert all("Best: " in job.outputs()[-1][0] for job in jobs if job.result())
    assert len(spans) == 3 and all(end <= start for (_, end), (start, _) in zip(sorted(spans), sorted(spans)[1:], strict=False))


@pytest.mark.slow
@needs_gradio
def test_only_this_machine_is_served(served):
    port = int(served[0].rsplit(":", 1)[1].strip("/"))
    with socket.socket() as other:
        other.bind(("127.0.0.2", port))  # taken, were it served on all addresses
    with urllib.request.urlopen(f"{served[0]}config") as answer:
        config = json.load(answer)
    foreign = urllib.request.Request(f"{served[0]}config", headers={"Host": f"evil.example:{port}"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(foreign)
    assert config["analytics_enabled"] is False and not config.get("is_space")


# ---------------------------------------------------------------- the page in a real browser

CONTRAST = """(() => {
  const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(x => (x / 255 <= 0.04045 ? x / 255 / 12.92
    : ((x / 255 + 0.055) / 1.055) ** 2.4)); return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05; };
  let under = document.querySelector(".found");
  while (/, 0\\)$/.test(getComputedStyle(under).backgroundColor) && under.parentElement) under = under.parentElement;
  const paper = light(getComputedStyle(under).backgroundColor);
  const inks = [...document.querySelectorAll(".found :is(td, th, h3, .note, .legend li, svg text)")]
    .filter(e => e.textContent.trim()).map(e => getComputedStyle(e))
    .map(style => light(style.fill === "rgb(0, 0, 0)" ? style.color : style.fill));
  return Math.min(...inks.map(ink => Math.max(ink, paper) / Math.min(ink, paper))); })()"""
STATUS = "document.querySelector('#status').innerText"


@pytest.fixture(scope="module")
def chromium(a_browser, served, tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def opened(chromium, served, width, theme):
    tab = chromium.open(f"{served[0]}?__theme={theme}", width)
    tab.wait("document.querySelector('#start')", 120)
    return tab


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (390, "dark"), (1280, "dark"), (1280, "light")])
def test_a_race_in_chromium(chromium, served, width, theme):
    tab = opened(chromium, served, width, theme)
    assert tab.overflow() == 0
    tab.write("#labels textarea", f"{'y' * 60}\nbag\n<b>boot</b>")
    tab.click("#start")
    tab.wait("document.querySelector('#found .pair')", 120)
    assert "Best: " in tab.run(STATUS) and tab.run("document.querySelectorAll('#race tbody tr').length") == 3
    assert tab.overflow() == 0 and tab.complaints() == [] and tab.run(CONTRAST) >= 4.5
    assert tab.run("[...document.images].filter(image => !image.naturalWidth).length") == 0
    assert [url for url in tab.requests() if not url.startswith((served[0], "data:", "blob:"))] == []
    assert files_in(served[1]) == []


@pytest.mark.slow
def test_uploads_and_messages_in_chromium(chromium, served):
    tab = opened(chromium, served, 1280, "light")
    save_picture(Path("a.png"), size=(70, 64))
    Path("notes.png").write_text("no picture")
    tab.upload("input[type=file]", Path("notes.png").resolve())
    tab.wait(f"{STATUS}.includes('no picture that can be read')")
    tab.wait("document.querySelector('.toast-body').innerText.includes('no picture that can be read')")
    tab.upload("input[type=file]", Path("a.png").resolve())
    tab.wait("document.querySelector('.preview').naturalWidth === 70")
    assert files_in(served[1]) == []
    tab.write("#labels textarea", "bag")
    tab.click("#start")
    tab.wait(f"{STATUS}.includes('is the only label')")
    tab.click(".shipped button:nth-of-type(7), .shipped tbody tr:nth-child(7)")
    tab.wait("document.querySelector('#labels textarea').value.startsWith('red bag')")
    assert tab.run("document.querySelector('.preview').naturalWidth") == 64


@pytest.mark.slow
def test_the_contrast_check_can_fail(chromium):
    tab = chromium.open("data:text/html,<body style='background: white'><p class=found><b class=note style='color: yellow'>x")
    tab.wait("document.querySelector('.note')")
    assert tab.run(CONTRAST) < 2


# ---------------------------------------------------------------- its end


@pytest.mark.slow
@needs_gradio
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_nothing(number):
    Path("tmp").mkdir()
    started = Forked("demo")
    try:
        [child] = started.start([{"TMPDIR": str(Path("tmp").resolve())}], [*MODEL, *RULE, "--port", free_port()], "demo")
        started.wait_for(lambda: Path("out.0").exists() and "The page is open" in said()[0], [child])
        assert len(list(Path("tmp").iterdir())) == 1
        os.kill(child, number)
        assert started.wait([child]) == [128 + number] and "Traceback" not in said()[1]
    finally:
        started.end()
    assert list(Path("tmp").iterdir()) == []
