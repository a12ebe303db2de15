"""Accuracies, intervals, paired tests, and scores of pairs."""

from diffusion.metrics.accuracy import (
    Z95,
    Estimate,
    Interval,
    McNemar,
    PairCorrect,
    PairScores,
    clopper_pearson,
    mcnemar,
    mean_per_class,
    normalise_pairs,
    pair_correct,
    paired_difference,
    proportion,
    top1,
    wald,
    wilson,
)

__all__ = [
    "Z95",
    "Estimate",
    "Interval",
    "McNemar",
    "PairCorrect",
    "PairScores",
    "clopper_pearson",
    "mcnemar",
    "mean_per_class",
    "normalise_pairs",
    "pair_correct",
    "paired_difference",
    "proportion",
    "top1",
    "wald",
    "wilson",
]
