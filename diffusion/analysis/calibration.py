"""The place of `Fit` until version 0.2."""

from diffusion.metrics.calibration import Fit

__all__ = ["Fit"]
