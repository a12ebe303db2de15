"""The Diffusion Transformer with adaLN-Zero blocks (Peebles and Xie 2022, arXiv 2212.09748, section 3).

Shapes in the comments: B images, C latent channels, H x W latent, p patch, N = (H/p)*(W/p) tokens, D hidden size.
Parameter names and layouts are those of the published checkpoints.
"""

import math
from functools import partial

import torch
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Attention  # in timm.layers only since timm 1.0.16
from torch import nn
from torch.nn import functional as F

FREQUENCIES = 256  # width of the sinusoidal timestep features, half cosines, half sines


def sinusoids(position, frequencies):
    """Angles position x frequency -> (sines, cosines), each [..., len(frequencies)] in the dtype of `position`."""
    angle = position[..., None] * frequencies
    return angle.sin(), angle.cos()


def position_table(grid, width):
    """Fixed 2D sine-cosine embedding of a grid x grid token raster -> float32 [1, grid*grid, width].

    The first half of the features encodes the column, the second half the row; each is sines, then cosines.
    """
    rates = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    line = torch.cat(sinusoids(torch.arange(grid, dtype=torch.float64), rates), dim=-1)  # [grid, D/2]
    columns = line[None, :, :].expand(grid, grid, -1)
    rows = line[:, None, :].expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, grid * grid, width).float()


def timestep_features(t, frequency_shift=0):
    """Sinusoidal features of integer timesteps, t [B] -> float32 [B, 256], cosines before sines.

    The i-th of the 128 frequencies is 10000^(-i / (128 - frequency_shift)): 0 is the published network, 1 that of diffusers
    (its `downscale_freq_shift`). Float32 whatever the model's dtype: bfloat16 cannot tell t=999 from t=1000.
    """
    half = FREQUENCIES // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device)
    rates = torch.exp(-math.log(10000.0) * exponents / (half - frequency_shift))
    sines, cosines = sinusoids(t.float(), rates)
    return torch.cat([cosines, sines], dim=-1)


def modulate(x, shift, scale):
    """Per-image affine map of the tokens: x [B,N,D], shift and scale [B,D] -> [B,N,D]."""
    return x * (1 + scale[:, None]) + shift[:, None]


