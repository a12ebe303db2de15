"""Classifiers on maps of features [B,C,h,w]: the paper's ResNets, and a linear probe. torch is imported to build one."""

from collections.abc import Sequence

import numpy as np

HEADS = {
    "resnet": "as in the paper's Table 11: a 3x3 convolution, no pooling, three stages of two basic blocks (ResNet-18-like)",
    "resnet50": "as its main text says: torchvision's ResNet-50, with a 3x3 convolution and no pooling in front",
    "linear": "logistic regression, as the field probes features",
}
POOLS = ("mean", "flat")
STRENGTHS = tuple(10.0**power for power in range(-6, 2))  # of the L2 penalty, among which the validation split chooses


def build(head: str, shape: Sequence[int], n_classes: int, pool: str = "mean"):
    """The module [B,C,h,w] -> logits [B,K] with random weights. shape: (C, h, w)"""
    channels = shape[0]
    if head == "linear":
        return linear(channels if pool == "mean" else int(np.prod(shape)), n_classes, pool)
    return resnet(channels, n_classes) if head == "resnet" else resnet50(channels, n_classes)


def resnet(channels: int, n_classes: int):
    """Table 11, which has 1280 channels of features: widths C, 2C, 2C. Its strides are not given; a ResNet's are 1, 2, 2."""
    from torch import nn
    from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3

    def stage(before, width, stride):
        shortcut = None
        if stride != 1 or before != width:
            shortcut = nn.Sequential(conv1x1(before, width, stride), nn.BatchNorm2d(width))
        return nn.Sequential(BasicBlock(before, width, stride, shortcut), BasicBlock(width, width))

    c = channels
    begin = nn.Sequential(conv3x3(c, c), nn.BatchNorm2d(c), nn.ReLU())
    stages = nn.Sequential(stage(c, c, 1), stage(c, 2 * c, 2), stage(2 * c, 2 * c, 2))
    return nn.Sequential(begin, stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * c, n_classes))


def resnet50(channels: int, n_classes: int):
    from torch import nn
    from torchvision.models import resnet50

    network = resnet50(num_classes=n_classes)
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


# ---------------------------------------------------------------- the linear probe


def linear(width: int, n_classes: int, pool: str):
    """A linear layer on the mean of each channel, or on all of the map."""
    from torch import nn

    first = nn.AdaptiveAvgPool2d(1) if pool == "mean" else nn.Identity()
    return nn.Sequential(first, nn.Flatten(), nn.Linear(width, n_classes))


def probe(inputs, labels, training, validation, n_classes: int) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """(weight float64 [K,D], bias [K], course): logistic regression, its strength chosen by validation accuracy, the stronger one
    where two are alike; then fitted once more on both parts together, as in CLIP's linear probes (Radford et al. 2021, A.3).

    inputs: float [N,D]; labels int [N]; training, validation: rows
    """
    inputs, labels, course = np.asarray(inputs, np.float64), np.asarray(labels), []
    start = None
    for strength in reversed(STRENGTHS):  # each begins where the stronger one ended
        weight, bias = start = logistic(inputs[training], labels[training], n_classes, strength, start)
        right = (inputs[validation] @ weight.T + bias).argmax(1) == labels[validation]
        course.append({"strength": strength, "validation_accuracy": float(right.mean())})
        print("strength {strength:g}: validation accuracy {validation_accuracy:.2%}".format(**course[-1]), flush=True)
    best = max(course, key=lambda line: line["validation_accuracy"])["strength"]
    rows = np.concatenate([training, validation])
    return *logistic(inputs[rows], labels[rows], n_classes, best, start), course


def logistic(inputs, labels, n_classes: int, strength: float, start=None) -> tuple[np.ndarray, np.ndarray]:
    """(weight [K,D], bias [K]) of the least mean cross-entropy plus strength / 2 times the squared weights, by L-BFGS.

    The penalty is on weights of standardised inputs (mean 0, variance 1); weight and bias are for the inputs as they are.
    start: another solution to begin with
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    mean, scale = inputs.mean(0), inputs.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    x, rows = (inputs - mean) / scale, np.arange(len(labels))
    shape = (n_classes, x.shape[1] + 1)

    def loss(flat):
        w = flat.reshape(shape)
        logp = log_softmax(x @ w[:, :-1].T + w[:, -1], axis=1)
        delta = np.exp(logp)
        delta[rows, labels] -= 1
        gradient = np.concatenate([delta.T @ x / len(x) + strength * w[:, :-1], delta.mean(0)[:, None]], 1)
        return -logp[rows, labels].mean() + strength / 2 * (w[:, :-1] ** 2).sum(), gradient.ravel()

    begin = np.zeros(shape)
    if start is not None:
        begin = np.concatenate([start[0] * scale, (start[1] + start[0] @ mean)[:, None]], 1)
    solution = minimize(loss, begin.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-6, "maxfun": 5000})
    w = solution.x.reshape(shape)
    weight = w[:, :-1] / scale
    return weight, w[:, -1] - weight @ mean
