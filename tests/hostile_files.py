"""Files for the table of bad inputs: what the commands read, whole, and each kind of file broken in every way that it can be.

Everything lies below one folder, the world, which `build` fills; tests/hostile.py names what is in it as `@name`.
"""

import json
import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import layouts
import numpy as np
import safetensors.numpy

from diffusion.datasets.readers.imagenet import imagenet_ids
from diffusion.utils import paths

TINY_PIPELINE, TINY_DIT, TINY_CLIP = paths.TINY_SD, paths.TINY_DIT, paths.TINY_CLIP
FIRST_PIXELS = 2000  # bytes that are left of a file that is cut


def written(content: bytes | str):
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


# what can be wrong with any file; `missing` and `no name` are of tests/hostile.py
ANY_FILE = {
    "directory": lambda path: path.mkdir(),
    "empty": written(""),
    "a text": written("this file is of another kind\n"),
    "bytes": written(bytes(range(256)) * 8),
    "nul bytes": written(bytes(512)),
}


# ---------------------------------------------------------------- subsets, prompts, noise


def array(*content, **how):
    return lambda path: np.save(path, np.array(*content, **how), allow_pickle=True)


def npy_header(header: str) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def several_arrays(path):
    with open(path, "wb") as file:
        np.savez(file, a=np.arange(3))


class Foreign:
    """Reading it as a pickle would call a function; a file that tells whether it ran stands in for harm."""

    def __reduce__(self):
        return Path.touch, (Path("it_ran"),)


SUBSETS = {
    "several arrays": several_arrays,
    "like a zip": written(b"PK\x03\x04" + bytes(60)),
    "pickle": written(pickle.dumps([1, 2])),
    "a pickle that acts": written(pickle.dumps(Foreign())),
    "objects": array([{"a": 1}, None]),
    "cut": written(npy_header("{'descr': '<i8', 'fortran_order': False, 'shape': (100,), }") + bytes(16)),
    "far too large": written(npy_header("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }")),
    "no header": written(b"\x93NUMPY\x01\x00\xff\xff{"),
    "floats": array([1.0, 2.0]),
    "nan": array([np.nan]),
    "texts": array(["a", "b"]),
    "bools": array([True, False]),
    "durations": array([1, 2], dtype="timedelta64[s]"),
    "dates": array([1, 2], dtype="datetime64[s]"),
    "complex": array([1 + 0j]),
    "records": array([(1, 2)], dtype=[("a", "i8"), ("b", "i8")]),
    "a scalar": array(3),
    "two axes": array([[1, 2]]),
    "no images": array([], dtype=np.int64),
    "negative": array([-1]),
    "outside": array([10**6]),
    "huge": array([2**63], dtype=np.uint64),
    "twice the same": array([1, 1]),
}

HEADER = "prompt,classname,classidx\n"
CLASSES = [f"c{i}" for i in range(10)]


def prompts(rows) -> str:
    return HEADER + "".join(f"{prompt},{name},{index}\n" for prompt, name, index in rows)


def of_each(prompt):
    return written(prompts((prompt(i), f"c{i}", i) for i in range(10)))


PROMPT_FILES = {
    "header only": written(HEADER),
    "other columns": written("prompt,label\na,0\n"),
    "another class": written(prompts([("a", "a", 0), ("b", "b", 10)])),
    "negative class": written(prompts([("a", "a", -1)])),
    "huge class": written(prompts([("a", "a", 10**30)])),
    "class as a text": written(prompts([("a", "a", "x")])),
    "class in other digits": written(prompts([("a", "a", "²")])),
    "empty prompt": written(prompts([("", "a", 0)])),
    "one field too many": written(HEADER + "a, b,a,0\n"),
    "open quote": written(HEADER + '"a,a,0\nb,b,1\n'),
    "latin 1": written(HEADER.encode() + "é,é,0\n".encode("latin-1")),
    "utf 16": written(prompts([("a", "a", 0)]).encode("utf-16")),
    "a long field": written(HEADER + "a" * 200_000 + ",a,0\n"),
    "equal prompts": of_each(lambda i: "a photo of a thing"),
    "equal but for spaces": of_each(lambda i: "a photo" + " " * (i + 1) + "of it"),
    "equal up to the limit": of_each(lambda i: "word " * 90 + str(i)),
}


def tensor(make):
    """A file that torch.save wrote; make(torch) gives what is in it."""

    def write(path):
        import torch

        torch.save(make(torch), path)

    return write


def cut(write, size=FIRST_PIXELS):
    """What `write` writes, up to here."""

    def wrapped(path):
        write(path)
        path.write_bytes(path.read_bytes()[:size])

    return wrapped


def with_value(value):
    def make(torch):
        noise = torch.randn(1000, 4, 8, 8)
        noise[0, 0, 0, 0] = value
        return noise

    return tensor(make)


