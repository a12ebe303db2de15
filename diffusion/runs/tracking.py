"""A run's progress in trackio or Weights & Biases, where one is installed: both take init(), log() and finish()."""

import importlib
import importlib.util
import sys
import time
from typing import Any

from diffusion.utils import files
from diffusion.utils.distributed import team

TRACKERS = ("trackio", "wandb")
PROJECT = "diffusion-classifier"
LEAST = 1.0  # seconds between two messages


def check(name: str | None) -> None:
    """Raises ValueError for a package that is not installed."""
    spec = importlib.util.find_spec(name) if name else None
    if name and (spec is None or spec.origin is None):  # a folder of that name, as wandb makes one, is no package
        raise ValueError(f"--tracker {name}: the package {name} is not installed: pip install {name}, or leave it out")


class Tracker:
    """What a run tells of itself; of one without --tracker, and of torchrun's other processes, nobody hears.

    A problem of the package's own while the run is at work is told once and ends the tracking, not the run.
    """

    def __init__(self, name: str | None = None):
        self.name, self.last = name, -LEAST
        self.package: Any = None  # the module

    @property
    def listens(self) -> bool:
        return self.package is not None

    def start(self, options: dict, run: str) -> "Tracker":
        """options: all of them, resolved; run: how it is called there. Raises ValueError where the package refuses."""
        if self.name and team().leads:
            try:
                self.package = importlib.import_module(self.name)
                self.package.init(project=PROJECT, name=run, config=options)
            except (Exception, SystemExit) as error:  # whatever is missing: a login, a disk, a network
                raise ValueError(f"--tracker {self.name}: {files.one_line(error)}") from None
        return self

    def progress(self, tally) -> None:
        """Running accuracy and speed after an image, once a second at most. tally: session.Tally."""
        if self.listens and time.monotonic() - self.last >= LEAST:
            self.last = time.monotonic()
            accuracy = {"accuracy": tally.right / tally.counted} if tally.counted else {}
            self._call("log", accuracy | {"evaluations_per_second": tally.evaluations / tally.seconds}, step=tally.done)

    def end(self, result: dict) -> None:
        """The metrics of a results file with their intervals, n and evaluations; empty where nothing was found."""
        if result:
            ends = {f"{name}_{end}": value for name, pair in result["intervals"].items()
                    for end, value in zip(("low", "high"), pair, strict=True)}  # fmt: skip
            self._call("log", result["metrics"] | ends | {name: result[name] for name in ("n", "evaluations")})
        self._call("finish")

    def _call(self, method: str, *words: Any, **named: Any) -> None:
        if not self.listens:
            return
        try:
            getattr(self.package, method)(*words, **named)
        except (Exception, SystemExit) as error:
            self.package = None
            print(f"Note: --tracker {self.name} goes no further: {files.one_line(error)}", file=sys.stderr)
