#!/usr/bin/env python
"""How often does a race drop the candidate that wins on the whole grid? Simulated errors, without a model.

all laws of errors, all ties, with 10, 100 and 1,000 candidates:
  python scripts/simulate_race.py
one setting of the race, more races:
  python scripts/simulate_race.py --alpha 0.05 --candidates 10 --races 1000

The laws: normal noise; noise with heavy tails (Student's t with 3 degrees of freedom) that scatters ten times as much at one end
of the timesteps as at the other; and normal noise that does so too, on straight lines whose slopes differ by candidate.
The ties: one rival with the same expectation, all others far off; all with the same; one whose mean on the whole grid is the same
to the last digit; and rivals at even distances. Every candidate's noise is its own.

The test takes differences for roughly normal around a smooth curve. The second table has laws that break this, of one rival whose
mean on the whole grid is the same to the last digit: it is far worse in a band of 2 % of the timesteps, adjacent or scattered
at random, and better elsewhere; or it is 20 times as noisy there.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

import numpy as np

from diffusion import cli, metrics
from diffusion.analysis.pages import percent_and_interval
from diffusion.cli import parsing
from diffusion.runs import loop
from diffusion.strategy import Race
from diffusion.strategy.elimination import drive

LEVELS = 1000


def normal(rng, shape):
    return rng.standard_normal(shape)


def heavy(rng, shape):
    return rng.standard_t(3, shape) * np.geomspace(3, 0.3, shape[1])


def lines(rng, shape):
    return normal(rng, shape) * np.geomspace(3, 0.3, shape[1]) + 2 * normal(rng, (shape[0], 1)) * np.linspace(-1, 1, shape[1])


def band(rng, shape):
    return _worse(normal(rng, shape), rng.integers(shape[1] - _few(shape)) + np.arange(_few(shape)))


def scattered(rng, shape):
    return _worse(normal(rng, shape), rng.permutation(shape[1])[: _few(shape)])


def noisy(rng, shape):
    errors, columns = normal(rng, shape), rng.integers(shape[1] - _few(shape)) + np.arange(_few(shape))
    errors[1, columns] *= 20
    return errors


def _few(shape):
    return max(1, shape[1] // 50)


def _worse(errors, columns):
    errors[1, columns] += 30
    return errors


LAWS = {"normal": normal, "heavy tails": heavy, "lines": lines}  # (rng, [K,S]) -> errors [K,S]
BREAKING = {"band": band, "scattered": scattered, "noisy": noisy}  # the same, of which a race's level does not hold


def far(errors):
    """All but the first two far above them."""
    return errors + 10 * (np.arange(len(errors)) > 1)[:, None]


TIES = {  # errors [K,S] -> errors [K,S]
    "one": far,
    "all": lambda errors: errors,
    "last digit": lambda errors: far(errors - errors.mean(1, keepdims=True)),
    "near": lambda errors: errors + np.linspace(0, 2, len(errors))[:, None],
}


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("--alpha", type=float, default=Race.alpha, help=f"of the race (default: {Race.alpha})")
    parser.add_argument("--candidates", type=parsing.at_least(2), nargs="+", default=[10, 100, 1000], metavar="K",
                        help="numbers of them (default: 10 100 1000)")  # fmt: skip
    parser.add_argument("--races", type=parsing.at_least(1), default=200, metavar="N", help="of every kind (default: 200)")
    parser.add_argument("--seed", type=parsing.seed, default=0, help="(default: 0)")
    return parser.parse_args(argv)


def is_lost(race: Race, plan, errors) -> bool:
    """Whether a race drops the winner of the whole grid; errors: float32 [K,S], columns in order of t."""
    errors = errors[:, np.argsort(np.argsort(plan.t, kind="stable"), kind="stable")]  # in order of evaluation
    outcome = drive(race.eliminate(list(range(len(errors))), plan), lambda request: errors[request])
    return outcome.winner != errors.mean(1, dtype=np.float64).argmin()


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        race = Race(args.alpha)
        for name, most, value in (("candidates", 100_000, max(args.candidates)), ("races", 1_000_000, args.races)):
            if value > most:
                raise ValueError(f"--{name} {value} is too many to simulate: give at most {most}")
    plan, rng = race.plan(LEVELS), np.random.default_rng(args.seed)
    print(f"alpha {args.alpha:g}, {len(plan.t)} timesteps, {args.races} races of every kind: the winner was lost in")
    print_table(args, race, plan, LAWS, TIES, rng)
    print("Where differences are not roughly normal around a smooth curve:")
    print_table(args, race, plan, BREAKING, {"last digit": TIES["last digit"]}, np.random.default_rng([args.seed, 1]))
    return 0


def print_table(args, race: Race, plan, laws, ties, rng) -> None:
    """Lines of shares of lost races, a column a law and a line for each number of candidates and kind of tie."""
    print(f"{'candidates':>10}  {'ties':10}  " + "".join(f"{law:26}" for law in laws).rstrip())
    for n in args.candidates:
        for name, tied in ties.items():
            lost = [[is_lost(race, plan, tied(draw(rng, (n, len(plan.t)))).astype(np.float32)) for _ in range(args.races)]
                    for draw in laws.values()]  # fmt: skip
            shares = "".join(f"{percent_and_interval(metrics.proportion(law)):26}" for law in lost)
            print(f"{n:10,}  {name:10}  {shares.rstrip()}", flush=True)


if __name__ == "__main__":
    sys.exit(loop.run(main))
