#!/usr/bin/env python
"""Compositional reasoning (Winoground): does a model match two captions of the same words to their two images?

  offline, on the shipped models and pairs; docs/winoground.md says what they print:
    python run_winoground.py --model sd --version tiny --dataset tiny_pairs --t_interval 20
    python run_winoground.py --model openclip --version tiny --dataset tiny_pairs
  the paper's run with Stable Diffusion 2.0 (text score 38.5 in the paper) and its baseline (28.2):
    python run_winoground.py --model sd --version 2-0 --t_interval 1 --randomize_noise --interpolation bicubic
    python run_winoground.py --model clip --version ViT-L/14

The text score is the one of the paper's table. The image score compares likelihoods of different images under one caption, so an
image that is easy to predict beats the other whatever the caption says; --score_mode normalised takes that out.
"""

import sys

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from diffusion import cli, models, settings
from diffusion.analysis import results
from diffusion.cli import parsing
from diffusion.datasets import transforms, winoground
from diffusion.kernel import noise, scores
from diffusion.metrics import PairScores
from diffusion.models import clip
from diffusion.runs import loop, printing, run_folder, tracking
from diffusion.runs.task import Task
from diffusion.strategy import Grid
from diffusion.utils import paths

VERSIONS = {"sd": "2-0", "clip": "ViT-L/14", "openclip": "ViT-H-14"}  # of the paper


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    group = parser.add_argument_group("examples")
    group.add_argument(
        "--dataset", default="winoground", choices=winoground.PAIR_DATASETS, help="default: winoground, from the hub"
    )
    group.add_argument(
        "--data_dir", help="local folder with examples.jsonl and images/<stem>.png, of one of these sets or of your own"
    )
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="sd", choices=VERSIONS, help="kind of model (default: sd)")
    group.add_argument("--version", help="sd: 1-1 ... 2-1, sdxl, tiny, ...; clip: ViT-L/14, RN50, ...; openclip: an architecture "
                       "of open_clip's, tiny (default: the paper's, 2-0, ViT-L/14, ViT-H-14)")  # fmt: skip
    group.add_argument(
        "--model_path", help="pipeline folder, hub id or single file; for openclip a folder with config and state dict"
    )
    group.add_argument("--pretrained", help="openclip: tag of the weights (default for ViT-H-14: laion2b_s32b_b79k)")
    cli.add_text_to_image_options(group)
    cli.add_network_options(group)
    group = parser.add_argument_group("method (sd)")
    group.add_argument("--t_interval", type=int, metavar="N", help="every N-th timestep (default: 1, the paper's 1000)")
    group.add_argument("--n_trials", type=parsing.at_least(1), default=1, metavar="N", help="noises per timestep (default: 1)")
    cli.add_noise_options(group)
    cli.add_resize_options(group, "bilinear", "of the resize; the paper's run passes bicubic")
    group.add_argument("--score_mode", default="conditional", choices=winoground.SCORE_MODES, help=winoground.SCORE_MODE_HELP)
    cli.add_run_options(parser)
    args = parser.parse_args(argv)
    args.version = args.version or VERSIONS[args.model]
    return args


@dataclass(frozen=True)
class Diffusion:
    """The run's model, a text-to-image one, before any weights are loaded."""

    source: Any
    model: settings.TextToImage
    grid: Grid
    seed: int
    noise: Any  # a source of noise

    @property
    def plan(self):
        return self.grid.plan(self.source.n_levels)

    @property
    def price(self) -> int:
        return 4 * len(self.plan.t)

    @property
    def record_shape(self) -> tuple[int, ...]:
        """The shape of each of a record's four tensors."""
        return len(self.plan.t) // self.grid.n_trials, self.grid.n_trials

    def identity(self) -> dict:
        made_of = {"seed": self.seed, "noise": self.noise.identity(), "weights": self.source.identity()}
        return self.model.identity() | self.grid.identity() | made_of

    def folder(self) -> str:
        return f"sd_v{self.model.version.replace('/', '_')}_{self.grid.folder()}{run_folder.later_options(self.model)}"


@dataclass(frozen=True)
class Contrastive:
    """The run's model, a contrastive one, which has no grid."""

    source: Any
    model: settings.Contrastive

    price = 4
    record_shape = ()

    def identity(self) -> dict:
        return {"version": self.model.version, "weights": self.source.identity()}

    def folder(self) -> str:
        return f"{self.model.model}_{self.model.version.replace('/', '_')}"


