#!/usr/bin/env python
"""A page in the browser: a picture, labels, a model, and the race between the labels while it runs. On this machine only.

  python scripts/demo.py
with another model, or on another port:
  python scripts/demo.py --version 2-0 --port 7861

Needs the extra: pip install '.[demo]'. The page is served on 127.0.0.1 alone, asks nothing of the network and tells nobody. An
upload is deleted as soon as it is read; one picture is classified at a time, others wait. Ctrl-C ends it. Without --version and
--model_path the page offers the models that ship, tiny and tiny-sd3.
"""

import contextlib
import logging
import os
import socket
import sys
import time
from html import escape
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from dataclasses import dataclass, field
from functools import partial

from diffusion import cli, strategy
from diffusion.analysis import web
from diffusion.cli import parsing
from diffusion.kernel import scores
from diffusion.metrics import calibration
from diffusion.predict import page_backend, page_guard, page_widgets, predictions
from diffusion.runs import loop, printing

log = logging.getLogger("diffusion.demo")  # which session.run listens to
HOST = "127.0.0.1"
SHIPPED = ("tiny", "tiny-sd3")
PART = "found"  # class of what has the style of a report
LABELS = 10  # of a picture, where a time is told
SESSIONS = 50  # tabs whose picture is remembered
UPLOADS = 3  # of the largest, as many may lie in the folder or be on their way
FORM = 1 << 16  # bytes that a form adds to an upload
READ = 20  # pictures that are remembered: gradio gives the same file of two tabs one place
WAITING = 20  # runs that may wait
SIDE = 480  # pixels of the picture as the page shows it
ABOUT = (
    "Each label is tried as a prompt: the model predicts the noise in the picture under it, and the label that predicts it best "
    "wins. Labels that are clearly worse are dropped on the way. The shipped models know clothes and nothing else."
)


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    group = parser.add_argument_group("page")
    group.add_argument("--port", type=parsing.at_least(1, 65535), default=7860, help="of 127.0.0.1 (default: 7860)")
    group.add_argument("--dry_run", action="store_true", help="check everything, print what would be served, and stop")
    cli.add_sd_options(parser)
    group = parser.add_argument_group("method")
    group.add_argument(
        "--template", default="a photo of a {}.", help='what makes a prompt of a label (default: "a photo of a {}.")'
    )
    group.add_argument("--fit", type=Path, metavar="FILE", help="calibrated probabilities, by a fit of scripts/calibrate.py")
    group.add_argument("--loss", choices=list(scores.SCORES), default="l2", help="error of a prediction (default: l2)")
    cli.add_resize_options(group)
    cli.add_strategy_options(parser, default="race", default_text="race")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- what is offered


def prepare(options: dict) -> list[page_backend.Offer]:
    """Checks every option, cheap things first. Raises ValueError or OSError."""
    check_gradio()
    check_port(options["port"])
    strategy.from_options(options["strategy"], options)  # its own mistakes first
    page_backend.read_labels("a, b", options["template"])
    fit = calibration.Fit.read(options["fit"]) if options["fit"] else None
    running = cli.running_of(options | {"worker_idx": 0, "n_workers": 1})  # which imports PyTorch where there may be a GPU
    named = {"version", "model_path"} & options["given"]
    offers = [offer(options | {"version": version}, running) for version in ([options["version"]] if named else SHIPPED)]
    return page_backend.with_fit(offers, fit, options["template"], options["fit"]) if fit else offers


def offer(options: dict, running) -> page_backend.Offer:
    """The model of these options."""
    n = max([2, *(options["to_keep"] or [])])  # labels, of which nobody knows yet
    source, model, _ = cli.checked_model(options, running, cli.strategy_of(options, n), n)
    chosen = partial(cli.strategy_of, options, n_levels=source.n_levels)
    name = cli.version_of(options) if not options["model_path"] else Path(options["model_path"]).name
    return page_backend.Offer(name, source, model, running, chosen, options["loss"])


def check_gradio() -> None:
    """Raises ValueError where it is not installed."""
    spec = find_spec("gradio")
    if spec is None or spec.origin is None:  # a folder of that name is no package
        raise ValueError("gradio is not installed --- install the extra: pip install '.[demo]'")


