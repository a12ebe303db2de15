"""The loop of a training, with its checkpoints. torch is imported when something is trained."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from diffusion.utils import files


@dataclass(frozen=True)
class Training:
    """What a training was asked for: which part, how long, from where it resumes."""

    part: str
    steps: int
    batch_size: int
    seed: int
    lr: float
    checkpoint_dir: str
    channels: int | None = None  # of a network of another size than the part's own
    fold: int = 0  # which pairs of colour and item are left out
    keep_every: int | None = None  # steps between the models that are kept on the way; None keeps the last


def fit(modules, loss_at, how: Training, ema: float, keep=None) -> Path:
    """AdamW with warm-up and cosine decay in `precision`; leaves the averaged weights in `modules` (a ModuleDict).

    loss_at(step) draws its randomness from generators seeded by the step, so that a resumed run sees the same batches.
    keep(step, averaged modules) is called every `how.keep_every` steps. Returns the checkpoint file, which the caller removes
    once the model is saved.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    from tqdm import trange

    average = AveragedModel(modules, multi_avg_fn=get_ema_multi_avg_fn(ema))
    optimizer = torch.optim.AdamW(modules.parameters(), lr=how.lr, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * min(1, s / how.steps))) + 1e-3
    )
    parts = {"modules": modules, "average": average, "optimizer": optimizer, "schedule": schedule}
    # the name holds what a run depends on, so that another seed or length does not continue this one
    size, fold = f"_{how.channels}" if how.channels else "", f"_fold{how.fold}" if how.fold else ""
    checkpoint = Path(how.checkpoint_dir) / f"{how.part}{size}{fold}_seed{how.seed}_{how.steps}x{how.batch_size}_lr{how.lr:g}.pt"
    start = restore(checkpoint, parts)["step"] if checkpoint.exists() else 0
    recent = None
    for step in (bar := trange(start, how.steps, initial=start, total=how.steps, mininterval=5)):
        # fused attention is slow backwards on short CPU sequences, with the plain one a step takes a quarter less
        with precision(), sdpa_kernel(SDPBackend.MATH):
            loss = loss_at(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update_parameters(modules)
        recent = loss.item() if recent is None else 0.98 * recent + 0.02 * loss.item()
        bar.set_postfix(loss=f"{recent:.4f}", refresh=False)
        if (step + 1) % 500 == 0:
            save_checkpoint(checkpoint, {"step": step + 1} | {k: v.state_dict() for k, v in parts.items()})
        if how.keep_every and (step + 1) % how.keep_every == 0 and step + 1 < how.steps:
            keep(step + 1, average.module)
    modules.load_state_dict(average.module.state_dict())
    return checkpoint


def precision():
    """bfloat16 autocast where the CPU computes in it; elsewhere a step takes 4 to 17 times as long as in float32."""
    import torch

    cpu = Path("/proc/cpuinfo")  # torch says AVX512 of both kinds
    return torch.autocast("cpu", torch.bfloat16, enabled=cpu.exists() and "avx512_bf16" in cpu.read_text())


def restore(checkpoint, parts):
    """Loads the state of every part; returns all that was saved."""
    saved = files.load_tensors(checkpoint)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved


def save_checkpoint(path, state):
    import torch

    files.write(path, lambda file: torch.save(state, file))


def amend_config(path, **changes):
    """Sets these keys of a JSON file; None removes one."""
    config = files.read_json(path) | changes
    path.write_text(
        json.dumps({key: value for key, value in config.items() if key not in changes or value is not None}, indent=2) + "\n"
    )
