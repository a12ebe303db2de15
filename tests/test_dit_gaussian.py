"""The Gaussian process: closed forms, numerical integrals, Bayes' rule on a grid, and simulation of the chain."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy import integrate, stats

from DiT.gaussian import GaussianProcess, decoder_nll, gaussian_kl

BETA = np.linspace(1e-4, 0.02, 1000)
ALPHA_BAR = np.cumprod(1 - BETA)
PROCESS = GaussianProcess()


def latents(batch, seed=0):
    """x0, noise [B,4,3,5] and a network's output [B,8,3,5] that is roughly right."""
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, batch, 4, 3, 5, generator=generator)
    predicted = noise + 0.3 * torch.randn(noise.shape, generator=generator)
    v = torch.rand(noise.shape, generator=generator) * 2 - 1
    return x0, noise, torch.cat([predicted, v], dim=1)


def scalar(value):
    return torch.full((1, 1, 1, 1), float(value))


# ---------------------------------------------------------------- q


def test_alpha_bar_is_that_of_linear_betas():
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    assert PROCESS.alphas_cumprod.dtype == torch.float32
    torch.testing.assert_close(PROCESS.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-4, atol=0)
    np.testing.assert_allclose(PROCESS.alphas_cumprod.numpy(), ALPHA_BAR, rtol=1e-6)


