"""A custom model in a Python file of the user's: `my_model.py:load`, whose load(device, dtype) returns a `Denoiser`.

docs/own_model.md is the contract. Nothing is known of such a model without running its file, so the file is run when its source
is found, and the model is tried once at the run's size before any work begins.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from diffusion.models.source import ModelError, Source
from diffusion.utils.files import fingerprint, hash_files, one_line

if TYPE_CHECKING:  # which import torch
    from types import ModuleType

    from torch import Tensor

    from diffusion.models.denoiser import Conditions, Denoiser, Levels

PARTS = ("encode", "embed", "predict", "levels")  # of a Denoiser, without which nothing works
TRIED = 3  # candidates that are embedded by themselves, too


def is_python_file(model_path: str | None) -> TypeGuard[str]:
    """Whether this names a Python file, with or without a function."""
    return model_path is not None and _split(model_path)[0].suffix == ".py"


def name_of(model_path: str) -> str:
    """The name of the model in run folders: the file's name without its ending."""
    return _split(model_path)[0].stem


def _split(model_path: str) -> tuple[Path, str]:
    """`my_model.py:load` -> (file, function); `load` where no function is named."""
    file, colon, function = model_path.rpartition(":")
    return (Path(file), function) if colon and file.endswith(".py") else (Path(model_path), "load")


