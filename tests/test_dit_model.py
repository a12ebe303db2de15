"""The transformer: against diffusers' implementation, its published sizes, its initial state, its training-time behaviour."""

import math

import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import get_timestep_embedding

from DiT.models import SHAPES, DiT, position_table, timestep_features

TINY = {"input_size": 8, "patch_size": 2, "hidden_size": 48, "depth": 3, "num_heads": 4, "num_classes": 5}


def randomised(**changes):
    """A tiny DiT in eval mode with no parameter at its initial value, so that every one of them shows in the output."""
    torch.manual_seed(0)
    model = DiT(**{**TINY, **changes}).eval()
    for name, parameter in model.named_parameters():
        if name != "pos_embed":
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def inputs(model, batch=4):
    side = model.x_embedder.img_size[0]
    x = torch.randn(batch, model.x_embedder.proj.in_channels, side, side, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0, 1, 500, 999])[:batch], torch.tensor([0, 4, 5, 2])[:batch]


def diffusers_names(model):
    """Our state dict under diffusers' names: the converter's inverse, written independently of it."""
    ours = model.state_dict()
    theirs = {}
    for kind in ("weight", "bias"):
        theirs[f"pos_embed.proj.{kind}"] = ours[f"x_embedder.proj.{kind}"]
        theirs[f"proj_out_1.{kind}"] = ours[f"final_layer.adaLN_modulation.1.{kind}"]
        theirs[f"proj_out_2.{kind}"] = ours[f"final_layer.linear.{kind}"]
        for i in range(len(model.blocks)):
            block = f"transformer_blocks.{i}"
            theirs[f"{block}.norm1.emb.timestep_embedder.linear_1.{kind}"] = ours[f"t_embedder.mlp.0.{kind}"]
            theirs[f"{block}.norm1.emb.timestep_embedder.linear_2.{kind}"] = ours[f"t_embedder.mlp.2.{kind}"]
            theirs[f"{block}.norm1.linear.{kind}"] = ours[f"blocks.{i}.adaLN_modulation.1.{kind}"]
            q, k, v = ours[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            theirs |= {f"{block}.attn1.to_q.{kind}": q, f"{block}.attn1.to_k.{kind}": k, f"{block}.attn1.to_v.{kind}": v}
            theirs[f"{block}.attn1.to_out.0.{kind}"] = ours[f"blocks.{i}.attn.proj.{kind}"]
            theirs[f"{block}.ff.net.0.proj.{kind}"] = ours[f"blocks.{i}.mlp.fc1.{kind}"]
            theirs[f"{block}.ff.net.2.{kind}"] = ours[f"blocks.{i}.mlp.fc2.{kind}"]
    for i in range(len(model.blocks)):
        name = f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight"
        theirs[name] = ours["y_embedder.embedding_table.weight"]
    return theirs


def diffusers_twin(model, patch=2, shift=0):
    """diffusers' DiT with the weights of ours. Two of its defaults are not the paper's: frequencies 10000^(-i/127) in place of
    10000^(-i/128), changed unless shift is 1, and 1e-5 in one LayerNorm, changed to the 1e-6 of the published network."""
    heads, width = model.blocks[0].attn.num_heads, model.pos_embed.shape[2]
    twin = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=4,
        out_channels=8,
        num_layers=len(model.blocks),
        sample_size=model.x_embedder.img_size[0],
        patch_size=patch,
        num_embeds_ada_norm=model.y_embedder.num_classes,
        norm_eps=1e-6,
    ).eval()
    twin.load_state_dict(diffusers_names(model), strict=True)
    for block in twin.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = shift
    return twin


@pytest.mark.parametrize(("patch", "shift"), [(2, 0), (4, 0), (2, 1)])
@torch.inference_mode()
def test_agrees_with_diffusers(patch, shift):
    model = randomised(patch_size=patch, frequency_shift=shift)
    x, t, y = inputs(model)
    ours, theirs = model(x, t, y), diffusers_twin(model, patch, shift)(x, t, y).sample
    assert ours.shape == (4, 8, 8, 8)
    assert (ours - theirs).norm() / theirs.norm() < 1e-5
    assert ours.std() > 0.1  # the comparison is not one of zeros


