#!/usr/bin/env python
"""Does this device compute what a CPU does? What to run first on a new GPU: offline, on the shipped models.

    python scripts/check_device.py --device cuda
    python scripts/check_device.py --device cpu --images 10 --skip compiled benchmark

Errors of 50 images under three models in every number format, compiled, and of 16 images in flight, against float32 on a CPU; a
run that is killed and continued, and one of torchrun with all GPUs; memory that runs out; speed and memory beside the plain loop
(scripts/benchmark.py), on a GPU also of Stable Diffusion 2 and DiT-XL/2 with random weights. Ends with 1 where something
disagrees. The numbers that ship were made by --write_reference.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import classify, cli, models, settings
from diffusion.cli import parsing
from diffusion.datasets import transforms
from diffusion.datasets.prompts import read_prompts
from diffusion.datasets.shipped import Clothes
from diffusion.kernel.noise import Seeded
from diffusion.models.speed import devices
from diffusion.runs import loop, printing
from diffusion.strategy import Stages
from diffusion.strategy.method import Method
from diffusion.utils import commands, files, outputs, paths

REFERENCE = paths.SHIPPED / "check_device.safetensors"
MODELS = ("tiny", "tiny-sd3", "tiny-dit")
N_LEVELS = 4
MOST_IMAGES = 50
PARTS = ("errors", "compiled", "runs", "memory", "benchmark")
# largest difference of a root mean squared error, in units of the target's, and share of images with another prediction. Of
# roots, as a network's rounding adds to them, however small they are. On CUDA float32 products are TF32: float16's digits.
BOUNDS = {"float32": (1e-4, 0.0), "tf32": (3e-3, 0.04), "float16": (3e-3, 0.04), "bfloat16": (2e-2, 0.1)}
RUN = ("--version", "tiny", "--dataset", "fashion_mnist", "--strategy", "race", "--batch_size", "32")


@dataclass(frozen=True)
class Check:
    """One row of the table. ok: None where it was left out; result: what was measured, for a person; advice: where it failed."""

    name: str
    ok: bool | None
    result: str
    advice: str = ""
    numbers: dict | None = None


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("--device", help="torch's name (default: cuda if there is one, else cpu)")
    parser.add_argument("--images", type=parsing.at_least(1, MOST_IMAGES), default=MOST_IMAGES,
                        help=f"of which errors are compared, at most {MOST_IMAGES} (default: {MOST_IMAGES})")  # fmt: skip
    parser.add_argument("--skip", nargs="+", choices=PARTS, default=[], help="parts to leave out")
    parser.add_argument("-o", "--out", type=outputs.Output(), default=Path("check_device.json"), metavar="FILE",
                        help="all numbers as JSON (default: check_device.json)")  # fmt: skip
    parser.add_argument("--write_reference", type=outputs.Output(), metavar="FILE", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# ---------------------------------------------------------------- errors of the shipped models


def start(model: str, dtype: str, running: settings.Running, n_levels: int = N_LEVELS) -> tuple[classify.Classifier, int]:
    """A classifier that evaluates every class at n_levels timesteps, as a command starts it, and its images in flight."""
    if model == "tiny-dit":
        source, candidates, transform = models.class_conditional("tiny"), list(range(10)), transforms.adm_transform
    else:
        source, candidates = models.text_to_image(model), list(read_prompts("prompts/fashion_mnist_prompts.csv").prompts)
        transform = transforms.sd_transform
    size, useful = source.default_size, len(candidates) * n_levels
    network = loop.start_network(source.load, candidates, source.latent_shape(size), running, dtype, useful)
    method = Method(Stages((1,), (n_levels,), 1))
    labels = list(range(len(candidates)))
    made = classify.Classifier(network.denoiser, network.conditions, labels, method, Seeded(0), network.batch, transform(size))
    return made, network.in_flight


def errors_of(model: str, n: int, dtype: str, running: settings.Running):
    """Errors [n,10,N_LEVELS] float32 of n images, and seconds without the start."""
    import numpy as np
    import torch

    classifier, in_flight = start(model, dtype, running)
    data = Clothes("test")
    step = len(data) // MOST_IMAGES
    images = ((i, *data[i * step]) for i in range(n))
    begin, by_index = time.perf_counter(), {}
    for index, call, _ in classifier.several(images, in_flight):
        by_index[index] = np.stack([errors[:, 0] if errors.ndim > 1 else errors for _, errors in sorted(call().errors.items())])
    return torch.from_numpy(np.stack([by_index[i] for i in range(n)]).astype("float32")), time.perf_counter() - begin


def compared(name: str, dtype: str, ours, reference, seconds: float) -> Check:
    """Errors [n,10,S] against float32 on a CPU."""
    most, flips = BOUNDS[dtype]
    largest = (ours.sqrt() - reference.sqrt()).abs().max().item()
    other = (ours.mean(2).argmin(1) != reference.mean(2).argmin(1)).sum().item()
    ok = largest <= most and other <= flips * len(ours)  # NaN is not
    finding = f"root errors differ by at most {largest:.1e} (bound {most:.0e}), {other} of {len(ours)} predictions differ"
    advice = "this format or path is wrong on this device: take another --dtype, leave out what the row names, and report it"
    numbers = {"largest_difference_of_roots": largest, "bound": most, "other_predictions": other, "n": len(ours)}
    return Check(name, ok, finding, advice, numbers | {"evaluations_per_s": ours.numel() / seconds})


def check_errors(args) -> Iterator[Check]:
    from safetensors.torch import load_file

    reference = load_file(REFERENCE)
    exact = "float32" if args.device == "cpu" else "tf32"
    ways = {
        "float32": ("float32", exact, {}),
        "float16": ("float16", "float16", {}),
        "bfloat16": ("bfloat16", "bfloat16", {}),
        "16 in flight": ("float32", exact, {"images_in_flight": 16}),
        "auto batch": ("float32", exact, {"batch_size": "auto"}),
        "compiled": ("float32", exact, {"compile": True}),
    }
    for model in MODELS:
        for way, (dtype, bound, options) in ways.items():
            if ("compiled" if way == "compiled" else "errors") in args.skip:
                continue
            ours, seconds = errors_of(model, args.images, dtype, settings.Running(device=args.device, **options))
            yield compared(f"{model}, {way}", bound, ours, reference[model][: args.images], seconds)


# ---------------------------------------------------------------- whole runs


class Runs:
    """Runs of the shipped model with a race, each in a folder of its own below `folder`."""

    def __init__(self, args, folder: Path):
        self.n, self.folder = 2 * args.images, folder
        self.words = commands.start_of(("eval_prob_adaptive.py", *RUN, "--device", args.device, "--imgs_to_eval", str(self.n)))

    def start(self, name: str, *launcher: str) -> subprocess.Popen:
        with open(self.folder / f"{name}.txt", "ab") as out:
            environment = os.environ | {"LOG_DIR": str(self.folder / name)}
            return subprocess.Popen([sys.executable, *launcher, *self.words], env=environment, stdout=out, stderr=out)

    def files(self, name: str) -> list[Path]:
        """Records, in order of their images."""
        return sorted((self.folder / name).rglob("*.pt"))

    def records(self, name: str) -> dict:
        import torch

        return {path.name: torch.load(path, weights_only=True) for path in self.files(name)}

    def last_line(self, name: str) -> str:
        lines = (self.folder / f"{name}.txt").read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")[:160]


def same_records(runs: Runs, name: str, code: int, title: str, more: str) -> Check:
    """A run's records against those of the uninterrupted one."""
    whole, other = runs.records("whole"), runs.records(name)
    advice = f"the run said: {runs.last_line(name)}"
    if code or whole.keys() != other.keys():
        return Check(title, False, f"exit code {code}, {len(other)} of {len(whole)} records", advice)
    flips = sum(whole[key]["pred"] != other[key]["pred"] for key in whole)
    return Check(title, flips == 0, f"{len(whole)} records, {flips} other predictions{more}", advice, {"n": len(whole)})


