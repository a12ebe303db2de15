"""What the commands share: option groups, settings from options, options and price as a run prints them first."""

import contextlib
import math
import os
import sys
from dataclasses import fields
from pathlib import Path

from diffusion import models, settings
from diffusion.cli.parsing import at_least, fail, how_many, limit, name_part, positive, seed
from diffusion.datasets import DATASETS, recipe_for, transforms
from diffusion.kernel import batching
from diffusion.models import random_weights
from diffusion.models.families import custom
from diffusion.models.loading import checkpoint
from diffusion.models.speed import devices
from diffusion.runs import sharding, tracking
from diffusion.strategy import STRATEGIES, Strategy, Usual, from_options, option_names
from diffusion.strategy.level_weights import LevelWeights
from diffusion.utils import files, paths
from diffusion.utils.distributed import team

CPU_GFLOPS = 100  # of a core in a second, float32: two cores did 88 to 129 each on large networks (docs/models.md)
LARGE_GFLOP = 100  # of an evaluation, from where on a CPU is no place for it
MEASURED_TIMESTEPS = 250  # of the runs that say what a strategy usually takes (docs/cost.md)
OR_NAME = {"hf": ", or its name on the hub"}


@contextlib.contextmanager
def bad_input():
    """Inside it, ValueError and OSError mean that the input is wrong: one line, exit code 2.

    Of torchrun's processes rank 0 goes first: it downloads for all, and tells for all what is wrong.
    """
    team().follow()
    try:
        yield
    except BrokenPipeError:  # nobody reads standard output any more, which is no input
        raise
    except (ValueError, OSError) as error:
        sys.exit(fail(error))
    team().passed()


def refuse_idle(options: dict, names, mode: str) -> None:
    """Raises ValueError for the first of these options that was given and does nothing in this mode."""
    idle = next((name for name in names if name in options["given"]), None)
    if idle:
        raise ValueError(f"--{idle} does nothing {mode}: leave it out")


# ---------------------------------------------------------------- option groups


def add_data_options(parser, datasets, required=True, class_list=True):
    """Which dataset; returns the group. class_list: False for a command whose --classes are something else."""
    group = parser.add_argument_group("images")
    group.add_argument("--dataset", required=required, choices=datasets, metavar="NAME", help=f"one of: {', '.join(datasets)}")
    group.add_argument("--split", default="test", help="test, train, or a split of an hf dataset (default: test)")
    group.add_argument(
        "--data_dir",
        help="folder that holds all datasets (default: $DATASET_ROOT, else ./datasets); for `folder` the image folder "
        "itself, one sub-folder per class; for `hf` a hub name or a local copy; for `webdataset` the folder of the splits, or "
        "one .tar; for `csv` the file",
    )
    group.add_argument("--download", action="store_true", help="fetch a missing dataset where torchvision can")
    group.add_argument("--config_name", help="configuration of an hf dataset that has several")
    group.add_argument("--image_column", help="image column of an hf dataset (default: found by type)")
    group.add_argument("--label_column", help="label column of an hf dataset (default: found by type, then by name)")
    group.add_argument("--streaming", action="store_true", help="read only the first --limit images of an hf dataset, and keep "
                       "nothing on disk")  # fmt: skip
    group.add_argument("--limit", type=limit, metavar="N", help="with --streaming: the first N images, or a fraction such as 0.1 "
                       "of them; a stream has no random choice, which --imgs_to_eval makes among these")  # fmt: skip
    if class_list:
        add_class_list(group)
    return group


def add_class_list(group):
    group.add_argument("--classes", metavar="FILE.txt", help="class names, one per line, in the order of the labels; of a set of "
                       "your own in place of its own names")  # fmt: skip


def add_selection_options(group, which="a seeded choice of N images; a larger N adds to it"):
    """Which of the dataset's images; `which` says what --imgs_to_eval takes."""
    group.add_argument("--subset_path", help=".npy file of the indices to evaluate (scripts/write_subset.py)")
    group.add_argument("--imgs_to_eval", type=at_least(1), metavar="N", help=which)


