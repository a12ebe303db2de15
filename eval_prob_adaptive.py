#!/usr/bin/env python
"""Zero-shot classification with a text-to-image diffusion model: which prompt best predicts the noise added to an image?

  offline, on the shipped model and images; README.md says what it prints:
    python eval_prob_adaptive.py --version tiny --dataset fashion_mnist --imgs_to_eval 100
  the paper's experiment on Oxford-IIIT Pets with Stable Diffusion 2.0 (87.3 % mean per class in the paper):
    python eval_prob_adaptive.py --dataset pets --split test --to_keep 5 1 --n_samples 25 250 --loss l1 \\
        --prompt_path prompts/pets_prompts.csv
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion import cli, session, strategy
from diffusion.datasets import DATASETS
from diffusion.datasets.transforms import INTERPOLATIONS
from diffusion.files import fingerprint


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    cli.add_selection_options(cli.add_data_options(parser, list(DATASETS)))
    cli.add_sd_options(parser)
    group = parser.add_argument_group("method (defaults: the dataset's published recipe)")
    group.add_argument("--to_keep", nargs="+", type=int, metavar="K", help="prompts that survive each stage, the last 1")
    group.add_argument("--n_samples", nargs="+", type=int, metavar="N", help="timesteps tried up to each stage, 1 to 1000")
    group.add_argument("--loss", choices=cli.LOSSES, help="error of a noise prediction (l2 when stages are given without it)")
    group.add_argument("--n_trials", type=cli.at_least(1), default=1, help="noises per timestep (default: 1)")
    group.add_argument("--prompt_path", help="CSV of prompt,classname,classidx (default: the dataset's in prompts/)")
    group.add_argument("--template", help='prompts from the class names instead of a CSV: "a photo of a {}."')
    group.add_argument("--noise_path", help="noise bank shared by all images (scripts/save_noise.py; default: seeded)")
    group.add_argument(
        "--img_size", type=cli.at_least(1), help="pixels a side (default: 512, or what a smaller model was trained on)"
    )
    group.add_argument("--prune_img_size", type=cli.at_least(1), metavar="PIXELS", help="all stages but the last on images of "
                       "this size; the survivors are then tried on all timesteps at full size (default: off)")  # fmt: skip
    group.add_argument("--interpolation", default="bicubic", choices=INTERPOLATIONS, help="of the resize (default: bicubic)")
    cli.add_race_options(parser)
    cli.add_run_options(parser)
    return parser.parse_args(argv)


@dataclass
class Run:
    """What is known before any weights are loaded."""

    dataset: Any
    prompts: Any
    plan: Any
    files: Any
    latent_shape: tuple[int, int, int]
    small_shape: tuple[int, int, int] | None  # with --prune_img_size
    noise: Any  # [S,C,h,w], or None: seeded for each image
    folder: Path
    identity: dict  # what the numbers depend on
    selected: list[int]  # over all workers
    done: dict[int, tuple]  # outcomes of the records of `selected` that exist
    todo: list[int]  # of this worker


# Options that change a record's numbers or which images a folder is about; the others may differ when a run continues.
IDENTITY = ("dataset", "split", "version", "dtype", "img_size", "interpolation")
IDENTITY += ("to_keep", "n_samples", "loss", "n_trials", "seed")


def prepare(args) -> Run:
    """Checks every option against the others and the files, cheap things first. Raises ValueError or OSError."""
    from diffusion import models, noise, paths, runlog, sharding
    from diffusion.datasets import transforms

    cli.resolve_worker(args)
    strategy.resolve_race(args)
    cli.check_network(args)
    dataset, prompts = open_data(args)
    plan = strategy.make_plan(args, len(prompts.prompts))
    selected = sharding.select(len(dataset), args.subset_path, args.imgs_to_eval, args.seed)
    files = models.find_sd(args.version, args.model_path)
    args.img_size = args.img_size or files.default_size
    latent_shape = models.latent_shape(files, args.img_size)
    dataset.transform = transforms.sd_transform(args.img_size, args.interpolation)
    small_shape = check_pruning(args, files)
    bank = noise.read_noise(args.noise_path, len(plan.t), latent_shape, args.img_size) if args.noise_path else None
    folder = runlog.adaptive_folder(paths.log_dir(), args)
    identity = (
        {name: getattr(args, name) for name in IDENTITY}
        | strategy.race_identity(args)
        | ({"prune_img_size": args.prune_img_size} if args.prune_img_size else {})
        | {
            "images": dataset.fingerprint(),
            "prompts": fingerprint(prompts.prompts, prompts.classidx),
            "weights": models.weights_identity(files),
            "noise": "seeded" if bank is None else fingerprint(bank.numpy().tobytes()),
            "subset": cli.subset_identity(args, len(dataset)),
        }
    )
    runlog.check_config(folder, identity)
    done = runlog.load_outcomes({i: runlog.record_path(folder, i, len(dataset)) for i in selected})
    todo = [i for i in sharding.shard(selected, args.worker_idx, args.n_workers) if i not in done]
    return Run(dataset, prompts, plan, files, latent_shape, small_shape, bank, folder, identity, selected, done, todo)


def check_pruning(args, files):
    """The latent's shape at --prune_img_size, None without it. Raises ValueError when that option cannot do anything."""
    from diffusion import models

    if not args.prune_img_size:
        return None
    if args.strategy == "race" or len(args.to_keep) < 2 or args.noise_path:
        other = "--strategy race" if args.strategy == "race" else "--noise_path" if args.noise_path else "one stage"
        raise ValueError(f"--prune_img_size is for two or more stages with seeded noise, not for {other}: leave it out")
    if args.prune_img_size >= args.img_size:
        raise ValueError(f"--prune_img_size {args.prune_img_size} must be below --img_size {args.img_size}")
    return models.latent_shape(files, args.prune_img_size, "--prune_img_size")


