"""One image -> one result: a diffusion model as a classifier. Prints nothing, reads no environment, writes no file.

from diffusion import classify

classifier = classify.text_to_image("tiny", ["a photo of a bag.", "a photo of a boot."])
result = classifier(image)  # PIL, of any size and mode
result.top(3)  # (prompt, mean error) of the best, best first
result.ranking, result.means, result.evaluations, result.plot()
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from diffusion import models, settings
from diffusion.datasets import transforms
from diffusion.datasets.images import Transform
from diffusion.datasets.pictures import Given, checked_tensor, picture_of
from diffusion.kernel import batching, scores
from diffusion.kernel.noise import NoiseSource, Seeded, shaped
from diffusion.metrics import calibration, curves
from diffusion.models.source import Source
from diffusion.models.speed import devices
from diffusion.strategy import Race, Strategy
from diffusion.strategy.base import Elimination
from diffusion.strategy.elimination import NEVER, Errors, Request, append_errors, drive, means_of, relay
from diffusion.strategy.level_weights import LevelWeights, belonging, by_weighted_errors, weighted
from diffusion.strategy.method import Method
from diffusion.strategy.schedule import Plan
from diffusion.utils import drawing
from diffusion.utils.arguments import check_choices, check_numbers, labels_of, list_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from diffusion.kernel.blocks import Batch
    from diffusion.models.denoiser import Conditions, Denoiser

Candidates = list[Any]  # prompts str or class ids int, as the model's `embed` takes
Label = TypeVar("Label")  # what comes with an image, and is given back with its result


@dataclass(frozen=True, repr=False)
class Result:
    """What a classifier found out about one image.

    class_of: label of each of the K candidates; winner: the row that won
    errors: row -> float32 [n], in order of evaluation; a candidate that was dropped has fewer, one that was never tried none
    t: int64 [S], the levels of all pairs in that order, of which a candidate has seen the beginning
    dropped: row -> round in which it was dropped, None where rounds mean nothing
    terms: float32 [K,S,4] mse, l1, kl, nll of every evaluation of a DiT whose candidates all saw everything, else None
    seconds: of wall clock; level_weights: by which errors are multiplied before they are compared
    empty: evaluations under the empty condition, of guidance; names: label -> its name, where there are any
    """

    class_of: Sequence[int]
    winner: int
    errors: dict[int, Errors]
    t: npt.NDArray[np.int64]
    dropped: dict[int, int] | None = None
    terms: "Tensor | None" = None
    seconds: float | None = None
    level_weights: LevelWeights | None = None
    empty: int = 0
    names: Mapping[int, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        (name, error), *others = self.top(2)
        before = f" before {others[0][0]!r}" if others else ""
        return f"<Result: {name!r}{before}, mean error {error:.6f}, {self.evaluations:,} network evaluations>"

    @property
    def label(self) -> int:
        """The predicted one."""
        return self.class_of[self.winner]

    @property
    def evaluations(self) -> int:
        """Network evaluations spent."""
        return sum(map(len, self.errors.values())) + self.empty

    @cached_property
    def compared(self) -> list[Errors]:
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
        best: dict[int, int] = {}
        for row in rows:
            best.setdefault(self.class_of[row], row)
        return best

    @property
    def ranking(self) -> list[int]:
        """Labels, best first; a class has the place of its best candidate."""
        return list(self.best_rows)

    def name(self, label: int) -> str:
        """What a label is called.

        Args:
            label: one of the classifier's labels.

        Returns:
            its name, or the label itself where the classifier was given no names.
        """
        return self.names.get(label, str(label))

    def top(self, n: int) -> list[tuple[str, float]]:
        """The n best labels, best first; of those that were dropped by what they have seen.

        Args:
            n: how many, at most as many as there are.

        Returns:
            (name, mean error) of each.
        """
        return [(self.name(label), float(self.means[row])) for label, row in list(self.best_rows.items())[:n]]

    def plot(self, n: int = 5, axis: "Axes | None" = None) -> "Axes":
        """Draws how far errors of the n best labels lie above the winner's at each timestep that both have seen.

        Args:
            n: how many labels, the winner among them.
            axis: matplotlib's, to draw on; None: a new one.

        Returns:
            The axis.
        """
        axis = axis or drawing.pyplot().subplots(figsize=(7, 4.2), layout="constrained")[1]
        best = self.compared[self.winner]
        shown = list(self.best_rows.items())[:n]
        lines = [(self.name(label), *curves.difference_by_t(self.compared[row], best, self.t)) for label, row in shown]
        drawing.draw_differences(axis, lines)
        axis.set_title(f"{self.name(self.label)}: {self.evaluations:,} network evaluations")
        axis.legend()
        return axis

    def probabilities(self, fit: calibration.Fit) -> dict[int, float]:
        """Calibrated probabilities of the labels.

        Args:
            fit: what scripts/calibrate.py wrote on a run with this model and loss.

        Returns:
            label -> probability; they add up to 1.
        """
        return calibration.probabilities(self.compared, self.winner, list(self.class_of), fit)


class Round(NamedTuple):
    """alive: rows that go on, at the end those that nobody beat; result: by what was seen so far, and who was dropped when."""

    alive: list[int]
    result: Result


@dataclass
class _Seen:
    """What a call's rounds have evaluated. guided: conditions before the candidates, 0 or 1."""

    guided: int
    errors: dict[int, Errors] = field(default_factory=dict)
    dropped: dict[int, int] = field(default_factory=dict)
    rounds: int = 0
    empty: int = 0

    @property
    def alive(self) -> list[int]:
        return [row for row in self.errors if row not in self.dropped]

    def drop_others(self, rows: Sequence[int]) -> None:
        self.dropped |= {row: self.rounds for row in self.alive if row not in rows}

    def add(self, rows: Sequence[int], new: npt.ArrayLike) -> None:
        """Errors [len(rows), n]."""
        self.errors |= {row: NEVER for row in rows if row not in self.errors}
        append_errors(self.errors, list(rows), new)
        self.rounds, self.empty = self.rounds + 1, self.empty + self.guided * np.shape(new)[1]


