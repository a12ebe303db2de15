#!/usr/bin/env python
"""What a network costs: parameters, memory, arithmetic; evaluations per second of the run's own kernel, of the paper's loop in
plain PyTorch, and of the network alone.

    python scripts/benchmark.py --batch_size auto                       # the shipped model
    python scripts/benchmark.py --batch_size auto --dtype bfloat16
    python scripts/benchmark.py --model sd2 --json sd2_benchmark.json
    python scripts/benchmark.py --model flux --dry_run                  # parameters, memory and arithmetic only
    python scripts/benchmark.py --memory                                # of all published models, and the smallest GPU for each
    python scripts/benchmark.py --model sdxl --prompts 2 --timesteps 1 --repeats 1

All but the tiny models have the published shapes and random weights: nothing is downloaded. sd1 and sd2 are the U-Nets of Stable
Diffusion 1.x and 2.x, dit-xl-256 and dit-xl-512 are DiT-XL/2 at these sizes, pixart and flux are pixart-alpha and flux-dev. What
does not fit into memory is counted, not timed. The plain loop always runs at the paper's own defaults: the network as its library
loads it, 32 inputs a call, float16 on CUDA and float32 elsewhere; --dtype, --batch_size and --compile are the kernel's. It has
its own process, in which nothing is tuned, and its own copy of the weights; the loops take turns, and the medians of the repeats
are compared.
"""

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, models, settings
from diffusion.cli import parsing
from diffusion.kernel.noise import Seeded
from diffusion.models import format_bytes, random_weights
from diffusion.models.families import custom, dit
from diffusion.models.families.base import Pipeline
from diffusion.models.loading import hub
from diffusion.models.speed import devices
from diffusion.runs import loop, printing
from diffusion.settings import ModelOptions
from diffusion.strategy.schedule import make_plan
from diffusion.utils import files, outputs

SHORT = {"sd1": "1-5", "sd2": "2-0", "pixart": "pixart-alpha", "flux": "flux-dev"}
MODELS = ("tiny", *SHORT, *random_weights.pipelines(), "tiny-dit", "dit-xl-256", "dit-xl-512")
PLAIN_BATCH = 32  # the published default
BATCHES = (1, 8, 32)
CARDS = (8, 12, 16, 24, 32, 48, 80, 141)  # GiB
USABLE = 0.9  # of a card; the rest is CUDA's own, the VAE's and that of workspaces, which are not counted
SHARE = 0.8  # of the device's memory that weights may take, which leaves room for what a call computes


@dataclass(frozen=True)
class Subject:
    """What is measured, known before its weights are there.

    load: (device, dtype, compile, plain) -> Denoiser; bare: () -> shapes.Bare, its network without weights
    text_memory: dtype -> bytes by text encoder, as far as they are known
    """

    source: str
    img_size: int
    latent_shape: tuple[int, int, int]
    n_levels: int
    load: Callable
    bare: Callable
    candidates: list  # prompts, or class ids
    text_memory: Callable | None = None


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("--model", default="tiny", choices=MODELS, help="default: tiny")
    parser.add_argument("--model_path", help="pipeline folder or hub id in place of the tiny model")
    parser.add_argument(
        "--img_size",
        type=parsing.at_least(1),
        help="image size in pixels (default: the model's own, 512 of Stable Diffusion 1 and 2)",
    )
    cli.add_network_options(parser)
    parser.add_argument("--prompts", type=parsing.at_least(1), default=10, help="candidates, prompts or classes (default: 10)")
    parser.add_argument("--timesteps", type=parsing.at_least(1), default=32, help="per candidate, at most 1000 (default: 32)")
    parser.add_argument("--repeats", type=parsing.at_least(1), default=5, help="timed runs of every loop (default: 5)")
    parser.add_argument("--dry_run", action="store_true", help="print parameters, memory and arithmetic, and stop")
    parser.add_argument("--memory", action="store_true", help="print the counted memory of every published model, and stop")
    parser.add_argument("--serve_plain", type=Path, help=argparse.SUPPRESS)  # what PlainLoop starts its process with
    parser.add_argument("--json", type=outputs.Output(), metavar="FILE", help="write all numbers here too")
    return parser.parse_args(argv)


