"""PIL images as the transforms can take them: 8 bits a channel, of a shape that can be resized, upright where asked for."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

LONGEST = 100  # short sides in a long one: beyond it the resize of the short side takes more memory than an image is worth


def fit(image):
    """The PIL image with 8 bits a channel: greys of 16 bits are scaled by their range, all other modes stay as they are.

    Raises ValueError for integers and floats of unknown range, and for a long side of more than 100 short sides.
    """
    width, height = image.size
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(f"{width} x {height} pixels, the long side more than {LONGEST} times the short one")
    is_deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    return _eight_bits(image) if is_deep else image


def _eight_bits(image):
    """Grey of mode I;16 or of known range -> L. PIL's own conversion would cut every value above 255."""
    from PIL import Image

    grey = np.rint(np.asarray(image).astype(np.float32) * (255 / _white(image))).clip(0, 255).astype(np.uint8)
    is_negative = _tiff_tag(image, 262) == 0  # photometric interpretation, which PIL heeds for 8 bits only
    return Image.fromarray(255 - grey if is_negative else grey)


def _white(image) -> int:
    """The value of white. Raises ValueError where neither the mode nor the file says it."""
    if image.mode.startswith("I;16"):
        return 2 ** (_tiff_tag(image, 258) or 16) - 1  # bits per sample: 12 in some microscopes' files
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, which PIL widens
        return 65535
    kind = "floats" if image.mode == "F" else "32-bit integers"
    raise ValueError(f"its pixels are {kind} (mode {image.mode}) of unknown range: save it with 8 or 16 bits a channel")


def _tiff_tag(image, number: int) -> int | None:
    """A tag of a TIFF file (the first of several values); None for other formats."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value


class Member(NamedTuple):
    """A file inside another one, as it is there: `size` bytes from `offset` on. As a text, a path through the outer file."""

    file: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.file}/{self.name}"


def read_bytes(place: str | Path | Member) -> bytes:
    """All that a file holds. Opened and closed at each call, so that several processes may read one file of many pictures.

    Raises OSError where it cannot be read.
    """
    if not isinstance(place, Member):
        return Path(place).read_bytes()
    with open(place.file, "rb") as file:
        file.seek(place.offset)
        content = file.read(place.size)
    if len(content) < place.size:
        raise OSError("the file that holds it was cut short")
    return content


def open_rgb(place: str | Path | Member, upright: bool = False):
    """The RGB image in a file; upright: turned as its EXIF orientation says. Raises nearly anything for a broken file."""
    from PIL import Image, ImageOps

    if not isinstance(place, Member) and not Path(place).is_file():  # a pipe would be waited for
        raise FileNotFoundError("there is no such file")
    with Image.open(io.BytesIO(read_bytes(place)) if isinstance(place, Member) else place) as file:
        if upright:
            ImageOps.exif_transpose(file, in_place=True)  # in place, as a copy forgets what its file was
        return fit(file).convert("RGB")
