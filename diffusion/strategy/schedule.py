"""Which timesteps are tried, in which order, with which row of the noise bank. Pure functions.

A timestep is an index into a model's table of `n_levels` noise levels: 1000 for most, but that is the model's to say.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Plan:
    """All (timestep, noise) pairs of an image in order of evaluation.

    t: int64 [S], each timestep repeated n_trials times; pair s uses row s of a noise bank.
    stages: one slice of 0..S a stage; they follow each other and cover 0..S.
    """

    t: np.ndarray
    stages: tuple[slice, ...]

    @property
    def n_timesteps(self) -> int:
        """How many different ones."""
        return len(np.unique(self.t))

    @property
    def n_trials(self) -> int:
        """How many noises each of them has."""
        return len(self.t) // self.n_timesteps

    @cached_property
    def trial(self) -> np.ndarray:
        """int64 [S], how many earlier pairs have the same timestep."""
        seen: Counter[int] = Counter()
        return np.array([seen.update([t]) or seen[t] - 1 for t in self.t.tolist()], np.int64)


def timestep_grid(n: int, n_levels: int) -> list[int]:
    """At most n timesteps with step n_levels // n, the first in the middle of its step: the published grid."""
    step = n_levels // n
    return list(range(step // 2, n_levels, step))[:n]


def stage_timesteps(n_samples: Sequence[int], n_levels: int) -> list[list[int]]:
    """The timesteps that each stage adds, ascending.

    Every stage thins the grid of max(n_samples) to its own number and drops what earlier stages evaluated. Thinned grids do
    not nest, so 20 50 100 500 adds up to 20, 70, 150 and 500 timesteps.
    """
    grid = timestep_grid(max(n_samples), n_levels)
    seen: set[int] = set()
    stages = []
    for n in n_samples:
        stride = len(grid) // n
        new = [t for t in grid[stride // 2 :: stride][:n] if t not in seen]
        seen.update(new)
        stages.append(new)
    return stages


def make_plan(n_samples: Sequence[int], n_trials: int, n_levels: int) -> Plan:
    """The published schedule: stage by stage, timesteps ascending inside a stage, each repeated n_trials times."""
    stages = stage_timesteps(n_samples, n_levels)
    t = np.repeat(np.concatenate([np.array(stage, np.int64) for stage in stages]), n_trials)
    ends = np.cumsum([0] + [len(stage) * n_trials for stage in stages])
    return Plan(t, tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(ends)))


def spread_order(n: int, shift: float = 0) -> list[int]:
    """A permutation of 0..n-1 every prefix of which covers the range evenly: van der Corput's sequence, the bits reversed.

    shift: a digital one, in 0..1, of which the sequence begins near n times that; each prefix covers the range as evenly.
    """
    bits = (n - 1).bit_length()
    mask = int(shift * 2**bits)
    mirrored = ((int(f"{i:0{bits}b}"[::-1], 2) if bits else 0) ^ mask for i in range(2**bits))
    return [i for i in mirrored if i < n]


CENTRED = 0.25  # as a shift: the first two stand in the middle of a half each


def race_plan(max_samples: int, n_trials: int, n_levels: int, shift: float = CENTRED) -> Plan:
    """The published grid of max_samples timesteps in `spread_order`, so that a race may stop after any of them."""
    grid = np.array(timestep_grid(max_samples, n_levels), np.int64)
    t = np.repeat(grid[spread_order(max_samples, shift)], n_trials)
    return Plan(t, (slice(0, len(t)),))


def growing_rounds(total: int, first: int, least: int) -> list[int]:
    """After how many pairs each round ends: the first one's, then a fifth more at a time, `least` or more, up to the total."""
    ends = [min(first, total)]
    while ends[-1] < total:
        ends.append(min(total, ends[-1] + max(least, -(-ends[-1] // 5))))
    return ends


def interval_plan(t_interval: int, n_trials: int, n_levels: int) -> Plan:
    """Every t_interval-th timestep from the middle of the first interval on, in one stage, each repeated n_trials times.

    The published schedule of DiT and Winoground. Raises ValueError for an interval that does not divide n_levels.
    """
    if t_interval < 1 or n_levels % t_interval:
        near = divisor(t_interval, n_levels)
        raise ValueError(
            f"--t_interval {t_interval} must divide {n_levels}, so that timesteps cover all of it evenly: take {near}"
        )
    t = np.repeat(np.arange(t_interval // 2, n_levels, t_interval), n_trials)
    return Plan(t, (slice(0, len(t)),))


def divisor(most: int, n_levels: int) -> int:
    """The largest divisor of n_levels that is at most so large; 1 of what is less."""
    return max(n for n in range(1, n_levels + 1) if n_levels % n == 0 and n <= max(most, 1))


# ---------------------------------------------------------------- price and checks


def count_evaluations(plan: Plan, n_candidates: int, to_keep: Sequence[int]) -> int:
    """Network evaluations for one image: the candidates alive in a stage times the pairs it adds."""
    alive = [n_candidates, *to_keep[:-1]]
    return sum(k * (stage.stop - stage.start) for k, stage in zip(alive, plan.stages, strict=True))


def coverage_notice(n: int, n_levels: int) -> str | None:
    """A warning when the published grid of n leaves the end out, as it does for most numbers that do not divide n_levels."""
    last = timestep_grid(n, n_levels)[-1]
    if last >= 0.9 * n_levels:
        return None
    return f"the published grid of {n} timesteps ends at {last} of {n_levels}; numbers that divide {n_levels} cover all of it"


def check_stages(to_keep: Sequence[int], n_samples: Sequence[int], n_candidates: int, n_levels: int) -> None:
    """Raises ValueError, naming the flag and the fix, for stages that the elimination cannot run."""
    if len(to_keep) != len(n_samples):
        raise ValueError(f"--to_keep has {len(to_keep)} numbers and --n_samples {len(n_samples)}: give one of each per stage")
    if to_keep[-1] != 1:
        raise ValueError(f"--to_keep must end in 1, not {to_keep[-1]}: the last stage leaves the prediction")
    if min(to_keep) < 1 or any(a < b for a, b in itertools.pairwise(to_keep)):
        raise ValueError(f"--to_keep {' '.join(map(str, to_keep))} must not increase and must stay above 0")
    if to_keep[0] > n_candidates:
        raise ValueError(
            f"--to_keep starts with {to_keep[0]}, but there are {n_candidates} candidates: start with at most as many"
        )
    if not all(1 <= n <= n_levels for n in n_samples):
        raise ValueError(f"--n_samples {' '.join(map(str, n_samples))}: every number must lie in 1..{n_levels}")
    if any(a > b for a, b in itertools.pairwise(n_samples)):
        raise ValueError(f"--n_samples {' '.join(map(str, n_samples))} must not decrease: a later stage looks closer")


def check_race(min_samples: int, max_samples: int, n_trials: int, n_levels: int) -> None:
    """Raises ValueError, naming the flags, for a race with fewer pairs than its first round, or more timesteps than levels."""
    if max_samples > n_levels:
        raise ValueError(f"--max_samples {max_samples}, and the model has {n_levels}: give --max_samples {n_levels} or less")
    if min_samples > max_samples * n_trials:
        few = f"--min_samples {max_samples * n_trials} or less"
        raise ValueError(f"--min_samples {min_samples} must not exceed --max_samples {max_samples}: give {few}")
