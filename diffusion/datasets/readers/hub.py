"""Hugging Face datasets of labelled images, from the hub or from a local folder, whole or the first of a stream: which columns,
which labels."""

import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion.datasets.labels import numbered, of_texts
from diffusion.datasets.pictures import as_seen
from diffusion.datasets.readers.folders import walk
from diffusion.utils.files import one_line, read_json
from diffusion.utils.progress import progress

MOST_STREAMED = 2**30  # bytes of pictures, as they are compressed, that are kept of a stream: some 10,000 of ImageNet's


class HubImages:
    """One split of a Hugging Face dataset. `classes`: names of the labels, or those given; `targets`: the labels as integers."""

    def __init__(self, table, image_column: str | None, label_column: str | None, notice: str | None = None, classes=None):
        self.notice = notice
        self.image_column = _image_column(table, image_column)
        label_column = _label_column(table, label_column)
        self.classes, self.targets = _read_labels(table, label_column, classes)
        self.table = table.select_columns([self.image_column])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        image = self.table[int(index)][self.image_column]
        if image is None:
            raise OSError("the row holds no image")
        return as_seen(image), self.targets[index]


def _pick_column(table, requested: str | None, matching: list[str], flag: str) -> str:
    """The column asked for, or the only one found. Raises ValueError naming the flag and the columns."""
    columns = ", ".join(table.column_names)
    if requested is not None and requested not in table.column_names:
        raise ValueError(f"{flag} {requested}: no such column; there are {columns}")
    if requested is None and len(matching) != 1:
        raise ValueError(f"{flag} is needed: {len(matching)} columns could be meant; there are {columns}")
    return requested or matching[0]


def _image_column(table, requested: str | None) -> str:
    from datasets import Image

    matching = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    column = _pick_column(table, requested, matching, "--image_column")
    if column not in matching:
        raise ValueError(f"--image_column {column} holds no images; columns with images: {', '.join(matching) or 'none'}")
    return column


def _label_column(table, requested: str | None) -> str:
    from datasets import ClassLabel

    usual = [name for name in ("label", "labels", "fine_label") if name in table.column_names]
    typed = [name for name, feature in table.features.items() if isinstance(feature, ClassLabel)]
    return _pick_column(table, requested, usual[:1] or typed, "--label_column")


def _read_labels(table, column: str, classes: Sequence[str] | None) -> tuple[list[str], list[int]]:
    """(class names, label of each row): as given, or from the feature, else sorted strings, else the numbers themselves."""
    from datasets import ClassLabel

    values, feature = list(table[column]), table.features[column]
    if values and all(isinstance(value, str) and value.strip() for value in values):
        names, parsed = of_texts(values, classes)
        labels = [label for label in parsed if label is not None]
        if len(labels) < len(parsed):
            raise ValueError(f"--label_column {column}: {values[parsed.index(None)]!r} is no class of --classes")
        return names, labels
    if not values or not all(isinstance(value, int) and value >= 0 for value in values):
        what = "rows without a label (neither a name nor an integer >= 0)" if values else "no rows"
        raise ValueError(f"--label_column {column}: this split has {what}")
    try:
        of_numbers = numbered(values)
    except ValueError as error:
        raise ValueError(f"--label_column {column}: {error}: name another column") from None
    return list(classes or (feature.names if isinstance(feature, ClassLabel) else of_numbers)), [int(value) for value in values]


def open_hub(
    root: Path,
    split: str,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    streaming: bool = False,
    limit: int | float | None = None,
) -> HubImages:
    """`root`: a folder written by save_to_disk, a folder of parquet files or of images, or a name on the hub.

    `split` may be a slice such as train[:100], other than of a stream. streaming: only the first `limit` images are read, a
    number or a fraction of all. Raises ValueError for an unknown split, configuration or column and for data that cannot be read,
    OSError when nothing is there.
    """
    if streaming != (limit is not None):
        raise ValueError("--streaming and --limit belong together: of a stream the first images are taken, as many as it says")
    if any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
        table, notice = _open_saved(root, split, config_name)
    else:
        table, notice = _load(root, split, config_name, streaming), None
    if limit is not None:  # of a stream
        table, more = _first(table, split, image_column, label_column, classes, limit)
        notice = "; ".join(filter(None, (notice, more)))
    return HubImages(table, image_column, label_column, notice, classes)


