"""Classifiers to compare with: contrastive, supervised, heads on features, networks trained on generated images."""

from diffusion.baselines.settings import (
    Drawn,
    Features,
    Head,
    Network,
    Supervised,
    TrainingSet,
)

__all__ = [
    "Drawn",
    "Features",
    "Head",
    "Network",
    "Supervised",
    "TrainingSet",
]
