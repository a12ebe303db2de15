"""A data set as the commands see it: pictures by index, labels that need no decoding, who competes for which."""

import contextlib
import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from diffusion.datasets.pictures import fit
from diffusion.utils.files import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

Transform = Callable[["Image"], Any]  # to float32 [3,H,W] in [-1,1] for a network; what it gives is its user's matter


class RawImages(Protocol):
    """A map-style dataset of (PIL image, label), without a transform; of its labels and class names see `ImageData`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...  # (Image, int); libraries do not say


class ImageData:
    """Map-style dataset of (transform(PIL image), label): what `open_dataset` returns.

    `labels` int64 [N] are known without decoding an image; `classes` are the class names in label order;
    `notice` is a line to tell the user, or None.
    """

    missing: str | None = None  # what is said of files that are not there, as of `Expected`

    def __init__(self, raw: RawImages, transform: Transform | None, classes: list[str]):
        self.raw: Any = raw  # with attributes that torchvision's datasets do not agree on
        self.transform = transform
        self.classes = classes
        self.notice: str | None = getattr(raw, "notice", None)

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Raises OSError naming the index, and the file where there is one, for an image that cannot be decoded or is unfit."""
        image, label = self._decode(index)
        return (image if self.transform is None else self.transform(image)), int(label)

    def picture(self, index: int) -> "Image":
        """The PIL image with 8 bits a channel, without the transform. Raises OSError as an item does."""
        return self._decode(index)[0]

    def _decode(self, index: int) -> "tuple[Image, int]":
        try:
            image, label = self.raw[index]
            image.load()  # some datasets hand out a file that is not decoded yet
            image = fit(image)
        except Exception as error:  # for broken and oversized files Pillow raises nearly anything
            raise OSError(f"image {index}{_file_of(self.raw, index)} cannot be read: {one_line(error)}") from error
        return image, label

    @property
    def n_candidates(self) -> int | None:
        """How many labels compete for an image, where not all do for every one."""
        candidates = getattr(self.raw, "candidates", None)
        return max(map(len, candidates)) if candidates else None

    def candidates(self, index: int) -> np.ndarray:
        """Those that do, int64 [n], ascending; of a set with `n_candidates`."""
        return self.raw.candidates[index]

    def name(self, index: int) -> int:
        """What a message calls the item: its index, which names its record too."""
        return index

    @cached_property  # commands ask image by image, and some data sets hold their labels as a list
    def labels(self) -> np.ndarray:
        for name in ("targets", "labels", "_labels", "y"):  # torchvision's datasets do not agree on a name
            if hasattr(self.raw, name):
                return np.asarray(getattr(self.raw, name), dtype=np.int64)
        raise TypeError(f"{type(self.raw).__name__} does not expose its labels")

    def fingerprint(self) -> str:
        """Tells two datasets of one name apart, cheaply: a hash of all labels and of the first, middle and last image."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(self.labels.tobytes())
        for index in (0, len(self) // 2, len(self) - 1):
            with contextlib.suppress(OSError):  # an unreadable image is told when its turn comes
                digest.update(self._decode(index)[0].tobytes())
        return digest.hexdigest()[:16]


def _file_of(raw: RawImages, index: int) -> str:
    """ " (path)" for datasets that keep a list of files, else nothing."""
    for name in ("samples", "_image_files", "_images"):
        files = getattr(raw, name, None)
        if isinstance(files, list):
            return f" ({files[index][0] if isinstance(files[index], tuple) else files[index]})"
    return ""


class Expected(ImageData):
    """What is known of a published set whose files are not there: the number of its images, and its classes.

    missing: what is said of the files; fetched: whether a run fetches them
    """

    def __init__(self, n: int, classes: list[str], missing: str, fetched: bool):
        super().__init__(range(n), None, classes)
        self.missing, self.fetched = missing, fetched

    def fingerprint(self) -> str:
        """A text that is the fingerprint of no set."""
        return "not there"
