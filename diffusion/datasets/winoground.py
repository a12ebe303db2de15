"""Sets of two captions and two images an example: Winoground from the hub, local copies of its layout, and their scores.

Nothing is opened or downloaded before `open_pairs` is called.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion import metrics
from diffusion.datasets.counts import TEST_IMAGES
from diffusion.datasets.pictures import fit
from diffusion.metrics import Estimate, PairCorrect, PairScores
from diffusion.utils.files import one_line
from diffusion.utils.paths import TINY_PAIRS, hub_token

PAIR_DATASETS = ("winoground", "tiny_pairs")
REPOSITORY = "facebook/winoground"
REQUIRED = ("id", "image_0", "image_1", "caption_0", "caption_1", "collapsed_tag")
OPTIONAL = ("tag", "secondary_tag", "num_main_preds")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Example:
    """One line of examples.jsonl: caption k belongs to image k.

    images: files, opened when the example's turn comes. Tags are "" where the set has none.
    """

    id: int
    captions: tuple[str, str]
    images: tuple[Path, Path]
    tag: str
    secondary_tag: str
    collapsed_tag: str


class PairData:
    """Map-style data set of ((image 0, image 1), example).

    The images are PIL's, in the mode of their files, or what `transform` makes of each. `notice` is a line to tell the
    user, or None.
    """

    missing: str | None = None  # what is said of files that are not there, as of `Expected`

    def __init__(self, examples: list[Example], notice: str | None = None):
        self.examples = examples
        self.notice = notice
        self.transform: Callable | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int):
        """Raises OSError naming the example's id and the file for an image that cannot be decoded."""
        example = self.examples[index]
        images = tuple(_decode(example, k) for k in (0, 1))
        return (images if self.transform is None else tuple(map(self.transform, images))), example

    def name(self, index: int) -> int:
        """What a message calls the item: the example's id, which names its record too."""
        return self.examples[index].id

    @property
    def has_pictures(self) -> bool:
        """Whether the files that `fingerprint` reads are there."""
        return all(path.is_file() for index in self._sample for path in self.examples[index].images)

    @property
    def _sample(self) -> tuple[int, int, int]:
        """The first, middle and last example."""
        return 0, len(self) // 2, len(self) - 1

    def fingerprint(self) -> str:
        """Tells two sets apart, cheaply: a hash of all ids, captions and tags and of the first, middle and last images."""
        words = [(e.id, e.captions, e.tag, e.secondary_tag, e.collapsed_tag) for e in self.examples]
        digest = hashlib.sha256(json.dumps(words).encode())
        for index in self._sample:
            for k in (0, 1):
                with contextlib.suppress(OSError):  # an unreadable image is told when its turn comes
                    digest.update(_decode(self.examples[index], k).tobytes())
        return digest.hexdigest()[:16]


class Expected(PairData):
    """What is known of Winoground where it is not in the hub's cache: how many examples it has. A run fetches it."""

    fetched = True
    missing = f"{REPOSITORY} is not in the hub's cache, and a run fetches it first"

    def __init__(self):
        super().__init__([Example(i, ("", ""), (Path(), Path()), "", "", "") for i in range(TEST_IMAGES["winoground"])])


def _decode(example: Example, k: int):
    """Image k of the example, decoded, upright, in its file's mode: the transform decides what becomes of alpha and palettes."""
    from PIL import Image, ImageOps

    path = example.images[k]
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError("there is no such file")
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            image = fit(image)
    except Exception as error:  # for broken and oversized files Pillow raises nearly anything
        raise OSError(f"image {k} of example {example.id} ({path}) cannot be read: {one_line(error)}") from error
    return image


# ---------------------------------------------------------------- a local folder


