"""Pictures that are not 8-bit RGB lying upright: scaled, turned, or refused one by one, wherever they come from."""

import struct
import zlib

import layouts
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diffusion.datasets import open_dataset
from diffusion.datasets.pictures import LONGEST, fit, open_rgb, picture_of
from diffusion.datasets.transforms import adm_transform, sd_transform

RAMP = np.linspace(0, 65535, 20 * 16).astype(np.uint16).reshape(16, 20)
GREY = np.rint(RAMP / 257).astype(np.uint8)  # 65535 is 257 times 255


def folder_of(tmp_path, *images, suffix="tiff"):
    """A data set of one class for each image."""
    for i, image in enumerate(images):
        (tmp_path / "set" / str(i)).mkdir(parents=True)
        image.save(tmp_path / "set" / str(i) / f"x.{suffix}")
    return open_dataset("folder", "test", None, tmp_path / "set")


def hub_of(tmp_path, *images):
    """The same as a Hugging Face set."""
    import datasets

    table = datasets.Dataset.from_dict({"image": list(images), "label": list(range(len(images)))})
    table.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "hub"))
    return open_dataset("hf", "test", None, tmp_path / "hub")


# ---------------------------------------------------------------- deep pictures


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bits_in_a_folder_become_8(tmp_path, suffix):
    image = folder_of(tmp_path, Image.fromarray(RAMP), suffix=suffix)[0][0]
    assert image.mode == "RGB"
    assert all(np.abs(np.asarray(image)[..., c].astype(int) - GREY).max() <= 1 for c in range(3))


def test_16_bits_in_a_hugging_face_set_become_8(tmp_path):
    image = hub_of(tmp_path, Image.fromarray(RAMP))[0][0]
    assert image.mode == "L" and np.abs(np.asarray(image).astype(int) - GREY).max() <= 1


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_either_order_of_bytes(mode):
    image = Image.frombytes(mode, (20, 16), RAMP.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert np.abs(np.asarray(fit(image)).astype(int) - GREY).max() <= 1


@pytest.mark.parametrize(("bits", "is_negative"), [(12, False), (16, False), (16, True)])
def test_a_tiff_s_own_range_and_sense_count(tmp_path, bits, is_negative):
    """Written by hand: PIL writes neither 12 bits nor white as zero."""
    values = RAMP >> (16 - bits)
    data = values.astype("<u2").tobytes() if bits == 16 else packed_12(values)
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "x.tif").write_bytes(tiff(data, bits, 0 if is_negative else 1))
    image = np.asarray(open_dataset("folder", "test", None, tmp_path / "set")[0][0])[..., 0].astype(int)
    assert np.abs(image - (255 - GREY.astype(int) if is_negative else GREY)).max() <= 1


def packed_12(values):
    """Two values in three bytes, high bits first."""
    first, second = values.reshape(-1, 2).T.astype(int)
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()


def tiff(data, bits, photometric):
    """An uncompressed grey TIFF of 20 x 16 pixels in one strip."""
    entries = {256: 20, 257: 16, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 16, 279: len(data)}
    rows = b"".join(
        number.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for number, value in entries.items()
    )
    directory = len(entries).to_bytes(2, "little") + rows + bytes(4)
    return b"II*\0" + (8 + len(data)).to_bytes(4, "little") + data + directory


UNKNOWN = [(RAMP.astype(np.int32), "32-bit integers"), (np.float32(RAMP / 65535), "floats"), (np.float32(RAMP), "floats")]