@dataclass(frozen=True)
class Classifier:
    """A denoiser with its candidates, a method and a source of noise.

    denoiser: models.denoiser.Denoiser; conditions: of the K candidates, and with guidance the empty one after them
    class_of: the label of each candidate
    method: which pairs are evaluated, by which error, and which candidates are dropped
    noise: a source of `diffusion.kernel.noise`: (index, plan, [C,h,w], pairs) -> noise [n,C,h,w] of the image with this index,
        of the method's kind
    batch: kernel.Batch, the evaluations per call of the network
    transform: PIL image -> float32 [3,H,W] in [-1,1]
    rows_of: index -> rows of the candidates that compete for the image with this index; None: all do for every image
    names: label -> its name, which results give

    Raises ValueError for a strategy that cannot do with these candidates.
    """

    denoiser: "Denoiser"
    conditions: "Conditions"
    class_of: Sequence[int]
    method: Method
    noise: NoiseSource
    batch: "Batch"
    transform: Transform | None = None
    rows_of: Callable[[int], Sequence[int]] | None = None
    names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        strategy = self.method.strategy.bind(self.class_of, self.conditions.embeddings)
        object.__setattr__(self, "method", replace(self.method, strategy=strategy))

    @cached_property
    def plan(self) -> Plan:
        """All pairs in order of evaluation, on the denoiser's levels."""
        return self.method.strategy.plan(len(self.denoiser.levels))

    def __call__(self, image: "Given | Tensor", index: int = 0) -> Result:
        """The result for an image.

        Args:
            image: PIL, a path, an array uint8 [H,W,3], or what the transform makes of it, float32 [3,H,W] in [-1,1].
            index: of its noise, where every image has its own.

        Raises:
            FloatingPointError: an error is not finite.
            OSError: a file that cannot be read. ValueError: what is no picture.
        """
        return drive(self._classification(image, index), self._errors)

    def rounds(self, image: "Given | Tensor", index: int = 0) -> Iterator[Round]:
        """A call, round by round; not iterating to the end stops it.

        Args:
            image, index: as of a call.

        Returns:
            an iterator that gives a Round before every further request of the strategy, and one at the end, whose result is that
            of the call, bit by bit.

        Raises:
            ValueError: as a call, when the first Round is asked for.
        """
        start, seen = time.perf_counter(), _Seen(int(self.method.ablation.guided))

        def ask(cells: batching.Cells) -> "Generator[Round, None, Tensor]":
            rows = cells.rows[seen.guided :]
            if self.method.strategy.TRIES_ALL:  # else those that are not requested need not be dropped, as others are catching up
                seen.drop_others(rows)
            if seen.rounds:
                yield Round(seen.alive, self._leading(seen, time.perf_counter() - start))
            errors = self._errors(cells)
            seen.add(rows, self._scoring(cells.x0)[1](errors[seen.guided :], cells.t))
            return errors

        result = yield from relay(self._classification(image, index), ask)
        alive = [result.winner] if result.dropped is None else [row for row in seen.errors if row not in result.dropped]
        yield Round(alive, result)

    def _leading(self, seen: "_Seen", seconds: float) -> Result:
        """The result by these errors, whatever is to come."""
        errors, dropped = dict(seen.errors), dict(seen.dropped)
        result = Result(self.class_of, 0, errors, self.plan.t, dropped, None, seconds, self.method.level_weights, seen.empty,
                        self.names)  # fmt: skip
        return replace(result, winner=next(iter(result.best_rows.values())))

    def several(
        self, images: "Iterable[tuple[int, Given | Tensor, Label]]", n: int, most: int = 2**31
    ) -> Iterator[tuple[int, Callable[[], Result], Label]]:
        """n images at once, which share calls of the network.

        One at a time is `__call__`, bit by bit. Of several the errors are the same up to rounding (1e-5 of each was tested), as a
        call's other inputs move their last bits; seconds are then from an image's start to its end, beside the others.

        Args:
            images: (index, image, label) of each, as of a call.
            n: how many share calls.
            most: how many may be held at once, where that is fewer.

        Returns:
            an iterator over (index, call, label) as images end, where call() is the Result, or raises what `__call__` would.
        """
        if min(n, most) <= 1:
            yield from ((index, partial(self, image, index), label) for index, image, label in images)
            return
        begun = (((index, label), self._classification(image, index)) for index, image, label in images)
        for (index, label), call in batching.together(begun, min(n, most), lambda: self.batch.size, self._cell_errors):
            yield index, call, label

    def _classification(self, image: "Given | Tensor", index: int) -> batching.Classification[Result]:
        """One image: yields batching.Cells, is sent their errors [R,S,...], returns the Result."""
        start, guided = time.perf_counter(), int(self.method.ablation.guided)
        x0, t = self._given(image)
        pick = self._scoring(x0)[1]
        competing = list(self.rows_of(index)) if self.rows_of else list(range(len(self.class_of)))
        kept: list[Tensor] = []  # all that the kernel returned

        def ask(request: Request) -> "Generator[batching.Cells, Tensor, Tensor]":
            rows, pairs = request
            kept.append((yield self._cells(x0, t, index, [competing[row] for row in rows], pairs))[guided:])
            return pick(kept[-1], t[pairs])

        errors, winner, dropped = yield from relay(self._elimination(competing), ask)
        errors = {competing[row]: row_errors for row, row_errors in errors.items() if len(row_errors)}
        dropped = None if dropped is None else {competing[row]: number for row, number in dropped.items()}
        terms = kept[0] if self.denoiser.terms and kept[0].shape[:2] == (len(self.class_of), len(t)) else None
        empty, seconds = guided * sum(values.shape[1] for values in kept), time.perf_counter() - start
        weights = self.method.level_weights
        return Result(self.class_of, competing[winner], errors, self.plan.t, dropped, terms, seconds, weights, empty, self.names)

    def _elimination(self, competing: list[int]) -> Elimination:
        """The strategy's elimination among these rows of the candidates."""
        strategy, class_of = self.method.strategy.restrict(competing), [self.class_of[row] for row in competing]
        elimination, weights = strategy.eliminate(class_of, self.plan), self.method.level_weights
        return by_weighted_errors(elimination, weights, self.plan.t) if weights else elimination

    def _cells(self, x0: "Tensor", t: "Tensor", index: int, rows: Sequence[int], pairs: slice) -> batching.Cells:
        """All candidates `rows`, with guidance the empty condition first, on all these pairs of an image."""

        def noise(part: slice) -> "Tensor":
            some = range(len(t))[pairs][part]
            return self.noise(index, self.plan, x0.shape, slice(some.start, some.stop))

        rows = self._rows(rows)
        return batching.Cells(x0, rows, t[pairs], noise, range(len(rows) * len(t[pairs])))

    def _rows(self, candidates: Sequence[int]) -> list[int]:
        """Rows of the conditions that the kernel is given."""
        return [*([len(self.class_of)] if self.method.ablation.guided else []), *candidates]

    def _scoring(self, x0: "Tensor") -> tuple[scores.Score, scores.Pick]:
        return scores.scoring(self.method.loss, self.denoiser, x0, self.method.ablation.crop_errors)

    @property
    def _guidance(self) -> float:
        return self.method.ablation.guidance

    def _errors(self, cells: batching.Cells) -> "Tensor":
        """Errors of cells of one image, in blocks: float32 [R,S,...]."""
        from diffusion.kernel import blocks

        score, noise, conditions = self._scoring(cells.x0)[0], cells.noise(slice(None)), self.conditions[cells.rows]
        return blocks.errors(self.denoiser, cells.x0, conditions, cells.t, noise, score, self.batch, self._guidance)

    def _cell_errors(self, requested: Sequence[batching.Cells]) -> "list[Tensor]":
        """Errors of cells of several images, one piece for each."""

        def score_of(x0: "Tensor") -> scores.Score:
            return self._scoring(x0)[0]

        return batching.cell_errors(self.denoiser, requested, self.conditions, score_of, self.batch, self._guidance)

    def error_maps(self, image: "Given | Tensor", rows: Sequence[int], index: int = 0) -> "Tensor":
        """`error_maps` of some candidates on the whole plan.

        Args:
            image, index: as of a call.
            rows: the candidates.

        Returns:
            float32 [len(rows),h,w].

        Raises:
            ValueError: as a call.
        """
        x0, t = self._given(image)
        noise = self.noise(index, self.plan, x0.shape)
        conditions = self.conditions[self._rows(rows)]
        return error_maps(self.denoiser, x0, conditions, t, noise, self.batch, self.method.level_weights, self.method.ablation)

    def _given(self, image: "Given | Tensor") -> "tuple[Tensor, Tensor]":
        """x0 [C,h,w] of an image, and the levels [S] of the plan."""
        import torch

        if isinstance(image, torch.Tensor):
            given = checked_tensor(image)
        else:
            assert self.transform is not None, "a classifier without a transform is given tensors"
            given = self.transform(picture_of(image))
        return self.denoiser.encode(given), torch.from_numpy(self.plan.t)


