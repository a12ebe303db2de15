"""A run as it was asked for, whichever command it is of: its folder, its records, what is left to do, how it begins and ends."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from diffusion import settings
from diffusion.runs import loop, printing, run_folder, sharding
from diffusion.strategy import Usual
from diffusion.utils import outputs
from diffusion.utils.distributed import team


class Task(ABC):
    """What is known of a run before any weights are loaded. A command's own is a frozen dataclass with what is special.

    command: name of the script, for config.json; UNIT: what messages call one of its images
    running: settings.Running; dataset: what is gone through, by index, with `missing`, `notice` and `fingerprint()`;
    source: of the weights, with `unfetched` and `describe()`; folder: of the run, the first where there are several.
    These may be fields or properties
    """

    UNIT: ClassVar[str] = "image"
    command: str
    running: settings.Running
    dataset: Any
    source: Any
    folder: Path

    # ---------------------------------------------------------------- what a command says

    @property
    @abstractmethod
    def identity(self) -> dict:
        """What the numbers depend on, and which images the folder is about, as JSON values."""

    @property
    @abstractmethod
    def options(self) -> dict:
        """All of them, resolved."""

    @property
    @abstractmethod
    def price(self) -> int:
        """The most network evaluations that an image takes."""

    @property
    @abstractmethod
    def selected(self) -> list[int]:
        """Indices of the images, over all workers."""

    @abstractmethod
    def record_path(self, index: int) -> Path:
        """The file of an image."""

    @abstractmethod
    def read_records(self) -> dict[Any, Any]:
        """Key -> outcome of the records of `selected` that exist and are this run's; names of others go to `unreadable`."""

    # ---------------------------------------------------------------- what may be otherwise

    @property
    def kind(self) -> str:
        """What config.json calls its records."""
        return run_folder.CLASSIFICATION

    @property
    def folders(self) -> Mapping[int | None, Path]:
        """Class -> folder, of a run with one for each; None -> that of all classes."""
        return {None: self.folder}

    def identity_in(self, c: int | None) -> dict:
        """What config.json says that the numbers depend on, in the folder of this class."""
        return self.identity

    def record_paths(self, index: int) -> list[Path]:
        """All files of an image."""
        return [self.record_path(index)]

    def key(self, index: int):
        """What `done` calls an image."""
        return index

    # ---------------------------------------------------------------- what follows

    @property
    def incomplete(self) -> bool:
        """Whether a dry run does without images or weights, so that nothing has an identity."""
        return bool(self.dataset.missing or self.source.unfetched)

    @cached_property
    def unreadable(self) -> list[str]:
        """Names of files in the place of records that are none of this run's, which are redone; filled by `done`."""
        return []

    @cached_property
    def done(self) -> dict[Any, Any]:
        """Key -> outcome of the images that are done; `save` adds to it."""
        if self.incomplete:
            return run_folder.unread({self.key(i): self.record_paths(i) for i in self.selected})
        return self.read_records()

    @cached_property
    def todo(self) -> list[int]:
        """Indices that this worker has to evaluate."""
        mine = sharding.shard(self.selected, self.running.worker_idx, self.running.n_workers)
        return [index for index in mine if self.key(index) not in self.done]

    def check_folders(self, elsewhere: str = run_folder.ELSEWHERE) -> None:
        """Raises ValueError where a folder holds records of another run, or --results would overwrite what this one writes.

        elsewhere: how to have another folder
        """
        results = self.running.results
        for c, folder in self.folders.items():
            if results and outputs.in_run(Path(results), folder):
                raise ValueError(f"--results {results} belongs to the run in its folder: name another file")
            run_folder.check_config(folder, self.identity_in(c), self.options, elsewhere)

    def slow(self, img_size: int, usual: Usual | None = None) -> str | None:
        """A note where a CPU is no place for this network."""
        evaluations = printing.least(self.price, usual)
        return printing.cpu_notice(self.source, img_size, self.running.device, evaluations, self.UNIT)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many images are to do here, were done before, and are selected."""
        return len(self.todo), sum(self.key(index) in self.done for index in self.selected), len(self.selected)

    def announce(self, about: dict, notices=(), shown: Mapping | None = None, **cost) -> None:
        """Prints what will be done and what it costs. shown: options as they are to be printed, where they are other than
        `options`; cost: at_most, usual and more, of `printing.announce`."""
        loop.tell_reading(self.folder)
        counts, more = self.counts, len(self.folders) - 1
        notices = (*notices, run_folder.unreadable_message(self.unreadable, "redone"))
        folder = f"{self.folder} and {more} more" if more else self.folder
        printing.announce(self.options | dict(shown or {}), about, notices, folder, counts, self.price, unit=self.UNIT, **cost)

    def make_ready(self) -> None:
        """Raises OSError where a folder cannot be written; removes what killed processes left in it."""
        for folder in self.folders.values():
            run_folder.make_ready(folder)

    def write_config(self, **known) -> None:
        """Writes config.json into every folder, on rank 0 of torchrun's processes. known: as in run_folder.describe"""
        for c, folder in self.folders.items():
            if team().leads:
                what = (self.command, self.kind, self.identity_in(c), self.options, len(self.selected))
                run_folder.write_config(folder, run_folder.describe(*what, **known))
            else:
                folder.mkdir(parents=True, exist_ok=True)  # on a network file system it may not be seen here yet

    def save(self, index: int, record: dict, outcome):
        """Writes an image's record; returns its outcome, which `done` then knows. Raises OSError."""
        run_folder.save_record(self.record_path(index), record)
        self.done[self.key(index)] = outcome
        return outcome

    def close(self, lines: list[str], report: str | None, ended: loop.Ended) -> int:
        """Prints the closing lines; returns the exit code. report: arguments of the script that reads the folder again"""
        records = [set(run_folder.list_records(folder)) for folder in self.folders.values()]
        return loop.close(lines, self.done, report, ended, self.UNIT, len(set.intersection(*records)))