@pytest.mark.parametrize(("name", "millions"), [("DiT-S/2", 33), ("DiT-B/2", 130), ("DiT-L/2", 458), ("DiT-XL/2", 675)])
def test_parameter_counts_of_the_paper(name, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in DiT(**SHAPES[name]).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.6)


def test_twelve_published_shapes():
    assert sorted(SHAPES) == sorted(f"DiT-{size}/{patch}" for size in ("S", "B", "L", "XL") for patch in (2, 4, 8))


def test_positions_entry_by_entry():
    table = position_table(3, 8)[0]
    for token in range(9):
        row, column = divmod(token, 3)
        expected = [f(p * rate) for p in (column, row) for f in (math.sin, math.cos) for rate in (1, 0.01)]
        assert table[token].tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("shift", [0, 1])
def test_timestep_features_are_float32_and_those_of_diffusers(shift):
    t = torch.tensor([0, 1, 37, 999])
    features = timestep_features(t, shift)
    assert features.dtype == torch.float32
    oracle = get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=shift)
    torch.testing.assert_close(features, oracle, rtol=0, atol=1e-4)  # float32 angles up to 999: one rounding is 6e-5


@torch.inference_mode()
def test_bfloat16_model_still_tells_neighbouring_timesteps_apart():
    model = randomised().bfloat16()
    x, _, y = inputs(model, 2)
    x = x[:1].expand(2, -1, -1, -1).bfloat16()
    output = model(x, torch.tensor([998, 999]), y[:1].expand(2))
    assert output.dtype == torch.bfloat16
    assert not torch.equal(output[0], output[1])


@torch.inference_mode()
def test_bfloat16_stays_near_float32():
    model = randomised()
    x, t, y = inputs(model)
    full = model(x, t, y)
    half = model.bfloat16()(x.bfloat16(), t, y).float()
    assert (half - full).norm() / full.norm() < 0.05


@torch.inference_mode()
def test_fresh_model_is_zero_and_its_blocks_the_identity():
    model = DiT(**TINY).eval()
    x, t, y = inputs(model)
    assert not model(x, t, y).any()
    tokens = torch.randn(2, 16, 48)
    assert torch.equal(model.blocks[0](tokens, torch.randn(2, 48)), tokens)


def test_trains_from_scratch():
    torch.manual_seed(0)
    model = DiT(**TINY).train()
    x, t, y = inputs(model)
    target = torch.cat([x, -x], dim=1)
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = (model(x, t, y) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.grad is not None for name, p in model.named_parameters() if name != "pos_embed")
    assert torch.equal(model.pos_embed, position_table(4, 48))


def test_label_dropout_only_in_training():
    model = randomised(label_dropout=1.0)
    embed, y = model.y_embedder, torch.tensor([0, 1, 4])
    assert torch.equal(embed(y), embed.embedding_table.weight[y])
    assert torch.equal(embed.train()(y), embed.embedding_table.weight[[5, 5, 5]])
    embed.dropout = 0.1
    torch.manual_seed(0)
    dropped = (embed(torch.zeros(20_000, dtype=torch.int64)) == embed.embedding_table.weight[5]).all(dim=1)
    assert dropped.float().mean() == pytest.approx(0.1, abs=0.01)


@torch.inference_mode()
def test_images_of_a_batch_do_not_mix():
    model = randomised()
    x, t, y = inputs(model)
    single = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(model(x, t, y), single, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{"input_size": 9}, {"num_heads": 5}, {"hidden_size": 50, "num_heads": 5}])
def test_sizes_that_do_not_divide(change):
    with pytest.raises(ValueError, match="do not divide"):
        DiT(**{**TINY, **change})
