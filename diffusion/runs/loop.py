"""A run at work: the network is started, images are gone through with progress and stopping, the closing lines are printed."""

import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from diffusion import metrics
from diffusion.datasets import loader
from diffusion.kernel import batching
from diffusion.models.source import ModelError
from diffusion.utils import commands, files, startup
from diffusion.utils.distributed import lost_contact, team
from diffusion.utils.progress import progress

log = logging.getLogger(__name__)


class _Printed(logging.Handler):
    """Prints what modules log of a wait that begins, such as `Loading ...`; they are silent where no command calls them."""

    def emit(self, record):
        print(record.getMessage(), flush=True)


@contextmanager
def _log_printed() -> Iterator[None]:
    ours, handler = logging.getLogger("diffusion"), _Printed()
    level, ours.propagate = ours.level, False
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:  # a process may go on, as that of the tests does
        ours.removeHandler(handler)
        ours.setLevel(level)
        ours.propagate = True


def tell_loading(source) -> None:
    """Before the first of it, which imports PyTorch. source: of weights"""
    log.info("Loading PyTorch and the weights: %s ...", source.describe())


def tell_reading(folder) -> None:
    """Before the records in a run folder are read, if there are any."""
    if n := sum(1 for _ in folder.glob("*.pt")):
        log.info("Reading %s records in %s ...", f"{n:,}", folder)


class Network(NamedTuple):
    """What an image is evaluated with. batch_size: what auto found, else None; in_flight: how many images at once."""

    denoiser: Any
    conditions: Any  # of all candidates
    batch: Any  # kernel.Batch
    batch_size: int | None
    in_flight: int = 1

    @property
    def about(self) -> dict:
        """What config.json says of it."""
        levels, space = len(self.denoiser.levels), self.denoiser.space
        return {"n_levels": levels, "error_space": space, "batch_size_found": self.batch_size}


def start_network(load, candidates: list, latent_shape, running, dtype: str, useful: int, before: int | None = None,
                  likely: int = 1) -> Network:  # fmt: skip
    """load(device, dtype, compile) -> Denoiser, with all candidates embedded. Finds --batch_size auto, by that
    --images_in_flight auto, compiles, and prints all three.

    running: settings.Running. before: what auto found at an earlier start, and takes again; of one image more than `useful`
    evaluations are never asked for at once. likely: what auto tries first on CUDA (models.likely_batch). Raises ValueError or
    OSError for weights that do not do.
    """
    from diffusion.kernel import blocks
    from diffusion.models.speed import tuning

    denoiser = load(running.device, dtype, running.compile)
    log.info("Embedding %s candidates ...", f"{len(candidates):,}")
    conditions, batch_size, requested = denoiser.embed(candidates), None, running.images_in_flight
    if running.batch_size == "auto":
        useful *= batching.width(requested, running.device, tuning.MOST) or 1
        log.info("Finding the batch size ...")
        batch_size = before or _largest_batch(denoiser, conditions, latent_shape, running.device, dtype, useful, likely)
        print(f"Batch size: {batch_size}", flush=True)
    batch = blocks.Batch(batch_size or running.batch_size)
    in_flight = batching.width(requested, running.device, batch.size) or 1
    if requested == "auto":
        print(f"Images in flight: {in_flight}", flush=True)
    if running.compile:
        log.info("Compiling ...")
        start = time.perf_counter()
        _compile(denoiser, conditions, latent_shape, running.device, batch.size, in_flight > 1)
        print(f"Compiled in {time.perf_counter() - start:.0f} s", flush=True)
    return Network(denoiser, conditions, batch, batch_size, in_flight)


def _zeros(n: int, latent_shape, device: str):
    """Latents [n,C,h,w] and levels [n] to try a network with."""
    import torch

    return torch.zeros(n, *latent_shape, device=device), torch.zeros(n, dtype=torch.int64, device=device)


def _largest_batch(denoiser, conditions, latent_shape, device: str, dtype: str, useful: int, likely: int) -> int:
    import torch

    from diffusion.models.speed import devices, tuning

    @torch.inference_mode()
    def fits(n):
        denoiser.predict(*_zeros(n, latent_shape, device), conditions.repeat_one(n))

    n_bytes = math.prod(latent_shape) * devices.torch_dtype(dtype).itemsize
    return tuning.largest_batch(fits, device, n_bytes, useful, likely)


