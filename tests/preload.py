"""What a run imports, so that processes forked from one that has imported this start at once. No thread runs after it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel  # noqa: F401
from torchvision import transforms  # noqa: F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

import eval_prob_adaptive  # noqa: F401
import eval_prob_dit  # noqa: F401
import run_winoground  # noqa: F401
from diffusion.kernel import blocks  # noqa: F401
from diffusion.models.speed import shared_unet, tuning  # noqa: F401
from DiT import loading  # noqa: F401