def error_maps(
    denoiser: "Denoiser",
    x0: "Tensor",
    conditions: "Conditions",
    t: "Tensor",
    noise: "Tensor",
    batch: "Batch",
    level_weights: LevelWeights | None = None,
    ablation: settings.Ablation = settings.NO_ABLATION,
) -> "Tensor":
    """Squared errors of K candidates at every latent position, the mean over S pairs, each times its level's weight.

    Args:
        denoiser, x0, t, noise, batch: as of `kernel.errors`.
        conditions: of the candidates; with guidance the empty one first, which has no map.
        level_weights: what each level's errors are multiplied by; None: 1.
        ablation: its guidance and crop count; a border that is left out of errors is 0.

    Returns:
        float32 [K,h,w] of one latent [C,h,w], [K,M,h,w] of M latents.
    """
    import torch

    from diffusion.kernel import blocks

    maps = blocks.errors(denoiser, x0, conditions, t, noise, scores.error_map, batch, ablation.guidance)
    if level_weights is not None:
        maps = maps * torch.from_numpy(level_weights.table[t.numpy()])[:, None, None]
    maps, n = maps.mean(-3)[int(ablation.guided) :], ablation.crop_errors
    return torch.nn.functional.pad(scores.inner(maps, n), (n, n, n, n))