def check_runs(args) -> Iterator[Check]:
    import torch

    folder = Path(tempfile.mkdtemp())
    try:
        runs = Runs(args, folder)
        code = runs.start("whole").wait()
        if code or len(runs.records("whole")) != runs.n:
            yield Check("a run", False, f"exit code {code}", f"the run said: {runs.last_line('whole')}")
            return
        process = runs.start("killed")
        while process.poll() is None and len(runs.files("killed")) < 3:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = len(runs.files("killed"))
        code = runs.start("killed").wait()
        yield same_records(runs, "killed", code, "a run killed and continued", f", killed after {before}")
        n = torch.cuda.device_count() if args.device.startswith("cuda") else 2
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}")
        yield same_records(runs, "torchrun", runs.start("torchrun", *launcher).wait(), f"torchrun with {n} processes", "")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- memory, speed


def check_memory(args) -> Iterator[Check]:
    """A batch that does not fit is halved until it does, and the errors are the same."""
    name = "out of memory on purpose"
    if not args.device.startswith("cuda"):
        yield Check(name, None, "only a GPU says that its memory is short")
        return
    import torch

    image, level = Clothes("test")[0][0], 500
    classifier, _ = start("tiny", "float32", settings.Running(device=args.device), level)
    expected = classifier(image)
    room, total = torch.cuda.memory_reserved(args.device) + 2**27, devices.memory(args.device)
    classifier.batch.size = 8192
    torch.cuda.set_per_process_memory_fraction(room / total, args.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the batch that is halved: its size is checked below
            result = classifier(image)
    except torch.OutOfMemoryError as error:
        yield Check(name, False, files.one_line(error), "give a --batch_size that fits", None)
        return
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, args.device)
    size, same = classifier.batch.size, result.label == expected.label
    yield Check(name, same and size < 8192, f"a batch of 8,192 was halved to {size:,}, {'same' if same else 'OTHER'} prediction",
                "give a --batch_size that fits")  # fmt: skip