def test_q_sample_is_its_definition():
    x0, noise, _ = latents(4)
    t = torch.tensor([0, 1, 500, 999])
    a = ALPHA_BAR[t.numpy()].reshape(4, 1, 1, 1)
    expected = np.sqrt(a) * x0.double().numpy() + np.sqrt(1 - a) * noise.double().numpy()
    sample = PROCESS.q_sample(x0, t, noise)
    assert sample.dtype == torch.float32
    np.testing.assert_allclose(sample.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_q_sample_has_the_distribution_of_the_chain():
    t, n, x0 = 60, 20_000, 1.7
    rng = np.random.default_rng(0)
    chain = np.full(n, x0)
    for beta in BETA[: t + 1]:
        chain = np.sqrt(1 - beta) * chain + np.sqrt(beta) * rng.standard_normal(n)
    noise = torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    direct = PROCESS.q_sample(torch.full_like(noise, x0), torch.full((n,), t), noise).flatten().numpy()
    assert stats.ks_2samp(chain, direct).pvalue > 0.01


@pytest.mark.parametrize("t", [1, 2, 50, 500, 999])
def test_posterior_is_bayes_rule_on_a_grid(t):
    x0, x_t = 0.8, -0.3
    mean, log_var = (float(m) for m in PROCESS.q_posterior(scalar(x0), scalar(x_t), torch.tensor([t])))
    half_width = 12 * math.sqrt(BETA[t])
    grid = np.linspace(x_t - half_width - abs(x0), x_t + half_width + abs(x0), 400_001)
    log_density = stats.norm.logpdf(x_t, np.sqrt(1 - BETA[t]) * grid, np.sqrt(BETA[t])) + stats.norm.logpdf(
        grid, np.sqrt(ALPHA_BAR[t - 1]) * x0, np.sqrt(1 - ALPHA_BAR[t - 1])
    )
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    grid_mean = (weight * grid).sum()
    assert mean == pytest.approx(grid_mean, rel=1e-5, abs=1e-6)
    assert math.exp(log_var) == pytest.approx((weight * (grid - grid_mean) ** 2).sum(), rel=1e-4)


def test_first_step_takes_the_variance_of_the_second():
    x0, x_t = scalar(0.5), scalar(0.6)
    mean, log_var = PROCESS.q_posterior(x0, x_t, torch.tensor([0]))
    assert torch.allclose(mean, x0)  # the posterior of step 0 is x_0 itself
    assert log_var == PROCESS.q_posterior(x0, x_t, torch.tensor([1]))[1]


# ---------------------------------------------------------------- p


def test_x0_follows_from_the_true_noise_without_clipping():
    x0, noise, _ = latents(3)
    t = torch.tensor([0, 300, 700])
    recovered = PROCESS.predict_x0(PROCESS.q_sample(5 * x0, t, noise), t, noise)
    torch.testing.assert_close(recovered, 5 * x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [1, 400, 999])
def test_variance_moves_between_its_bounds(t):
    x_t, step = torch.randn(1, 4, 2, 2), torch.tensor([t])
    at = {v: PROCESS.p_moments(x_t, step, torch.cat([x_t, torch.full_like(x_t, v)], dim=1))[1] for v in (-1.0, 0.0, 1.0)}
    low, high = math.log(BETA[t] * (1 - ALPHA_BAR[t - 1]) / (1 - ALPHA_BAR[t])), math.log(BETA[t])
    for v, expected in {-1.0: low, 0.0: (low + high) / 2, 1.0: high}.items():
        assert at[v].numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("t", [0, 1, 250, 999])
def test_a_perfect_network_has_no_divergence(t):
    x0, noise, _ = latents(2)
    step = torch.full((2,), t)
    output = torch.cat([noise, -torch.ones_like(noise)], dim=1)
    mse, l1, kl, _ = PROCESS.errors(x0, PROCESS.q_sample(x0, step, noise), step, noise, output).T
    assert not mse.any() and not l1.any()
    assert kl.abs().max() < 1e-6


# ---------------------------------------------------------------- KL

GAUSSIANS = [(0.0, 0.0, 0.0, 0.0), (0.3, -2.0, -0.4, 1.0), (5.0, 1.5, 4.0, -3.0), (0.0, -9.0, 1e-3, -8.99)]


@pytest.mark.parametrize(("mean_q", "log_var_q", "mean_p", "log_var_p"), GAUSSIANS)
def test_kl_against_torch_and_an_integral(mean_q, log_var_q, mean_p, log_var_p):
    ours = float(gaussian_kl(*(torch.tensor(value) for value in (mean_q, log_var_q, mean_p, log_var_p))))
    q, p = ((m, math.exp(0.5 * v)) for m, v in ((mean_q, log_var_q), (mean_p, log_var_p)))
    q64, p64 = (torch.distributions.Normal(*(torch.tensor(x, dtype=torch.float64) for x in pair)) for pair in (q, p))
    assert ours == pytest.approx(float(torch.distributions.kl_divergence(q64, p64)), rel=1e-4, abs=1e-9)

    def integrand(x):
        return stats.norm.pdf(x, *q) * (stats.norm.logpdf(x, *q) - stats.norm.logpdf(x, *p))

    integral, _ = integrate.quad(integrand, q[0] - 12 * q[1], q[0] + 12 * q[1], epsabs=1e-12, limit=200)
    assert ours == pytest.approx(integral, rel=1e-4, abs=1e-9)


# ---------------------------------------------------------------- decoder


@pytest.mark.parametrize("log_std", [-5.0, -3.0, -1.0, 0.0])
@pytest.mark.parametrize("mean", [-1.2, -0.5, 0.0031, 0.9])
def test_bins_sum_to_one(mean, log_std):
    levels = torch.linspace(-1, 1, 256)
    nll = decoder_nll(levels, torch.full((256,), mean), torch.full((256,), 2 * log_std))
    # every bin further than 6 standard deviations is raised to the floor of 1e-12
    assert float((-nll.double()).exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("std", [0.005, 0.05, 0.5])
def test_bins_against_the_normal_distribution(std):
    levels, mean = torch.linspace(-1, 1, 256, dtype=torch.float64), 0.123
    borders = stats.norm.cdf((np.linspace(-1 - 1 / 255, 1 + 1 / 255, 257) - mean) / std)
    borders[0], borders[-1] = 0, 1  # the outermost bins own the tails
    log_var = torch.full((256,), 2 * math.log(std), dtype=torch.float64)
    probability = (-decoder_nll(levels, torch.full_like(levels, mean), log_var)).exp().numpy()
    # the distribution function is approximated by tanh within 2e-4; a bin is a difference of two
    np.testing.assert_allclose(probability, np.diff(borders), atol=4e-4)


def test_bin_in_the_middle_has_its_closed_form():
    nll = decoder_nll(torch.tensor([0.1]), torch.tensor([0.1]), torch.tensor([2 * math.log(0.02)]))
    exact = -math.log(stats.norm.cdf(1 / 255 / 0.02) - stats.norm.cdf(-1 / 255 / 0.02))
    assert float(nll) == pytest.approx(exact, rel=1e-3)


def test_values_beyond_the_edges_own_the_tails_and_the_floor_holds():
    zero = torch.zeros(3)
    inside_tail, far, other_tail = decoder_nll(torch.tensor([1.5, 0.5, -1.5]), zero, torch.tensor([0.0, -14.0, 0.0]))
    assert float(inside_tail) == pytest.approx(-stats.norm.logsf(1.5 - 1 / 255), rel=3e-3)
    assert float(other_tail) == pytest.approx(float(inside_tail), rel=1e-6)
    assert float(far) == pytest.approx(12 * math.log(10), rel=1e-6)  # -log 1e-12


# ---------------------------------------------------------------- the four numbers


def errors_in_float64(x0, t, noise, output):
    """One evaluation from the definitions, in float64 numpy with scipy's distributions."""
    x0, noise = x0.double().numpy(), noise.double().numpy()
    predicted, v = output.double().numpy()[:4], output.double().numpy()[4:]
    a, before, beta = ALPHA_BAR[t], ALPHA_BAR[t - 1], BETA[t]
    x_t = np.sqrt(a) * x0 + np.sqrt(1 - a) * noise
    guess = (x_t - np.sqrt(1 - a) * predicted) / np.sqrt(a)
    mean_q, mean_p = ((np.sqrt(before) * beta * x + np.sqrt(1 - beta) * (1 - before) * x_t) / (1 - a) for x in (x0, guess))
    var_q = beta * (1 - before) / (1 - a)
    std_p = np.exp(0.5 * ((v + 1) / 2 * np.log(beta) + (1 - v) / 2 * np.log(var_q)))
    kl = np.log(std_p / np.sqrt(var_q)) + (var_q + (mean_q - mean_p) ** 2) / (2 * std_p**2) - 0.5
    above = np.where(x0 > 0.999, 1, stats.norm.cdf((x0 + 1 / 255 - mean_p) / std_p))
    below = np.where(x0 < -0.999, 0, stats.norm.cdf((x0 - 1 / 255 - mean_p) / std_p))
    nll = -np.log2(np.maximum(above - below, 1e-12))
    difference = predicted - noise
    return [(difference**2).mean(), np.abs(difference).mean(), kl.mean() / math.log(2), nll.mean()]


def test_four_numbers_against_their_definitions():
    x0, noise, output = latents(5)
    t = torch.tensor([1, 3, 60, 500, 999])
    ours = PROCESS.errors(x0, PROCESS.q_sample(x0, t, noise), t, noise, output)
    assert ours.shape == (5, 4) and ours.dtype == torch.float32
    expected = np.array([errors_in_float64(x0[i], int(t[i]), noise[i], output[i]) for i in range(5)])
    np.testing.assert_allclose(ours[:, :2], expected[:, :2], rtol=1e-5)
    np.testing.assert_allclose(ours[:, 2], expected[:, 2], rtol=1e-3)
    np.testing.assert_allclose(ours[:, 3], expected[:, 3], rtol=0.1)  # tanh for erf in far tails: next test


def exact_nll(x0, mean, std):
    """-ln of the bins' probabilities in float64, each difference taken in the tail where it does not cancel."""
    upper, lower = (x0 + 1 / 255 - mean) / std, (x0 - 1 / 255 - mean) / std
    inner = np.abs(stats.norm.cdf(-np.abs(upper)) - stats.norm.cdf(-np.abs(lower)))
    inside = np.where(upper * lower > 0, inner, stats.norm.cdf(upper) - stats.norm.cdf(lower))
    tails = np.where(x0 > 0.999, stats.norm.sf(lower), np.where(x0 < -0.999, stats.norm.cdf(upper), inside))
    return -np.log(np.maximum(tails, 1e-12))


@pytest.mark.parametrize(("t", "low", "high"), [(0, 0, 0.003), (25, 0.08, 0.13), (205, 0.03, 0.06), (995, 0.03, 0.06)])
def test_what_tanh_in_place_of_erf_costs(t, low, high):
    """The decoder term is higher, the more of it lies in the tails: next to nothing at t = 0, about a tenth at t = 25."""
    x0, noise, output = latents(200)
    step = torch.full((200,), t)
    mean, log_var = PROCESS.p_moments(PROCESS.q_sample(x0, step, noise), step, output)
    ours = decoder_nll(x0, mean, log_var).double().mean().item()
    exact = exact_nll(*(value.double().numpy() for value in (x0, mean, (log_var / 2).exp()))).mean()
    assert low <= ours / exact - 1 < high


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_are_judged_in_float32(dtype):
    x0, noise, output = latents(2)
    t = torch.tensor([10, 900])
    x_t = PROCESS.q_sample(x0, t, noise)
    ours = PROCESS.errors(x0, x_t, t, noise, output.to(dtype))
    assert ours.dtype == torch.float32
    assert torch.equal(ours, PROCESS.errors(x0, x_t, t, noise, output.to(dtype).float()))


def test_gradients_reach_noise_and_variance():
    x0, noise, output = latents(3)
    output.requires_grad_()
    t = torch.tensor([0, 1, 999])
    PROCESS.errors(x0, PROCESS.q_sample(x0, t, noise), t, noise, output).sum().backward()
    assert output.grad.isfinite().all()
    for part in output.grad.chunk(2, dim=1):
        assert (part != 0).flatten(1).any(dim=1).all()
