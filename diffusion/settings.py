"""What a run was asked for, as small frozen dataclasses: an argparse Namespace ends in `main`, and a run that is read back builds
the same objects from the options in its config.json.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")
Identity = dict[str, Any]  # what the numbers of a run depend on, by name, as JSON values
SPACES = ("epsilon", "x0", "velocity")  # of a prediction and its errors
LEVELS = ("own", "uniform", "shift3", "logit-normal")  # how a flow's noise levels are spread


def pick(cls: type[S], options: Mapping[str, Any], **changes: Any) -> S:
    """The settings of a class; the defaults of what is absent.

    Args:
        cls: the class.
        options: by name, those of other classes too.
        changes: what counts in place of `options`.
    """
    values = {field.name: options[field.name] for field in fields(cls) if field.name in options}
    return cls(**values | changes)


def options_of(*settings: "DataclassInstance") -> dict[str, Any]:
    """All fields, in order: what is printed first and kept in config.json.

    Args:
        settings: dataclasses; of fields of one name the last counts.
    """
    return {name: value for part in settings for name, value in asdict(part).items()}


@dataclass(frozen=True)
class Lora:
    """path: a file, a folder with one, or a hub id; scale: by which its change of the weights is multiplied."""

    path: str
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Lora":
        """What a text names.

        Args:
            text: `PATH@SCALE`, or PATH.

        Raises:
            ValueError: the scale is no number, or the path is empty.
        """
        path, at, scale = text.rpartition("@")
        if not at or Path(text).exists():
            path, scale = text, "1"
        try:
            number = float(scale)
        except ValueError:
            number = math.nan
        if not path or not math.isfinite(number):
            raise ValueError(
                f"--lora {text}: give a file, folder or hub id, and after an @ its scale, as in style.safetensors@0.7"
            )
        return cls(path, number)

    @property
    def name(self) -> str:
        """For run folders."""
        return Path(self.path).stem + (f"@{self.scale:g}" if self.scale != 1 else "")


@dataclass(frozen=True)
class Embedding:
    """path: a file of textual inversion, a folder with one, or a hub id; token: that prompts call it by, None: as it says."""

    path: str
    token: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Embedding":
        """What a text names.

        Args:
            text: `PATH@TOKEN`, or PATH.

        Raises:
            ValueError: one of them is empty.
        """
        path, at, named = text.rpartition("@")
        token: str | None = named
        if not at or Path(text).exists():
            path, token = text, None
        if not path or token == "":
            raise ValueError(f"--embedding {text}: give a file, folder or hub id, and after an @ its token, as in cat.pt@<cat>")
        return cls(path, token)

    @property
    def name(self) -> str:
        """For run folders."""
        return Path(self.path).stem


@dataclass(frozen=True)
class NoiseKind:
    """What is made of standard normal noise (the paper's Table 12). bound: of the two kinds that have one."""

    name: str
    bound: float | None = None

    BOUNDED: ClassVar = ("truncated", "clipped")
    PLAIN: ClassVar = ("normal", "zero", "expected_norm")

    @classmethod
    def parse(cls, text: str) -> "NoiseKind":
        """What a text names.

        Args:
            text: `zero`, or `truncated:2.5`.

        Raises:
            ValueError: anything else.
        """
        name, colon, number = text.partition(":")
        try:
            bound = float(number) if colon else None
        except ValueError:
            bound = math.nan
        if name in cls.PLAIN and not colon:
            return cls(name)
        if name not in cls.BOUNDED or bound is None or not 0 < bound < math.inf:
            known = ", ".join((*cls.PLAIN, *(f"{one}:A" for one in cls.BOUNDED)))
            raise ValueError(f"--noise {text}: give one of {known}, where A is a number above 0, as in truncated:2.5")
        return cls(name, bound)

    def __str__(self) -> str:
        return self.name if self.bound is None else f"{self.name}:{self.bound:g}"


@dataclass(frozen=True)
class Ablation:
    """What the paper tried on its method and found to hurt (figures 8 and 9, Table 12); by default none of it.

    guidance: W of (1 + W) epsilon_c - W epsilon_empty; crop_errors: latents at each side that are left out of an error's mean
    noise: as NoiseKind reads it
    """

    guidance: float = 0.0
    crop_errors: int = 0
    noise: str = "normal"

    def __post_init__(self) -> None:
        """Raises ValueError, naming the flag, for values that mean nothing."""
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"--guidance {self.guidance:g} must be a number from 0 on")
        if type(self.crop_errors) is not int or self.crop_errors < 0:
            raise ValueError(f"--crop_errors {self.crop_errors} must be a whole number from 0 on")
        object.__setattr__(self, "noise", str(NoiseKind.parse(str(self.noise))))

    @property
    def kind(self) -> NoiseKind:
        return NoiseKind.parse(self.noise)

    @property
    def guided(self) -> bool:
        return self.guidance != 0

    def check(self, latent_shape: tuple[int, ...]) -> None:
        """Nothing, for a border that leaves something of a latent.

        Args:
            latent_shape: (C, h, w).

        Raises:
            ValueError: it leaves nothing.
        """
        side = min(latent_shape[1:])
        if 2 * self.crop_errors >= side:
            h, w = latent_shape[1:]
            raise ValueError(f"--crop_errors {self.crop_errors} leaves nothing of a latent of {h} x {w}: give {(side - 1) // 2} "
                             "or less")  # fmt: skip

    def identity(self) -> Identity:
        """What is not the default; older runs do not know these options."""
        known = {"guidance": self.guidance, "crop_errors": self.crop_errors, "noise_kind": self.noise}
        return {name: value for name, value in known.items() if value not in (0, "normal")}

    @property
    def name(self) -> str:
        """For the end of a run folder's name."""
        guidance = f"_{self.guidance:g}guidance" if self.guided else ""
        crop = f"_{self.crop_errors}crop" if self.crop_errors else ""
        return guidance + crop + (f"_{self.noise.replace(':', '')}_noise" if self.noise != "normal" else "")