def open_data(args):
    """The dataset and its prompts; fills in what the recipe says of options that were not given."""
    from diffusion import datasets

    dataset = cli.open_images(args)
    prompts = datasets.load_prompts(args.dataset, dataset, args.prompt_path, args.template)
    recipe = datasets.recipe_for(args.dataset, len(prompts.prompts))
    # the published default is l2; a recipe's own loss goes with its own stages only
    args.loss = args.loss or ("l2" if args.to_keep or args.n_samples else recipe.loss)
    if args.strategy == "stages":
        args.to_keep = args.to_keep or list(recipe.to_keep)
        args.n_samples = args.n_samples or list(recipe.n_samples)
    return dataset, prompts


def announce(args, run):
    """Prints what will be done and its price."""
    from diffusion import schedule

    about = {"prompts": f'{len(run.prompts.prompts)}, such as "{run.prompts.prompts[0]}"', "weights": run.files.source}
    notices = (run.dataset.notice, schedule.coverage_notice(args.n_samples or [args.max_samples]))
    counts, cost = (len(run.todo), len(run.done), len(run.selected)), strategy.price(args, run.plan, len(run.prompts.prompts))
    cli.announce(vars(args), about, notices, run.folder, counts, cost)


def classify(args, run, network, index, image, label):
    """One image's record. Raises FloatingPointError when an error is not finite."""
    import torch

    from diffusion import kernel, noise, runlog, scores
    from diffusion.datasets import transforms

    denoiser, conds, batch = network
    t = torch.from_numpy(run.plan.t)

    def evaluator(image, shape):
        x0 = denoiser.encode(image)
        bank = noise.seeded_noise(args.seed, index, (len(t), *shape)) if run.noise is None else run.noise

        def evaluate(rows, pairs):
            return kernel.epsilon_errors(denoiser, x0, conds[rows], t[pairs], bank[pairs], scores.SCORES[args.loss], batch)

        return evaluate

    small = evaluator(transforms.shrink(image, args.prune_img_size), run.small_shape) if run.small_shape else None
    full = evaluator(image, run.latent_shape)
    errors, winner, about = strategy.eliminate(args, full, run.prompts.classidx, run.plan, small)
    return runlog.staged_record(range(len(conds)), errors, t, run.prompts.classidx[winner], label, **about)


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        run = prepare(args)
    announce(args, run)
    if args.dry_run:
        return 0

    from diffusion import models, runlog

    def load():
        return models.load_sd(run.files, args.dtype, args.device, args.compile)

    with cli.bad_input():
        useful, _ = strategy.price(args, run.plan, len(run.prompts.prompts))
        network = session.start_network(args, load, run.prompts.prompts, run.latent_shape, run.folder, useful)
        candidates = (run.prompts.classidx, run.prompts.classnames)
        if session.team().leads:
            runlog.write_config(run.folder, runlog.describe(run.identity, args, len(run.selected), *candidates))

    def work(index, image, label):
        start = time.perf_counter()
        record = classify(args, run, network, index, image, label)
        record["seconds"] = time.perf_counter() - start
        runlog.save_record(runlog.record_path(run.folder, index, len(run.dataset)), record)
        run.done[index] = runlog.outcome(record)
        return run.done[index]

    ended = session.work_through(args, run.dataset, run.todo, run.done, work)
    return session.close(session.accuracy_lines(run.done.values()), run.done, f"scripts/print_acc.py {run.folder}", *ended)


if __name__ == "__main__":
    sys.exit(session.run(main))