GOOD_NOISE = tensor(lambda torch: torch.randn(1000, 4, 8, 8))
NOISES = {
    "cut": cut(GOOD_NOISE),
    "pickle": written(pickle.dumps([1.0])),
    "a pickle that acts": written(pickle.dumps(Foreign())),
    "torch pickle that acts": tensor(lambda torch: Foreign()),
    "too short": tensor(lambda torch: torch.randn(1, 4, 8, 8)),
    "other size": tensor(lambda torch: torch.randn(1000, 4, 16, 16)),
    "other channels": tensor(lambda torch: torch.randn(1000, 3, 8, 8)),
    "flat": tensor(lambda torch: torch.randn(1000)),
    "a scalar": tensor(lambda torch: torch.tensor(1.0)),
    "no rows": tensor(lambda torch: torch.randn(0, 4, 8, 8)),
    "a list": tensor(lambda torch: [torch.randn(4, 8, 8)]),
    "a dict": tensor(lambda torch: {"noise": torch.randn(1000, 4, 8, 8)}),
    "integers": tensor(lambda torch: torch.ones(1000, 4, 8, 8, dtype=torch.int64)),
    "bools": tensor(lambda torch: torch.rand(1000, 4, 8, 8) > 0.5),
    "complex": tensor(lambda torch: torch.randn(1000, 4, 8, 8, dtype=torch.complex64)),
    "sparse": tensor(lambda torch: torch.eye(8).expand(1000, 4, 8, 8).to_sparse()),
    "all zero": tensor(lambda torch: torch.zeros(1000, 4, 8, 8)),
    "one value": tensor(lambda torch: torch.ones(1000, 4, 8, 8)),
    "nan": with_value(float("nan")),
    "inf": with_value(float("inf")),
}

CLASS_LISTS = {
    "blank": written("\n \n"),
    "latin 1": written("caf\xe9\nbar\n".encode("latin-1")),
    "utf 16": written("a\nb\n".encode("utf-16")),
    "the same name twice": written("cat\ncat\n"),
}

TEMPLATE_LISTS = {
    "blank": written("\n \n"),
    "latin 1": written("caf\xe9 {}\n".encode("latin-1")),
    "utf 16": written("a {}\n".encode("utf-16")),
    "one without a place": written("a {}\na photo\n"),
    "past the limit": written("word " * 90 + "{}\n"),
}

# ---------------------------------------------------------------- models

BROKEN_JSON = {
    "empty": "",
    "a list": "[]",
    "null": "null",
    "a number": "3",
    "no keys": "{}",
    "not JSON": "{'a': 1",
    "missing": None,
}
BROKEN_WEIGHTS = {
    "empty": b"",
    "cut": FIRST_PIXELS,
    "a text": b"weights\n",
    "missing": None,
    "no tensors": b"\x02\0\0\0\0\0\0\0{}",
}


def linked(source: Path, target: Path, but: str) -> Path:
    """A copy of a model folder by links, but for one file; returns where that is."""
    for path in source.rglob("*"):
        place = target / path.relative_to(source)
        if path.is_file() and path.relative_to(source).as_posix() != but:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    (target / but).parent.mkdir(parents=True, exist_ok=True)
    return target / but


def replaced(source: Path, name: str, content):
    """A writer of a copy of a model with one file's content replaced; content: a number of bytes to keep, or None for no file."""

    def write(path):
        file = linked(source, path, name)
        if isinstance(content, int):
            file.write_bytes((source / name).read_bytes()[:content])
        elif content is not None:
            written(content)(file)

    return write


def edited(source: Path, name: str, **changes):
    """The same with keys of a JSON file changed, or taken out where None."""
    now = json.loads((source / name).read_text()) | changes
    return replaced(source, name, json.dumps({key: value for key, value in now.items() if value is not None}))


def broken_files(source: Path, names, faults) -> dict:
    return {f"{name} {fault}": replaced(source, name, content) for name in names for fault, content in faults.items()}


def without(source: Path, *names: str):
    """A writer of a copy without what has these names."""
    return lambda path: shutil.copytree(source, path, ignore=shutil.ignore_patterns(*names), copy_function=link)


def link(source, target):
    Path(target).symlink_to(source)


