"""Pictures that are not 8-bit RGB lying upright: scaled, turned, or refused one by one, wherever they come from."""

import layouts
import numpy as np
import pytest
from PIL import Image

from diffusion.datasets import open_dataset
from diffusion.datasets.pictures import LONGEST, fit
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
