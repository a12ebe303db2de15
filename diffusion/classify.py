"""One image -> one result: a diffusion model as a classifier. Prints nothing, reads no environment, writes no file.

from diffusion import classify

classifier = classify.text_to_image("tiny", ["a photo of a bag.", "a photo of a boot."])
result = classifier(image)  # PIL, of any size and mode
result.ranking, result.means, result.evaluations
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from diffusion import flight, models, scores, settings
from diffusion.analysis import calibration
from diffusion.datasets import transforms
from diffusion.elimination import NEVER, append_errors, means_of
from diffusion.level_weights import LevelWeights, belonging, eliminate, weighted
from diffusion.models import devices
from diffusion.noise import Seeded, shaped
from diffusion.schedule import Plan
from diffusion.strategy import Race, Strategy


@dataclass(frozen=True)
class Result:
    """What a classifier found out about one image.

    class_of: label of each of the K candidates; winner: the row that won
    errors: row -> float32 [n], in order of evaluation; a candidate that was dropped has fewer, one that was never tried none
    t: int64 [S], the levels of all pairs in that order, of which a candidate has seen the beginning
    fell: row -> round in which it was dropped, None where rounds mean nothing
    terms: float32 [K,S,4] mse, l1, kl, nll of every evaluation of a DiT whose candidates all saw everything, else None
    seconds: of wall clock; level_weights: by which errors are multiplied before they are compared
    empty: evaluations under the empty condition, of guidance
    """

    class_of: Sequence[int]
    winner: int
    errors: dict[int, np.ndarray]
    t: np.ndarray
    fell: dict[int, int] | None = None
    terms: Any = None
    seconds: float | None = None
    level_weights: LevelWeights | None = None
    empty: int = 0

    @property
    def label(self) -> int:
        """The predicted one."""
        return self.class_of[self.winner]

    @property
    def evaluations(self) -> int:
        """Network evaluations spent."""
        return sum(map(len, self.errors.values())) + self.empty

    @cached_property
    def compared(self) -> list[np.ndarray]:
        """Errors of every row, times the level weights if there are any; none of one that was never tried."""
        rows = (self.errors.get(row, NEVER) for row in range(len(self.class_of)))
        return [weighted(self.level_weights, e, self.t[: len(e)]) for e in rows]

    @cached_property
    def means(self) -> np.ndarray:
        """Mean of every candidate's compared errors, float64 [K]; of those that were dropped on fewer pairs; inf of others."""
        return means_of(self.compared)

    @cached_property
    def best_rows(self) -> dict[int, int]:
        """Label -> row of its best candidate that was tried, best first: whoever was dropped later is better, then who has the
        lower mean error."""
        rows = sorted(self.errors, key=lambda row: (-len(self.errors[row]), self.means[row], row))
        best = {}
        for row in rows:
            best.setdefault(self.class_of[row], row)
        return best

    @property
    def ranking(self) -> list[int]:
        """Labels, best first; a class has the place of its best candidate."""
        return list(self.best_rows)

    def probabilities(self, fit: calibration.Fit) -> dict[int, float]:
        """Label -> probability, by a fit that scripts/calibrate.py wrote on a run with this model and loss."""
        return calibration.probabilities(self.compared, self.winner, list(self.class_of), fit)


class Round(NamedTuple):
    """alive: rows that go on, at the end those that nobody beat; result: by what was seen so far, and who was dropped when."""

    alive: list[int]
    result: Result


