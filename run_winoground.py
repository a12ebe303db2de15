#!/usr/bin/env python
"""Compositional reasoning: does a model match two captions of the same words to their two images (Winoground)?

  offline, on the shipped models and pairs; README.md says what they print:
    python run_winoground.py --model sd --version tiny --dataset tiny_pairs --t_interval 20
    python run_winoground.py --model openclip --version tiny --dataset tiny_pairs
  the paper's run with Stable Diffusion 2.0 (text score 38.5 in the paper) and its baseline (28.2):
    python run_winoground.py --model sd --version 2-0 --t_interval 1 --randomize_noise
    python run_winoground.py --model clip --version ViT-L/14

The text score is the one of the paper's table. The image score compares likelihoods of different images under one caption, so an
image that is easy to predict beats the other whatever the caption says; --score_mode normalised takes that out.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion import cli, session
from diffusion.datasets.pairs import PAIR_DATASETS, SCORE_MODE_HELP, SCORE_MODES
from diffusion.datasets.transforms import INTERPOLATIONS

VERSIONS = {"sd": "2-0", "clip": "ViT-L/14", "openclip": "ViT-H-14"}  # of the paper


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    group = parser.add_argument_group("examples")
    group.add_argument("--dataset", default="winoground", choices=PAIR_DATASETS, help="default: winoground, from the hub")
    group.add_argument("--data_dir", help="local folder with examples.jsonl and images/<stem>.png, of either or of your own set")
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="sd", choices=VERSIONS, help="kind of model (default: sd)")
    group.add_argument("--version", help="sd: 1-1 ... 2-1, tiny; clip: ViT-L/14, RN50, ...; openclip: an architecture of "
                       "open_clip's, tiny (default: the paper's, 2-0, ViT-L/14, ViT-H-14)")  # fmt: skip
    group.add_argument("--model_path", help="pipeline folder or hub id; for openclip a folder with config and state dict")
    group.add_argument("--pretrained", help="openclip: tag of the weights (default for ViT-H-14: laion2b_s32b_b79k)")
    cli.add_network_options(group)
    group = parser.add_argument_group("method (sd)")
    group.add_argument("--t_interval", type=int, metavar="N", help="every N-th timestep (default: 1, the paper's 1000)")
    cli.add_noise_options(group)
    group.add_argument("--img_size", type=cli.at_least(1), help="pixels a side (default: 512, or a smaller model's own)")
    group.add_argument("--interpolation", default="bilinear", choices=INTERPOLATIONS, help="of the resize (default: bilinear)")
    group.add_argument("--score_mode", default="conditional", choices=SCORE_MODES, help=SCORE_MODE_HELP)
    cli.add_run_options(parser)
    args = parser.parse_args(argv)
    args.version = args.version or VERSIONS[args.model]
    return args


@dataclass
class Run:
    """What is known before any weights are loaded."""

    data: Any
    files: Any
    plan: Any  # None for contrastive models
    noise: Any  # [S,C,h,w]; None for contrastive models
    folder: Path
    identity: dict  # what the numbers depend on
    done: dict[int, Any]  # example id -> outcome of its record
    todo: list[int]  # positions in data.examples, of this worker


# Options that change the numbers; those of the grid do for sd only.
IDENTITY = ("dataset", "model", "version", "randomize_noise")
GRID = ("t_interval", "n_trials", "seed", "dtype", "img_size", "interpolation")


def prepare(args) -> Run:
    """Checks every option against the others and the files, cheap things first. Raises ValueError or OSError."""
    from diffusion import paths, runlog, sharding
    from diffusion.datasets import pairs

    cli.resolve_worker(args)
    cli.check_network(args)
    find = find_diffusion if args.model == "sd" else find_contrastive
    files, plan, bank, identity = find(args)
    data = pairs.open_pairs(args.dataset, args.data_dir)
    identity |= {name: getattr(args, name) for name in IDENTITY} | {"images": data.fingerprint()}
    folder = runlog.pairs_folder(paths.log_dir(), args)
    runlog.check_config(folder, identity)
    done = runlog.load_pair_outcomes({e.id: folder / f"{e.id}.pt" for e in data.examples})
    mine = sharding.shard(range(len(data)), args.worker_idx, args.n_workers)
    return Run(data, files, plan, bank, folder, identity, done, [i for i in mine if data.examples[i].id not in done])


def find_diffusion(args):
    """Files, plan, noise and identity of a run of Stable Diffusion."""
    from diffusion import models, schedule

    if args.pretrained:
        raise ValueError(f"--pretrained {args.pretrained} is for --model openclip: name other weights of sd with --model_path")
    args.t_interval = 1 if args.t_interval is None else args.t_interval
    plan = schedule.interval_plan(args.t_interval, args.n_trials)
    files = models.find_sd(args.version, args.model_path)
    args.img_size = args.img_size or files.default_size
    bank, noise_identity = cli.open_noise(args, len(plan.t), models.latent_shape(files, args.img_size))
    identity = {name: getattr(args, name) for name in GRID} | {"noise": noise_identity, "weights": models.weights_identity(files)}
    return files, plan, bank, identity


def find_contrastive(args):
    """Files and identity of a run of CLIP or OpenCLIP, which has no grid."""
    from diffusion.models import clip

    files = clip.find_clip(args.model, args.version, args.model_path, args.pretrained)
    return files, None, None, {"weights": clip.clip_identity(files)}


def announce(args, run):
    cost = 4 * len(run.plan.t) if run.plan else 4
    about = {"weights": run.files.source}
    notices = (run.data.notice, None if run.plan else "a contrastive model: an image or a caption is one evaluation")
    cli.announce(vars(args), about, notices, run.folder, (len(run.todo), len(run.done), len(run.data)), (cost, 0), "example")


# ---------------------------------------------------------------- one example


def diffusion_matcher(args, run):
    """Loads Stable Diffusion; returns (images, captions) -> record of raw errors, float32 [T,n_trials] a pair."""
    import torch

    from diffusion import kernel, models, scores
    from diffusion.datasets import transforms

    def load():
        return models.load_sd(run.files, args.dtype, args.device, args.compile)

    shape = models.latent_shape(run.files, args.img_size)
    denoiser, _, batch = session.start_network(args, load, [""], shape, run.folder, 4 * len(run.plan.t))
    run.data.transform = transforms.sd_transform(args.img_size, args.interpolation)
    t = torch.from_numpy(run.plan.t)

    def match(images, captions):
        x0 = torch.stack([denoiser.encode(image) for image in images])  # [2,C,h,w]
        errors = kernel.epsilon_errors(denoiser, x0, denoiser.embed(list(captions)), t, run.noise, scores.l2, batch)
        return errors.view(4, -1, args.n_trials).unbind()  # [2,2,S], caption by caption

    return match


def contrastive_matcher(args, run):
    """Loads CLIP or OpenCLIP; returns (images, captions) -> record of logits."""
    import torch

    from diffusion.models import clip

    scorer = clip.load_clip(run.files, args.device)
    run.data.transform = scorer.preprocess

    def match(images, captions):
        logits = scorer.logits(scorer.embed_images(torch.stack(images)), scorer.embed_texts(list(captions)))
        return logits.T.flatten().cpu().unbind()  # caption by caption

    return match


# ---------------------------------------------------------------- the command


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        run = prepare(args)
    announce(args, run)
    if args.dry_run:
        return 0

    from diffusion import runlog
    from diffusion.datasets import pairs
    from diffusion.metrics import PairScores

    with cli.bad_input():
        match = (diffusion_matcher if args.model == "sd" else contrastive_matcher)(args, run)
        if session.team().leads:
            runlog.write_config(run.folder, runlog.describe(run.identity, args, len(run.data)))

    def work(index, images, example):
        record = dict(zip(PairScores._fields, match(images, example.captions), strict=True))
        outcome = runlog.pair_outcome(record)
        runlog.save_record(run.folder / f"{example.id}.pt", record)
        run.done[example.id] = outcome
        return outcome

    ended = session.work_through(args, run.data, run.todo, run.done, work)
    lines = pairs.lines({i: o.scores for i, o in run.done.items()}, run.data.examples, args.score_mode)
    return session.close(lines, run.done, f"scripts/print_winoground.py {run.folder}", *ended, unit="example")


if __name__ == "__main__":
    sys.exit(session.run(main))
