#!/usr/bin/env python
"""Choose a class-balanced random part of a dataset, for --subset_path: sorted int64 indices in a .npy file.

python scripts/write_subset.py --dataset pets --n 500 --out pets500.npy
python scripts/write_subset.py --dataset cifar10 --per_class 20 --seed 1 --out cifar10_20each.npy
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, datasets
from diffusion.cli import parsing
from diffusion.datasets import DATASETS
from diffusion.runs import loop
from diffusion.utils import files, outputs


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    cli.add_data_options(parser, list(DATASETS))
    parser.add_argument("-o", "--out", type=outputs.Output(".npy"), required=True, metavar="FILE", help="the .npy file to write")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--per_class", type=parsing.at_least(1), metavar="N", help="images of every class")
    amount.add_argument("--n", type=parsing.at_least(1), help="images in all, as many of every class as possible")
    parser.add_argument("--seed", type=parsing.at_least(0), default=0, help="another seed, another choice (default: 0)")
    return parser.parse_args(argv)


def balanced_order(labels, seed: int):
    """All indices in an order whose every beginning is balanced: one of each class in random order, then the next of each.

    Returns (order [N], round [N]): round r holds the (r+1)-th image of each class that has so many.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    taken, rounds = {}, np.empty(len(labels), dtype=np.int64)
    for position, label in enumerate(labels[shuffled].tolist()):
        rounds[position] = taken[label] = taken.get(label, -1) + 1
    # stable: inside a round the images keep their random order
    by_round = np.argsort(rounds, kind="stable")
    return shuffled[by_round], rounds[by_round]


def choose(labels, per_class: int | None, n: int | None, seed: int):
    """int64 indices, ascending. Raises ValueError, naming the flag, when the labels [N] do not have so many."""
    import numpy as np

    order, rounds = balanced_order(labels, seed)
    if per_class is None:
        if n > len(labels):
            raise ValueError(f"--n {n}: the split has {len(labels)} images")
        return np.sort(order[:n])
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < per_class:
        raise ValueError(f"--per_class {per_class}: class {classes[counts.argmin()]} has {counts.min()} images")
    return np.sort(order[rounds < per_class])


def main(argv=None) -> int:
    args = parse_args(argv)
    import numpy as np

    with cli.bad_input():
        dataset = datasets.open_images(cli.data_of(vars(args)))
        indices = choose(dataset.labels, args.per_class, args.n, args.seed)
        files.write(args.out, lambda file: np.save(file, indices.astype(np.int64)))
    print(f"{args.out}: {len(indices)} of {len(dataset)} images" + (f"; {dataset.notice}" if dataset.notice else ""))
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
