"""Data files whose readers fail in their own ways: one line that names the file. idx files, plain or gzipped."""

import contextlib
import gzip
import math
from pathlib import Path

import numpy as np

from diffusion.utils.files import one_line


@contextlib.contextmanager
def reading(path: str | Path):
    """Inside it whatever goes wrong is ValueError naming the file; what the system says of it stays OSError."""
    try:
        yield
    except Exception as error:  # parsers of damaged files raise nearly anything
        damaged = not isinstance(error, OSError) or isinstance(error, gzip.BadGzipFile)
        if not damaged:
            raise
        raise ValueError(f"{path} is damaged, or not as published ({one_line(error)})") from error


def read_idx(path: str | Path, n_dims: int) -> np.ndarray:
    """The uint8 array of an idx file (LeCun's MNIST format), gzipped where its name ends in .gz.

    Raises ValueError, naming the file, for another format, another number of dimensions and a length that its header does not ask
    for; OSError where it cannot be read.
    """
    with reading(path):
        raw = Path(path).read_bytes()
        raw = gzip.decompress(raw) if str(path).endswith(".gz") else raw
        if raw[:4] != bytes([0, 0, 8, n_dims]):
            raise ValueError(f"no idx file of bytes in {n_dims} dimensions")
        shape = [int(n) for n in np.frombuffer(raw, ">u4", n_dims, 4)]
        header = 4 + 4 * n_dims
        if len(raw) != header + math.prod(shape):
            raise ValueError(f"{len(raw):,} bytes, and its header asks for {header + math.prod(shape):,}")
        return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def find_idx(folder: str | Path, stem: str) -> Path | None:
    """An idx file of this name, plain or gzipped."""
    return next((path for path in (Path(folder) / stem, Path(folder) / f"{stem}.gz") if path.is_file()), None)


class IdxImages:
    """Images [N,28,28] uint8 and targets [N] of the idx files t10k-... or train-... in a folder, plain or gzipped. Raises as
    `read_idx`."""

    notice: str | None = None

    def __init__(self, folder: Path, part: str):
        images, labels = (folder / f"{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
        self.data = read_idx(find_idx(folder, images.name) or images, 3)
        self.targets = read_idx(find_idx(folder, labels.name) or labels, 1)
        if len(self.data) != len(self.targets):
            raise ValueError(f"{folder}: {len(self.data):,} images and {len(self.targets):,} labels in {part}-*-ubyte")

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        from PIL import Image

        return Image.fromarray(self.data[index]), int(self.targets[index])
