"""The families of text-to-image models that come along, in the order in which they are asked."""

from diffusion.models.families.auraflow import AuraFlow
from diffusion.models.families.chroma import Chroma
from diffusion.models.families.flux import Flux
from diffusion.models.families.lumina2 import Lumina2
from diffusion.models.families.pixart import PixArt
from diffusion.models.families.prx import PRX
from diffusion.models.families.sana import Sana
from diffusion.models.families.sd import StableDiffusion
from diffusion.models.families.sd3 import StableDiffusion3
from diffusion.models.families.sdxl import StableDiffusionXL
from diffusion.models.families.z_image import ZImage

# The first one is also tried for what names no pipeline, as its own checks say best what is wrong with such a folder.
FAMILIES = (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, PixArt, Sana, PRX, Lumina2, ZImage, Chroma, AuraFlow)
