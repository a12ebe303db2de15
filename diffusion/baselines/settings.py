"""What the baselines were asked for, as `settings` says it of the method: features, heads, drawn images, supervised networks."""

from dataclasses import asdict, dataclass


def _without_place(settings) -> dict:
    """All fields but where the weights lie, which their hash stands for."""
    return {name: value for name, value in asdict(settings).items() if name != "model_path"}


@dataclass(frozen=True)
class Features:
    """Which features of a text-to-image model: the output of a part of its U-Net (layer) at a noise level (t); the rest is as of
    TextToImage."""

    version: str = "2-0"
    model_path: str | None = None
    img_size: int | None = None
    interpolation: str = "bicubic"
    dtype: str = "float32"
    layer: str = "mid_block"
    t: int = 100

    def identity(self) -> dict:
        return _without_place(self)


@dataclass(frozen=True)
class Head:
    """What classifies features: of training.heads.HEADS; pool: of POOLS, of a linear one; augment: whether it learns from views
    that are drawn anew in every epoch."""

    head: str = "resnet"
    pool: str = "mean"
    augment: bool = False

    def identity(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class TrainingSet:
    """What a classifier learns from: a split of the data set, and where it lies. train_images: how many of it, a seeded choice
    (None: all); val_share: of each class, held back to choose by."""

    train_dir: str
    train_split: str = "train"
    train_images: int | None = None
    val_share: float = 0.1

    def identity(self) -> dict:
        return {name: getattr(self, name) for name in ("train_split", "train_images", "val_share")}


@dataclass(frozen=True)
class Drawn:
    """How a text-to-image model draws: steps of its own scheduler, guidance of the text; the rest is as of TextToImage."""

    version: str = "2-0"
    model_path: str | None = None
    img_size: int | None = None
    dtype: str = "float32"
    steps: int = 50
    guidance: float = 7.5

    def identity(self) -> dict:
        return _without_place(self)


@dataclass(frozen=True)
class Network:
    """Which of training.networks, and the pixels a side that it sees."""

    network: str = "resnet50"
    size: int = 224

    def identity(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Supervised:
    """Which network that was trained on labels. weights: a tag of torchvision's, or a file."""

    model: str
    weights: str | None = None
