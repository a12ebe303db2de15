"""Races for many candidates: a few are tried, and others enter as long as something speaks for them."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from diffusion.settings import Identity
from diffusion.strategy import race, schedule, surrogates
from diffusion.strategy.base import Elimination, Outcome, Strategy, option, option_names
from diffusion.strategy.schedule import Plan
from diffusion.utils import files
from diffusion.utils.paths import TREES

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

PARTS = 48  # principal components of the embeddings that errors are taken to depend on
# trees -> data sets with their labels
SHIPPED = {"imagenet": ("imagenet", "imagenetv2", "imagenetA"), "objectnet": ("objectnet",)}


@dataclass(frozen=True)
class OpenRace(Strategy):
    """A race (`run_open_race`, `race.LevelRule`) that candidates enter by what is expected of them.

    guide: of all K candidates, surrogates.Guide; there once the strategy is bound to them by `bind`
    """

    representatives: int = option(48, "candidates that are tried first, spread among all", least=3)
    width: int = option(32, "that enter after a round, at most", least=1)
    caution: float = option(2.5, "standard deviations below what is expected of a candidate that make it enter", "X", type=float)
    alpha: float = option(0.2, "most chance to drop the best of those that entered", "ALPHA", type=float)
    min_samples: int = option(3, "(timestep, noise) pairs of the first round", least=2)
    max_samples: int = option(250, "most timesteps", least=2)
    n_trials: int = option(1, "noises per timestep", least=1)
    guide: surrogates.Guide | None = None

    AT_MOST: ClassVar = True
    TRIES_ALL: ClassVar = False
    NOTE: ClassVar = "By the first so many (timestep, noise) pairs of those that were tried in the end; evaluations are means."

    def __post_init__(self) -> None:
        """Raises ValueError for a rule that cannot be run."""
        race.check_alpha(self.alpha)
        if not 0 <= self.caution < np.inf:
            raise ValueError(f"--caution {self.caution} must be 0 or more")
        for field in dataclasses.fields(self):
            least, value = field.metadata.get("least"), getattr(self, field.name)
            if least is not None and value < least:
                raise ValueError(f"--{field.name} {value} must be {least} or more")

    def check(self, n_candidates: int, n_levels: int) -> None:
        schedule.check_race(self.min_samples, self.max_samples, self.n_trials, n_levels)

    def plan(self, n_levels: int) -> Plan:
        return schedule.race_plan(self.max_samples, self.n_trials, n_levels)

    def restrict(self, rows: Sequence[int]) -> "Self":
        return dataclasses.replace(self, guide=self._known.restrict(rows))

    @property
    def _known(self) -> surrogates.Guide:
        assert self.guide is not None, "a race that was not informed"
        return self.guide

    def eliminate(self, class_of: list[int], plan: Plan) -> Elimination:
        ends = schedule.growing_rounds(len(plan.t), self.min_samples, 1)
        rule = race.LevelRule(plan.t, ends, self.alpha)
        enter = surrogates.Entrance(self._known, self.width, self.caution)
        first = surrogates.representatives(self._known.distances, self.representatives)
        return Outcome(*(yield from race.run_open_race(class_of, ends, rule, first, enter)))

    def identity(self) -> Identity:
        return {"strategy": self.NAME} | {name: getattr(self, name) for name in option_names(self)}

    def folder(self) -> str:
        rule = f"{self.representatives}first_{self.width}wide_{self.caution:g}caution_{self.alpha:g}alpha"
        return f"{self.n_trials}trials_{self.NAME}_{rule}_{self.min_samples}min_{self.max_samples}max"

    def notice(self, n_levels: int) -> str | None:
        return schedule.coverage_notice(self.max_samples, n_levels)

    @classmethod
    def from_text(cls, text: str, grid: Plan) -> "Self":
        """`48 32 2.5 0.2 3`: representatives, width, caution, alpha, min_samples, on all timesteps; asks the run's model."""
        first, width, caution, alpha, least = text.split()
        numbers = int(first), int(width), float(caution), float(alpha), int(least)
        return cls(*numbers, grid.n_timesteps, grid.n_trials)


