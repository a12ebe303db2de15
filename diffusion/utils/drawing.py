"""What every picture shares: matplotlib without a screen, and curves of errors."""

from typing import Any

FEW = 60  # timesteps of a curve whose points can still be told apart


def pyplot() -> Any:  # a module
    """matplotlib's, which draws without a screen and takes a $ in a name for a $."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False
    from matplotlib import pyplot as plt

    return plt


def running_mean(values, width: int):
    """The mean over up to `width` neighbours on either side -> [n], at the ends over fewer."""
    import numpy as np

    return np.array([np.mean(values[max(0, i - width) : i + width + 1]) for i in range(len(values))])


COLOURS = tuple(f"C{i}" for i in range(10))  # matplotlib's own


def draw_differences(axis, curves, colours=COLOURS) -> None:
    """How far errors lie above the winner's at each timestep, thin, and their running mean, thick; of few timesteps with dots.

    curves: (name, timesteps, differences) of each class, ascending in t, the winner's first; colours: one each, in turn
    """
    for number, (name, t, difference) in enumerate(curves):
        colour = colours[number % len(colours)]
        if number == 0:
            axis.axhline(0, color=colour, label=f"{name}: the winner")
            continue
        axis.plot(t, difference, color=colour, linewidth=0.6, alpha=0.4, marker="." if len(t) < FEW else None)
        axis.plot(t, running_mean(difference, len(t) // 30), color=colour, linewidth=1.8, label=name)
    axis.set(xlabel="timestep t", ylabel="error minus the winner's")
    axis.grid(alpha=0.3)
