"""What a fit belongs to, and the file that it is kept in: race limits, level weights and calibrations of probabilities."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from diffusion.settings import ABLATIONS, Identity
from diffusion.utils import files

F = TypeVar("F", bound="Fitted")

# Of a run's identity what the law of its errors depends on, so that a fit of another value is refused. `weights` tells LoRAs,
# embeddings and the configs of a single file apart as well; not T5 where weights are on the hub, whose commit is the same
# without it. Which images, candidates and draws of noise a run has is no matter, and the dtype changes errors by rounding only.
SETTINGS = ("weights", "loss", "img_size", "interpolation", "error_space", "levels", "text_encoders", "level_weights", *ABLATIONS)
LATER = ("interpolation", "text_encoders")  # which race limits and level weights of before did not say: they may be of any


class Fitted:
    """A dataclass of numbers that were fitted on a run, kept as JSON.

    about: settings of the run by their names in its identity, None: the default. FLAG: of the commands that take the file;
    SCRIPT: that writes it; BELONGS_TO: what has to be the same in a run that uses it; UNSAID: of these, what files may not hold
    although runs could differ in it. Any other setting that `about` does not hold had its default.
    """

    about: Identity

    FLAG: ClassVar[str]
    SCRIPT: ClassVar[str]
    BELONGS_TO: ClassVar[tuple[str, ...]] = SETTINGS
    UNSAID: ClassVar[tuple[str, ...]] = LATER

    @classmethod
    def belonging(cls, identity: Mapping[str, Any]) -> Identity:
        """The `about` of a fit on a run with this identity."""
        return {name: identity.get(name) for name in cls.BELONGS_TO}

    @classmethod
    def of(cls: type[F], content: Mapping[str, Any]) -> F:
        """The fit that `as_json` gave. Raises ValueError or TypeError for anything else."""
        names = _names(cls)
        if set(content) != set(names):
            raise ValueError(f"it does not hold {', '.join(names)}")
        check_numbers(content)
        fit = cls(**content)
        fit.check_content()
        return fit

    def check_content(self) -> None:
        """Raises ValueError for a field that no fit can have."""
        if not isinstance(self.about, dict):
            raise ValueError(f"{self.about!r} is no identity of a run")

    @classmethod
    def read(cls: type[F], path: str | Path, flag: str | None = None) -> F:
        """The fit in a file. Raises ValueError, one line, for a file that holds none. flag: that names it, None: FLAG."""
        try:
            return cls.of(files.read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{cls.where(path, flag)} is no fit of {cls.SCRIPT}: {files.one_line(error)}") from None

    def as_json(self) -> dict[str, Any]:
        """The content of its file."""
        return {name: getattr(self, name) for name in _names(self)}

    def write(self, path: str | Path) -> None:
        """JSON, whole or absent. Raises OSError where it cannot be written."""
        files.write_text(path, json.dumps(self.as_json(), indent=1) + "\n")

    def check_settings(
        self, identity: Mapping[str, Any], path: str | Path | None = None, flag: str | None = None, more: Iterable[str] = ()
    ) -> None:
        """Raises ValueError, one line, for a run whose identity differs in what the fit belongs to.

        path, flag: of its file, as of `where`; more: names beside BELONGS_TO
        """
        names = (name for name in dict.fromkeys((*self.BELONGS_TO, *more)) if name in self.about or name not in self.UNSAID)
        differing = [name for name in names if self.about.get(name) != identity.get(name)]
        if differing:
            values = ", ".join(f"{n} ({_shown(self.about.get(n))} there, {_shown(identity.get(n))} now)" for n in differing)
            remedy = f"fit it on a run of these ({self.SCRIPT}), or leave it out"
            raise ValueError(f"{self.where(path, flag)} was fitted on a run of other settings: {values}; {remedy}")

    @classmethod
    def where(cls, path: str | Path | None = None, flag: str | None = None) -> str:
        """The file, for a message. path: None of a fit that has none; flag: that gave it, None: FLAG."""
        return f"{flag or cls.FLAG} {path or ''}".rstrip()


MOST = 1e30  # of any number in a file: no square of it, nor of its inverse, leaves float64


def check_numbers(content: Any) -> None:
    """Raises ValueError for NaN, infinity, and numbers that arithmetic in float64 cannot take."""
    if isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            check_numbers(part)
    elif isinstance(content, int | float) and not -MOST <= content <= MOST:
        raise ValueError(f"{str(content)[:20]} is no number that a fit can have")


def _names(fit: Any) -> list[str]:
    """The keys of its file: the fields that are compared. fit: a dataclass or one of its objects, and Fitted itself is none."""
    return [field.name for field in dataclasses.fields(fit) if field.compare]


def _shown(value: object) -> str:
    """A setting in a message; of one that is itself a fit a short hash."""
    if isinstance(value, dict):
        return files.fingerprint(value)[:8]
    return "not set" if value is None else str(value)
