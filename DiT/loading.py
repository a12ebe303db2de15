"""Checkpoints of DiT: found or downloaded, read, converted, checked against the network, loaded strictly.

Two formats are read: the published one (`DiT-XL-2-256x256.pt`, a state dict with our parameter names) and diffusers'
(`facebook/DiT-XL-2-256`: a folder with `config.json` and `diffusion_pytorch_model.safetensors` or `.bin`).
"""

import math
import os
import re
import shutil
import warnings
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch

from DiT.architecture import PUBLISHED, SHIFT_KEY, URL, architecture, brief, locate, read_config, wrong_size
from DiT.models import DiT, position_table

EMBEDDERS = ".norm1.emb."  # in diffusers' names of the parameters that turn timestep and label into a block's condition

# diffusers' parameter names -> ours. There every block has two embedders of its own; `from_diffusers` merges equal ones.
RENAMES = (
    (r"pos_embed\.proj\.", r"x_embedder.proj."),
    (r"transformer_blocks\.(\d+)\.norm1\.emb\.timestep_embedder\.linear_1\.", r"block_embedders.\1.t_embedder.mlp.0."),
    (r"transformer_blocks\.(\d+)\.norm1\.emb\.timestep_embedder\.linear_2\.", r"block_embedders.\1.t_embedder.mlp.2."),
    (r"transformer_blocks\.(\d+)\.norm1\.emb\.class_embedder\.", r"block_embedders.\1.y_embedder."),
    (r"transformer_blocks\.(\d+)\.norm1\.linear\.", r"blocks.\1.adaLN_modulation.1."),
    (r"transformer_blocks\.(\d+)\.attn1\.to_out\.0\.", r"blocks.\1.attn.proj."),
    (r"transformer_blocks\.(\d+)\.attn1\.to_([qkv])\.", r"blocks.\1.attn.\2."),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.", r"blocks.\1.mlp.fc1."),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2\.", r"blocks.\1.mlp.fc2."),
    (r"proj_out_1\.", r"final_layer.adaLN_modulation.1."),
    (r"proj_out_2\.", r"final_layer.linear."),
)


# ---------------------------------------------------------------- the one call


def load_dit(
    path=None,  # checkpoint file or diffusers folder; None: the published weights, from `folder` or downloaded into it
    image_size=256,  # pixels a side; the latent is an eighth of it
    model=PUBLISHED,  # a name in `SHAPES`, for a checkpoint without a config.json beside it
    dtype=torch.float32,  # of the parameters
    folder="pretrained_models",  # where published weights are kept
):
    """-> DiT on the CPU, in eval mode, without gradients.

    Raises ValueError, in one line, for a checkpoint that is unreadable, of another image size, or of another architecture;
    FileNotFoundError for a path without a checkpoint; ConnectionError for a download that stopped (run again to resume).
    """
    file = locate(path, model, image_size, folder)
    if path is None:
        download(URL.format(size=image_size), file)
    config, in_diffusers_names = architecture(file, model, image_size)
    state = read_state(file)
    if in_diffusers_names:
        config = as_trained(state) | config
        state = from_diffusers(state, config)
    return build(config, state, file).to(dtype).eval().requires_grad_(False)


# ---------------------------------------------------------------- weights


def read_state(file, part=""):
    """Name -> tensor of a .safetensors or torch file; nothing in the file is executed (weights_only).

    part: of a .safetensors file only the tensors with this in their names, which saves reading the rest.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, "pt") as tensors:
                state = {name: tensors.get_tensor(name) for name in tensors.keys() if part in name}  # noqa: SIM118 - no dict
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch warns of, such as another protocol of pickle, it then loads or not
                state = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # on damaged bytes torch raises any of a dozen types, OSError among them
        raise ValueError(f"{file}: truncated or not a checkpoint ({brief(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError(f"{file}: not a state dict of tensors")
    return state


# The frequencies of a timestep belong to the code that trained a network. The published code has shift 0; diffusers has 1 for
# every DiT, also for facebook/DiT-XL-2-256 and -512, which are published weights renamed, trained with 0. Names do not tell
# conversions (a fine-tuned copy keeps the name of what it was loaded from), but the weights do: the published network has one
# pair of embedders, which a conversion copies into every block, whereas diffusers trains a pair per block. So shift 1 is certain
# where they differ. Where they are equal 0 is assumed, although a fine-tuning that left them alone looks the same.


def as_trained(state):
    """What diffusers' names hide of a network, as keyword arguments of `DiT`, from a state dict with at least its embedders."""
    equal = has_equal_embedders(state)
    return {"block_embedders": not equal, SHIFT_KEY: int(not equal)}


def has_equal_embedders(state):
    """Whether all blocks of a state dict with diffusers' names have the same timestep and label embedders."""
    first = {}
    for name, tensor in state.items():
        if EMBEDDERS in name:
            kind = name.partition(EMBEDDERS)[2]
            if not torch.equal(first.setdefault(kind, tensor), tensor):
                return False
    return True