def _load(root: Path, split: str, config_name: str | None, streaming: bool):
    """What load_dataset finds: files on disk, or a name on the hub."""
    import datasets

    # what cannot be read is told below, in one line; columns, labels and every image of what can be are checked by HubImages
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    if root.is_dir():
        list(walk(str(root), {}))  # which refuses links that lead round in a circle, or to images twice
        root = root.absolute()  # a folder called "parquet" would be taken for the library's reader of that name
    try:
        return datasets.load_dataset(root.as_posix(), config_name, split=split, streaming=streaming)
    except OSError:
        raise
    except Exception as error:  # an unknown split, a set of several configurations, a broken file
        raise ValueError(f"--data_dir {root} --split {split}: {one_line(error)}") from error


# ---------------------------------------------------------------- the first of a stream


def _first(source, split: str, image_column: str | None, label_column: str | None, classes, limit: int | float):
    """(a table in memory of the first rows, its images compressed as they come; what to say of it).

    Raises ValueError for labels whose names, and so the candidates, would depend on how many rows are read.
    """
    import datasets

    saved = isinstance(source, datasets.Dataset)
    stream, n_rows = (source.to_iterable_dataset(), len(source)) if saved else (source, _stated(source))
    if stream.features is None:
        raise ValueError("--streaming: this set does not say what its columns hold before they are read: leave it out")
    image, label = _image_column(stream, image_column), _label_column(stream, label_column)
    if classes is None and not isinstance(stream.features[label], datasets.ClassLabel):
        raise ValueError(f"--classes is needed: column {label} does not name the classes, and the first rows need not have all")
    n = _number(limit, n_rows, split)
    features = datasets.Features({image: datasets.Image(decode=False), label: stream.features[label]})
    rows, size = _read_rows(stream.select_columns(list(features)).cast_column(image, features[image]), image, n, n_rows)
    table = datasets.Dataset.from_list(rows, features=features).cast_column(image, datasets.Image())
    fewer = f", fewer than --limit {limit}" if len(rows) < n else ""
    return table, f"the first {len(rows):,} images of the stream{fewer}, kept in memory ({size / 1e6:,.1f} MB)"


def _stated(stream) -> int | None:
    """How many rows a split has, where its set says so."""
    split = (stream.info.splits or {}).get(str(stream.split))
    return split.num_examples if split else None


def _number(limit: int | float, n_rows: int | None, split: str) -> int:
    if isinstance(limit, int):
        return limit
    if not n_rows:
        raise ValueError(f"--limit {limit}: this set does not say how many images --split {split} has: give their number")
    return math.ceil(round(limit * n_rows, 6))


def _read_rows(stream, image: str, n: int, n_rows: int | None) -> tuple[list[dict], int]:
    """(the first n rows, the bytes of their images). Raises ValueError where they are more than memory should hold."""
    rows: list[dict] = []
    size = 0
    try:
        with progress(min(n, n_rows or n)) as bar:
            for row in itertools.islice(stream, n):
                if row[image] and row[image]["bytes"] is None:  # a set of files names them only
                    row[image] = {"bytes": _fetch(row[image]["path"]), "path": None}
                size += len((row[image] or {}).get("bytes") or b"")
                if size > MOST_STREAMED:
                    raise ValueError(f"--limit {n}: {len(rows):,} images already take {MOST_STREAMED / 1e9:.1f} GB, and what is "
                                     "streamed is kept in memory: give less, or leave --streaming out")  # fmt: skip
                rows.append(row)
                bar.update()
    except (OSError, ValueError):
        raise
    except Exception as error:  # of a damaged file, or of a connection
        raise ValueError(f"--streaming: row {len(rows)} cannot be read ({one_line(error)})") from error
    return rows, size


def _fetch(path: str) -> bytes:
    """A file of the set, here or on the hub."""
    import fsspec

    with fsspec.open(path, "rb") as file:
        return file.read()


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


def _check_config(root: Path, requested: str | None, saved: str | None) -> None:
    if requested is not None and requested != saved:
        held = f"the configuration {saved}" if saved else "one configuration without a name"
        raise ValueError(f"--config_name {requested}: {root} was saved to disk with {held}: leave it out")


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
