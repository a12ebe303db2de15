"""What scripts that read run folders share: a run's grid, numbers as CSV and JSON, pictures, a map laid over one."""

import json
import sys
from pathlib import Path
from typing import Any

from diffusion.analysis import tables
from diffusion.runs import run_folder
from diffusion.utils import drawing, files, outputs

picture_file = outputs.Output(".png", ".svg")  # that a figure can be written to
picture_and_table = outputs.Output(".png", ".svg", beside=(".csv",))


def add_run_argument(parser):
    """The run folder, and how to read it."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder with all errors of every candidate")
    parser.add_argument("--loss", choices=["l2", "l1", "kl", "vlb"], help="of a DiT run with --save_errors (default: the run's)")
    parser.add_argument("--prompt_path", help="prompt CSV of a folder that the published code wrote")


def read_grid(folder: Path, loss: str | None, prompt_path: str | None):
    """The Run and the Grid of a folder, by the options of `add_run_argument`. Raises ValueError as `tables` does."""
    run = tables.read_run(folder, loss, prompt_path=prompt_path)
    tell_unreadable(run)
    return run, tables.grid_of(run)


def tell_unreadable(run) -> None:
    """Names on stderr the records that do not count."""
    if message := run_folder.unreadable_message(run.unreadable, "not counted"):
        print(f"Note: {run.folder}: {message}", file=sys.stderr)


def position_of(run, index: int) -> int:
    """Where the image of this dataset index is among the run's. Raises ValueError for one that the run lacks."""
    known = [image.index for image in run.images]
    if index not in known:
        raise ValueError(f"--image {index}: {run.folder} has {len(known)} images, from {known[0]} to {known[-1]}, not this one")
    return known.index(index)


def check_several(grid, folder) -> None:
    """Raises ValueError for a grid of one timestep or one class, in which there is nothing to compare."""
    if len(set(grid.t.tolist())) < 2 or len(set(grid.class_of)) < 2:
        raise ValueError(f"{folder} has one timestep or one class: run it again on several (--n_samples 50, say)")


def save(figure, path: Path, dpi: int = 110) -> None:
    """PNG or SVG by the suffix, whole or absent; makes the folder and closes the figure."""
    files.write(path, lambda file: figure.savefig(file, format=path.suffix[1:].lower(), dpi=dpi))
    drawing.pyplot().close(figure)


def write_csv(path: Path, rows: list[dict]) -> None:
    """As `flat_rows`; whole or absent."""
    files.write_csv(path, flat_rows(rows))


def flat_rows(rows: list[dict]) -> list[list]:
    """The columns, and a list of cells a row: an Estimate or Interval x becomes the cells x, x_low, x_high, x_n; a cell that a
    row lacks is empty."""
    flat = [_cells(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    return [columns, *([row.get(key, "") for key in columns] for row in flat)]


def to_json(result) -> str:
    """A dataclass becomes an object of its fields, or what its as_dict says."""
    return json.dumps(result, default=lambda x: x.as_dict() if hasattr(x, "as_dict") else vars(x), indent=1) + "\n"


def _cells(row: dict) -> dict:
    cells: dict[str, Any] = {}
    for key, value in row.items():
        of_value = value.as_dict() if hasattr(value, "as_dict") else {"value": value}
        cells |= {key if name == "value" else f"{key}_{name}": cell for name, cell in of_value.items()}
    return cells


def write_parquet(path: Path, rows: list[dict], about: dict | None = None) -> None:
    """Rows of plain values and lists, whole or absent; a cell that a row lacks is null. about: pandas.read_parquet has it as
    `attrs`."""
    import pandas

    frame = pandas.DataFrame(rows)
    frame.attrs = about or {}
    content = frame.to_parquet(index=False)
    files.write(path, lambda file: file.write(content))


def draw_image(axis, image, title: str) -> None:
    """An image [3,H,W] in [-1,1]."""
    import numpy as np

    overlay(axis, image, np.zeros((1, 1)), 1.0)
    axis.set_title(title)


def draw_map(figure, axis, image, advantage, title: str, label: str) -> None:
    """An image under the map [h,w] of an advantage, and beside it a scale with this label."""
    import numpy as np

    scale = overlay(axis, image, advantage, np.abs(advantage).max() or 1.0)
    axis.set_title(title)
    figure.colorbar(scale, ax=axis, shrink=0.8, label=label)


def overlay(axis, image, advantage, span: float):
    """An image [3,H,W] in [-1,1] under a map [h,w] of differences: green above zero, pink below, clear at zero.

    span: the difference that is drawn in full colour. Returns what a colour scale is made of.
    """
    import numpy as np

    picture = (np.moveaxis(np.asarray(image), 0, -1) + 1) / 2
    extent = (0, picture.shape[1], picture.shape[0], 0)
    axis.imshow(picture.clip(0, 1), extent=extent)
    shown = np.abs(advantage) / span  # the picture stays visible where the two agree
    shades = axis.imshow(advantage, "PiYG", vmin=-span, vmax=span, alpha=shown, extent=extent, interpolation="bilinear")
    axis.set(xticks=[], yticks=[])
    return drawing.pyplot().cm.ScalarMappable(shades.norm, "PiYG")
