"""What the candidates of a block share in a Stable Diffusion U-Net is computed once: the same numbers up to rounding.

A block is R conditions on P noised latents, one after another: evaluation r * P + p. Nothing before the first cross-attention
depends on the condition: conv_in, blocks without cross-attention, the next ResNet block and its self-attention. Keys and values
of the text depend on nothing else.
"""

from collections.abc import Callable

import torch

# What a U-Net of SD 1.x and 2.x is; another may look at the condition elsewhere.
STANDARD = {
    "attention_type": "default",
    "class_embed_type": None,
    "encoder_hid_dim_type": None,
    "addition_embed_type": None,
    "cross_attention_norm": None,
    "only_cross_attention": False,
    "dual_cross_attention": False,
}


def share(unet) -> Callable | None:
    """Changes the U-Net in place; returns (x_t [P,C,h,w], t [P], cond [R,L,D]) -> output [R*P,C,h,w], None where it cannot.

    The changed U-Net still takes one condition a latent, as before.
    """
    from diffusers.models.attention_processor import AttnProcessor2_0

    class TextAttention(AttnProcessor2_0):
        """Queries of the P evaluations [R*P,N,C] of each of R texts [R,L,D] side by side, so that keys need no copies."""

        def __call__(self, attn, hidden_states, *text, **more):
            return super().__call__(attn, hidden_states, *text, **more).reshape(hidden_states.shape)

    if any(unet.config.get(name) != value for name, value in STANDARD.items()):
        return None
    n_rows = [1]  # of the call in work
    for module in before_text(unet):
        once_a_latent(module, n_rows)
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.set_processor(TextAttention())

    def run(x_t, t, cond):
        n_rows[0] = n = len(cond)
        try:
            return unet(torch.cat([x_t] * n), t.repeat(n), encoder_hidden_states=cond, return_dict=False)[0]
        finally:
            n_rows[0] = 1

    return run


def before_text(unet) -> list:
    """The modules that run before any cross-attention, but for cheap ones."""
    modules = [unet.conv_in]
    for block in unet.down_blocks:
        if getattr(block, "has_cross_attention", False):
            first = block.attentions[0]
            return [*modules, block.resnets[0], first.norm, first.proj_in, first.transformer_blocks[0].attn1]
        modules.append(block)
    return modules


def once_a_latent(module, n_rows: list[int]) -> None:
    """The module runs on the first of n_rows equal parts of its inputs, and its outputs are repeated."""
    forward = module.forward

    def shared(*inputs, **named):
        n = n_rows[0]
        if n == 1:
            return forward(*inputs, **named)
        first = [_each(x, lambda x: x[: len(x) // n]) for x in inputs]
        outputs = forward(*first, **{name: _each(x, lambda x: x[: len(x) // n]) for name, x in named.items()})
        return _each(outputs, lambda y: torch.cat([y] * n))

    module.forward = shared


def _each(value, function):
    """function of every tensor in nested tuples; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(_each(part, function) for part in value)
    return function(value) if isinstance(value, torch.Tensor) else value
