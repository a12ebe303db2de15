"""WebDataset shards in the layout of CLIP_benchmark: tar files whose pictures are read where they lie, without unpacking.

    classnames.txt                 a name per line, in the order of the labels
    test/nshards.txt               how many shards the split has
    test/0.tar, test/1.tar, ...    KEY.jpg (or .png, .webp, ...) and KEY.cls, the label as a text

A shard's headers are read once, when it is opened, and what they say is kept in memory alone: 2.4 s for 50,000 pictures on one
core, which a file beside the shards would save and could be wrong about. Remote shards have to be fetched first.
"""

import os
import tarfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from diffusion.datasets.labels import number_of
from diffusion.datasets.pictures import Member
from diffusion.datasets.prompts import read_classes
from diffusion.datasets.readers.folders import SUFFIXES, LabelledFiles, check_name, is_junk
from diffusion.datasets.readers.idx import reading

NAMES, COUNT, LABEL = "classnames.txt", "nshards.txt", ".cls"
BLOCK = 512  # bytes: a tar is made of these, and ends with some of zeros


class Members(NamedTuple):
    """What lies in shards. labels: the text of each picture's .cls, or None; others: members that are neither."""

    pictures: list[Member]
    labels: list[str | None]
    others: list[str]


def open_shards(root: Path, split: str, classes: Sequence[str] | None = None) -> LabelledFiles:
    """`root`: a folder with the shards of one or several splits, or a single .tar file, whose `classes` have to be given.

    Pictures are in the order of the shards and of their members. `classes` take the place of those in classnames.txt. Raises
    ValueError that names the file, and the member, for what is damaged, and for pictures without a label of these classes;
    OSError where there is nothing.
    """
    shards, notice = ([root], None) if _is_single(root, split, classes) else shards_of(root / split, root)
    names = list(classes or read_classes(root / NAMES))
    members = read_shards(shards)
    if not members.pictures:
        raise ValueError(f"{root if root in shards else root / split} holds no pictures ({' '.join(sorted(SUFFIXES))})")
    samples = list(zip(members.pictures, _checked_labels(members, len(names)), strict=True))
    n, first = len(members.others), "".join(members.others[:1])
    message = f"ignored {n} members that are neither pictures nor labels, such as {first}" if n else None
    images = LabelledFiles(samples, custom=True, notice="; ".join(filter(None, (notice, message))) or None)
    images.classes = names
    return images


def _is_single(root: Path, split: str, classes: Sequence[str] | None) -> bool:
    """Whether it is one file. Raises ValueError where its classes are not known, and for a split of it."""
    if not root.is_file():
        return False
    if classes is None:
        raise ValueError(f"--classes is needed: {root} is a single shard, which does not name its classes")
    if split != "test":
        raise ValueError(f"--split {split}: {root} is a single shard, which has no splits: leave it out")
    return True


def _checked_labels(members: Members, n_classes: int) -> list[int]:
    """Raises ValueError naming the first picture whose label is none of 0..n_classes - 1."""
    if not any(label is not None for label in members.labels):
        place = members.pictures[0]
        raise ValueError(
            f"{place} has no label (KEY{LABEL}), nor has any other picture: scripts/classify.py is for such pictures"
        )
    labels = [None if text is None else number_of(text) for text in members.labels]
    known = [label for label in labels if label is not None and label < n_classes]
    if len(known) == len(labels):
        return known
    wrong = next(i for i, label in enumerate(labels) if label is None or label >= n_classes)
    text, member = members.labels[wrong], f"{_key(str(members.pictures[wrong]))[0]}{LABEL}"
    if text is None:
        raise ValueError(f"{members.pictures[wrong]} has no label: {member} is missing")
    if labels[wrong] is None:
        raise ValueError(f"{member} holds {text[:20]!r}, which is no class number")
    raise ValueError(f"{member} holds the label {labels[wrong]}, and the {n_classes} classes are 0..{n_classes - 1}")


# ---------------------------------------------------------------- shards


