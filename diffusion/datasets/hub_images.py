"""Hugging Face datasets of labelled images, from the hub or from a local folder: which columns, which labels."""

import sys
from pathlib import Path

from diffusion.datasets.folders import walk
from diffusion.files import one_line, read_json

LARGEST_LABEL = 100_000  # integers beyond it are ids, not class numbers: each would be a prompt of its own


class HubImages:
    """One split of a Hugging Face dataset. `classes`: names of the labels; `targets`: the labels as integers."""

    def __init__(self, table, image_column: str | None, label_column: str | None, notice: str | None = None):
        self.notice = notice
        self.image_column = _image_column(table, image_column)
        label_column = _label_column(table, label_column)
        self.classes, self.targets = _read_labels(table, label_column)
        self.table = table.select_columns([self.image_column])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        image = self.table[int(index)][self.image_column]
        if image is None:
            raise OSError("the row holds no image")
        return image, self.targets[index]


def _pick_column(table, asked: str | None, found: list[str], flag: str) -> str:
    """The column asked for, or the only one found. Raises ValueError naming the flag and the columns."""
    columns = ", ".join(table.column_names)
    if asked is not None and asked not in table.column_names:
        raise ValueError(f"{flag} {asked}: no such column; there are {columns}")
    if asked is None and len(found) != 1:
        raise ValueError(f"{flag} is needed: {len(found)} columns could be meant; there are {columns}")
    return asked or found[0]


def _image_column(table, asked: str | None) -> str:
    from datasets import Image

    found = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    column = _pick_column(table, asked, found, "--image_column")
    if column not in found:
        raise ValueError(f"--image_column {column} holds no images; columns with images: {', '.join(found) or 'none'}")
    return column


def _label_column(table, asked: str | None) -> str:
    from datasets import ClassLabel

    usual = [name for name in ("label", "labels", "fine_label") if name in table.column_names]
    typed = [name for name, feature in table.features.items() if isinstance(feature, ClassLabel)]
    return _pick_column(table, asked, usual[:1] or typed, "--label_column")


def _read_labels(table, column: str) -> tuple[list[str], list[int]]:
    """(class names, label of each row): names from the feature, else from sorted strings, else the numbers themselves."""
    from datasets import ClassLabel

    values, feature = list(table[column]), table.features[column]
    if values and all(isinstance(value, str) and value.strip() for value in values):
        names = sorted(set(values))
        place = {name: i for i, name in enumerate(names)}
        return names, [place[value] for value in values]
    if not values or not all(isinstance(value, int) and value >= 0 for value in values):
        what = "rows without a label (neither a name nor an integer >= 0)" if values else "no rows"
        raise ValueError(f"--label_column {column}: this split has {what}")
    if max(values) >= LARGEST_LABEL:
        raise ValueError(f"--label_column {column}: {max(values)} is no class number, which count from 0: name another column")
    names = list(feature.names) if isinstance(feature, ClassLabel) else [str(i) for i in range(max(values) + 1)]
    return names, [int(value) for value in values]


def open_hub(root: Path, split: str, config_name: str | None, image_column: str | None, label_column: str | None) -> HubImages:
    """`root`: a folder written by save_to_disk, a folder of parquet files or of images, or a name on the hub.

    `split` may be a slice such as train[:100]. Raises ValueError for an unknown split, configuration or column and for data that
    cannot be read, OSError when nothing is there.
    """
    if any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
        table, notice = _open_saved(root, split, config_name)
    else:
        table, notice = _load(root, split, config_name), None
    return HubImages(table, image_column, label_column, notice)


def _load(root: Path, split: str, config_name: str | None):
    """What load_dataset finds: files on disk, or a name on the hub."""
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # an error is told below, in one line
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    if root.is_dir():
        list(walk(str(root), {}))  # which refuses links that lead round in a circle, or to images twice
    try:
        return datasets.load_dataset(root.as_posix(), config_name, split=split)
    except OSError:
        raise
    except Exception as error:  # an unknown split, a set of several configurations, a broken file
        raise ValueError(f"--data_dir {root} --split {split}: {one_line(error)}") from error


# ---------------------------------------------------------------- what save_to_disk wrote


def _open_saved(root: Path, split: str, config_name: str | None):
    """(table, what to say). A single table has no name but the one that it was saved under; "test", the default, is it too."""
    import datasets

    saved = _load_saved(root)
    if isinstance(saved, datasets.DatasetDict):
        parts, notice = dict(saved), None
    else:
        name = str(saved.split or "test")
        called = "test" if split.partition("[")[0] == "test" else name
        parts, notice = {called: saved}, None if called == name else f"{root} is one table, saved from the split {name}"
    _check_config(root, config_name, next(iter(parts.values())).info.config_name)
    return _part(root, parts, split), notice


def _load_saved(root: Path):
    """Raises ValueError naming the file that is damaged, or the folder where the library does not say which."""
    import datasets

    for path in sorted((*root.glob("*.json"), *root.glob("*/*.json"))):
        read_json(path)
    try:
        return datasets.load_from_disk(str(root))
    except Exception as error:
        raise ValueError(f"--data_dir {root} cannot be read as save_to_disk writes it ({one_line(error)})") from error


def _check_config(root: Path, asked: str | None, saved: str | None) -> None:
    if asked is not None and asked != saved:
        held = f"the configuration {saved}" if saved else "one configuration without a name"
        raise ValueError(f"--config_name {asked}: {root} was saved to disk with {held}: leave it out")


def _part(root: Path, parts: dict, split: str):
    """The split, or the slices of splits, by the library's own rules. Raises ValueError for what is none of the parts."""
    import datasets

    try:
        wanted = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(table) for name, table in parts.items()})
    except Exception:  # a dozen kinds for what does not parse
        raise ValueError(
            f"--split {split}: {root} has {', '.join(parts)}, and slices of them such as {min(parts)}[:100]"
        ) from None
    pieces = [parts[piece.splitname].select(range(piece.from_, piece.to)) for piece in wanted]
    return datasets.concatenate_datasets(pieces)