@dataclass(frozen=True)
class Classifier:
    """A denoiser with its candidates, a strategy, a score and a source of noise.

    denoiser: models.denoiser.Denoiser; conditions: of the K candidates, and with guidance the empty one after them
    class_of: the label of each candidate
    strategy: which pairs are evaluated, and who is dropped; plan: its plan on the denoiser's levels
    loss: a name in scores.SCORES; of a DiT l2, l1, kl or vlb
    noise: a source of `diffusion.noise`: (index, plan, [C,h,w], pairs) -> noise [n,C,h,w] of the image with this index
    batch: kernel.Batch, the evaluations per call of the network
    transform: PIL image -> float32 [3,H,W] in [-1,1]
    level_weights: by which errors are multiplied before they are compared; ablation: guidance and cropped errors, of which the
        noise's kind is in `noise`
    rows_of: index -> rows of the candidates that compete for the image with this index; None: all do for every image

    Raises ValueError for a strategy that cannot do with these candidates.
    """

    denoiser: Any
    conditions: Any
    class_of: Sequence[int]
    strategy: Strategy
    plan: Plan
    loss: str
    noise: Callable
    batch: Any
    transform: Callable | None = None
    level_weights: LevelWeights | None = None
    ablation: settings.Ablation = settings.NO_ABLATION
    rows_of: Callable[[int], Sequence[int]] | None = None

    def __post_init__(self):
        object.__setattr__(self, "strategy", self.strategy.informed(self.class_of, self.conditions.embeddings))

    def __call__(self, image, index: int = 0) -> Result:
        """image: PIL, or what the transform makes of it, float32 [3,H,W]; index: of its noise, where every image has its own.

        Raises FloatingPointError when an error is not finite.
        """
        start = time.perf_counter()
        return self._classified(*self._given(image), index, start, self._errors)

    def rounds(self, image, index: int = 0) -> Iterator[Round]:
        """A call, told while it goes on: a Round before every further question of the strategy, and one at the end, whose result
        is that of the call, bit by bit. Who stops listening ends it. image, index, what is raised: as of a call."""
        start, given = time.perf_counter(), self._given(image)
        pick, guided = self._scoring(given[0])[1], int(self.ablation.guided)
        seen, fell, n, empty = {}, {}, 0, 0
        flown = flight.Flight(index, lambda: partial(self._classified, *given, index, start))
        try:
            while flown.asks():
                cells = flown.question
                rows = cells.rows[guided:]
                if self.strategy.TRIES_ALL:  # else who is not asked for need not be out, as others are catching up
                    fell |= {row: n for row in seen if row not in rows and row not in fell}
                if n:
                    alive = [row for row in seen if row not in fell]
                    yield Round(alive, self._leading(seen, fell, empty, time.perf_counter() - start))
                flown.pieces = self._errors(cells)
                new = pick(flown.pieces[guided:], cells.t)
                seen |= {row: NEVER for row in rows if row not in seen}
                append_errors(seen, lambda *_, new=new: new, rows, slice(None))
                flown.answer()
                n, empty = n + 1, empty + guided * len(cells.t)
            result = flown.end()
        finally:
            flown.land()
        alive = [result.winner] if result.fell is None else [row for row in seen if row not in result.fell]
        yield Round(alive, result)

    def _leading(self, errors: dict[int, np.ndarray], fell: dict[int, int], empty: int, seconds: float) -> Result:
        """What these errors say, whatever was to come."""
        result = Result(self.class_of, 0, dict(errors), self.plan.t, dict(fell), None, seconds, self.level_weights, empty)
        return replace(result, winner=next(iter(result.best_rows.values())))

    def several(self, images: Iterable[tuple], n: int, most: int = 2**31) -> Iterator[tuple]:
        """n images at once, but not more than `most`, which share calls of the network: (index, call, label) of (index, image,
        label) as they end, where call() is the Result, or raises what `__call__` would.

        One at a time is `__call__`, bit by bit. Of several the errors are the same up to rounding (1e-5 of each was tested), as a
        call's other inputs move their last bits; seconds are then from an image's start to its end, beside the others.
        """
        from diffusion import kernel

        if min(n, most) <= 1:
            yield from ((index, partial(self, image, index), label) for index, image, label in images)
            return

        def begin(image, index):
            start = time.perf_counter()
            given = self._given(image)
            return lambda ask: self._classified(*given, index, start, lambda cells: kernel.checked(cells.table(ask(cells))))

        begins = (((index, label), partial(begin, image, index)) for index, image, label in images)
        for (index, label), call in flight.together(begins, min(n, most), lambda: self.batch.size, self._cell_errors):
            yield index, call, label

    def _classified(self, x0, t, index: int, start: float, errors_of: Callable) -> Result:
        """The result of an image begun at `start`. errors_of(kernel.Cells) -> all its errors [R,S,...]."""
        pick = self._scoring(x0)[1]
        competing = list(self.rows_of(index)) if self.rows_of else list(range(len(self.class_of)))
        kept, empty = [], []

        def evaluate(rows, pairs):
            cells = self._cells(x0, t, index, [competing[row] for row in rows], pairs)
            values = errors_of(cells)[int(self.ablation.guided) :]
            kept.append(values)
            empty.append(self.ablation.guided * len(t[pairs]))
            return pick(values, t[pairs])

        class_of, strategy = [self.class_of[row] for row in competing], self.strategy.among(competing)
        errors, winner, fell = eliminate(self.level_weights, strategy, evaluate, class_of, self.plan)
        errors = {competing[row]: own for row, own in errors.items() if len(own)}
        fell = None if fell is None else {competing[row]: number for row, number in fell.items()}
        terms = kept[0] if self.denoiser.terms and kept[0].shape[:2] == (len(self.class_of), len(t)) else None
        seconds = time.perf_counter() - start
        return Result(self.class_of, competing[winner], errors, self.plan.t, fell, terms, seconds, self.level_weights, sum(empty))

    def _cells(self, x0, t, index: int, rows, pairs: slice):
        """All candidates `rows`, and the empty condition first, on all these pairs of an image, as kernel.Cells."""
        from diffusion import kernel

        def noise(part):
            some = range(len(t))[pairs][part]
            return self.noise(index, self.plan, x0.shape, slice(some.start, some.stop))

        rows = self._rows(rows)
        return kernel.Cells(x0, rows, t[pairs], noise, range(len(rows) * len(t[pairs])))

    def _rows(self, candidates) -> list[int]:
        """Of the conditions that the kernel is given."""
        return [*([len(self.class_of)] if self.ablation.guided else []), *candidates]

    def _scoring(self, x0):
        return scores.scoring(self.loss, self.denoiser, x0, self.ablation.crop_errors)

    def _errors(self, cells):
        """Of an image alone, in blocks."""
        from diffusion import kernel

        score, noise, conditions = self._scoring(cells.x0)[0], cells.noise(slice(None)), self.conditions[cells.rows]
        return kernel.errors(self.denoiser, cells.x0, conditions, cells.t, noise, score, self.batch, self.ablation.guidance)

    def _cell_errors(self, asked):
        """Of several images: one piece for each part of their cells."""
        from diffusion import kernel

        def score_of(x0):
            return self._scoring(x0)[0]

        return kernel.cell_errors(self.denoiser, asked, self.conditions, score_of, self.batch, self.ablation.guidance)

    def error_maps(self, image, rows, index: int = 0):
        """`error_maps` of some candidates on the whole plan: float32 [len(rows),h,w]. image, index: as of a call."""
        x0, t = self._given(image)
        noise = self.noise(index, self.plan, x0.shape)
        conditions = self.conditions[self._rows(rows)]
        return error_maps(self.denoiser, x0, conditions, t, noise, self.batch, self.level_weights, self.ablation)

    def _given(self, image):
        """x0 [C,h,w] of an image, and the levels [S] of the plan."""
        import torch

        image = image if torch.is_tensor(image) else self.transform(image)
        return self.denoiser.encode(image), torch.from_numpy(self.plan.t)


