"""A run's image, weights and noise once more, from its config.json: for figures that need what no record holds."""

from argparse import Namespace

from diffusion import cli
from diffusion.files import fingerprint


def options_of(run) -> Namespace:
    """All options of the run. Raises ValueError for a folder without a config.json."""
    if "options" not in run.config:
        raise ValueError(f"{run.folder} has no config.json, so neither its images nor its model are known")
    return Namespace(**run.config["options"])


def open_images(run, options):
    """The run's dataset with its transform. Raises ValueError or OSError when it is not at hand, or is another one now."""
    from diffusion.datasets import transforms

    dataset = cli.open_images(options)
    check_same(run.folder, dataset.fingerprint(), run.config["identity"]["images"], "images", options.data_dir)
    if is_dit(options):
        dataset.transform = transforms.adm_transform(options.img_size)
    else:
        dataset.transform = transforms.sd_transform(options.img_size, options.interpolation)
    return dataset


def is_dit(options) -> bool:
    """Whether eval_prob_dit.py made the run; eval_prob_adaptive.py has no --cls."""
    return hasattr(options, "cls")


def check_same(folder, now, then, what: str, source) -> None:
    """Raises ValueError when a fingerprint is not the run's any more."""
    if now != then:
        raise ValueError(f"{folder} was made with other {what} than {source} has now")


def find_sd(folder, options, identity):
    """Files of the run's pipeline. Raises ValueError when they are not those of the run any more."""
    from diffusion import models

    files = models.find_sd(options.version, options.model_path)
    check_same(folder, models.weights_identity(files), identity["weights"], "weights", files.source)
    return files


def error_maps(run, options, dataset, index: int, rows: list[int], device: str | None):
    """Squared errors of the noise of these candidates on one image, the mean over the run's pairs -> [len(rows),h,w] float32.

    The pairs and noises are the run's own; device None: cuda if there is one. Raises ValueError or OSError when weights, prompts
    or noise are not those any more.
    """
    import torch

    from diffusion import kernel, models, scores

    options.device = models.resolve_device(device)
    prepare = _dit if is_dit(options) else _sd
    denoiser, conds, t, noise = prepare(run, options, dataset, index, rows)
    x0, batch = denoiser.encode(dataset[index][0]), kernel.Batch(options.batch_size)
    maps = kernel.epsilon_errors(denoiser, x0, conds, torch.from_numpy(t), noise, scores.error_map, batch)
    return maps.mean(1)


def _sd(run, options, dataset, index: int, rows: list[int]):
    """The denoiser of a run of eval_prob_adaptive.py, conditions of these rows, timesteps and noise."""
    from diffusion import datasets, models, noise, schedule

    identity = run.config["identity"]
    table = datasets.load_prompts(options.dataset, dataset, options.prompt_path, options.template)
    prompts_now = fingerprint(table.prompts, table.classidx)
    check_same(run.folder, prompts_now, identity["prompts"], "prompts", options.prompt_path or options.dataset)
    files, plan = find_sd(run.folder, options, identity), schedule.make_plan(options.n_samples, options.n_trials)
    shape = models.latent_shape(files, options.img_size)
    if options.noise_path:
        bank = noise.read_noise(options.noise_path, len(plan.t), shape, options.img_size)
        check_same(run.folder, fingerprint(bank.numpy().tobytes()), identity["noise"], "noise", options.noise_path)
    else:
        bank = noise.seeded_noise(options.seed, index, (len(plan.t), *shape))
    denoiser = models.load_sd(files, options.dtype, options.device)
    return denoiser, denoiser.embed([table.prompts[row] for row in rows]), plan.t, bank


def _dit(run, options, dataset, index: int, rows: list[int]):
    """The same of a run of eval_prob_dit.py over all its classes."""
    from diffusion import models, schedule

    identity = run.config["identity"]
    files = models.find_dit(options.model, options.model_path, options.img_size, options.vae_path)
    check_same(run.folder, models.dit_identity(files), identity["weights"], "weights", files.path or files.file)
    if options.to_keep:
        plan = schedule.make_plan(options.n_samples, options.n_trials)
    else:
        plan = schedule.interval_plan(options.t_interval, options.n_trials)
    bank, noise_now = cli.open_noise(options, len(plan.t), files.latent_shape)
    check_same(run.folder, noise_now, identity["noise"], "noise", options.noise_path)
    denoiser = models.load_dit(files, options.dtype, options.device)
    return denoiser, denoiser.embed([identity["classes"][row] for row in rows]), plan.t, bank
