"""Pictures as the transforms can take them: 8 bits a channel, of a shape that can be resized, a user's own as it is seen.

The published sets are read as published: their orientation tags and alpha channels count for nothing.
"""

import importlib.util
import io
import itertools
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from diffusion.utils.files import one_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Given: TypeAlias = "Image | str | Path | np.ndarray"  # what the Python functions take for a picture

ORIENTATION = 0x112  # the tag
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # its values -> PIL's Transpose that sets the picture upright
HEIC = {".heic", ".heif"}
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")  # after `ftyp` in a file, whatever its name
TEXT_BYTES = 64 << 20  # of a PNG's texts and colour profile, which nobody here reads: Pillow refuses pictures beyond 1 MB
LOOKED_AT = 64  # pictures whose headers say whether they have transparent parts
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


def open_rgb(place: str | Path | Member, custom: bool = False):
    """The RGB image in a file; custom: the user's own, so that it is `as_seen`. Raises nearly anything for a broken file."""
    with _opened(place) as file:
        return (as_seen(file) if custom else fit(file)).convert("RGB")


def as_seen(image):
    """The PIL image as a viewer shows it, in `fit`'s modes: turned as its file's orientation says, transparent parts on white.

    One that was made from another keeps its tags, but whoever made it has seen to its orientation.
    """
    from PIL import Image, ImageFile

    image.load()  # some formats turn it themselves then
    orientation = image.getexif().get(ORIENTATION) if isinstance(image, ImageFile.ImageFile) else None
    image = fit(image)
    image = image.transpose(TURNS[orientation]) if orientation in TURNS else image
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def picture_of(given: object) -> "Image":
    """The PIL image, `as_seen`, of what the Python functions are given: PIL, a path, an array uint8 [H,W], [H,W,3] or [H,W,4].

    Raises ValueError for anything else, OSError for a file that cannot be read.
    """
    from PIL import Image

    if isinstance(given, str | Path):
        try:
            return open_rgb(given, custom=True)
        except Exception as error:  # for broken files Pillow raises nearly anything
            raise OSError(f"{given} cannot be read: {one_line(error)}") from error
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim not in (2, 3) or given.shape[2:] not in ((), (3,), (4,)):
            raise ValueError(f"an array {given.dtype} {list(given.shape)} is no picture: give uint8 [H,W], [H,W,3] or [H,W,4]")
        return as_seen(Image.fromarray(given))
    if not isinstance(given, Image.Image):
        raise ValueError(f"{type(given).__name__} is no picture: give a PIL image, a path, or an array uint8 [H,W,3]")
    return as_seen(given)


NO_PICTURE = "is no picture: give float32 [3,H,W] in [-1,1], or a PIL image"


def checked_tensor(image: "Tensor") -> "Tensor":
    """The image itself. Raises ValueError for a tensor that is not float [3,H,W] in [-1,1], as a transform makes it."""
    if image.ndim != 3 or not image.is_floating_point():
        raise ValueError(f"a tensor {image.dtype} {list(image.shape)} {NO_PICTURE}")
    low, high = (float(value) for value in image.aminmax())
    if low < -1.01 or high > 1.01:  # one that is not finite fails as errors that are not do
        raise ValueError(f"a tensor of {low:g} to {high:g} {NO_PICTURE}")
    return image


def transparent(places: Iterable[str | Path | Member]) -> str | None:
    """How many of the first pictures have transparent parts, by their headers, in words; None where none has."""
    looked = list(itertools.islice(places, LOOKED_AT))
    n = sum(map(_is_transparent, looked))
    return f"{n} of the first {len(looked)} pictures have transparent parts, which are put on white" if n else None


def _is_transparent(place: str | Path | Member) -> bool:
    try:
        with _opened(place) as file:
            return bool(file.has_transparency_data)
    except Exception:  # told when its turn comes
        return False


def _opened(place: str | Path | Member) -> Any:
    """The file as a PIL image that is not decoded yet. Raises nearly anything for a broken one."""
    image = _pillow()
    if not isinstance(place, Member) and not Path(place).is_file():  # a pipe would be waited for
        raise FileNotFoundError("there is no such file")
    try:
        return image.open(io.BytesIO(read_bytes(place)) if isinstance(place, Member) else place)
    except image.DecompressionBombError:
        most = 2 * image.MAX_IMAGE_PIXELS // 10**6
        raise ValueError(f"more than {most} million pixels: make it smaller first") from None
    except OSError:
        start = read_bytes(place)[:12]
        if start[4:8] == b"ftyp" and start[8:] in HEIC_BRANDS and not importlib.util.find_spec("pillow_heif"):
            raise ValueError("HEIC photos need pillow-heif (pip install pillow-heif); or save it as JPEG") from None
        raise


@cache
def _pillow() -> Any:
    """PIL.Image, which reads HEIC where pillow-heif is installed, and pictures whatever is written beside their pixels."""
    from PIL import Image, PngImagePlugin

    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = TEXT_BYTES
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # from half of the pixels on that it refuses
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return Image
