#!/usr/bin/env python
"""A classifier on Stable Diffusion's features: the paper's "SD features" baseline (F.4, Table 11), and a linear probe.

  offline, on the shipped model, with the training images of Debian's package dataset-fashion-mnist:
    python scripts/sd_features.py --version tiny --dataset fashion_mnist --train_dir /usr/share/datasets/fashion-mnist
  the paper's: Stable Diffusion 2.0, 512 pixels
    python scripts/sd_features.py --dataset pets --head resnet --epochs 100

One command takes the features of the training images (the middle block's map at t = 100 under the empty prompt, kept on disk),
trains the head on them with a validation split, and classifies the test images. What is done is not done again. With --n_workers
each process takes its share of the features, worker 0 trains once all are there. Records and folders are those of
eval_prob_adaptive.py, with minus the logit in place of an error, so that all scripts that read runs read these.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

import numpy as np

from diffusion import baselines, cli, datasets, models, settings
from diffusion.analysis import figures
from diffusion.baselines import early_stopping, heads, networks, runner, sd_features
from diffusion.cli import parsing
from diffusion.datasets import DATASETS, transforms
from diffusion.models.families.sd import StableDiffusion
from diffusion.models.speed import devices
from diffusion.runs import loop, printing, run_folder, sharding
from diffusion.utils import files

HEAD, COURSE, CHECKPOINT = "head.safetensors", "training.csv", "training.checkpoint"  # in the run folder
OF_NETWORKS = ("augment", "epochs", "batch_size", "lr", "patience")  # what a linear head has no use for


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    cli.add_selection_options(cli.add_data_options(parser, list(DATASETS)))
    group = parser.add_argument_group("training images")
    group.add_argument("--train_dir", help="folder of the data set with the training images, as of --data_dir (default: that); "
                       "for fashion_mnist also the folder of its four files")  # fmt: skip
    group.add_argument("--train_split", help="their split (default: train, where the data set has one)")
    group.add_argument("--train_images", type=parsing.at_least(2), metavar="N", help="a seeded choice of N (default: all)")
    group.add_argument("--val_share", type=parsing.share, default=0.1, metavar="SHARE", help="of each class, held back to choose "
                       "by (default: 0.1)")  # fmt: skip
    group = parser.add_argument_group("features")
    group.add_argument("--version", type=parsing.name_part, default="2-0", help="1-1 ... 1-5, 2-0, 2-1, tiny (default: 2-0)")
    group.add_argument("--model_path", help="local pipeline folder or hub id in place of the version's weights")
    group.add_argument("--layer", type=parsing.name_part, default="mid_block", help="part of the U-Net whose output they are, "
                       "such as down_blocks.3 (default: mid_block)")  # fmt: skip
    group.add_argument("--t", type=parsing.at_least(0), default=100, metavar="LEVEL", help="noise level (default: 100)")
    cli.add_resize_options(group)
    group.add_argument("--dtype", default="auto", choices=["auto", *devices.DTYPES], help="of the U-Net (default: auto, float16 "
                       "on CUDA, else float32)")  # fmt: skip
    group.add_argument("--device", help="default: cuda if there is one, else cpu")
    group.add_argument("--cache_dir", help="where features are kept (default: beside the run folder)")
    group = parser.add_argument_group("head")
    heads_help = "; ".join(f"{name}: {about}" for name, about in heads.HEADS.items())
    group.add_argument("--head", choices=list(heads.HEADS), default="resnet", help=f"{heads_help} (default: resnet)")
    group.add_argument("--pool", choices=heads.POOLS, default="mean", help="of a linear head: the mean of each channel, or all "
                       "of the map (default: mean)")  # fmt: skip
    group.add_argument("--augment", action="store_true", help="learn from random resized crops, mirrored or not, as in the "
                       "paper; no cache holds their features, which are taken anew in every epoch (default: from images as they "
                       "are)")  # fmt: skip
    cli.add_epoch_options(group, epochs=20, batch_size=16, lr=1e-4, patience=5)
    cli.add_run_options(parser)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Job:
    """The run, and what leads to it.

    train: the training images; rows, validation: indices of them, to learn from and to choose by
    caches: of the features of training images and of test images
    """

    run: runner.ScoreTask
    train: Any
    rows: np.ndarray
    validation: np.ndarray
    caches: tuple[sd_features.Cache, sd_features.Cache]
    source: StableDiffusion
    features: baselines.Features
    head: baselines.Head
    how: early_stopping.Epochs

    @cached_property
    def extract(self) -> Callable:
        """The features of an image, as in sd_features.extractor; weights are loaded when it is first asked for."""
        loop.tell_loading(self.source)
        features, device = self.features, self.run.running.device
        return sd_features.extractor(self.source, features.layer, features.t, self.how.seed, device, features.dtype)

    def taken(self, cache: sd_features.Cache, index: int, image, shape: tuple[int, ...] | None = None):
        """The features of an image, from the cache or for it: a tensor [C,h,w] on the CPU. Raises FloatingPointError."""
        import torch

        with contextlib.suppress(OSError):  # of a file that is gone or damaged, and taken again
            return torch.from_numpy(cache.read(index, shape))
        features = self.extract(index, image).cpu()
        if not features.isfinite().all():
            raise FloatingPointError("the features are not finite")
        cache.write(index, features)
        return features

    @property
    def wanted(self) -> list[int]:
        """Training images whose features the cache has to hold: without augmentation all."""
        return sorted(self.validation.tolist() if self.head.augment else [*self.rows.tolist(), *self.validation.tolist()])

    @property
    def head_file(self) -> Path:
        return self.run.folder / HEAD


def prepare(options: dict) -> Job:
    """Checks every option against the others and the files, cheap things first. Raises ValueError or OSError."""
    check_idle(options)
    images, head = runner.open_images(*cli.scored_of(options)), settings.pick(baselines.Head, options)
    runner.refuse_torchrun()
    printing.require(images.dataset)
    training, train = open_training(options, images)
    rows, validation = parts_of(train, training, options["seed"])
    source, features = find_features(options, images.running.device)
    how = settings.pick(early_stopping.Epochs, options)
    caches = caches_of(options, images, train, training, features, source)
    learned = training.identity() | head.identity() | (how.identity() if head.head != "linear" else {"seed": how.seed})
    scorer = runner.Scorer(
        command="sd_features",
        name=folder_of(features, head, training),
        settings=(features, head, training) + ((how,) if head.head != "linear" else ()),
        identity=caches[1].identity | learned | {"train": train.fingerprint(), "score": "logit"},
        labels=range(len(train.classes)),
        names=train.classes,
        about={"weights": source.describe(), "training": f"{len(rows)} images, {len(validation)} to choose by"},
        notices=(),
        load=None,
        task="supervised_classification",
    )
    job = Job(runner.ScoreTask(images, scorer), train, rows, validation, caches, source, features, head, how)
    scorer = replace(scorer, notices=notices_of(job), load=lambda device: load(job, device))
    return replace(job, run=runner.ScoreTask(images, scorer))


def check_idle(options: dict) -> None:
    """Raises ValueError for an option that the head has no use for."""
    if options["head"] == "linear":
        cli.refuse_idle(options, OF_NETWORKS, "with --head linear")
    else:
        cli.refuse_idle(options, ["pool"], f"with --head {options['head']}")


def open_training(options: dict, images: runner.Images):
    """(baselines.TrainingSet, its images). Raises ValueError, also where they would be the test images, or OSError."""
    spec, data = DATASETS[images.data.dataset], images.data
    split = options["train_split"] or ("train" if "train" in spec.splits or not spec.splits else spec.splits[-1])
    place = options["train_dir"] or data.data_dir
    training = settings.pick(baselines.TrainingSet, options, train_dir=place, train_split=split)
    if (place, split) == (data.data_dir, data.split):
        raise ValueError(f"--train_dir: the training images would be the test images, the {split} split in {place}: name others")
    try:
        train = datasets.open_images(replace(data, data_dir=place, split=split), images.running.dry_run)
        printing.require(train)
    except (ValueError, OSError) as error:
        message = str(error).replace("--split", "--train_split").replace("--data_dir", "--train_dir")
        raise ValueError(f"training images: {message}") from None
    if list(train.classes) != list(images.dataset.classes):
        raise ValueError(f"--train_dir {place}: its classes are not those of the test images")
    return training, train


def parts_of(train, training: baselines.TrainingSet, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to learn from and to choose by. Raises ValueError for too few images."""
    chosen = np.array(sharding.select(len(train), None, training.train_images, seed))
    return tuple(chosen[part] for part in early_stopping.held_back(train.labels[chosen], training.val_share, seed))