def check_port(port: int) -> None:
    """Raises ValueError for one that cannot be had."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: who has just left is no hindrance
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"--port {port} cannot be had ({error.strerror}): give another") from None


def slow(one: page_backend.Offer) -> str | None:
    """A line on a model that is none for a CPU, where a picture has ten labels."""
    usual = printing.least(one.price(LABELS), one.strategy(LABELS).usual(LABELS))
    return printing.cpu_notice(one.source, one.model.img_size, one.running.device, usual, f"picture with {LABELS} labels")


def announce(offers: list[page_backend.Offer], port: int) -> None:
    for one in offers:
        print(f"Model: {one.name}, {one.model.img_size} pixels a side: {one.source.describe()}")
    notices = [notice for one in offers for notice in (one.strategy(2).notice(one.source.n_levels), slow(one))]
    for notice in dict.fromkeys(filter(None, notices)):
        print(f"Note: {notice}")
    most = max(one.price(2) for one in offers) // 2
    print(f"Price: at most {most:,} network evaluations per label of a picture, and {2 * most:,} for the map")
    print(f"Page: http://{HOST}:{port} (this machine only)", flush=True)


# ---------------------------------------------------------------- what happens on the page


@dataclass(frozen=True)
class Page:
    """What the page does; gradio is handed in. folder: of uploads"""

    gradio: object
    offers: dict[str, page_backend.Offer]
    template: str
    folder: Path
    read: dict = field(default_factory=dict)  # place of an upload, which names its content -> picture

    def take(self, path: str | None):
        """A new picture, of which no file stays: (drop zone, picture, how it looks, message)."""
        same = self.gradio.skip()
        if path is None:
            return same, same, same, same
        try:
            picture = self.read.get(path) if not Path(path).exists() else page_backend.read_picture(path)
            if picture is None:
                raise ValueError("the upload is gone: give the picture once more")
            self.remember(path, picture)
        except ValueError as error:
            return None, same, same, self.refuse(error)
        finally:
            discard(Path(path), self.folder)
        return None, picture, preview(picture), ""

    def remember(self, path: str, picture: page_backend.Picture) -> None:
        """Another tab with the same file may come when it was discarded."""
        self.read[path] = picture
        for oldest in list(self.read)[:-READ]:
            self.read.pop(oldest, None)

    def run(self, picture, labels: str, model: str, seed, with_map: bool):
        """(message, race, results) again and again."""
        try:
            trial = self.trial(picture, labels, model, seed)  # what is wrong is told before PyTorch is imported
            yield message("Getting ready ..." if trial.offer.is_loaded else f"Loading PyTorch and {model} ..."), "", ""
            if notice := trial.offer.check(trial.table):
                yield message(f"{notice}. Getting ready ..."), "", ""
            yield from self.watch(trial, with_map)
        except (ValueError, OSError, FloatingPointError) as error:
            yield self.refuse(error), "", ""

    def trial(self, picture, labels: str, model: str, seed) -> page_backend.Trial:
        """Raises ValueError for what cannot be run."""
        if picture is None:
            raise ValueError("there is no picture: upload or paste one, or take one of those that ship")
        if model not in self.offers:
            raise ValueError(f"there is no model {model!r} on this page")
        if seed is None or not 0 <= seed < 2**32 or seed != int(seed):
            raise ValueError("the seed must be a whole number from 0 to 4,294,967,295")
        return page_backend.Trial(self.offers[model], picture, page_backend.read_labels(labels, self.template), int(seed))

    def watch(self, trial: page_backend.Trial, with_map: bool):
        names, price = trial.table.classnames, trial.offer.price(len(trial.table.classnames))
        for number, standing in enumerate(trial.rounds(), 1):
            shown = wrapped(page_widgets.race(standing, names))
            left = f"{len(standing.alive)} of {len(names)} labels left"
            spent = f"{standing.result.evaluations:,} of at most {price:,} evaluations"
            yield message(f"Round {number}: {left}, {spent}, {standing.result.seconds:.1f} s"), shown, ""
        result, prediction = standing.result, trial.prediction(standing.result)
        status = f"Best: {prediction.label}. {number} rounds, {result.evaluations:,} evaluations, {result.seconds:.1f} s"
        probable = [predictions.probabilities_text(trial.offer.fit), trial.fit_notice]
        html = page_widgets.ranking(prediction, "; ".join(filter(None, probable)))
        html += page_widgets.error_curves(prediction, result.compared, result.t)
        if with_map:
            yield message(f"{status}. Drawing the map ..."), shown, wrapped(html)
            image, advantage = trial.disagreement(prediction)
            html += page_widgets.error_map(image, advantage, *(c.label for c in prediction.candidates[:2]))
        yield message(status), shown, wrapped(html)

    def refuse(self, error: Exception) -> str:
        """The message, in its place and as a note that pops up."""
        text = str(error)
        self.gradio.Warning(escape(text))
        return message(text, "warning")


def message(text: str, kind: str = "") -> str:
    return wrapped(f'<p role="status" class="{kind}">{escape(text)}</p>')


def wrapped(html: str) -> str:
    """What takes the style of a report."""
    return f'<div class="{PART}">{html}</div>'


def preview(picture: page_backend.Picture) -> str:
    return wrapped(f'<img class="preview" src="{web.data_uri(picture.image, SIDE)}" alt="the picture">')


def discard(path: Path, folder: Path) -> None:
    """Removes an upload, and the folder that gradio made for it alone."""
    if folder.resolve() in path.resolve().parents:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()


# ---------------------------------------------------------------- how it looks


STYLE = f"""
{web.part_style(f".{PART}", f".dark .{PART}")}
.{PART} .preview {{ max-width: 100%; height: auto; max-height: 16rem; min-height: 8rem; margin: 0 auto; display: block;
  border-radius: 6px; image-rendering: pixelated; }}
