#!/usr/bin/env python
"""A classifier trained on images that a text-to-image model draws: the paper's "synthetic data" baseline (F.4).

  offline, on the shipped model: 100 images of each class, a small network, the shipped test images
    python scripts/synthetic_data.py --version tiny --dataset fashion_mnist --per_class 100 --network resnet18 --size 32
  only the images and the sheet to look at, by the second of four processes
    python scripts/synthetic_data.py --dataset pets --draw_only --n_workers 4 --worker_idx 1

One command draws the images (a template at random for each, PNGs in class folders), trains a ResNet on them with a tenth of each
class to choose by, and classifies the test images. What is done is not done again. With --n_workers each process draws its share,
worker 0 trains once all are there. Records and folders are those of eval_prob_adaptive.py, with minus the logit in place of an
error, so that all scripts that read runs read these.
"""

import sys
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
from diffusion.baselines import early_stopping, networks, runner, synthetic_images
from diffusion.cli import parsing
from diffusion.datasets import DATASETS, prompts, transforms
from diffusion.models.speed import devices
from diffusion.runs import loop, printing, run_folder, sharding
from diffusion.utils import files
from diffusion.utils.files import fingerprint

NETWORK, COURSE, CHECKPOINT = "network.safetensors", "training.csv", "training.checkpoint"  # in the run folder
SHEET = "sheet.png"  # there too
ON_SHEET = {"classes": 50, "columns": 10, "largest": 96}  # pixels a side
OF_THE_NETWORK = ("network", "size", "epochs", "batch_size", "lr", "patience")
VALIDATION = 0.1  # of each class, as in the paper
WEIGHT_DECAY = 1e-4  # the paper's


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    cli.add_selection_options(cli.add_data_options(parser, list(DATASETS)))
    group = parser.add_argument_group("drawn images")
    group.add_argument("--version", type=parsing.name_part, default="2-0", help="1-1 ... 1-5, 2-0, 2-1, sd3-medium, tiny, "
                       "tiny-sd3 (default: 2-0)")  # fmt: skip
    group.add_argument("--model_path", help="local pipeline folder or hub id in place of the version's weights")
    group.add_argument("--per_class", type=parsing.at_least(2, 1_000_000), default=10_000, metavar="N", help="images (default: "
                       "10000, as in the paper)")  # fmt: skip
    group.add_argument(
        "--steps", type=parsing.at_least(1, 1000), default=50, help="of the pipeline's own scheduler (default: 50)"
    )
    group.add_argument(
        "--guidance", type=parsing.positive, default=7.5, metavar="W", help="of the text, 1 for none (default: 7.5)"
    )
    group.add_argument("--templates", metavar="FILE", help='text file of templates, one per line: "a photo of a {}."; clip: the '
                       "list that CLIP's authors published for the data set; each image takes one at random (default: the "
                       "dataset's prompts)")  # fmt: skip
    group.add_argument("--img_size", type=parsing.at_least(1), help="pixels a side (default: the model's own)")
    group.add_argument("--draw_batch", type=parsing.at_least(1), default=8, metavar="N", help="images of a class that are drawn "
                       "together, the same ones whoever draws (default: 8)")  # fmt: skip
    group.add_argument("--dtype", default="auto", choices=["auto", *devices.DTYPES], help="of the model (default: auto, float16 "
                       "on CUDA, else float32)")  # fmt: skip
    group.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="where they are (default: beside the run folder)")
    group.add_argument("--draw_only", action="store_true", help="stop when they are drawn")
    group.add_argument("--device", help="default: cuda if there is one, else cpu")
    group = parser.add_argument_group("classifier")
    group.add_argument("--network", choices=networks.NETWORKS, default="resnet50", help="torchvision's, without its weights "
                       "(default: resnet50, the paper's)")  # fmt: skip
    group.add_argument(
        "--size", type=parsing.at_least(8, 4096), help="pixels a side that it sees (default: 224, or all of smaller images)"
    )
    cli.add_epoch_options(group, epochs=90, batch_size=256, lr=1e-3, patience=10, about="; the paper says 0.1, odd for AdamW")
    cli.add_run_options(parser)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Job:
    """The run, and what leads to it: the images that are drawn, where they are kept, and how a network learns from them."""

    run: runner.ScoreTask
    drawing: synthetic_images.Drawing
    pictures: synthetic_images.Pictures
    source: Any
    drawn: baselines.Drawn
    network: baselines.Network
    how: early_stopping.Epochs

    @cached_property
    def draw(self):
        """Generated images, as from synthetic_images.drawer; weights are loaded when it is first asked for."""
        loop.tell_loading(self.source)
        requested = self.drawn
        return synthetic_images.drawer(
            self.source, self.run.running.device, requested.dtype, requested.img_size, requested.steps, requested.guidance
        )

    @property
    def network_file(self) -> Path:
        return self.run.folder / NETWORK

    def missing(self, images) -> list[tuple[int, int]]:
        """Those of these images that are not drawn yet."""
        by_key = {self.drawing.key(image): image for image in images}
        return [by_key[key] for key in self.pictures.missing(by_key)]