def open_local(folder: str | Path, notice: str | None = None, pictures: bool = True) -> PairData:
    """A folder with examples.jsonl and images/<stem>.png (or .jpg, .jpeg, .webp). pictures: whether they have to be there.

    Raises FileNotFoundError without examples.jsonl, ValueError naming file and line for what is wrong in it.
    """
    path = Path(folder).expanduser() / "examples.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        wanted = "--data_dir has to hold examples.jsonl and images/<stem>.png"
        raise FileNotFoundError(f"{path} cannot be read ({error.strerror}): {wanted}") from None
    examples: list[Example] = []
    line_of: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        example = _read_line(path, number, line, pictures)
        if example.id in line_of:
            raise ValueError(f"{path}: line {number} has the id {example.id} of line {line_of[example.id]}; ids must differ")
        line_of[example.id] = number
        examples.append(example)
    if not examples:
        raise ValueError(f"{path}: no examples; --data_dir needs one JSON object a line with {', '.join(REQUIRED)}")
    return PairData(examples, notice)


def _read_line(path: Path, number: int, line: bytes, pictures: bool) -> Example:
    """Raises ValueError naming the file and the line."""
    where = f"{path}: line {number}"
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:  # a decoding error is one too
        raise ValueError(f"{where} is not JSON ({one_line(error)})") from None
    _check_fields(where, fields)
    first, second = (_find_image(path.parent / "images", fields[f"image_{k}"], where, pictures) for k in (0, 1))
    captions = fields["caption_0"], fields["caption_1"]
    tag, secondary_tag = (str(fields.get(name) or "") for name in ("tag", "secondary_tag"))
    return Example(fields["id"], captions, (first, second), tag, secondary_tag, fields["collapsed_tag"])


def _check_fields(where: str, fields) -> None:
    if not isinstance(fields, dict):
        raise ValueError(f"{where} is not a JSON object with {', '.join(REQUIRED)}")
    missing = [name for name in REQUIRED if name not in fields]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; an example needs {', '.join(REQUIRED)}")
    if type(fields["id"]) is not int or not 0 <= fields["id"] < 2**63:  # a record is named by it; bool is an int too
        raise ValueError(f"{where} has id {repr(fields['id'])[:30]}; it must be an integer of at least 0 and below 2^63")
    for name in REQUIRED[1:]:
        value = fields[name]
        if not isinstance(value, str) or not (value.strip() or name == "collapsed_tag"):
            raise ValueError(f"{where} has {name} {value!r}; it must be a text")
    if fields["caption_0"] == fields["caption_1"]:
        raise ValueError(f"{where} has one caption twice, {fields['caption_0']!r}: no model can match it to two images")


def _find_image(folder: Path, stem: str, where: str, needed: bool) -> Path:
    """The first of the suffixes that exists; a name that has its suffix already is taken as it is. needed: or none is."""
    names = [stem + suffix for suffix in SUFFIXES] + ([stem] if stem.lower().endswith(SUFFIXES) else [])
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None and needed:
        raise ValueError(f"{where} names the image {stem}, but there is no {folder / stem}.png (or {', '.join(SUFFIXES[1:])})")
    return path or folder / names[0]


# ---------------------------------------------------------------- the hub


def open_hub(token: str | None) -> PairData:
    """Winoground from the hub, kept in the hub's cache; no loading script is run.

    The hub's parquet conversion, and without one the repository's own examples.jsonl and images archive. Either is unpacked
    once, beside what was downloaded. Raises ValueError when the hub refuses, FileNotFoundError when it cannot be reached.
    """
    archives = ["*examples.jsonl", "*.zip", "*.tar", "*.tar.gz", "*.tgz"]
    problem = None
    for revision, patterns, unpack in (("refs/convert/parquet", ["*.parquet"], _from_parquet), (None, archives, _from_archive)):
        try:
            snapshot = _download(revision, patterns, token)
        except FileNotFoundError as error:
            problem = error
            continue
        folder = unpack(snapshot)
        if folder:
            return open_local(folder)
    raise problem or ValueError(
        f"{REPOSITORY} has neither parquet files nor an images archive: give a local copy with --data_dir"
    )


