"""Pictures whose labels nobody knows, or asks for: files, folders, WebDataset shards, CSVs of paths."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from diffusion.datasets.pictures import Member
from diffusion.datasets.readers.csv import read_rows
from diffusion.datasets.readers.folders import SUFFIXES, check_name, files_of, is_picture
from diffusion.datasets.readers.webdataset import COUNT, read_shards, shards_of


def find_pictures(places: Iterable[str]) -> tuple[list[str | Member], str | None]:
    """All pictures that these places are, and what of them was left out, in words.

    A place is a file, whatever its name; a folder: all pictures in it and below it, sorted, or where it has a nshards.txt its
    shards; a .tar file; a .csv file with a column path. Raises ValueError for a place where there is nothing or that is damaged,
    for a folder with links that lead to a folder twice, and for a name that is no UTF-8; OSError for what cannot be read.
    """
    collected: list[str | Member] = []
    notices: list[str] = []
    for place in places:
        pictures, more = _pictures_of(place)
        collected += pictures
        notices += filter(None, [more])
    return collected, "; ".join(notices) or None


def _pictures_of(place: str) -> tuple[Sequence[str | Member], str | None]:
    if not os.path.exists(place):
        raise ValueError(f"{place}: there is no such picture or folder")
    suffix = os.path.splitext(place)[1].lower()
    if os.path.isdir(place):
        return _of_shards(*shards_of(Path(place)), place) if os.path.isfile(os.path.join(place, COUNT)) else _of_folder(place)
    if suffix == ".tar":
        return _of_shards([Path(place)], None, place)
    if suffix == ".csv":
        return [row.picture for row in read_rows(Path(place))], None
    check_name(os.path.dirname(place), os.path.basename(place), "file")
    return [place], None


def _of_shards(shards: list[Path], notice: str | None, place: str) -> tuple[list[Member], str | None]:
    pictures, _, others = read_shards(shards)
    if not pictures:
        raise ValueError(f"{place} holds no pictures ({' '.join(sorted(SUFFIXES))})")
    return pictures, "; ".join(filter(None, (notice, _ignored("members", others)))) or None


def _of_folder(place: str) -> tuple[list[str], str | None]:
    paths = files_of(place)
    pictures = [path for path in paths if is_picture(path)]
    if not pictures:
        kinds = " ".join(sorted(SUFFIXES))
        raise ValueError(f"{place} holds no pictures ({kinds}): name another folder, the files, or shards (.tar)")
    for path in pictures:
        check_name(os.path.dirname(path), os.path.basename(path), "file")
    return pictures, _ignored("files", sorted(set(paths) - set(pictures)))


def _ignored(what: str, others: list[str]) -> str | None:
    return f"ignored {len(others)} {what} that are no pictures by their names, such as {others[0]}" if others else None
