"""What the commands share: option groups with checked types, one-line errors, progress, and stopping between images."""

import argparse
import contextlib
import math
import os
import signal
import sys
import time
import warnings
from typing import Any, NamedTuple

from diffusion.team import lost_contact, team

LOSSES = ("l2", "l1", "huber")


class Parser(argparse.ArgumentParser):
    """argparse with the module docstring as it stands, and errors of one line."""

    def __init__(self, doc: str):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        team().follow()
        sys.exit(fail(message))


def fail(message: object) -> int:
    """Prints one line for the person at the shell and returns the exit code of bad input."""
    crew = team()
    who = "" if crew.leads else f"rank {crew.rank}: "
    print(f"error: {who}{' '.join(str(message).split())}", file=sys.stderr, flush=True)
    crew.refuse()
    return 2


@contextlib.contextmanager
def bad_input():
    """Inside it, ValueError and OSError mean that the input is wrong: one line, exit code 2.

    Of torchrun's processes rank 0 goes first: it downloads for all, and tells for all what is wrong.
    """
    team().follow()
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(fail(error))
    team().passed()


def at_least(low: int):
    """An argparse type: an integer not below `low`."""

    def integer(text):
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"must be {low} or more, not {text}")
        return int(text)

    return integer


def batch_size(text: str) -> int | str:
    """An argparse type: `auto` or an integer above 0."""
    return text if text == "auto" else at_least(1)(text)


def class_ranges(text: str) -> list[int] | None:
    """An argparse type: `0-999`, `6,11,13` or a mixture, ascending and without repetition; None for `all`."""
    if text == "all":
        return None
    try:
        parts = [[int(n) for n in part.split("-")] for part in text.split(",")]
        chosen = {i for part in parts for i in range(part[0], part[-1] + 1)}
        if any(len(part) > 2 or part[0] > part[-1] for part in parts):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of classes: write 7, 0-999, 6,11,13 or all") from None
    return sorted(chosen)


# ---------------------------------------------------------------- option groups


def add_data_options(parser, datasets, required=True):
    """Which dataset; returns the group."""
    group = parser.add_argument_group("images")
    group.add_argument("--dataset", required=required, choices=datasets, metavar="NAME", help=f"one of: {', '.join(datasets)}")
    group.add_argument("--split", default="test", help="test, train, or a split of an hf dataset (default: test)")
    group.add_argument(
        "--data_dir",
        help="folder of all datasets (default: $DATASET_ROOT, else ./datasets); for `folder` the image folder itself, one "
        "sub-folder a class; for `hf` a hub name or a local copy",
    )
    group.add_argument("--download", action="store_true", help="fetch a missing dataset where torchvision can")
    group.add_argument("--config_name", help="configuration of an hf dataset that has several")
    group.add_argument("--image_column", help="image column of an hf dataset (default: found by type)")
    group.add_argument("--label_column", help="label column of an hf dataset (default: found by type, then by name)")
    return group


def add_selection_options(group, which="a seeded choice of N images; a larger N adds to it"):
    """Which of the dataset's images; `which` says what --imgs_to_eval takes."""
    group.add_argument("--subset_path", help=".npy file of the indices to evaluate (scripts/write_subset.py)")
    group.add_argument("--imgs_to_eval", type=at_least(1), metavar="N", help=which)


def add_sd_options(parser):
    group = parser.add_argument_group("model")
    group.add_argument("--version", default="2-0", help="1-1 ... 1-5, 2-0, 2-1, tiny, or any with --model_path (default: 2-0)")
    group.add_argument("--model_path", help="local pipeline folder or hub id in place of the version's weights")
    add_network_options(group)


def add_network_options(group):
    """How a network runs, whichever it is."""
    group.add_argument("--dtype", default="auto", choices=["auto", "float16", "bfloat16", "float32"],
                       help="of the network; errors are float32 (default: auto: float16 on CUDA, else float32)")  # fmt: skip
    group.add_argument("--device", help="default: cuda if there is one, else cpu")
    group.add_argument("--batch_size", "-b", type=batch_size, default=32, metavar="N", help="network inputs per call; auto: as "
                       "many as fit, on a CPU as many as its caches like (default: 32)")  # fmt: skip
    group.add_argument("--compile", action="store_true", help="torch.compile: minutes at the start, faster evaluations on a GPU")