def find_features(options: dict, device: str) -> tuple[StableDiffusion, baselines.Features]:
    """The source of the weights, and what is taken of it. Raises ValueError for another model, size or level."""
    source = models.text_to_image(options["version"], options["model_path"], settings.ModelOptions(options["img_size"]))
    if not isinstance(source, StableDiffusion):
        raise ValueError(f"--version {options['model_path'] or options['version']}: features are those of the U-Net of Stable "
                         "Diffusion 1.x or 2.x, which this model has not")  # fmt: skip
    size, dtype = options["img_size"] or source.default_size, devices.resolve_dtype(options["dtype"], device)
    source.latent_shape(size)
    if options["t"] >= source.n_levels:
        raise ValueError(f"--t {options['t']}: this model's noise levels are 0..{source.n_levels - 1}")
    models.check_memory(source, size, device, dtype, 1, 1)
    return source, settings.pick(baselines.Features, options, img_size=size, dtype=dtype)


def caches_of(options: dict, images: runner.Images, train, training: baselines.TrainingSet, features: baselines.Features, source):
    """The caches of training and of test images. Raises ValueError where a folder holds other features."""
    of_model = features.identity() | {"seed": options["seed"], "noise": "seeded by timestep", "weights": source.identity()}
    parts = (("train", training.train_split, train), ("test", images.data.split, images.dataset))
    caches = []
    for part, split, dataset in parts:
        name = f"{part}_{split.replace('/', '_')}"
        identity = of_model | {"dataset": images.data.dataset, "split": split, "images": dataset.fingerprint()}
        place = options["cache_dir"] and Path(options["cache_dir"]) / name
        caches += [sd_features.Cache(place or images.folder(f"{name_of(features)}/{name}", lambda now=identity: now), identity)]
    for cache in caches:
        cache.check()
        files.try_writing(cache.folder)
    return tuple(caches)


