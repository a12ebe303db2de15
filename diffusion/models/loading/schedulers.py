"""The law of noise that a diffusers scheduler's config states: what is read of it, checked, and turned into `Levels`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusion.models.loading import hub

if TYPE_CHECKING:  # which imports torch
    from diffusion.models.denoiser import Levels

CONFIG = "scheduler/scheduler_config.json"
# diffusers' schedulers of a discrete DDPM (Ho et al. 2020): however they sample, their configs name its betas in one way
DDPM_SCHEDULERS = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
    *("PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
    *("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DEISMultistepScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler"),
    *("DPMSolverSDEScheduler", "UniPCMultistepScheduler", "SASolverScheduler", "LCMScheduler", "TCDScheduler"),
    "RePaintScheduler",
)
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
# keys of a flow's scheduler that spread its levels otherwise than by a shift
OTHER_SPREADS = (
    *("use_beta_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas", "invert_sigmas", "shift_terminal"),
    *("sigma_min", "sigma_max"),
)
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
MOST_LEVELS = 100_000  # a hundred times the usual; more is a mistake
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "velocity", "sample": "x0"}  # diffusers' names -> settings.SPACES


def check_ddpm(where: str, config: Mapping[str, Any]) -> None:
    """Check that a scheduler's config states the law of noise of a discrete DDPM in full.

    Args:
        where: the flag and the file that say so, for the error.
        config: the JSON of the file.

    Raises:
        ValueError: it does not, or a number in it makes no sense.
    """
    kind, n_levels, betas = config["_class_name"], config["num_train_timesteps"], config.get("trained_betas")
    if kind not in DDPM_SCHEDULERS or config.get("use_flow_sigmas"):
        kind += " with 'use_flow_sigmas'" if config.get("use_flow_sigmas") else ""
        raise ValueError(f"{where}: {kind} is no scheduler of a discrete DDPM, whose noise levels are all that can be used here")
    if not 2 <= n_levels <= MOST_LEVELS:
        raise ValueError(f"{where}: 'num_train_timesteps' is {n_levels}, and has to be in 2..{MOST_LEVELS}")
    if config.get("prediction_type") == "v_prediction":  # else diffusers does not look at it
        hub.check_known(where, config, {"timestep_type": (None, "discrete")})
    if betas is not None:
        if not isinstance(betas, list) or len(betas) != n_levels or not all(map(_is_beta, betas)):
            raise ValueError(f"{where}: 'trained_betas' are not {n_levels} numbers between 0 and 1")
        return
    for key in ("beta_start", "beta_end"):
        if not _is_beta(config.get(key)):
            raise ValueError(f"{where}: {key!r} is {config.get(key)!r}, and has to be a number between 0 and 1")
    if config.get("beta_schedule") not in BETA_SCHEDULES or config["beta_start"] > config["beta_end"]:
        raise ValueError(f"{where}: 'beta_schedule' is {config.get('beta_schedule')!r} from {config['beta_start']} to "
                         f"{config['beta_end']}, and has to rise by one of {', '.join(BETA_SCHEDULES)}")  # fmt: skip


def check_flow(where: str, config: Mapping[str, Any], uses_levels: bool, dynamic: bool) -> None:
    """Check that a scheduler's config states a rectified flow, whose levels are those of a shift.

    Args:
        where, config: as in `check_ddpm`.
        uses_levels: whether its levels are used, and not others' (--levels).
        dynamic: whether the shift may grow with the image.

    Raises:
        ValueError: it states something else.
    """
    kind = config["_class_name"]
    if kind not in FLOW_SCHEDULERS and not (kind in DDPM_SCHEDULERS and config.get("use_flow_sigmas")):
        kind += " without 'use_flow_sigmas'" if kind in DDPM_SCHEDULERS else ""
        raise ValueError(f"{where}: {kind} is no scheduler of a rectified flow, which is all that can be used here")
    hub.check_known(where, config, {"prediction_type": (None, "flow_prediction")})
    if uses_levels:
        moving = {"time_shift_type": (None, "exponential")} if dynamic else {"use_dynamic_shifting": (None,)}
        hub.check_known(where, config, dict.fromkeys(OTHER_SPREADS, (None,)) | moving)


def _is_beta(value: object) -> bool:
    """Whether it is a number from 1e-7 on, below which float32 knows no noise, and less than 1."""
    return isinstance(value, int | float) and 1e-7 <= value < 1


def prediction_of(prediction_type: str, where: str = "this checkpoint") -> str:
    """The space, of settings.SPACES, that a network predicts.

    Args:
        prediction_type: diffusers' name for it, as in a scheduler's config.
        where: the file that says so, for the error.

    Raises:
        ValueError: diffusers' schedulers of a DDPM do not know it.
    """
    if prediction_type not in list(PREDICTIONS):  # a list, in which anything can be looked for
        known = ", ".join(PREDICTIONS)
        raise ValueError(f"{where} predicts {prediction_type!r}; what can be turned into epsilon is {known}")
    return PREDICTIONS[prediction_type]


def ddpm_levels(config: Mapping[str, Any]) -> "Levels":
    """The levels that a DDPM scheduler's config states; which of diffusers' schedulers it names makes no difference."""
    from diffusers import DDPMScheduler

    from diffusion.models.denoiser import ddpm

    return ddpm(DDPMScheduler.from_config(dict(config)).alphas_cumprod)


def flow_levels(n_levels: int, shift: float, scale: float, last: float = 1.0, to_image: bool = False) -> "Levels":
    """The levels of a shifted rectified flow, s = shift r / (1 + (shift - 1) r) (Esser et al. 2024, eq. 23).

    Args:
        n_levels: how many.
        shift: 1 leaves s even.
        scale: the network is fed scale * s.
        last: r is even in (0, last].
        to_image: as in `denoiser.flow`.
    """
    import torch

    from diffusion.models.denoiser import flow

    r = torch.arange(1, n_levels + 1, dtype=torch.float64) / n_levels * last
    return flow(shift * r / (1 + (shift - 1) * r), scale, to_image)


def logit_normal_levels(n_levels: int, scale: float, to_image: bool = False) -> "Levels":
    """The levels of a rectified flow at the quantiles (r - 1/2) / n_levels of the logit-normal distribution (Esser et al. 2024,
    eq. 19); the network is fed scale * s, and to_image is as in `denoiser.flow`."""
    import torch

    from diffusion.models.denoiser import flow

    even = (torch.arange(n_levels, dtype=torch.float64) + 0.5) / n_levels
    return flow(torch.special.ndtri(even).sigmoid(), scale, to_image)