def add_noise_options(group):
    """A grid's noise, which all images share."""
    group.add_argument("--n_trials", type=at_least(1), default=1, help="noises per timestep (default: 1)")
    group.add_argument("--noise_path", help="noise bank (scripts/save_noise.py; default: seeded); all images share it")
    group.add_argument(
        "--randomize_noise",
        action="store_true",
        help="sample i takes row i of --noise_path; without it, as published, its row is its position in the batch, so that "
        "--batch_size changes results",
    )


def open_noise(args, n: int, latent_shape):
    """The noise of n samples [n,C,h,w] that the noise options ask for, and its identity.

    Raises ValueError for a file that does not fit.
    """
    from diffusion import noise, runlog

    if args.noise_path and not args.randomize_noise and args.batch_size == "auto":
        raise ValueError("--noise_path without --randomize_noise goes by the position in the batch: give --batch_size a number")
    by_position = None if args.randomize_noise else args.batch_size
    bank = noise.shared_noise(args.noise_path, n, latent_shape, args.img_size, args.seed, by_position)
    return bank, runlog.fingerprint(bank.numpy().tobytes()) if args.noise_path else "seeded"


RACE = {"alpha": 0.05, "min_samples": 10, "round_size": 5, "max_samples": 250}  # defaults of the race's options
ROUND_EVALUATIONS = 32  # a race's round has at least as many, so that a device's batch stays full when few candidates are left


def add_race_options(parser):
    """How candidates are eliminated."""
    group = parser.add_argument_group("strategy")
    group.add_argument("--strategy", default="stages", choices=["stages", "race"], help="stages: the published one; race: a "
                       "candidate falls as soon as it is significantly worse than the best (default: stages)")  # fmt: skip
    group.add_argument("--alpha", type=float, help="race: level of a round's tests against the best (default: 0.05)")
    group.add_argument("--min_samples", type=at_least(2), metavar="N", help="race: pairs before the first may fall (default: 10)")
    group.add_argument("--round_size", type=at_least(1), metavar="N", help="race: pairs a later round, at least (default: 5)")
    group.add_argument("--max_samples", type=at_least(2), metavar="N", help="race: timesteps at most, to 1000 (default: 250)")


def resolve_race(args) -> None:
    """Fills in the race's options. Raises ValueError for those of the other strategy and for impossible ones."""
    given = [f"--{name}" for name in RACE if getattr(args, name) is not None]
    if args.strategy == "stages":
        if given:
            raise ValueError(f"{given[0]} is for --strategy race: add that, or leave it out")
        return
    if args.to_keep or args.n_samples:
        raise ValueError("--to_keep and --n_samples are for --strategy stages: leave them out, or leave out --strategy race")
    for name, default in RACE.items():
        setattr(args, name, default if getattr(args, name) is None else getattr(args, name))
    race_rule(args)
    if not args.min_samples <= args.max_samples * args.n_trials or args.max_samples > 1000:
        raise ValueError(f"--min_samples {args.min_samples} must not exceed --max_samples {args.max_samples}, nor that 1000")


def race_rule(args):
    """The Race of these options. Raises ValueError for an impossible one."""
    from diffusion.elimination import Race

    return Race(args.alpha, args.min_samples, args.round_size, ROUND_EVALUATIONS)


def race_identity(args) -> dict:
    """What the numbers of a race depend on; nothing for stages, whose folders are older than the option."""
    return {name: getattr(args, name) for name in ("strategy", *RACE)} if args.strategy == "race" else {}


def make_plan(args, n_candidates: int):
    """The Plan of the strategy. Raises ValueError for stages that cannot be run."""
    from diffusion import schedule

    if args.strategy == "race":
        return schedule.race_plan(args.max_samples, args.n_trials)
    schedule.check_stages(args.to_keep, args.n_samples, n_candidates)
    return schedule.make_plan(args.n_samples, args.n_trials)


def price(args, plan, n_candidates: int) -> tuple[int, int]:
    """Network evaluations an image, of a race at most; and how many of them are at --prune_img_size."""
    from diffusion import schedule

    to_keep = args.to_keep or [1]
    total = schedule.count_evaluations(plan, n_candidates, to_keep)
    if not getattr(args, "prune_img_size", None):
        return total, 0
    again = to_keep[-2] * plan.stages[-1].start  # what survives is evaluated in full on the pairs of all stages
    return total + again, total - to_keep[-2] * (plan.stages[-1].stop - plan.stages[-1].start)