def text_to_image(
    version: str,
    prompts: Sequence[str],
    labels: Sequence[int] | None = None,
    *,
    model_path: str | None = None,
    config: str | None = None,
    strategy: Strategy | None = None,
    loss: str = "l2",
    level_weights: str | None = None,
    seed: int = 0,
    img_size: int | None = None,
    interpolation: str = "bicubic",
    error_space: str | None = None,
    levels: str = "own",
    text_encoders: str = "all",
    lora: Sequence[str] = (),
    embedding: Sequence[str] = (),
    guidance: float = 0.0,
    crop_errors: int = 0,
    noise: str = "normal",
    device: str | None = None,
    dtype: str = "auto",
    batch_size: int = 32,
) -> Classifier:
    """A classifier by prompts.

    Args:
        version: 1-1 ... 2-1, sdxl, tiny, ... (docs/models.md); any name with model_path.
        prompts: one candidate each.
        labels: of each prompt, integers from 0; None: its place.
        model_path: pipeline folder, hub id, single file or Python file in place of the version's weights.
        config: pipeline folder or hub id of a single file's configs; None: the version's.
        strategy: an object of diffusion.strategy; None: a race with its defaults, on as many timesteps as the model has.
        loss: a name in kernel.scores.SCORES.
        level_weights: file of scripts/fit_weights.py.
        seed: of the noise, 0 .. 2**64 - 1.
        img_size: pixels a side; None: what the model was trained on.
        interpolation: of the resize, of transforms.INTERPOLATIONS.
        error_space: epsilon, x0 or velocity; None: the model's own.
        levels: of a flow, own, uniform, shift3 or logit-normal.
        text_encoders: all, or clip: without T5, where the model can do without.
        lora: PATH or PATH@SCALE each, fused in this order.
        embedding: of textual inversion, PATH or PATH@TOKEN each.
        guidance: W of classifier-free guidance (figure 8); 0: none.
        crop_errors: border latents that are left out of errors (figure 9).
        noise: normal, zero, truncated:A, clipped:A or expected_norm (Table 12).
        device: torch's name; None: cuda if there is one, else cpu.
        dtype: of the network; auto: float16 on CUDA, else float32.
        batch_size: network inputs per call.

    Returns:
        The classifier, with its weights loaded and its prompts embedded.

    Raises:
        ValueError: settings that do not fit each other, the model or the device.
        OSError: weights that are not there.
    """
    dtypes = ("auto", *devices.DTYPES)
    check_choices(loss=(loss, scores.SCORES), interpolation=(interpolation, transforms.INTERPOLATIONS), dtype=(dtype, dtypes))
    check_numbers(seed=seed, batch_size=batch_size, img_size=img_size)
    prompts, labels = list_of("prompts", prompts, str), labels_of(labels)
    device, ablation = devices.resolve_device(device), settings.Ablation(guidance, crop_errors, noise)
    requested = settings.TextToImage(
        img_size=img_size, text_encoders=text_encoders, levels=levels, lora=lora, embedding=embedding, config=config
    ).options
    source = models.text_to_image(version, model_path, requested, device, devices.resolve_dtype(dtype, device))
    img_size = img_size or source.default_size
    transform = transforms.sd_transform(img_size, interpolation)
    space = error_space if error_space != source.space else None
    about = settings.TextToImage(img_size=img_size, interpolation=interpolation, error_space=space, levels=levels,
                                 text_encoders=text_encoders).identity()  # fmt: skip
    labels = list(range(len(prompts)) if labels is None else labels)
    strategy = strategy or Race().within(source.n_levels)
    method = Method(strategy, loss, LevelWeights.read(level_weights) if level_weights else None, ablation)
    setup = Setup(source, about, prompts, labels, models.EMPTY_PROMPT, method, transform, seed, device,
                  devices.resolve_dtype(dtype, device), batch_size, error_space)  # fmt: skip
    setup.check()
    return setup.load()


