#!/usr/bin/env python
"""Standard classification with a class-conditional DiT: which class best predicts the noise added to an image?

offline, on the shipped model and images; docs/dit.md says what it prints:
  python eval_prob_dit.py --model tiny --dataset fashion_mnist --cls all --imgs_to_eval 100
all of ImageNet's classes with DiT-XL/2 at 256 px (77.5 % in the paper), adaptively:
  python eval_prob_dit.py --dataset imagenet --cls all --to_keep 100 10 1 --n_samples 10 50 250
the published run of one class, for scripts/print_dit_acc.py:
  python eval_prob_dit.py --dataset imagenet --cls 7 --t_interval 4 --noise_path noise_256.pt --randomize_noise --save_vb
"""

import sys

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

import os
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from diffusion import classify, cli, datasets, models, settings, strategy
from diffusion.analysis import results
from diffusion.cli import parsing
from diffusion.datasets import DATASETS, transforms
from diffusion.kernel import noise, scores
from diffusion.models.families import custom
from diffusion.runs import few_levels, loop, printing, run_folder, schema, sharding, tracking
from diffusion.runs.task import Task
from diffusion.strategy.level_weights import LevelWeights, belonging
from diffusion.strategy.method import Method
from diffusion.utils import paths

# what a class's file holds instead of mean squared errors, and how its folder's name ends
SAVED = {"spatial": "_spatial", "save_eps": "_eps", "save_eps_and_var": "_epsvar", "save_vb": ""}


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    cli.add_selection_options(cli.add_data_options(parser, list(DATASETS)), "the first N images")
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="DiT-XL/2", help="tiny (shipped), or the shape of the weights (default: DiT-XL/2)")
    group.add_argument("--model_path", help="checkpoint or diffusers folder (default: pretrained_models/, downloaded once)")
    group.add_argument("--vae_path", help="VAE folder or hub id (default: the published one's)")
    group.add_argument("--image-size", "--img_size", dest="img_size", type=parsing.at_least(1), metavar="PIXELS",
                       help="image size (default: 256, or what the config.json next to the checkpoint says)")  # fmt: skip
    cli.add_error_space(group)
    cli.add_network_options(group)
    group = parser.add_argument_group("classes")
    group.add_argument("--cls", type=parsing.class_ranges, metavar="CLASSES", help="7, 0-999, 6,11,13 or all (default: all)")
    group.add_argument("--save_per_class", action="store_true", help="a published folder per class (as one class always has)")
    for name, what in zip(SAVED, ("error maps", "epsilon predictions", "whole outputs", "mse, l1, KL, NLL"), strict=True):
        group.add_argument(f"--{name}", action="store_true", help=f"per class: {what} instead of squared errors")
    group.add_argument("--save_errors", action="store_true", help="all classes: keep mse, l1, KL, NLL of every evaluation")
    group = parser.add_argument_group("method: a grid of timesteps for every class, or a strategy that drops classes")
    group.add_argument("--t_interval", type=int, metavar="N", help="every N-th timestep (default: 4; tiny: 10)")
    group.add_argument("--loss", choices=list(scores.TERMS), default="l2",
                       help="error that decides the prediction; vlb: kl, and nll at t = 0 (default: l2)")  # fmt: skip
    cli.add_level_weights(group)
    cli.add_ablation_options(group)
    cli.add_noise_options(group)
    cli.add_strategy_options(parser, None, "stages where --to_keep is given, else the grid")
    cli.add_run_options(parser, several=True)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class ClassTask(Task):
    """Images and the model's classes that compete for each, in one folder or in one of each class."""

    command = "eval_prob_dit"

    data: settings.Data
    selection: settings.Selection
    model: settings.ClassConditional
    bank: settings.GridNoise
    running: settings.Running
    strategy: strategy.Strategy
    level_weights: LevelWeights | None
    ablation: settings.Ablation
    kept: dict  # options on classes, and what a record holds
    dataset: Any
    source: Any  # of the weights
    label_of: dict[int, int]  # class id -> label, of the candidates
    noise: Any  # a source of noise

    @property
    def method(self) -> Method:
        return Method(self.strategy, self.loss, self.level_weights, self.ablation)

    @cached_property
    def plan(self):
        return self.strategy.plan(self.source.n_levels)

    @property
    def price(self) -> int:
        return self.strategy.price(self.plan, len(self.label_of)) + self.ablation.guided * len(self.plan.t)

    @property
    def loss(self) -> str:
        return self.kept["loss"]

    @property
    def saved(self) -> str:
        """What a record holds, as a name."""
        usual = "sums" if self.source.learned_variance or self.per_class else "errors"
        return next((name for name in (*SAVED, "save_errors") if self.kept[name]), usual)

    @property
    def per_class(self) -> bool:
        """Whether every class has a folder of its own."""
        return self.kept["save_per_class"] or len(self.label_of) == 1

    @cached_property
    def folders(self) -> dict[Any, Path]:
        """Class id -> its folder; None -> that of records of all classes."""
        return {c: self.folder_of(c) for c in (self.label_of if self.per_class else [None])}

    def folder_of(self, c: int | None) -> Path:
        """A grid keeps all four numbers, whichever loss is asked for, so only other strategies name it."""
        classes = f"{len(self.label_of)}classes" if c is None else f"cls{c}"
        named = self.loss != "l2" and not (isinstance(self.strategy, strategy.Grid) and self.source.learned_variance)
        method = self.strategy.folder() + (f"_{self.loss}" if named else "")
        ending = ("_randnoise" if self.bank.randomize_noise else "") + SAVED.get(self.saved, "")
        ending += f"_{self.model.error_space}" if self.model.error_space else ""
        ending += (f"_{self.level_weights.name}" if self.level_weights else "") + self.ablation.name
        path, size = self.model.model_path, self.model.img_size
        name = custom.name_of(path) if custom.is_python_file(path) else "DiT"

        def make(dataset: str) -> Path:
            named = (self.data.split, self.running.extra, name, size, classes, method, ending)
            return run_folder.dit_folder(paths.log_dir(), dataset, *named)

        return run_folder.continued(make, datasets.name_of(self.data), self.data.dataset, lambda: self.identity | {"cls": c})

    @property
    def folder(self) -> Path:
        return next(iter(self.folders.values()))

    def identity_in(self, c: int | None) -> dict:
        return self.identity | {"cls": c}

    @property
    def kind(self) -> str:
        return run_folder.ONE_CLASS if self.per_class else run_folder.CLASSIFICATION

    @cached_property
    def identity(self) -> dict:
        """What the numbers depend on, and which images a folder is about."""
        hashes = {
            "images": self.dataset.fingerprint(),
            "weights": self.source.identity(),
            "noise": self.noise.identity(),
            "subset": sharding.subset_identity(self.selection.subset_path, len(self.dataset)),
        }
        method = {"seed": self.bank.seed, "randomize_noise": self.bank.randomize_noise, "saved": self.saved}
        several = {} if self.per_class else {"classes": list(self.label_of), "loss": self.loss}
        several |= {"level_weights": self.level_weights.identity} if self.level_weights else {}
        several |= self.ablation.identity()
        return self.data.identity() | self.model.identity() | self.strategy.identity() | method | hashes | several

    @property
    def options(self) -> dict:
        """All of them, resolved."""
        parts = (self.data, self.selection, self.model, self.bank, self.ablation, self.strategy, self.running)
        return settings.options_of(*parts) | self.kept | {"strategy": self.strategy.NAME}

    @cached_property
    def selected(self) -> list[int]:
        """Indices of the images, over all workers."""
        return sharding.select(len(self.dataset), self.selection.subset_path, self.selection.imgs_to_eval, seed=None)

    def read_records(self) -> dict[int, run_folder.Outcome]:
        """Outcomes of the selected images whose every record exists and can be read."""
        if not self.per_class:
            partial = not self.strategy.TRIES_ALL
            wanted = schema.Wanted(list(self.label_of), list(self.label_of.values()), self.plan.t, partial)
            paths, labels = {i: self.record_path(i) for i in self.selected}, self.dataset.labels
            return run_folder.load_outcomes(paths, lambda i, record: wanted.check(record, int(labels[i])), self.unreadable)
        whole = (i for i in self.selected if not self.missing(i))
        return {i: self.per_class_outcome(int(self.dataset.labels[i])) for i in whole}

    def record_path(self, index: int, c: int | None = None) -> Path:
        """The file of an image; c: class whose folder it is in, where each has one. Names are not padded, as published."""
        return self.folders[c] / f"{index}.pt"

    def record_paths(self, index: int) -> list[Path]:
        return [self.record_path(index, c) for c in self.folders]

    def missing(self, index: int) -> list[int]:
        """Classes without a readable record of this image."""
        return [c for c in self.folders if not self.is_whole(c, self.record_path(index, c))]

    def is_whole(self, c: int, path: Path) -> bool:
        """Whether the file of a class exists and holds what this run keeps of an image."""
        latent = self.source.latent_shape(self.model.img_size)
        kept = {"spatial": latent[1:], "save_eps": latent, "save_eps_and_var": (2 * latent[0], *latent[1:]), "save_vb": (4,)}
        shape = (len(self.plan.t) // self.strategy.n_trials, self.strategy.n_trials, *kept.get(self.saved, ()))
        problems = []
        whole = os.path.lexists(path) and run_folder.load_errors(path, shape, problems) is not None
        self.unreadable.extend(f"class {c}: {problem}" for problem in problems)
        return whole

    def per_class_outcome(self, label: int) -> run_folder.Outcome:
        return run_folder.Outcome(label, None, len(self.folders) * len(self.plan.t))


def prepare(options: dict) -> ClassTask:
    """Checks every option against the others and the files, cheap things first. Raises ValueError or OSError."""
    data, running, bank = cli.data_of(options), cli.running_of(options), cli.grid_noise_of(options)
    selection, chosen = settings.pick(settings.Selection, options), choose_method(options)
    weights, ablation = cli.level_weights_of(options), cli.ablation_of(options)
    if isinstance(chosen, strategy.Grid):
        cli.refuse_idle(options, ["images_in_flight"], "with a grid, whose network calls are full with one image")
        running = replace(running, images_in_flight=None)
    dataset = datasets.open_images(data, running.dry_run)
    dtype = cli.dtype_of(options, running)
    where = (options["model_path"], options["img_size"], options["vae_path"], running.device, dtype, running.dry_run)
    source = models.class_conditional(options["model"], *where)
    check_terms(options, source, chosen)
    chosen = cli.fitted(options, chosen, source.n_levels)
    label_of = check_classes(options["cls"], data.dataset, dataset, source)
    size, n_trials = source.default_size, getattr(chosen, "n_trials", 1)
    shape = source.latent_shape(size)
    ablation.check(shape)
    classify.with_empty(label_of, source.null_class, ablation)
    cli.check_pairs(n_trials, 1, len(label_of), shape)
    chosen.check(len(label_of), source.n_levels)
    path = options["model_path"]
    name = custom.name_of(path) if custom.is_python_file(path) else options["model"]
    space = options["error_space"] if options["error_space"] != source.space else None
    model = settings.pick(settings.ClassConditional, options, model=name, dtype=dtype, img_size=size, error_space=space)
    dataset.transform = transforms.adm_transform(size)
    n_pairs = len(chosen.plan(source.n_levels).t)
    cli.check_pairs(n_trials, n_pairs // n_trials, len(label_of), shape)
    rows = noise.grid_noise(bank.seed, bank.noise_path, n_pairs, shape, size, bank.by_position)
    kept = {name: options[name] for name in ("cls", "save_per_class", "save_errors", *SAVED, "loss", "level_weights")}
    run = ClassTask(data, selection, model, bank, running, chosen, weights, ablation, kept, dataset, source, label_of, rows)
    if run.per_class:
        cli.refuse_idle(options, ["results"], "with a folder per class, which holds errors and no prediction")
    models.check_memory(source, size, running.device, model.dtype, running.batch_size, run.price)
    if run.incomplete:
        return run
    if weights:
        weights.check(belonging(run.identity, run.loss, source.n_levels, model.error_space or source.space))
    run = replace(run, noise=noise.shaped(noise.continued(rows, run_folder.noise_of(run.folder)), ablation.kind))
    chosen.check_run(run.identity, len(label_of), list(label_of.values()))
    run.check_folders()
    return run


def choose_method(options: dict) -> strategy.Strategy:
    """The strategy. Raises ValueError for options that exclude each other."""
    kept = [f"--{name}" for name in SAVED if options[name]]
    single = options["save_per_class"] or (options["cls"] is not None and len(options["cls"]) == 1)
    if single:
        cli.refuse_idle(options, ["loss", "level_weights"], "with a folder per class, which holds errors and no prediction")
        cli.refuse_idle(
            options, ["guidance", "crop_errors", "noise"], "with a folder per class, as its files are the published ones"
        )
    if len(kept) > 1:
        raise ValueError(f"{' and '.join(kept)} contradict each other about what a class's file holds: give one of them")
    if kept and not single:
        raise ValueError(f"{kept[0]} is for folders of one class: give one --cls, or add --save_per_class")
    if bool(options["to_keep"]) != bool(options["n_samples"]):
        raise ValueError("--to_keep and --n_samples belong together: give one number of each per stage")
    chosen = choose_strategy(options)
    if not isinstance(chosen, strategy.Grid):
        check_elimination(options, single)
    elif single and options["save_errors"]:
        raise ValueError("--save_errors needs several classes in one record: give --cls several, without --save_per_class")
    return chosen


def choose_strategy(options: dict) -> strategy.Strategy:
    """That of --strategy, stages where they are given, else the grid. Raises ValueError for options of another one."""
    name = options["strategy"] or ("stages" if options["to_keep"] else None)
    if name:
        return strategy.from_options(name, options)
    strategy.from_options("stages", options)  # which tells of options that are none of the grid's either
    interval = options["t_interval"]
    if interval is None:
        interval = 10 if options["model"] == "tiny" else 4
    return strategy.Grid(interval, options["n_trials"] or 1)


def check_terms(options: dict, source, chosen) -> None:
    """Raises ValueError for numbers of the variational bound where a model has no learned variance, and for level weights where
    a record would hold sums over levels."""
    if source.learned_variance:
        if options["error_space"] not in (None, source.space):
            what = f"the variance of {source.file} is learned, and its errors are of {source.space} only"
            raise ValueError(f"--error_space {options['error_space']}: {what}")
        if options["level_weights"] and isinstance(chosen, strategy.Grid) and not options["save_errors"]:
            raise ValueError("--level_weights with the grid needs --save_errors: sums do not say which class wins by weights")
        return
    if options["loss"] not in scores.SCORES:
        raise ValueError(f"--loss {options['loss']} needs a learned variance, which {source.file} has not: take l2 or l1")
    flag = next((name for name in ("save_vb", "save_errors") if options[name]), None)
    if flag:
        raise ValueError(f"--{flag} keeps numbers of a learned variance, which {source.file} has not: its errors are kept anyway")


def check_elimination(options: dict, single: bool) -> None:
    """Raises ValueError for what does not go with a strategy that drops classes."""
    named = "--to_keep" if options["to_keep"] else f"--strategy {options['strategy']}"
    if single:
        raise ValueError(f"{named} needs several classes in one record: give --cls several, without --save_per_class")
    if options["t_interval"] is not None or options["save_errors"]:
        flag = "--t_interval" if options["t_interval"] is not None else "--save_errors"
        raise ValueError(f"{flag} is for the grid over all classes: leave it out with {named}, which keeps all errors")


def check_classes(chosen: list[int] | None, name: str, dataset, source) -> dict[int, int]:
    """Class id -> label of the candidates. Raises ValueError for a class that the dataset or the model lacks."""
    label_of = datasets.labels_of_classes(name, len(dataset.classes))
    known = 1000 if name.startswith(("imagenet", "objectnet")) else len(label_of)
    n_own = source.num_classes or known
    if known > n_own or (known < n_own and chosen is None):
        few = f", or --cls 0-{known - 1} where they are the model's first" if known < n_own else ""
        raise ValueError(
            f"--dataset {name} is about {known} classes and the model about {n_own}: they are others, give a "
            f"model of these classes with --model_path{few}"
        )
    others = [c for c in chosen or () if c not in label_of]
    if others:
        raise ValueError(f"--cls {others[0]} is no class of {name}, which has {len(label_of)} from {min(label_of)} to "
                         f"{max(label_of)}")  # fmt: skip
    return {c: label for c, label in label_of.items() if chosen is None or c in chosen}


# ---------------------------------------------------------------- one image


def errors_of_class(run: ClassTask, network, x0, c: int):
    """One class's errors, or what was asked for instead, float32 [T,n_trials,...]; FloatingPointError when not finite."""
    import torch

    from diffusion.kernel import blocks

    score = {
        "sums": scores.l2,
        "spatial": scores.error_map,
        "save_eps": scores.prediction,
        "save_eps_and_var": scores.whole_output,
        "save_vb": scores.bound_terms(network.denoiser, x0),
    }[run.saved]
    row, t = list(run.label_of).index(c), torch.from_numpy(run.plan.t)
    bank = run.noise(0, run.plan, x0.shape)
    errors = blocks.errors(network.denoiser, x0, network.conditions[[row]], t, bank, score, network.batch)[0]
    return errors.unflatten(0, (-1, run.strategy.n_trials))


# ---------------------------------------------------------------- the command


def notices_of_labels(run: ClassTask) -> list[str]:
    """What is to be said of the classes of the selected images."""
    labels, candidates = run.dataset.labels[run.selected].tolist(), set(run.label_of.values())
    n_present, n_classes = len(set(labels)), len(run.dataset.classes)
    partial = run.options["imgs_to_eval"] and n_present < n_classes
    notices = [f"the first {len(labels)} images cover {n_present} of {n_classes} classes"] if partial else []
    lost = sum(label not in candidates for label in labels)
    message = f"{lost} of {len(labels)} images belong to none of the chosen classes and count as wrong"
    return notices + ([message] if lost and len(run.label_of) > 1 else [])


def announce(run: ClassTask):
    usual = run.strategy.usual(len(run.label_of))
    notices = (
        run.dataset.notice,
        *([] if run.dataset.missing else notices_of_labels(run)),
        run.strategy.notice(run.source.n_levels),
        run.source.notice(),
        run.slow(run.model.img_size, usual),
    )
    shown = {"cls": f"{len(run.label_of)} of {run.source.num_classes or len(run.dataset.classes)}"}
    run.announce({"weights": run.source.describe()}, notices, shown, at_most=run.strategy.AT_MOST, usual=usual)


def start(run: ClassTask):
    """Loads the weights, embeds the classes and writes config.json into every folder."""
    loop.tell_loading(run.source)
    run.make_ready()
    before, shape = run_folder.known_batch_size(run.folder), run.source.latent_shape(run.model.img_size)
    embedded = classify.with_empty(run.label_of, run.source.null_class, run.ablation)
    load = partial(models.load, run.source, space=run.model.error_space)
    likely = models.likely_batch(run.source, run.model.img_size, run.running.device, run.model.dtype)
    network = loop.start_network(load, embedded, shape, run.running, run.model.dtype, run.price, before, likely)
    labels = list(run.label_of.values())
    candidates = {"labels": labels, "names": [run.dataset.classes[label] for label in labels]}
    weights = run.level_weights and run.level_weights.as_json()
    run.write_config(**network.about, candidates=candidates, level_weights=weights, partial=not run.strategy.TRIES_ALL or None)
    return network


def record_of(run: ClassTask, result, label: int) -> dict:
    """The record of an image over all classes."""
    classes = list(run.label_of)
    if isinstance(run.strategy, strategy.Grid) and run.source.learned_variance:
        return run_folder.sums_of(result, classes, label, with_terms=run.saved == "save_errors")
    return run_folder.record_of(result, classes, label)


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        run = prepare(vars(args))
        announce(run)
        printing.tell_missing(run.dataset, run.source)
    if run.running.dry_run:
        return 0
    with cli.bad_input():
        network = start(run)
        labels = list(run.label_of.values())
        classifier = classify.Classifier(network.denoiser, network.conditions, labels, run.method, run.noise, network.batch)
        tracker = tracking.Tracker(run.running.tracker).start(run.options, run.folder.name)

    watch = few_levels.Watch(run.source.n_levels)

    def work(index, result, label):
        """All classes in one record."""
        watch.add(result.compared, result.winner, result.t)
        record = record_of(run, result, label)
        return run.save(index, record, run_folder.outcome(record))

    def work_per_class(index, image, label):
        x0, lacking = network.denoiser.encode(image), run.missing(index)
        for c in lacking:
            run_folder.save_record(run.record_path(index, c), errors_of_class(run, network, x0, c))
        run.done[index] = run.per_class_outcome(label)
        return run.done[index]._replace(evaluations=len(lacking) * len(run.plan.t))

    each, *through = (work_per_class,) if run.per_class else (work, partial(classifier.several, n=network.in_flight))
    ended = loop.work_through(run.running, run.dataset, run.todo, run.done, each, tracker.progress, *through)
    lines = [] if run.per_class else loop.accuracy_lines(run.done.values())
    lines += results.at_end(run.running.results, tracker, ended, run.folders.get(None), run.selected, args.command)
    report = "print_dit_acc" if run.source.learned_variance else "print_acc"
    return run.close(lines, f"scripts/{report}.py {report_arguments(run)}", ended)


def report_arguments(run: ClassTask) -> str:
    """What scripts/print_dit_acc.py is to be called with: the run folder, or all class folders and where labels come from."""
    if not run.per_class:
        return str(run.folders[None])
    c, folder = next(iter(run.folders.items()))
    pattern = str(folder.parent if folder.name == run.data.split else folder).replace(f"_cls{c}_", "_cls*_")
    names = ("dataset", "split", "data_dir", *datasets.MORE)
    usual = (("split", "test"), ("data_dir", "datasets"))
    given = {name: value for name in names if (value := getattr(run.data, name)) and (name, value) not in usual}
    return " ".join([pattern, *(f"--{name}" if value is True else f"--{name} {value}" for name, value in given.items())])


if __name__ == "__main__":
    sys.exit(loop.run(main))