def eliminate(args, evaluate, class_of: list[int], plan, small=None) -> tuple[dict, int, dict]:
    """Runs the strategy: every row's errors, the winning row, and what else a record says of it.

    small: evaluate on a smaller image, for all stages but the last; what fell there is "pruned". Of a race: "fell".
    """
    from diffusion import elimination

    if small:
        errors, winner, pruned = elimination.run_pruned(small, evaluate, len(class_of), plan.stages, args.to_keep)
        return errors, winner, {"pruned": pruned, "evaluations": price(args, plan, len(class_of))[0]}
    if args.strategy == "stages":
        return *elimination.run_stages(evaluate, len(class_of), plan.stages, args.to_keep), {}
    errors, winner, fell = elimination.run_race(evaluate, class_of, plan.t, race_rule(args))
    return errors, winner, {"fell": fell}


def add_run_options(parser):
    group = parser.add_argument_group("run")
    group.add_argument("--extra", help="added to the dataset's name in the run folder")
    group.add_argument("--seed", type=at_least(0), default=0, help="of the noise, and of a random choice of images (default: 0)")
    group.add_argument("--n_workers", type=at_least(1), help="processes that share the images (default: 1, or what SLURM says)")
    group.add_argument("--worker_idx", type=at_least(0), help="this process's number, from 0 (default: 0, or what SLURM says)")
    group.add_argument("--load_stats", action="store_true", help="count records of earlier runs in the running accuracy")
    group.add_argument("--dry_run", action="store_true", help="print options, folder and price, and stop")


def resolve_worker(args) -> None:
    """Fills in this process's share of the images and its GPU: the flags', else the launcher's.

    Raises ValueError when this worker's number is none of the workers', or is missing where several would take the same.
    """
    from diffusion import sharding

    if args.n_workers is None and args.worker_idx is None:
        args.worker_idx, args.n_workers = sharding.launched_share(os.environ)
    if args.worker_idx is None and args.n_workers > 1 and sharding.launched_share(os.environ)[1] > 1:
        raise ValueError(f"--n_workers {args.n_workers} needs --worker_idx here, or all of SLURM's tasks take the same images")
    args.worker_idx, args.n_workers = args.worker_idx or 0, args.n_workers or 1
    if args.worker_idx >= args.n_workers:
        raise ValueError(f"--worker_idx {args.worker_idx} must be below --n_workers {args.n_workers}: workers count from 0")
    args.device = args.device or sharding.local_gpu(os.environ)


def open_images(args):
    """The dataset that the data options name, without a transform. Raises ValueError or OSError, one line for what is wrong."""
    from diffusion import datasets, paths

    if args.dataset in ("folder", "hf") and not args.data_dir:
        raise ValueError(f"--dataset {args.dataset} needs --data_dir: the folder of the images, or for hf the dataset's name")
    args.data_dir = str(paths.dataset_root(args.data_dir))
    more = {name: getattr(args, name) for name in ("download", "config_name", "image_column", "label_column")}
    return datasets.open_dataset(args.dataset, args.split, None, args.data_dir, **more)


def subset_identity(args, n_images: int) -> str | None:
    """A hash of the indices in --subset_path, whatever their order; None without one."""
    from diffusion import runlog, sharding

    return runlog.fingerprint(sorted(sharding.read_subset(args.subset_path, n_images))) if args.subset_path else None


def print_table(title: str, rows: dict) -> None:
    """Aligned `name  value` lines under a title."""
    print(title)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")
    sys.stdout.flush()


def announce(
    options: dict, about: dict, notices, folder, counts: tuple[int, int, int], cost: tuple[int, int], unit="image"
) -> None:
    """Prints the resolved options, what they lead to, and the price of each image (or example: `unit`) as `price` gives it.

    counts: how many are to do here, were done before, and are selected.
    """
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    rows = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in given.items()}
    print_table("Options:", rows | about)
    for notice in filter(None, (*notices, sharing_notice(options))):
        print(f"Note: {notice}")
    print(f"Run folder: {folder}")
    n_todo, n_done, n_selected = counts
    print(f"{unit.capitalize()}s: {n_todo} to do here, {n_done} of {n_selected} done before")
    most = "at most " if options.get("strategy") == "race" else ""
    total, small = cost
    cheaper = f" ({small:,} of them at {options['prune_img_size']} pixels)" if small else ""
    print(f"Price: {most}{total:,} network evaluations an {unit}{cheaper}, {total * n_todo:,} in all", flush=True)


# ---------------------------------------------------------------- the network


class Network(NamedTuple):
    """What an image is evaluated with."""

    denoiser: Any
    conds: Any  # [K,...], of all candidates
    batch: Any  # kernel.Batch


