"""What all strategies are: which (candidate, level) pairs of an image are evaluated, and who wins.

A strategy is a frozen dataclass; its fields are its options, `--<field>`. A new one is a subclass of Strategy with NAME, plan,
eliminate and folder, and an entry in strategy.STRATEGIES; what else it may say of itself has a default in Strategy.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from diffusion.settings import Identity
from diffusion.strategy.elimination import Errors, Request
from diffusion.strategy.schedule import Plan

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

Value = TypeVar("Value")


class Outcome(NamedTuple):
    """What an elimination found: errors {row: float32 [n]} in order of evaluation, the winning row, and the round in which each
    other row was dropped (None where rounds mean nothing)."""

    errors: dict[int, Errors]
    winner: int
    dropped: dict[int, int] | None = None


Elimination = Generator[Request, npt.ArrayLike, Outcome]  # `errors = yield rows, pairs`, errors [len(rows), n]


class Usual(NamedTuple):
    """Evaluations that an image usually takes with so many candidates, and the measurement that says so: with `candidates` the
    shipped model took `measured`."""

    evaluations: int
    candidates: int
    measured: int


def option(
    default: Value,
    help: str,
    metavar: str = "N",
    type: Callable[[str], Any] = int,
    least: int | None = None,
    several: bool = False,
    choices: Sequence[Any] | None = None,
) -> Value:
    """A field of a strategy that is an option of the commands.

    Args:
        default: its value where the option is not given.
        help: what `--help` says, a line.
        metavar, type: as of argparse.
        least: the smallest allowed.
        several: one or more of them.
        choices: all values that are allowed.

    Returns:
        the field, for a dataclass.
    """
    about = {"help": help, "metavar": metavar, "type": type, "least": least, "several": several, "choices": choices}
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True)
class Strategy(ABC):
    """What all strategies are asked, with the answers of one that tries every candidate on every pair.

    NAME: of the table and of `--strategy`
    AT_MOST: images may need fewer evaluations than the price
    KEEPS_GRID: where nobody was dropped, the records are a grid of all errors
    TRIES_ALL: every candidate is tried on every image
    LOWEST_WINS: of those that were dropped last, or never, the one with the lowest mean error wins
    NOTE: under a report's accuracy after so many pairs
    MEASURED: candidates -> mean evaluations of an image on the shipped text-to-image model, with the strategy's own defaults
        (docs/cost.md); of one that needs fewer than its price
    """

    NAME: ClassVar[str]
    AT_MOST: ClassVar = False
    KEEPS_GRID: ClassVar = False
    TRIES_ALL: ClassVar = True
    LOWEST_WINS: ClassVar = False
    MEASURED: ClassVar[Mapping[int, int]] = MappingProxyType({})
    NOTE: ClassVar = "Had every image stopped after so many (timestep, noise) pairs; evaluations are the mean."

    @classmethod
    def about(cls) -> str:
        """What `--help` says of it: the first sentence of the class's docstring."""
        first = " ".join((cls.__doc__ or "").split(".")[0].split())
        return first[:1].lower() + first[1:]

    @abstractmethod
    def plan(self, n_levels: int) -> Plan:
        """All pairs of a timestep and a noise, in order of evaluation.

        Args:
            n_levels: of the model, T.
        """

    @abstractmethod
    def eliminate(self, class_of: list[int], plan: Plan) -> Elimination:
        """One image's elimination, a generator.

        `errors = yield rows, pairs` gets float32 [len(rows),n], the errors of these rows on a slice of n pairs of the plan.

        Args:
            class_of: label of each of the K candidates.
            plan: what `plan` gave.

        Returns:
            the Outcome, by `return`.
        """

    @abstractmethod
    def folder(self) -> str:
        """Its part of the run folder's name."""

    def check(self, n_candidates: int, n_levels: int) -> None:
        """Nothing, for what can be run.

        Args:
            n_candidates: K.
            n_levels: of the model, T.

        Raises:
            ValueError: it cannot; a line that names the flag and the way out.
        """
        self.plan(n_levels)

    def check_run(self, identity: Identity, n_candidates: int, class_of: Sequence[int] = ()) -> None:
        """Nothing, for a run that this strategy was made for.

        Args:
            identity: of the run, as config.json has it.
            n_candidates: K.
            class_of: label of each.

        Raises:
            ValueError: it was made for another, by a fit or a tree that belongs to one.
        """
        return

    def within(self, n_levels: int, given: Collection[str] = ()) -> "Self":
        """The strategy for a model of fewer timesteps than its defaults take.

        Args:
            n_levels: of the model, T.
            given: names of options that stay as they are.
        """
        most = vars(self).get("max_samples")
        if most is None or "max_samples" in given or not 2 <= n_levels < most:
            return self
        return dataclasses.replace(self, **{"max_samples": n_levels})

    def price(self, plan: Plan, n_candidates: int) -> int:
        """Network evaluations per image, at most.

        Args:
            plan: what `plan` gave.
            n_candidates: K.
        """
        return n_candidates * len(plan.t)

    def usual(self, n_candidates: int) -> Usual | None:
        """What an image usually costs, by what was measured.

        Args:
            n_candidates: K, between measured numbers taken on a logarithmic scale.

        Returns:
            None where nothing was measured.
        """
        if not self.MEASURED:
            return None
        known = sorted(self.MEASURED)
        each = np.interp(np.log(n_candidates), np.log(known), [self.MEASURED[k] / k for k in known])
        nearest = min(known, key=lambda k: abs(np.log(k / n_candidates)))
        return Usual(round(each * n_candidates), nearest, self.MEASURED[nearest])

    def identity(self) -> Identity:
        """What a record's numbers depend on, as JSON values."""
        return {"strategy": self.NAME} | dataclasses.asdict(self)

    def bind(self, class_of: Sequence[int], embeddings: Callable[[], np.ndarray]) -> "Strategy":
        """The strategy with what it needs of the candidates, once the network is there.

        Args:
            class_of: label of each of the K candidates.
            embeddings: called with nothing, gives what tells them apart for the network, float32 [K,D].

        Raises:
            ValueError: it cannot do with these.
        """
        return self

    def restrict(self, rows: Sequence[int]) -> "Strategy":
        """The strategy for an image that some of the candidates compete for.

        Args:
            rows: which, ascending; `eliminate` numbers them from 0.
        """
        return self

    def notice(self, n_levels: int) -> str | None:
        """A line to tell the user before the run; None: nothing to tell.

        Args:
            n_levels: of the model, T.
        """
        return None

    @staticmethod
    def stops(counts: set[int]) -> list[int]:
        """After how many pairs a report shows the accuracy.

        Args:
            counts: how many pairs any candidate of any image saw.
        """
        return round_numbers(max(counts))

    @classmethod
    def from_text(cls, text: str, grid: Plan) -> "Strategy":
        """The strategy of a setting as scripts/replay.py takes it.

        Args:
            text: what stands after its name.
            grid: all pairs of the run that is replayed.

        Raises:
            ValueError: the text is no setting of this strategy.
        """
        raise ValueError(f"--{cls.NAME} cannot be replayed")

    @staticmethod
    def examples(grid: Plan) -> list[str]:
        """Settings that scripts/replay.py tries by itself.

        Args:
            grid: all pairs of the run that is replayed.
        """
        return []


def option_names(strategy: Strategy | type[Strategy]) -> list[str]:
    """The options of a strategy.

    Args:
        strategy: one, or its class.
    """
    return [field.name for field in dataclasses.fields(strategy) if field.metadata]


def round_numbers(most: int) -> list[int]:
    """1, 2, 5, 10, 20, ... below `most`, and `most`.

    Args:
        most: the last, 1 at least.
    """
    return [n for n in (d * 10**e for e in range(6) for d in (1, 2, 5)) if n < most] + [most]
