"""Sources of weights: one function finds them, one file a family. Nothing heavy is imported before weights are loaded.

A source knows, before any weights are read: `default_size` in pixels, `n_levels` of its law of noise, `latent_shape(img_size)`,
`identity()` of the weights, `describe()` for a person; and `load(device, dtype, compile, plain)` gives its `Denoiser`.
"""

from diffusion.models import hub
from diffusion.models.dit import DiTSource
from diffusion.models.stable_diffusion import StableDiffusion

# A family of text-to-image models is a class with VERSIONS (name -> folder or hub id), PIPELINES (diffusers' names of its
# pipelines) and find(folder or hub id) -> source. The first one is also asked about what names no known pipeline.
TEXT_TO_IMAGE = [StableDiffusion]


def text_to_image(version: str, model_path: str | None = None):
    """The source of a version's weights, or of those in model_path, a local folder or hub id.

    Raises ValueError when the version has no known weights, and when the model is neither local nor reachable.
    """
    known = {name: (family, source) for family in TEXT_TO_IMAGE for name, source in family.VERSIONS.items()}
    if model_path:
        return family_of(model_path).find(model_path)
    if version not in known:
        raise ValueError(f"--version {version} is none of {', '.join(known)}: name its weights with --model_path")
    family, source = known[version]
    return family.find(source)


def family_of(model_path: str):
    """The family of a pipeline by its model_index.json."""
    name = hub.pipeline_class(model_path)
    return next((family for family in TEXT_TO_IMAGE if name in family.PIPELINES), TEXT_TO_IMAGE[0])


def class_conditional(model: str, model_path: str | None = None, img_size: int | None = None, vae_path: str | None = None):
    """The source of a class-conditional model's weights. Raises ValueError or OSError as `DiTSource.find`."""
    return DiTSource.find(model, model_path, img_size, vae_path)
