#!/usr/bin/env python
"""Evaluations per second of the run's own kernel, of the paper's loop in plain PyTorch, and of the network alone.

    python scripts/benchmark.py --batch_size auto                       # the shipped model
    python scripts/benchmark.py --batch_size auto --dtype bfloat16
    python scripts/benchmark.py --model sd2 --json sd2_benchmark.json

sd2 is a U-Net of Stable Diffusion 2.0's exact shape, dit-xl-256 and dit-xl-512 are DiT-XL/2 at these sizes, all with random
weights: nothing is downloaded. The plain loop always runs at the paper's own defaults: the network as its library loads it, 32
inputs a call, float16 on CUDA and float32 elsewhere; --dtype, --batch_size and --compile are the kernel's. It has its own
process, in which nothing is tuned; the loops take turns, and the medians of the repeats are compared.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion import startup

    startup.be_quiet()

from diffusion import cli, files, models, session, settings
from diffusion.models import devices, dit, stable_diffusion
from diffusion.models.stable_diffusion import StableDiffusion
from diffusion.noise import seeded_noise
from diffusion.schedule import make_plan

MODELS = ("tiny", "sd2", "tiny-dit", "dit-xl-256", "dit-xl-512")
PLAIN_BATCH = 32  # the published default
N_LEVELS = 1000  # of all MODELS
SD2_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}


@dataclass(frozen=True)
class Subject:
    """What is measured, known before its weights are there."""

    source: str
    img_size: int
    latent_shape: tuple[int, int, int]
    load: Callable  # (device, dtype, compile, plain) -> Denoiser
    count_parameters: Callable  # () -> int
    candidates: list  # prompts, or class ids


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("--model", default="tiny", choices=MODELS, help="default: tiny")
    parser.add_argument("--model_path", help="pipeline folder or hub id in place of the tiny model")
    parser.add_argument(
        "--img_size",
        type=cli.at_least(1),
        help="image size in pixels (default: 512, or what a smaller or larger model was trained on)",
    )
    cli.add_network_options(parser)
    parser.add_argument("--prompts", type=cli.at_least(1), default=10, help="candidates, prompts or classes (default: 10)")
    parser.add_argument("--timesteps", type=cli.at_least(1), default=32, help="per candidate, at most 1000 (default: 32)")
    parser.add_argument("--repeats", type=cli.at_least(1), default=5, help="timed runs of every loop (default: 5)")
    parser.add_argument("--serve_plain", type=Path, help=argparse.SUPPRESS)  # what PlainLoop starts its process with
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here too")
    return parser.parse_args(argv)


def check(args) -> Subject:
    """Resolves device, dtype and size, and finds the model's files. Raises ValueError or OSError before anything heavy."""
    if args.timesteps > N_LEVELS:
        raise ValueError(f"--timesteps {args.timesteps} must lie in 1..{N_LEVELS}")
    n_bytes = 4 * args.prompts * (args.timesteps + 77 * SD2_UNET["cross_attention_dim"])
    devices.check_memory(n_bytes, "cpu", f"--prompts {args.prompts}", "give fewer")
    if args.json and not args.json.parent.is_dir():
        raise ValueError(f"--json {args.json}: the folder {args.json.parent} does not exist")
    if args.json:
        files.try_file(args.json)
    if args.model != "tiny" and args.model_path:
        raise ValueError(f"--model {args.model} has its own weights: drop either --model_path or --model")
    if "dit" in args.model and args.img_size:
        raise ValueError(f"--model {args.model} has its own size: leave out --img_size")
    args.device = devices.resolve_device(args.device)
    args.dtype = devices.resolve_dtype(args.dtype, args.device)
    args.batch_size = args.batch_size or PLAIN_BATCH
    subject = (dit_subject if "dit" in args.model else sd_subject)(args)
    args.img_size = subject.img_size
    return subject


# ---------------------------------------------------------------- the model and its input


def sd_subject(args) -> Subject:
    if args.model == "sd2":
        source = StableDiffusion("random weights", None, 4, 8, 8, 512, N_LEVELS, "epsilon", (128, 320), 77, 49408)
    else:
        source = models.text_to_image("tiny", args.model_path)
    size = args.img_size or source.default_size
    shape = source.latent_shape(size)

    def load(device, dtype, compile=False, plain=False):
        if args.model == "sd2":
            return random_sd2(dtype, device, shape, compile, plain)
        return source.load(device, dtype, compile, plain)

    prompts = [f"a photo of thing {i}." for i in range(args.prompts)]
    return Subject(source.describe(), size, shape, load, lambda: count_unet(args, source), prompts)