def plain_norm(width):
    """LayerNorm without its own affine map, which adaLN supplies from the condition."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class TimestepEmbedder(nn.Module):
    """t [B] -> [B,D] through a two-layer MLP on sinusoidal features."""

    def __init__(self, width, frequency_shift):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.frequency_shift = frequency_shift

    def forward(self, t):
        return self.mlp(timestep_features(t, self.frequency_shift).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """y [B] int64 in 0..num_classes -> [B,D]; row num_classes is the null class of unconditional training.

    In training mode each label becomes the null class with probability `dropout` (classifier-free guidance, arXiv 2207.12598).
    """

    def __init__(self, num_classes, width, dropout):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)
        self.num_classes = num_classes
        self.dropout = dropout

    def forward(self, y):
        if self.training:
            drop = torch.rand(y.shape, device=y.device) < self.dropout
            y = y.masked_fill(drop, self.num_classes)
        return self.embedding_table(y)


class Block(nn.Module):
    """Self-attention and MLP; shift, scale and gate of both come from the condition (paper, figure 3, adaLN-Zero)."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = plain_norm(width)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = plain_norm(width)
        self.mlp = Mlp(width, 4 * width, act_layer=partial(nn.GELU, approximate="tanh"))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, condition):
        """x [B,N,D], condition [B,D] -> [B,N,D]."""
        parts = self.adaLN_modulation(condition).chunk(6, dim=1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = parts
        x = x + gate_attn[:, None] * self.attn(modulate(self.norm1(x), shift_attn, scale_attn))
        return x + gate_mlp[:, None] * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """Tokens [B,N,D] and condition [B,D] -> patches [B, N, p*p*channels]."""

    def __init__(self, width, patch, channels):
        super().__init__()
        self.norm_final = plain_norm(width)
        self.linear = nn.Linear(width, patch * patch * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, condition):
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """Class-conditional diffusion transformer that predicts the noise and the variance's interpolation weight."""

    def __init__(
        self,
        input_size=32,  # height and width of the latent, in latent elements (32 for 256 px images)
        patch_size=2,  # side of a token, in latent elements; divides input_size
        hidden_size=1152,  # token width; divisible by num_heads and by 4
        depth=28,  # number of blocks
        num_heads=16,  # attention heads
        num_classes=1000,  # without the null class, which gets the row after the last
        in_channels=4,  # latent channels C; the output has 2*C
        label_dropout=0.1,  # probability of training with the null class; no effect in eval mode
        frequency_shift=0,  # of the timestep features: 0 as published, 1 as in networks trained with diffusers
        block_embedders=False,  # an embedder of timestep and one of label per block, as diffusers trains; else one of each
    ):
        """Raises ValueError when the sizes do not divide."""
        super().__init__()
        if input_size % patch_size or hidden_size % num_heads or hidden_size % 4:
            raise ValueError(
                f"DiT sizes do not divide: input_size {input_size} by patch_size {patch_size}, "
                f"hidden_size {hidden_size} by num_heads {num_heads} and by 4"
            )
        self.x_embedder = PatchEmbed(input_size, patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size, frequency_shift)  # of all blocks, or of the first
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, label_dropout)
        self.block_embedders = nn.ModuleDict()  # block number -> its own two
        for i in range(1, depth if block_embedders else 1):
            t_embedder = TimestepEmbedder(hidden_size, frequency_shift)
            y_embedder = LabelEmbedder(num_classes, hidden_size, label_dropout)
            self.block_embedders[str(i)] = nn.ModuleDict({"t_embedder": t_embedder, "y_embedder": y_embedder})
        self.pos_embed = nn.Parameter(position_table(input_size // patch_size, hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size, 2 * in_channels)
        self.initialise()

    def initialise(self):
        """Starting point of a training run: every block is the identity and the output is zero (paper, section 3.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # the patch convolution is a linear map of p*p*C values, and is initialised as one
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.x_embedder.proj.out_channels, -1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        for t_embedder, y_embedder in self.embedders():
            for embedding in (y_embedder.embedding_table, t_embedder.mlp[0], t_embedder.mlp[2]):
                nn.init.normal_(embedding.weight, std=0.02)
        for layer in (*(block.adaLN_modulation[1] for block in self.blocks), self.final_layer.adaLN_modulation[1]):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def embedders(self):
        """[(timestep embedder, label embedder)], of every block or one pair of all."""
        extra = [(pair["t_embedder"], pair["y_embedder"]) for pair in self.block_embedders.values()]
        return [(self.t_embedder, self.y_embedder), *extra]

    def conditions(self, t, y):
        """t [B], y [B] -> the condition [B,D] of each block, computed once where they share it."""
        embedded = [t_embedder(t) + y_embedder(y) for t_embedder, y_embedder in self.embedders()]
        return embedded if self.block_embedders else embedded * len(self.blocks)

    def forward(self, x, t, y):
        """Noise prediction and variance weight of noisy latents.

        x [B,C,H,W] in the model's dtype, t [B] int64 in 0..999, y [B] int64 in 0..num_classes -> [B,2C,H,W] in the model's
        dtype: the first C channels predict the noise, the last C are v of Improved DDPM, equation 15, scaled to [-1,1].
        """
        tokens = self.x_embedder(x) + self.pos_embed  # [B,N,D]
        conditions = self.conditions(t, y)
        for block, condition in zip(self.blocks, conditions, strict=True):
            tokens = block(tokens, condition)
        return self.to_image(self.final_layer(tokens, conditions[0]))

    def to_image(self, patches):
        """[B, N, p*p*2C], each patch row by row with the channel fastest -> [B,2C,H,W]."""
        patch = self.x_embedder.proj.stride[0]
        rows, columns = self.x_embedder.grid_size
        pixels = patches.unflatten(2, (patch * patch, -1)).permute(0, 3, 2, 1).flatten(1, 2)  # [B, 2C*p*p, N]
        return F.pixel_shuffle(pixels.unflatten(2, (rows, columns)), patch)
