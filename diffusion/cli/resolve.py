"""Settings from the options of a command, checked against each other and against this machine."""

import logging
import math
import os
from pathlib import Path

from diffusion import models, settings
from diffusion.datasets import DATASETS, recipe_for
from diffusion.kernel import batching
from diffusion.models import random_weights
from diffusion.models.families import custom
from diffusion.models.loading import checkpoint
from diffusion.models.speed import devices
from diffusion.runs import sharding, tracking
from diffusion.strategy import Strategy, from_options
from diffusion.strategy.level_weights import LevelWeights
from diffusion.utils import files, paths

log = logging.getLogger(__name__)

CUT = ("to_keep", "n_samples", "max_samples", "t_interval")  # options of which a model may have too few timesteps
OR_NAME = {"hf": ", or its name on the hub"}


def refuse_idle(options: dict, names, mode: str) -> None:
    """Raises ValueError for the first of these options that was given and does nothing in this mode."""
    idle = next((name for name in names if name in options["given"]), None)
    if idle:
        raise ValueError(f"--{idle} does nothing {mode}: leave it out")


def ablation_of(options: dict) -> settings.Ablation:
    """Raises ValueError for values that mean nothing, and for a bank of noise of which nothing would be used."""
    ablation = settings.pick(settings.Ablation, options)
    if ablation.noise == "zero" and options["noise_path"]:
        raise ValueError(f"--noise zero uses nothing of --noise_path {options['noise_path']}: leave one of them out")
    return ablation


def data_of(options: dict) -> settings.Data:
    """Raises ValueError for a set of the user's own without its place."""
    data = settings.pick(settings.Data, options)
    spec = DATASETS.get(data.dataset)
    if spec and spec.custom and not data.data_dir:
        raise ValueError(f"--dataset {data.dataset} needs --data_dir: {spec.layout}{OR_NAME.get(data.dataset, '')}")
    return settings.pick(settings.Data, options, data_dir=str(paths.dataset_root(data.data_dir)))


def scored_of(options: dict) -> tuple[settings.Data, settings.Selection, settings.Running, int]:
    """What `runner.open_images` takes. Raises ValueError as `data_of` and `running_of`."""
    return data_of(options), settings.pick(settings.Selection, options), running_of(options), options["seed"]


def running_of(options: dict) -> settings.Running:
    """This process's share of the images and its GPU: the flags', else the launcher's.

    Raises ValueError when this worker's number is none of the workers', or is missing where several would take the same, for
    a device that PyTorch cannot use, for --results that could not be written, and for a --tracker that is not installed.
    Of a dry run the hub's clients, which are not imported yet, ask nobody.
    """
    if options["dry_run"]:
        os.environ["HF_HUB_OFFLINE"] = "1"
    worker_idx, n_workers = options["worker_idx"], options["n_workers"]
    if n_workers is None and worker_idx is None:
        worker_idx, n_workers = sharding.launched_share(os.environ)
    if worker_idx is None and n_workers > 1 and sharding.launched_share(os.environ)[1] > 1:
        raise ValueError(f"--n_workers {n_workers} needs --worker_idx here, or all of SLURM's tasks take the same images")
    worker_idx, n_workers = worker_idx or 0, n_workers or 1
    if worker_idx >= n_workers:
        raise ValueError(f"--worker_idx {worker_idx} must be below --n_workers {n_workers}: workers count from 0")
    check_results(options.get("results"))
    tracking.check(options.get("tracker"))
    device = devices.resolve_device(options["device"] or devices.local_gpu(os.environ))
    batch_size = options.get("batch_size") or 32
    in_flight = batching.width(options.get("images_in_flight"), device, batch_size)
    results = str(options["results"]) if options.get("results") else None
    share = {"worker_idx": worker_idx, "n_workers": n_workers, "results": results}
    return settings.pick(settings.Running, options, device=device, batch_size=batch_size, images_in_flight=in_flight, **share)


def level_weights_of(options: dict) -> LevelWeights | None:
    """Raises ValueError for a file that holds none."""
    return LevelWeights.read(options["level_weights"]) if options["level_weights"] else None


def check_results(path: Path | None) -> None:
    """Raises ValueError for a file that could not be written."""
    try:
        if path:
            files.try_file(path)
    except OSError as error:
        raise ValueError(f"--results {files.one_line(error)}: name another file") from None


def dtype_of(options: dict, running: settings.Running) -> str:
    """The network's, by name."""
    return devices.resolve_dtype(options["dtype"], running.device)


