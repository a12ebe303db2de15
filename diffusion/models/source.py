"""Sources of weights: what is known of a model before its weights are read, and how its `Denoiser` is loaded."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from diffusion.models.loading.tokens import Tokens
from diffusion.settings import ModelOptions

if TYPE_CHECKING:  # which imports torch
    from diffusion.models.denoiser import Denoiser, Levels


class ModelError(RuntimeError):
    """What a model in the user's own file did wrong while a run was at work, with the line of the file."""


class Checkpoint(ABC):
    """Weights of any model, diffusion or not: what a run prints, checks and records of them without reading them."""

    @abstractmethod
    def identity(self) -> str:
        """A text that no other weights have: hashes of local files, the hub's commit of others. Runs are compared by it.

        Raises:
            ValueError: a file or a hub id is not to be had.
        """

    @abstractmethod
    def describe(self) -> str:
        """The place of the weights on one line, as a person would name it."""

    @property
    def unfetched(self) -> list[str]:
        """What a run fetches before it begins: names of files, or hub ids whose config files are not here."""
        return []

    def tokens(self, prompts: Sequence[str]) -> Tokens | None:
        """Token ids of prompts; prompts with equal rows are one and the same to the model.

        Args:
            prompts: K texts.

        Returns:
            a row each; None where nothing is known before the weights are read. Prompts are then not checked.

        Raises:
            ValueError: the tokenizer is missing, damaged or another model's.
        """
        return None

    def unused_additions(self, prompts: Sequence[str]) -> str | None:
        """A line on what was added to the weights and has no effect on these prompts; None where there is no such thing.

        Args:
            prompts: K texts.
        """
        return None


class Source(Checkpoint):
    """The weights of a diffusion model, known by their configuration alone.

    A subclass gives what is abstract here, and of the rest what its model has. What is a property here may be a class attribute
    there, or the field of a dataclass that has a default.
    """

    FLOW: ClassVar[bool] = False  # whether the schedule of its levels can be chosen (--levels)
    SINGLE_FILE: ClassVar[bool] = False  # whether its weights may come from a single checkpoint file (ModelOptions.file)

    @property
    @abstractmethod
    def default_size(self) -> int:
        """Pixels a side of the images that it was trained on, the size of a run without --img_size."""

    @property
    @abstractmethod
    def n_levels(self) -> int:
        """The number T of its noise levels; timesteps are 0 .. T-1."""

    @property
    def space(self) -> str:
        """Which of settings.SPACES errors are taken in unless a run chooses another one (--error_space)."""
        return "epsilon"

    @property
    def stated_space(self) -> str | None:
        """The space that the model's own folder states; None where it states none."""
        return None

    @property
    def num_classes(self) -> int | None:
        """How many classes a class-conditional model knows; None where it does not say, and for one that reads prompts."""
        return None

    @property
    def null_class(self) -> int | None:
        """The class id that stands for no class, of guidance; None where there is none."""
        return None

    @property
    def learned_variance(self) -> bool:
        """Whether its Denoiser has `terms`, the four numbers of a DiT."""
        return False

    @abstractmethod
    def latent_shape(self, img_size: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of an image.

        Args:
            img_size: pixels a side.

        Raises:
            ValueError: the model takes no images of this size.
        """

    def levels(self) -> "Levels | None":
        """The law of noise, on the CPU; None where it is known with the weights only."""
        return None

    def notice(self) -> str | None:
        """A line on what is assumed of the weights and cannot be checked; None where nothing is.

        Raises:
            ValueError: the file is damaged.
        """
        return None

    def memory(self, dtype: str) -> Mapping[str, int]:
        """Part of the model -> bytes of its weights as they are loaded; parts whose size is not known are left out.

        Args:
            dtype: torch's name for the network's number format.
        """
        return {}

    def largest_maps(self, img_size: int) -> tuple[int, int] | None:
        """Elements of the first feature maps: of the VAE for one image, of the network for one latent; None where unknown.

        Args:
            img_size: side of the image, in pixels.
        """
        return None

    @abstractmethod
    def load(self, device: str, dtype: str, compile: bool = False, plain: bool = False) -> "Denoiser":
        """The model with its weights, in `space`. Parts may be read as late as in the Denoiser's `embed`.

        Args:
            device: torch's name, such as "cuda:0".
            dtype: torch's name for the network's number format; a VAE and what is not large stay float32.
            compile: whether the network goes through torch.compile.
            plain: whether it runs as its library runs it, without our optimizations, for a comparison of speeds.

        Raises:
            ValueError, OSError: the weights are missing, damaged or another model's.
        """


class Family(Protocol):
    """The class of the sources of a kind of text-to-image model, as `models.TEXT_TO_IMAGE` lists them."""

    @property
    def VERSIONS(self) -> Mapping[str, str]:
        """Name of a version (--version) -> local folder or hub id of its weights."""

    @property
    def PIPELINES(self) -> Sequence[str]:
        """diffusers' names of the pipelines that hold such models."""

    @property
    def FLOW(self) -> bool:
        """Whether the schedule of its levels can be chosen (--levels)."""

    @property
    def SINGLE_FILE(self) -> bool:
        """Whether its weights may come from a single checkpoint file (ModelOptions.file)."""

    def find(self, source: str, options: ModelOptions) -> Source:
        """The source of some weights.

        Args:
            source: a local folder or a hub id.
            options: what is requested of it.

        Raises:
            ValueError: the configuration is not to be had, or is that of another kind of model.
        """
