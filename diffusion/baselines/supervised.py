"""Networks that were trained on labels, by the libraries that publish them: torchvision's classifiers, and timm's as `timm:NAME`.

Weights are the library's, or a state dict in a file, whose last layer says how many classes it knows. Images are prepared as the
library says for its published weights.
"""

import difflib
from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from diffusion.datasets.transforms import to_rgb
from diffusion.models.loading import hub
from diffusion.models.source import Checkpoint

TIMM = "timm:"
FLAG = "--weights"
PAPER_TAG = "IMAGENET1K_V1"  # the paper's Table 4 has the accuracies of torchvision's first weights
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".tar", ".ckpt")
N_IMAGENET = 1000


@dataclass(frozen=True)
class SupervisedModel(Checkpoint):
    """A classifier of a library, known before its weights are loaded; a file is read for their shapes.

    Attributes:
        name: the library's, of the architecture.
        tag: of the published weights, whose preprocessing is taken in any case.
        file: a state dict in place of the published weights, or None.
    """

    name: str
    tag: str
    file: str | None

    LIBRARY: ClassVar[str]

    @abstractmethod
    def build(self, n_outputs: int):
        """The network with random weights and n_outputs outputs."""

    @abstractmethod
    def fetch(self):
        """The network with its published weights, downloaded where the library's cache lacks them."""

    @property
    @abstractmethod
    def n_published(self) -> int:
        """How many outputs the network of the published weights has."""

    @property
    @abstractmethod
    def recipe(self) -> Callable:
        """The preprocessing of the library's evaluation of the published weights: RGB image of PIL -> float32 [3,H,W]."""

    def describe(self) -> str:
        """The file, or the library's names, as a person would name the weights."""
        return f"{self.file}, a {self.LIBRARY} {self.name}" if self.file else f"{self.LIBRARY} {self.name} {self.tag}"

    def identity(self) -> str:
        """The hash of a file, the names of published weights."""
        return hub.content(self.file, FLAG) if self.file else self.describe()

    @property
    def preprocess(self) -> Callable:
        """The same for an image of any mode; other processes can unpickle it."""
        from torchvision.transforms import Compose

        return Compose([to_rgb, self.recipe])

    @property
    def preprocessing(self) -> str:
        """The recipe in words, as the library prints it."""
        return " ".join(repr(self.recipe).split())

    @cached_property
    def n_outputs(self) -> int:
        """How many outputs the network has, by the file where there is one.

        Raises:
            ValueError: the file is no state dict of this network, whatever the number of its classes.
        """
        return _check(self, self._state) if self.file else self.n_published

    @cached_property
    def _state(self) -> dict:
        assert self.file
        return _read(self.file)

    def load(self, device: str) -> Callable:
        """The network with its weights, in float32 and eval mode.

        Args:
            device: torch's name.

        Returns:
            image [3,H,W] -> logits float32 [n_outputs] on the CPU.

        Raises:
            ValueError: published weights cannot be fetched, or hold numbers that are not finite.
        """
        import torch

        network = (self._filled() if self.file else self._fetched()).float().to(device).eval().requires_grad_(False)
        wrong = next((name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()), None)
        if wrong:
            raise ValueError(f"{FLAG} {self.describe()}: {wrong!r} holds numbers that are not finite")

        @torch.inference_mode()
        def logits(image):
            return network(image[None].to(device))[0].float().cpu()

        return logits

    def _filled(self):
        network = self.build(self.n_outputs)
        network.load_state_dict(self._state)
        return network

    def _fetched(self):
        try:
            return self.fetch()
        except Exception as error:  # urllib, the hub's client and both libraries raise many kinds
            raise ValueError(
                f"{self.describe()} is not in the cache and cannot be fetched ({type(error).__name__}): "
                f"name a file of its weights with {FLAG}"
            ) from None


@dataclass(frozen=True)
class Torchvision(SupervisedModel):
    """One of torchvision.models; tag: a member of its enum of weights."""

    LIBRARY = "torchvision"

    @property
    def _weights(self):
        from torchvision import models

        return models.get_model_weights(self.name)[self.tag]

    def build(self, n_outputs: int):
        from torchvision import models

        drawn = {"init_weights": False} if self.name in ("googlenet", "inception_v3") else {}  # which warn, and take a minute
        return models.get_model(self.name, weights=None, num_classes=n_outputs, **drawn)

    def fetch(self):
        from torchvision import models

        return models.get_model(self.name, weights=self._weights)

    @property
    def n_published(self) -> int:
        return len(self._weights.meta["categories"])

    @property
    def recipe(self) -> Callable:
        return self._weights.transforms()


@dataclass(frozen=True)
class Timm(SupervisedModel):
    """One of timm; tag: what follows the point in the name of pretrained weights, empty where there are none."""

    LIBRARY = "timm"

    @property
    def _config(self) -> Any:
        from timm.models import get_pretrained_cfg

        return get_pretrained_cfg(".".join(filter(None, (self.name, self.tag))))

    def build(self, n_outputs: int):
        import timm

        return timm.create_model(self.name, num_classes=n_outputs)

    def fetch(self):
        import timm

        return timm.create_model(f"{self.name}.{self.tag}", pretrained=True)

    @property
    def n_published(self) -> int:
        return self._config.num_classes

    @property
    def recipe(self) -> Callable:
        from timm.data import create_transform, resolve_data_config

        return create_transform(**resolve_data_config({}, pretrained_cfg=self._config.to_dict()))