ABLATIONS = ("guidance", "crop_errors", "noise_kind")  # names in an identity
NO_ABLATION = Ablation()


@dataclass(frozen=True)
class ModelOptions:
    """How a text-to-image model is loaded, beyond whose weights it has.

    Attributes:
        img_size: pixels a side; None: the model's own.
        text_encoders: all, or clip.
        levels: of LEVELS.
        loras: fused into the weights, in this order.
        embeddings: added to tokenizers and text encoders.
        config: folder or hub id of a single file's configs.
        file: that file, whose weights are taken in place of the source's.
    """

    img_size: int | None = None
    text_encoders: str = "all"
    levels: str = "own"
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    config: str | None = None
    file: str | None = None

    @property
    def flag(self) -> str:
        """The option of a command that names the source, for an error."""
        return "--config" if self.file else "--model_path"


DEFAULT_OPTIONS = ModelOptions()


@dataclass(frozen=True)
class Data:
    """Which images.

    dataset: a name in the table; split; data_dir: folder of all datasets, None: what DATASET_ROOT says; download: fetch what is
    missing; classes: a file of class names, for a set of the user's own; the rest is for a Hugging Face set, of which limit is a
    number of images or a fraction of all
    """

    dataset: str
    split: str = "test"
    data_dir: str | None = None
    download: bool = False
    config_name: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    classes: str | None = None
    streaming: bool = False
    limit: int | float | None = None

    def identity(self) -> Identity:
        return {"dataset": self.dataset, "split": self.split}


@dataclass(frozen=True)
class Selection:
    """Which of the images: a .npy file of indices, and how many."""

    subset_path: str | None = None
    imgs_to_eval: int | None = None


@dataclass(frozen=True)
class Prompts:
    """Where prompts come from: a CSV, a template for the class names, or what ships for the dataset."""

    prompt_path: str | None = None
    template: str | None = None


