"""Errors of a prediction: one number per evaluation, the mean over its C*h*w latent elements. Pure functions.

target [B,C,h,w] is what the network should have predicted in the space of its errors (epsilon: the noise), output
[B,C or more,h,w] what it did in its first C channels; float32. The kernel also hands over x_t and t, which only a score of the
variational bound needs. A new score is a function here and a row in SCORES.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Score = Callable[["Tensor", "Tensor", "Tensor", "Tensor"], "Tensor"]  # (target, output, x_t, t) -> [B] or [B,...] float32
Pick = Callable[["Tensor", "Tensor"], "Tensor"]  # (values of the kernel [K,S,...], t [S]) -> errors [K,S]
Terms = Callable[["Tensor", "Tensor", "Tensor", "Tensor", "Tensor"], "Tensor"]  # as of models.denoiser


class WithTerms(Protocol):
    """What scores need of a models.denoiser.Denoiser."""

    @property
    def terms(self) -> Terms | None: ...


def difference(target: Tensor, output: Tensor) -> Tensor:
    """Predicted minus true, [B,C,h,w]."""
    return output[:, : target.shape[1]] - target


def l1(target: Tensor, output: Tensor, *_: Tensor) -> Tensor:
    """Mean absolute error -> [B] float32."""
    return difference(target, output).abs().flatten(1).mean(1)


def l2(target: Tensor, output: Tensor, *_: Tensor) -> Tensor:
    """Mean squared error -> [B] float32."""
    return difference(target, output).square().flatten(1).mean(1)


def huber(target: Tensor, output: Tensor, *_: Tensor) -> Tensor:
    """Mean Huber error with delta 1 -> [B] float32."""
    from torch.nn.functional import huber_loss

    return huber_loss(output[:, : target.shape[1]], target, reduction="none").flatten(1).mean(1)


def error_map(target: Tensor, output: Tensor, *_: Tensor) -> Tensor:
    """Squared error of every latent position, the mean over channels -> [B,h,w] float32."""
    return difference(target, output).square().mean(1)


def prediction(target: Tensor, output: Tensor, *_: Tensor) -> Tensor:
    """No error: the prediction itself -> [B,C,h,w] float32."""
    return output[:, : target.shape[1]]


def whole_output(target: Tensor, output: Tensor, *_: Tensor) -> Tensor:
    """No error: the prediction and whatever else the network says -> [B,C or more,h,w] float32."""
    return output


TERMS = {"l2": 0, "l1": 1, "kl": 2, "vlb": 2}  # which of a DiT's four numbers a loss is, but for vlb at t = 0


def pick_term(loss: str, terms: Tensor, t: Tensor) -> Tensor:
    """One of an evaluation's four numbers (mse, l1, kl, nll): terms [K,S,4], t [S] int64 -> [K,S]; vlb: nll at t = 0, else kl.

    vlb is the variational bound's own term at each t (Improved DDPM, equations 4 to 7); the published tables call kl "VLB".
    """
    if loss == "vlb":
        return terms[..., 3].where(t == 0, terms[..., 2])
    return terms[..., TERMS[loss]]


SCORES: dict[str, Score] = {"l2": l2, "l1": l1, "huber": huber}


def bound_terms(denoiser: WithTerms, x0: Tensor) -> Score:
    """A score for the kernel: the four numbers of every evaluation of this latent [C,h,w] by a DiT -> [B,4]."""

    def score(noise: Tensor, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        assert denoiser.terms is not None
        return denoiser.terms(x0.expand_as(noise), x_t, t, noise, output)

    return score


def inner(x: Tensor, n: int) -> Tensor:
    """[...,h,w] without n rows and columns at each side."""
    return x[..., n:-n, n:-n] if n else x


def cropped(score: Score, n: int) -> Score:
    """A score that leaves n latents at each side out; the score itself where n is 0."""
    if not n:
        return score
    return lambda target, output, x_t, t: score(inner(target, n), inner(output, n), inner(x_t, n), t)


def scoring(loss: str, denoiser: WithTerms, x0: Tensor, crop: int = 0) -> tuple[Score, Pick]:
    """(score for the kernel, pick): pick(values of the kernel [K,S,...], t [S]) -> the errors of this loss [K,S].

    crop: latents at each side that are left out
    """
    if denoiser.terms:
        terms = bound_terms(denoiser, inner(x0, crop))
        return cropped(terms, crop), lambda values, t: pick_term(loss, values, t)
    return cropped(SCORES[loss], crop), lambda values, t: values