def check_speed(args) -> Iterator[Check]:
    """scripts/benchmark.py as it is, in a process of its own."""
    short = ("--prompts", "4", "--timesteps", "8", "--repeats", "2")
    subjects = {"tiny": ()} if args.device == "cpu" else {"tiny": (), "sd2": short, "dit-xl-256": short}
    for model, more in subjects.items():
        dtype = "float32" if args.device == "cpu" else "bfloat16"
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "benchmark.json"
            words = ("scripts/benchmark.py", "--model", model, "--device", args.device, "--dtype", dtype, "--batch_size", "auto",
                     "--json", str(out), *more)  # fmt: skip
            done = subprocess.run([sys.executable, *commands.start_of(words)], capture_output=True, text=True)
            yield speed_of(f"speed of {model}, {dtype}", done, files.read_json(out) if out.is_file() else {})


def speed_of(name: str, done: subprocess.CompletedProcess, result: dict) -> Check:
    if done.returncode:
        return Check(name, False, f"exit code {done.returncode}", (done.stderr.strip().split("\n") or [""])[-1][:160])
    if "evaluations_per_s" not in result:
        return Check(name, None, "its weights do not fit into this device's memory", "", result)
    rate = sorted(result["evaluations_per_s"]["kernel"])[len(result["evaluations_per_s"]["kernel"]) // 2]
    plain = f", {result['kernel_over_plain']:.2f} times the plain loop" if "kernel_over_plain" in result else ""
    finding = f"{rate:,.1f} evaluations/s{plain}, {result['peak_memory_mb']:,.0f} MB, "
    finding += f"{100 * result['fraction_of_matmul']:.0f} % of matrix products"
    return Check(name, True, finding, "", result)


# ---------------------------------------------------------------- the command


def about(device: str) -> dict:
    """The device, its driver, and versions; nothing that names a person or a machine."""
    import diffusers
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    if not device.startswith("cuda"):
        return {"device": device} | versions
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.split() if shutil.which("nvidia-smi") else []
    cards = {"device": torch.cuda.get_device_name(device), "cards": torch.cuda.device_count()}
    return cards | {"driver": driver[0] if driver else None, "cuda": torch.version.cuda} | versions


def attempt(title: str, work: Callable[..., Iterator[Check]], args) -> Iterator[Check]:
    """Its checks; one that raises is a row that failed, and the next part goes on."""
    try:
        yield from work(args)
    except Exception as error:  # whatever a new device does is a finding
        yield Check(title, False, files.one_line(error), "please report this line with check_device.json")


def write_reference(out: Path) -> None:
    from safetensors.torch import save

    reference = {model: errors_of(model, MOST_IMAGES, "float32", settings.Running())[0] for model in MODELS}
    files.write(out, lambda file: file.write(save(reference)))


def print_check(check: Check) -> None:
    word = {True: "ok", False: "FAILED", None: "left out"}[check.ok]
    print(f"{word:9} {check.name:30} {check.result}", flush=True)
    if check.ok is False and check.advice:
        print(f"{'':9} {check.advice}", flush=True)


def verdict(checks: list[Check]) -> str:
    failed, left = ([c.name for c in checks if c.ok is wanted] for wanted in (False, None))
    out = f", {len(left)} left out" if left else ""
    if failed:
        return f"{len(failed)} of {len(checks)} checks FAILED{out}: {', '.join(failed)}"
    return f"All {len(checks) - len(left)} checks passed{out}: this device computes what a CPU does"


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        args.device = devices.resolve_device(args.device)
        if args.write_reference:
            files.try_file(args.write_reference)
            write_reference(args.write_reference)
            return 0
        files.try_file(args.out)
    facts = about(args.device)
    printing.print_table("Device:", facts)
    print(
        f"Errors of {args.images} images, {10 * N_LEVELS} network evaluations each, of {len(MODELS)} models in 6 ways:",
        flush=True,
    )
    parts = {"errors": check_errors, "runs": check_runs, "memory": check_memory, "benchmark": check_speed}
    skipped = set(args.skip) - ({"errors"} if "compiled" not in args.skip else set())
    checks = []
    for part, work in parts.items():
        for check in () if part in skipped else attempt(part, work, args):
            checks.append(check)
            print_check(check)
    line, failed = verdict(checks), any(check.ok is False for check in checks)
    print(line)
    result = facts | {"verdict": line, "passed": not failed, "checks": [asdict(check) for check in checks]}
    with cli.bad_input():
        files.write_text(args.out, json.dumps(result, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(loop.run(main))