def version_of(options: dict) -> str:
    """What run folders call the model: --version, or the name of a Python file or a file of weights where that is not given."""
    requested, path = options["version"], options["model_path"]
    kind = custom if custom.is_python_file(path) else checkpoint if checkpoint.is_single(path) else None
    return kind.name_of(path) if kind and "version" not in options["given"] else requested


def source_of(options: dict, device: str, dtype: str, expect: bool = False):
    """The source of a text-to-image model's weights; expect: as of shapes.expected, where they are not here. Raises ValueError as
    `models.text_to_image`."""
    requested = settings.pick(settings.TextToImage, options).options
    if expect and not options["model_path"] and (source := random_weights.expected(options["version"], requested)):
        return source
    return models.text_to_image(options["version"], options["model_path"], requested, device, dtype)


def model_of(options: dict, source, dtype: str, img_size: int) -> settings.TextToImage:
    """A text-to-image model's settings; an error space that is the model's own is none that was asked for."""
    space = options["error_space"] if options["error_space"] != source.space else None
    config = models.config_of(options["version"], options["model_path"], options["config"])
    named = {"version": version_of(options), "dtype": dtype, "img_size": img_size, "error_space": space, "config": config}
    return settings.pick(settings.TextToImage, options, **named)


def strategy_of(options: dict, n_candidates: int, n_levels: int | None = None) -> Strategy:
    """The strategy for pictures of the user's own: --strategy, whose stages are the paper's for so many candidates; n_levels: of
    the model, where it is known. Raises ValueError."""
    recipe = recipe_for("folder", n_candidates)
    chosen = from_options(options["strategy"], options, {"to_keep": recipe.to_keep, "n_samples": recipe.n_samples})
    return chosen if n_levels is None else _within(options, chosen, n_levels)


def fitted(options: dict, chosen: Strategy, n_levels: int) -> Strategy:
    """The strategy for a model of so many timesteps: of what was not given, the defaults are cut to them, and a note says so."""
    cut = _within(options, chosen, n_levels)
    values = [(name, *(_written(getattr(one, name, None)) for one in (cut, chosen))) for name in CUT]
    if changes := "; ".join(f"--{name} is {now}, not {usual}" for name, now, usual in values if now != usual):
        log.info("Note: the model has %d timesteps: %s", n_levels, changes)
    return cut


def _within(options: dict, chosen: Strategy, n_levels: int) -> Strategy:
    return chosen.within(n_levels, {name for name in CUT if options.get(name) is not None})


def _written(value) -> str:
    """As it is typed behind an option."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def checked_model(options: dict, running: settings.Running, chosen, n_candidates: int, expect: bool = False):
    """(source of the weights, settings.TextToImage, the strategy fitted to its timesteps) for this strategy and so many
    candidates. expect: as of `source_of`.

    Raises ValueError for a strategy or a size that the model cannot run, and for what this machine's memory cannot hold.
    """
    dtype = dtype_of(options, running)
    source = source_of(options, running.device, dtype, expect)
    size = options["img_size"] or source.default_size
    shape, n_trials = source.latent_shape(size), getattr(chosen, "n_trials", 1)
    check_pairs(n_trials, 1, n_candidates, shape)
    chosen = fitted(options, chosen, source.n_levels)
    chosen.check(n_candidates, source.n_levels)
    model = model_of(options, source, dtype, size)
    plan = chosen.plan(source.n_levels)
    check_pairs(n_trials, len(plan.t) // n_trials, n_candidates, shape)
    models.check_memory(source, size, running.device, dtype, running.batch_size, chosen.price(plan, n_candidates))
    return source, model, chosen


def grid_noise_of(options: dict) -> settings.GridNoise:
    """The noise of a grid. Raises ValueError for rows by position in batches of a size that is not known."""
    noise, size = settings.pick(settings.GridNoise, options), options["batch_size"]
    if noise.noise_path and not noise.randomize_noise and size == "auto":
        raise ValueError(
            "--noise_path without --randomize_noise depends on the position in the batch: give --batch_size a number"
        )
    return settings.pick(settings.GridNoise, options, noise_rows=size or 1) if noise.noise_path else noise


def check_pairs(n_trials: int, n_timesteps: int, n_candidates: int, latent_shape) -> None:
    """Raises ValueError for noise and errors of an image that this machine's memory cannot hold, before there are any.

    n_timesteps: of the plan, or 1 where that is not made yet
    """
    n = n_trials * n_timesteps
    needed = 4 * n * (math.prod(latent_shape) + n_candidates)
    devices.check_memory(needed, "cpu", f"--n_trials {n_trials}, {n:,} (timestep, noise) pairs at this --img_size,", "give less")
