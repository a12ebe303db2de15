"""Labelled images that a text-to-image pipeline draws: a template at random for each, seeded by class and number.

torch is imported to draw.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusion.models.families.sd import StableDiffusion
from diffusion.models.families.sd3 import StableDiffusion3
from diffusion.models.speed import devices
from diffusion.runs.artifacts import Store
from diffusion.utils import files

DRAWN_BY = (StableDiffusion, StableDiffusion3)  # families whose pipelines are tried


class Pictures(Store):
    """<class folder>/<number>.png; a key is (class folder, number)."""

    flag, pattern = "--out", "*/*.png"

    def path(self, key: tuple[str, int]) -> Path:
        return self.folder / key[0] / f"{key[1]:06d}.png"

    def write(self, key: tuple[str, int], picture) -> None:
        files.write(self.path(key), lambda file: picture.save(file, format="PNG"))


@dataclass(frozen=True)
class Drawing:
    """What is drawn. names: of the K classes; texts: of each class, one per template; per_class: images; batch: how many of a
    class go through the pipeline together, consecutive numbers, always so many: whoever draws an image draws the same one.

    An image is (row of its class, number).
    """

    names: Sequence[str]
    texts: Sequence[Sequence[str]]
    per_class: int
    batch: int
    seed: int

    @property
    def images(self) -> list[tuple[int, int]]:
        """All of them, one class after the other."""
        return [(row, number) for row in range(len(self.names)) for number in range(self.per_class)]

    @cached_property
    def folders(self) -> list[str]:
        """A folder name for each class; they sort as the classes do."""
        digits = len(str(len(self.names) - 1))
        return [f"{row:0{digits}d} {re.sub('[^0-9A-Za-z-]+', '_', name)}"[:100] for row, name in enumerate(self.names)]

    def key(self, image: tuple[int, int]) -> tuple[str, int]:
        """The key in Pictures."""
        return self.folders[image[0]], image[1]

    def batch_of(self, image: tuple[int, int]) -> list[tuple[int, int]]:
        """Those that are drawn together with it, also such as nobody asked for."""
        first = image[1] // self.batch * self.batch
        return [(image[0], first + n) for n in range(self.batch)]

    def chance(self, image: tuple[int, int]) -> tuple[str, int]:
        """(text, seed of the noise): a function of the seed, the class and the number."""
        rng, texts = np.random.default_rng([self.seed, *image]), self.texts[image[0]]
        return texts[int(rng.integers(len(texts)))], int(rng.integers(2**63))


def drawer(source, device: str, dtype: str, img_size: int, steps: int, guidance: float) -> Callable:
    """(texts, seeds) -> PIL images of img_size pixels a side, by the source's own pipeline and scheduler.

    Raises ValueError or OSError for weights that do not do.
    """
    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils.logging import disable_progress_bar
    from transformers.utils.logging import disable_progress_bar as disable_bar_of_weights

    disable_progress_bar()
    disable_bar_of_weights()
    parts = {part: source.weights.load(part, device, devices.torch_dtype(dtype)) for part in source.weights.classes}
    pipeline = DiffusionPipeline.from_pretrained(source.source, revision=source.revision, **left_out(source), **parts)
    pipeline.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def draw(texts, seeds):
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        sizes = {"height": img_size, "width": img_size}
        return pipeline(list(texts), num_inference_steps=steps, guidance_scale=guidance, generator=noise, **sizes).images

    return draw


def left_out(source) -> dict:
    """Parts that a pipeline does without: the safety checker, which blackens pictures, and T5 where the model has none."""
    names = ("safety_checker",) if isinstance(source, StableDiffusion) else ("text_encoder_3", "tokenizer_3")
    return {name: None for name in names} if "text_encoder_3" not in source.weights.classes else {}


def contact_sheet(pictures: Pictures, drawing: Drawing, classes: int, columns: int, largest: int):
    """The first images of the first classes, a row each, at most `largest` pixels a side: a PIL image."""
    from PIL import Image

    rows, columns = min(classes, len(drawing.names)), min(columns, drawing.per_class)
    with Image.open(pictures.path(drawing.key((0, 0)))) as first:
        side = min(largest, first.width)
    sheet = Image.new("RGB", (columns * side, rows * side))
    for row, column in np.ndindex(rows, columns):
        with Image.open(pictures.path(drawing.key((row, column)))) as picture:
            sheet.paste(picture.resize((side, side)), (column * side, row * side))
    return sheet