def add_weights_options(parser):
    """Whose weights a text-to-image model has; returns the group."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--version",
        type=name_part,
        default="2-0",
        help="1-1 ... 1-5, 2-0, 2-1, sdxl, sd3-medium, flux-dev, tiny, ... "
        "(docs/models.md), or any with --model_path (default: 2-0)",
    )
    group.add_argument("--model_path", help="local pipeline folder, hub id, single file of weights, or Python file "
                       "(docs/own_model.md) in place of the version's weights")  # fmt: skip
    return group


def add_sd_options(parser):
    group = add_weights_options(parser)
    add_text_to_image_options(group)
    add_network_options(group)


def add_text_to_image_options(group):
    """What a model is made to do that differs from its weights' own."""
    group.add_argument("--error_space", choices=settings.SPACES, help="in which errors are taken (default: epsilon, and velocity "
                       "for a flow)")  # fmt: skip
    group.add_argument("--levels", choices=settings.LEVELS, default="own", help="how a flow's noise levels are spread: evenly in "
                       "its time s, shifted to more noise, with normal logits (default: own, of its scheduler)")  # fmt: skip
    group.add_argument("--config", metavar="FOLDER_OR_ID", help="pipeline that gives a single file of weights its configs and "
                       "tokenizers (default: that of --version)")  # fmt: skip
    group.add_argument("--text_encoders", choices=["all", "clip"], default="all", help="clip: without T5, where the model can do "
                       "without (SD 3; default: all)")  # fmt: skip
    group.add_argument("--lora", action="append", metavar="PATH[@SCALE]", help="LoRA file or hub id, fused into the weights; may "
                       "be given several times (docs/models.md)")  # fmt: skip
    group.add_argument("--embedding", action="append", metavar="PATH[@TOKEN]", help="textual inversion, file or hub id, whose "
                       "token prompts may have; may be given several times")  # fmt: skip


def add_level_weights(group):
    group.add_argument("--level_weights", metavar="FILE", help="weights of scripts/fit_weights.py, by which each level's errors "
                       "are multiplied before candidates are compared; records keep them as they are")  # fmt: skip


def add_ablation_options(group):
    """What the paper tried and found to hurt."""
    group.add_argument("--guidance", type=float, default=0.0, metavar="W", help="classifier-free guidance of the prediction, "
                       "(1 + W) of a candidate's less W of the empty one's (the paper's figure 8; default: 0, none)")  # fmt: skip
    group.add_argument("--crop_errors", type=at_least(0), default=0, metavar="N", help="leave N latents at each side out of "
                       "errors (figure 9; default: 0)")  # fmt: skip
    group.add_argument("--noise", default="normal", metavar="KIND", help="normal, zero, expected_norm, truncated:A (the normal "
                       "law on -A..A) or clipped:A (Table 12; default: normal)")  # fmt: skip


def add_shortlist_options(group):
    group.add_argument("--shortlist", metavar="MODEL_OR_RUN", help="only the classes that this ranks first on an image compete "
                       "for it: openclip:ViT-H-14, clip:RN50, ... (scripts/eval_clip.py, whose run is made first where it lacks "
                       "images) or the folder of any earlier run on these images")  # fmt: skip
    group.add_argument("--shortlist_size", type=at_least(2), metavar="N", help="how many (default: 20, or all of fewer)")


def ablation_of(options: dict) -> settings.Ablation:
    """Raises ValueError for values that mean nothing, and for a bank of noise of which nothing would be used."""
    ablation = settings.pick(settings.Ablation, options)
    if ablation.noise == "zero" and options["noise_path"]:
        raise ValueError(f"--noise zero uses nothing of --noise_path {options['noise_path']}: leave one of them out")
    return ablation


def add_resize_options(group, default="bicubic", about="of the resize"):
    """What of a picture a text-to-image model sees."""
    group.add_argument("--img_size", type=at_least(1), help="pixels a side (default: 512, or what a smaller or larger model "
                       "was trained on)")  # fmt: skip
    known = transforms.INTERPOLATIONS
    group.add_argument("--interpolation", default=default, choices=known, help=f"{about} (default: {default})")


def add_network_options(group):
    """How a network runs, whichever it is."""
    group.add_argument("--dtype", default="auto", choices=["auto", *devices.DTYPES],
                       help="of the network; errors stay float32 (default: auto, float16 on CUDA, else float32)")  # fmt: skip
    group.add_argument("--device", help="default: cuda if there is one, else cpu")
    group.add_argument("--batch_size", "-b", type=how_many, metavar="N", help="network inputs per call; auto: as many as fit, "
                       "on a CPU as many as its caches like (default: 32)")  # fmt: skip
    group.add_argument(
        "--compile", action="store_true", help="use torch.compile: up to a minute or more at the start, faster evaluations"
    )


