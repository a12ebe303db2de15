"""Pictures and labels as a page is given them, and models that stay loaded between one picture and the next. Knows no page.

What is wrong is a ValueError of one line, meant for whoever sits at the page.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from diffusion import classify, models, settings
from diffusion.datasets import pictures, prompts, shipped, transforms
from diffusion.datasets.scenes import COLOURS, NOUNS
from diffusion.kernel import noise
from diffusion.metrics.calibration import Fit
from diffusion.predict import predictions
from diffusion.runs import loop
from diffusion.strategy import Strategy
from diffusion.strategy.method import Method
from diffusion.utils.files import fingerprint, one_line

MOST_BYTES = 20 * 2**20  # of an upload
MOST_PIXELS = 50_000_000
MOST_LABELS = 500
ITEMS = ("bag", "sneaker", "coat", "dress", "boot", "trouser")  # of the shipped pictures, those that are offered
COLOURED = ("red bag", "blue shirt", "green sandal", "yellow boot")  # combinations that the shipped models were not trained on


class Picture(NamedTuple):
    """image: RGB; key: of its noise, which for a file is that of scripts/classify.py."""

    image: Any
    key: str


def read_picture(path: str | Path) -> Picture:
    """Raises ValueError for what is no picture, is broken or too large."""
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"this file is larger than {MOST_BYTES >> 20} MB: make the picture smaller")
    try:
        with Image.open(path) as file:
            width, height = file.size
        if width * height <= MOST_PIXELS:
            image = pictures.open_rgb(path, custom=True)
    except (UnidentifiedImageError, FileNotFoundError):
        raise ValueError("this file is no picture that can be read: take a PNG, JPEG or WebP") from None
    except Exception as error:  # for broken files Pillow raises nearly anything
        raise ValueError(f"this picture cannot be read: {one_line(error)}") from None
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width:,} x {height:,} pixels are too many: make the picture smaller than {MOST_PIXELS:,} in all")
    key = predictions.content_key(str(path))
    assert key is not None  # it was read above
    return Picture(image, key)


def shipped_pictures() -> list[tuple[str, Picture, list[str]]]:
    """Some test pictures that ship: what each shows, the picture, and labels to try on it."""
    clothes, combos = shipped.Clothes("test"), shipped.Combos("test")
    examples = [(item, _first(clothes, NOUNS.index(item)), list(NOUNS)) for item in ITEMS]
    for name in COLOURED:
        noun = name.split()[1]
        examples.append((name, _first(combos, combos.classes.index(name)), [f"{colour} {noun}" for colour in COLOURS]))
    return examples


def _first(data, label: int) -> Picture:
    """The first picture of this label."""
    image = data[data.targets.tolist().index(label)][0].convert("RGB")
    return Picture(image, fingerprint(image.tobytes()))


def read_labels(text: str, template: str) -> prompts.PromptTable:
    """Raises ValueError for what is no choice between labels."""
    labels = prompts.labels_of(text or "")
    if not labels:
        raise ValueError("there are no labels: write two or more, one per line")
    if len(labels) > MOST_LABELS:
        raise ValueError(f"there are {len(labels)} labels: write at most {MOST_LABELS}")
    table = prompts.prompts_from_classes(labels, template)
    prompts.check_choice(table, "labels")
    return table


# ---------------------------------------------------------------- models


@dataclass(frozen=True, eq=False)
class Offer:
    """A model that pictures can be classified by; its weights are loaded when they are first needed, and kept.

    name: for a person; source: of the weights; strategy: of so many candidates; fit: of its probabilities, if there is one
    """

    name: str
    source: Any
    model: settings.TextToImage
    running: settings.Running
    strategy: Callable[[int], Strategy]
    loss: str
    fit: Fit | None = None

    def identity(self, table: prompts.PromptTable) -> dict:
        """What the numbers depend on, for a fit of probabilities."""
        extra = {"loss": self.loss, "weights": self.source.identity()}
        extra |= {"prompts": fingerprint(table.prompts, table.classidx)}
        return self.model.identity() | self.strategy(len(table.prompts)).identity() | extra

    @cached_property
    def _denoiser(self):
        return models.load(self.source, self.running.device, self.model.dtype, self.running.compile, self.model.error_space)

    @property
    def is_loaded(self) -> bool:
        return "_denoiser" in vars(self)

    @property
    def img_size(self) -> int:
        """Pixels a side."""
        return self.model.img_size or self.source.default_size

    def price(self, n: int) -> int:
        """Evaluations of a picture with n labels, at most."""
        chosen = self.strategy(n)
        return chosen.price(chosen.plan(self.source.n_levels), n)

    def check(self, table: prompts.PromptTable) -> str | None:
        """A line to tell the user. Raises ValueError for labels that this model or this strategy cannot take."""
        n, chosen = len(table.prompts), self.strategy(len(table.prompts))
        chosen.check(n, self.source.n_levels)
        chosen.check_run(self.identity(table), n, table.classidx)
        size, device = self.img_size, self.running.device
        models.check_memory(self.source, size, device, self.model.dtype, self.running.batch_size, self.price(n))
        return models.check_prompts(self.source, table.prompts, table.classidx, table.classnames, "labels")

    def classifier(self, table: prompts.PromptTable, seed: int) -> classify.Classifier:
        """Raises ValueError or OSError for weights that do not do."""
        chosen, shape = self.strategy(len(table.prompts)), self.source.latent_shape(self.img_size)
        price = self.price(len(table.prompts))
        network = loop.start_network(lambda *_: self._denoiser, table.prompts, shape, self.running, self.model.dtype, price)
        transform, method = transforms.sd_transform(self.img_size, self.model.interpolation), Method(chosen, self.loss)
        bank = noise.Seeded(seed)
        return classify.Classifier(network.denoiser, network.conditions, table.classidx, method, bank, network.batch, transform)


def with_fit(offers: list[Offer], fit: Fit, template: str, path) -> list[Offer]:
    """The fit belongs to those that it was made with. Raises ValueError where that is none of them."""
    table, taken = prompts.prompts_from_classes(["a", "b"], template), []
    problem: ValueError | None = None
    for offer in offers:
        try:
            predictions.check_fit(fit, offer.identity(table), path)
            taken.append(replace(offer, fit=fit))
        except ValueError as error:
            problem = error
            taken.append(offer)
    if problem and all(offer.fit is None for offer in taken):
        raise problem
    return taken


# ---------------------------------------------------------------- a picture


@dataclass(frozen=True)
class Trial:
    """A picture under way: what is asked of it, and by whom."""

    offer: Offer
    picture: Picture
    table: prompts.PromptTable
    seed: int

    @cached_property
    def _classifier(self) -> classify.Classifier:
        return self.offer.classifier(self.table, self.seed)

    @property
    def _index(self) -> int:
        """The index of its noise."""
        return predictions.noise_index(self.picture.key)

    @property
    def fit_notice(self) -> str | None:
        return predictions.fit_notice(self.offer.fit, self.offer.identity(self.table)["prompts"])

    def rounds(self) -> Iterator[classify.Round]:
        """The rounds of the race, as in `Classifier.rounds`."""
        yield from self._classifier.rounds(self.picture.image, self._index)

    def prediction(self, result: classify.Result) -> predictions.Prediction:
        return predictions.predict(result, dict(enumerate(self.table.classnames)), self.offer.fit)

    def disagreement(self, prediction: predictions.Prediction) -> tuple[Any, Any]:
        """The image [3,H,W] that the model sees, and the second label's squared error less the first one's [h,w]."""
        first, second = prediction.candidates[:2]
        ours, theirs = self._classifier.error_maps(self.picture.image, [first.row, second.row], self._index).numpy()
        transform = self._classifier.transform
        assert transform is not None  # as `Offer.classifier` gives one
        return transform(self.picture.image), theirs - ours
