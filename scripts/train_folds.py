#!/usr/bin/env python
"""Every pair of colour and item left out once: five trainings of four kinds of model, each tested on all 60 pairs.

python scripts/train_folds.py --dry_run
python scripts/train_folds.py --kinds unet contrastive --folds 0 1
python scripts/print_folds.py folds

Fold K leaves out twelve of the 60 pairs (`scenes.folds`) and is trained with seed K: a VAE, then a U-Net and a flow in its
latents, a contrastive model and a network with labels for colours and items, on the same pictures and captions, as many of
them, with 1.7 to 1.8 million parameters each. Each is tested on `--dataset tiny_combos --split folds`, 16 pictures of every
pair. What is done is not done again; a training that was interrupted goes on. Predictions: FOLDS/predictions/KIND_K.json.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli
from diffusion.cli import parsing
from diffusion.datasets import open_dataset
from diffusion.datasets.readers.idx import find_idx
from diffusion.datasets.scenes import N_FOLDS
from diffusion.datasets.shipped import PAIRS
from diffusion.runs import loop, run_folder
from diffusion.training import two_heads
from diffusion.utils import files, paths

TEST = ["--dataset", "tiny_combos", "--split", "folds"]
RACE = ["eval_prob_adaptive.py", *TEST, "--strategy", "race", "--model_path"]


@dataclass(frozen=True)
class Kind:
    """part: of train_tiny.py; options: of its training, 921,600 pictures; test: the command before the model's folder, where a
    command tests it; hours: of one core, training and test."""

    part: str
    options: tuple[str, ...]
    test: tuple[str, ...]
    hours: float


KINDS = {
    "unet": Kind("sd", ("--steps", "3600", "--channels", "32"), (*RACE[:1], "--version", "tiny", *RACE[1:]), 1.2),
    "flow": Kind("sd3", ("--steps", "7200", "--channels", "96"), (*RACE[:1], "--version", "tiny-sd3", *RACE[1:]), 1.5),
    "contrastive": Kind("clip", ("--steps", "3600", "--channels", "112"),
                        ("scripts/eval_clip.py", "--model", "openclip", "--version", "tiny", *TEST, "--model_path"), 0.6),
    "heads": Kind("heads", ("--steps", "3600", "--channels", "152"), (), 0.6),
}  # fmt: skip
IN_LATENTS = ("unet", "flow")
VAE_HOURS = 0.2


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="default: all")
    parser.add_argument("--folds", nargs="+", type=int, choices=range(N_FOLDS), default=list(range(N_FOLDS)), metavar="K",
                        help="0 to 4 (default: all)")  # fmt: skip
    parser.add_argument("--data_dir", type=Path, default=Path("datasets/FashionMNIST/raw"), help="Fashion-MNIST's four idx files")
    parser.add_argument("-o", "--out", type=Path, default=Path("folds"), metavar="FOLDS", help="models, runs and predictions "
                        "(default: folds)")  # fmt: skip
    parser.add_argument("--dry_run", action="store_true", help="say what is left to do, and how long it takes")
    return parser.parse_args(argv)


def predictions_path(out: Path, kind: str, fold: int) -> Path:
    return out / "predictions" / f"{kind}_{fold}.json"


def todo(args) -> list[tuple[int, str]]:
    """(fold, kind) without predictions, a fold at a time."""
    every = [(fold, kind) for fold in args.folds for kind in args.kinds]
    return [(fold, kind) for fold, kind in every if not predictions_path(args.out, kind, fold).exists()]


def hours(args, left: list[tuple[int, str]]) -> float:
    """Of one core."""
    vaes = {fold for fold, kind in left if kind in IN_LATENTS and not vae_folder(args, fold).is_dir()}
    return VAE_HOURS * len(vaes) + sum(KINDS[kind].hours for _, kind in left)


def model_folder(args, fold: int) -> Path:
    return args.out.resolve() / f"fold{fold}"


def vae_folder(args, fold: int) -> Path:
    return model_folder(args, fold) / "tiny-sd" / "vae"


# ---------------------------------------------------------------- training and testing


def run(command, **more) -> None:
    """A command of this repository, with its output. Raises CalledProcessError where it fails."""
    subprocess.run([sys.executable, str(paths.ROOT / command[0]), *map(str, command[1:])], check=True, **more)


def train(args, part: str, fold: int, options=()) -> None:
    folder = model_folder(args, fold)
    where = ["--data_dir", args.data_dir.resolve(), "--out", folder, "--checkpoint_dir", folder / "checkpoints"]
    run(["scripts/train_tiny.py", part, "--fold", fold, "--seed", fold, *where, *options])


def test(args, kind: str, fold: int) -> dict:
    """Predictions, labels of PAIRS [960], and network evaluations per image."""
    folder, part = model_folder(args, fold), KINDS[kind].part
    if not KINDS[kind].test:
        return {"preds": label(folder / "tiny-heads" / "model.safetensors"), "evaluations": 1}
    place = folder / f"test_{kind}"
    place.mkdir(exist_ok=True)
    run([*KINDS[kind].test, folder / f"tiny-{part}"], cwd=place)
    (records,) = (place / "data" / "tiny_combos_folds").iterdir()
    outcomes = run_folder.read_outcomes(records, [])
    spent = [outcome.evaluations for _, outcome in sorted(outcomes.items())]
    return {"preds": [outcomes[i].pred for i in sorted(outcomes)], "evaluations": round(sum(spent) / len(spent), 1)}


def label(weights: Path) -> list[int]:
    """What the network with two heads takes each test picture for."""
    import numpy as np
    import torch

    images = open_dataset("tiny_combos", "folds", None, ".")
    pixels = np.stack([np.asarray(images.picture(i).convert("RGB")) for i in range(len(images))])
    scores = two_heads.pair_scores(weights, torch.from_numpy(pixels).permute(0, 3, 1, 2), PAIRS)
    return scores.argmax(1).tolist()


def main(argv=None) -> int:
    args = parse_args(argv)
    left = todo(args)
    print(f"{len(left)} of {len(args.folds) * len(args.kinds)} trainings to do: about {hours(args, left):.1f} hours of one core")
    for fold, kind in left if args.dry_run else ():
        print(f"  fold {fold}: {kind}")
    if args.dry_run or not left:
        return 0
    with cli.bad_input():
        files.try_writing(args.out)
        if not find_idx(args.data_dir, "train-images-idx3-ubyte"):
            raise FileNotFoundError(f"--data_dir {args.data_dir}: Fashion-MNIST's four idx files are not there")
    for fold, kind in left:
        print(f"fold {fold}: {kind}", flush=True)
        if kind in IN_LATENTS and not vae_folder(args, fold).is_dir():
            train(args, "vae", fold)
        if not (model_folder(args, fold) / f"tiny-{KINDS[kind].part}" / "done").exists():
            train(args, KINDS[kind].part, fold, KINDS[kind].options)
            (model_folder(args, fold) / f"tiny-{KINDS[kind].part}" / "done").touch()
        about = {"kind": kind, "fold": fold, "options": list(KINDS[kind].options)}
        files.write_text(predictions_path(args.out, kind, fold), json.dumps(about | test(args, kind, fold)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
