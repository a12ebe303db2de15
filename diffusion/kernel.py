"""The batched loop over (candidate, timestep, noise): the only caller of a denoiser for classification."""

import torch

from diffusion.schedule import add_noise


@torch.inference_mode()
def epsilon_errors(
    denoiser,  # predict(x_t [B,C,h,w] float32, t [B] int64, cond [B,...]) -> epsilon, or more channels; alphas_cumprod [T]
    x0,  # [C,h,w] or [M,C,h,w]  clean latents, already scaled; of M images, candidate k is about image k mod M
    conds,  # [K,...]    one row per candidate: text embeddings [K,L,D], or class ids [K]
    t,  # [S] int64  training timesteps, 0 .. T-1
    noise,  # [S,C,h,w]  standard normal; row s belongs to t[s], the SAME for every candidate
    score,  # callable(noise, output, x_t, t), all float32 but t -> [B] or [B,...] float32
    batch_size=32,  # network inputs per call
):
    """Errors of every candidate on every (timestep, noise) pair: float32 on the CPU, [K,S] or [K,S,...] (paper, eq. 5).

    Candidate-major, pair inner. Noising and errors in float32; everything stays on x0's device until the one copy at the end.
    Raises ValueError for noise of another shape, FloatingPointError when an error is not finite.
    """
    if noise.shape != (len(t), *x0.shape[-3:]):
        raise ValueError(f"noise {list(noise.shape)} does not fit {len(t)} timesteps of latents {list(x0.shape)}")
    t, noise = t.to(x0.device), noise.to(x0.device, torch.float32)
    latents = x0.view(-1, 1, *x0.shape[-3:])
    x_t = add_noise(latents, noise, denoiser.alphas_cumprod, t)  # [M,S,C,h,w]
    n_pairs, total = len(t), len(conds) * len(t)
    errors = []
    for start in range(0, total, batch_size):
        flat = torch.arange(start, min(start + batch_size, total), device=x0.device)
        row, pair = flat // n_pairs, flat % n_pairs
        noisy = x_t[row % len(latents), pair]
        output = denoiser.predict(noisy, t[pair], conds[row])
        errors.append(score(noise[pair], output.float(), noisy, t[pair]))
    errors = torch.cat(errors)
    if not errors.isfinite().all():  # no candidate may win by being NaN
        raise FloatingPointError(f"{int((~errors.isfinite()).sum())} of {errors.numel()} errors are not finite")
    return errors.view(len(conds), n_pairs, *errors.shape[1:]).cpu()
