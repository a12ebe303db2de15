"""The Gaussian process of a DiT: linear betas, learned-range variance, and the terms of its variational bound.

Nichol and Dhariwal 2021, "Improved DDPM", arXiv 2102.09672, sections 2 and 3.1; equation numbers are that paper's.
Timesteps t count from 0: t = 0 is the paper's first step. The tables are made in float64 and used in float32; every result
is float32 whatever the dtype of the network's output.
"""

import math

import torch

STEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02
HALF_BIN = 1 / 255  # pictures of 256 levels in [-1,1] are 2/255 apart
EDGE = 0.999  # values outside +-EDGE own the whole tail: the outermost bins have no far border
FLOOR = 1e-12  # least probability of a bin, so that its logarithm stays finite in float32
BITS = 1 / math.log(2)


def bits_per_element(nats):
    """Mean over all axes but the first, nats -> bits: [B,...] -> [B]."""
    return nats.flatten(1).mean(dim=1) * BITS


def gaussian_kl(mean_q, log_var_q, mean_p, log_var_p):
    """KL(q || p) of two diagonal Gaussians, element by element, in nats. Arguments broadcast against each other.

    expm1, because the two variances are so close at most t that exp - 1 cancels in float32: written out, as in the published
    code, single terms are off by up to 4e-5 of their value.
    """
    log_ratio = log_var_p - log_var_q
    return 0.5 * (log_ratio + torch.expm1(-log_ratio) + (mean_q - mean_p) ** 2 * torch.exp(-log_var_p))


def normal_cdf(x):
    """tanh approximation of the standard normal distribution function, within 2e-4 (the one of the "tanh GELU").

    The published numbers come from it. It raises the decoder term of one evaluation above what erf gives in float32 by 1.7 % in
    the median and by up to 10 % (near t = 15), and above its exact value by 4.5 % and up to 16 % (near t = 25); at t = 0, the
    only step where the bound takes this term, by at most 0.2 % (shipped tiny-dit, 100 test images, t = 0, 5, 15, ..., 995).
    """
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def decoder_nll(x0, mean, log_var):
    """-log probability of the bin of width 2/255 around x0, element by element, in nats (Ho et al. 2020, equation 13)."""
    inverse_std = torch.exp(-0.5 * log_var)
    below_upper = normal_cdf((x0 + HALF_BIN - mean) * inverse_std)
    below_lower = normal_cdf((x0 - HALF_BIN - mean) * inverse_std)
    upper = torch.where(x0 > EDGE, 1.0, below_upper)
    lower = torch.where(x0 < -EDGE, 0.0, below_lower)
    return -(upper - lower).clamp(min=FLOOR).log()


class GaussianProcess:
    """q(x_t|x_0), q(x_{t-1}|x_t,x_0) and the network's p(x_{t-1}|x_t), for t in 0..999.

    In all methods x0, x_t and noise are [B,C,h,w] of any floating dtype, t is [B] int64 on the same device, and `output`
    is the network's [B,2C,h,w]: the predicted noise, then v in [-1,1]. Results are float32.
    """

    def __init__(self, device="cpu"):
        beta = torch.linspace(FIRST_BETA, LAST_BETA, STEPS, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - beta, dim=0)
        before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])  # alpha_bar of the step before
        posterior_variance = beta * (1 - before) / (1 - alpha_bar)  # equation 10
        posterior_variance[0] = posterior_variance[1]  # it is 0 at t = 0, where only the logarithm is used
        tables = {
            "signal": alpha_bar.sqrt(),
            "sigma": (1 - alpha_bar).sqrt(),
            "inverse_signal": (1 / alpha_bar).sqrt(),
            "inverse_sigma": (1 / alpha_bar - 1).sqrt(),
            "weight_x0": before.sqrt() * beta / (1 - alpha_bar),  # equation 11
            "weight_xt": (1 - beta).sqrt() * (1 - before) / (1 - alpha_bar),  # equation 11
            "log_var_min": posterior_variance.log(),
            "log_var_max": beta.log(),
        }
        self.alphas_cumprod = alpha_bar.float().to(device)  # [1000] float32
        self.tables = {name: table.float().to(device) for name, table in tables.items()}

    def at(self, name, t):
        """Entries t [B] of a table -> float32 [B,1,1,1]."""
        return self.tables[name][t][:, None, None, None]

    def q_sample(self, x0, t, noise):
        """x_t of q(x_t|x_0) for a given standard normal noise (equation 8) -> [B,C,h,w]."""
        return self.at("signal", t) * x0.float() + self.at("sigma", t) * noise.float()

    def q_posterior(self, x0, x_t, t):
        """Mean [B,C,h,w] and log variance [B,1,1,1] of q(x_{t-1}|x_t,x_0) (equations 10 and 11).

        At t = 0 the variance is zero; its logarithm is taken from t = 1.
        """
        mean = self.at("weight_x0", t) * x0.float() + self.at("weight_xt", t) * x_t.float()
        return mean, self.at("log_var_min", t)

    def predict_x0(self, x_t, t, noise):
        """The clean latent that x_t and a predicted noise imply (equation 8 solved for x_0), not clipped -> [B,C,h,w]."""
        return self.at("inverse_signal", t) * x_t.float() - self.at("inverse_sigma", t) * noise.float()

    def p_moments(self, x_t, t, output):
        """Mean and log variance, both [B,C,h,w], of p(x_{t-1}|x_t) (equation 15: log-variance between its two bounds)."""
        noise, v = output.float().chunk(2, dim=1)
        mean, log_min = self.q_posterior(self.predict_x0(x_t, t, noise), x_t, t)
        fraction = (v + 1) / 2
        return mean, fraction * self.at("log_var_max", t) + (1 - fraction) * log_min

    def errors(self, x0, x_t, t, noise, output):
        """The four numbers of one evaluation, float32 [B,4], each a mean over the C*h*w latent elements:

        0 mse  squared error of the predicted noise
        1 l1   absolute error of the predicted noise
        2 kl   KL(q(x_{t-1}|x_t,x_0) || p(x_{t-1}|x_t)), bits per element
        3 nll  -log2 p(bin of x_0 | x_t), the decoder term, bits per element

        As in the published evaluation both bound terms are given at EVERY t, although the bound itself takes nll at t = 0
        and kl elsewhere. Differentiable.
        """
        difference = (output[:, : x0.shape[1]].float() - noise.float()).flatten(1)
        mean_q, log_var_q = self.q_posterior(x0, x_t, t)
        mean_p, log_var_p = self.p_moments(x_t, t, output)
        kl = bits_per_element(gaussian_kl(mean_q, log_var_q, mean_p, log_var_p))
        nll = bits_per_element(decoder_nll(x0.float(), mean_p, log_var_p))
        return torch.stack([difference.square().mean(dim=1), difference.abs().mean(dim=1), kl, nll], dim=1)
