"""Errors of an epsilon prediction: one number per sample, the mean over its C*h*w latent elements. Pure functions."""

from torch.nn.functional import huber_loss


def l1(noise, prediction):
    """Mean absolute error. noise, prediction: [B,C,h,w] float32 -> [B] float32."""
    return (prediction - noise).abs().flatten(1).mean(1)


def l2(noise, prediction):
    """Mean squared error. noise, prediction: [B,C,h,w] float32 -> [B] float32."""
    return (prediction - noise).square().flatten(1).mean(1)


def huber(noise, prediction):
    """Mean Huber error with delta 1. noise, prediction: [B,C,h,w] float32 -> [B] float32."""
    return huber_loss(prediction, noise, reduction="none").flatten(1).mean(1)


SCORES = {"l2": l2, "l1": l1, "huber": huber}
