#!/usr/bin/env python
"""A classifier on Stable Diffusion's features: the paper's "SD features" baseline (F.4, Table 11), and a linear probe.

  offline, on the shipped model, with the training images of Debian's package dataset-fashion-mnist:
    python scripts/sd_features.py --version tiny --dataset fashion_mnist --train_dir /usr/share/datasets/fashion-mnist --head linear
  the paper's: Stable Diffusion 2.0, 512 pixels
    python scripts/sd_features.py --dataset pets --head resnet --epochs 100

One command takes the features of the training images (the middle block's map at t = 100 under the empty prompt, kept on disk),
trains the head on them with a validation split, and classifies the test images. What is done is not done again. With --n_workers
each process takes its share of the features, worker 0 trains once all are there. Records and folders are those of
eval_prob_adaptive.py, with minus the logit in place of an error, so that all scripts that read runs read these.
"""

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion import startup

    startup.be_quiet()

import numpy as np

from diffusion import cli, datasets, features, files, models, paths, records, runlog, session, settings, sharding, tracking
from diffusion.analysis import results
from diffusion.datasets import DATASETS, transforms
from diffusion.models.stable_diffusion import StableDiffusion
from diffusion.training import early, heads

HEAD, COURSE, CHECKPOINT = "head.safetensors", "training.csv", "training.checkpoint"  # in the run folder
TRAINS = ("augment", "epochs", "batch_size", "lr", "weight_decay", "patience")  # what a linear head has no use for


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    cli.add_selection_options(cli.add_data_options(parser, list(DATASETS)))
    cli.add_training_set_options(parser)
    group = parser.add_argument_group("features")
    group.add_argument("--version", type=cli.name_part, default="2-0", help="1-1 ... 1-5, 2-0, 2-1, tiny (default: 2-0)")
    group.add_argument("--model_path", help="local pipeline folder or hub id in place of the version's weights")
    group.add_argument("--layer", type=cli.name_part, default="mid_block", help="part of the U-Net whose output they are, such as "
                       "down_blocks.3 (default: mid_block)")  # fmt: skip
    group.add_argument("--t", type=cli.at_least(0), default=100, help="noise level (default: 100)")
    cli.add_resize_options(group)
    group.add_argument("--dtype", default="auto", choices=["auto", *models.devices.DTYPES],
                       help="of the U-Net (default: auto, float16 on CUDA, else float32)")  # fmt: skip
    group.add_argument("--device", help="default: cuda if there is one, else cpu")
    group.add_argument("--cache_dir", help="where features are kept (default: beside the run folder)")
    group = parser.add_argument_group("head")
    told = "; ".join(f"{name}: {about}" for name, about in heads.HEADS.items())
    group.add_argument("--head", choices=list(heads.HEADS), default="resnet", help=f"{told} (default: resnet)")
    group.add_argument("--pool", choices=heads.POOLS, default="mean", help="linear: the mean of each channel, or all of the map "
                       "(default: mean)")  # fmt: skip
    group.add_argument("--augment", action="store_true", help="as in the paper, random resized crops, mirrored or not; their features "
                       "are taken anew in every epoch, as no cache holds them (default: images as they are, from the cache)")  # fmt: skip
    cli.add_epoch_options(group, epochs=20, batch_size=16, lr=1e-4, weight_decay=0.01, patience=5)
    cli.add_run_options(parser)
    args = parser.parse_args(argv)
    with cli.bad_input():
        if args.head == "linear":
            cli.refuse_idle(vars(args), TRAINS, "with --head linear")
        elif "pool" in args.given:
            raise ValueError(f"--pool does nothing with --head {args.head}: leave it out")
    return args


@dataclass(frozen=True)
class Run:
    """What was asked for, and what is known before any weights are loaded."""

    data: settings.Data
    selection: settings.Selection
    training_set: settings.TrainingSet
    model: settings.TextToImage
    features: settings.Features
    how: early.Epochs
    running: settings.Running
    dataset: Any
    train: Any  # its images to learn from
    seed: int
    cache_dir: str | None
    source: Any  # of the weights