@pytest.mark.parametrize("where", [folder_of, hub_of])
@pytest.mark.parametrize(("pixels", "kind"), UNKNOWN)
def test_pixels_of_unknown_range_fail_one_by_one(tmp_path, where, pixels, kind):
    dataset = where(tmp_path, Image.fromarray(pixels), layouts.picture(1))
    with pytest.raises(OSError, match=rf"image 0.* cannot be read: its pixels are {kind}.*unknown range: save it with 8 or 16"):
        dataset[0]
    assert np.array_equal(dataset[1][0], layouts.picture(1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pictures_of_8_bits_stay_as_they_are(mode):
    image = layouts.picture(3).convert("RGBA").convert("RGB").convert("L" if mode == "LA" else mode).convert(mode)
    assert fit(image) is image


@pytest.mark.parametrize("transform", [sd_transform(32), adm_transform(32)])
def test_the_transforms_keep_the_range_of_deep_pictures(tmp_path, transform):
    dataset = folder_of(tmp_path, Image.fromarray(RAMP))
    dataset.transform = transform
    x = dataset[0][0]
    assert x.shape == (3, 32, 32) and abs(float(x.mean())) < 0.02 and float(x.std()) > 0.4  # a ramp over -1..1: mean 0


# ---------------------------------------------------------------- EXIF


def turned(orientation):
    """(image, its EXIF): stored so that turning it as EXIF says gives picture(4)."""
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # PIL's transpositions that undo it
    exif = Image.Exif()
    exif[0x0112] = orientation
    return layouts.picture(4) if back is None else layouts.picture(4).transpose(Image.Transpose(back)), exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_folders_and_hugging_face_sets_turn_pictures_alike(tmp_path, orientation):
    import datasets

    image, exif = turned(orientation)
    path = tmp_path / "set" / "a" / "x.png"
    path.parent.mkdir(parents=True)
    image.save(path, exif=exif)
    table = datasets.Dataset.from_dict({"image": [str(path)], "label": [0]}).cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "hub"))
    for name, root in (("folder", "set"), ("hf", "hub")):
        assert np.array_equal(open_dataset(name, "test", None, tmp_path / root)[0][0], layouts.picture(4)), name


def test_a_deep_picture_is_turned_and_scaled(tmp_path):
    _, exif = turned(6)
    (tmp_path / "set" / "a").mkdir(parents=True)
    Image.fromarray(RAMP).save(tmp_path / "set" / "a" / "x.png", exif=exif)
    image = open_dataset("folder", "test", None, tmp_path / "set")[0][0]
    assert np.abs(np.asarray(image)[..., 0].astype(int) - np.rot90(GREY, -1)).max() <= 1  # orientation 6: a quarter to the right


def test_the_published_sets_are_read_as_published(tmp_path):
    """Their numbers were computed without turning anything."""
    image, exif = turned(6)
    path = tmp_path / "imagenet" / "val" / "n01440764" / "x.png"
    path.parent.mkdir(parents=True)
    image.save(path, exif=exif)
    assert np.array_equal(open_dataset("imagenet", "test", None, tmp_path)[0][0], image)


# ---------------------------------------------------------------- transparent parts