def name_of(features: baselines.Features) -> str:
    resized = f"_{features.interpolation}" if features.interpolation != "bicubic" else ""
    return f"features_v{features.version}_{features.layer}_t{features.t}{resized}_{features.img_size}"


def folder_of(features: baselines.Features, head: baselines.Head, training: baselines.TrainingSet) -> str:
    parts = [name_of(features), head.head, "flat" if head.pool == "flat" else "", "augment" if head.augment else ""]
    return "_".join([*filter(None, parts), *([f"{training.train_images}images"] if training.train_images else [])])


def notices_of(job: Job) -> tuple:
    """What is to be done before the test images are classified."""
    missing = 0 if job.head_file.is_file() else len(job.caches[0].missing(job.wanted))
    return (
        "taking an image's features, a part of a network evaluation, counts as one",
        f"before them the features of {missing:,} training images are taken" if missing else None,
        "the head is trained already" if job.head_file.is_file() else None,
    )


# ---------------------------------------------------------------- features


def transform_of(features: baselines.Features):
    return transforms.sd_transform(features.img_size, features.interpolation)


def begin(job: Job) -> None:
    """Makes the folders. Raises OSError where they cannot be written."""
    selected = (len(job.rows) + len(job.validation), len(job.run.selected))
    for cache, expected in zip(job.caches, selected, strict=True):
        cache.begin("sd_features", job.run.options, expected)
    runner.begin(job.run)


def take_features(job: Job) -> loop.Ended:
    """Extracts features of this worker's share of the training images, for the cache."""
    running, cache = job.run.running, job.caches[0]
    todo = cache.missing(sharding.shard(job.wanted, running.worker_idx, running.n_workers))
    job.train.transform = transform_of(job.features)

    def work(index, image, label):
        job.taken(cache, index, image)
        return run_folder.Outcome(label, None, 1)

    return loop.work_through(running, job.train, todo, {}, work)


# ---------------------------------------------------------------- the head


def train_head(job: Job) -> None:
    """Writes the head and the course of its training."""
    print(f"Head: {job.head.head}, {len(job.rows)} training and {len(job.validation)} validation images", flush=True)
    fit = fit_linear if job.head.head == "linear" else fit_network
    model, shape, course = fit(job)
    about = {
        "head": job.head.head,
        "pool": job.head.pool,
        "shape": " ".join(map(str, shape)),
        "classes": str(len(job.train.classes)),
    }
    figures.write_csv(job.run.folder / COURSE, course)
    networks.save(job.head_file, model, about)
    (job.run.folder / CHECKPOINT).unlink(missing_ok=True)


