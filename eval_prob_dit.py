#!/usr/bin/env python
"""Standard classification with a class-conditional DiT: which class best predicts the noise added to an image?

offline, on the shipped model and images; README.md says what it prints:
  python eval_prob_dit.py --model tiny --dataset fashion_mnist --cls all --imgs_to_eval 100
all of ImageNet's classes with DiT-XL/2 at 256 px (77.5 % in the paper), adaptively:
  python eval_prob_dit.py --dataset imagenet --cls all --to_keep 100 10 1 --n_samples 10 50 250
the published run of one class, for scripts/print_dit_acc.py:
  python eval_prob_dit.py --dataset imagenet --cls 7 --t_interval 4 --noise_path noise_256.pt --randomize_noise --save_vb
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion import cli, session, strategy
from diffusion.datasets import DATASETS

SAVED = ("spatial", "save_eps", "save_eps_and_var", "save_vb")  # what a class's file holds instead of mean squared errors


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    cli.add_selection_options(cli.add_data_options(parser, list(DATASETS)), "the first N images")
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="DiT-XL/2", help="tiny (shipped), or the shape of the weights (default: DiT-XL/2)")
    group.add_argument("--model_path", help="checkpoint or diffusers folder (default: pretrained_models/, downloaded once)")
    group.add_argument("--vae_path", help="VAE folder or hub id (default: the published one's)")
    group.add_argument("--image-size", "--img_size", dest="img_size", type=cli.at_least(1), metavar="PIXELS",
                       help="a side (default: 256, or what a config.json beside the checkpoint says)")  # fmt: skip
    cli.add_network_options(group)
    group = parser.add_argument_group("classes")
    group.add_argument("--cls", type=cli.class_ranges, metavar="CLASSES", help="7, 0-999, 6,11,13 or all (default: all)")
    group.add_argument("--save_per_class", action="store_true", help="published folder a class (as one class always has)")
    for name, what in zip(SAVED, ("error maps", "epsilon predictions", "whole outputs", "mse, l1, KL, NLL"), strict=True):
        group.add_argument(f"--{name}", action="store_true", help=f"per class: {what} instead of squared errors")
    group.add_argument("--save_errors", action="store_true", help="all classes: keep mse, l1, KL, NLL of every evaluation")
    group = parser.add_argument_group("method: a grid of timesteps for every class, or --to_keep with --n_samples")
    group.add_argument("--t_interval", type=int, metavar="N", help="every N-th timestep (default: 4; tiny: 10)")
    group.add_argument("--to_keep", nargs="+", type=int, metavar="K", help="classes that survive each stage, the last 1")
    group.add_argument("--n_samples", nargs="+", type=int, metavar="N", help="timesteps tried up to each stage, 1 to 1000")
    group.add_argument("--loss", choices=["l2", "l1", "kl", "vlb"], default="l2",
                       help="that the prediction goes by; vlb is kl, but nll at t = 0 (default: l2)")  # fmt: skip
    cli.add_noise_options(group)
    cli.add_race_options(parser)
    cli.add_run_options(parser)
    return parser.parse_args(argv)


@dataclass
class Run:
    """What is known before any weights are loaded."""

    dataset: Any
    label_of: dict[int, int]  # class id -> label, of the candidates
    plan: Any
    files: Any
    noise: Any  # [S,C,h,w]
    folders: dict[Any, Path]  # class id -> its folder; None -> that of records of all classes
    identity: dict  # what the numbers depend on
    selected: list[int]  # over all workers
    done: dict[int, tuple]  # outcomes of the images of `selected` whose records exist
    todo: list[int]  # of this worker


# Options that change the numbers or which images a folder is about; the others may differ when a run continues.
IDENTITY = ("dataset", "split", "dtype", "img_size", "t_interval", "n_trials", "to_keep", "n_samples", "seed", "randomize_noise")


def prepare(args) -> Run:
    """Checks every option against the others and the files, cheap things first. Raises ValueError or OSError."""
    from diffusion import models, paths, runlog, schedule, sharding
    from diffusion.datasets import transforms

    cli.resolve_worker(args)
    strategy.resolve_race(args)
    check_combination(args)
    cli.check_network(args)
    if not eliminates(args):
        if args.t_interval is None:
            args.t_interval = 10 if args.model == "tiny" else 4
        plan = schedule.interval_plan(args.t_interval, args.n_trials)
    dataset = cli.open_images(args)
    files = models.find_dit(args.model, args.model_path, args.img_size, args.vae_path)
    label_of = check_classes(args, dataset, files)
    if eliminates(args):
        plan = strategy.make_plan(args, len(label_of))
    args.img_size = files.img_size
    dataset.transform = transforms.adm_transform(args.img_size)
    selected = sharding.select(len(dataset), args.subset_path, args.imgs_to_eval, seed=None)
    bank, noise_identity = cli.open_noise(args, len(plan.t), files.latent_shape)
    identity = (
        {name: getattr(args, name) for name in IDENTITY}
        | strategy.race_identity(args)
        | {
            "images": dataset.fingerprint(),
            "weights": models.dit_identity(files),
            "noise": noise_identity,
            "subset": cli.subset_identity(args, len(dataset)),
            "saved": saved(args),
        }
    )
    classes = list(label_of)
    per_class = args.save_per_class or len(classes) == 1
    if not per_class:
        identity |= {"classes": classes, "loss": args.loss}
    folders = {c: runlog.dit_folder(paths.log_dir(), args, classes, c) for c in (classes if per_class else [None])}
    for c, folder in folders.items():
        runlog.check_config(folder, identity | {"cls": c})
    run = Run(dataset, label_of, plan, files, bank, folders, identity, selected, {}, [])
    run.done = find_done(run)
    run.todo = [i for i in sharding.shard(selected, args.worker_idx, args.n_workers) if i not in run.done]
    return run


def eliminates(args) -> bool:
    """Whether classes are eliminated, rather than all tried on one grid."""
    return bool(args.to_keep) or args.strategy == "race"


def check_combination(args):
    """Raises ValueError for options that exclude each other."""
    chosen = [f"--{name}" for name in SAVED if getattr(args, name)]
    single = args.save_per_class or (args.cls is not None and len(args.cls) == 1)
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} say two things about what a class's file holds: give one of them")
    if chosen and not single:
        raise ValueError(f"{chosen[0]} is for folders of one class: give one --cls, or add --save_per_class")
    adaptive = "--to_keep" if args.to_keep else "--strategy race"
    if single and (eliminates(args) or args.save_errors):
        flag = adaptive if eliminates(args) else "--save_errors"
        raise ValueError(f"{flag} needs several classes in one record: give --cls several, without --save_per_class")
    if bool(args.to_keep) != bool(args.n_samples):
        raise ValueError("--to_keep and --n_samples belong together: give one number of each per stage")
    if eliminates(args) and (args.t_interval is not None or args.save_errors):
        flag = "--t_interval" if args.t_interval is not None else "--save_errors"
        raise ValueError(f"{flag} is for the grid over all classes: leave it out with {adaptive}, which keeps all errors")


def check_classes(args, dataset, files) -> dict[int, int]:
    """Class id -> label of the candidates. Raises ValueError for a class that the dataset or the model lacks."""
    from diffusion import datasets

    label_of = datasets.labels_of_classes(args.dataset, len(dataset.classes))
    known = 1000 if args.dataset.startswith(("imagenet", "objectnet")) else len(label_of)
    if known != files.num_classes:
        raise ValueError(
            f"--dataset {args.dataset} is about {known} classes and the model about {files.num_classes}: they are others, give a "
            "model of these classes with --model_path"
        )
    others = [c for c in args.cls or () if c not in label_of]
    if others:
        raise ValueError(f"--cls {others[0]} is no class of {args.dataset}, which has {len(label_of)} from {min(label_of)} to "
                         f"{max(label_of)}")  # fmt: skip
    return {c: label for c, label in label_of.items() if args.cls is None or c in args.cls}


def saved(args) -> str:
    """What a record holds, as a name."""
    return next((name for name in (*SAVED, "save_errors") if getattr(args, name)), "sums")


def record_paths(run, index: int) -> dict[Any, Path]:
    """Class id (None: all of them) -> the file of this image; names are not padded, as published."""
    return {c: folder / f"{index}.pt" for c, folder in run.folders.items()}


def find_done(run) -> dict[int, tuple]:
    """Outcomes of the selected images whose every record exists and can be read."""
    from diffusion import runlog

    if None in run.folders:
        return runlog.load_outcomes({i: record_paths(run, i)[None] for i in run.selected})
    whole = (i for i in run.selected if not missing(run, i))
    return {i: per_class_outcome(run, int(run.dataset.labels[i])) for i in whole}


def missing(run, index: int) -> list[int]:
    """Classes without a readable record of this image."""
    from diffusion import runlog

    return [c for c, path in record_paths(run, index).items() if not path.exists() or runlog.load_errors(path) is None]


def per_class_outcome(run, label: int):
    from diffusion import runlog

    return runlog.Outcome(label, None, len(run.folders) * len(run.plan.t))


# ---------------------------------------------------------------- one image


def bound_terms(denoiser, x0):
    """A score for the kernel: the four numbers of every evaluation of this latent, [B,4]."""
    return lambda noise, output, x_t, t: denoiser.terms(x0.expand_as(noise), x_t, t, noise, output)


def classify(args, run, network, image, label) -> dict:
    """The record of an image over all classes. Raises FloatingPointError when an error is not finite."""
    import torch

    from diffusion import elimination, kernel, runlog, scores

    denoiser, conds, batch = network
    x0, t = denoiser.encode(image), torch.from_numpy(run.plan.t)
    kept, score = [], bound_terms(denoiser, x0)

    def evaluate(rows, pairs):
        kept.append(kernel.epsilon_errors(denoiser, x0, conds[rows], t[pairs], run.noise[pairs], score, batch))
        return scores.pick_term(args.loss, kept[-1], t[pairs])

    classes, labels = list(run.label_of), list(run.label_of.values())
    if eliminates(args):
        errors, winner, about = strategy.eliminate(args, evaluate, labels, run.plan)
        return runlog.staged_record(classes, errors, t, labels[winner], label, **about)
    _, winner = elimination.run_stages(evaluate, len(conds), run.plan.stages, [1])
    terms = kept[0].double()  # [K,S,4]
    record = {"classes": torch.tensor(classes), "t": t, "sums": terms.sum(1), "squares": terms.square().sum(1)}
    return record | ({"terms": kept[0]} if args.save_errors else {}) | {"pred": labels[winner], "label": label}


def errors_of_class(args, run, network, x0, cond):
    """One class's errors, or what was asked for instead, float32 [T,n_trials,...]; FloatingPointError when not finite."""
    import torch

    from diffusion import kernel, scores

    score = {
        "sums": scores.l2,
        "spatial": scores.error_map,
        "save_eps": scores.epsilon,
        "save_eps_and_var": scores.whole_output,
        "save_vb": bound_terms(network.denoiser, x0),
    }[saved(args)]
    t = torch.from_numpy(run.plan.t)
    errors = kernel.epsilon_errors(network.denoiser, x0, cond, t, run.noise, score, network.batch)[0]
    return errors.unflatten(0, (-1, args.n_trials))