@dataclass(frozen=True)
class PairTask(Task):
    """Examples of two images and two captions, and the model that matches them."""

    command, UNIT, kind = "run_winoground", "example", run_folder.PAIRS

    running: settings.Running
    scorer: Diffusion | Contrastive
    chosen: dict  # options that say which examples and model
    parts: tuple  # settings that the model is made of
    score_mode: str
    dataset: Any  # winoground.Pairs
    folder: Path

    @property
    def source(self):
        return self.scorer.source

    @property
    def price(self) -> int:
        return self.scorer.price

    @cached_property
    def identity(self) -> dict:
        named = {name: self.chosen[name] for name in ("dataset", "model", "randomize_noise")}
        return named | self.scorer.identity() | {"images": self.dataset.fingerprint()}

    @property
    def options(self) -> dict:
        named = {name: self.chosen[name] for name in ("dataset", "data_dir", "model")}
        return named | settings.options_of(*self.parts, self.running) | {"score_mode": self.score_mode}

    @property
    def examples(self) -> list:
        return self.dataset.examples

    @property
    def selected(self) -> range:
        return range(len(self.dataset))

    def key(self, index: int) -> int:
        return self.examples[index].id

    def record_path(self, index: int) -> Path:
        return self.folder / f"{self.key(index)}.pt"

    def read_records(self) -> dict[int, run_folder.PairOutcome]:
        places = {self.key(i): self.record_path(i) for i in self.selected}
        return run_folder.load_pair_outcomes(places, self.scorer.record_shape, self.unreadable)


def prepare(options: dict) -> PairTask:
    """Checks every option against the others and the files, cheap things first. Raises ValueError or OSError."""
    running = cli.running_of(options)
    scorer, parts = (find_diffusion if options["model"] == "sd" else find_contrastive)(options, running)
    dataset = winoground.open_pairs(options["dataset"], options["data_dir"], running.dry_run)
    ending = "_randnoise" if options["randomize_noise"] else ""
    folder = run_folder.dataset_folder(paths.log_dir(), options["dataset"], running.extra) / (scorer.folder() + ending)
    if isinstance(scorer, Diffusion):
        scorer = replace(scorer, noise=noise.continued(scorer.noise, run_folder.noise_of(folder)))
    run = PairTask(running, scorer, options, parts, options["score_mode"], dataset, folder)
    if not run.incomplete:
        run.check_folders()
    return run


