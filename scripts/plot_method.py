#!/usr/bin/env python
"""Draw the method on one image: the noise that a model predicts under three prompts, and the errors, of which the lowest wins.

offline, on the shipped model and a shipped test image of Fashion-MNIST; the figure of the README:
  python scripts/plot_method.py -o method.png
another image with other candidates:
  python scripts/plot_method.py --image 3 --labels trouser dress shirt -o method.png

All arrays are those of a run at one timestep; the bars are means over 100 timesteps. Images are decoded latents. Noise belongs to
the latents: 8 x 8, and three of its four channels are drawn as red, green and blue. The implied image is the noised image with
the predicted noise removed. Prints the errors, and the command with all of its options.
"""

import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import classify, cli, models
from diffusion.analysis import figures
from diffusion.cli import parsing
from diffusion.datasets import prompts, shipped
from diffusion.runs import loop
from diffusion.strategy import Stages
from diffusion.utils import commands, drawing, files

MODEL, TEMPLATE, TIMESTEPS = "tiny", "a photo of a {}.", 100

SIZE = (900, 470)  # pixels on a page, of which the file has two each way
TOP, SIDE, PITCH = 76, 100, 122  # of the first row of pictures, of a picture, from row to row
COLUMNS = (272, 384, 496)  # of a prompt's three pictures
WINS, LOSES, BAND, QUIET = "#1a7f37", "#8c959f", "#dafbe1", "#57606a"


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("--image", type=parsing.at_least(0), default=30, metavar="INDEX", help="of a shipped image (default: 30)")
    parser.add_argument(
        "--labels",
        nargs=3,
        default=["bag", "boot", "coat"],
        metavar="LABEL",
        help=f'three, of which "{TEMPLATE}" makes prompts (default: bag boot coat)',
    )
    parser.add_argument(
        "--timestep",
        type=parsing.at_least(0, 999),
        default=765,
        metavar="T",
        help="which is drawn, or the nearest one of the 100 (default: 765)",
    )
    parser.add_argument("-o", "--out", type=figures.picture_file, required=True, metavar="FILE", help=".png or .svg")
    return parser.parse_args(argv)


def prepare(options: dict):
    """The PIL image and the prompts. Raises ValueError or OSError."""
    files.try_file(options["out"])
    images, table = shipped.Clothes("test"), prompts.prompts_from_classes(options["labels"], TEMPLATE)
    if options["image"] >= len(images):
        raise ValueError(f"--image {options['image']}: {len(images)} images ship, counted from 0")
    prompts.check_choice(table, "--labels")
    models.check_prompts(models.text_to_image(MODEL), table.prompts, table.classidx, table.classnames, "--labels")
    return images[options["image"]][0], table.prompts


# ---------------------------------------------------------------- the arrays


@dataclass(frozen=True)
class Arrays:
    """What the method computes of one image and K prompts.

    image, noised: [3,H,W], about in [-1,1]; implied: K of them
    noise: [C,h,w]; predictions of it: [K,C,h,w]
    t: the timestep of all these; errors: K mean squared errors at t; means: the same over all timesteps
    """

    image: Any
    noise: Any
    noised: Any
    predictions: Any
    implied: list
    t: int
    errors: list[float]
    means: list[float]

    @property
    def winner(self) -> int:
        return self.means.index(min(self.means))


def compute(picture, index: int, texts: list[str], timestep: int) -> Arrays:
    """The arrays of a PIL image, whose noise is that of a run's image with this index, at the timestep nearest to this one."""
    import torch

    classifier = classify.text_to_image(MODEL, texts, strategy=Stages((1,), (TIMESTEPS,)), device="cpu")
    decode = models.text_to_image(MODEL).weights.vae_decoder("cpu")
    denoiser, plan, image = classifier.denoiser, classifier.plan, classifier.transform(picture)
    result, x0, s = classifier(picture, index), denoiser.encode(image), int(abs(plan.t - timestep).argmin())
    noise, t = classifier.noise(index, plan, x0.shape, slice(s, s + 1)), torch.from_numpy(plan.t[[s]])
    x_t = denoiser.levels.add_noise(x0, noise, t)
    with torch.inference_mode():
        predictions = denoiser.predict_latents(x_t, t, classifier.conditions, None)
    implied = denoiser.levels.conversion("epsilon", "x0")(predictions, x_t, t)
    errors = [float(result.errors[row][s]) for row in range(len(texts))]
    pictures = [decode(latent) for latent in implied]
    return Arrays(image, noise[0], decode(x_t[0]), predictions, pictures, int(t), errors, result.means.tolist())


# ---------------------------------------------------------------- the figure