def add_noise_options(group):
    """A grid's noise, which all images share."""
    group.add_argument("--noise_path", help="noise bank (scripts/save_noise.py; default: seeded); all images share it")
    group.add_argument(
        "--randomize_noise",
        action="store_true",
        help="sample i takes row i of --noise_path; without it, as published, its row is its position in a batch of "
        "--batch_size (1 where that is not given: row 0 for all)",
    )


def add_strategy_options(parser, default: str | None = "stages", told="stages"):
    """--strategy, and the options of every strategy in the table."""
    group = parser.add_argument_group("strategy")
    group.add_argument("--strategy", choices=list(STRATEGIES), default=default, help="stages: as published; race: a "
                       "candidate is dropped as soon as it is significantly worse than the best; race_calibrated: as soon as it "
                       f"lies further above the best than a fit says (default: {told})")  # fmt: skip
    added = set()
    for strategy in STRATEGIES.values():
        for field in fields(strategy):
            if field.metadata and field.name not in added:
                _add_option(group, strategy, field)
                added.add(field.name)


def _add_option(group, strategy, field):
    about, owners = field.metadata, [s for s in STRATEGIES.values() if field.name in option_names(s)]
    default = f" (default: {field.default})" if field.default not in ((), "", None) else ""
    only = f"{strategy.NAME}: {about['help']}{default}"
    group.add_argument(
        f"--{field.name}",
        type=about["type"] if about["least"] is None else at_least(about["least"]),
        nargs="+" if about["several"] else None,
        metavar=about["metavar"],
        help=about["help"] if len(owners) > 1 else only,
    )


def add_epoch_options(group, epochs: int, batch_size: int, lr: float, patience: int, about=""):
    """How long a classifier learns, with these defaults. about: what else is to be said of the learning rate"""
    group.add_argument("--epochs", type=at_least(1), default=epochs, help=f"at most so many (default: {epochs})")
    group.add_argument("--batch_size", type=at_least(1), default=batch_size, metavar="N", help="training images per step "
                       f"(default: {batch_size})")  # fmt: skip
    group.add_argument("--lr", type=positive, default=lr, help=f"learning rate of AdamW (default: {lr:g}{about})")
    group.add_argument("--patience", type=at_least(1), default=patience, metavar="EPOCHS", help="it ends after so many without a "
                       f"better accuracy on the validation images (default: {patience})")  # fmt: skip


def add_rate_option(group):
    group.add_argument("--rate", type=positive, metavar="N", help="network evaluations per second, for hours beside prices")


def add_run_options(parser, several=False):
    """several: of a command that can have several images at once in work."""
    group = parser.add_argument_group("run")
    group.add_argument("--options", metavar="FILE.yaml", help="options as lines `name: value`; the command line overrides them "
                       "(docs/own-data-and-models.md)")  # fmt: skip
    if several:
        group.add_argument("--images_in_flight", type=how_many, default="auto", metavar="N", help="images that share network "
                           "calls (default: auto, 1 on a CPU, half of --batch_size and 1 more on a GPU)")  # fmt: skip
    group.add_argument("--extra", type=name_part, help="added to the dataset's name in the run folder")
    group.add_argument("--seed", type=seed, default=0, help="seed of the noise and of a random choice of images (default: 0)")
    group.add_argument("--n_workers", type=at_least(1), help="processes that share the images (default: 1, or what SLURM says)")
    group.add_argument("--worker_idx", type=at_least(0), help="number of this process, from 0 (default: 0, or what SLURM says)")
    group.add_argument("--load_stats", action="store_true", help="count records of earlier runs in the running accuracy")
    group.add_argument("--results", metavar="FILE.json", help="write accuracy, intervals and cost in the end, in the fields of "
                       "CLIP_benchmark (docs/reports.md)")  # fmt: skip
    group.add_argument(
        "--tracker", choices=tracking.TRACKERS, help="log options, progress and metrics there, where it is installed"
    )
    add_rate_option(group)
    group.add_argument("--dry_run", action="store_true", help="print options, folder and price, also where images or weights are "
                       "missing, and stop; nothing is fetched")  # fmt: skip


def data_of(options: dict) -> settings.Data:
    """Raises ValueError for a set of the user's own without its place."""
    data = settings.pick(settings.Data, options)
    spec = DATASETS.get(data.dataset)
    if spec and spec.own and not data.data_dir:
        raise ValueError(f"--dataset {data.dataset} needs --data_dir: {spec.layout}{OR_NAME.get(data.dataset, '')}")
    return settings.pick(settings.Data, options, data_dir=str(paths.dataset_root(data.data_dir)))