def shards_of(folder: Path, root: Path | None = None) -> tuple[list[Path], str | None]:
    """(the shards that nshards.txt counts, what to say of others). root: the folder of all splits, to tell which there are.

    Raises ValueError for shards that are missing and for a file that holds no number; OSError where there is none.
    """
    count = folder / COUNT
    if not count.is_file():
        others = sorted(path.parent.name for path in root.glob(f"*/{COUNT}")) if root else []
        if others:
            raise ValueError(f"--split {folder.name}: {root} has {', '.join(others)}")
        raise FileNotFoundError(f"{count} does not exist")
    with reading(count):
        n = number_of(count.read_text(encoding="ascii"))
        if not n:
            raise ValueError("it has to hold the number of shards, 1 or more")
    missing = next((i for i in range(n) if not (folder / f"{i}.tar").is_file()), None)
    if missing is not None:
        raise ValueError(f"{folder / f'{missing}.tar'} is missing, and {COUNT} says that there are {n} shards, from 0.tar on")
    beyond = f"{folder} has more shards than its {COUNT} says, which are left out" if (folder / f"{n}.tar").is_file() else None
    return [folder / f"{i}.tar" for i in range(n)], beyond


def read_shards(shards: Sequence[Path]) -> Members:
    """Raises ValueError as `open_shards`, OSError for a shard that cannot be read."""
    parts = [_read_shard(path) for path in shards]
    pictures, labels, others = (list(chain.from_iterable(column)) for column in zip(*parts, strict=True))
    return Members(pictures, labels, others)


def _read_shard(path: Path) -> Members:
    """Raises ValueError for two members that are the picture or the label of one key, and for a label without its picture."""
    pictures: dict[str, Member] = {}
    labels: dict[str, Member] = {}
    others: list[str] = []
    for member in _members(path):
        key, suffix = _key(member.name)
        kind = pictures if suffix.lower() in SUFFIXES else labels if suffix == LABEL else None
        if kind is None:
            others.append(str(member))
        elif key in kind:
            raise ValueError(f"{path}: {member.name} and {kind[key].name} have one key: a picture and a label each")
        else:
            kind[key] = member
    alone = next((labels[key] for key in labels if key not in pictures), None)
    if alone:
        raise ValueError(f"{alone} is the label of no picture ({' '.join(sorted(SUFFIXES))})")
    with open(path, "rb") as file:
        texts = [_text(file, labels[key]) if key in labels else None for key in pictures]
    return Members(list(pictures.values()), texts, others)


def _key(name: str) -> tuple[str, str]:
    """WebDataset's: a member's suffix begins at the first dot of its name without folders."""
    folder, base = os.path.split(name)
    key, dot, suffix = base.partition(".")
    return os.path.join(folder, key), dot + suffix


def _text(file, member: Member) -> str:
    file.seek(member.offset)
    return file.read(min(member.size, 100)).decode("utf-8", "replace").strip()


def _members(path: Path) -> list[Member]:
    """Files in a tar, without junk. Raises ValueError where it is cut or damaged, which names the last member that was read."""
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"there is no file {path}")
    members: list[Member] = []
    with reading(path), tarfile.open(path, "r:") as tar:
        try:
            members.extend(Member(str(path), info.name, info.offset_data, _size(info)) for info in tar if info.isreg())
            tar.fileobj.seek(tar.offset)  # tarfile takes for the end whatever is no header
            whole = tar.fileobj.read(BLOCK) == bytes(BLOCK)
        except tarfile.TarError:
            whole = False
        if not whole:
            last = f"after {members[-1].name}" if members else "before its first member"
            raise ValueError(f"it is cut short or broken {last}")
        for member in members:
            check_name(path, member.name, "member")
    return [member for member in members if not is_junk(os.path.basename(member.name))]


def _size(info: tarfile.TarInfo) -> int:
    """Raises ValueError for a member with holes, which does not lie there as it is."""
    if info.issparse():
        raise ValueError(f"{info.name} is stored as a sparse file, which cannot be read in place: write the shard anew")
    return info.size
