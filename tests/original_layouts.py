"""Parts of diffusers' pipelines written as single checkpoint files name them: the way back of diffusers' converters.

Every function takes a state dict by the names of diffusers or transformers and gives one by the names of the models' authors.
"""

import re

import torch

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet(state: dict, n_layers: int, prefix="model.diffusion_model.") -> dict:
    """n_layers: of a block on the way down."""
    with_attention = {int(m[1]) for name in state if (m := re.match(r"up_blocks\.(\d+)\.attentions", name))}
    return {prefix + _unet_name(name, n_layers, with_attention): value for name, value in state.items()}


def _unet_name(name: str, n_layers: int, with_attention: set[int]) -> str:
    for ours, theirs in ENDS.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    if m := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        place = 1 if m[1] == "attentions" else 2 * int(m[2])
        return f"middle_block.{place}.{_resnet(m[3]) if m[1] == 'resnets' else m[3]}"
    way, block, kind, layer, rest = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name).groups()
    first = int(block) * (n_layers + 1) + (way == "down")
    side = "input_blocks" if way == "down" else "output_blocks"
    if kind == "downsamplers":
        return f"{side}.{first + n_layers}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"{side}.{first + n_layers}.{2 if int(block) in with_attention else 1}.{rest}"
    return f"{side}.{first + int(layer)}.{_resnet(rest, '0.') if kind == 'resnets' else '1.' + rest}"


def _resnet(rest: str, before="") -> str:
    module, _, end = rest.partition(".")
    return f"{before}{RESNET[module]}.{end}"


def vae(state: dict, n_blocks: int, prefix="first_stage_model.") -> dict:
    found = {}
    for name, value in state.items():
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{n_blocks - 1 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{n_blocks - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = re.sub(r"to_([qkv])", r"\1", name).replace("to_out.0", "proj_out")
            value = value[:, :, None, None] if value.ndim == 2 else value
        found[prefix + name] = value
    return found


def clip(state: dict, prefix="cond_stage_model.transformer.") -> dict:
    """By transformers' names of before 5.6."""
    return {prefix + _below_text_model(name): value for name, value in state.items() if "position_ids" not in name}


def _below_text_model(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def open_clip(state: dict, prefix="cond_stage_model.model.") -> dict:
    state = {name.removeprefix("text_model."): value for name, value in state.items() if "position_ids" not in name}
    found = {
        "token_embedding.weight": state.pop("embeddings.token_embedding.weight"),
        "positional_embedding": state.pop("embeddings.position_embedding.weight"),
        "ln_final.weight": state.pop("final_layer_norm.weight"),
        "ln_final.bias": state.pop("final_layer_norm.bias"),
    }
    if "text_projection.weight" in state:
        found["text_projection"] = state.pop("text_projection.weight").T.contiguous()
    for end in ("weight", "bias"):
        for layer in sorted({name.split(".")[2] for name in state}):
            three = [state.pop(f"encoder.layers.{layer}.self_attn.{x}_proj.{end}") for x in "qkv"]
            found[f"transformer.resblocks.{layer}.attn.in_proj_{end}"] = torch.cat(three)
    for name, value in state.items():
        name = name.replace("encoder.layers", "transformer.resblocks").replace("layer_norm", "ln_")
        found[name.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj").replace("self_attn", "attn")] = value
    return {prefix + name: value for name, value in found.items()}


SD3_ENDS = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
SD3_BLOCK = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}


def sd3(state: dict, n_layers: int, prefix="model.diffusion_model.") -> dict:
    """Without norms of queries and keys, and without dual attention."""
    state, found = dict(state), {}
    for i in range(n_layers):
        for ours, theirs in (("to_{}", "x_block"), ("add_{}_proj", "context_block")):
            for end in ("weight", "bias"):
                three = [state.pop(f"transformer_blocks.{i}.attn.{ours.format(x)}.{end}") for x in "qkv"]
                found[f"joint_blocks.{i}.{theirs}.attn.qkv.{end}"] = torch.cat(three)
    for name, value in state.items():
        block = re.match(r"transformer_blocks\.(\d+)\.(.*?)(\.(weight|bias))$", name)
        if block:
            new = f"joint_blocks.{block[1]}.{SD3_BLOCK[block[2]]}{block[3]}"
        else:
            ours = next(ours for ours in SD3_ENDS if name.startswith(ours))
            new = SD3_ENDS[ours] + name.removeprefix(ours)
        swapped = name.startswith(f"transformer_blocks.{n_layers - 1}.norm1_context") or name.startswith("norm_out")
        found[new] = torch.cat(value.chunk(2)[::-1]) if swapped else value  # (scale, shift) in diffusers
    return {prefix + name: value for name, value in found.items()}


def tiny_sd(folder) -> dict:
    """The shipped model, or another of its layout, as Stable Diffusion 1's checkpoints name it."""
    from safetensors.torch import load_file

    parts = {part: load_file(next((folder / part).glob("*.safetensors"))) for part in ("unet", "vae", "text_encoder")}
    return unet(parts["unet"], 1) | vae(parts["vae"], 4) | clip(parts["text_encoder"])


def flux_shapes(n_text=8, n_pooled=8, width=3072) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a FLUX.1-dev transformer of one double and one single block, at the published width."""
    shapes = {"img_in.weight": (width, 64), "img_in.bias": (width,), "txt_in.weight": (width, n_text), "txt_in.bias": (width,)}
    for name, n_in in (("time_in", 256), ("vector_in", n_pooled), ("guidance_in", 256)):
        shapes |= {f"{name}.in_layer.weight": (width, n_in), f"{name}.in_layer.bias": (width,)}
        shapes |= {f"{name}.out_layer.weight": (width, width), f"{name}.out_layer.bias": (width,)}
    for side in ("img", "txt"):
        block = f"double_blocks.0.{side}"
        linear = {"_mod.lin": (6, 1), "_attn.qkv": (3, 1), "_attn.proj": (1, 1), "_mlp.0": (4, 1), "_mlp.2": (1, 4)}
        for name, (n_out, n_in) in linear.items():
            shapes |= {f"{block}{name}.weight": (n_out * width, n_in * width), f"{block}{name}.bias": (n_out * width,)}
        shapes |= {f"{block}_attn.norm.{x}_norm.scale": (128,) for x in ("query", "key")}
    single = {"linear1": (7, 1), "linear2": (1, 5), "modulation.lin": (3, 1)}
    for name, (n_out, n_in) in single.items():
        shapes |= {f"single_blocks.0.{name}.weight": (n_out * width, n_in * width)}
        shapes |= {f"single_blocks.0.{name}.bias": (n_out * width,)}
    shapes |= {f"single_blocks.0.norm.{x}_norm.scale": (128,) for x in ("query", "key")}
    shapes |= {"final_layer.linear.weight": (64, width), "final_layer.linear.bias": (64,)}
    final = "final_layer.adaLN_modulation.1"
    return shapes | {f"{final}.weight": (2 * width, width), f"{final}.bias": (2 * width,)}
