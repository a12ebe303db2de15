"""What a classifier needs of a diffusion model, whichever it is: its law of noise, its conditions, one call of its network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffusion.settings import SPACES

Convert = Callable[[Tensor, Tensor, Tensor], Tensor]  # (output [B,C,h,w], x_t [B,C,h,w], t [B]) -> [B,C,h,w]


@dataclass(frozen=True)
class Levels:
    """The law of noise: x_t = signal[t] x0 + sigma[t] noise. `t` is an index into these tables, whatever the network is fed.

    DDPM: sqrt(abar) and sqrt(1 - abar) (Ho et al. 2020, eq. 4); a flow: 1 - s and s on the model's own schedule of s; EDM: 1 and
    sigma.

    Attributes:
        signal, sigma: float32 [T] on the device.
        times: [T], what the network is fed at each level; None: the index itself.
        flow: whether velocity is noise - x0 (Lipman et al. 2023), not signal noise - sigma x0 (Salimans and Ho 2022, appendix D).
        sign: -1 where the network gives its prediction's negative, as one whose time runs from noise to image, else 1.
    """

    signal: Tensor
    sigma: Tensor
    times: Tensor | None = None
    flow: bool = False
    sign: int = 1

    def __len__(self) -> int:
        return len(self.signal)

    def to(self, device: str | torch.device) -> "Levels":
        """The same levels elsewhere.

        Args:
            device: where.
        """
        times = None if self.times is None else self.times.to(device)
        return replace(self, signal=self.signal.to(device), sigma=self.sigma.to(device), times=times)

    def time(self, t: Tensor) -> Tensor:
        """What the network is fed at some levels.

        Args:
            t: int64 [B].

        Returns:
            [B].
        """
        return t if self.times is None else self.times[t]

    def predicted(self, output: Tensor) -> Tensor:
        """The prediction of a network in the space that the levels are for.

        Args:
            output: of the network, [B,C,h,w].
        """
        return output if self.sign == 1 else self.sign * output

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The noised latents x_t.

        Args:
            x0: [C,h,w], [B,C,h,w], or [M,1,C,h,w] for M images.
            noise: [B,C,h,w], standard normal.
            t: int64 [B], levels 0 .. T-1.

        Returns:
            float32 [B,C,h,w], or [M,B,C,h,w] for M images.
        """
        return _at(self.signal, t) * x0.float() + _at(self.sigma, t) * noise.float()

    def target(self, space: str, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect network predicts.

        Args:
            space: one of settings.SPACES.
            x0, noise, t: as of `add_noise`.

        Returns:
            of the shape of `add_noise`'s.

        Raises:
            ValueError: the space is none of settings.SPACES.
        """
        if space == "epsilon":
            return noise
        x0_factor, noise_factor = (_at(table.float(), t) for table in self._coefficients(space))
        return x0_factor * x0.float() + noise_factor * noise.float()

    def conversion(self, prediction: str, space: str) -> Convert:
        """A function that turns a prediction into another space.

        Prediction and x_t are two combinations of x0 and noise, so that a third one follows from them: with p, x and s their
        coefficients, s = a p + b x.

        Args:
            prediction: the space of the given prediction, of settings.SPACES.
            space: the space of the result.

        Returns:
            (output [B,C,h,w], x_t [B,C,h,w], t [B]) -> float32 [B,C,h,w]; the output itself where both spaces are one.

        Raises:
            ValueError: a space is none of settings.SPACES, or does not follow from the other at some level.
        """
        if prediction == space:
            return lambda output, x_t, t: output
        a, b = self._change(prediction, space)
        if not a.isfinite().all():
            lost = "no signal" if prediction == "epsilon" else "no noise"
            level = int((~a.isfinite()).nonzero()[0])
            raise ValueError(f"{space} does not follow from {prediction} at level {level}, which has {lost}")
        a, b = a.float(), b.float()
        return lambda output, x_t, t: _at(a, t) * output.float() + _at(b, t) * x_t.float()

    def error_factor(self, prediction: str, space: str) -> Tensor:
        """By what an error in one space is multiplied, at every level, to be that in another (its square for squared errors).

        Both errors are of one prediction and one x_t.

        Args:
            prediction: the space of the error.
            space: the other.

        Returns:
            float64 [T], not finite where the other space does not follow.
        """
        return torch.ones(len(self)) if prediction == space else self._change(prediction, space)[0].abs()

    def _change(self, prediction: str, space: str) -> tuple[Tensor, Tensor]:
        """a and b of s = a p + b x, float64 [T] each; not finite where p and x are one and the same."""
        p0, p1 = self._coefficients(prediction)
        s0, s1 = self._coefficients(space)
        signal, sigma = self.signal.double(), self.sigma.double()
        determinant = p0 * sigma - p1 * signal
        return (s0 * sigma - s1 * signal) / determinant, (p0 * s1 - p1 * s0) / determinant

    def _coefficients(self, space: str) -> tuple[Tensor, Tensor]:
        """What x0 and noise are multiplied with at every level to make a prediction, float64 [T] each."""
        signal, sigma = self.signal.double(), self.sigma.double()
        zero, one = torch.zeros_like(signal), torch.ones_like(signal)
        if space not in SPACES:
            raise ValueError(f"{space!r} is no space of a prediction: take {', '.join(SPACES)}")
        velocity = (-one, one) if self.flow else (-sigma, signal)
        return {"epsilon": (zero, one), "x0": (one, zero), "velocity": velocity}[space]


def ddpm(alphas_cumprod: Tensor) -> Levels:
    """The levels of a discrete DDPM.

    Args:
        alphas_cumprod: [T], as of the scheduler of that name.
    """
    abar = alphas_cumprod.float()
    return Levels(abar.sqrt(), (1 - abar).sqrt())


def flow(s: Tensor, scale: float, to_image: bool = False) -> Levels:
    """The levels of a rectified flow.

    Args:
        s: times [T] in (0, 1], noise at 1.
        scale: the network is fed scale * s.
        to_image: the network's own time runs to the image: it is fed scale * (1 - s), and gives x0 - noise.
    """
    s = s.float()
    return Levels(1 - s, s, scale * (1 - s if to_image else s), flow=True, sign=-1 if to_image else 1)


def _at(table: Tensor, t: Tensor) -> Tensor:
    """Entries t [B] of a table [T] as [B,1,1,1], to be multiplied with [B,C,h,w]."""
    return table[t].view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Conditions:
    """What a network is conditioned on, for K candidates, in the parts that its kind has; row k belongs to candidate k.

    Attributes:
        sequence: [K,L,D], embeddings of the tokens.
        mask: [K,L], which of the tokens count.
        pooled: [K,D], the embedding of the whole text.
        ids: int64 [K], classes.
        sizes: [K,n], sizes and crops that some models are conditioned on.
    """

    sequence: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    ids: Tensor | None = None
    sizes: Tensor | None = None

    def _parts(self) -> dict[str, Tensor]:
        """Name -> part, of those that are there."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in parts.items() if part is not None}

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Conditions":
        return replace(self, **{name: function(part) for name, part in self._parts().items()})

    @cached_property
    def _first(self) -> Tensor:
        return next(part for part in (self.sequence, self.ids, self.pooled, self.sizes) if part is not None)

    def __len__(self) -> int:
        return len(self._first)

    @property
    def n_bytes(self) -> int:
        """Memory of all parts, in bytes."""
        return sum(part.nbytes for part in self._parts().values())

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> "Conditions":
        """Some of the candidates: a slice, a list or a tensor of rows."""
        return self._each(lambda part: part[rows])

    def repeat_each(self, n: int) -> "Conditions":
        """Every row several times in a row: [K*n,...].

        Args:
            n: how often.
        """
        return self._each(lambda part: part.repeat_interleave(n, 0))

    def repeat_one(self, n: int) -> "Conditions":
        """The first row several times, without copies: [n,...].

        Args:
            n: how often.
        """
        return self._each(lambda part: part[:1].expand(n, *part.shape[1:]))

    def embeddings(self, seed: int = 0) -> npt.NDArray[np.float32]:
        """What tells the candidates apart: sequence and pooled, projected on 512 random directions (Johnson and Lindenstrauss
        1984: distances stay).

        Args:
            seed: of the directions.

        Returns:
            float32 [K,512].

        Raises:
            ValueError: the candidates are ids alone.
        """
        parts = [part.float().cpu().flatten(1) for part in (self.sequence, self.pooled) if part is not None]
        if not parts:
            raise ValueError("this model's candidates have no embeddings: give a --tree, or another --strategy")
        generator, projected = torch.Generator().manual_seed(seed), torch.zeros(len(self), 512)
        for piece in (piece for part in parts for piece in torch.split(part, 4096, dim=1)):  # one matrix could be gigabytes
            projected += piece @ torch.randn(piece.shape[1], 512, generator=generator)
        result: npt.NDArray[np.float32] = (projected / 512**0.5).numpy()
        return result

    def to(self, where: str | torch.device | torch.dtype) -> "Conditions":
        """The same conditions elsewhere.

        Args:
            where: a device, or a dtype for what is floating.
        """
        if isinstance(where, torch.dtype):
            return self._each(lambda part: part.to(where) if part.is_floating_point() else part)
        return self._each(lambda part: part.to(where))


Predict = Callable[[Tensor, Tensor, Conditions], Tensor]
Terms = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Shared = Callable[[Tensor, Tensor, Conditions, Tensor | None], Tensor]


@dataclass(frozen=True)
class Denoiser:
    """A diffusion model reduced to what a classifier needs.

    Attributes:
        encode: image [3,H,W] float32 in [-1,1] on the CPU -> x0 [C,h,w] float32 on the device, already scaled.
        embed: list of K prompts, or of K class ids -> Conditions of K rows.
        predict: (x_t [B,C,h,w] float32, t [B] int64, Conditions of B) -> the prediction in `space`, [B,C,h,w]; a DiT gives
            [B,2C,h,w], with what it says of the variance after it.
        levels: the law of noise, T levels.
        space: which of settings.SPACES errors are taken in. Squared errors of two spaces differ by a factor at every level, so
            that an unweighted mean in another space is another classifier.
        terms: (x0 [B,C,h,w], x_t, t, noise, output of predict) -> float32 [B,4]: mse, l1, kl, nll; None without a learned
            variance.
        shared: (x_t [P,C,h,w], t [P], Conditions, latent) -> what `predict` gives, where latents are used several times and that
            saves work; latent None: R conditions on every latent -> [R*P,...], else condition b on latent[b] -> [B,...].
    """

    encode: Callable[[Tensor], Tensor]
    embed: Callable[[list[Any]], Conditions]  # Any: prompts are str, class ids int, and a model takes one of the two
    predict: Predict
    levels: Levels
    space: str = "epsilon"
    terms: Terms | None = None
    shared: Shared | None = None

    @property
    def predict_latents(self) -> Shared:
        """The predictions for several conditions on each of P latents, by `shared` where there is one.

        A function of x_t float32 [P,C,h,w], t int64 [P], conditions, and latent:
            None: R conditions on every latent -> [R*P,...] as of `predict`, evaluation r * P + p.
            int64 [B]: condition b on latent[b] -> [B,...].
        """
        return self.shared or partial(one_by_one, self.predict)


def one_by_one(predict: Predict, x_t: Tensor, t: Tensor, conditions: Conditions, latent: Tensor | None) -> Tensor:
    """What `Denoiser.shared` gives, without sharing anything.

    Args:
        predict: the network, on equally many of each.
        x_t, t, conditions, latent: as of `Denoiser.shared`.
    """
    rows = conditions.repeat_each(len(t)) if latent is None else conditions
    return predict(*evaluations(x_t, t, len(conditions), latent), rows)


def evaluations(x_t: Tensor, t: Tensor, n_conditions: int, latent: Tensor | None) -> tuple[Tensor, Tensor]:
    """The inputs of every evaluation of `Denoiser.shared`.

    Args:
        x_t, t, latent: as of it.
        n_conditions: R.

    Returns:
        x_t [R*P,C,h,w] or [B,C,h,w], and t [R*P] or [B].
    """
    if latent is None:
        return x_t.repeat(n_conditions, 1, 1, 1), t.repeat(n_conditions)
    return x_t[latent], t[latent]


def in_space(denoiser: Denoiser, space: str) -> Denoiser:
    """The same model with errors in another space.

    Args:
        denoiser: the model.
        space: of settings.SPACES.

    Raises:
        ValueError: a level has no such prediction, or the model's variance is learned, whose terms are in its own space.
    """
    if space == denoiser.space:
        return denoiser
    if denoiser.terms:
        raise ValueError(f"--error_space {space}: this model's variance is learned, and its errors are of {denoiser.space} only")
    try:
        convert = denoiser.levels.conversion(denoiser.space, space)
    except ValueError as error:
        raise ValueError(f"--error_space: {error}") from None

    def predict(x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return convert(denoiser.predict(x_t, t, conditions), x_t, t)

    changed = replace(denoiser, predict=predict, space=space)
    return replace(changed, shared=_converted(denoiser.shared, convert)) if denoiser.shared else changed


def _converted(shared: Shared, convert: Convert) -> Shared:
    def converted(x_t: Tensor, t: Tensor, conditions: Conditions, latent: Tensor | None) -> Tensor:
        return convert(shared(x_t, t, conditions, latent), *evaluations(x_t, t, len(conditions), latent))

    return converted
