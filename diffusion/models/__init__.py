"""Sources of weights: one function finds them, one file a family. Nothing heavy is imported before weights are loaded."""

from diffusion.models.families.sd import StableDiffusion
from diffusion.models.registry import (
    EMPTY_PROMPT,
    TEXT_TO_IMAGE,
    Source,
    check_captions,
    check_memory,
    check_prompts,
    class_conditional,
    config_of,
    format_bytes,
    likely_batch,
    load,
    memory_message,
    text_to_image,
)

__all__ = [
    "EMPTY_PROMPT",
    "TEXT_TO_IMAGE",
    "Source",
    "StableDiffusion",
    "check_captions",
    "check_memory",
    "check_prompts",
    "class_conditional",
    "config_of",
    "format_bytes",
    "likely_batch",
    "load",
    "memory_message",
    "text_to_image",
]