def shift_notice(path):
    """One line on the timestep frequencies that a checkpoint is assumed to need and how to state others; None where known.

    Known are those of the published weights (path None), of our parameter names, of diffusers' blocks with different embedders,
    and what "frequency_shift" in config.json states. Takes the path that `load_dit` takes, reads the embedders, and raises what
    `load_dit` raises for an unreadable file or a bad config.json.
    """
    if path is None:
        return None
    file = locate(path, PUBLISHED, 256)
    config_file = file.parent / "config.json"
    if not config_file.is_file():
        return None
    config, is_diffusers = read_config(config_file)
    if not is_diffusers or SHIFT_KEY in config or not has_equal_embedders(read_state(file, EMBEDDERS)):
        return None
    return (
        f"all blocks have the same embedders, so the checkpoint is run with the timestep frequencies of the published code; "
        f'if it was trained with those of diffusers, add "{SHIFT_KEY}": 1 to {config_file}'
    )


def from_diffusers(state, config):
    """A state dict with diffusers' names -> ours. Unknown names stay as they are, for `check_tensors` to report.

    The position table, a fixed function of the sizes, is not in diffusers' files and is added.
    """
    ours = {"pos_embed": position_table(config["input_size"] // config["patch_size"], config["hidden_size"])}
    first = r"block_embedders\.0\." if config["block_embedders"] else r"block_embedders\.\d+\."
    for old, tensor in state.items():
        ours[re.sub(first, "", renamed(old))] = tensor
    for query in [name for name in ours if ".attn.q." in name]:
        parts = [query.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in ours for part in parts):
            ours[query.replace(".attn.q.", ".attn.qkv.")] = torch.cat([ours.pop(part) for part in parts])
    return ours


def renamed(name):
    """One of diffusers' parameter names -> ours, or itself."""
    return next((re.sub(old, new, name, count=1) for old, new in RENAMES if re.match(old, name)), name)


def build(config, state, file):
    """DiT with these weights, or ValueError. Built on the meta device: no time is spent on initial values."""
    with torch.device("meta"):
        model = DiT(**config)
    check_size(config, state, file)
    check_tensors(model, state, file)
    model.load_state_dict(state, strict=True, assign=True)
    return model


def check_size(config, state, file):
    """Raises ValueError that states the image sizes when pos_embed [1,N,D] has another number of tokens than asked."""
    shape = list(state["pos_embed"].shape) if "pos_embed" in state else []
    tokens = (config["input_size"] // config["patch_size"]) ** 2
    if len(shape) == 3 and shape[1] != tokens and shape[2] == config["hidden_size"]:
        input_size = math.isqrt(shape[1]) * config["patch_size"]
        raise ValueError(f"{wrong_size(file, input_size, config['input_size'])} (pos_embed is {shape})")


def check_tensors(model, state, file):
    """Raises ValueError that names the first tensor, in the network's order, that is missing or misshapen, or unexpected."""
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in state:
            raise ValueError(f"{file}: {name} {shape} is missing")
        if list(state[name].shape) != shape:
            raise ValueError(f"{file}: {name} is {list(state[name].shape)}, expected {shape}")
    for name, tensor in state.items():
        if name not in expected:
            raise ValueError(f"{file}: unexpected {name} {list(tensor.shape)}")


# ---------------------------------------------------------------- download


def download(url, target):
    """Fetches a file once. What an interrupted run left in `target`.part is continued with an HTTP Range request.

    Several processes may call it at the same time: one fetches, the others wait. The target appears complete or not at all.
    Raises ConnectionError when the server is out of reach or the transfer ends early.
    """
    import fcntl  # here, because it does not exist on Windows, where the rest of this module works

    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if target.exists():  # another process finished while this one waited
            part.unlink(missing_ok=True)
            return
        fetch(url, file)
        os.replace(part, target)


def fetch(url, file):
    """Appends to a file, open in append mode, what it lacks of the resource, and checks its length afterwards."""
    total, reason = "an unknown number of", "the transfer ended early"
    try:
        with open_from(url, file.seek(0, os.SEEK_END)) as response:
            first, total = stated_range(response)
            file.truncate(first)  # 0 when the server sends everything: it does not know ranges, or has less than the file
            shutil.copyfileobj(response, file, length=1 << 20)
        file.flush()
        os.fsync(file.fileno())
    except (OSError, HTTPException) as error:
        reason = brief(error)
    have = os.fstat(file.fileno()).st_size
    if have != total:
        raise ConnectionError(f"download of {url} stopped at {have} of {total} bytes ({reason}): run again to resume")


def open_from(url, start):
    """The response to a request for everything from byte `start`; from 0 when the server has nothing at `start` (416)."""
    try:
        return urlopen(Request(url, headers={"Range": f"bytes={start}-"}), timeout=60)
    except HTTPError as error:
        if error.code != 416 or start == 0:
            raise
        return open_from(url, 0)


def stated_range(response):
    """(first byte of the body, length of the whole resource), from Content-Range or Content-Length."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    else:
        match = re.fullmatch(r"()(\d+)", response.headers.get("Content-Length", ""))
    if match is None:
        raise HTTPException("the server does not state the length")
    return int(match[1] or 0), int(match[2])