def check_network(args) -> None:
    """Resolves --device and --dtype. Raises ValueError for what PyTorch cannot use and for options that exclude each other."""
    from diffusion import models

    if args.compile and args.batch_size == "auto":
        raise ValueError("--compile is for one batch size: give --batch_size a number")
    args.device = models.resolve_device(args.device)
    args.dtype = models.resolve_dtype(args.dtype, args.device)


def start_network(args, load, candidates: list, latent_shape, folder, useful: int) -> Network:
    """load(compile_for) -> Denoiser, with all candidates embedded; finds --batch_size auto and compiles, and prints both.

    A batch size that the run in this folder (None: no run) found before is taken again; more than `useful` evaluations are never
    asked for at once. Raises ValueError or OSError for weights that do not do.
    """
    import torch

    from diffusion import hardware, kernel, runlog

    batch = kernel.Batch(1 if args.batch_size == "auto" else args.batch_size)
    denoiser = load(batch if args.compile else None)
    conds = denoiser.embed(candidates)

    @torch.inference_mode()
    def run(n):
        x, t = torch.zeros(n, *latent_shape, device=args.device), torch.zeros(n, dtype=torch.int64, device=args.device)
        denoiser.predict(x, t, conds[:1].expand(n, *conds.shape[1:]))

    if args.batch_size == "auto":
        saved = folder and runlog.read_config(folder)
        before = saved and saved["options"].get("batch_size")
        found = before or hardware.largest_batch(run, args.device, math.prod(latent_shape), useful)
        args.batch_size = batch.size = found
        print(f"Batch size: {found}", flush=True)
    if args.compile:
        start = time.perf_counter()
        run(batch.size)
        print(f"Compiled in {time.perf_counter() - start:.0f} s", flush=True)
    return Network(denoiser, conds, batch)


def sharing_notice(options: dict) -> str | None:
    """Who shares the images, where a launcher and not a flag said so."""
    from diffusion import sharding

    if team().size > 1:
        return f"the images are shared by {team().size} processes of torchrun, which take them one by one"
    share = options["worker_idx"], options["n_workers"]
    if share[1] == 1 or share != sharding.launched_share(os.environ):
        return None
    return f"SLURM says that this is task {share[0]} of {share[1]}; --n_workers 1 for all images"


# ---------------------------------------------------------------- while it works


class _Lines:
    """A tqdm output file that turns every redraw into a line of its own, for logs."""

    def write(self, text):
        if text.strip("\r\n "):
            print(text.strip("\r\n "), file=sys.stderr, flush=True)

    def flush(self):
        sys.stderr.flush()


def progress(total: int):
    """A tqdm bar over images on a terminal; elsewhere a line a minute. Of torchrun's processes only rank 0 shows one."""
    from tqdm import tqdm

    if not team().leads:
        return tqdm(disable=True)
    if sys.stderr.isatty():
        return tqdm(total=total, unit="image", dynamic_ncols=True)
    return tqdm(total=total, unit="image", file=_Lines(), mininterval=60, miniters=1, ncols=0, leave=False, delay=1)


class Tally:
    """Right and counted images for the running accuracy; images and evaluations of this process for its speed.

    Outcomes are anything with `right` (None: it predicts nothing and is not counted) and `evaluations`.
    """

    def __init__(self, before=()):
        """before: outcomes of earlier runs to count in the accuracy."""
        self.right = self.counted = self.done = self.evaluations = 0
        self.start = time.perf_counter()
        for outcome in before:
            self.count(outcome)

    def count(self, outcome):
        self.counted += outcome.right is not None
        self.right += bool(outcome.right)

    def add(self, outcome):
        self.count(outcome)
        self.done += 1
        self.evaluations += outcome.evaluations

    @property
    def seconds(self):
        return time.perf_counter() - self.start

    def postfix(self):
        accuracy = f"{100 * self.right / self.counted:.1f}%" if self.counted else "-"
        return {"accuracy": accuracy, "evaluations/s": f"{self.evaluations / self.seconds:.0f}"}