# ---------------------------------------------------------------- the command


def announce(args, run):
    from diffusion import schedule

    n = len(run.label_of)
    options = vars(args) | {"cls": f"{n} of {run.files.num_classes}"}
    labels = run.dataset.labels[run.selected].tolist()
    partial = f"these first {len(labels)} images hold {len(set(labels))} of {len(run.dataset.classes)} classes"
    candidates = set(run.label_of.values())
    lost = sum(label not in candidates for label in labels)
    notices = (
        run.dataset.notice,
        partial if args.imgs_to_eval and len(set(labels)) < len(run.dataset.classes) else None,
        f"{lost} of {len(labels)} images are of none of the chosen classes and count as wrong" if lost and n > 1 else None,
        schedule.coverage_notice(args.n_samples or [args.max_samples]) if eliminates(args) else None,
    )
    folder = next(iter(run.folders.values()))
    more = f" and {len(run.folders) - 1} more" if len(run.folders) > 1 else ""
    about = {"weights": run.files.path or f"{run.files.file} (published)"}
    counts = (len(run.todo), len(run.done), len(run.selected))
    cli.announce(options, about, notices, f"{folder}{more}", counts, strategy.price(args, run.plan, n))


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        run = prepare(args)
    announce(args, run)
    if args.dry_run:
        return 0

    from diffusion import models, runlog

    def load():
        return models.load_dit(run.files, args.dtype, args.device, args.compile)

    with cli.bad_input():
        useful, _ = strategy.price(args, run.plan, len(run.label_of))
        folder = next(iter(run.folders.values()))
        network = session.start_network(args, load, list(run.label_of), run.files.latent_shape, folder, useful)
        labels = list(run.label_of.values())
        names = [run.dataset.classes[label] for label in labels]
        config = runlog.describe(run.identity, args, len(run.selected), labels, names)
        for c, folder in run.folders.items() if session.team().leads else ():
            runlog.write_config(folder, config | {"identity": run.identity | {"cls": c}})

    def work(index, image, label):
        """All classes in one record."""
        start = time.perf_counter()
        record = classify(args, run, network, image, label)
        record["seconds"] = time.perf_counter() - start
        runlog.save_record(record_paths(run, index)[None], record)
        run.done[index] = runlog.outcome(record)
        return run.done[index]

    def work_per_class(index, image, label):
        x0, lacking, classes = network.denoiser.encode(image), missing(run, index), list(run.label_of)
        for c in lacking:
            errors = errors_of_class(args, run, network, x0, network.conds[[classes.index(c)]])
            runlog.save_record(record_paths(run, index)[c], errors)
        run.done[index] = per_class_outcome(run, label)
        return run.done[index]._replace(evaluations=len(lacking) * len(run.plan.t))

    per_class = None not in run.folders
    ended = session.work_through(args, run.dataset, run.todo, run.done, work_per_class if per_class else work)
    lines = [] if per_class else session.accuracy_lines(run.done.values())
    return session.close(lines, run.done, f"scripts/print_dit_acc.py {report_arguments(args, run)}", *ended)


def report_arguments(args, run) -> str:
    """What scripts/print_dit_acc.py is to be called with: the run folder, or all class folders and where labels come from."""
    if None in run.folders:
        return str(run.folders[None])
    c, folder = next(iter(run.folders.items()))
    pattern = str(folder.parent if folder.name == args.split else folder).replace(f"_cls{c}_", "_cls*_")
    named = {
        name: getattr(args, name) for name in ("dataset", "split", "data_dir", "config_name", "image_column", "label_column")
    }
    given = {
        name: value
        for name, value in named.items()
        if value and (name, value) not in (("split", "test"), ("data_dir", "datasets"))
    }
    return " ".join([pattern, *(f"--{name} {value}" for name, value in given.items())])


if __name__ == "__main__":
    sys.exit(session.run(main))