def check(args) -> Subject:
    """Resolves device, dtype and size, and finds the model's files. Raises ValueError or OSError before anything heavy."""
    n_bytes = 4 * args.prompts * 77 * 1024  # of texts; of most models more
    devices.check_memory(n_bytes, "cpu", f"--prompts {args.prompts}", "give fewer")
    if args.json and not args.json.parent.is_dir():
        raise ValueError(f"--json {args.json}: the folder {args.json.parent} does not exist")
    if args.json:
        files.try_file(args.json)
    if args.model != "tiny" and args.model_path:
        raise ValueError(f"--model {args.model} has its own weights: drop either --model_path or --model")
    if custom.is_python_file(args.model_path):
        raise ValueError(f"--model_path {args.model_path}: a Python file does not say what its network is: give a pipeline")
    if "dit" in args.model and args.img_size:
        raise ValueError(f"--model {args.model} has its own size: leave out --img_size")
    args.device = devices.resolve_device(args.device)
    args.dtype = devices.resolve_dtype(args.dtype, args.device)
    args.batch_size = args.batch_size or PLAIN_BATCH
    subject = find(args)
    if args.timesteps > subject.n_levels:
        raise ValueError(f"--timesteps {args.timesteps} must lie in 1..{subject.n_levels}")
    args.img_size = subject.img_size
    return subject


# ---------------------------------------------------------------- the model and its input


def find(args) -> Subject:
    """What --model and --model_path name."""
    if "dit" in args.model:
        return dit_subject(args)
    if published := random_weights.pipelines().get(SHORT.get(args.model, args.model)):
        source, configs = published.source(args.img_size), published.text_configs
        return pipeline_subject(args, source, configs, partial(random_weights.load, source, configs), published.text_memory)
    source = models.text_to_image("tiny", args.model_path, ModelOptions(args.img_size))
    return pipeline_subject(args, source, random_weights.text_configs(source), source.load, partial(text_memory, source))


def text_memory(source, dtype: str) -> dict[str, int]:
    """Bytes of the text encoders' weights, by their files."""
    return {part: n for part, n in source.memory(dtype).items() if part.startswith("text_encoder")}


def prompts_of(args) -> list[str]:
    return [f"a photo of thing {i}." for i in range(args.prompts)]


def pipeline_subject(args, source: Pipeline, configs: dict, load: Callable, text_memory: Callable) -> Subject:
    size, bare = source.default_size, partial(random_weights.network_of, source, configs)
    shape = source.latent_shape(size)
    return Subject(source.describe(), size, shape, source.n_levels, load, bare, prompts_of(args), text_memory)