class Page:
    """A figure on which things are placed by pixels from the upper left corner."""

    def __init__(self, width: int, height: int):
        self.figure = drawing.pyplot().figure(figsize=(width / 100, height / 100), facecolor="white")
        self.width, self.height = width, height

    def _place(self, x: float, y: float, width: float, height: float) -> tuple[float, ...]:
        return x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height

    def picture(self, x: float, y: float, pixels) -> None:
        """pixels: [H,W,3], or grey [H,W], from 0 to 1."""
        axis = self.figure.add_axes(self._place(x, y, SIDE, SIDE))
        axis.imshow(pixels, "gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color=LOSES, linewidth=0.8)

    def text(self, x: float, y: float, words: str, size: float = 9.5, **more) -> None:
        """Its middle is at the height y."""
        self.figure.text(*self._place(x, y, 0, 0)[:2], words, size=size, va="center", **more)

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        from matplotlib.patches import Rectangle

        left, bottom, *size = self._place(x, y, width, height)
        self.figure.add_artist(Rectangle((left, bottom), *size, color=colour, linewidth=0, zorder=-1))


def as_picture(image):
    """[3,H,W] in [-1,1] -> [H,W,3] in [0,1]."""
    return ((image.permute(1, 2, 0) + 1) / 2).clamp(0, 1)


def as_squares(noise):
    """[C,h,w], of which nearly all lies within 2.5 of 0 -> [h,w,3] in [0,1]."""
    return ((noise[:3].permute(1, 2, 0) + 2.5) / 5).clamp(0, 1)


def draw(path: Path, arrays: Arrays, texts: list[str]) -> None:
    """The three steps from left to right."""
    page = Page(*SIZE)
    draw_noising(page, arrays)
    draw_predictions(page, arrays, texts)
    draw_errors(page, arrays)
    note = f"Implied image: the noised image with the predicted noise removed. Timestep {arrays.t} of 1,000, latents of 8 x 8."
    page.text(18, SIZE[1] - 18, note, color=QUIET)
    figures.save(page.figure, path, dpi=200)


def draw_noising(page: Page, arrays: Arrays) -> None:
    page.text(18, 24, "1  Add noise", 12, weight="bold")
    summands = [(as_picture(arrays.image), "image", ""), (as_squares(arrays.noise), "noise", "+")]
    for row, (pixels, name, sign) in enumerate([*summands, (as_picture(arrays.noised), "noised image", "=")]):
        y = TOP + PITCH * row
        page.picture(38, y, pixels)
        page.text(88, y - 11, name, ha="center", color=QUIET)
        page.text(20, y + 50, sign, 16, ha="center")


def draw_predictions(page: Page, arrays: Arrays, texts: list[str]) -> None:
    """A row for each prompt. Errors are white where there is none, black where the largest of all is."""
    page.text(182, 24, "2  Predict the noise under each prompt", 12, weight="bold")
    for x, name in zip(COLUMNS, ("predicted noise", "squared error", "implied image"), strict=True):
        page.text(x + 50, TOP - 18, name, ha="center", color=QUIET)
    maps = (arrays.predictions - arrays.noise).square().mean(1)
    for row, text in enumerate(texts):
        y = TOP + PITCH * row
        if row == arrays.winner:
            page.box(172, y - 8, SIZE[0] - 182, SIDE + 16, BAND)
        lines = textwrap.wrap(f'"{text}"', 12, max_lines=5, placeholder="...")
        page.text(182, y + 50, "\n".join(lines), 10.5)
        pictures = as_squares(arrays.predictions[row]), 1 - maps[row] / maps.max(), as_picture(arrays.implied[row])
        for x, pixels in zip(COLUMNS, pictures, strict=True):
            page.picture(x, y, pixels)


def draw_errors(page: Page, arrays: Arrays) -> None:
    """A bar for each prompt's mean."""
    page.text(626, 24, "3  The lowest error wins", 12, weight="bold")
    page.text(626, TOP - 18, f"mean squared error, {TIMESTEPS} timesteps", color=QUIET)
    for row, mean in enumerate(arrays.means):
        y, length, wins = TOP + PITCH * row + 36, 180 * mean / max(arrays.means), row == arrays.winner
        page.box(626, y, length, 28, WINS if wins else LOSES)
        page.text(636 + length, y + 14, f"{mean:.4f}", 11, weight="bold" if wins else "normal", color=WINS if wins else QUIET)


def print_errors(arrays: Arrays, texts: list[str]) -> None:
    width = max(map(len, texts))
    print(f"  {'':{width}}{f'error at t = {arrays.t}':>20}{f'mean of {TIMESTEPS}':>14}")
    for text, error, mean in zip(texts, arrays.errors, arrays.means, strict=True):
        print(f"  {text:{width}}{error:20.5f}{mean:14.5f}")


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        picture, texts = prepare(vars(args))
        arrays = compute(picture, args.image, texts, args.timestep)
        draw(args.out, arrays, texts)
    print(f"Image {args.image}: {args.labels[arrays.winner]}")
    print_errors(arrays, texts)
    options = ["--image", args.image, "--labels", *args.labels, "--timestep", args.timestep, "-o", args.out]
    print(commands.typed(f"Drawn by: {shlex.join(['python', 'scripts/plot_method.py', *map(str, options)])}"))
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
