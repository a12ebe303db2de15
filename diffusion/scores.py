"""Errors of an epsilon prediction: one number per sample, the mean over its C*h*w latent elements. Pure functions.

noise [B,C,h,w] and output [B,C or more,h,w], float32; epsilon is the output's first C channels. The kernel also hands over
x_t and t, which only a score of the variational bound needs.
"""

from torch import where
from torch.nn.functional import huber_loss


def difference(noise, output):
    """Predicted minus true noise, [B,C,h,w]."""
    return output[:, : noise.shape[1]] - noise


def l1(noise, output, *_):
    """Mean absolute error -> [B] float32."""
    return difference(noise, output).abs().flatten(1).mean(1)


def l2(noise, output, *_):
    """Mean squared error -> [B] float32."""
    return difference(noise, output).square().flatten(1).mean(1)


def huber(noise, output, *_):
    """Mean Huber error with delta 1 -> [B] float32."""
    return huber_loss(output[:, : noise.shape[1]], noise, reduction="none").flatten(1).mean(1)


def error_map(noise, output, *_):
    """Squared error of every latent position, the mean over channels -> [B,h,w] float32."""
    return difference(noise, output).square().mean(1)


def epsilon(noise, output, *_):
    """No error: the epsilon prediction itself -> [B,C,h,w] float32."""
    return output[:, : noise.shape[1]]


def whole_output(noise, output, *_):
    """No error: epsilon and whatever else the network predicts -> [B,C or more,h,w] float32."""
    return output


TERMS = {"l2": 0, "l1": 1, "kl": 2, "vlb": 2}  # which of a DiT's four numbers a loss is, but for vlb at t = 0


def pick_term(loss, terms, t):
    """One of an evaluation's four numbers (mse, l1, kl, nll): terms [K,S,4], t [S] int64 -> [K,S]; vlb: nll at t = 0, else kl.

    vlb is the variational bound's own term at each t (Improved DDPM, equations 4 to 7); the published tables call kl "VLB".
    """
    if loss == "vlb":
        return where(t == 0, terms[..., 3], terms[..., 2])
    return terms[..., TERMS[loss]]


SCORES = {"l2": l2, "l1": l1, "huber": huber}