def dit_subject(args) -> Subject:
    if args.model == "tiny-dit":
        checkpoint = models.class_conditional("tiny")
        config = files.read_json(checkpoint.file.parent / "config.json")
        size, source, classes = checkpoint.default_size, checkpoint.describe(), checkpoint.num_classes
    else:
        from DiT.architecture import SHAPES

        size, source, classes = int(args.model.rpartition("-")[2]), "random weights", 1000
        config = SHAPES["DiT-XL/2"] | {"input_size": size // 8}
    shape = (4, size // 8, size // 8)
    bare = partial(bare_dit, config, shape)
    load = checkpoint.load if args.model == "tiny-dit" else partial(random_dit, bare)
    return Subject(source, size, shape, 1000, load, bare, [i % classes for i in range(args.prompts)])


def bare_dit(config: dict, latent_shape) -> random_weights.Bare:
    import torch

    from diffusion.models.denoiser import Conditions
    from DiT.models import DiT

    def conditions(n, device):
        return Conditions(ids=torch.zeros(n, dtype=torch.int64, device=device))

    return random_weights.Bare(
        lambda: DiT(**config), latent_shape, lambda module, x_t, t, conditioning: module(x_t, t, conditioning.ids), conditions
    )


def random_dit(bare: Callable, device: str, dtype: str, compile: bool = False, plain: bool = False):
    """A Denoiser with this transformer; weights and latents are random."""
    network = bare()
    module = network.filled(device, dtype)
    return replace(dit.denoiser_of(module, network.encoder(device), device, dtype, compile, plain), terms=None)


def make_input(args, network, subject) -> dict:
    """One image's share of a run, as the commands hand it to the kernel."""
    import torch

    plan = make_plan([args.timesteps], 1, subject.n_levels)
    return {
        "x0": network.denoiser.encode(torch.rand(3, args.img_size, args.img_size) * 2 - 1),
        "conditions": network.conditions,
        "t": torch.from_numpy(plan.t),
        "noise": Seeded(0)(0, plan, subject.latent_shape),
    }


# ---------------------------------------------------------------- the three loops


def plain_errors(denoiser, x0, conditions, t, noise, dtype, batch_size):
    """Squared errors [K,S] by the paper's loop as one writes it at first (algorithm 1): everything inside the batch.

    As published, latents, noise and errors have the network's dtype, and the errors of a batch go to the CPU at once. Only the
    levels stay float32 where the paper's code rounds alphas_cumprod, so that the errors can be compared with the kernel's.
    """
    import torch

    x0, noise, t = x0.to(dtype), noise.to(x0.device, dtype), t.to(x0.device)
    trials = list(itertools.product(range(len(conditions)), range(len(t))))
    errors = torch.zeros(len(trials))
    for start in range(0, len(trials), batch_size):
        rows, pairs = map(list, zip(*trials[start : start + batch_size], strict=True))
        epsilon, steps, text = noise[pairs], t[pairs], conditions[rows]
        signal, sigma = (table[steps].view(-1, 1, 1, 1).to(dtype) for table in (denoiser.levels.signal, denoiser.levels.sigma))
        x_t = signal * x0 + sigma * epsilon
        prediction = denoiser.predict(x_t, steps, text)[:, : x0.shape[0]]  # a DiT also predicts a variance
        target = denoiser.levels.target(denoiser.space, x0, epsilon, steps).to(dtype)
        errors[start : start + len(rows)] = ((prediction - target) ** 2).mean(dim=(1, 2, 3)).cpu()
    return errors.view(len(conditions), len(t))


class PlainLoop:
    """The plain loop in a process of its own. Context manager; calling it runs the loop once.

    errors: [K,S] float32 of the first call
    """

    def __init__(self, args, work: dict):
        import torch

        self.folder = tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name) / "inputs.pt"
        tensors = {name: value.cpu() for name, value in work.items() if name != "conditions"}
        torch.save(tensors | {"conditions": parts_of(work["conditions"])}, self.file)
        same = {name: getattr(args, name) for name in ("model", "model_path", "device", "prompts", "timesteps")}
        same["img_size"] = None if "dit" in args.model else args.img_size
        words = [word for name, value in same.items() if value is not None for word in (f"--{name}", str(value))]
        command = [sys.executable, __file__, *words, "--serve_plain", str(self.file)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        import torch

        self()  # the first call prepares and warms up
        self.errors = torch.load(self.file, weights_only=True)
        return self

    def __exit__(self, *exception):
        self.process.communicate()  # which closes its input, and so ends it
        self.folder.cleanup()

    def __call__(self) -> None:
        """Raises ChildProcessError when the process has failed, which has said why."""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ChildProcessError("the process of the plain loop has failed")


def parts_of(conditions) -> dict:
    """The tensors of Conditions by name, on the CPU."""
    parts = {field.name: getattr(conditions, field.name) for field in fields(conditions)}
    return {name: part.cpu() for name, part in parts.items() if part is not None}


def serve_plain(args, subject) -> int:
    """What the process of PlainLoop does: runs the loop for every line that it reads, and answers with one."""
    import torch

    from diffusion.models.denoiser import Conditions

    torch.manual_seed(0)  # random weights are then the kernel's
    name = devices.resolve_dtype("auto", args.device)
    dtype, plain = devices.torch_dtype(name), subject.load(args.device, name, plain=True)
    work = torch.load(args.serve_plain, weights_only=True)
    work |= {name: work[name].to(args.device) for name in ("x0", "t")}
    work["conditions"] = Conditions(**work["conditions"]).to(args.device).to(dtype)
    with torch.inference_mode():
        for number, _ in enumerate(sys.stdin):
            errors = plain_errors(plain, **work, dtype=dtype, batch_size=PLAIN_BATCH)
            if number == 0:
                torch.save(errors, args.serve_plain)
            print("done", flush=True)
    return 0


def network_only(denoiser, x0, conditions, t, noise, size):
    """The network calls of the kernel on inputs that lie ready, and nothing else."""
    from diffusion.kernel import blocks

    x_t, t = noise.to(x0.device), t.to(x0.device)
    for rows, pairs in blocks.blocks(len(conditions), len(t), size):
        denoiser.predict_latents(x_t[pairs], t[pairs], conditions[rows], None)


# ---------------------------------------------------------------- measuring


def synchronize(device: str):
    """Waits for a GPU to finish what it was given; nothing to wait for on a CPU."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(function, device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def alternate(loops: dict, repeats: int, device: str) -> dict:
    """name -> list of seconds. Loops take turns, so that a machine that slows down slows them all."""
    times = {name: [] for name in loops}
    for _ in range(repeats):
        for name, function in loops.items():
            times[name].append(seconds(function, device))
    return times


def matmul_rate(dtype, device: str, repeats: int = 5) -> float:
    """Measured FLOP/s of square matrix products in this dtype: the median of several short series."""
    import torch

    side, series = (4096, 10) if device.startswith("cuda") else (1024, 2)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = a @ b

    def products():
        for _ in range(series):
            torch.mm(a, b, out=out)

    products()
    return 2 * side**3 * series / median(seconds(products, device) for _ in range(repeats))


def peak_memory_mb(device: str) -> float:
    """Allocated on the GPU since its counter was reset; on a CPU the most that this process ever held."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    import platform

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def warm_up(loops: dict, device: str) -> dict:
    """The loops of this process once: the kernel's peak memory, and how far its errors are from the plain loop's, relative.

    Raises FloatingPointError when errors are not finite.
    """
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    errors = {"kernel": loops["kernel"]()}
    about = {"peak_memory_mb": peak_memory_mb(device)}
    loops["network"]()
    if "plain" in loops:
        errors["plain"] = loops["plain"].errors
        difference = (errors["kernel"] - errors["plain"]).abs() / errors["plain"].abs()
        about |= {"mean_relative_difference": difference.mean().item(), "max_relative_difference": difference.max().item()}
    if not all(errors.isfinite().all() for errors in errors.values()):
        raise FloatingPointError("the errors are not finite: try --dtype bfloat16")
    return about


def measure(args, network, subject, with_plain: bool, flops: int) -> dict:
    """All numbers that take time. Call it in inference mode."""
    from diffusion.kernel import blocks, scores

    work = make_input(args, network, subject)
    with PlainLoop(args, work) if with_plain else contextlib.nullcontext() as plain:
        loops = {
            **({"plain": plain} if plain else {}),
            "kernel": lambda: blocks.errors(network.denoiser, **work, score=scores.l2, batch=network.batch),
            "network": lambda: network_only(network.denoiser, **work, size=network.batch.size),
        }
        about = warm_up(loops, args.device)
        times = alternate(loops, args.repeats, args.device)
    rate = matmul_rate(devices.torch_dtype(args.dtype), args.device)
    return summarise(times, len(work["conditions"]) * len(work["t"]), rate, flops) | about


def summarise(times: dict, evaluations: int, rate: float, flops: int) -> dict:
    """What follows from the seconds of every repeat, the matrix products' FLOP/s and one evaluation's FLOPs."""
    middle = {name: median(values) for name, values in times.items()}
    return {
        "evaluations": evaluations,
        "evaluations_per_s": {name: [evaluations / value for value in values] for name, values in times.items()},
        **({"kernel_over_plain": middle["plain"] / middle["kernel"]} if "plain" in middle else {}),
        "outside_network": 1 - middle["network"] / middle["kernel"],
        "matmul_flops_per_s": rate,
        "fraction_of_matmul": flops * evaluations / middle["kernel"] / rate,
    }


# ---------------------------------------------------------------- without weights


def count(args, subject) -> dict:
    """What follows from the network's shape, and the memory of its weights and of the text encoders', in bytes.

    Raises ValueError for a network of --model_path that cannot be built.
    """
    try:
        counts = subject.bare().count()
    except Exception as error:  # of a config file diffusers makes whatever it can
        if not args.model_path:
            raise
        raise ValueError(f"--model_path {args.model_path}: its network cannot be built ({hub.cause(error)})") from None
    n_numbers = counts.pop("numbers")
    about = {"model": f"{args.model}: {subject.source}", "img_size": args.img_size, "latent_shape": subject.latent_shape}
    return {
        **about,
        **counts,
        "weights_bytes": {name: n_numbers * devices.torch_dtype(name).itemsize for name in devices.DTYPES},
        "text_encoder_bytes": subject.text_memory(args.dtype) if subject.text_memory else {},
    }


def report_count(counted: dict):
    """The table of `count` for a person."""
    weights, texts = counted["weights_bytes"], counted["text_encoder_bytes"]
    rows = {
        "model": counted["model"],
        "image": f"{counted['img_size']} px, latents {' x '.join(map(str, counted['latent_shape']))}",
        "parameters": f"{counted['parameters']:,}",
        "one evaluation": f"{counted['flops_per_evaluation'] / 1e9:,.3f} GFLOP",
        "weights": f"{format_bytes(weights['float32'])} in float32, {format_bytes(weights['float16'])} in float16 or bfloat16",
    }
    if texts:
        rows["text encoders, one at a time"] = ", ".join(map(format_bytes, texts.values()))
    printing.print_table("By its shape:", rows)


def copies_that_fit(args, weights: dict) -> int:
    """How many copies of the weights fit into memory: 2, the kernel's and the plain loop's; 1, the kernel's alone; or none.
    Says why not two."""
    most = devices.memory(args.device)
    plain = devices.resolve_dtype("auto", args.device)
    if most is None or weights[args.dtype] + weights[plain] <= SHARE * most:
        return 2
    has = f"{SHARE:.0%} of the {format_bytes(most)} of {args.device}"
    if weights[args.dtype] <= SHARE * most:
        print(f"The plain loop is left out: its own weights ({plain}) do not fit beside the kernel's into {has}.")
        return 1
    print(f"Not timed: {format_bytes(weights[args.dtype])} of weights ({args.dtype}) do not fit into {has}.")
    return 0


def memory_rows() -> list[list[str]]:
    """A row for every published model: its weights, one more input of a call, and the smallest card for BATCHES of it; float32 /
    16 bits. Text encoders, which are there before the network and never beside it, have to fit too."""
    sources = {name: (one.source(), one.text_memory) for name, one in random_weights.pipelines().items()}
    sources |= {"dit-xl-256": (models.class_conditional("DiT-XL/2", expect=True), lambda dtype: {})}
    rows = []
    for name, (source, text_memory) in sources.items():
        columns = [
            memory_columns(source, dtype, max(text_memory(dtype).values(), default=0)) for dtype in ("float32", "bfloat16")
        ]
        rows.append([name, *(" / ".join(pair) for pair in zip(*columns, strict=True))])
    return rows


def memory_columns(source, dtype: str, text_bytes: int) -> list[str]:
    """The weights in GB, an input in MB, the smallest card in GiB for each of BATCHES. text_bytes: the largest text encoder."""
    weights, *calls = (random_weights.call_bytes(source, source.default_size, dtype, n) for n in (0, *BATCHES))
    cards = (next((card for card in CARDS if max(n, text_bytes) <= USABLE * card * 2**30), None) for n in calls)
    return [f"{weights / 1e9:.1f}", f"{(calls[0] - weights) / 1e6:.0f}", *(str(card or f"> {CARDS[-1]}") for card in cards)]


def print_memory() -> None:
    """The table of docs/models.md."""
    head = ["model", "weights, GB", "an input, MB", *(f"card, GiB, at batch {n}" for n in BATCHES)]
    for row in (head, ["---"] * len(head), *memory_rows()):
        print("| " + " | ".join(row) + " |")
    print("\nfloat32 / 16 bits; counted, not measured")


# ---------------------------------------------------------------- the command


def speed(values) -> str:
    middle, least, most = (f"{x:,.1f}" if x >= 10 else f"{x:.2g}" for x in (median(values), min(values), max(values)))
    return f"{middle} evaluations/s ({least} to {most})"


def report(result: dict):
    """The tables of what was timed for a person; --json has the same numbers unrounded."""
    setup = ("device", "dtype", "compiled", "batch_size", "plain_dtype", "plain_batch_size", "evaluations", "threads", "torch")
    printing.print_table("Set-up:", {name: f"{value:,}" if type(value := result[name]) is int else value for name in setup})
    speeds, compared = result["evaluations_per_s"], "plain" in result["evaluations_per_s"]
    rows = {"plain loop": speed(speeds["plain"])} if compared else {}
    rows |= {"kernel": speed(speeds["kernel"]), "network alone": speed(speeds["network"])}
    if compared:
        mean, largest = result["mean_relative_difference"], result["max_relative_difference"]
        rows["kernel / plain"] = f"{result['kernel_over_plain']:.3f}"
        rows["relative difference of errors"] = f"mean {mean:.1e}, largest {largest:.1e}"
    rows |= {
        "time outside the network": f"{100 * result['outside_network']:.1f} %",
        "peak memory": f"{result['peak_memory_mb']:,.0f} MB",
        "matrix products": f"{result['matmul_flops_per_s'] / 1e12:,.3f} TFLOP/s",
        "fraction that the kernel reaches": f"{100 * result['fraction_of_matmul']:.1f} %",
    }
    printing.print_table(f"Median (min to max) of {len(speeds['kernel'])} alternating repeats:", rows)


def timed(args, subject, counted: dict, with_plain: bool) -> dict:
    """The speeds, and what they were measured with. Raises ValueError or OSError for weights that do not do."""
    import torch

    torch.manual_seed(0)
    running, useful = settings.pick(settings.Running, vars(args)), len(subject.candidates) * args.timesteps
    with cli.bad_input():
        network = loop.start_network(subject.load, subject.candidates, subject.latent_shape, running, args.dtype, useful)
    setup = {
        "device": device_name(args.device),
        "dtype": args.dtype,
        "plain_dtype": devices.resolve_dtype("auto", args.device),
        "compiled": args.compile,
        "batch_size": network.batch.size,
        "plain_batch_size": PLAIN_BATCH,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    with torch.inference_mode():
        return setup | measure(args, network, subject, with_plain, counted["flops_per_evaluation"])


def main(argv=None) -> int:
    args = parse_args(argv)
    if args.memory:
        print_memory()
        return 0
    with cli.bad_input():
        subject = check(args)
    if args.serve_plain:
        return serve_plain(args, subject)
    with cli.bad_input():
        result = count(args, subject)
    report_count(result)
    copies = 0 if args.dry_run else copies_that_fit(args, result["weights_bytes"])
    if copies:
        try:
            result |= timed(args, subject, result, with_plain=copies == 2)
        except (FloatingPointError, ChildProcessError) as error:
            parsing.fail(error)
            return 1
        report(result)
    if args.json:
        with cli.bad_input():
            files.write_text(args.json, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
