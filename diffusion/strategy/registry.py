"""The strategies by name: stages, races and grid as objects; `strategy_base` says what all are."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusion.settings import Identity
from diffusion.strategy import elimination, race, schedule
from diffusion.strategy.base import Elimination, Outcome, Strategy, Usual, option, option_names, round_numbers
from diffusion.strategy.open_race import SurrogateRace, TreeRace
from diffusion.strategy.schedule import Plan
from diffusion.utils.files import fingerprint
from diffusion.utils.paths import at_hand

__all__ = ["Elimination", "Outcome", "Strategy", "Usual", "option", "option_names", "round_numbers"]  # of those who add one


@dataclass(frozen=True)
class Stages(Strategy):
    """As published, after each stage the candidates with the lowest mean errors go on. The paper's algorithm 2."""

    to_keep: tuple[int, ...] = option((), "candidates that survive each stage, the last 1", "K", several=True)
    n_samples: tuple[int, ...] = option((), "timesteps evaluated by the end of each stage", several=True)
    n_trials: int = option(1, "noises per timestep", least=1)

    NAME: ClassVar = "stages"
    LOWEST_WINS: ClassVar = True
    KEEPS_GRID: ClassVar = True
    NOTE: ClassVar = "If every image had stopped at the end of a stage; evaluations are means."

    def check(self, n_candidates: int, n_levels: int) -> None:
        schedule.check_stages(self.to_keep, self.n_samples, n_candidates, n_levels)

    def plan(self, n_levels: int) -> Plan:
        return schedule.make_plan(self.n_samples, self.n_trials, n_levels)

    def within(self, n_levels: int, given: Collection[str] = ()) -> "Stages":
        """Stages that would add no timestep go with it."""
        if "n_samples" in given or not self.n_samples or max(self.n_samples) <= n_levels:
            return self
        n_samples = tuple(min(n, n_levels) for n in self.n_samples)
        if "to_keep" in given or len(self.to_keep) != len(n_samples):
            return dataclasses.replace(self, n_samples=n_samples)
        last = {n: k for k, n in zip(self.to_keep, n_samples, strict=True)}  # what is kept in the end of so many timesteps
        return dataclasses.replace(self, to_keep=tuple(last.values()), n_samples=tuple(last))

    def price(self, plan: Plan, n_candidates: int) -> int:
        return schedule.count_evaluations(plan, n_candidates, self.to_keep)

    def eliminate(self, class_of: list[int], plan: Plan) -> Elimination:
        return Outcome(*(yield from elimination.run_stages(len(class_of), plan.stages, self.to_keep)))

    def folder(self) -> str:
        keep, samples = ("_".join(map(str, numbers)) for numbers in (self.to_keep, self.n_samples))
        return f"{self.n_trials}trials_{keep}keep_{samples}samples"

    def identity(self) -> Identity:
        """Without the strategy's name: these folders are older than the option."""
        return {"to_keep": list(self.to_keep), "n_samples": list(self.n_samples), "n_trials": self.n_trials}

    def notice(self, n_levels: int) -> str | None:
        return schedule.coverage_notice(max(self.n_samples), n_levels)

    @staticmethod
    def stops(counts: set[int]) -> list[int]:
        return sorted(counts)

    @classmethod
    def from_text(cls, text: str, grid: Plan) -> "Stages":
        """`5 1 / 25 250`."""
        to_keep, n_samples = (tuple(int(number) for number in part.split()) for part in text.split("/"))
        return cls(to_keep, n_samples, grid.n_trials)

    @staticmethod
    def examples(grid: Plan) -> list[str]:
        """The published shape and thriftier ones."""
        n = grid.n_timesteps
        tenth, fifth = max(1, n // 10), max(1, n // 5)
        few = [f"{first} 1 / {tenth} {n}" for first in (5, 3, 2)]
        return [*few, f"2 1 / {fifth} {n}", f"5 2 1 / {tenth} {fifth} {n}"]


@dataclass(frozen=True)
class Race(Strategy):
    """A candidate is dropped as soon as it is significantly worse than the best. Paired tests of `race.LevelRule`."""

    alpha: float = option(0.2, "most chance to drop the winner in a whole race", "ALPHA", type=float)
    min_samples: int = option(2, "(timestep, noise) pairs that all see before the first is dropped", least=2)
    round_size: int = option(1, "pairs per later round, at least", least=1)
    max_samples: int = option(250, "most timesteps", least=2)
    n_trials: int = option(1, "noises per timestep", least=1)

    NAME: ClassVar = "race"
    LOWEST_WINS: ClassVar = True
    AT_MOST: ClassVar = True
    MEASURED: ClassVar = {10: 160, 60: 613, 250: 2_425, 1_000: 9_811}
    NOTE: ClassVar = "If every race had ended after that many (timestep, noise) pairs; evaluations are means."
    EDITION: ClassVar = 2  # of the rule, in the identity; runs of the first do not say

    def __post_init__(self) -> None:
        """Raises ValueError for a rule that cannot be run."""
        race.check_alpha(self.alpha)
        if self.min_samples < 2 or self.round_size < 1:
            raise ValueError(
                f"a race needs 2 samples or more (not {self.min_samples}) and rounds of 1 or more (not {self.round_size})"
            )

    def check(self, n_candidates: int, n_levels: int) -> None:
        schedule.check_race(self.min_samples, self.max_samples, self.n_trials, n_levels)

    def plan(self, n_levels: int) -> Plan:
        return schedule.race_plan(self.max_samples, self.n_trials, n_levels)

    def eliminate(self, class_of: list[int], plan: Plan) -> Elimination:
        ends = schedule.growing_rounds(len(plan.t), self.min_samples, self.round_size)
        return Outcome(*(yield from race.run_race(class_of, ends, race.LevelRule(plan.t, ends, self.alpha))))

    def identity(self) -> Identity:
        return super().identity() | {"edition": self.EDITION}

    def folder(self) -> str:
        rule = f"{self.alpha:g}alpha_{self.min_samples}min_{self.round_size}round_{self.max_samples}max"
        return f"{self.n_trials}trials_race_{rule}"

    def notice(self, n_levels: int) -> str | None:
        return schedule.coverage_notice(self.max_samples, n_levels)

    @classmethod
    def from_text(cls, text: str, grid: Plan) -> "Race":
        """`0.2 2 1`: alpha, min_samples, round_size, on all timesteps."""
        alpha, least, size = text.split()
        return cls(float(alpha), int(least), int(size), grid.n_timesteps, grid.n_trials)

    @staticmethod
    def examples(grid: Plan) -> list[str]:
        return [f"{alpha} {least} 1" for alpha in (0.8, 0.5, 0.2, 0.05, 0.01) for least in (2, 4, 10)]


@dataclass(frozen=True)
class FirstRace(Race):
    """The race of runs that do not say their edition, by its plan; read back only."""

    def plan(self, n_levels: int) -> Plan:
        return schedule.race_plan(self.max_samples, self.n_trials, n_levels, shift=0)


@dataclass(frozen=True)
class CalibratedRace(Strategy):
    """A candidate is dropped as soon as it lies further above the best than a fit says. `race.GapRule`, fitted on a run that kept
    all errors; labels play no part."""

    race_fit: str = option("", "what scripts/fit_race.py wrote on a run of this model", "FILE", type=str)
    fit: race.GapFit = None  # type: ignore[assignment]  # its content; read, or made of a dict, in __post_init__

    NAME: ClassVar = "race_calibrated"
    LOWEST_WINS: ClassVar = True
    AT_MOST: ClassVar = True
    MEASURED: ClassVar = {10: 110}
    NOTE: ClassVar = Race.NOTE

    def __post_init__(self) -> None:
        """Raises ValueError without a fit, and for a file that is none."""
        if not (self.fit or self.race_fit):
            raise ValueError(f"--strategy {self.NAME} needs --race_fit FILE, which scripts/fit_race.py writes")
        fit = race.GapFit(**self.fit) if isinstance(self.fit, dict) else self.fit or race.GapFit.read(at_hand(self.race_fit))
        object.__setattr__(self, "fit", fit)

    @property
    def n_trials(self) -> int:
        return self.fit.n_trials

    def plan(self, n_levels: int) -> Plan:
        return schedule.race_plan(self.fit.max_samples, self.fit.n_trials, n_levels)

    def check(self, n_candidates: int, n_levels: int) -> None:
        if self.fit.max_samples > n_levels:
            raise ValueError(f"--race_fit {self.race_fit} is of {self.fit.max_samples} timesteps, and the model has {n_levels}")

    def check_run(self, identity: Identity, n_candidates: int, class_of: Sequence[int] = ()) -> None:
        self.fit.check(identity, n_candidates, self.race_fit)

    def eliminate(self, class_of: list[int], plan: Plan) -> Elimination:
        return Outcome(*(yield from race.run_race(class_of, self.fit.ends, race.GapRule(plan.t, self.fit.limits))))

    def folder(self) -> str:
        return f"{self.n_trials}trials_race_calibrated_{fingerprint(json.dumps(dataclasses.asdict(self.fit)))[:8]}"

    def identity(self) -> Identity:
        """The fit's content, wherever it lies."""
        return {"strategy": self.NAME, "fit": json.loads(json.dumps(dataclasses.asdict(self.fit)))}

    @classmethod
    def from_text(cls, text: str, grid: Plan) -> "CalibratedRace":
        """The file."""
        chosen = cls(text.strip())
        if (chosen.fit.max_samples, chosen.n_trials) != (grid.n_timesteps, grid.n_trials):
            fitted = f"{chosen.fit.max_samples} timesteps and {chosen.n_trials} noises"
            raise ValueError(f"{text} is of {fitted}, the run of {grid.n_timesteps} and {grid.n_trials}")
        return chosen


@dataclass(frozen=True)
class Grid(Strategy):
    """Every candidate on every t_interval-th level: the published plan of DiT and Winoground, where nobody is dropped."""

    t_interval: int
    n_trials: int = 1

    NAME: ClassVar = "grid"
    LOWEST_WINS: ClassVar = True
    KEEPS_GRID: ClassVar = True

    def within(self, n_levels: int, given: Collection[str] = ()) -> "Grid":
        if "t_interval" in given:
            return self
        return dataclasses.replace(self, t_interval=schedule.divisor(self.t_interval, n_levels))

    def plan(self, n_levels: int) -> Plan:
        """Raises ValueError for an interval that does not divide n_levels."""
        return schedule.interval_plan(self.t_interval, self.n_trials, n_levels)

    def eliminate(self, class_of: list[int], plan: Plan) -> Elimination:
        return Outcome(*(yield from elimination.run_stages(len(class_of), plan.stages, (1,))))

    def folder(self) -> str:
        return f"t{self.t_interval}_{self.n_trials}trials"

    def identity(self) -> Identity:
        """Without a name, as of Stages."""
        return dataclasses.asdict(self)


# ---------------------------------------------------------------- the table

# what --strategy offers
STRATEGIES: dict[str, type[Strategy]] = {cls.NAME: cls for cls in (Stages, Race, CalibratedRace, SurrogateRace, TreeRace)}


def from_options(name: str, given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Strategy:
    """The strategy of a name, with options.

    Args:
        name: one of STRATEGIES.
        given: options by name, of any strategy; None: not given.
        defaults: of what is not given; what is in neither is as the strategy's class has it.

    Raises:
        ValueError: an option that only another strategy has, or a strategy that cannot be built.
    """
    accepted = option_names(STRATEGIES[name])
    for other in STRATEGIES.values():
        for flag in option_names(other):
            if given.get(flag) is not None and flag not in accepted:
                raise ValueError(f"--{flag} is for --strategy {other.NAME}: add that, or leave --{flag} out")
    return _build(STRATEGIES[name], dict(defaults or {}) | {flag: value for flag, value in given.items() if value is not None})


def of_identity(identity: Identity) -> Strategy:
    """The strategy of a run.

    Args:
        identity: of the run's config.json; Stages without numbers for one that does not say.

    Raises:
        ValueError: a strategy that is not in the table.
    """
    name = identity.get("strategy") or (Grid.NAME if identity.get("t_interval") else Stages.NAME)
    known = STRATEGIES | {Grid.NAME: Grid} | ({} if identity.get("edition") else {Race.NAME: FirstRace})
    if name not in known:
        raise ValueError(f"this run was made with --strategy {name}, which is none of {', '.join(known)}")
    return _build(known[name], {flag: value for flag, value in identity.items() if value is not None})


def _build(strategy: type[Strategy], values: Mapping[str, Any]) -> Strategy:
    """The strategy with those of the values that are its own; JSON's and argparse's lists become tuples."""
    arguments = {field.name: values[field.name] for field in dataclasses.fields(strategy) if field.name in values}
    return strategy(**{flag: tuple(value) if isinstance(value, list) else value for flag, value in arguments.items()})
