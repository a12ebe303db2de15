"""What a run works from and keeps on disk: a folder of one file per image, and a config.json that says what they depend on."""

import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from diffusion.runs import run_folder
from diffusion.utils import outputs


@dataclass(frozen=True)
class Store(ABC):
    """identity: every option and hash that the files depend on, as JSON values.

    Of a subclass: path(key) of a file; flag: that names another folder; pattern: of the files below the folder
    """

    folder: Path
    identity: dict
    flag: ClassVar[str]
    pattern: ClassVar[str]

    @abstractmethod
    def path(self, key) -> Path:
        """Where the file of this key lies."""

    def check(self) -> None:
        """Raises ValueError for a folder of other files, or of such that nothing is known of; OSError where it is unreadable."""
        elsewhere = f"name another place with {self.flag}"
        if run_folder.read_config(self.folder) is None and any(self.folder.glob(self.pattern)):
            raise ValueError(f"{self.folder} holds {self.pattern} without a {outputs.CONFIG}: {elsewhere}")
        run_folder.check_config(self.folder, self.identity, elsewhere=elsewhere)

    def begin(self, command: str, options: dict, expected: int) -> None:
        """Makes the folder and its config.json. expected: how many files there will be. Raises OSError where that fails."""
        run_folder.make_ready(self.folder)
        run_folder.write_config(self.folder, run_folder.describe(command, run_folder.STORE, self.identity, options, expected))

    def missing(self, keys: Iterable[Hashable]) -> list:
        """Those whose file is not there. Each folder is read once, as there may be millions of files."""
        if not self.folder.is_dir():
            return list(keys)
        names: dict[Path, set[str]] = {}
        return [key for key in keys if not self._is_there(self.path(key), names)]

    def _is_there(self, path: Path, names: dict[Path, set[str]]) -> bool:
        """names: of the files in folders that were read."""
        if path.parent not in names:
            names[path.parent] = {file.name for file in os.scandir(path.parent)} if path.parent.is_dir() else set()
        return path.name in names[path.parent]