def prepare(options: dict) -> Job:
    """Checks every option against the others and the files, cheap things first. Raises ValueError or OSError."""
    if options["draw_only"]:
        cli.refuse_idle(options, OF_THE_NETWORK, "with --draw_only")
    images = runner.open_images(*cli.scored_of(options))
    runner.refuse_torchrun()
    source, drawn = find_model(options, images.running.device)
    classes, what = what_to_draw(options, images)
    network = settings.pick(baselines.Network, options, size=options["size"] or min(224, drawn.img_size))
    how = settings.pick(early_stopping.Epochs, options, weight_decay=WEIGHT_DECAY, cosine=True)
    name = f"drawn_v{drawn.version}_{drawn.steps}steps_{drawn.guidance:g}guidance_{drawn.img_size}"
    hashes = {"weights": source.identity(), "texts": fingerprint(what.texts), "names": fingerprint(what.names)}
    identity = drawn.identity() | hashes | {"seed": what.seed, "draw_batch": what.batch}
    pictures = synthetic_images.Pictures(options["out"] or images.folder(name, lambda: identity), identity)
    pictures.check()
    files.try_writing(pictures.folder)
    scorer = runner.Scorer(
        command="synthetic_data",
        name=f"{name}_{what.per_class}each_{network.network}_{network.size}",
        settings=(drawn, network, how),
        identity=identity | network.identity() | how.identity() | {"per_class": what.per_class, "score": "logit"},
        labels=classes,
        names=what.names,
        about={"weights": source.describe(), "texts": f'{len(what.texts[0])} per class, such as "{what.texts[0][0]}"'},
        notices=(),
        load=None,
    )
    job = Job(runner.ScoreTask(images, scorer), what, pictures, source, drawn, network, how)
    scorer = replace(scorer, notices=notices_of(job), load=lambda device: load(job, device))
    return replace(job, run=runner.ScoreTask(images, scorer))


def find_model(options: dict, device: str) -> tuple[Any, baselines.Drawn]:
    """The source of the weights, and how it draws. Raises ValueError for another model or size."""
    source = models.text_to_image(options["version"], options["model_path"], settings.ModelOptions(options["img_size"]))
    if not isinstance(source, synthetic_images.DRAWN_BY):
        raise ValueError(f"--version {options['model_path'] or options['version']}: images are drawn by Stable Diffusion 1.x, "
                         "2.x and 3 only")  # fmt: skip
    size, dtype = options["img_size"] or source.default_size, devices.resolve_dtype(options["dtype"], device)
    source.latent_shape(size)
    models.check_memory(source, size, device, dtype, options["draw_batch"], options["draw_batch"])
    return source, settings.pick(baselines.Drawn, options, img_size=size, dtype=dtype)


def what_to_draw(options: dict, images: runner.Images) -> tuple[list[int], synthetic_images.Drawing]:
    """(labels of the classes, what is drawn of them). Raises ValueError for templates that cannot be read."""
    templates = datasets.templates_of(images.data.dataset, options["templates"]) if options["templates"] else [None]
    tables = [datasets.load_prompts(images.data.dataset, images.dataset, None, template) for template in templates]
    table = prompts.joined(tables)
    classes, names = sorted(set(table.classidx)), dict(zip(table.classidx, table.classnames, strict=True))
    texts = [[text for text, label in zip(table.prompts, table.classidx, strict=True) if label == c] for c in classes]
    drawn = synthetic_images.Drawing(
        [names[c] for c in classes], texts, options["per_class"], options["draw_batch"], options["seed"]
    )
    return classes, drawn


def notices_of(job: Job) -> tuple:
    """What is to be done before the test images are classified."""
    if job.network_file.is_file():
        return ("the network is trained already",)
    missing, each = len(job.missing(job.drawing.images)), evaluations(job.drawn)
    price = f"{missing:,} images are to be drawn first, at {each} network evaluations each {missing * each:,} in all"
    return (price, "one pass of the network that is trained on them counts as one evaluation")


def evaluations(drawn: baselines.Drawn) -> int:
    """Network evaluations to generate an image: with and without the text in each step."""
    return drawn.steps * (2 if drawn.guidance > 1 else 1)


# ---------------------------------------------------------------- drawing


class ToDraw:
    """Images to be drawn as a data set, of which only the labels are there."""

    def __init__(self, images: list[tuple[int, int]]):
        self.images = images

    def __getitem__(self, index: int):
        return None, self.images[index][0]

    def name(self, index: int) -> int:
        return index