def error_maps(denoiser, x0, conditions, t, noise, batch, level_weights: LevelWeights | None = None,
               ablation: settings.Ablation = settings.NO_ABLATION):  # fmt: skip
    """Squared errors of K candidates at every latent position, the mean over S pairs, each times its level's weight: float32
    [K,h,w] of one latent [C,h,w], [K,M,h,w] of M latents. t, noise, batch: as of `kernel.errors`.

    conditions: with guidance the empty one first, which has no map; a border that is left out of errors is 0
    """
    import torch

    from diffusion import kernel

    maps = kernel.errors(denoiser, x0, conditions, t, noise, scores.error_map, batch, ablation.guidance)
    if level_weights is not None:
        maps = maps * torch.from_numpy(level_weights.table[t.numpy()])[:, None, None]
    maps, n = maps.mean(-3)[int(ablation.guided) :], ablation.crop_errors
    return torch.nn.functional.pad(scores.inner(maps, n), (n, n, n, n))


def text_to_image(
    version: str,  # 1-1 ... 2-1, tiny, or any name with model_path
    prompts: Sequence[str],  # one candidate each
    labels: Sequence[int] | None = None,  # label of each prompt; None: its place
    *,
    model_path: str | None = None,  # pipeline folder, hub id or single file in place of the version's weights
    config: str | None = None,  # pipeline folder or hub id of a single file's configs; None: the version's
    strategy: Strategy | None = None,  # None: a race with its defaults
    loss: str = "l2",  # a name in scores.SCORES
    level_weights: str | None = None,  # file of scripts/fit_weights.py
    seed: int = 0,  # of the noise
    img_size: int | None = None,  # pixels a side; None: what the model was trained on
    interpolation: str = "bicubic",  # of the resize
    error_space: str | None = None,  # epsilon, x0 or velocity; None: the model's own
    levels: str = "own",  # of a flow: uniform, shift3 or logit-normal
    text_encoders: str = "all",  # or clip: without T5, where the model can do without
    lora: Sequence[str] = (),  # PATH or PATH@SCALE each, fused in this order
    embedding: Sequence[str] = (),  # of textual inversion, PATH or PATH@TOKEN each
    guidance: float = 0.0,  # W of classifier-free guidance (figure 8)
    crop_errors: int = 0,  # border latents that are left out of errors (figure 9)
    noise: str = "normal",  # zero, truncated:A, clipped:A or expected_norm (Table 12)
    device: str | None = None,  # None: cuda if there is one, else cpu
    dtype: str = "auto",  # of the network: float16 on CUDA, else float32
    batch_size: int = 32,  # network inputs per call
) -> Classifier:
    """A classifier by prompts. Raises ValueError or OSError for weights that are not there and settings that do not fit."""
    _check_loss(loss, scores.SCORES)
    device = devices.resolve_device(device)
    given = {"text_encoders": text_encoders, "levels": levels, "lora": lora, "embedding": embedding, "config": config}
    asked = settings.TextToImage(img_size=img_size, **given).options
    source = models.text_to_image(version, model_path, asked, device, devices.resolve_dtype(dtype, device))
    img_size = img_size or source.default_size
    transform = transforms.sd_transform(img_size, interpolation)
    space = error_space if error_space != source.space else None
    about = settings.TextToImage(img_size=img_size, error_space=space, levels=levels).identity()
    ablation = settings.Ablation(guidance, crop_errors, noise)
    how = (strategy, loss, seed, device, dtype, batch_size, level_weights, ablation, models.EMPTY_PROMPT, error_space)
    return _classifier(source, about, list(prompts), labels, transform, *how)


