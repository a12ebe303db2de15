"""Which timesteps are tried, in which order, with which row of the noise bank, and how an image is noised. Pure functions."""

import itertools
from dataclasses import dataclass

import numpy as np

T = 1000  # training timesteps of every model served here


@dataclass(frozen=True)
class Plan:
    """All (timestep, noise) pairs of an image in order of evaluation.

    t: int64 [S], each timestep repeated n_trials times; pair s uses row s of the noise bank.
    stages: one slice of 0..S a stage; they follow each other and cover 0..S.
    """

    t: np.ndarray
    stages: tuple[slice, ...]


def timestep_grid(n: int) -> list[int]:
    """At most n timesteps with step T // n, the first in the middle of its step: the published grid."""
    step = T // n
    return list(range(step // 2, T, step))[:n]


def stage_timesteps(n_samples: list[int]) -> list[list[int]]:
    """The timesteps that each stage adds, ascending.

    Every stage thins the grid of max(n_samples) to its own number and drops what earlier stages evaluated. Thinned grids do
    not nest, so 20 50 100 500 adds up to 20, 70, 150 and 500 timesteps.
    """
    grid = timestep_grid(max(n_samples))
    seen: set[int] = set()
    stages = []
    for n in n_samples:
        stride = len(grid) // n
        new = [t for t in grid[stride // 2 :: stride][:n] if t not in seen]
        seen.update(new)
        stages.append(new)
    return stages


def make_plan(n_samples: list[int], n_trials: int = 1) -> Plan:
    """The published schedule: stage by stage, timesteps ascending inside a stage, each repeated n_trials times."""
    stages = stage_timesteps(n_samples)
    t = np.repeat(np.concatenate([np.array(stage, np.int64) for stage in stages]), n_trials)
    ends = np.cumsum([0] + [len(stage) * n_trials for stage in stages])
    return Plan(t, tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(ends)))


def spread_order(n: int) -> list[int]:
    """A permutation of 0..n-1 every prefix of which covers the range evenly: van der Corput's sequence, the bits reversed."""
    bits = (n - 1).bit_length()
    mirrored = (int(f"{i:0{bits}b}"[::-1], 2) if bits else 0 for i in range(2**bits))
    return [i for i in mirrored if i < n]


def race_plan(max_samples: int, n_trials: int = 1) -> Plan:
    """The published grid of max_samples timesteps in `spread_order`, so that a race may stop after any of them."""
    t = np.repeat(np.array(timestep_grid(max_samples), np.int64)[spread_order(max_samples)], n_trials)
    return Plan(t, (slice(0, len(t)),))


def interval_plan(t_interval: int, n_trials: int = 1) -> Plan:
    """Every t_interval-th timestep from the middle of the first interval on, in one stage, each repeated n_trials times.

    The published schedule of DiT and Winoground. Raises ValueError for an interval that does not divide T.
    """
    if t_interval < 1 or T % t_interval:
        near = max(n for n in range(1, T + 1) if T % n == 0 and n <= max(t_interval, 1))
        raise ValueError(f"--t_interval {t_interval} must divide {T}, so that timesteps cover all of it evenly: take {near}")
    t = np.repeat(np.arange(t_interval // 2, T, t_interval), n_trials)
    return Plan(t, (slice(0, len(t)),))


# ---------------------------------------------------------------- sampling strategies of the paper's figure 4

UNIFORM = "uniform"
WANTED = {  # strategy -> timesteps it asks for first; what a run lacks is replaced by the nearest that it has
    "even-10": tuple(range(10, T + 1, 10)),
    "0, 500, 1000": (0, 500, 1000),
    "475, 500, 525": (475, 500, 525),
}
STRATEGIES = (UNIFORM, *WANTED)


def sampling_columns(strategy: str, t, n: int) -> list[int]:
    """Which n of the timesteps t [S] (distinct, ascending) a strategy of the paper's figure 4 takes; fewer when it has no more.

    uniform: the middles of n equal parts; even-10: 10, 20, 30, ...; the other two: their three timesteps, then outward from them.
    The paper draws new noise at the same timesteps instead of going outward; a run has a timestep only as often as its trials.
    """
    if strategy == UNIFORM:
        return [(2 * i + 1) * len(t) // (2 * n) for i in range(n)]
    wanted = WANTED[strategy]
    order = _nearest(t, wanted)
    if strategy != "even-10":
        distance = [min(abs(int(x) - anchor) for anchor in wanted) for x in t]
        order += sorted(set(range(len(t))) - set(order), key=lambda column: (distance[column], column))
    return order[:n]


def _nearest(t, wanted) -> list[int]:
    """The column of t nearest to each wanted timestep in turn (the lower of two), none twice."""
    return list(dict.fromkeys(min(range(len(t)), key=lambda column: abs(int(t[column]) - x)) for x in wanted))


# ---------------------------------------------------------------- price and checks


def count_evaluations(plan: Plan, n_candidates: int, to_keep: list[int]) -> int:
    """Network evaluations for one image: the candidates alive in a stage times the pairs it adds."""
    alive = [n_candidates, *to_keep[:-1]]
    return sum(k * (stage.stop - stage.start) for k, stage in zip(alive, plan.stages, strict=True))


def coverage_notice(n_samples: list[int]) -> str | None:
    """A warning when the published grid leaves the end of 0..T out, as it does for most numbers that do not divide T."""
    last = timestep_grid(max(n_samples))[-1]
    if last >= 0.9 * T:
        return None
    return f"the published grid of {max(n_samples)} timesteps ends at {last} of {T}; numbers that divide {T} cover all of it"


def check_stages(to_keep: list[int], n_samples: list[int], n_candidates: int) -> None:
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
    if not all(1 <= n <= T for n in n_samples):
        raise ValueError(f"--n_samples {' '.join(map(str, n_samples))}: every number must lie in 1..{T}")
    if any(a > b for a, b in itertools.pairwise(n_samples)):
        raise ValueError(f"--n_samples {' '.join(map(str, n_samples))} must not decrease: a later stage looks closer")


def add_noise(x0, noise, alphas_cumprod, t):
    """x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise, in float32 (Ho et al. 2020, eq. 4).

    x0: [C,h,w], [B,C,h,w], or [M,1,C,h,w] for M images with the same noise; noise: [B,C,h,w]; alphas_cumprod: [T];
    t: [B] int64. Returns [B,C,h,w] float32, or [M,B,C,h,w].
    """
    a = alphas_cumprod[t].float().view(-1, 1, 1, 1)
    return a.sqrt() * x0.float() + (1 - a).sqrt() * noise.float()