def class_conditional(
    model: str,
    classes: Sequence[int] | None = None,
    labels: Sequence[int] | None = None,
    *,
    model_path: str | None = None,
    vae_path: str | None = None,
    strategy: Strategy | None = None,
    loss: str = "l2",
    level_weights: str | None = None,
    seed: int = 0,
    img_size: int | None = None,
    error_space: str | None = None,
    guidance: float = 0.0,
    crop_errors: int = 0,
    noise: str = "normal",
    device: str | None = None,
    dtype: str = "auto",
    batch_size: int = 32,
) -> Classifier:
    """A classifier by the classes that a DiT was trained on.

    Args:
        model: tiny, or a published shape such as DiT-XL/2.
        classes: the candidates, of the model's own; None: all of them.
        labels: of each class, integers from 0; None: the class itself.
        model_path: checkpoint, diffusers folder or Python file; None: the published weights.
        vae_path: VAE folder or hub id; None: the published one.
        loss: a name in kernel.scores.TERMS: l2, l1, huber, kl or vlb.
        strategy, level_weights, seed, img_size, error_space, guidance, crop_errors, noise, device, dtype, batch_size: as in
            `text_to_image`; a model whose variance is learned has one error space only.

    Returns:
        The classifier, with its weights loaded.

    Raises:
        ValueError: a class that the model lacks, and as `text_to_image`.
        OSError: weights that are not there.
    """
    check_choices(loss=(loss, scores.TERMS), dtype=(dtype, ("auto", *devices.DTYPES)))
    check_numbers(seed=seed, batch_size=batch_size, img_size=img_size)
    labels = labels_of(labels)
    device, ablation = devices.resolve_device(device), settings.Ablation(guidance, crop_errors, noise)
    source = models.class_conditional(model, model_path, img_size, vae_path, device, devices.resolve_dtype(dtype, device))
    if classes is None:
        if source.num_classes is None:
            raise ValueError(f"classes are needed: {source.describe()} does not say how many it has (NUM_CLASSES = 10)")
        classes = range(source.num_classes)
    classes = list_of("classes", classes, int)
    strange = next((c for c in classes if c < 0 or c >= (source.num_classes or c + 1)), None)
    if strange is not None or len(set(classes)) < len(classes):
        wrong = "name one twice" if strange is None else f"has {strange}, and the model's are 0..{(source.num_classes or 1) - 1}"
        raise ValueError(f"classes {wrong}")
    transform = transforms.adm_transform(source.default_size)
    labels = classes if labels is None else labels
    space = error_space if error_space != source.space else None
    about = settings.ClassConditional(img_size=source.default_size, error_space=space).identity()
    strategy = strategy or Race().within(source.n_levels)
    method = Method(strategy, loss, LevelWeights.read(level_weights) if level_weights else None, ablation)
    setup = Setup(source, about, classes, labels, source.null_class, method, transform, seed, device,
                  devices.resolve_dtype(dtype, device), batch_size, error_space)  # fmt: skip
    setup.check()
    return setup.load()


