"""A run read back: its images, candidates, weights and noise once more from its config.json, checked against it, and maps of
its errors.

Nothing is downloaded, and nothing is taken that is not what the run saw.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion import classify, datasets, models, settings, strategy
from diffusion.datasets import transforms, winoground
from diffusion.kernel import noise
from diffusion.models.speed import devices
from diffusion.strategy import candidate_sets, level_weights
from diffusion.utils.files import fingerprint


@dataclass(frozen=True)
class Past:
    """A run folder and its config.json, by which everything is found again."""

    folder: Path
    config: dict

    @property
    def options(self) -> dict:
        """Raises ValueError for a folder that does not say."""
        if "options" not in self.config:
            raise ValueError(f"{self.folder} has no config.json, so neither its images nor its model are known")
        return self.config["options"]

    @property
    def identity(self) -> dict:
        return self.config["identity"]

    @property
    def command(self) -> str:
        return self.config.get("command", "eval_prob_adaptive")

    @property
    def is_dit(self) -> bool:
        return self.command == "eval_prob_dit"

    @property
    def strategy(self) -> strategy.Strategy:
        return strategy.of_identity(self.identity)

    @property
    def model(self):
        """The settings of its model."""
        return settings.pick(settings.ClassConditional if self.is_dit else settings.TextToImage, self.options)

    @property
    def ablation(self) -> settings.Ablation:
        return settings.pick(settings.Ablation, self.options)


def check_same(past: Past, what: str, now, where) -> None:
    """Raises ValueError when a hash in the run's identity is not that of what is here now; a run that does not say passes."""
    then = past.identity.get(what)
    if then is not None and then != now:
        advice = ": say where its own are with --data_dir" if what == "images" else ""
        raise ValueError(f"{past.folder} was made with other {what} than {where} has now{advice}")


# ---------------------------------------------------------------- images


def check_images(past: Past, data, where) -> None:
    """Raises ValueError when an opened data set, of images or of pairs, is not the one that the run saw."""
    check_same(past, "images", data.fingerprint(), where)


def open_images(past: Past, data_dir: str | None = None) -> datasets.ImageData:
    """The run's images with its transform, in data_dir or where the run found them. Raises ValueError or OSError."""
    place = data_dir or past.options.get("data_dir")
    data = settings.pick(settings.Data, past.options, download=False, data_dir=place)
    dataset = datasets.open_images(data)
    check_images(past, dataset, f"{data.dataset} in {data.data_dir}")
    dataset.transform = _transform(past)
    return dataset


def open_pairs(past: Past, data_dir: str | None = None) -> winoground.PairData:
    """The run's captions and images with its transform. Raises ValueError or OSError."""
    place = data_dir or past.options.get("data_dir")
    data = winoground.open_pairs(past.identity["dataset"], place)
    check_images(past, data, place or past.identity["dataset"])
    data.transform = _transform(past)
    return data


def _transform(past: Past):
    """None for a contrastive model, which has its own."""
    options = past.options
    if not options.get("img_size"):
        return None
    if past.is_dit:
        return transforms.adm_transform(options["img_size"])
    return transforms.sd_transform(options["img_size"], options["interpolation"])


# ---------------------------------------------------------------- weights, candidates, noise


def open_source(past: Past, device="cpu"):
    """The source of the run's weights. Raises ValueError or OSError when they are not here, or are others now."""
    model = past.model
    if past.is_dit:
        source = models.class_conditional(model.model, model.model_path, model.img_size, model.vae_path, device, model.dtype)
    else:
        source = models.text_to_image(model.version, model.model_path, model.options, device, model.dtype)
    check_same(past, "weights", source.identity(), source.describe())
    return source


def candidates_of(past: Past, dataset) -> list:
    """All prompts or class ids of a classification, in the order of a record's rows. Raises ValueError for other prompts."""
    if past.is_dit:
        return past.identity["classes"]
    requested = settings.pick(settings.Prompts, past.options)
    table = datasets.load_prompts(past.identity["dataset"], dataset, requested.prompt_path, requested.template)
    check_same(past, "prompts", fingerprint(table.prompts, table.classidx), requested.prompt_path or past.identity["dataset"])
    return table.prompts


def n_candidates(past: Past) -> int:
    """That an image had at most, also of a run that did not try them all. Raises ValueError or OSError as `open_images`."""
    labels = past.config["candidates"]["labels"]
    if size := past.config["identity"].get("shortlist_size"):
        return candidate_sets.most_candidates(labels, size)
    proposed = candidate_sets.of_dataset(open_images(past), labels)
    return proposed.n_candidates if proposed else len(labels)


def embeddings(past: Past):
    """What the run's strategy was told of its candidates (`Conditions.embeddings`), numpy float32 [K,D].

    Raises ValueError or OSError when images, prompts or weights are not the run's any more, and for candidates without any.
    """
    candidates, device = candidates_of(past, open_images(past)), devices.resolve_device(None)
    source = open_source(past, device)
    return _load(past, source, device).embed(_embedded(past, source, candidates)).embeddings()


def _load(past: Past, source, device):
    return models.load(source, device, past.model.dtype, space=getattr(past.model, "error_space", None))


def _embedded(past: Past, source, candidates: list) -> list:
    """What its model embeds."""
    return classify.with_empty(candidates, source.null_class if past.is_dit else models.EMPTY_PROMPT, past.ablation)


def open_noise(past: Past, n_pairs: int, latent_shape):
    """The run's source of noise. Raises ValueError for a file that is gone or has changed."""
    size, options = past.model.img_size, past.options
    if past.command == "eval_prob_adaptive":
        bank = settings.pick(settings.Noise, options)
        source = noise.image_noise(bank.seed, bank.noise_path, n_pairs, latent_shape, size)
    else:
        bank = settings.pick(settings.GridNoise, options)
        source = noise.grid_noise(bank.seed, bank.noise_path, n_pairs, latent_shape, size, bank.by_position)
    source = noise.shaped(noise.continued(source, past.identity.get("noise")), past.ablation.kind)
    check_same(past, "noise", source.identity(), bank.noise_path)
    return source


# ---------------------------------------------------------------- maps


def error_maps(past: Past, images, candidates: list, rows, index: int, device: str | None) -> Any:
    """Squared errors of some candidates at every latent position, the mean over the run's pairs by its level weights: float32
    [len(rows),h,w] of one image [3,H,W], [len(rows),M,h,w] of M images.

    candidates: all of them, as a model may condition on a place in the list; index: of the image's noise; device None: cuda if
    there is one. Raises ValueError or OSError when weights or noise are not the run's any more.
    """
    import torch

    from diffusion.kernel import blocks

    device = devices.resolve_device(device)
    source = open_source(past, device)
    plan, shape = past.strategy.plan(source.n_levels), source.latent_shape(past.model.img_size)
    bank = open_noise(past, len(plan.t), shape)(index, plan, shape)
    denoiser = _load(past, source, device)
    chosen = list(range(len(candidates)))[rows] if isinstance(rows, slice) else list(rows)
    conditions = denoiser.embed(_embedded(past, source, candidates))[[len(candidates)] * past.ablation.guided + chosen]
    x0 = denoiser.encode(images) if torch.is_tensor(images) else torch.stack([denoiser.encode(image) for image in images])
    batch = blocks.Batch(size if isinstance(size := past.options.get("batch_size"), int) else 32)
    weights = level_weights.of_config(past.config, past.folder)
    return classify.error_maps(denoiser, x0, conditions, torch.from_numpy(plan.t), bank, batch, weights, past.ablation)
