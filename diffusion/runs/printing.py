"""What a run prints first: its options, its folder, and what it costs in network evaluations."""

import os
import sys

from diffusion.models import random_weights
from diffusion.models.speed import devices
from diffusion.runs import sharding
from diffusion.strategy import Usual
from diffusion.utils.distributed import team

CPU_GFLOPS = 100  # of a core in a second, float32: two cores did 88 to 129 each on large networks (docs/models.md)
LARGE_GFLOP = 100  # of an evaluation, from where on a CPU is no place for it
MEASURED_TIMESTEPS = 250  # of the runs that say what a strategy usually takes (docs/cost.md)


def print_table(title: str, rows: dict) -> None:
    """Aligned `name  value` lines under a title."""
    print(title)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")
    sys.stdout.flush()


def announce(options: dict, about: dict, notices, folder, counts: tuple[int, int, int], price: int, at_most=False, unit="image",
             more="", usual: Usual | None = None):  # fmt: skip
    """Prints the resolved options, what they lead to, and the price of each image (or example: `unit`) in network evaluations.

    counts: how many are to do here, were done before, and are selected; more: what else the price says; usual: what an image
    takes of a strategy that may need less than the price
    """
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    about = {name: value for name, value in about.items() if value is not None}
    rows = {name: " ".join(map(str, value)) if isinstance(value, list | tuple) else value for name, value in given.items()}
    print_table("Options:", rows | about)
    for notice in filter(None, (*notices, sharing_notice(options))):
        print(f"Note: {notice}")
    print(f"Run folder: {folder}")
    n_todo, n_done, n_selected = counts
    print(f"{unit.capitalize()}s: {n_todo} to do here, {n_done} of {n_selected} done before")
    print_price(price, n_todo, at_most, unit, more, usual, options["rate"])


def print_price(price: int, n: int, at_most=False, unit="image", more="", usual: Usual | None = None, rate=None) -> None:
    """In network evaluations, of n images, and in hours at so many a second; more, usual: as of `announce`."""
    most = "at most " if at_most else ""
    print(f"Price: {most}{price:,} network evaluations per {unit}, {price * n:,} in all{hours(price * n, rate)}{more}")
    if usual and least(price, usual) < price:
        grid = MEASURED_TIMESTEPS * usual.candidates
        message = f"the shipped model took {usual.measured:,} of {grid:,} with {usual.candidates:,} candidates"
        in_all = usual.evaluations * n
        print(f"Usually: about {usual.evaluations:,} per {unit}, {in_all:,} in all{hours(in_all, rate)} ({message})")
    sys.stdout.flush()


def least(price: int, usual: Usual | None) -> int:
    """What an image takes: usually, where that is less than the price."""
    return min(price, usual.evaluations) if usual else price


def hours(evaluations: int, rate: float | None) -> str:
    """`, 0.1 h` of evaluations at so many a second; nothing where that is not known."""
    return f", {evaluations / rate / 3600:,.1f} h" if rate else ""


def cpu_notice(source, img_size: int, device: str, evaluations: int, unit="image") -> str | None:
    """How long a large network takes on this machine's cores, roughly; None on a GPU, and of what is small or not known."""
    size = random_weights.gflop(source, img_size)
    if not device.startswith("cpu") or size is None or size < LARGE_GFLOP:
        return None
    n_cores = devices.n_cores()
    time = time_text(evaluations * size / (CPU_GFLOPS * n_cores))
    rate = f"{size:,.0f} GFLOP per evaluation, at a rough {CPU_GFLOPS} GFLOP/s a core"
    return f"about {time} per {unit} on {n_cores} CPU cores ({rate}); a GPU is meant for this"


def time_text(seconds: float) -> str:
    """`15 minutes`, `2.3 hours`, `4 days`."""
    for unit, length, digits in (("days", 86_400, 0), ("hours", 3600, 1), ("minutes", 60, 0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.{digits}f} {unit}"
    return f"{seconds:.0f} seconds"


def require(dataset) -> None:
    """Raises FileNotFoundError where its files are not there, for a dry run that cannot do without them."""
    if dataset.missing:
        raise FileNotFoundError(dataset.missing)


def tell_missing(data, source=None) -> None:
    """What a dry run did without: prints what a run fetches first. data: a set of images or pairs; source: of the weights.

    Raises FileNotFoundError for what a run would not find either.
    """
    missing = [data.missing] if data.missing and data.fetched else []
    missing += [f"weights: {place} is not here, and a run fetches it first" for place in (source.unfetched if source else [])]
    for line in missing:
        print(f"Missing: {line}", flush=True)
    if data.missing and not data.fetched:
        require(data)


def sharing_notice(options: dict) -> str | None:
    """Who shares the images, where a launcher and not a flag said so."""
    if team().size > 1:
        return f"the images are shared by {team().size} processes of torchrun, which take them one at a time"
    share = options["worker_idx"], options["n_workers"]
    if share[1] == 1 or share != sharding.launched_share(os.environ):
        return None
    return f"SLURM says that this is task {share[0]} of {share[1]}; use --n_workers 1 for all images"
