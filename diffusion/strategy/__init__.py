"""Which (candidate, timestep, noise) are evaluated: strategies by name, and what a new one is made of."""

from diffusion.strategy.registry import (
    STRATEGIES,
    CalibratedRace,
    Elimination,
    FirstRace,
    Grid,
    Outcome,
    Race,
    Stages,
    Strategy,
    Usual,
    from_options,
    of_identity,
    option,
    option_names,
    round_numbers,
)

__all__ = [
    "STRATEGIES",
    "CalibratedRace",
    "Elimination",
    "FirstRace",
    "Grid",
    "Outcome",
    "Race",
    "Stages",
    "Strategy",
    "Usual",
    "from_options",
    "of_identity",
    "option",
    "option_names",
    "round_numbers",
]