def with_empty(candidates: Candidates, empty: str | int | None, ablation: settings.Ablation) -> Candidates:
    """What a model is to embed for a Classifier: with guidance also what stands for no candidate.

    Args:
        candidates: prompts or class ids.
        empty: what stands for none of them; None where the model has no such.
        ablation: of which the guidance counts.

    Raises:
        ValueError: guidance without an empty condition.
    """
    if ablation.guided and empty is None:
        raise ValueError("--guidance needs a model with an empty condition, and this one has classes only: leave it out")
    return [*candidates, *([empty] if ablation.guided else [])]


@dataclass(frozen=True)
class Setup:
    """A classifier before its weights are loaded.

    source: of the weights; about: the model's part of a run's identity; candidates: what the model embeds, one a label
    empty: what stands for no candidate, None where the model has no such; seed: of the noise; space: in which errors are taken,
        None: the model's own
    """

    source: Source
    about: settings.Identity
    candidates: Candidates
    labels: list[int]
    empty: str | int | None
    method: Method
    transform: Transform
    seed: int
    device: str
    dtype: str
    batch_size: int
    space: str | None = None

    def check(self) -> None:
        """Raises ValueError for settings that do not fit each other, the model or the device."""
        source, method, n, img_size = self.source, self.method, len(self.candidates), self.about["img_size"]
        with_empty(self.candidates, self.empty, method.ablation)
        method.ablation.check(source.latent_shape(img_size))
        if len(self.labels) != n:
            raise ValueError(f"{n} candidates and {len(self.labels)} labels: give one label each")
        method.strategy.check(n, source.n_levels)
        identity = self.about | {"weights": source.identity(), "loss": method.loss} | method.identity()
        if method.level_weights:
            space = self.space or source.space
            method.level_weights.check(belonging(identity, method.loss, source.n_levels, space))
        method.strategy.check_run(identity, n, self.labels)
        evaluations = method.evaluations(source.n_levels, n)
        models.check_memory(source, img_size, self.device, self.dtype, self.batch_size, evaluations)
        models.check_prompts(source, self.candidates, self.labels, self.candidates)

    def load(self) -> Classifier:
        """Loads the weights and embeds the candidates. Raises ValueError or OSError for weights that do not do."""
        from diffusion.kernel import blocks

        denoiser = models.load(self.source, self.device, self.dtype, space=self.space)
        conditions = denoiser.embed(with_empty(self.candidates, self.empty, self.method.ablation))
        bank = shaped(Seeded(self.seed), self.method.ablation.kind)
        names = dict(zip(reversed(self.labels), map(str, reversed(self.candidates)), strict=True))  # a label's first prompt
        batch = blocks.Batch(self.batch_size)
        return Classifier(denoiser, conditions, self.labels, self.method, bank, batch, self.transform, names=names)