def scored_of(options: dict) -> tuple[settings.Data, settings.Selection, settings.Running, int]:
    """What `scored.open_images` takes. Raises ValueError as `data_of` and `running_of`."""
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
    share = {"worker_idx": worker_idx, "n_workers": n_workers}
    return settings.pick(settings.Running, options, device=device, batch_size=batch_size, images_in_flight=in_flight, **share)


def level_weights_of(options: dict) -> LevelWeights | None:
    """Raises ValueError for a file that holds none."""
    return LevelWeights.read(options["level_weights"]) if options["level_weights"] else None


def check_results(path: str | None) -> None:
    """Raises ValueError for a file that could not be written."""
    try:
        if path:
            files.try_file(Path(path))
    except OSError as error:
        raise ValueError(f"--results {files.one_line(error)}: name another file") from None


def dtype_of(options: dict, running: settings.Running) -> str:
    """The network's, by name."""
    return devices.resolve_dtype(options["dtype"], running.device)


def version_of(options: dict) -> str:
    """What run folders call the model: --version, or the name of a Python file or a file of weights where that is not given."""
    asked, path = options["version"], options["model_path"]
    kind = custom if custom.is_python_file(path) else checkpoint if checkpoint.is_single(path) else None
    return kind.name_of(path) if kind and "version" not in options["given"] else asked


def source_of(options: dict, device: str, dtype: str, expect: bool = False):
    """The source of a text-to-image model's weights; expect: as of shapes.expected, where they are not here. Raises ValueError as
    `models.text_to_image`."""
    asked = settings.pick(settings.TextToImage, options).options
    if expect and not options["model_path"] and (source := random_weights.expected(options["version"], asked)):
        return source
    return models.text_to_image(options["version"], options["model_path"], asked, device, dtype)


def model_of(options: dict, source, dtype: str, img_size: int) -> settings.TextToImage:
    """A text-to-image model's settings; an error space that is the model's own is none that was asked for."""
    space = options["error_space"] if options["error_space"] != source.space else None
    config = models.config_of(options["version"], options["model_path"], options["config"])
    named = {"version": version_of(options), "dtype": dtype, "img_size": img_size, "error_space": space, "config": config}
    return settings.pick(settings.TextToImage, options, **named)


def strategy_of(options: dict, n_candidates: int) -> Strategy:
    """The strategy for pictures of the user's own: --strategy, whose stages are the paper's for so many candidates. Raises
    ValueError."""
    recipe = recipe_for("folder", n_candidates)
    return from_options(options["strategy"], options, {"to_keep": recipe.to_keep, "n_samples": recipe.n_samples})


def checked_model(options: dict, running: settings.Running, chosen, n_candidates: int, expect: bool = False):
    """(source of the weights, settings.TextToImage) for this strategy and so many candidates. expect: as of `source_of`.

    Raises ValueError for a strategy or a size that the model cannot run, and for what this machine's memory cannot hold.
    """
    dtype = dtype_of(options, running)
    source = source_of(options, running.device, dtype, expect)
    size = options["img_size"] or source.default_size
    shape, n_trials = source.latent_shape(size), getattr(chosen, "n_trials", 1)
    check_pairs(n_trials, 1, n_candidates, shape)
    chosen.check(n_candidates, source.n_levels)
    model = model_of(options, source, dtype, size)
    plan = chosen.plan(source.n_levels)
    check_pairs(n_trials, len(plan.t) // n_trials, n_candidates, shape)
    models.check_memory(source, size, running.device, dtype, running.batch_size, chosen.price(plan, n_candidates))
    return source, model


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
        told = f"the shipped model took {usual.measured:,} of {grid:,} with {usual.candidates:,} candidates"
        in_all = usual.evaluations * n
        print(f"Usually: about {usual.evaluations:,} per {unit}, {in_all:,} in all{hours(in_all, rate)} ({told})")
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
    time = told_time(evaluations * size / (CPU_GFLOPS * n_cores))
    rate = f"{size:,.0f} GFLOP per evaluation, at a rough {CPU_GFLOPS} GFLOP/s a core"
    return f"about {time} per {unit} on {n_cores} CPU cores ({rate}); a GPU is meant for this"


def told_time(seconds: float) -> str:
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
