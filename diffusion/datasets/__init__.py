"""Data sets by name: `open_dataset` opens one, `DATASETS` is the table."""

from diffusion.datasets.images import ImageData
from diffusion.datasets.registry import (
    DATASETS,
    MORE,
    OF_IMAGENET,
    DatasetSpec,
    class_names,
    clip_templates,
    labels_of_classes,
    load_prompts,
    name_of,
    open_dataset,
    open_images,
    recipe_for,
    templates_of,
)

__all__ = [
    "DATASETS",
    "MORE",
    "OF_IMAGENET",
    "DatasetSpec",
    "ImageData",
    "class_names",
    "clip_templates",
    "labels_of_classes",
    "load_prompts",
    "name_of",
    "open_dataset",
    "open_images",
    "recipe_for",
    "templates_of",
]
