"""Training a classifier with a validation split and early stopping, resumable after every epoch. torch is imported to train."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.training import loop


@dataclass(frozen=True)
class Epochs:
    """How long and how fast. patience: epochs without a better validation accuracy after which it ends; cosine: whether the
    learning rate falls to zero over all epochs, else it stays."""

    epochs: int
    batch_size: int
    lr: float
    patience: int
    seed: int
    weight_decay: float = 0.01  # torch's own
    cosine: bool = False

    def identity(self) -> dict:
        return asdict(self)


def held_back(labels, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(training, validation): sorted rows of labels [N]; a share of each class is held back, at least one image where it has two.

    Raises ValueError where nothing would be left to train on or to validate with.
    """
    rng, validation = np.random.default_rng(seed), []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        validation += rows[: min(max(1, round(share * len(rows))), len(rows) - 1)].tolist()
    training = np.setdiff1d(np.arange(len(labels)), validation)
    if len(training) < 2 or not validation:
        raise ValueError(f"{len(labels)} training images are too few: two of a class, one to validate with, are the least")
    return training, np.sort(np.array(validation))


def batches(n: int, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """All of n rows in an order that seed and epoch give, in batches; a rest joins none where there is a whole one."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    whole = max(1, n // size)
    return np.array_split(order[: whole * size], whole)


def fit(model, passes: Callable, judge: Callable, how: Epochs, checkpoint: Path) -> list[dict]:
    """Trains in place with AdamW and cross-entropy, and leaves the weights of the best epoch in the model: of the highest
    validation accuracy, and of the least validation loss where several have that.

    passes(epoch) -> iterable of the epoch's (inputs, labels [B]) on the model's device; judge(model) -> as of `judged`.
    Returns the course, a line an epoch. An interrupted training goes on from the checkpoint as if it had not been; the caller
    removes it once the model is saved.
    """
    import torch
    from tqdm import tqdm

    optimizer = torch.optim.AdamW(model.parameters(), lr=how.lr, weight_decay=how.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: 0.5 + 0.5 * math.cos(math.pi * epoch / how.epochs) if how.cosine else 1.0
    )
    state: dict[str, Any] = {"course": [], "best": None}
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if checkpoint.exists():
        saved = loop.restore(checkpoint, parts)
        state = {name: saved[name] for name in state}
    while not finished(state["course"], how):
        epoch = len(state["course"])
        loss = _epoch(model, optimizer, tqdm(passes(epoch), f"epoch {epoch + 1}", leave=False, mininterval=5))
        schedule.step()
        state["course"].append({"epoch": epoch + 1, "loss": loss} | judge(model))
        if best_of(state["course"])["epoch"] == epoch + 1:
            state["best"] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        line = "epoch {epoch}: loss {loss:.4f}, validation accuracy {validation_accuracy:.2%}"
        print(line.format(**state["course"][-1]), flush=True)
        loop.save_checkpoint(checkpoint, {name: part.state_dict() for name, part in parts.items()} | state)
    model.load_state_dict(state["best"])
    return state["course"]


def _epoch(model, optimizer, batches) -> float:
    """One pass; the mean loss."""
    import torch

    model.train()
    losses = []
    for inputs, labels in batches:
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return float(np.mean(losses))


def finished(course: list[dict], how: Epochs) -> bool:
    return len(course) >= how.epochs or (bool(course) and len(course) - best_of(course)["epoch"] >= how.patience)


def best_of(course: list[dict]) -> dict:
    """The line of the highest validation accuracy, among several that of the least validation loss."""
    return max(course, key=lambda line: (line["validation_accuracy"], -line["validation_loss"]))


def judged(model, batches) -> dict:
    """Accuracy in [0, 1] and mean cross-entropy of validation batches (inputs, labels [B]), on the model's device."""
    import torch

    model.eval()
    right, loss, n = 0, 0.0, 0
    with torch.inference_mode():
        for inputs, labels in batches:
            logits = model(inputs)
            right += int((logits.argmax(1) == labels).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            n += len(labels)
    return {"validation_accuracy": right / n, "validation_loss": loss / n}