def _download(revision: str | None, patterns: list[str], token: str | None) -> Path:
    """The folder of these files of the repository. Raises as `open_hub`, FileNotFoundError also for an absent revision."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(REPOSITORY, repo_type="dataset", revision=revision, allow_patterns=patterns, token=token))
    except Exception as error:  # the client's own classes, and those of the two libraries that its versions use for HTTP
        if _is_refused(error):
            page = f"https://huggingface.co/datasets/{REPOSITORY}"
            login = "log in with `hf auth login`, or set HF_TOKEN, or set TOKEN_PATH to a file with the token"
            raise ValueError(f"--dataset winoground: the hub refuses access: accept the licence at {page} and {login}") from None
        instead = "give a local copy with --data_dir, or take --dataset tiny_pairs, which ships"
        cause = one_line(_causes(error)[-1])
        raise FileNotFoundError(f"--dataset winoground cannot be fetched from the hub: {instead} ({cause})") from None


def _causes(error: BaseException) -> list[BaseException]:
    """The error, what it was raised from, and so on down."""
    return [error] + (_causes(error.__cause__) if error.__cause__ else [])


def _is_refused(error: BaseException) -> bool:
    """Whether the hub answered that this person may not have it; for a missing token it says that there is no such thing."""
    from huggingface_hub.errors import RepositoryNotFoundError  # GatedRepoError is one

    def refuses(e):
        return isinstance(e, RepositoryNotFoundError) or getattr(getattr(e, "response", None), "status_code", None) in (401, 403)

    return any(map(refuses, _causes(error)))


def _from_parquet(snapshot: Path) -> Path | None:
    """The local layout of the parquet files in a snapshot, unpacked once; None without such files."""
    files = sorted(snapshot.rglob("*.parquet"))
    return _unpack_once(files[0].parent, lambda folder: _write_rows(files, folder)) if files else None


def _write_rows(files: list[Path], folder: Path) -> None:
    """Rows whose image columns hold {"bytes", "path"} become lines of examples.jsonl and files, a few rows at a time."""
    from pyarrow.parquet import ParquetFile

    with open(folder / "examples.jsonl", "w", encoding="utf-8") as out:
        for file in files:
            for batch in ParquetFile(file).iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    for k in (0, 1):
                        stem = f"ex_{row['id']}_img_{k}"
                        # the true format may be another; what matters to Pillow is the content
                        (folder / "images" / f"{stem}.png").write_bytes(row[f"image_{k}"]["bytes"])
                        row[f"image_{k}"] = stem
                    out.write(json.dumps({name: row[name] for name in (*REQUIRED, *OPTIONAL) if name in row}) + "\n")


def _from_archive(snapshot: Path) -> Path | None:
    """The local layout of the repository's own examples.jsonl and archive, unpacked once; None without them."""
    lines = next(iter(sorted(snapshot.rglob("examples.jsonl"))), None)
    archives = sorted(p for p in snapshot.rglob("*") if p.name.endswith((".zip", ".tar", ".tar.gz", ".tgz")))
    if lines is None or not archives:
        return None
    return _unpack_once(lines.parent, lambda folder: _write_archive(lines, archives, folder))


