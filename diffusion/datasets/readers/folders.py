"""Pictures in class folders: which files count, and which label the name of their folder gives them."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path

from diffusion.datasets.labels import number_of
from diffusion.datasets.pictures import HEIC, Member, open_rgb, transparent

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif", ".avif", *HEIC}
JUNK_FOLDERS = {"__MACOSX", "__pycache__", "lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir"}
JUNK_FILES = {"Thumbs.db", "desktop.ini"}
SPLITS = {"train", "test", "val", "valid", "validation"}


class LabelledFiles:
    """Map-style dataset of (RGB PIL image, label): `samples` is a list of (file, label), `notice` what the user is told.

    `border` pixels are cut off each side; `custom` pictures are read as a viewer shows them, which the published
    sets were not. Raises FileNotFoundError where there are no samples.
    """

    classes: list[str]  # of a set of the user's own

    def __init__(
        self, samples: Sequence[tuple[str | Member, int]], border: int = 0, custom: bool = False, notice: str | None = None
    ):
        if not samples:
            raise FileNotFoundError("no images in these folders")
        self.samples = samples
        self.targets = [label for _, label in samples]
        self.border = border
        self.custom = custom
        self.notice = "; ".join(filter(None, (notice, transparent(self.files()) if custom else None))) or None

    def __len__(self) -> int:
        return len(self.samples)

    def files(self) -> Iterator[str | Member]:
        return (file for file, _ in self.samples)

    def __getitem__(self, index: int):
        path, label = self.samples[index]
        image = open_rgb(path, self.custom)  # RGB before any crop or resize, as torchvision's image folders do
        if self.border:
            width, height = image.size
            image = image.crop((self.border, self.border, width - self.border, height - self.border))
        return image, label


def open_custom(root: Path, classes: Sequence[str] | None = None) -> LabelledFiles:
    """A user's folder: `classes` are the names of its sub-folders, sorted, or those given, in the order of their labels.

    Where names are given, folders may be called by their numbers instead. Raises ValueError for a class without pictures, for the
    folder of no class, for links that lead to a folder twice, and where the folders are splits; OSError where there is nothing.
    """
    folders, notices = read_folders(root)
    folders = _by_name(root, folders, classes) if classes else folders
    strangers = [name for name in folders if name not in (classes or folders)]
    if (strangers or not classes) and folders and set(folders) <= SPLITS:
        names = ", ".join(folders)
        raise ValueError(f"{root} holds {names}, which are splits and no classes: name one, --data_dir {root / min(folders)}")
    if strangers:
        raise ValueError(f"{root / strangers[0]} is the folder of no class in --classes: add it there, or move it elsewhere")
    empty = [name for name, files in folders.items() if not files]
    if empty:
        raise ValueError(f"{root / empty[0]} holds no pictures ({' '.join(sorted(SUFFIXES))}): remove it, or put some into it")
    classes = list(classes or folders)
    label_of = {name: label for label, name in enumerate(classes)}
    samples = [(path, label_of[name]) for name, files in folders.items() for path in files]
    images = LabelledFiles(samples, custom=True, notice="; ".join(notices) or None)
    images.classes = classes
    return images


def _by_name(root: Path, folders: dict[str, list[str]], classes: Sequence[str]) -> dict[str, list[str]]:
    """Class -> its pictures, where all folders may be called by the numbers of classes. Raises ValueError for a number twice."""
    numbers = {name: number_of(name) for name in folders}
    if set(folders) & set(classes) or any(number is None or number >= len(classes) for number in numbers.values()):
        return folders
    times = Counter(numbers.values())
    twice = next((name for name, number in numbers.items() if times[number] > 1), None)
    if twice:
        raise ValueError(f"{root / twice} is the folder of a class that has another one: put its pictures there")
    return {classes[number]: folders[name] for name, number in numbers.items() if number is not None}


def open_known(
    root: Path, label_of: Mapping[str, int], border: int = 0, unlabelled: Set[str] | None = frozenset()
) -> LabelledFiles:
    """Class folders of known names, in the order of these names as strings: 0, 1, 10, ..., 2.

    unlabelled: folders that belong to the set and have no label; None: there may be any, and how many is told. Raises ValueError
    for the folder of a stranger, OSError where there is nothing.
    """
    folders, notices = read_folders(root)
    strangers = [name for name in folders if name not in label_of]
    if unlabelled is None and strangers:
        notices.append(f"{len(strangers)} folders without a class of these were left out, such as {strangers[0]}")
    wrong = [name for name in strangers if unlabelled is not None and name not in unlabelled]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if wrong[1:] else ""
        raise ValueError(f"{root / wrong[0]}{more} is the folder of no class of this set: move it elsewhere")
    samples = [(path, label_of[name]) for name, files in folders.items() if name in label_of for path in files]
    return LabelledFiles(samples, border, notice="; ".join(notices) or None)


def files_of(folder: str) -> list[str]:
    """All files of a folder and below it, sorted, without junk."""
    return sorted(os.path.join(place, name) for place, names in walk(folder, {}) for name in names)


def missing_files(paths: Iterable[Path]) -> list[Path]:
    """Those that do not exist: one listing a folder, as thousands of single questions are slow on a network's file system."""
    paths = list(paths)
    there = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in {path.parent for path in paths}}
    return [path for path in paths if path.name not in there[path.parent]]


# ---------------------------------------------------------------- what lies in them


def read_folders(root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """(class folder -> paths of its pictures, both sorted; what was left out, in words).

    Raises ValueError for a symbolic link to a folder that is read anyway, and for a name that is no UTF-8.
    """
    folders, files = _entries(root)
    names, junk = [n for n in folders if not is_junk(n)], [n for n in folders if is_junk(n)]
    beside = [name for name in files if is_picture(name)]
    seen, by_folder, others = {os.path.realpath(root): str(root)}, {}, []
    for name in names:
        check_name(root, name)
        paths = [os.path.join(place, file) for place, files in sorted(walk(str(root / name), seen)) for file in files]
        by_folder[name] = [path for path in paths if is_picture(path)]
        others += [path for path in paths if not is_picture(path)]
    notices = [f"ignored folders: {', '.join(junk)}"] if junk else []
    for kind, which in (("pictures beside the class folders", beside), ("files that are no pictures by their names", others)):
        notices += [f"ignored {len(which)} {kind}, such as {which[0]}"] if which else []
    return by_folder, notices


def is_junk(name: str) -> bool:
    """What systems and tools leave behind: hidden files and folders, and a few by name."""
    return name.startswith(".") or name in JUNK_FOLDERS | JUNK_FILES


def is_picture(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in SUFFIXES


def walk(folder: str, seen: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """(folder, its files, sorted) of this folder and all below it, without junk.

    seen: real path of every folder read so far -> the way to it; it grows. Raises ValueError for a folder in it, OSError for one
    that cannot be read.
    """
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        first = seen.setdefault(os.path.realpath(place), place)
        if first != place:
            raise ValueError(f"{place} leads to {first} again by a symbolic link, and its pictures would count twice: remove it")
        folders[:] = [name for name in folders if not is_junk(name)]
        yield place, sorted(name for name in files if not is_junk(name))


def _raise(error: OSError):
    raise error


def _entries(root: Path) -> tuple[list[str], list[str]]:
    """Sorted names of (folders, files that are not junk)."""
    _, folders, files = next(os.walk(root, onerror=_raise))
    return sorted(folders), sorted(name for name in files if not is_junk(name))


def check_name(root: Path | str, name: str, kind="folder") -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{root} holds a {kind} whose name is no UTF-8 ({name!a}): rename it") from None
