"""A network with labels for an item and a colour: what discriminative training makes of the words of captions."""

import itertools
import re
from pathlib import Path

from diffusion.datasets.scenes import CANVAS, COLOURS, NOUNS

SIZE = {"img_size": CANVAS, "patch_size": 16, "embed_dim": 256, "depth": 6, "num_heads": 8}  # 4.9 million parameters
COLOUR_LABELS = (*COLOURS, None)  # the last for grey
SIZES = (len(NOUNS), len(COLOUR_LABELS))  # of the two heads, in this order


def build(width: int | None = None):
    """timm's vision transformer with both heads as one layer. width: of another size than 256."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**SIZE | ({"embed_dim": width} if width else {}), num_classes=sum(SIZES))


def targets(caption: str) -> list[float]:
    """Shares of the items, then of the colours, that a caption names: halves where it names two."""
    words = re.findall(r"[a-z-]+", caption)
    said = [(word, before if before in COLOURS else None) for before, word in itertools.pairwise(words) if word in NOUNS]
    of_items = [sum(item == noun for item, _ in said) / len(said) for noun in NOUNS]
    return of_items + [sum(colour == one for _, colour in said) / len(said) for one in COLOUR_LABELS]


def clip_input(pixels):
    """[B,3,64,64] uint8 -> float32, as open_clip's own transform makes of a picture of this size."""
    import open_clip
    import torch

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    return (pixels.float() / 255 - mean) / std


def pair_scores(weights: Path, pixels, pairs):
    """float32 [B,K]: log-probability of the colour plus that of the item of K pairs (colour, noun). pixels: uint8 [B,3,64,64]."""
    import torch
    from safetensors.torch import load_file

    state = {name: tensor.float() for name, tensor in load_file(weights).items()}
    network = build(state["cls_token"].shape[-1])
    network.load_state_dict(state)
    with torch.inference_mode():
        items, colours = (part.log_softmax(1) for part in network.eval()(clip_input(pixels)).split(SIZES, 1))
    return torch.stack([colours[:, COLOUR_LABELS.index(colour)] + items[:, NOUNS.index(noun)] for colour, noun in pairs], 1)