def class_conditional(
    model: str,  # tiny, or a published shape such as DiT-XL/2
    classes: Sequence[int] | None = None,  # the candidates; None: all of the model's
    labels: Sequence[int] | None = None,  # label of each class; None: the class itself
    *,
    model_path: str | None = None,  # checkpoint or diffusers folder
    vae_path: str | None = None,  # VAE folder or hub id
    strategy: Strategy | None = None,
    loss: str = "l2",  # or l1, kl, vlb
    level_weights: str | None = None,
    seed: int = 0,
    img_size: int | None = None,
    guidance: float = 0.0,
    crop_errors: int = 0,
    noise: str = "normal",
    device: str | None = None,
    dtype: str = "auto",
    batch_size: int = 32,
) -> Classifier:
    """A classifier by the classes that a DiT was trained on; what is not said here is as of `text_to_image`."""
    _check_loss(loss, scores.TERMS)
    device = devices.resolve_device(device)
    source = models.class_conditional(model, model_path, img_size, vae_path, device, devices.resolve_dtype(dtype, device))
    if classes is None and source.num_classes is None:
        raise ValueError(f"classes are needed: {source.describe()} does not say how many it has (NUM_CLASSES = 10)")
    classes = list(range(source.num_classes)) if classes is None else list(classes)
    transform = transforms.adm_transform(source.default_size)
    labels = classes if labels is None else labels
    about = settings.ClassConditional(img_size=source.default_size).identity()
    ablation = settings.Ablation(guidance, crop_errors, noise)
    how = (strategy, loss, seed, device, dtype, batch_size, level_weights, ablation, source.null_class)
    return _classifier(source, about, classes, labels, transform, *how)


def _check_loss(loss: str, known) -> None:
    if loss not in known:
        raise ValueError(f"loss {loss!r} is none of {', '.join(known)}")


def with_empty(candidates: Sequence, empty, ablation: settings.Ablation) -> list:
    """What a model is to embed for a Classifier: with guidance also what stands for no candidate, None where it has no such.

    Raises ValueError in that case.
    """
    if ablation.guided and empty is None:
        raise ValueError("--guidance needs a model with an empty condition, and this one has classes only: leave it out")
    return [*candidates, *([empty] if ablation.guided else [])]


def _classifier(source, about, candidates, labels, transform, strategy, loss, seed, device, dtype, batch_size, weights_path,
                ablation, empty, space=None) -> Classifier:  # fmt: skip
    """Checks what can be checked, then loads the weights. about: the model's part of a run's identity; empty: of `with_empty`."""
    img_size, embedded = about["img_size"], with_empty(candidates, empty, ablation)
    ablation.check(source.latent_shape(img_size))
    strategy = strategy or Race()
    labels = list(range(len(candidates))) if labels is None else list(labels)
    if len(labels) != len(candidates):
        raise ValueError(f"{len(candidates)} candidates and {len(labels)} labels: give one label each")
    strategy.check(len(candidates), source.n_levels)
    about |= {"weights": source.identity(), "loss": loss} | ablation.identity()
    level_weights = LevelWeights.read(weights_path) if weights_path else None
    if level_weights:
        level_weights.check(belonging(about, loss, source.n_levels, space or source.space))
    strategy.check_run(about | ({"level_weights": level_weights.identity} if level_weights else {}), len(candidates))
    plan = strategy.plan(source.n_levels)
    dtype = devices.resolve_dtype(dtype, device)
    models.check_memory(source, img_size, device, dtype, batch_size, strategy.price(plan, len(candidates)))
    models.check_prompts(source, candidates, labels, candidates)
    denoiser = models.load(source, device, dtype, space=space)
    from diffusion import kernel

    batch = kernel.Batch(batch_size)
    bank = shaped(Seeded(seed), ablation.kind)
    return Classifier(denoiser, denoiser.embed(embedded), labels, strategy, plan, loss, bank, batch, transform, level_weights,
                      ablation)  # fmt: skip