def _write_archive(lines: Path, archives: list[Path], folder: Path) -> None:
    """Wherever in the archives the images lie, they end up in one folder."""
    for archive in archives:
        # zip's unpacking leaves out members with unsafe names; tar's has to be told
        if archive.suffix == ".zip":
            shutil.unpack_archive(archive, folder / "unpacked")
        else:
            shutil.unpack_archive(archive, folder / "unpacked", filter="data")
    for path in sorted((folder / "unpacked").rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("._"):  # which macOS adds
            path.replace(folder / "images" / path.name)
    shutil.rmtree(folder / "unpacked")
    shutil.copyfile(lines, folder / "examples.jsonl")


def _unpack_once(beside: Path, write: Callable[[Path], None]) -> Path:
    """The folder `pairs` there, which `write` fills the first time; it appears whole, also with several processes at it."""
    done, part = beside / "pairs", beside / f".pairs.{os.getpid()}.part"
    if done.is_dir():
        return done
    try:
        (part / "images").mkdir(parents=True)
        write(part)
        with contextlib.suppress(OSError):  # another process was faster
            part.rename(done)
    except Exception as error:  # whatever a broken download makes of zip, tar and parquet readers
        raise ValueError(
            f"{beside}: what was downloaded cannot be unpacked; remove it and try again ({one_line(error)})"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return done


def open_pairs(dataset: str, data_dir: str | Path | None, dry_run: bool = False, pictures: bool = True) -> PairData:
    """`data_dir`: a local folder in the layout of examples.jsonl, whichever set it is; None: what `dataset` names.

    pictures: as of `open_local`. dry_run: of what would have to be fetched what is known is returned, `Expected`. Raises
    ValueError and FileNotFoundError in one line that says what to do.
    """
    if dataset not in PAIR_DATASETS:
        raise ValueError(f"--dataset {dataset}: unknown; choose from {', '.join(PAIR_DATASETS)}")
    if data_dir:
        return open_local(data_dir, pictures=pictures)
    if dataset == "tiny_pairs":
        return open_local(TINY_PAIRS)
    try:
        return open_hub(hub_token())
    except FileNotFoundError:
        if not dry_run:
            raise
        return Expected()


# ---------------------------------------------------------------- scores by tag

SCORE_MODES = ("conditional", "normalised")
SCORE_MODE_HELP = (
    "what the image and group scores compare; the text score, which is the paper's table, is the same in both. conditional, as "
    "published: a caption's score on one image with its score on the other. This compares likelihoods across images: one that "
    "is easy to predict under any caption beats the other under both, and the example counts as wrong. normalised: each score "
    "less its image's mean over the two captions, so that the image score compares how much better a caption fits; its chance "
    "level is then 50 %%, not 25 %%, and the group score equals the text score (default: conditional)"
)
COLLAPSED_TAGS = ("Object", "Relation", "Both")


def correct(scores: dict[int, PairScores], mode: str = "conditional") -> dict[int, PairCorrect]:
    """Example id -> what of it is right."""
    normalise = metrics.normalise_pairs if mode == "normalised" else PairScores._make
    return {i: PairCorrect(*map(bool, metrics.pair_correct(normalise(s)))) for i, s in scores.items()}


def subsets(examples: list[Example], by_tag: bool = False) -> dict[str, list[int]]:
    """Name -> ids: Overall, the collapsed tags (the published ones first), and on request "Tag <tag>" of every tag."""
    tags = {e.collapsed_tag for e in examples if e.collapsed_tag}
    named = {"Overall": [e.id for e in examples]}
    for name in [tag for tag in COLLAPSED_TAGS if tag in tags] + sorted(tags.difference(COLLAPSED_TAGS)):
        named[name] = [e.id for e in examples if e.collapsed_tag == name]
    for tag in sorted({e.tag for e in examples if e.tag}) if by_tag else ():
        named[f"Tag {tag}"] = [e.id for e in examples if e.tag == tag]
    return named


def summarise(right: dict[int, PairCorrect], named: dict[str, list[int]]) -> dict[str, dict[str, Estimate]]:
    """Name of a subset -> text, image and group score, of those examples that have a result; subsets without one are left out."""
    results = {name: np.array([right[i] for i in ids if i in right]) for name, ids in named.items()}
    return {
        name: {part: metrics.proportion(column) for part, column in zip(PairCorrect._fields, rows.T, strict=True)}
        for name, rows in results.items()
        if len(rows)
    }


def lines(scores: dict[int, PairScores], examples: list[Example], mode: str) -> list[str]:
    """What a run prints: `score_lines` of the examples that have scores, overall and by collapsed tag."""
    return score_lines(summarise(correct(scores, mode), subsets(examples)))


def score_lines(scores: dict[str, dict[str, Estimate]]) -> list[str]:
    """The published lines, with their 1.96 standard errors, each followed by n and Wilson's interval."""
    return [
        f"{name} {part} score:  {100 * e.value:.1f} +/-  {100 * metrics.wald(e.value, e.n):.1f}"
        f"  (n = {e.n}, 95% interval {100 * e.low:.1f} to {100 * e.high:.1f})"
        for name, parts in scores.items()
        for part, e in parts.items()
    ]