def dit_subject(args) -> Subject:
    if args.model == "tiny-dit":
        found = models.class_conditional("tiny")
        config = files.read_json(found.file.parent / "config.json")
        size, source, classes = found.default_size, found.describe(), found.num_classes
    else:
        from DiT.architecture import SHAPES

        size, source, classes = int(args.model.rpartition("-")[2]), "random weights", 1000
        config = SHAPES["DiT-XL/2"] | {"input_size": size // 8}
    shape = (4, size // 8, size // 8)

    def load(device, dtype, compile=False, plain=False):
        if args.model == "tiny-dit":
            return found.load(device, dtype, compile, plain)
        return random_dit(config, dtype, device, shape, compile, plain)

    return Subject(source, size, shape, load, lambda: count_dit(config), [i % classes for i in range(args.prompts)])


def random_dit(config: dict, dtype: str, device: str, latent_shape, compile: bool, plain: bool):
    """A Denoiser with this transformer; weights and latents are random, the last layer's too, which a fresh DiT has at zero."""
    import torch

    from DiT.models import DiT

    with torch.device(device):
        network = DiT(**config).eval().requires_grad_(False)
    torch.nn.init.normal_(network.final_layer.linear.weight, std=0.02)
    network.to(devices.torch_dtype(dtype))
    denoiser = dit.denoiser_of(network, lambda image: torch.randn(latent_shape, device=device), device, dtype, compile, plain)
    return replace(denoiser, terms=None)


def count_dit(config: dict) -> int:
    """Parameters, built without memory for weights."""
    import torch

    from DiT.models import DiT

    with torch.device("meta"):
        return sum(p.numel() for p in DiT(**config).parameters())


def random_sd2(dtype: str, device: str, latent_shape, compile: bool, plain: bool):
    """A Denoiser with SD 2.0's U-Net and alphas; weights, latents and text embeddings are random."""
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel

    from diffusion.models.denoiser import Conditions

    with torch.device(device):
        unet = UNet2DConditionModel(**SD2_UNET).eval().requires_grad_(False)
    torch.nn.Module.to(unet, devices.torch_dtype(dtype))  # diffusers' own `to` warns of modules that it does not name
    abar = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod

    def encode(image):
        return torch.randn(latent_shape, device=device)

    def embed(prompts):
        return Conditions(torch.randn(len(prompts), 77, SD2_UNET["cross_attention_dim"], device=device).to(unet.dtype))

    return stable_diffusion.denoiser_of(unet, abar, "epsilon", encode, embed, device, compile, plain)


def count_unet(args, source) -> int:
    """Parameters, built from the config without memory for weights."""
    import torch
    from diffusers import UNet2DConditionModel

    config = SD2_UNET if args.model == "sd2" else UNet2DConditionModel.load_config(source.source, subfolder="unet")
    with torch.device("meta"):
        return sum(p.numel() for p in UNet2DConditionModel.from_config(config).parameters())


def make_input(args, network, subject) -> dict:
    """One image's share of a run, as the commands hand it to the kernel."""
    import torch

    t = torch.from_numpy(make_plan([args.timesteps], 1, N_LEVELS).t)
    return {
        "x0": network.denoiser.encode(torch.rand(3, args.img_size, args.img_size) * 2 - 1),
        "conditions": network.conditions,
        "t": t,
        "noise": seeded_noise(0, 0, (len(t), *subject.latent_shape)),
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
        errors[start : start + len(rows)] = ((prediction - epsilon) ** 2).mean(dim=(1, 2, 3)).cpu()
    return errors.view(len(conditions), len(t))


class PlainLoop:
    """The plain loop in a process of its own. Context manager; calling it runs the loop once.

    flops: of one evaluation; errors: [K,S] float32 of the first call.
    """

    def __init__(self, args, work: dict):
        import torch

        self.folder = tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name) / "inputs.pt"
        parts = {name: part.cpu() for name, part in vars(work["conditions"]).items() if torch.is_tensor(part)}
        torch.save({name: value.cpu() for name, value in work.items() if name != "conditions"} | {"conditions": parts}, self.file)
        same = {name: getattr(args, name) for name in ("model", "model_path", "device", "prompts", "timesteps")}
        same["img_size"] = None if "dit" in args.model else args.img_size
        words = [word for name, value in same.items() if value is not None for word in (f"--{name}", str(value))]
        command = [sys.executable, __file__, *words, "--serve_plain", str(self.file)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        import torch

        self.flops = int(self())  # the first call prepares and warms up
        self.errors = torch.load(self.file, weights_only=True)
        return self

    def __exit__(self, *exception):
        self.process.communicate()  # which closes its input, and so ends it
        self.folder.cleanup()

    def __call__(self) -> str:
        """Raises ChildProcessError when the process has failed, which has said why."""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ChildProcessError("the process of the plain loop has failed")
        return answer


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
        flops = count_flops(plain, work)
        for number, _ in enumerate(sys.stdin):
            errors = plain_errors(plain, **work, dtype=dtype, batch_size=PLAIN_BATCH)
            if number == 0:
                torch.save(errors, args.serve_plain)
            print(flops, flush=True)
    return 0


def network_only(denoiser, x0, conditions, t, noise, size):
    """The network calls of the kernel on inputs that lie ready, and nothing else."""
    from diffusion import kernel

    x_t, t = noise.to(x0.device), t.to(x0.device)
    for rows, pairs in kernel.blocks(len(conditions), len(t), size):
        denoiser.predict_block(x_t[pairs], t[pairs], conditions[rows])


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


def count_flops(denoiser, work: dict) -> int:
    """Of one evaluation by itself; attention as two matrix products, which is how every fused form of it is counted."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        x_t, t = work["noise"][:1].to(work["x0"].device), work["t"][:1].to(work["x0"].device)
        denoiser.predict(x_t, t, work["conditions"][:1])
    return counter.get_total_flops()


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
    errors, plain = loops["kernel"](), loops["plain"].errors
    peak = peak_memory_mb(device)
    loops["network"]()
    if not (errors.isfinite() & plain.isfinite()).all():
        raise FloatingPointError("the errors are not finite: try --dtype bfloat16")
    difference = (errors - plain).abs() / plain.abs()
    return {
        "mean_relative_difference": difference.mean().item(),
        "max_relative_difference": difference.max().item(),
        "peak_memory_mb": peak,
    }


def measure(args, network, subject) -> dict:
    """All numbers of one benchmark. Call it in inference mode."""
    from diffusion import kernel, scores

    work = make_input(args, network, subject)
    with PlainLoop(args, work) as plain:
        loops = {
            "plain": plain,
            "kernel": lambda: kernel.errors(network.denoiser, **work, score=scores.l2, batch=network.batch),
            "network": lambda: network_only(network.denoiser, **work, size=network.batch.size),
        }
        about = warm_up(loops, args.device)
        times = alternate(loops, args.repeats, args.device)
    rate = matmul_rate(devices.torch_dtype(args.dtype), args.device)
    return summarise(times, len(work["conditions"]) * len(work["t"]), rate, plain.flops) | about


def summarise(times: dict, evaluations: int, rate: float, flops: int) -> dict:
    """What follows from the seconds of every repeat, the matrix products' FLOP/s and one evaluation's FLOPs."""
    middle = {name: median(values) for name, values in times.items()}
    return {
        "evaluations": evaluations,
        "evaluations_per_s": {name: [evaluations / value for value in values] for name, values in times.items()},
        "kernel_over_plain": middle["plain"] / middle["kernel"],
        "outside_network": 1 - middle["network"] / middle["kernel"],
        "flops_per_evaluation": flops,
        "matmul_flops_per_s": rate,
        "fraction_of_matmul": flops * evaluations / middle["kernel"] / rate,
    }


def speed(values) -> str:
    return f"{median(values):,.1f} evaluations/s ({min(values):,.1f} to {max(values):,.1f})"


def report(result: dict):
    """The tables for a person; --json has the same numbers unrounded."""
    setup = ("model", "parameters", "device", "dtype", "compiled", "batch_size", "plain_dtype", "plain_batch_size", "img_size")
    setup += ("evaluations", "threads", "torch")
    cli.print_table("Set-up:", {name: f"{value:,}" if type(value := result[name]) is int else value for name in setup})
    speeds = result["evaluations_per_s"]
    rows = {
        "plain loop": speed(speeds["plain"]),
        "kernel": speed(speeds["kernel"]),
        "network alone": speed(speeds["network"]),
        "kernel / plain": f"{result['kernel_over_plain']:.3f}",
        "time outside the network": f"{100 * result['outside_network']:.1f} %",
        "relative difference of errors": f"mean {result['mean_relative_difference']:.1e}, largest "
        f"{result['max_relative_difference']:.1e}",
        "peak memory": f"{result['peak_memory_mb']:,.0f} MB",
        "one evaluation": f"{result['flops_per_evaluation'] / 1e9:,.3f} GFLOP",
        "matrix products": f"{result['matmul_flops_per_s'] / 1e12:,.3f} TFLOP/s",
        "fraction that the kernel reaches": f"{100 * result['fraction_of_matmul']:.1f} %",
    }
    cli.print_table(f"Median (min to max) of {len(speeds['kernel'])} alternating repeats:", rows)


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        subject = check(args)

    import torch

    if args.serve_plain:
        return serve_plain(args, subject)
    torch.manual_seed(0)
    with cli.bad_input():
        useful = len(subject.candidates) * args.timesteps

        running = settings.pick(settings.Running, vars(args))
        network = session.start_network(subject.load, subject.candidates, subject.latent_shape, running, args.dtype, useful)
    setup = {
        "model": f"{args.model} ({subject.source})",
        "parameters": subject.count_parameters(),
        "device": device_name(args.device),
        "dtype": args.dtype,
        "plain_dtype": devices.resolve_dtype("auto", args.device),
        "compiled": args.compile,
        "img_size": args.img_size,
        "batch_size": network.batch.size,
        "plain_batch_size": PLAIN_BATCH,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    try:
        with torch.inference_mode():
            result = setup | measure(args, network, subject)
    except (FloatingPointError, ChildProcessError) as error:
        cli.fail(error)
        return 1
    report(result)
    if args.json:
        with cli.bad_input():
            files.write_text(args.json, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(session.run(main))