@dataclass(frozen=True)
class SurrogateRace(OpenRace):
    """A race that candidates enter by a linear function of their embeddings. It is learned image by image from those that were
    tried."""

    NAME: ClassVar = "surrogate"
    LOWEST_WINS: ClassVar = True
    MEASURED: ClassVar = {10: 109, 60: 588, 250: 1_099, 1_000: 1_624}

    def bind(self, class_of: Sequence[int], embeddings: Callable[[], np.ndarray]) -> "Self":
        return dataclasses.replace(self, guide=surrogates.LinearGuide(surrogates.principal(embeddings(), PARTS)))


@dataclass(frozen=True)
class TreeRace(OpenRace):
    """A race that candidates enter by their neighbours in a tree. Of one is expected what the nearest that was tried has."""

    tree: str | None = option(None, "imagenet, objectnet or a JSON file (default: clusters of embeddings)", "FILE", type=str)

    NAME: ClassVar = "tree"
    LOWEST_WINS: ClassVar = True
    MEASURED: ClassVar = {10: 109, 60: 584, 250: 1_600, 1_000: 3_162}

    @property
    def path(self) -> Path:
        assert self.tree is not None, "clusters of embeddings have no file"
        return TREES / f"{self.tree}.json" if self.tree in SHIPPED else Path(self.tree)

    def read(self) -> surrogates.Branch:
        """Raises ValueError, one line, for a file that holds no tree."""
        try:
            tree = surrogates.Branch.of(files.read_json(self.path))
            tree.check_leaves()
            return tree
        except (OSError, ValueError) as error:
            raise ValueError(f"--tree {self.tree} is no tree: {files.one_line(error)}") from None

    def check(self, n_candidates: int, n_levels: int) -> None:
        super().check(n_candidates, n_levels)
        if self.tree is not None:
            self.read()

    def check_run(self, identity: Identity, n_candidates: int, class_of: Sequence[int] = ()) -> None:
        dataset = identity.get("dataset")
        if self.tree in SHIPPED and dataset and dataset not in SHIPPED[self.tree]:
            raise ValueError(f"--tree {self.tree} is of {', '.join(SHIPPED[self.tree])}, not of {dataset}: leave it out, or "
                             "give a JSON file")  # fmt: skip
        if self.tree is not None and (lacking := sorted(set(class_of) - set(self.read().leaves))):
            raise ValueError(f"--tree {self.tree} lacks {len(lacking)} of the candidates' classes, such as {lacking[0]}")

    def bind(self, class_of: Sequence[int], embeddings: Callable[[], np.ndarray]) -> "Self":
        return dataclasses.replace(self, guide=surrogates.TreeGuide(self._distances(class_of, embeddings)))

    def _distances(self, class_of: Sequence[int], embeddings: Callable[[], np.ndarray]) -> np.ndarray:
        """Raises ValueError for classes that the tree lacks."""
        if self.tree is None:
            return surrogates.clustered(surrogates.principal(embeddings(), PARTS))
        tree = self.read()
        try:
            return tree.distances(class_of)
        except ValueError as error:
            raise ValueError(f"--tree {self.tree}: {error}") from None

    def identity(self) -> Identity:
        """The tree's content, wherever it lies."""
        content = None if self.tree is None else files.fingerprint(self.path.read_text(encoding="utf-8"))
        return super().identity() | {"tree": content}

    def folder(self) -> str:
        return super().folder() + (f"_{self.path.stem}" if self.tree is not None else "")

    @classmethod
    def from_text(cls, text: str, grid: Plan) -> "Self":
        """`48 32 2.5 0.2 3`, as of surrogate, and perhaps a tree, without which the run's model is asked."""
        parts = text.split(None, 5)
        return dataclasses.replace(super().from_text(" ".join(parts[:5]), grid), tree=parts[5] if parts[5:] else None)