# ---------------------------------------------------------------- by name


def find(model: str, weights: str | None = None) -> SupervisedModel:
    """Find a classifier of torchvision or timm. Its weights are not read.

    Args:
        model: a name of torchvision.models, or `timm:NAME` or `timm:NAME.TAG`.
        weights: a tag of torchvision's, or a file; None: the usual ones.

    Raises:
        ValueError: the library does not have the name or tag.
    """
    file = weights if weights and _is_file(weights) else None
    find_in = _find_timm if model.startswith(TIMM) else _find_torchvision
    return find_in(model.removeprefix(TIMM), None if file else weights, file)


def _is_file(weights: str) -> bool:
    return Path(weights).exists() or "/" in weights or Path(weights).suffix in SUFFIXES


def _find_torchvision(name: str, tag: str | None, file: str | None) -> Torchvision:
    from torchvision import models

    _check_name(name, models.list_models(module=models), f"torchvision's classifiers; those of timm are {TIMM}NAME", "resnet50")
    tags = list(models.get_model_weights(name).__members__)
    if tag is None and file is None and PAPER_TAG not in tags:
        raise ValueError(f"--network {name} has no {PAPER_TAG}: give {FLAG}, one of {', '.join(tags)}")
    if tag and tag not in tags:
        raise ValueError(f"{FLAG} {tag} is neither a file nor a tag of {name}: take one of {', '.join(tags)}")
    return Torchvision(name, tag or (PAPER_TAG if PAPER_TAG in tags else tags[0]), file)


def _find_timm(name: str, weights: str | None, file: str | None) -> Timm:
    import timm

    architecture, _, tag = name.partition(".")
    _check_name(architecture, timm.list_models(), "timm's models", "vit_base_patch16_224", TIMM)
    if weights:
        raise ValueError(f"{FLAG} {weights} is no file: tags of timm's weights are part of the name, {TIMM}{architecture}.TAG")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(f"--network {TIMM}{name}: {tag} is no tag of {architecture}: take one of {', '.join(tags) or 'none'}")
    if not (tags or file):
        raise ValueError(f"--network {TIMM}{name}: timm publishes no weights for it: name a file with {FLAG}")
    published = timm.models.get_pretrained_cfg(architecture) if tags else None
    return Timm(architecture, tag or (published and published.tag) or "", file)


def _check_name(name: str, names: Collection[str], whose: str, example: str, prefix: str = "") -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, n=6, cutoff=0.4) or [example]
        raise ValueError(
            f"--network {prefix}{name} is none of {whose}: take one such as {', '.join(prefix + one for one in close)}"
        )


# ---------------------------------------------------------------- state dicts


def _read(path: str) -> dict:
    """The state dict of a file, name -> tensor, or the `state_dict` or `model` of a checkpoint, without `module.` before names.

    Raises:
        ValueError: the file holds none.
    """
    import torch
    from timm.models import load_state_dict

    if not Path(path).is_file():
        raise ValueError(f"{FLAG} {path}: there is no such file")
    try:
        with hub.quiet():
            state = load_state_dict(path, use_ema=False, weights_only=True)
    except Exception as error:  # a damaged file, or one that would run code, makes of itself whatever the reader runs into
        raise ValueError(f"{FLAG} {path} cannot be read as weights ({hub.cause(error)})") from None
    if not state or not all(torch.is_tensor(tensor) for tensor in state.values()):
        raise ValueError(f"{FLAG} {path} holds no state dict: names and tensors, or these as its `state_dict`")
    return state


def _check(network: SupervisedModel, state: dict) -> int:
    """How many outputs the network with these weights has. Raises ValueError for what is no weight of it, with its name."""
    n_outputs = _rows(state, _shapes(network, N_IMAGENET))
    wanted, given = _shapes(network, n_outputs), {name: tuple(tensor.shape) for name, tensor in state.items()}
    strange = sorted(given.keys() - wanted.keys())
    lacking = sorted(name for name in wanted.keys() - given.keys() if not name.endswith("num_batches_tracked"))
    other = next((name for name in wanted if name in given and given[name] != wanted[name]), None)
    if strange or lacking:
        fault = f"holds {strange[0]!r}, unknown to" if strange else f"lacks {lacking[0]!r} of"
        raise ValueError(f"{FLAG} {network.file} {fault} {network.LIBRARY}'s {network.name}: is it of another model?")
    if other:
        fault = f"has {other!r} of {list(given[other])}, and {network.LIBRARY}'s {network.name} of {list(wanted[other])}"
        raise ValueError(f"{FLAG} {network.file} {fault}: is it of another model?")
    return n_outputs


def _shapes(network: SupervisedModel, n_outputs: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the network's state dict, computed without memory for it."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        return {name: tuple(tensor.shape) for name, tensor in network.build(n_outputs).state_dict().items()}


def _rows(state: dict, shapes: dict) -> int:
    """The number of classes of the last layer, by the one place where a network of a thousand has another size."""
    last = [name for name, shape in shapes.items() if shape[:1] == (N_IMAGENET,) and name in state and state[name].ndim]
    rows = {len(state[name]) for name in last if tuple(state[name].shape) != shapes[name]}
    return rows.pop() if len(rows) == 1 else N_IMAGENET