SCHEDULER = "scheduler/scheduler_config.json"
PIPELINES = {
    **broken_files(
        TINY_PIPELINE,
        ["model_index.json", SCHEDULER, "unet/config.json", "vae/config.json", "text_encoder/config.json"],
        BROKEN_JSON,
    ),
    **broken_files(TINY_PIPELINE, ["tokenizer/tokenizer_config.json"], {"a list": "[]", "not JSON": "{'a': 1"}),
    **broken_files(TINY_PIPELINE, ["tokenizer/tokenizer.json"], {"a list": "[]", "not JSON": "{'a': 1"}),
    **broken_files(TINY_PIPELINE, ["unet/diffusion_pytorch_model.safetensors"], BROKEN_WEIGHTS),
    **broken_files(
        TINY_PIPELINE,
        ["vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"],
        {"cut": FIRST_PIXELS, "missing": None},
    ),
    "no tokenizer": without(TINY_PIPELINE, "tokenizer"),
    "tokenizer without words": without(TINY_PIPELINE, "vocab.json", "merges.txt", "tokenizer.json"),
    "500 steps": edited(TINY_PIPELINE, SCHEDULER, num_train_timesteps=500),
    "4000 steps": edited(TINY_PIPELINE, SCHEDULER, num_train_timesteps=4000),
    "no steps": edited(TINY_PIPELINE, SCHEDULER, num_train_timesteps=0),
    "steps as a text": edited(TINY_PIPELINE, SCHEDULER, num_train_timesteps="many"),
    "no betas": edited(TINY_PIPELINE, SCHEDULER, beta_start=None, beta_end=None, beta_schedule=None),
    "beta as a text": edited(TINY_PIPELINE, SCHEDULER, beta_start="small"),
    "betas of another name": edited(TINY_PIPELINE, SCHEDULER, beta_schedule="spiral"),
    "flow matching": edited(TINY_PIPELINE, SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler", shift=3.0),
    "another prediction": edited(TINY_PIPELINE, SCHEDULER, prediction_type="sample_of_something"),
    "class embedding": edited(TINY_PIPELINE, "unet/config.json", class_embed_type="timestep"),
    "sample size as a text": edited(TINY_PIPELINE, "unet/config.json", sample_size="large"),
    "other channels": edited(TINY_PIPELINE, "unet/config.json", in_channels=9),
    "other widths": edited(TINY_PIPELINE, "unet/config.json", block_out_channels=[32, 64]),
    "no widths in the vae": edited(TINY_PIPELINE, "vae/config.json", block_out_channels=[]),
}

DITS = {
    **broken_files(TINY_DIT, ["config.json"], BROKEN_JSON),
    **broken_files(TINY_DIT, ["model.safetensors"], BROKEN_WEIGHTS),
    "other width": edited(TINY_DIT, "config.json", hidden_size=96),
    "width as a text": edited(TINY_DIT, "config.json", hidden_size="wide"),
    "no classes": edited(TINY_DIT, "config.json", num_classes=0),
    "no patches": edited(TINY_DIT, "config.json", patch_size=0),
    "an unknown key": edited(TINY_DIT, "config.json", colour="red"),
}

CLIP_CONFIG = json.loads((TINY_CLIP / "tiny-clip.json").read_text())
CLIPS = {
    **broken_files(TINY_CLIP, ["tiny-clip.json"], BROKEN_JSON),
    **broken_files(TINY_CLIP, ["tiny-clip.safetensors"], BROKEN_WEIGHTS),
    "no tokenizer": without(TINY_CLIP, "tokenizer"),
    "tokenizer without words": without(TINY_CLIP, "vocab.json", "merges.txt", "tokenizer.json"),
    "other width": edited(TINY_CLIP, "tiny-clip.json", embed_dim=7),
    "width as a text": edited(TINY_CLIP, "tiny-clip.json", embed_dim="wide"),
    "vision as a list": edited(TINY_CLIP, "tiny-clip.json", vision_cfg=[]),
}

VAE = TINY_PIPELINE / "vae"
VAES = {
    **broken_files(VAE, ["config.json"], BROKEN_JSON),
    **broken_files(VAE, ["diffusion_pytorch_model.safetensors"], BROKEN_WEIGHTS),
    "other channels": edited(VAE, "config.json", latent_channels=16),
}

# ---------------------------------------------------------------- data sets

PICTURES = (".jpg", ".jpeg", ".JPEG", ".png")
# torchvision checks the sums of the others' files, which a miniature does not have: it is refused as a whole
LAID_OUT = [name for name in layouts.LAYOUTS if name not in ("cifar10", "cifar100", "stl10")]  # whose sums are checked


def laid_out(name: str):
    def write(path):
        path.mkdir()
        layouts.LAYOUTS[name].write(path)

    return write


def damaged(name: str, content):
    """A writer of a data set whose every file but the pictures has this content; an integer: is cut to so many bytes."""

    def write(path):
        laid_out(name)(path)
        for file in [file for file in path.rglob("*") if file.is_file() and file.suffix not in PICTURES]:
            file.write_bytes(file.read_bytes()[:content] if isinstance(content, int) else content)

    return write


STRANGERS = {  # data set -> where a folder that is none of its classes lies
    "imagenet": "imagenet/val/backup",
    "imagenetA": "imagenet-a/backup",
    "eurosat": "eurosat/2750/backup",
    "caltech101": "caltech101/101_ObjectCategories/backup",
}
FILE_SETS = ("pets", "flowers", "food", "aircraft", "mnist", "fashion_mnist")  # of LAID_OUT, those with files beside pictures
DATA_SETS = {
    f"{name} {fault}": damaged(name, content)
    for name in FILE_SETS
    for fault, content in (("emptied", b""), ("cut", 10), ("of text", b"a b c d e f\n" * 40), ("of bytes", b"\xff\xfe" * 300))
}


def pictures(*names, **how):
    def write(path):
        for number, name in enumerate(names):
            layouts.save_picture(path / name, number, **how)

    return write


def lone(path):
    path.mkdir()
    (path / "a").mkdir()
    (path / "a" / "notes.txt").write_text("no picture\n")


def not_decodable(path):
    (path / "a").mkdir(parents=True)
    (path / "a" / "0.png").write_bytes(b"\x89PNG")
    path.joinpath("a", "link.png").symlink_to("nowhere.png")


def looped(path):
    pictures("a/0.png", "b/0.png")(path)
    (path / "a" / "again").symlink_to(path, target_is_directory=True)


IMAGE_FOLDERS = {
    "without folders": pictures("0.png", "1.png"),
    "without pictures": lone,
    "one class empty": lambda path: (pictures("a/0.png")(path), (path / "b").mkdir()),
}


def picture_of(width: int, height: int):
    """A writer of a PNG whose header says so and whose pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return written(b"\x89PNG\r\n\x1a\n" + chunk)


PICTURE_FILES = {
    "a PNG's first bytes": written(b"\x89PNG"),
    "without pixels": picture_of(64, 64),
    "far too large": picture_of(100_000, 100_000),
    "far too long": lambda path: layouts.picture(0).resize((2000, 1)).save(path),
}


def saved_table(path, change=None):
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    rows = {"image": [layouts.picture(0), layouts.picture(1)], "label": [0, 1]}
    Dataset.from_dict(rows, features=features).save_to_disk(str(path))
    if change:
        change(path)


def broken_table(name: str, content):
    """A writer of a table of save_to_disk with the first file of this pattern replaced."""
    return lambda path: saved_table(path, lambda path: next(path.glob(name)).write_bytes(content))


def columns(**rows):
    def write(path):
        from datasets import Dataset

        Dataset.from_dict(rows).save_to_disk(str(path))

    return write


TABLES = {
    "state empty": broken_table("state.json", b""),
    "state a list": broken_table("state.json", b"[]"),
    "state no keys": broken_table("state.json", b"{}"),
    "info not JSON": broken_table("dataset_info.json", b"{'a'"),
    "info a list": broken_table("dataset_info.json", b"[]"),
    "table empty": broken_table("*.arrow", b""),
    "table of text": broken_table("*.arrow", b"rows\n" * 100),
    "no columns of images": columns(a=[1, 2], label=[0, 1]),
    "parquet of text": lambda path: (path.mkdir(), (path / "test.parquet").write_text("rows\n")),
    "json rows": lambda path: (path.mkdir(), (path / "test.json").write_text('[{"a": 1}]')),
}


def shards(change):
    """A writer of shards, of which change(folder) breaks something."""
    return lambda path: (layouts.webdataset(path), change(path))


def shard_of(**members):
    """The first of two shards of other members; `__` in their names stands for a dot."""
    named = {name.replace("__", "."): content for name, content in members.items()}
    return shards(lambda path: layouts.tar(path / "test/0.tar", named))


def cut(path: Path, n: int) -> None:
    path.write_bytes(path.read_bytes()[:n])


PNG = layouts.png(0)
SHARDS = {
    "no split": shards(lambda path: (path / "test").rename(path / "train")),
    "no names": shards(lambda path: (path / "classnames.txt").unlink()),
    "names empty": shards(lambda path: (path / "classnames.txt").write_text("\n")),
    "count a word": shards(lambda path: (path / "test/nshards.txt").write_text("two")),
    "count of bytes": shards(lambda path: (path / "test/nshards.txt").write_bytes(b"\xff")),
    "no shards": shards(lambda path: (path / "test/nshards.txt").write_text("0")),
    "a shard missing": shards(lambda path: (path / "test/nshards.txt").write_text("3")),
    "far too many shards": shards(lambda path: (path / "test/nshards.txt").write_text("9" * 18)),
    "a shard that is a folder": shards(lambda path: ((path / "test/1.tar").unlink(), (path / "test/1.tar").mkdir())),
    "a shard of text": shards(lambda path: (path / "test/1.tar").write_text("text\n" * 500)),
    "a shard empty": shards(lambda path: (path / "test/1.tar").write_bytes(b"")),
    "a shard cut in a picture": shards(lambda path: cut(path / "test/0.tar", 700)),
    "a shard cut in a header": shards(lambda path: cut(path / "test/0.tar", 512 + 1536 + 100)),
    "a shard cut behind a member": shards(lambda path: cut(path / "test/0.tar", 512 + 1536)),
    "without pictures": shards(lambda path: [layouts.tar(path / f"test/{i}.tar", {}) for i in range(2)]),
    "without labels": shards(lambda path: [layouts.tar(path / f"test/{i}.tar", {"a.png": PNG}) for i in range(2)]),
    "a label missing": shard_of(a__png=PNG, a__cls=b"0", b__png=PNG),
    "a picture missing": shard_of(a__cls=b"0", b__png=PNG, b__cls=b"0"),
    "a picture twice": shard_of(a__png=PNG, a__jpg=PNG, a__cls=b"0"),
    "a label of no class": shard_of(a__png=PNG, a__cls=b"3"),
    "a label of words": shard_of(a__png=PNG, a__cls=b"ant"),
    "a negative label": shard_of(a__png=PNG, a__cls=b"-1"),
    "a label of bytes": shard_of(a__png=PNG, a__cls=bytes(range(256))),
    "a label of nothing": shard_of(a__png=PNG, a__cls=b""),
}


def csv_of(content):
    """A writer of a CSV without its pictures."""
    return written(content if isinstance(content, bytes) else "path,label\n" + content)


OWN_CSVS = {
    "header only": csv_of(""),
    "no path": csv_of(b"picture,label\n../images/a/0.png,a\n"),
    "path twice": csv_of(b"path,path,label\na,a,0\n"),
    "semicolons": csv_of(b"path;label\n../images/a/0.png;a\n"),
    "no label": csv_of(b"path\n../images/a/0.png\n"),
    "labels empty": csv_of("../images/a/0.png,\n"),
    "a label empty": csv_of("../images/a/0.png,a\n../images/b/0.png, \n"),
    "a path empty": csv_of(",a\n"),
    "a path of nul": csv_of("a\0.png,a\n"),
    "a file missing": csv_of("../images/a/0.png,a\n../images/none.png,b\n"),
    "a path twice below": csv_of("../images/a/0.png,a\n../images/./a/0.png,b\n"),
    "a comma": csv_of("../images/a/0.png,a,b\n"),
    "open quote": csv_of('"../images/a/0.png,a\n'),
    "latin 1": csv_of("path,label\n../images/a/0.png,caf\u00e9\n".encode("latin-1")),
    "utf 16": csv_of("path,label\n../images/a/0.png,a\n".encode("utf-16")),
    "a huge label": csv_of("../images/a/0.png,99999999\n"),
}

PAIR_LINE = json.loads((paths.TINY_PAIRS / "examples.jsonl").read_text().splitlines()[0])


def pair_folder(*lines):
    """A writer of a folder of pairs with these lines: dicts, or texts as they are."""

    def write(path):
        path.mkdir()
        (path / "images").symlink_to(paths.TINY_PAIRS / "images")
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (path / "examples.jsonl").write_text(text + "\n")

    return write


def line_without(name: str) -> dict:
    return {key: value for key, value in PAIR_LINE.items() if key != name}


PAIR_FOLDERS = {
    "no file": lambda path: path.mkdir(),
    "no lines": pair_folder(""),
    "not JSON": pair_folder("{'id': 0}"),
    "a list": pair_folder("[]"),
    "a number": pair_folder("3"),
    "no id": pair_folder(line_without("id")),
    "no caption": pair_folder(line_without("caption_1")),
    "no image": pair_folder(line_without("image_0")),
    "id as a text": pair_folder(PAIR_LINE | {"id": "0"}),
    "negative id": pair_folder(PAIR_LINE | {"id": -1}),
    "huge id": pair_folder(PAIR_LINE | {"id": 10**400}),
    "ids twice": pair_folder(PAIR_LINE, PAIR_LINE),
    "caption as a number": pair_folder(PAIR_LINE | {"caption_0": 3}),
    "empty caption": pair_folder(PAIR_LINE | {"caption_0": ""}),
    "equal captions": pair_folder(PAIR_LINE | {"caption_1": PAIR_LINE["caption_0"]}),
    "another image": pair_folder(PAIR_LINE | {"image_0": "nowhere"}),
    "an image outside": pair_folder(PAIR_LINE | {"image_0": "../../x"}),
    "lines of bytes": lambda path: (path.mkdir(), (path / "examples.jsonl").write_bytes(b"\xff\xfe\x00")),
}

# ---------------------------------------------------------------- run folders


def copied_run(change):
    """A writer of a copy of the world's run of this kind, which `change(folder)` has broken."""

    def write(path):
        shutil.copytree(path.parent.parent / path.parent.name.removeprefix("bad "), path)
        change(path)

    return write


def every_record(content: bytes):
    def change(folder):
        for path in folder.glob("*.pt"):
            path.write_bytes(content if content else path.read_bytes()[:200])

    return copied_run(change)


def every_record_holds(make):
    def change(folder):
        for path in folder.glob("*.pt"):
            tensor(make)(path)

    return copied_run(change)


def as_folders(folder):
    for path in folder.glob("*.pt"):
        path.unlink()
        path.mkdir()


def config_of(content: str):
    return copied_run(lambda folder: (folder / "config.json").write_text(content))


def config_changed(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return copied_run(change)


def without_records(folder):
    for path in folder.glob("*.pt"):
        path.unlink()


RUNS = {
    "no records": copied_run(without_records),
    "records cut": every_record(b""),
    "records of text": every_record(b"record\n"),
    "records empty": every_record_holds(lambda torch: {}),
    "records a list": every_record_holds(lambda torch: [1]),
    "records a number": every_record_holds(lambda torch: 3),
    "records that act": every_record_holds(lambda torch: Foreign()),
    "records of nan": every_record_holds(
        lambda torch: {"errors": {0: {"t": torch.arange(2), "pred_errors": torch.full((2,), torch.nan)}}, "pred": 0, "label": 0}
    ),
    "records without label": every_record_holds(
        lambda torch: {"errors": {0: {"t": torch.arange(2), "pred_errors": torch.rand(2)}}, "pred": 0}
    ),
    "records are folders": copied_run(as_folders),
    "config empty": config_of(""),
    "config not JSON": config_of("{'a': 1"),
    "config a list": config_of("[]"),
    "config null": config_of("null"),
    "config of texts": config_changed(identity="x", options="y", candidates="z", images_expected="many"),
    "config of lists": config_changed(identity=[], options=[], candidates=[], images_expected=[]),
    "config of another kind": config_changed(kind="poem"),
}

FIT = {"temperature": 1e-3, "weight": 0.5, "n": 100, "about": {"weights": "0", "loss": "l2"}}


RESULTS = {"task": "zeroshot_classification", "metrics": {"acc1": 0.5}, "intervals": {"acc1": [0.4, 0.6]}, "n": 100}


def results_of(**changes):
    return written(json.dumps(RESULTS | changes))


SCORED = "index,aesthetic,unsafe\n"
SCORE_FILES = {
    "header only": written(SCORED),
    "other columns": written("index,score\n0,5\n"),
    "an aesthetic of nan": written(SCORED + "0,nan,0\n"),
    "unsafe above 1": written(SCORED + "0,5,2\n"),
    "a field too few": written(SCORED + "0,5\n"),
    "an index as a text": written(SCORED + "x,5,0\n"),
    "an index outside": written(SCORED + "1000000,5,0\n"),
    "an index twice": written(SCORED + "0,5,0\n0,5,0\n"),
    "a width without a height": written("index,width,aesthetic,unsafe\n0,9,5,0\n"),
    "a width of zero": written("index,width,height,aesthetic,unsafe\n0,0,9,5,0\n"),
    "a path that is none": written("path,aesthetic,unsafe\nnone.png,5,0\n"),
    "utf 16": written((SCORED + "0,5,0\n").encode("utf-16")),
}

RESULT_FILES = {
    "JSON, a list": written("[]"),
    "no metrics": written('{"task": "x"}'),
    "metrics a list": results_of(metrics=[0.5]),
    "metrics of texts": results_of(metrics={"acc1": "0.5"}),
    "metrics of infinity": results_of(metrics={"acc1": float("inf")}),
    "metrics too large": results_of(metrics={"acc1": 10**400}),
    "intervals of others": results_of(intervals={"acc5": [0.4, 0.6]}),
    "intervals of one end": results_of(intervals={"acc1": [0.4]}),
    "intervals a number": results_of(intervals=3),
    "n a text": results_of(n="many"),
    "evaluations of nan": results_of(evaluations=float("nan")),
    "model a number": results_of(model=3),
    "half a letter": results_of(model="\ud800"),
    "another file of ours": written(json.dumps(FIT)),
}


OPTION_FILES = {
    "a list": written("- seed\n- extra\n"),
    "two documents": written("seed: 1\n---\nseed: 2\n"),
    "no YAML": written("seed: [1\n"),
    "a tab": written("a:\n\tb: 1\n"),
    "nested deeply": written("seed: " + "[" * 5000),
    "latin 1": written("extra: \u00e9\n".encode("latin-1")),
    "a Python object": written("extra: !!python/object/apply:os.system ['touch it_ran']\n"),
    "an unknown key": written("sed: 1\n"),
    "a short option": written("see: 1\n"),
    "a key twice": written("seed: 1\nseed: 2\n"),
    "a key that is a list": written("? [seed]\n: 1\n"),
    "help": written("help: true\n"),
    "another file": written("options: other.yaml\n"),
    "a word for a number": written("seed: x\n"),
    "a number that is too low": written("seed: -1\n"),
    "nothing": written("seed:\n"),
    "a list for a value": written("seed: [1, 2]\n"),
    "a mapping for a value": written("seed:\n  a: 1\n"),
    "a list of lists": written("seed: [[1]]\n"),
    "a number for a flag": written("dry_run: 1\n"),
    "a list for a flag": written("dry_run: [true]\n"),
    "an option as a value": written("extra: a/b\n"),
}


def fit_of(**changes):
    return written(json.dumps(FIT | changes))


RACE_FIT = {"max_samples": 4, "n_trials": 1, "ends": [2, 4], "units": [1.0, 0.0], "variances": [1.0, 1.0], "n_candidates": 10,
            "target": 0.99, "n_images": 100, "about": {"weights": "of others"}}  # fmt: skip


def race_fit_of(**changes):
    return written(json.dumps(RACE_FIT | changes))


RACE_FITS = {
    "a list": written("[1]"),
    "no keys": written("{}"),
    "not JSON": written("{'a': 1"),
    "one key too many": race_fit_of(more=1),
    "rounds that shrink": race_fit_of(ends=[4, 2]),
    "rounds as texts": race_fit_of(ends=["2", "4"]),
    "a round of one pair": race_fit_of(ends=[1, 4]),
    "too few units": race_fit_of(units=[1.0]),
    "units of nan": race_fit_of(units=[float("nan"), 0.0]),
    "units as texts": race_fit_of(units=["1", "0"]),
    "another grid": race_fit_of(max_samples=5),
    "too many timesteps": race_fit_of(max_samples=2000, ends=[2, 2000]),
    "of nothing": race_fit_of(about=[]),
    "of another model": race_fit_of(),
}

FITS = {
    "a list": written("[1]"),
    "no keys": written("{}"),
    "not JSON": written("{'a': 1"),
    "one key too many": fit_of(more=1),
    "temperature of zero": fit_of(temperature=0),
    "temperature of nan": fit_of(temperature=float("nan")),
    "temperature as a text": fit_of(temperature="1"),
    "weight above one": fit_of(weight=2),
    "of no images": fit_of(n=0),
    "of nothing": fit_of(about={}),
    "of a list": fit_of(about=[]),
    "of another model": fit_of(),
}

WEIGHTS = {
    "coefficients": [0.5, -0.2, 0.1],
    "n": 100,
    "about": {"weights": "0", "loss": "l1", "n_levels": 1000, "error_space": "epsilon", "levels": None, "img_size": 64},
}


def weights_of(about=None, **changes):
    return written(json.dumps(WEIGHTS | {"about": WEIGHTS["about"] | (about or {})} | changes))


LEVEL_WEIGHTS = {
    "a list": written("[1]"),
    "no keys": written("{}"),
    "not JSON": written("{'a': 1"),
    "one key too many": weights_of(more=1),
    "two coefficients": weights_of(coefficients=[0.5, 0.1]),
    "a coefficient of nan": weights_of(coefficients=[0.5, float("nan"), 0.1]),
    "a huge coefficient": weights_of(coefficients=[0.5, 1e9, 0.1]),
    "a coefficient as a text": weights_of(coefficients=[0.5, "1", 0.1]),
    "of no images": weights_of(n=0),
    "about a list": written(json.dumps(WEIGHTS | {"about": []})),
    "about nothing": written(json.dumps(WEIGHTS | {"about": {}})),
    "of huge tables": weights_of({"n_levels": 10**15}),
    "of no levels": weights_of({"n_levels": 0}),
    "of another model": weights_of(),
}

# ---------------------------------------------------------------- adapted weights


def tensors(**shapes):
    """A safetensors file of zeros, `.` in its names written as two underscores."""

    def write(path):
        named = {name.replace("__", "."): np.zeros(shape, np.float32) for name, shape in shapes.items()}
        safetensors.numpy.save_file(named, path)

    return write


def single(**changes):
    """A checkpoint of the shipped model in Stable Diffusion 1's layout, with other entries; None takes one away."""

    def write(path):
        from original_layouts import tiny_sd

        state = {name: value.numpy() for name, value in tiny_sd(TINY_PIPELINE).items()}
        for name, shape in changes.items():
            state.pop(name.replace("__", "."), None)
            state |= {} if shape is None else {name.replace("__", "."): np.zeros(shape, np.float32)}
        safetensors.numpy.save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, path)

    return write


def of_pipeline(name: str):
    return lambda path: (path.mkdir(), (path / "model_index.json").write_text(json.dumps({"_class_name": name})))


SINGLES = {
    "no tensors": tensors(),
    "cut": written(struct.pack("<Q", 10**6) + b'{"a":'),
    "a LoRA": tensors(lora_unet_conv_in__lora_up__weight=(8, 4)),
    "an embedding": tensors(token=(1, 128)),
    "a U-Net as diffusers names it": tensors(conv_in__weight=(64, 4, 3, 3)),
    "an unknown weight": single(model__diffusion_model__novel__weight=(1,)),
    "a part of another model": single(conditioner__embedders__1__model__ln_final__bias=(1,)),
    "a weight missing": single(model__diffusion_model__out__2__bias=None),
    "another width": single(model__diffusion_model__out__2__bias=(5,)),
}
CONFIGS = {
    "of a family without": of_pipeline("PixArtSigmaPipeline"),
    "of no family": of_pipeline("KolorsPipeline"),
    "no unet": without(TINY_PIPELINE, "unet"),
    "other widths": edited(TINY_PIPELINE, "unet/config.json", block_out_channels=[32, 64]),
}
EMBEDDINGS = {
    "another width": tensors(token=(1, 99)),
    "two tokens": tensors(one=(1, 128), two=(1, 128)),
    "of two encoders": tensors(clip_l=(1, 128), clip_g=(1, 128)),
    "a word of the vocabulary": tensors(a=(1, 128)),
    "not finite": tensor(lambda torch: {"token": torch.full((1, 128), torch.nan)}),
    "no vectors": tensor(lambda torch: {"token": torch.zeros(1, 2, 128)}),
    "that acts": tensor(lambda torch: Foreign()),
}
LORAS = {
    "of no part": tensors(prior__a__lora_A__weight=(4, 8), prior__a__lora_B__weight=(8, 4)),
    "no lora": tensors(unet__conv_in__weight=(4, 8)),
    "no tensors": tensors(),
    "cut": written(struct.pack("<Q", 10**6) + b'{"a":'),
}


def network(n_outputs: int, value: float | None = None):
    """Random weights of timm's test_vit; value: in place of the last layer's."""

    def write(path):
        import timm
        from safetensors.torch import save_file

        state = timm.create_model("test_vit", num_classes=n_outputs).state_dict()
        save_file(state if value is None else state | {"head.weight": state["head.weight"] * value}, path)

    return write


NETWORKS = {
    "no tensors": tensors(),
    "cut": written(struct.pack("<Q", 10**6) + b'{"a":'),
    "a weight of no part": tensors(novel__weight=(4, 8)),
    "other classes": network(3),
    "not finite": network(10, float("nan")),
}


# ---------------------------------------------------------------- the world

KINDS = {
    "subset": (".npy", ANY_FILE | SUBSETS),
    "prompts": (".csv", ANY_FILE | PROMPT_FILES),
    "noise": (".pt", ANY_FILE | NOISES),
    "picture": (".png", ANY_FILE | PICTURE_FILES),
    "fit": (".json", ANY_FILE | FITS),
    "race fit": (".json", ANY_FILE | RACE_FITS),
    "level weights": (".json", ANY_FILE | LEVEL_WEIGHTS),
    "options file": (".yaml", ANY_FILE | OPTION_FILES),
    "results file": (".json", ANY_FILE | RESULT_FILES),
    "table of scores": (".csv", ANY_FILE | SCORE_FILES),
    "class list": (".txt", {k: v for k, v in ANY_FILE.items() if k != "a text"} | CLASS_LISTS),
    "template list": (".txt", ANY_FILE | TEMPLATE_LISTS),
    "pipeline": ("", ANY_FILE | PIPELINES),
    "dit": ("", ANY_FILE | DITS),
    "clip": ("", ANY_FILE | CLIPS),
    "vae": ("", ANY_FILE | VAES),
    "lora": (".safetensors", ANY_FILE | LORAS),
    "embedding": (".pt", ANY_FILE | EMBEDDINGS),
    "single": (".safetensors", ANY_FILE | SINGLES),
    "supervised": (".safetensors", ANY_FILE | NETWORKS),
    "configs": ("", ANY_FILE | CONFIGS),
    "data set": ("", DATA_SETS),
    "image folder": ("", ANY_FILE | IMAGE_FOLDERS),
    "table": ("", ANY_FILE | TABLES),
    "shards": ("", ANY_FILE | SHARDS),
    "own csv": (".csv", ANY_FILE | OWN_CSVS),
    "pairs folder": ("", ANY_FILE | PAIR_FOLDERS),
    "grid run": ("", ANY_FILE | RUNS),
    "dit run": ("", ANY_FILE | RUNS),
    "pairs run": ("", ANY_FILE | RUNS),
    "combos run": ("", ANY_FILE | RUNS),
}

MADE_BY = {  # the world's runs: command, words, its folder
    "grid run": (
        "eval_prob_adaptive",
        "--version tiny --dataset fashion_mnist --imgs_to_eval 24 --to_keep 1 --n_samples 2 --loss l1",
    ),
    "dit run": ("eval_prob_dit", "--model tiny --dataset fashion_mnist --imgs_to_eval 6 --t_interval 250 --save_errors"),
    "pairs run": ("run_winoground", "--version tiny --dataset tiny_pairs --data_dir {world}/pairs --t_interval 250"),
    "combos run": ("eval_prob_adaptive", "--version tiny --dataset tiny_combos --imgs_to_eval 2 --to_keep 1 --n_samples 1"),
}


def bad_name(kind: str, fault: str) -> str:
    """Where a broken file lies in the world."""
    return f"bad {kind}/{fault.replace('/', '-')}{KINDS[kind][0]}"


def build(world: Path, run_command) -> None:
    """Fills the world. run_command(command, words, folder) runs one of our commands."""
    good_files(world)
    for kind, (command, words) in MADE_BY.items():
        made = world / "made" / kind
        made.mkdir(parents=True)
        run_command(command, words.format(world=world).split(), made)
        shutil.move(next(made.rglob("config.json")).parent, world / kind)
    shutil.rmtree(world / "made")
    for kind, (_, faults) in KINDS.items():
        (world / f"bad {kind}").mkdir()
        for fault, write in faults.items():
            write(world / bad_name(kind, fault))


def wordnet(path: Path) -> None:
    """WordNet's data.noun (wndb(5)) in miniature: ImageNet's synsets, all directly below one."""
    lines = ["  1 This line is part of the licence.", "00001740 03 n 01 entity 0 000 | that which is"]
    lines += [f"{name[1:]} 03 n 01 word{i} 0 001 @ 00001740 n 0000 | a class" for i, name in enumerate(imagenet_ids())]
    path.mkdir()
    written("\n".join(lines) + "\n")(path / "data.noun")


def good_files(world: Path) -> None:
    array([1, 2])(world / "subset.npy")
    of_each(lambda i: f"a photo of {i}")(world / "prompts.csv")
    GOOD_NOISE(world / "noise.pt")
    results_of()(world / "results.json")
    written(SCORED + "0,5,0\n7,4,0.5\n")(world / "scores.csv")
    written("to_keep: [2, 1]\nn_samples: [3]\n")(world / "at odds.yaml")
    written("cat\ndog\n")(world / "classes.txt")
    written("cat\n")(world / "one class.txt")
    written("a {}\na photo of a {}\n")(world / "templates.txt")
    written("text\n")(world / "text.txt")
    single()(world / "single.safetensors")
    network(10)(world / "supervised.safetensors")
    weights_of()(world / "weights.json")
    (world / "folder").mkdir()
    for suffix in ("any", "png", "npy", "csv", "parquet", "safetensors"):
        os.mkfifo(world / f"pipe.{suffix}")
    (world / "taken.png").mkdir()
    (world / "taken.npy").mkdir()
    (world / "taken.csv").mkdir()
    (world / "taken.parquet").mkdir()
    pair_folder(PAIR_LINE, PAIR_LINE | {"id": 1})(world / "pairs")
    pictures("a/0.png", "b/0.png")(world / "images")
    looped(world / "looped")
    saved_table(world / "table")
    layouts.webdataset(world / "shards")
    written("path,label\nimages/a/0.png,a\nimages/b/0.png,b\n")(world / "own.csv")
    layouts.idx(world / "idx", "FashionMNIST", range(10), range(10))
    for fold, preds in enumerate(([0] * 960, [1] * 960)):
        for place in ("folds", "half folds"):
            path = world / place / "predictions" / f"heads_{fold}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"kind": "heads", "fold": fold, "preds": preds})
            path.write_text(text[: len(text) // 2] if (place, fold) == ("half folds", 1) else text)
    wordnet(world / "wordnet")
    for name in LAID_OUT:
        laid_out(name)(world / f"set {name}")
    for name, folder in STRANGERS.items():
        laid_out(name)(world / f"stranger {name}")
        layouts.save_picture(world / f"stranger {name}" / folder / "0.jpg")


def listing(folder: Path) -> list[str]:
    """All that lies below a folder, with sizes; links are not followed."""
    return sorted(f"{path.relative_to(folder)} {path.lstat().st_size if not path.is_dir() else ''}" for path in folder.rglob("*"))