def cut_out(mode):
    """A picture whose left half is transparent, and what a viewer with a white page shows."""
    seen = np.asarray(layouts.picture(5)).copy()
    alpha = np.full(seen.shape[:2], 255, np.uint8)
    alpha[:, : seen.shape[1] // 2] = 0
    if mode == "LA":
        seen[:] = seen[..., :1]
    image = Image.fromarray(np.dstack([seen, alpha]), "RGBA")
    seen[:, : seen.shape[1] // 2] = 255
    return image.convert(mode), seen


@pytest.mark.parametrize("where", [folder_of, hub_of])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_of_ones_own_pictures_are_white(tmp_path, where, mode):
    image, seen = cut_out(mode)
    dataset = where(tmp_path, image, layouts.picture(1), **({"suffix": "png"} if where is folder_of else {}))
    assert np.array_equal(np.asarray(dataset[0][0].convert("RGB")), seen)
    assert np.array_equal(dataset[1][0], layouts.picture(1))


def test_they_are_counted_and_those_of_published_sets_stay(tmp_path):
    image, _ = cut_out("RGBA")
    assert (
        "1 of the first 2 pictures have transparent parts, which are put on white"
        in folder_of(tmp_path, image, layouts.picture(1), suffix="png").notice
    )
    path = tmp_path / "imagenet" / "val" / "n01440764" / "x.png"
    path.parent.mkdir(parents=True)
    image.save(path)
    published = open_dataset("imagenet", "test", None, tmp_path)
    assert "transparent" not in published.notice and np.array_equal(published[0][0], image.convert("RGB"))


def test_a_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (4, 2), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "x.gif", transparency=0)
    found = np.asarray(open_rgb(tmp_path / "x.gif", custom=True))
    assert found[0, 0].tolist() == [255] * 3 and found[1, 3].tolist() == [200, 100, 50]


# ---------------------------------------------------------------- what Python functions are given


def test_a_path_an_image_and_an_array_are_one_picture(tmp_path):
    image, exif = turned(6)
    image.save(tmp_path / "x.png", exif=exif)
    given = [tmp_path / "x.png", str(tmp_path / "x.png"), Image.open(tmp_path / "x.png"), np.asarray(layouts.picture(4))]
    given += [Image.open(tmp_path / "x.png").transpose(Image.Transpose.ROTATE_270)]  # turned by hand, with the tag still on it
    assert all(np.array_equal(picture_of(one), layouts.picture(4)) for one in given)


def test_what_is_given_is_not_changed(tmp_path):
    image, exif = turned(6)
    image.save(tmp_path / "x.png", exif=exif)
    opened = Image.open(tmp_path / "x.png")
    picture_of(opened)
    assert np.array_equal(opened, image) and opened.getexif()[0x0112] == 6


def test_an_array_with_alpha_and_a_deep_image():
    image, seen = cut_out("RGBA")
    assert np.array_equal(picture_of(np.asarray(image)), seen)
    assert np.abs(np.asarray(picture_of(Image.fromarray(RAMP))).astype(int) - GREY).max() <= 1


@pytest.mark.parametrize(
    "given", [np.zeros((3, 4, 5), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros(7, np.uint8), None, 5, b"png"]
)
def test_what_is_no_picture(given):
    with pytest.raises(ValueError, match=r"no picture: give .*uint8 \[H,W"):
        picture_of(given)


@pytest.mark.parametrize("content", [None, b"", b"text"])
def test_files_that_cannot_be_read(tmp_path, content):
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(OSError, match=r"x.png cannot be read: "):
        picture_of(tmp_path / "x.png")


# ---------------------------------------------------------------- what Pillow refuses


@pytest.mark.parametrize("beside", ["text", "profile"])
def test_metadata_of_megabytes_cost_no_picture(tmp_path, beside):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("workflow", "y" * (2 << 20), zip=True)
    more = {"pnginfo": text} if beside == "text" else {"icc_profile": bytes(2 << 20)}
    layouts.picture(4).save(tmp_path / "x.png", **more)
    assert np.array_equal(open_rgb(tmp_path / "x.png"), layouts.picture(4))


def test_too_many_pixels_are_told_with_the_limit(tmp_path):
    """A header of 20,000 x 20,000 pixels and nothing else."""
    header = struct.pack(">II", 20000, 20000) + bytes([8, 2, 0, 0, 0])
    chunk = b"IHDR" + header
    data = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + bytes(4)
        + b"IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
    )
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"^more than 178 million pixels: make it smaller first$"):
        open_rgb(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_1.jpg"])
def test_photos_of_phones_name_what_reads_them(tmp_path, name, monkeypatch):
    monkeypatch.setattr("diffusion.datasets.pictures.importlib.util.find_spec", lambda name: None)
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(ValueError, match="pillow-heif"):
        open_rgb(tmp_path / name)


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("size", [(20000, 1), (1, 20000), (4 * LONGEST + 1, 4)])
@pytest.mark.parametrize("transform", [sd_transform(512), adm_transform(256)])
def test_a_picture_too_long_to_be_resized_is_one_failed_image(tmp_path, size, transform):
    from diffusion.datasets.loader import load_images

    dataset = folder_of(tmp_path, Image.new("RGB", size), layouts.picture(1), suffix="png")
    dataset.transform = transform
    (_, image, _, problem), (_, _, label, fine) = load_images(dataset, [0, 1], 0)
    assert image is None and f"{size[0]} x {size[1]} pixels" in problem and "image 0" in problem and "0/x.png" in problem
    assert label == 1 and fine is None


@pytest.mark.parametrize("size", [(LONGEST, 1), (1, LONGEST), (1, 1), (300, 7)])
def test_shapes_that_can_be_resized(size):
    assert sd_transform(16)(fit(Image.new("RGB", size))).shape == (3, 16, 16)
