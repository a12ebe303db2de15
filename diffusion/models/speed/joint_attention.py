"""Joint attention (SD3) in which one context token stands for many equal ones.

Without T5, `StableDiffusion3Pipeline` appends 256 zero vectors to CLIP's tokens. Nothing in the network tells them apart: they
have no positions, so that each block makes the same of all. One of them, whose attention logits are raised by log 256, gives
the same numbers in a fourth of the work (of 77 + 256 tokens, 78 are left).
"""

import math

import torch
from torch.nn.functional import scaled_dot_product_attention


class CountedJointAttention:
    """diffusers' JointAttnProcessor2_0, in which the last token of the context is attended to as `count` equal ones."""

    def __init__(self, count: int):
        self.count = count

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        query, key, value = _heads(attn, hidden_states, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k))
        bias = None
        if encoder_hidden_states is not None:
            layers, norms = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), (attn.norm_added_q, attn.norm_added_k)
            context = _heads(attn, encoder_hidden_states, layers, norms)
            query, key, value = (torch.cat(pair, dim=2) for pair in zip((query, key, value), context, strict=True))
            bias = torch.zeros(key.shape[2], dtype=query.dtype, device=query.device)
            bias[-1] = math.log(self.count)
            bias = bias.expand(query.shape[2], -1)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        attended = attended.transpose(1, 2).flatten(2).to(query.dtype)
        n = hidden_states.shape[1]
        out = attn.to_out[1](attn.to_out[0](attended[:, :n]))
        if encoder_hidden_states is None:
            return out
        return out, attended[:, n:] if attn.context_pre_only else attn.to_add_out(attended[:, n:])


def _heads(attn, states, layers, norms):
    """Queries, keys and values [B,heads,L,D] of states [B,L,heads*D], the first two normalised where the model does that."""
    by_head = [layer(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in layers]
    return [norm(x) if norm else x for norm, x in zip((*norms, None), by_head, strict=True)]