def _compile(denoiser, conditions, latent_shape, device: str, size: int, cells: bool) -> None:
    """The first block, with no side of one, which would be compiled by itself; cells: and the first call of several images."""
    import torch

    # by a list, as the run takes rows: of a slice's inference tensors dynamo would trace a second time
    rows = conditions[list(range(min(len(conditions), max(2, size // 2))))]
    with torch.inference_mode(), warnings.catch_warnings():
        # diffusers is traced past a cache, which torch warns of at length; check_device.py compares the errors
        warnings.simplefilter("ignore")
        x_t, t = _zeros(max(2, size // len(rows)), latent_shape, device)
        denoiser.predict_latents(x_t, t, rows, None)
        if cells:
            denoiser.predict_latents(x_t, t, conditions[[0] * len(t)], torch.arange(len(t), device=device))


# ---------------------------------------------------------------- while it works


class Tally:
    """Right and counted images for the running accuracy; images and evaluations of this process for its speed.

    Outcomes are anything with `right` (None: it predicts nothing and is not counted) and `evaluations`.
    """

    def __init__(self, before=()):
        """before: outcomes of earlier runs to count in the accuracy."""
        self.right = self.counted = self.done = self.evaluations = 0
        self.start = time.perf_counter()
        for outcome in before:
            self.count(outcome)

    def count(self, outcome):
        self.counted += outcome.right is not None
        self.right += bool(outcome.right)

    def add(self, outcome):
        self.count(outcome)
        self.done += 1
        self.evaluations += outcome.evaluations

    @property
    def seconds(self):
        return time.perf_counter() - self.start

    def postfix(self):
        accuracy = {"accuracy": f"{100 * self.right / self.counted:.1f}%"} if self.counted else {}
        return accuracy | {"evaluations/s": f"{self.evaluations / self.seconds:.0f}"}


class StopBetweenImages:
    """Context manager: the first Ctrl-C or SIGTERM sets `.signal` and lets the images in work finish; a second one kills."""

    signal: int | None = None

    def __enter__(self):
        self.before = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception):
        self._restore()

    def _request(self, number, frame):
        self.signal = number
        if team().leads:
            print("\nstopping after what is in work (press again to stop at once)", file=sys.stderr)
        self._restore()

    def _restore(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Ended(NamedTuple):
    """How the loop over images ended: failures {name: problem}, the number of the signal that stopped it before its end, and
    what could not be written, which stopped it too."""

    tally: Tally
    failures: dict
    signal: int | None = None
    unwritten: str | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return not (self.failures or self.signal or self.unwritten)


def in_turn(images, most: int):
    """What `work_through` does where nothing else is said: one image after another, which `work` is given as it is."""
    for index, image, label in images:
        yield index, lambda image=image: image, label


def work_through(running, dataset, todo: list[int], done: dict, work, report=lambda tally: None, through=in_turn) -> Ended:
    """Loads the images of `todo` and calls work(index, image, label) -> outcome for each, under a progress bar.

    through(images, most) makes something of images (index, image, label), of which it may hold `most` at once, and yields
    (index, call, label) as they end; what call() returns is given to `work` in place of the image.
    An image that could not be read, or whose errors are not finite, is a failure; the others go on. A record that cannot be
    written ends the work. running: settings.Running; done: outcomes of earlier runs, to which work adds; report: is called
    with the Tally of this process after each image. Under torchrun all processes work on the todo of rank 0, which returns the
    end of the whole run, with everyone's outcomes in `done`; the failures are then its to tell.
    """
    share, before = team().share(todo), set(done)
    most = -(-len(share) // team().size)  # nobody holds images back that others could take
    images = loader.load_images(dataset, share, min(share.loaders, loader.processes(running.device)))
    with StopBetweenImages() as stop:
        with progress(len(share)) as bar:
            part = _Part(dataset, share, bar, report, Tally(done.values() if running.load_stats else ()))
            with closing(through(part.readable(images, stop), most=most)) as ended:
                part.work_off(ended, work)
        new = {key: outcome for key, outcome in done.items() if key not in before}
        ends = team().gather((part.seen, part.failures, stop.signal, new, part.unwritten), lambda: stop.signal)
    if not team().leads:
        return Ended(part.tally, {}, stop.signal)
    return _whole_run(dataset, share, part.tally, ends, done)


class _Part:
    """This process's part of a run: its tally, the indices that it has finished, failures, what was not written."""

    def __init__(self, dataset, share, bar, report, tally: Tally):
        self.dataset, self.share, self.bar, self.report, self.tally = dataset, share, bar, report, tally
        self.seen: list[int] = []
        self.failures: dict[int, str] = {}
        self.unwritten: str | None = None

    def end(self, index: int, problem: str | None = None) -> None:
        if problem:
            self.failures[self.dataset.name(index)] = problem
        self.seen.append(index)
        self.bar.set_postfix(self.tally.postfix(), refresh=False)
        self.bar.update(self.share.finish() - self.bar.n)
        self.report(self.tally)

    def work_off(self, ended: Iterable[tuple], work) -> None:
        """work(index, call(), label) of each, until a record cannot be written."""
        for index, call, label in ended:
            try:
                self.tally.add(work(index, call(), label))
            except FloatingPointError as error:
                self.end(index, f"{error}: try --dtype bfloat16")
            except OSError as error:
                self.unwritten = files.one_line(error)
                return
            else:
                self.end(index)

    def readable(self, images, stop: StopBetweenImages) -> Iterator[tuple]:
        """(index, image, label) of those that could be read, until a signal asks for no more; the others end here."""
        for index, image, label, problem in images:
            if problem:
                self.end(index, problem)
            else:
                yield index, image, label
            if stop.signal:
                return


def _whole_run(dataset, share, tally: Tally, ends: list, done: dict) -> Ended:
    """The end of a run from those of its processes: (indices finished, failures, signal, outcomes, not written) each."""
    seen: set[int] = set()
    failures: dict[int, str] = {}
    signals: list[int] = []
    unwritten = next((problem for *_, problem in ends if problem), None)
    for finished, failed, number, outcomes, _ in ends:
        seen |= set(finished)
        failures |= failed
        signals += [number] if number else []
        done |= outcomes
    tally.done = len(seen) - len(failures)
    left = [index for index in share.indices if index not in seen]
    if left and not (signals or unwritten):
        failures |= {dataset.name(index): "its process was lost; run the same command again" for index in left}
    return Ended(tally, failures, signals[0] if left and signals else None, unwritten)


def accuracy_lines(outcomes) -> list[str]:
    """Accuracy with its interval, and the mean per class, of outcomes that have a prediction."""
    labels, preds = [o.label for o in outcomes], [o.pred for o in outcomes]
    if not outcomes:
        return []
    return [f"Top-1 accuracy: {metrics.top1(preds, labels)}", f"Mean per class: {metrics.mean_per_class(preds, labels)}"]


def close(lines: list[str], done: dict, report: str | None, ended: Ended, unit="image", in_folder: int | None = None) -> int:
    """The closing lines of a run: its results, the cost of this process, what reads the folder again if anything does, failures.

    done: index -> outcome of every finished image of this command; in_folder: how many the folder has, where these may be more.
    Returns the exit code.
    """
    tally, failures, stopped_by, unwritten = ended
    for line in lines:
        print(line)
    if done:
        timing = f", {tally.seconds / tally.done:.2f} s per {unit} ({tally.done} in {tally.seconds:.0f} s)" if tally.done else ""
        print(f"Cost: {sum(o.evaluations for o in done.values()) / len(done):,.0f} evaluations per {unit}{timing}")
        if in_folder and in_folder > len(done):
            print(f"Note: these lines are about the {len(done):,} {unit}s of this command, the report about all {in_folder:,} "
                  "records of the folder")  # fmt: skip
        if report:
            print(commands.typed(f"Report: python {report}"))
    if failures:
        listed = "; ".join(f"{index}: {problem}" for index, problem in failures.items())
        print(f"error: {len(failures)} {unit}s failed, all others were evaluated: {listed}", file=sys.stderr)
    if unwritten:
        print(f"error: a record could not be written, run the same command again to continue: {unwritten}", file=sys.stderr)
    if stopped_by and team().leads:
        again = "to continue" if report else "again"
        print(f"Stopped by {signal.Signals(stopped_by).name}: run the same command {again}.", file=sys.stderr)
    if stopped_by:
        return 128 + stopped_by
    return 1 if failures or unwritten else 0


def run(main) -> int:
    """The command's exit code; Ctrl-C outside the loop over images, while weights load, is no traceback either.

    Of torchrun's processes only rank 0 prints; of the others one hears when something goes wrong that rank 0 does not know of.
    A reader that has read enough, such as `head`, ends the command as it does others of the shell: silently, as by SIGPIPE.
    """
    _open_closed_streams()
    if startup.quiet:  # until now Ctrl-C ended the process
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not team().leads:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        warnings.simplefilter("ignore")  # rank 0 loads the same, and is warned of it
    try:
        with _log_printed():
            code = _run(main)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = "" if error.filename else "standard output: "  # whatever else is written here says its name
        return _tell(f"error: {where}{files.one_line(error)}", 1)
    except KeyboardInterrupt:
        _let_go()
        return _tell("Interrupted: the same command starts again.", 128 + signal.SIGINT)
    finally:
        _let_go()
        _flush()


def _run(main) -> int:
    try:
        return main()
    except ModelError as error:
        return _tell(f"error: {error}: mend it and run the same command again to continue", 1)
    except RuntimeError as error:
        if lost_contact(error):
            return _tell("error: lost contact with the machine of rank 0: run the same command to continue", 1)
        if type(error).__name__ == "OutOfMemoryError":
            return _tell(f"error: {str(error).splitlines()[0]}", 1)
        raise


def _let_go() -> None:
    """The rest is the interpreter's end, in which Ctrl-C has nothing to save."""
    if startup.quiet:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _flush() -> None:
    """Standard output, as far as somebody reads it; of what is left the interpreter would complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def _open_closed_streams() -> None:
    """Where the shell closed standard input, output or error, nothing is read or written; no other file may take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