def find_diffusion(options: dict, running) -> tuple[Diffusion, tuple]:
    """The model, and the settings that it is made of."""
    if options["pretrained"]:
        raise ValueError(
            f"--pretrained {options['pretrained']} is for --model openclip: use --model_path for other weights of sd"
        )
    grid = Grid(1 if options["t_interval"] is None else options["t_interval"], options["n_trials"])
    bank = cli.grid_noise_of(options)
    dtype = cli.dtype_of(options, running)
    source = cli.source_of(options, running.device, dtype, expect=running.dry_run)
    size = options["img_size"] or source.default_size
    model = cli.model_of(options, source, dtype, size)
    shape = source.latent_shape(size)
    cli.check_pairs(grid.n_trials, 1, 4, shape)
    n_pairs = len(grid.plan(source.n_levels).t)
    cli.check_pairs(grid.n_trials, n_pairs // grid.n_trials, 4, shape)
    rows = noise.grid_noise(bank.seed, bank.noise_path, n_pairs, shape, size, bank.by_position)
    models.check_memory(source, size, running.device, model.dtype, running.batch_size, 4 * n_pairs)
    return Diffusion(source, model, grid, bank.seed, rows), (model, grid, bank)


# of a contrastive model; not randomize_noise, which names its folder, as published
IDLE = ("t_interval", "n_trials", "noise_path", "img_size", "interpolation", "seed", "dtype", "batch_size",
        "compile", "error_space", "levels", "text_encoders", "lora", "embedding", "config")  # fmt: skip


def find_contrastive(options: dict, running) -> tuple[Contrastive, tuple]:
    """The same of a model that has no timesteps, no noise and its own images, and runs in float32."""
    cli.refuse_idle(options, IDLE, f"with --model {options['model']}")
    model = settings.pick(settings.Contrastive, options)
    source = clip.find(model.model, model.version, model.model_path, model.pretrained)
    return Contrastive(source, model), (model,)


def announce(run: PairTask):
    about, contrastive = {"weights": run.source.describe()}, isinstance(run.scorer, Contrastive)
    about |= {} if contrastive else {"memory": models.memory_message(run.source, run.scorer.model.dtype)}
    captions = [caption for example in run.examples for caption in example.captions]
    notices = (
        run.dataset.notice,
        None if run.incomplete else run.source.unused_additions(captions),
        "contrastive model: encoding one image or one caption counts as one evaluation" if contrastive else None,
        None if contrastive else run.slow(run.scorer.model.img_size),
    )
    run.announce(about, notices)


# ---------------------------------------------------------------- one example


def tell_captions(run: PairTask) -> None:
    """Captions that are cut, or that the model cannot tell apart. Raises ValueError where it can tell none apart."""
    captions, names = zip(*((example.captions, example.id) for example in run.examples), strict=True)
    for notice in models.check_captions(run.source, captions, names):
        print(f"Note: {notice}", flush=True)


def diffusion_matcher(run: PairTask):
    """Loads the model; returns (images, captions) -> record of raw errors, float32 [T,n_trials] a pair, and what config.json
    says of it."""
    import torch

    from diffusion.kernel import blocks

    scorer = run.scorer
    shape = scorer.source.latent_shape(scorer.model.img_size)
    tell_captions(run)
    captions = list(dict.fromkeys(caption for example in run.examples for caption in example.captions))
    row_of, before = {caption: row for row, caption in enumerate(captions)}, run_folder.known_batch_size(run.folder)
    load = partial(models.load, scorer.source, space=scorer.model.error_space)
    likely = models.likely_batch(scorer.source, scorer.model.img_size, run.running.device, scorer.model.dtype)
    network = loop.start_network(load, captions, shape, run.running, scorer.model.dtype, scorer.price, before, likely)
    run.dataset.transform = transforms.sd_transform(scorer.model.img_size, scorer.model.interpolation)
    t, denoiser = torch.from_numpy(scorer.plan.t), network.denoiser
    bank = scorer.noise(0, scorer.plan, shape)

    def match(images, captions):
        x0 = torch.stack([denoiser.encode(image) for image in images])  # [2,C,h,w]
        conditions = network.conditions[[row_of[caption] for caption in captions]]
        errors = blocks.errors(denoiser, x0, conditions, t, bank, scores.l2, network.batch)
        return errors.view(4, -1, scorer.grid.n_trials).unbind()  # [2,2,S], caption by caption

    return match, network.about


def contrastive_matcher(run: PairTask):
    """The same of CLIP or OpenCLIP, whose record holds logits."""
    import torch

    tell_captions(run)
    model = run.source.load(run.running.device)
    run.dataset.transform = model.preprocess

    def match(images, captions):
        logits = model.logits(model.embed_images(torch.stack(images)), model.embed_texts(list(captions)))
        return logits.T.flatten().cpu().unbind()  # caption by caption

    return match, {}


# ---------------------------------------------------------------- the command


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        run = prepare(vars(args))
        announce(run)
        printing.tell_missing(run.dataset, run.source)
    if run.running.dry_run:
        return 0
    with cli.bad_input():
        loop.tell_loading(run.source)
        run.make_ready()
        match, more = (diffusion_matcher if isinstance(run.scorer, Diffusion) else contrastive_matcher)(run)
        run.write_config(**more)
        tracker = tracking.Tracker(run.running.tracker).start(run.options, run.folder.name)

    def work(index, images, example):
        record = dict(zip(PairScores._fields, match(images, example.captions), strict=True))
        return run.save(index, record, run_folder.pair_outcome(record))

    ended = loop.work_through(run.running, run.dataset, run.todo, run.done, work, tracker.progress)
    lines = winoground.lines({i: o.scores for i, o in run.done.items()}, run.examples, run.score_mode)
    ids = [example.id for example in run.examples]
    lines += results.at_end(run.running.results, tracker, ended, run.folder, ids, args.command, run.score_mode)
    return run.close(lines, f"scripts/print_winoground.py {run.folder}", ended)


if __name__ == "__main__":
    sys.exit(loop.run(main))