.{PART} h2 {{ margin-top: 0; padding-top: 0; border: 0; }}
.{PART} h3 {{ margin-top: 0.5rem; }}
.{PART} p {{ margin: 0.2rem 0; }}
.{PART} :is(table, tr) {{ border: 0; margin: 0; }}
.{PART} :is(th, td) {{ border-width: 0 0 1px; }}
.{PART} .legend {{ display: flex; flex-wrap: wrap; gap: 0 1rem; }}
@media (max-width: 40rem) {{ .{PART} .bar {{ width: 100%; min-width: 3rem; }} }}
.shipped img {{ width: 3.4rem; height: 3.4rem; border-radius: 4px; image-rendering: pixelated; display: block; }}
"""


TO_RESULTS = "() => { if (innerWidth < 700) document.querySelector('#status').scrollIntoView({behavior: 'smooth'}) }"


def build(gradio, offers: list[page_backend.Offer], template: str, folder: Path):
    """The page as gradio's Blocks."""
    page = Page(gradio, {one.name: one for one in offers}, template, folder)
    shipped = page_backend.shipped_pictures()
    _, first, labels = shipped[0]
    with gradio.Blocks(title="Diffusion classifier", analytics_enabled=False) as blocks:
        gradio.HTML(wrapped(f"<h2>Which of these labels fits the picture?</h2><p class=note>{ABOUT}</p>"))
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                picture, seen = gradio.State(first), gradio.HTML(preview(first))
                drop = gradio.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"], height=130,
                                    label="A picture of yours: upload or paste", buttons=[])  # fmt: skip
                # gradio's own would open the file, and end in a traceback where it is no picture
                drop.preprocess = lambda payload: payload and payload.path
                samples = [[f'<img src="{web.data_uri(one.image)}" alt="{name}" title="{name}">'] for name, one, _ in shipped]
                choice = gradio.Dataset(components=[gradio.HTML(visible=False)], samples=samples, type="index",
                                        label="Or one that ships", elem_classes="shipped", samples_per_page=20)  # fmt: skip
                typed = gradio.Textbox("\n".join(labels), lines=5, max_lines=12, label="Labels",
                                       info="One per line, or on one line with commas", elem_id="labels")  # fmt: skip
                model = gradio.Radio(list(page.offers), value=offers[0].name, label="Model")
                seed = gradio.Number(0, precision=0, minimum=0, label="Seed of the noise")
                with_map = gradio.Checkbox(True, label="Map of where the first two labels disagree (takes longer)")
                with gradio.Row():
                    start = gradio.Button("Classify", variant="primary", elem_id="start")
                    stop = gradio.Button("Stop", elem_id="stop")
            with gradio.Column(scale=3, min_width=300):
                status = gradio.HTML(message("Press Classify."), elem_id="status")
                race, result_box = gradio.HTML(elem_id="race"), gradio.HTML(elem_id="found")
        at_once = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "undocumented"}
        drop.input(page.take, drop, [drop, picture, seen, status], **at_once)

        def pick(number: int):
            _, one, labels = shipped[number]
            return one, preview(one), "\n".join(labels)

        choice.click(pick, choice, [picture, seen, typed], **at_once)
        running = start.click(page.run, [picture, typed, model, seed, with_map], [status, race, result_box], concurrency_limit=1,
                              show_progress="minimal", show_progress_on=status, api_visibility="undocumented")  # fmt: skip
        start.click(None, js=TO_RESULTS)
        stop.click(lambda: message("Stopped."), None, status, cancels=[running], **at_once)
    return blocks.queue(max_size=WAITING)


# ---------------------------------------------------------------- serving it


def open_page(offers: list[page_backend.Offer], template: str, port: int, folder: Path):
    """Serves the page from threads of this process; its Blocks, which close() ends. folder: of uploads, while they are read."""
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    log.info("Loading the page ...")
    import gradio
    from starlette.middleware import Middleware

    hosts = frozenset(f"{name}:{port}" for name in (HOST, "localhost"))
    room = {"folder": folder, "most": page_backend.MOST_BYTES + FORM, "room": UPLOADS * page_backend.MOST_BYTES}
    guard = Middleware(page_guard.Guard, hosts=hosts, **room)
    blocks = build(gradio, offers, template, folder)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    blocks.launch(server_name=HOST, server_port=port, share=False, prevent_thread_lock=True, quiet=True, footer_links=[],
                  run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False, theme=theme, css=STYLE,
                  max_file_size=page_backend.MOST_BYTES, app_kwargs={"middleware": [guard]},
                  state_session_capacity=SESSIONS)  # fmt: skip
    return blocks


def serve(offers: list[page_backend.Offer], options: dict) -> int:
    """Until a signal comes; the exit code."""
    with page_guard.upload_folder() as folder, loop.StopBetweenImages() as stop:
        blocks = open_page(offers, options["template"], options["port"], folder)
        print("The page is open. Ctrl-C ends it.", flush=True)
        while not stop.signal:
            time.sleep(0.1)
        blocks.close(verbose=False)
    return 128 + stop.signal


def main(argv=None) -> int:
    options = vars(parse_args(argv))
    with cli.bad_input():
        offers = prepare(options)
        announce(offers, options["port"])
    return 0 if options["dry_run"] else serve(offers, options)


if __name__ == "__main__":
    sys.exit(loop.run(main))