class StopBetweenImages:
    """Context manager: the first Ctrl-C or SIGTERM sets `.signal` and lets the image in work finish; a second one kills."""

    signal: int | None = None

    def __enter__(self):
        self.before = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception):
        self._restore()

    def _request(self, number, frame):
        self.signal = number
        if team().leads:
            print("\nstopping after the one in work (once more to stop at once)", file=sys.stderr)
        self._restore()

    def _restore(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def work_through(args, dataset, todo: list[int], done: dict, work) -> tuple[Tally, dict, int | None]:
    """Loads the images of `todo` and calls work(index, image, label) -> outcome for each, under a progress bar.

    An image that could not be read, or whose errors are not finite, is a failure; the others go on. done: outcomes of
    earlier runs, to which work adds. Returns the tally, the failures {name: problem}, and the number of the signal that
    stopped the work before its end, or None. Under torchrun all processes work on the todo of rank 0, which returns the end of
    the whole run, with everyone's outcomes in `done`; the failures are then its to tell.
    """
    share, before = team().share(todo), set(done)
    with StopBetweenImages() as stop:
        tally, seen, failures = _work(args, dataset, share, done, work, stop)
        new = {key: outcome for key, outcome in done.items() if key not in before}
        ends = team().gather((seen, failures, stop.signal, new), lambda: stop.signal)
    if not team().leads:
        return tally, {}, stop.signal
    return _whole_run(dataset, share, tally, ends, done)


def _work(args, dataset, share, done: dict, work, stop) -> tuple[Tally, list[int], dict]:
    """This process's part: the tally, the indices that it has finished, and the failures among them."""
    from diffusion import loader

    tally, seen, failures = Tally(done.values() if args.load_stats else ()), [], {}
    images = loader.load_images(dataset, share, min(share.loaders, loader.processes(args.device)))
    with progress(len(share)) as bar:
        for index, image, label, problem in images:
            try:
                if problem:
                    failures[dataset.name(index)] = problem
                else:
                    tally.add(work(index, image, label))
            except FloatingPointError as error:
                failures[dataset.name(index)] = f"{error}: try --dtype bfloat16"
            seen.append(index)
            bar.set_postfix(tally.postfix(), refresh=False)
            bar.update(share.finish() - bar.n)
            if stop.signal:
                break
    return tally, seen, failures


def _whole_run(dataset, share, tally: Tally, ends: list, done: dict) -> tuple[Tally, dict, int | None]:
    """The end of a run from those of its processes: (indices finished, failures, signal, outcomes) each."""
    seen, failures, signals = set(), {}, []
    for finished, failed, number, outcomes in ends:
        seen |= set(finished)
        failures |= failed
        signals += [number] if number else []
        done |= outcomes
    tally.done = len(seen) - len(failures)
    left = [index for index in share.indices if index not in seen]
    if left and not signals:
        failures |= {dataset.name(index): "its process was lost; the same command makes up for it" for index in left}
    return tally, failures, signals[0] if left and signals else None


def accuracy_lines(outcomes) -> list[str]:
    """Accuracy with its interval, and the mean per class, of outcomes that have a prediction."""
    from diffusion import metrics

    labels, preds = [o.label for o in outcomes], [o.pred for o in outcomes]
    if not outcomes:
        return []
    return [f"Top-1 accuracy: {metrics.top1(preds, labels)}", f"Mean per class: {metrics.mean_per_class(preds, labels)}"]


def close(lines: list[str], done: dict, report: str, tally: Tally, failures: dict, stopped_by: int | None, unit="image") -> int:
    """The closing lines of a run: its results, the cost of this process, what reads the folder again, failures.

    done: index -> outcome of every finished image. Returns the exit code.
    """
    for line in lines:
        print(line)
    if done:
        timing = f", {tally.seconds / tally.done:.2f} s an {unit} ({tally.done} in {tally.seconds:.0f} s)" if tally.done else ""
        print(f"Cost: {sum(o.evaluations for o in done.values()) / len(done):,.0f} evaluations an {unit}{timing}")
        print(f"Report: python {report}")
    if failures:
        listed = "; ".join(f"{index}: {problem}" for index, problem in failures.items())
        print(f"error: {len(failures)} {unit}s failed, all others are done: {listed}", file=sys.stderr)
    if stopped_by and team().leads:
        print(f"Stopped by {signal.Signals(stopped_by).name}: the same command continues.", file=sys.stderr)
    if stopped_by:
        return 128 + stopped_by
    return 1 if failures else 0


def run(main) -> int:
    """The command's exit code; Ctrl-C outside the loop over images, while weights load, is no traceback either.

    Of torchrun's processes only rank 0 prints; of the others one hears when something goes wrong that rank 0 does not know of.
    """
    if not team().leads:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        warnings.simplefilter("ignore")
    try:
        return main()
    except KeyboardInterrupt:
        print("Interrupted: the same command starts again.", file=sys.stderr)
        return 128 + signal.SIGINT
    except RuntimeError as error:
        if not lost_contact(error):
            raise
        print("error: lost contact to the machine of rank 0: the same command continues", file=sys.stderr)
        return 1
