"""Hugging Face datasets of labelled images, from the hub or from a local folder: which columns, which labels."""

from pathlib import Path

from diffusion.files import one_line


class HubImages:
    """One split of a Hugging Face dataset. `classes`: names of the labels; `targets`: the labels as integers."""

    def __init__(self, table, image_column: str | None, label_column: str | None):
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
    if values and all(isinstance(value, str) for value in values):
        names = sorted(set(values))
        place = {name: i for i, name in enumerate(names)}
        return names, [place[value] for value in values]
    if not values or not all(isinstance(value, int) and value >= 0 for value in values):
        raise ValueError(f"--label_column {column}: this split has rows without a label (neither a name nor an integer >= 0)")
    names = list(feature.names) if isinstance(feature, ClassLabel) else [str(i) for i in range(max(values) + 1)]
    return names, [int(value) for value in values]


def open_hub(root: Path, split: str, config_name: str | None, image_column: str | None, label_column: str | None) -> HubImages:
    """`root`: a folder written by save_to_disk, a folder of parquet files or of images, or a name on the hub.

    Raises ValueError for an unknown split or column and for data that cannot be read, OSError when nothing is there.
    """
    import datasets

    if any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
        table = datasets.load_from_disk(str(root))
    else:
        try:
            table = datasets.load_dataset(root.as_posix(), config_name, split=split)
        except OSError:
            raise
        except Exception as error:  # an unknown split, a set of several configurations, a broken file
            raise ValueError(f"--data_dir {root} --split {split}: {one_line(error)}") from error
    if isinstance(table, datasets.DatasetDict):
        if split not in table:
            raise ValueError(f"--split {split}: {root} has {', '.join(table)}")
        table = table[split]
    return HubImages(table, image_column, label_column)