def fit_linear(job: Job):
    """(head, shape of the features, course)"""
    import torch

    cache, labels = job.caches[0], job.train.labels
    rows = np.concatenate([job.rows, job.validation])
    maps = cache.stack(rows, pool=job.head.pool == "mean")
    n = len(job.rows)
    parts = np.arange(n), np.arange(n, len(rows))
    weight, bias, course = heads.probe(maps.flatten(1).numpy(), labels[rows], *parts, len(job.train.classes))
    shape = cache.read(rows[0]).shape
    model = heads.build("linear", shape, len(bias), job.head.pool)
    model.load_state_dict({"2.weight": torch.from_numpy(weight), "2.bias": torch.from_numpy(bias)})
    return model, shape, course


def fit_network(job: Job):
    """The same."""
    import torch

    device, cache = job.run.running.device, job.caches[0]
    labels, shape = torch.from_numpy(job.train.labels), cache.read(job.validation[0]).shape
    torch.manual_seed(job.how.seed)
    model = heads.build(job.head.head, shape, len(job.train.classes)).to(device)
    n = sum(p.numel() for p in model.parameters())
    print(f"{n / 1e6:.1f} M parameters on features {list(shape)}", flush=True)

    def passes(epoch):
        for rows in early_stopping.batches(len(job.rows), job.how.batch_size, job.how.seed, epoch):
            indices = job.rows[rows]
            inputs = views(job, indices, epoch) if job.head.augment else cache.stack(indices)
            yield inputs.float().to(device), labels[indices].to(device)

    def judge(model):
        parts = np.array_split(job.validation, -(-len(job.validation) // 256))
        return early_stopping.judged(model, ((cache.stack(rows).to(device), labels[rows].to(device)) for rows in parts))

    course = early_stopping.fit(model, passes, judge, job.how, job.run.folder / CHECKPOINT)
    return model, shape, course


def views(job: Job, indices, epoch: int):
    """Features [B,C,h,w] of random crops of images, with noise of their own."""
    import torch

    features, prepared = job.features, transform_of(job.features)

    def of(index):
        view = transforms.random_view(
            job.train.picture(index), features.img_size, features.interpolation, job.how.seed, epoch, index
        )
        return job.extract(index, prepared(view), 1 + epoch)

    return torch.stack([of(int(index)) for index in indices])


def load(job: Job, device: str):
    """(transform, features [C,h,w] -> logits float32 [K]) of the trained head. Raises ValueError for a damaged file."""
    import torch

    def build(about):
        shape = [int(n) for n in about["shape"].split()]
        return heads.build(about["head"], shape, int(about["classes"]), about["pool"])

    model = networks.load(job.head_file, build, device)

    @torch.inference_mode()
    def score(maps):
        return model(maps[None].float().to(device))[0].float().cpu()

    return transform_of(job.features), score


def main(argv=None) -> int:
    options = vars(parse_args(argv))
    with cli.bad_input():
        job = prepare(options)
        runner.announce(job.run)
    running = job.run.running
    if running.dry_run:
        return 0
    with cli.bad_input():
        run_folder.make_ready(job.run.folder)
        if not job.head_file.is_file() and job.caches[0].missing(job.wanted):
            _ = job.extract  # what is wrong with the weights is told before there is a folder
        begin(job)
    if not job.head_file.is_file():
        ended = take_features(job)
        if not ended.whole:
            return loop.close([], {}, "", ended)
        missing = len(job.caches[0].missing(job.wanted))
        if missing or running.worker_idx:
            why = f"{missing:,} training images' features are other workers' to take" if missing else "worker 0 trains the head"
            print(f"{why}: run the same command again when that is done")
            return 0
        train_head(job)

    shape = tuple(map(int, networks.about(job.head_file).get("shape", "").split())) or None

    def through(images, most):
        for index, image, label in images:
            yield index, lambda index=index, image=image: job.taken(job.caches[1], index, image, shape), label

    return runner.finish(job.run, options["command"], through)


if __name__ == "__main__":
    sys.exit(loop.run(main))
