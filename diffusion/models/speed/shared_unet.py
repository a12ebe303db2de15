"""What the candidates of a block share in a Stable Diffusion U-Net is computed once: the same numbers up to rounding.

A block is R conditions on P noised latents, one after another: evaluation r * P + p. Nothing before the first cross-attention
depends on the condition: conv_in, blocks without cross-attention, the next ResNet block and its self-attention. Keys and values
of the text depend on nothing else. Of a list of cells, one condition and one of P latents each, only the former is shared.
"""

import threading
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

# The blocks that read the text in `attn2` alone, in layers known here. diffusers' "Simple" ones add it to the keys of their
# self-attention, and its "K" ones have other layers. Blocks without cross-attention may be any.
READERS = ("CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "CrossAttnUpBlock2D")


def share(unet: torch.nn.Module) -> Callable[..., torch.Tensor] | None:
    """Change a U-Net in place so that candidates share work. It still takes one condition per latent, as before.

    Returns:
        (x_t [P,C,h,w], t [P], Conditions of R) -> output [R*P,C,h,w], which with latent [B] as a fourth argument is
        (..., Conditions of B, latent) -> [B,C,h,w], condition b on x_t[latent[b]]. None, and the U-Net as it was, where it is of
        another kind than those of Stable Diffusion 1.x and 2.x.
    """
    from diffusers.models.attention_processor import AttnProcessor2_0

    class TextAttention(AttnProcessor2_0):
        """Queries of the P evaluations [R*P,N,C] of each of R texts [R,L,D] side by side, so that keys need no copies."""

        def __call__(self, attn, hidden_states, *text, **more):
            return super().__call__(attn, hidden_states, *text, **more).reshape(hidden_states.shape)

    if not is_standard(unet):
        return None
    block = Block()
    for module in before_text(unet):
        once_a_latent(module, block)
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.set_processor(TextAttention())

    def run(x_t, t, conditions, latent=None):
        n = len(conditions)
        block.rows, block.latents, block.latent = n, len(x_t), latent
        every = (repeat(x_t, n), t.repeat(n)) if latent is None else (take(x_t, latent), t[latent])
        try:
            return unet(*every, encoder_hidden_states=conditions.sequence, return_dict=False)[0]
        finally:
            block.rows, block.latent = 1, None  # also when memory runs out: the next call may be one of the U-Net itself

    return run


def is_standard(unet) -> bool:
    """Whether the text is read where it is in Stable Diffusion 1.x and 2.x, and nowhere else."""
    parts = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    readers = [type(part).__name__ for part in parts if getattr(part, "has_cross_attention", False)]
    return set(readers) <= set(READERS) and all(unet.config.get(name) == value for name, value in STANDARD.items())


class Block(threading.local):
    """The size of the block in work, of each thread its own.

    Attributes:
        rows: conditions; one for a call of the U-Net itself.
        latents: noised latents.
        latent: int64 [B], the latent of each of `rows` cells; None for a block.
    """

    rows: int = 1
    latents: int = 0
    latent: torch.Tensor | None = None

    def first(self, x):
        """One evaluation of each latent, [P,...], out of [R*P,...] or [B,...]."""
        if self.latent is None:
            return x[: self.latents]
        cell = torch.arange(len(self.latent), device=x.device)
        return take(x, self.latent.new_zeros(self.latents).scatter(0, self.latent, cell))

    def expand(self, y):
        """What was computed once a latent, [P,...], for every evaluation: [R*P,...] or [B,...]."""
        return repeat(y, self.rows) if self.latent is None else take(y, self.latent)


def before_text(unet) -> list:
    """The modules that run before any cross-attention, without cheap ones."""
    modules = [unet.conv_in]
    for part in unet.down_blocks:
        if getattr(part, "has_cross_attention", False):
            first = part.attentions[0]
            return [*modules, part.resnets[0], first.norm, first.proj_in, *(b.attn1 for b in first.transformer_blocks[:1])]
        modules.append(part)
    return modules


def once_a_latent(module, block: Block) -> None:
    """Make a module run on one input for each latent, in place; its outputs are repeated for the others."""
    forward = module.forward

    def shared(*inputs, **named):
        if block.rows == 1:
            return forward(*inputs, **named)
        first = [_each(x, block.first) for x in inputs]
        outputs = forward(*first, **{name: _each(x, block.first) for name, x in named.items()})
        return _each(outputs, block.expand)

    module.forward = shared


def repeat(x, n: int):
    """n copies along the first axis, [n*P,...]; channels_last is kept, which Tensor.repeat does not do."""
    if x.dim() == 4:
        return x.permute(0, 2, 3, 1).repeat(n, 1, 1, 1).permute(0, 3, 1, 2)
    return x.repeat(n, *[1] * (x.dim() - 1))


def take(x, index):
    """x[index], in which channels_last is kept."""
    if x.dim() == 4:
        return x.permute(0, 2, 3, 1)[index].permute(0, 3, 1, 2)
    return x[index]


def _each(value, function):
    """The result of a function for every tensor in nested tuples; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(_each(part, function) for part in value)
    return function(value) if isinstance(value, torch.Tensor) else value