@dataclass(frozen=True)
class CustomModel(Source):
    """A Python file, and the Denoiser that its function returned.

    Attributes:
        file: the Python file.
        denoiser: as the file made it, not tried yet.
        img_size: pixels a side: those that are requested, else IMG_SIZE of the file; None where neither is there.
        num_classes: NUM_CLASSES of the file, of a class-conditional model.
    """

    file: Path
    denoiser: Denoiser
    img_size: int | None = None
    num_classes: int | None = None

    @classmethod
    def find(cls, model_path: str, img_size: int | None, device: str, dtype: str) -> CustomModel:
        """Run the file.

        Args:
            model_path: `my_model.py:load`, or without the function where that is called load.
            img_size: pixels a side; None: those that the file states.
            device: torch's name, passed on to the function.
            dtype: torch's name of the network's number format, passed on as a torch.dtype.

        Raises:
            ValueError: the file cannot be run, or its function returns no Denoiser; with the line of the file.
        """
        from diffusion.models.speed import devices

        file, name = _split(model_path)
        if not file.is_file():
            raise ValueError(f"--model_path {model_path}: there is no file {file}")
        sys.path.insert(0, str(file.resolve().parent))  # for its neighbours
        try:
            module = _run(file)
            function = getattr(module, name, None)
            if not callable(function):
                raise ValueError(f"--model_path {model_path}: {file} has no function {name}(device, dtype)")
            denoiser = _call(file, f"{name}(device, dtype)", function, device, devices.torch_dtype(dtype))
        finally:
            sys.path.pop(0)
        stated, num_classes = (_stated_size(file, module, name) for name in ("IMG_SIZE", "NUM_CLASSES"))
        return cls(file, checked(file, denoiser), img_size or stated, num_classes)

    @property
    def default_size(self) -> int:
        if self.img_size is None:
            raise ValueError(f"--img_size is needed: {self.file} does not say what its model was trained on (IMG_SIZE = 32)")
        return self.img_size

    @property
    def n_levels(self) -> int:
        return len(self.denoiser.levels)

    @property
    def space(self) -> str:
        return self.denoiser.space

    @property
    def learned_variance(self) -> bool:
        return self.denoiser.terms is not None

    def describe(self) -> str:
        return f"{self.file} ({self.n_levels} noise levels, errors of {self.denoiser.space})"

    @cached_property
    def _identity(self) -> str:
        code = list(_code(self.file.resolve()))
        named = sorted({path for file in code for path in _named_files(file)})
        root = self.file.resolve().parent
        inside = [path for path in (*code, *named) if path.is_relative_to(root)]
        outside = [hash_files(path.parent, [path]) for path in named if not path.is_relative_to(root)]
        return fingerprint(hash_files(root, sorted(set(inside))), *outside)

    def identity(self) -> str:
        """The hash of the file, of the neighbours that it imports, and of the files that any of them names."""
        return self._identity

    def latent_shape(self, img_size: int) -> tuple[int, int, int]:
        """(C, h, w) of what the file's `encode` makes of an image of this size. Raises ValueError where that is no latent."""
        import torch

        image = torch.linspace(-1, 1, 3 * img_size * img_size).view(3, img_size, img_size)
        x0 = _call(self.file, f"encode of an image [3,{img_size},{img_size}]", self.denoiser.encode, image)
        if not torch.is_tensor(x0) or x0.ndim != 3 or x0.dtype != torch.float32:
            raise _wrong(self.file, "encode", _kind(x0), "float32 [C,h,w]")
        if not x0.isfinite().all():
            raise _wrong(self.file, "encode", "numbers that are not finite", "float32 [C,h,w]")
        channels, height, width = x0.shape
        return channels, height, width

    def load(self, device: str, dtype: str, compile: bool = False, plain: bool = False) -> Denoiser:
        """The Denoiser, which is tried when it embeds its candidates."""
        from diffusion.models.speed import tuning

        denoiser = self.denoiser
        if compile:
            denoiser = replace(denoiser, predict=tuning.compiled(denoiser.predict, device))
        shared = denoiser.shared and self._watched("shared", denoiser.shared, self._of_shared)
        predict = self._watched("predict", denoiser.predict, lambda x_t, *_: self._of_predict(x_t))
        latent_shape = cache(self.latent_shape)
        encode = self._watched("encode", denoiser.encode, lambda image: latent_shape(image.shape[-1]))
        return replace(denoiser, encode=encode, embed=partial(self._embed, device=device), predict=predict, shared=shared)

    def _watched(self, name: str, function: Callable, shape_of: Callable[..., tuple[int, ...]]) -> Callable:
        """The function, of which every output is checked. It raises ModelError for another shape, which might broadcast to wrong
        numbers, and for whatever the file's code raises but a lack of the GPU's memory."""
        import torch

        def call(*inputs: Any) -> Any:
            try:
                output = _call(self.file, name, function, *inputs)
            except ValueError as error:
                raise ModelError(str(error)) from None
            wanted = shape_of(*inputs)
            if not torch.is_tensor(output) or output.shape != wanted:
                raise ModelError(str(_wrong(self.file, name, _kind(output), f"[{','.join(map(str, wanted))}]")))
            return output

        return call

    def _of_predict(self, x_t: Tensor, n: int | None = None) -> tuple[int, ...]:
        """The shape of predictions; n: how many, None: one for each of x_t."""
        channels = x_t.shape[1] * (2 if self.learned_variance else 1)
        return (len(x_t) if n is None else n, channels, *x_t.shape[2:])

    def _of_shared(self, x_t: Tensor, t: Tensor, conditions: Conditions, latent: Tensor | None) -> tuple[int, ...]:
        return self._of_predict(x_t, len(conditions) * (len(t) if latent is None else 1))

    def _embed(self, candidates: Sequence[Any], device: str) -> Conditions:
        """Conditions of all candidates, after a check of them and of one evaluation with them."""
        conditions = self._rows_of(candidates)
        some = list(range(min(TRIED, len(candidates))))[::-1]
        alone = self._rows_of([candidates[row] for row in some])
        for field in fields(conditions):
            whole, part = getattr(conditions, field.name), getattr(alone, field.name)
            if whole is not None and not _close(whole[some], part):
                raise ValueError(f"{self.file}: embed gives other {field.name} for a part of the candidates than for all of them")
        self._try(conditions, device)
        return conditions

    def _rows_of(self, candidates: Sequence[Any]) -> Conditions:
        """Conditions with a row for each candidate. Raises ValueError where the file's `embed` gives something else."""
        from diffusion.models.denoiser import Conditions

        rows = _call(self.file, f"embed of {len(candidates)} candidates", self.denoiser.embed, list(candidates))
        if not isinstance(rows, Conditions):
            raise _wrong(self.file, "embed", _kind(rows), "diffusion.models.denoiser.Conditions")
        lengths = {f.name: len(part) for f in fields(rows) if (part := getattr(rows, f.name)) is not None}
        other = next((name for name, n in lengths.items() if n != len(candidates)), None)
        if not lengths or other:
            given = f"{lengths[other]} rows of {other}" if other else "nothing"
            raise _wrong(self.file, "embed", given, f"a row for each of {len(candidates)} candidates")
        return rows

    def _try(self, conditions: Conditions, device: str) -> None:
        """Check one call on two equal inputs: its shape, its numbers, and that equal inputs give equal outputs."""
        import torch

        shape, levels = self.latent_shape(self.default_size), self.denoiser.levels
        t = torch.full((2,), len(levels) // 2, dtype=torch.int64, device=device)
        noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(device).expand(2, -1, -1, -1)
        x_t = levels.add_noise(torch.zeros_like(noise), noise, t)
        with torch.inference_mode():
            output = _call(self.file, "predict", self.denoiser.predict, x_t, t, conditions[[0, 0]])
        whole = (shape[0] * (2 if self.learned_variance else 1), *shape[1:])
        wanted = f"[2,{','.join(map(str, whole))}], as encode's latents" + " twice" * self.learned_variance
        if not torch.is_tensor(output) or tuple(output.shape) != (2, *whole) or not output.is_floating_point():
            raise _wrong(self.file, "predict", _kind(output), wanted)
        if not output.isfinite().all():
            raise _wrong(self.file, "predict", "numbers that are not finite", wanted)
        if not _close(output[:1], output[1:]):
            raise ValueError(f"{self.file}: predict gives different outputs for equal inputs: put the network in eval mode")


# ---------------------------------------------------------------- running the file


def _run(file: Path) -> ModuleType:
    """The module of a file, under a name that no other module has."""
    spec = importlib.util.spec_from_file_location(f"own_model_{file.stem}", file)
    assert spec and spec.loader  # as of every path that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    _call(file, "the file", spec.loader.exec_module, module)
    return module


def _call(file: Path, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of function(*arguments). Raises ValueError, with the line of the file, for whatever it raises."""
    import torch

    try:
        result = function(*arguments)
        if inspect.iscoroutine(result):
            result.close()  # or the interpreter would complain at its end
            raise TypeError("it is an async function, and has to be a plain one")
        return result
    except torch.OutOfMemoryError:  # for which the kernel has smaller calls
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and may not end the run
        lines = [frame.lineno for frame in _frames(error) if Path(frame.filename).resolve() == file.resolve()]
        where = f"{file}, line {lines[-1]}" if lines else str(file)
        hidden = _hidden(file, error)
        raise ValueError(f"{where}: {what} failed ({type(error).__name__}: {one_line(error)[:200]}){hidden}") from None


def _hidden(file: Path, error: BaseException) -> str:
    """What is to be said where a neighbour of the file has the name of a package of this project, which is imported instead."""
    name = (getattr(error, "name", None) or "").partition(".")[0] if isinstance(error, ImportError) else ""
    ours, beside = Path(__file__).parents[3] / name, file.resolve().parent / name
    if not name or not ours.is_dir() or not beside.exists() or beside == ours:
        return ""
    return f": the folder {name} beside it hides behind this project's: rename it"


def _frames(error: BaseException):
    import traceback

    return traceback.extract_tb(error.__traceback__)


def checked(file: Path, returned: object) -> Denoiser:
    """What the file's function returned, as a Denoiser whose parts are all there.

    Raises:
        ValueError: it is none, or a part is lacking or of another kind; with the part's name.
    """
    from diffusion.models.denoiser import Denoiser, Levels
    from diffusion.settings import SPACES

    if not isinstance(returned, Denoiser):
        raise _wrong(file, "load", _kind(returned), f"diffusion.models.denoiser.Denoiser, made of {', '.join(PARTS)}")
    lacking = next((name for name in PARTS[:3] if not callable(getattr(returned, name))), None)
    if lacking:
        raise _wrong(file, f"{lacking} of the Denoiser", _kind(getattr(returned, lacking)), "a function")
    if not isinstance(returned.levels, Levels):
        raise _wrong(file, "levels of the Denoiser", _kind(returned.levels), "diffusion.models.denoiser.Levels")
    if returned.space not in SPACES:
        raise _wrong(file, "space of the Denoiser", repr(returned.space), f"one of {', '.join(SPACES)}")
    _check_levels(file, returned.levels)
    return returned


def _check_levels(file: Path, levels: Levels) -> None:
    """Check that tables are of one length, finite, and have noise at every level: without any, all candidates look alike."""
    import torch

    tables = {"signal": levels.signal, "sigma": levels.sigma} | ({} if levels.times is None else {"times": levels.times})
    for name, table in tables.items():
        if not torch.is_tensor(table) or table.ndim != 1 or not len(table) or len(table) != len(levels.signal):
            raise _wrong(file, f"levels.{name}", _kind(table), "[T], as long as levels.signal")
        if not table.double().isfinite().all():
            raise _wrong(file, f"levels.{name}", "numbers that are not finite", "[T]")
    if (levels.sigma <= 0).any():
        least = f"{levels.sigma.min():g} at level {int(levels.sigma.argmin())}"
        raise _wrong(file, "levels.sigma", least, "noise at every level")


def _stated_size(file: Path, module: ModuleType, name: str) -> int | None:
    """A size that the file states under this name; None where it states none. Raises ValueError for one that is no size."""
    value = getattr(module, name, None)
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{file}: {name} is {value!r}, and has to be a whole number from 1 on")
    return value


def _wrong(file: Path, what: str, given: str, wanted: str) -> ValueError:
    return ValueError(f"{file}: {what} gives {given}, and has to give {wanted}")


def _kind(value: object) -> str:
    """The dtype and shape of a tensor or array, the type of anything else, for an error."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def _close(one: Any, other: Any) -> bool:
    """Whether two tensors are equal up to what another batch size changes of a network's rounding."""
    import torch

    if one is None or other is None or one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return bool((one == other).all())
    scale = one.abs().max().clamp_min(1e-6)
    return bool(torch.allclose(one.float() / scale, other.float() / scale, rtol=0, atol=1e-2 if one.element_size() < 4 else 1e-3))


# ---------------------------------------------------------------- what its numbers depend on


def _code(file: Path, seen: set[Path] | None = None) -> Iterator[Path]:
    """The file, and the neighbours in its folder that it imports, and that these import. Raises ValueError for bad syntax."""
    seen = set() if seen is None else seen
    seen.add(file)
    yield file
    for name in _imports(file):
        for other in _modules(file.parent, name):
            if other not in seen:
                yield from _code(other, seen)


def _imports(file: Path) -> Iterator[str]:
    """Dotted names that a file imports, at its top or inside a function."""
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield from (f"{base}.{alias.name}".strip(".") for alias in node.names)


def _modules(folder: Path, name: str) -> Iterator[Path]:
    """The files below a folder that importing `a.b.c` may run: a.py, a/__init__.py, a/b.py, ..."""
    parts = name.split(".")
    for n in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:n])
        yield from (path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file())


def _named_files(file: Path) -> Iterator[Path]:
    """Files whose names stand in the code as a text: weights, configs. Relative ones lie beside the file or where it is run."""
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) < 300:
            try:
                named = next((p for p in (file.parent / node.value, Path(node.value)) if p.is_file()), None)
            except (OSError, ValueError):  # a text that is no path
                continue
            if named:
                yield named.resolve()


def _parsed(file: Path) -> ast.Module:
    """The syntax tree of a file. Raises ValueError, with the line, for bad syntax."""
    try:
        return ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise ValueError(f"{file}, line {error.lineno}: {error.msg}") from None
