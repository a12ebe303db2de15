"""What a classifier needs of a diffusion model, whichever it is: its law of noise, its conditions, one call of its network."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch

from diffusion.settings import SPACES


@dataclass(frozen=True)
class Levels:
    """The law of noise: x_t = signal[t] x0 + sigma[t] noise. `t` is an index into these tables, whatever the network is fed.

    DDPM: sqrt(abar) and sqrt(1 - abar) (Ho et al. 2020, eq. 4); a flow: 1 - s and s on the model's own schedule of s; EDM: 1 and
    sigma.
    signal, sigma: float32 [T] on the device
    times: [T], what the network is fed at each level; None: the index itself
    flow: velocity is noise - x0 (Lipman et al. 2023), not signal noise - sigma x0 (Salimans and Ho 2022, appendix D)
    """

    signal: torch.Tensor
    sigma: torch.Tensor
    times: torch.Tensor | None = None
    flow: bool = False

    def __len__(self) -> int:
        return len(self.signal)

    def to(self, device) -> "Levels":
        """On another device."""
        times = None if self.times is None else self.times.to(device)
        return replace(self, signal=self.signal.to(device), sigma=self.sigma.to(device), times=times)

    def time(self, t):
        """What the network is fed at levels t [B]: [B]."""
        return t if self.times is None else self.times[t]

    def add_noise(self, x0, noise, t):
        """x_t in float32. x0: [C,h,w], [B,C,h,w], or [M,1,C,h,w] for M images; noise: [B,C,h,w]; t: [B] int64."""
        return _at(self.signal, t) * x0.float() + _at(self.sigma, t) * noise.float()

    def target(self, space: str, x0, noise, t):
        """What a perfect network predicts in this space, of the shapes of `add_noise`."""
        if space == "epsilon":
            return noise
        of_x0, of_noise = (_at(table.float(), t) for table in self._made_of(space))
        return of_x0 * x0.float() + of_noise * noise.float()

    def conversion(self, prediction: str, space: str) -> Callable:
        """(output [B,C,h,w], x_t, t) -> the same prediction in another space, float32; the output itself where they are one.

        Prediction and x_t are two combinations of x0 and noise, so that a third one follows from them: with p, x and s their
        coefficients, s = a p + b x. Raises ValueError for a space that is none of SPACES.
        """
        if prediction == space:
            return lambda output, x_t, t: output
        of_output, of_x_t = self._change(prediction, space)
        if not of_output.isfinite().all():
            lost = "no signal" if prediction == "epsilon" else "no noise"
            level = int((~of_output.isfinite()).nonzero()[0])
            raise ValueError(f"{space} does not follow from {prediction} at level {level}, which has {lost}")
        of_output, of_x_t = of_output.float(), of_x_t.float()
        return lambda output, x_t, t: _at(of_output, t) * output.float() + _at(of_x_t, t) * x_t.float()

    def error_factor(self, prediction: str, space: str) -> torch.Tensor:
        """By what an error in one space is multiplied, at every level, to be that in another (its square for squared errors):
        float64 [T], not finite where it does not follow. Both errors are of one prediction and one x_t."""
        return torch.ones(len(self)) if prediction == space else self._change(prediction, space)[0].abs()

    def _change(self, prediction: str, space: str):
        """a and b of s = a p + b x, float64 [T] each; not finite where p and x are one and the same."""
        p0, p1 = self._made_of(prediction)
        s0, s1 = self._made_of(space)
        signal, sigma = self.signal.double(), self.sigma.double()
        determinant = p0 * sigma - p1 * signal
        return (s0 * sigma - s1 * signal) / determinant, (p0 * s1 - p1 * s0) / determinant

    def _made_of(self, space: str):
        """Coefficients of x0 and of noise at every level, float64 [T] each."""
        signal, sigma = self.signal.double(), self.sigma.double()
        zero, one = torch.zeros_like(signal), torch.ones_like(signal)
        if space not in SPACES:
            raise ValueError(f"{space!r} is no space of a prediction: take {', '.join(SPACES)}")
        velocity = (-one, one) if self.flow else (-sigma, signal)
        return {"epsilon": (zero, one), "x0": (one, zero), "velocity": velocity}[space]


def ddpm(alphas_cumprod: torch.Tensor) -> Levels:
    """The levels of a discrete DDPM from its alphas_cumprod [T]."""
    abar = alphas_cumprod.float()
    return Levels(abar.sqrt(), (1 - abar).sqrt())


def flow(s: torch.Tensor, scale: float) -> Levels:
    """The levels of a rectified flow at times s [T] in (0, 1], noise at 1; the network is fed scale * s."""
    s = s.float()
    return Levels(1 - s, s, scale * s, flow=True)


def _at(table, t):
    """Entries t [B] of a table [T], to be multiplied with [B,C,h,w]."""
    return table[t].view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Conditions:
    """What a network is told of K candidates, in the parts that its kind has; row k of every part belongs to candidate k.

    sequence: [K,L,D] embeddings of the tokens; mask: [K,L] which of them count; pooled: [K,D] of the whole text
    ids: int64 [K], classes; sizes: [K,n], sizes and crops that some models are told
    """

    sequence: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    ids: torch.Tensor | None = None
    sizes: torch.Tensor | None = None

    def _each(self, function: Callable) -> "Conditions":
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(part) for name, part in parts.items() if part is not None})

    @cached_property
    def _first(self) -> torch.Tensor:
        return next(part for part in (self.sequence, self.ids, self.pooled, self.sizes) if part is not None)

    def __len__(self) -> int:
        return len(self._first)

    @property
    def n_bytes(self) -> int:
        """Of memory."""
        parts = (getattr(self, field.name) for field in fields(self))
        return sum(part.nbytes for part in parts if part is not None)

    def __getitem__(self, rows) -> "Conditions":
        """Some of the candidates: a slice, a list or a tensor of rows."""
        return self._each(lambda part: part[rows])

    def repeat_each(self, n: int) -> "Conditions":
        """Every row n times in a row: [K*n,...]."""
        return self._each(lambda part: part.repeat_interleave(n, 0))

    def repeat_one(self, n: int) -> "Conditions":
        """The first row n times, without copies."""
        return self._each(lambda part: part[:1].expand(n, *part.shape[1:]))

    def embeddings(self, seed: int = 0):
        """What tells the candidates apart: all parts but ids and sizes, projected on 512 random directions (Johnson and
        Lindenstrauss 1984: distances stay), numpy float32 [K,512]. Raises ValueError for candidates that are ids alone."""
        parts = [part.float().cpu().flatten(1) for part in (self.sequence, self.pooled) if part is not None]
        if not parts:
            raise ValueError("this model's candidates have no embeddings: give a --tree, or another --strategy")
        generator, found = torch.Generator().manual_seed(seed), torch.zeros(len(self), 512)
        for piece in (piece for part in parts for piece in part.split(4096, dim=1)):  # one matrix could be gigabytes
            found += piece @ torch.randn(piece.shape[1], 512, generator=generator)
        return (found / 512**0.5).numpy()

    def to(self, where) -> "Conditions":
        """On another device, or with its floating parts in another dtype."""
        if isinstance(where, torch.dtype):
            return self._each(lambda part: part.to(where) if part.is_floating_point() else part)
        return self._each(lambda part: part.to(where))


@dataclass(frozen=True)
class Denoiser:
    """A diffusion model reduced to what a classifier needs.

    encode: image [3,H,W] float32 in [-1,1] on the CPU -> x0 [C,h,w] float32 on the device, already scaled
    embed: list of K prompts, or of K class ids -> Conditions
    predict: (x_t [B,C,h,w] float32, t [B] int64, Conditions of B) -> the prediction in `space`, [B,C,h,w]; of a DiT [B,2C,h,w],
        with what it says of the variance after it
    levels: the law of noise, T levels
    space: in which errors are taken. Squared errors of two spaces differ by a factor at every level, so that an unweighted mean
        in another space is another classifier
    terms: (x0 [B,C,h,w], x_t, t, noise, output of predict) -> [B,4] float32: mse, l1, kl, nll; None without a learned variance
    shared: (x_t [P,C,h,w], t [P], Conditions, latent) -> what `predict` says, where latents are used several times and that saves
        work; latent None: R conditions on every latent -> [R*P,...], else condition b on latent[b] -> [B,...]
    """

    encode: Callable
    embed: Callable
    predict: Callable
    levels: Levels
    space: str = "epsilon"
    terms: Callable | None = None
    shared: Callable | None = None

    def predict_block(self, x_t, t, conditions):
        """`predict` of R conditions on each of P latents [P,C,h,w], t [P]: [R*P,...], evaluation r * P + p."""
        if self.shared:
            return self.shared(x_t, t, conditions, None)
        return self.predict(*evaluated(x_t, t, conditions, None), conditions.repeat_each(len(t)))

    def predict_cells(self, x_t, t, latent, conditions):
        """`predict` of B conditions, each on one of P latents [P,C,h,w], t [P], which latent [B] names: [B,...]."""
        if self.shared:
            return self.shared(x_t, t, conditions, latent)
        return self.predict(*evaluated(x_t, t, conditions, latent), conditions)


def evaluated(x_t, t, conditions, latent):
    """(x_t, t) of every evaluation of `Denoiser.shared`."""
    n = len(conditions)
    return (x_t.repeat(n, 1, 1, 1), t.repeat(n)) if latent is None else (x_t[latent], t[latent])


def in_space(denoiser: Denoiser, space: str) -> Denoiser:
    """The same model with errors in another space. Raises ValueError where a level has no such prediction, and for a model with
    a learned variance, whose terms are of its own."""
    if space == denoiser.space:
        return denoiser
    if denoiser.terms:
        raise ValueError(f"--error_space {space}: this model's variance is learned, and its errors are of {denoiser.space} only")
    levels = denoiser.levels
    try:
        convert = levels.conversion(denoiser.space, space)
    except ValueError as error:
        raise ValueError(f"--error_space: {error}") from None

    def predict(x_t, t, conditions):
        return convert(denoiser.predict(x_t, t, conditions), x_t, t)

    def shared(x_t, t, conditions, latent):
        return convert(denoiser.shared(x_t, t, conditions, latent), *evaluated(x_t, t, conditions, latent))

    return replace(denoiser, predict=predict, space=space, shared=shared if denoiser.shared else None)