def draw(job: Job) -> loop.Ended:
    """This worker's share of what is missing, in whole batches, as an image comes out alike only with its neighbours."""
    running, what = job.run.running, job.drawing
    firsts = [image for image in what.images if what.batch_of(image)[0] == image]
    mine = set(sharding.shard(firsts, running.worker_idx, running.n_workers))
    images = [image for image in job.missing(what.images) if what.batch_of(image)[0] in mine]

    def work(index, picture, label):
        if not job.pictures.path(what.key(images[index])).is_file():  # drawn with an earlier one
            batch = what.batch_of(images[index])
            for image, picture in zip(batch, job.draw(*zip(*map(what.chance, batch), strict=True)), strict=True):
                if image[1] < what.per_class:
                    job.pictures.write(what.key(image), picture)
        return run_folder.Outcome(label, None, evaluations(job.drawn))

    return loop.work_through(running, ToDraw(images), list(range(len(images))), {}, work)


def write_sheet(job: Job) -> None:
    path = job.run.folder / SHEET
    sheet = synthetic_images.contact_sheet(job.pictures, job.drawing, **ON_SHEET)
    files.write(path, lambda file: sheet.save(file, format="PNG"))
    print(f"Images: {job.pictures.folder}, the first ones in {path}", flush=True)


# ---------------------------------------------------------------- the network


class Views:
    """Drawn images as (tensor [3,S,S], label); epoch: whose random crops, None for images as they are."""

    def __init__(self, job: Job, images, epoch: int | None):
        self.files, self.labels = [job.pictures.path(job.drawing.key(image)) for image in images], [row for row, _ in images]
        self.size, self.seed, self.epoch, self.plain = job.network.size, job.how.seed, epoch, transform_of(job.network)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int):
        from PIL import Image

        with Image.open(self.files[row]) as picture:
            image = picture.convert("RGB")
        if self.epoch is not None:
            image = transforms.random_view(image, self.size, "bilinear", self.seed, self.epoch, int(row))
        return self.plain(image), self.labels[row]


def transform_of(network: baselines.Network):
    return transforms.sd_transform(network.size, "bilinear")


def train(job: Job) -> None:
    """Writes the network and the course of its training."""
    import torch
    from torch.utils.data import DataLoader

    from diffusion.datasets import loader

    device, workers = job.run.running.device, loader.processes(job.run.running.device)
    images = job.drawing.images
    parts = early_stopping.held_back(np.array([row for row, _ in images]), VALIDATION, job.how.seed)
    training, validation = ([images[i] for i in part] for part in parts)
    print(f"Network: {job.network.network} at {job.network.size} pixels, {len(training)} images, {len(validation)} to choose by",
          flush=True)  # fmt: skip
    torch.manual_seed(job.how.seed)
    model = networks.build(job.network.network, len(job.drawing.names)).to(device)

    def on_device(images, epoch, **how):
        for inputs, target in DataLoader(Views(job, images, epoch), num_workers=workers, **how):
            yield inputs.to(device), target.to(device)

    def passes(epoch):
        return on_device(
            training, epoch, batch_sampler=early_stopping.batches(len(training), job.how.batch_size, job.how.seed, epoch)
        )

    def judge(model):
        return early_stopping.judged(model, on_device(validation, None, batch_size=64))

    course = early_stopping.fit(model, passes, judge, job.how, job.run.folder / CHECKPOINT)
    figures.write_csv(job.run.folder / COURSE, course)
    networks.save(job.network_file, model, {"network": job.network.network, "classes": str(len(job.drawing.names))})
    (job.run.folder / CHECKPOINT).unlink(missing_ok=True)


def load(job: Job, device: str):
    """(transform, image [3,S,S] -> logits float32 [K]) of the trained network. Raises ValueError for a damaged file."""
    import torch

    model = networks.load(job.network_file, lambda about: networks.build(about["network"], int(about["classes"])), device)

    @torch.inference_mode()
    def score(image):
        return model(image[None].to(device))[0].float().cpu()

    return transform_of(job.network), score


def main(argv=None) -> int:
    options = vars(parse_args(argv))
    with cli.bad_input():
        job = prepare(options)
        runner.announce(job.run)
        printing.tell_missing(job.run.dataset)
    running = job.run.running
    if running.dry_run:
        return 0
    every, drawing_first = job.drawing.images, options["draw_only"] or not job.network_file.is_file()
    with cli.bad_input():
        run_folder.make_ready(job.run.folder)
        if drawing_first and job.missing(every):
            _ = job.draw  # what is wrong with the weights is told before there is a folder
        job.pictures.begin("synthetic_data", job.run.options, len(every))
        runner.begin(job.run)
    if drawing_first:
        ended = draw(job)
        if not ended.whole:
            return loop.close([], {}, "", ended)
        missing = len(job.missing(every))
        if not missing:
            write_sheet(job)
        if options["draw_only"]:
            return 0
        if missing or running.worker_idx:
            why = f"{missing:,} images are other workers' to draw" if missing else "worker 0 trains the network"
            print(f"{why}: run the same command again when that is done")
            return 0
        train(job)
    return runner.finish(job.run, options["command"])


if __name__ == "__main__":
    sys.exit(loop.run(main))
