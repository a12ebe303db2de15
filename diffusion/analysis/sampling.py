"""Which timesteps of a run the strategies of the paper's figure 4 choose. Timesteps are indices into a table of `levels`."""

UNIFORM = "uniform"


def wanted_timesteps(levels: int) -> dict[str, tuple[float, ...]]:
    """Strategy -> timesteps that it asks for first; what a run lacks is replaced by the nearest that it has.

    Named by these timesteps. They are the published ones where levels is 1000, and the same fractions of any other table.
    """
    edges = tuple(levels * part / 2 for part in (0, 1, 2))
    middle = tuple(levels * part / 40 for part in (19, 20, 21))
    return {
        f"even-{levels / 100:g}": tuple(levels * part / 100 for part in range(1, 101)),
        ", ".join(f"{t:g}" for t in edges): edges,
        ", ".join(f"{t:g}" for t in middle): middle,
    }


def strategies(levels: int) -> tuple[str, ...]:
    """Their names."""
    return (UNIFORM, *wanted_timesteps(levels))


def sampling_columns(strategy: str, t, n: int, levels: int) -> list[int]:
    """Which n of the timesteps t [S] (distinct, ascending) a strategy of the paper's figure 4 takes; fewer when it has no more.

    uniform: the middles of n equal parts; even-10: 10, 20, 30, ...; the other two: their three timesteps, then outward from them.
    The paper draws new noise at the same timesteps instead of going outward; a run has a timestep only as often as its trials.
    """
    if strategy == UNIFORM:
        return [(2 * i + 1) * len(t) // (2 * n) for i in range(n)]
    wanted = wanted_timesteps(levels)[strategy]
    order = _nearest(t, wanted)
    if not strategy.startswith("even-"):
        distance = [min(abs(int(x) - anchor) for anchor in wanted) for x in t]
        order += sorted(set(range(len(t))) - set(order), key=lambda column: (distance[column], column))
    return order[:n]


def _nearest(t, wanted) -> list[int]:
    """The column of t nearest to each wanted timestep in turn (the lower of two), none twice."""
    return list(dict.fromkeys(min(range(len(t)), key=lambda column: abs(int(t[column]) - x)) for x in wanted))