@dataclass(frozen=True)
class TextToImage:
    """Which text-to-image model, and what it is shown.

    img_size: pixels a side; dtype: a name of DTYPES, of the network
    error_space: of SPACES, None: the model's own; text_encoders: all, or clip; levels: of LEVELS
    lora, embedding: texts that Lora.parse and Embedding.parse read; config: folder or hub id of a single file's configs
    """

    version: str = "2-0"
    model_path: str | None = None
    img_size: int | None = None
    interpolation: str = "bicubic"
    dtype: str = "float32"
    error_space: str | None = None
    text_encoders: str = "all"
    levels: str = "own"
    lora: Sequence[str] | None = None  # which the weights' identity holds, like the next two
    embedding: Sequence[str] | None = None
    config: str | None = None

    @property
    def options(self) -> ModelOptions:
        loras, embeddings = tuple(map(Lora.parse, self.lora or ())), tuple(map(Embedding.parse, self.embedding or ()))
        return ModelOptions(self.img_size, self.text_encoders, self.levels, loras, embeddings, self.config)

    def identity(self) -> Identity:
        """What is not the default of a later option is said; older runs do not know the option."""
        later = {"error_space": self.error_space} if self.error_space else {}
        later |= {"text_encoders": self.text_encoders} if self.text_encoders != "all" else {}
        later |= {"levels": self.levels} if self.levels != "own" else {}
        return {name: getattr(self, name) for name in ("version", "dtype", "img_size", "interpolation")} | later


@dataclass(frozen=True)
class ClassConditional:
    """Which class-conditional model. model: `tiny` or a published shape; img_size: pixels a side; dtype, error_space: as of
    TextToImage."""

    model: str = "DiT-XL/2"
    model_path: str | None = None
    vae_path: str | None = None
    img_size: int | None = None
    dtype: str = "float32"
    error_space: str | None = None

    def identity(self) -> Identity:
        later = {"error_space": self.error_space} if self.error_space else {}
        return {name: getattr(self, name) for name in ("dtype", "img_size")} | later


@dataclass(frozen=True)
class Contrastive:
    """Which contrastive model. model: "clip" or "openclip"; pretrained: the tag of its weights."""

    model: str
    version: str
    model_path: str | None = None
    pretrained: str | None = None


@dataclass(frozen=True)
class Shortlist:
    """Which classes compete for an image: the shortlist_size (None: the usual one) that `shortlist` ranks first, a run folder or
    KIND:NAME[:TAG] of a contrastive model; without one all do."""

    shortlist: str | None = None
    shortlist_size: int | None = None

    @property
    def model(self) -> Contrastive | None:
        """None of a run folder."""
        kind, _, named = (self.shortlist or "").partition(":")
        version, _, tag = named.partition(":")
        return Contrastive(kind, version, pretrained=tag or None) if kind in ("clip", "openclip") and version else None


@dataclass(frozen=True)
class Noise:
    """Where noise comes from: a seed, or a file."""

    seed: int = 0
    noise_path: str | None = None


@dataclass(frozen=True)
class GridNoise(Noise):
    """The same of a grid, whose noise all images share.

    noise_rows: of a file without randomize_noise, after how many pairs its first row returns: the published code takes a pair's
    position in its batch, whose default size is 1
    """

    randomize_noise: bool = False
    noise_rows: int | None = None

    @property
    def by_position(self) -> int | None:
        """The batch size whose positions choose a file's rows; None: pair i takes row i."""
        return None if self.randomize_noise else self.noise_rows or 1


@dataclass(frozen=True)
class Running:
    """How to run: nothing here changes a number by more than rounding.

    batch_size: network inputs per call, or "auto"; worker_idx of n_workers is this process's share of the images
    images_in_flight: how many are evaluated at once, "auto" where the batch size is, None: one after another
    results: the file that holds accuracy and cost in the end; tracker: the package that is told of the progress
    rate: network evaluations per second, for hours beside prices
    """

    device: str = "cpu"
    batch_size: int | str = 32
    images_in_flight: int | str | None = None
    compile: bool = False
    extra: str | None = None
    n_workers: int = 1
    worker_idx: int = 0
    load_stats: bool = False
    results: str | None = None
    tracker: str | None = None
    rate: float | None = None
    dry_run: bool = False
