"""The batched kernel against a plain loop, a denoiser with known answers, and scores against numpy."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import TINY_SD20

from diffusion import models
from diffusion.kernel import blocks as kernel
from diffusion.kernel import scores
from diffusion.models.denoiser import Conditions, Denoiser, ddpm


@pytest.fixture(scope="module")
def tiny():
    return models.text_to_image("2-0", str(TINY_SD20)).load("cpu", "float32")


@pytest.fixture(scope="module")
def problem(tiny):
    """x0 [4,8,8], conds [3,L,D], t [5], noise [5,4,8,8]."""
    g = torch.Generator().manual_seed(1)
    conds = tiny.embed(["a photo of a cat.", "a photo of a dog.", ""])
    return torch.randn(4, 8, 8, generator=g), conds, torch.tensor([3, 999, 500, 0, 500]), torch.randn(5, 4, 8, 8, generator=g)


def plain_loop(denoiser, x0, conds, t, noise):
    """One (candidate, timestep) at a time, in double precision outside the network."""
    rows = []
    for row in range(len(conds)):
        for step, epsilon in zip(t, noise, strict=True):
            signal, sigma = denoiser.levels.signal[step].double(), denoiser.levels.sigma[step].double()
            x_t = (signal * x0.double() + sigma * epsilon.double()).float()
            with torch.inference_mode():
                output = denoiser.predict(x_t[None], step[None], conds[[row]])[0]
            rows.append((output.double() - epsilon.double()).square().mean().item())
    return np.array(rows).reshape(len(conds), len(t))


@pytest.mark.parametrize("batch_size", [1, 4, 15, 100])
def test_agrees_with_the_plain_loop_at_any_batch_size(tiny, problem, batch_size):
    errors = kernel.errors(tiny, *problem, scores.l2, kernel.Batch(batch_size))
    assert errors.shape == (3, 5) and errors.dtype == torch.float32 and errors.device.type == "cpu"
    np.testing.assert_allclose(errors, plain_loop(tiny, *problem), rtol=1e-5)


def test_known_answers_with_several_quantities_per_sample():
    """A network that answers cond everywhere: its errors are the moments of cond - noise."""
    network = Denoiser(None, None, lambda x, t, c: c.sequence.expand(len(x), 4, 2, 2), ddpm(torch.linspace(0.99, 0.01, 1000)))
    noise = torch.randn(3, 4, 2, 2)
    conds = Conditions(torch.tensor([0.0, 2.0]).view(2, 1, 1, 1))

    def both(noise, prediction, *_):
        return torch.stack([scores.l1(noise, prediction), scores.l2(noise, prediction)], 1)

    errors = kernel.errors(network, torch.zeros(4, 2, 2), conds, torch.tensor([1, 2, 3]), noise, both, kernel.Batch(4))
    assert errors.shape == (2, 3, 2)
    for k, value in enumerate([0.0, 2.0]):
        for s in range(3):
            d = value - noise[s].numpy()
            np.testing.assert_allclose(errors[k, s], [np.abs(d).mean(), (d**2).mean()], rtol=1e-6)


def test_the_network_sees_the_noised_latent_of_its_own_pair():
    seen = []
    abar = torch.linspace(0.99, 0.01, 1000)
    network = Denoiser(None, None, lambda x, t, c: (seen.append((x, t, c.ids)), x)[1], ddpm(abar))
    x0, noise, t = torch.randn(4, 2, 2), torch.randn(2, 4, 2, 2), torch.tensor([10, 700])
    kernel.errors(network, x0, Conditions(ids=torch.arange(3)), t, noise, scores.l2, kernel.Batch(6))
    x, steps, conds = seen[0]
    assert steps.tolist() == [10, 700] * 3 and conds.tolist() == [0, 0, 1, 1, 2, 2]
    a = abar[700]
    torch.testing.assert_close(x[1], a.sqrt() * x0 + (1 - a).sqrt() * noise[1])


@pytest.mark.parametrize("size", [1, 5, 32, 128])
@pytest.mark.parametrize(("n_rows", "n_pairs"), [(10, 25), (1, 7), (37, 1), (17, 50)])
def test_blocks_cover_the_grid_once(n_rows, n_pairs, size):
    seen = np.zeros((n_rows, n_pairs), int)
    blocks = kernel.blocks(n_rows, n_pairs, size)
    for rows, pairs in blocks:
        seen[rows, pairs] += 1
        assert 0 < kernel.cells(rows, pairs) <= size
    assert (seen == 1).all()
    assert len(blocks) <= 1.3 * np.ceil(n_rows * n_pairs / size) + 1


def test_blocks_share_pairs_where_that_costs_no_more_calls():
    assert [rows for rows, _ in kernel.blocks(10, 12, 120)] == [slice(0, 10)]
    assert kernel.blocks(8, 12, 32) == [(slice(0, 8), slice(i, i + 4)) for i in (0, 4, 8)]


def limited(network, most):
    """The network on a device with memory for so many inputs; and the sizes of the calls that fitted."""
    sizes = []

    def predict(x_t, t, cond):
        if len(x_t) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(x_t))
        return network.predict(x_t, t, cond)

    return dataclasses.replace(network, predict=predict, shared=None), sizes


def test_out_of_memory_halves_the_batch_and_loses_nothing(tiny, problem):
    expected = kernel.errors(tiny, *problem, scores.l2, kernel.Batch(15))
    small, sizes = limited(tiny, 4)
    batch = kernel.Batch(16)
    with pytest.warns(UserWarning, match="going on with [84] evaluations"):
        errors = kernel.errors(small, *problem, scores.l2, batch)
    torch.testing.assert_close(errors, expected, rtol=1e-5, atol=0)
    assert batch.size == 4 and sum(sizes) == 15  # nothing that fitted is done again
    kernel.errors(small, *problem, scores.l2, batch)
    assert sum(sizes) == 30 and batch.size == 4


def test_memory_for_not_even_one_is_an_error(tiny, problem):
    with pytest.warns(UserWarning), pytest.raises(torch.OutOfMemoryError, match="--img_size"):
        kernel.errors(limited(tiny, 0)[0], *problem, scores.l2, kernel.Batch(8))


def test_noise_that_does_not_fit_is_refused(tiny, problem):
    x0, conds, t, noise = problem
    with pytest.raises(ValueError, match="does not fit"):
        kernel.errors(tiny, x0, conds, t[:-1], noise, scores.l2, kernel.Batch())


def test_scores_are_their_definitions():
    noise, prediction = torch.randn(6, 4, 3, 3), 2 * torch.randn(6, 4, 3, 3)
    d = (prediction - noise).double().numpy().reshape(6, -1)
    huber = np.where(np.abs(d) < 1, d**2 / 2, np.abs(d) - 0.5)
    for name, expected in (("l1", np.abs(d)), ("l2", d**2), ("huber", huber)):
        np.testing.assert_allclose(scores.SCORES[name](noise, prediction), expected.mean(1), rtol=1e-5)
