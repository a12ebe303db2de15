"""Checkpoints: strict loading, both formats, every kind of bad file, and an interrupted download from a local server."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from diffusers import DiTTransformer2DModel
from test_dit_model import TINY, diffusers_twin, inputs, randomised

from DiT import loading
from DiT.loading import build, download, load_dit, shift_notice
from DiT.models import SHAPES


def official_shapes(input_size, depth, hidden_size, patch_size, num_classes=1000, **_):
    """Name -> shape of every tensor in the published format, written out here independently of the network."""
    d, shapes = hidden_size, {"pos_embed": (1, (input_size // patch_size) ** 2, hidden_size)}

    def linear(name, fan_in, fan_out):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (fan_out, fan_in), (fan_out,)

    linear("x_embedder.proj", 0, d)
    shapes["x_embedder.proj.weight"] = (d, 4, patch_size, patch_size)
    linear("t_embedder.mlp.0", 256, d)
    linear("t_embedder.mlp.2", d, d)
    shapes["y_embedder.embedding_table.weight"] = (num_classes + 1, d)
    for i in range(depth):
        linear(f"blocks.{i}.attn.qkv", d, 3 * d)
        linear(f"blocks.{i}.attn.proj", d, d)
        linear(f"blocks.{i}.mlp.fc1", d, 4 * d)
        linear(f"blocks.{i}.mlp.fc2", 4 * d, d)
        linear(f"blocks.{i}.adaLN_modulation.1", d, 6 * d)
    linear("final_layer.linear", d, patch_size**2 * 8)
    linear("final_layer.adaLN_modulation.1", d, 2 * d)
    return shapes


def save(folder, state=None, config=TINY):
    """A checkpoint with its config.json in a folder -> its path."""
    folder.mkdir(exist_ok=True)
    torch.save(randomised().state_dict() if state is None else state, folder / "dit.pt")
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "dit.pt"


def save_diffusers(folder):
    """A diffusers pipeline folder with a transformer, converted from the published format -> our model with the same weights."""
    model = randomised()
    diffusers_twin(model).save_pretrained(folder / "transformer")
    return model


def state_in_config(file, **entries):
    """Adds entries to a config.json, as a user would."""
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def equal_states(one, other):
    """Whether two networks have the same parameters under the same names."""
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# ---------------------------------------------------------------- good files


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("input_size", [32, 64])
def test_published_format_loads_strictly(name, input_size):
    config = {**SHAPES[name], "input_size": input_size}
    state = {key: torch.empty(shape, device="meta") for key, shape in official_shapes(**config).items()}
    assert build(config, state, "x.pt").state_dict().keys() == state.keys()


def test_config_beside_the_checkpoint_gives_the_architecture(tmp_path):
    model = load_dit(save(tmp_path), image_size=64)
    original = randomised()
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert torch.equal(model(*inputs(model)), original(*inputs(original)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_the_one_asked_for(tmp_path, dtype):
    state = {name: tensor.half() for name, tensor in randomised().state_dict().items()}
    model = load_dit(save(tmp_path, state), image_size=64, dtype=dtype)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}


@pytest.mark.parametrize("inside", ["", "transformer", "transformer/diffusion_pytorch_model.safetensors"])
@torch.inference_mode()
def test_diffusers_layout(tmp_path, inside):
    original = save_diffusers(tmp_path)
    model = load_dit(tmp_path / inside, image_size=64)
    assert torch.equal(model(*inputs(model)), original(*inputs(original)))


def test_diffusers_bin_file(tmp_path):
    original = randomised()
    diffusers_twin(original).save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "diffusion_pytorch_model.bin").exists()
    assert equal_states(load_dit(tmp_path, image_size=64), original)
    assert "frequency_shift" in shift_notice(tmp_path)


# ---------------------------------------------------------------- the frequencies of the timestep


def save_as_trained_with_diffusers(folder, **changes):
    """diffusers' own network with its own initial values, different embedders in all blocks, and defaults -> that network."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 3, "sample_size": 8, "num_embeds_ada_norm": 5}
    theirs = DiTTransformer2DModel(**sizes, **changes, out_channels=8).eval()
    theirs.save_pretrained(folder)
    return theirs


def difference(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("t", [0, 37, 999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.inference_mode()
def test_a_network_trained_with_diffusers_computes_what_it_computes_there(tmp_path, t, dtype):
    theirs = save_as_trained_with_diffusers(tmp_path)
    x, _, y = inputs(randomised())
    t = torch.full((4,), t)
    expected = theirs.to(dtype)(x.to(dtype), t, y).sample
    assert difference(load_dit(tmp_path, image_size=64, dtype=dtype)(x.to(dtype), t, y), expected) < 1e-5
    assert shift_notice(tmp_path) is None  # the embedders tell who trained it
    state_in_config(tmp_path / "config.json", frequency_shift=0)
    other = load_dit(tmp_path, image_size=64, dtype=dtype)(x.to(dtype), t, y)
    assert (difference(other, expected) > 1e-3) == bool(t.any())  # at t = 0 no frequency shows


@torch.inference_mode()
def test_a_conversion_of_published_weights_has_their_frequencies_until_told_otherwise(tmp_path):
    """It has one embedder, copied into all blocks; diffusers runs it with other frequencies than it was trained with."""
    published = randomised()
    twin = diffusers_twin(published, shift=1)
    twin.save_pretrained(tmp_path)
    x, t, y = inputs(published)
    assert torch.equal(load_dit(tmp_path, image_size=64)(x, t, y), published(x, t, y))
    notice = shift_notice(tmp_path)
    assert f'add "frequency_shift": 1 to {tmp_path / "config.json"}' in notice and "\n" not in notice
    assert shift_notice(tmp_path / "diffusion_pytorch_model.safetensors") == notice
    state_in_config(tmp_path / "config.json", frequency_shift=1)
    assert difference(load_dit(tmp_path, image_size=64)(x, t, y), twin(x, t, y).sample) < 1e-5
    assert shift_notice(tmp_path) is None


def test_the_published_format_has_the_published_frequencies(tmp_path):
    """Where its config.json says nothing else; nothing is assumed, so nothing is told."""
    assert shift_notice(None) is None
    file = save(tmp_path)
    assert load_dit(file, image_size=64).t_embedder.frequency_shift == 0 and shift_notice(file) is None
    state_in_config(tmp_path / "config.json", frequency_shift=1)
    assert load_dit(file, image_size=64).t_embedder.frequency_shift == 1 and shift_notice(file) is None
    (tmp_path / "config.json").unlink()
    assert shift_notice(file) is None


def test_a_notice_about_a_bad_file_is_its_complaint(tmp_path):
    save_diffusers(tmp_path)
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "truncated" in complaint(ValueError, lambda: shift_notice(tmp_path))
    file.unlink()
    assert "neither" in complaint(FileNotFoundError, lambda: shift_notice(tmp_path))


@pytest.mark.parametrize("value", [2, -1, 0.5, True, "1", None])
def test_a_shift_that_is_none(tmp_path, value):
    message = complaint(ValueError, lambda: load_dit(save(tmp_path, config={**TINY, "frequency_shift": value}), image_size=64))
    assert "config.json: frequency_shift is 0 (published) or 1 (diffusers), not" in message


# ---------------------------------------------------------------- bad files


def complaint(error, call):
    """The message, checked to be one line."""
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_first_differing_tensor_is_named(tmp_path):
    state = randomised().state_dict()
    wider = {**state, "blocks.1.mlp.fc1.weight": torch.zeros(7, 48), "blocks.2.mlp.fc1.weight": torch.zeros(7, 48)}
    message = complaint(ValueError, lambda: load_dit(save(tmp_path, wider), image_size=64))
    assert "blocks.1.mlp.fc1.weight is [7, 48], expected [192, 48]" in message
    lacking = {name: tensor for name, tensor in state.items() if name != "blocks.0.attn.qkv.bias"}
    message = complaint(ValueError, lambda: load_dit(save(tmp_path, lacking), image_size=64))
    assert "blocks.0.attn.qkv.bias [144] is missing" in message
    message = complaint(ValueError, lambda: load_dit(save(tmp_path, {**state, "extra": torch.zeros(2)}), image_size=64))
    assert "unexpected extra [2]" in message


def test_other_image_size_is_said(tmp_path):
    file = save(tmp_path)
    message = complaint(ValueError, lambda: load_dit(file, image_size=256))
    assert "config.json: made for 64 px images, not for 256 px ones" in message
    file = save(tmp_path, config={**TINY, "input_size": 16})
    message = complaint(ValueError, lambda: load_dit(file, image_size=128))
    assert "dit.pt: made for 64 px images, not for 128 px ones (pos_embed is [1, 16, 48])" in message


def test_truncated_and_foreign_files(tmp_path):
    file = save(tmp_path)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>not found</html>", whole[:100]):
        file.write_bytes(content)
        assert "truncated or not a checkpoint" in complaint(ValueError, lambda: load_dit(file, image_size=64))
    torch.save([1, 2], file)
    assert "not a state dict" in complaint(ValueError, lambda: load_dit(file, image_size=64))
    torch.save({"model": threading.Thread}, file)  # unpickling it would need code of its own
    assert "not a checkpoint" in complaint(ValueError, lambda: load_dit(file, image_size=64))


def test_truncated_safetensors(tmp_path):
    save_diffusers(tmp_path)
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "truncated" in complaint(ValueError, lambda: load_dit(tmp_path, image_size=64))


def test_diffusers_block_without_an_embedder(tmp_path):
    theirs = save_as_trained_with_diffusers(tmp_path)
    lacking = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.weight"
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name != lacking}
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    message = complaint(ValueError, lambda: load_dit(tmp_path, image_size=64))
    assert "block_embedders.2.t_embedder.mlp.0.weight [48, 256] is missing" in message


def test_diffusers_without_a_key_projection(tmp_path):
    twin = diffusers_twin(randomised())
    twin.save_pretrained(tmp_path, safe_serialization=False)
    state = {name: tensor for name, tensor in twin.state_dict().items() if name != "transformer_blocks.1.attn1.to_k.weight"}
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    assert "blocks.1.attn.qkv.weight [144, 48] is missing" in complaint(ValueError, lambda: load_dit(tmp_path, image_size=64))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "config.json: "),
        ("[]", "config.json: "),
        (json.dumps({**TINY, "depth": 0}), "positive integers"),
        (json.dumps({**TINY, "depth": "3"}), "positive integers"),
        (json.dumps({k: v for k, v in TINY.items() if k != "depth"}), "no 'depth' in it"),
        (json.dumps({**TINY, "num_heads": 5}), "do not divide"),
    ],
)
def test_bad_config(tmp_path, text, said):
    file = save(tmp_path)
    (tmp_path / "config.json").write_text(text)
    assert said in complaint(ValueError, lambda: load_dit(file, image_size=64))


def test_nothing_there(tmp_path):
    assert "neither" in complaint(FileNotFoundError, lambda: load_dit(tmp_path))
    assert "give a path" in complaint(ValueError, lambda: load_dit(model="DiT-B/4", folder=tmp_path))
    assert "give a path" in complaint(ValueError, lambda: load_dit(image_size=128, folder=tmp_path))
    torch.save({}, tmp_path / "x.pt")
    assert "not one of DiT-S/2" in complaint(ValueError, lambda: load_dit(tmp_path / "x.pt", model="tiny"))


# ---------------------------------------------------------------- download

CONTENT = bytes(range(256)) * 400


@pytest.fixture
def server():
    """A web server on 127.0.0.1. `content` is what it has, `cut` how much of a body it sends at most, `ranges` whether it
    honours Range; `asked` collects the Range headers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers["Range"]
            self.server.asked.append(asked)
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if self.server.ranges else 0
            content = self.server.content
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206 if self.server.ranges else 200)
            if self.server.ranges:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if self.server.length:
                self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:][: self.server.cut])

        def log_message(self, *args):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.content, web.cut, web.ranges, web.length, web.asked = CONTENT, None, True, True, []
    web.url = f"http://127.0.0.1:{web.server_port}/DiT-XL-2-{{size}}x{{size}}.pt"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield web
    web.shutdown()
    thread.join()
    web.server_close()


def test_interrupted_download_is_resumed(tmp_path, server):
    target, part = tmp_path / "new" / "x.pt", tmp_path / "new" / "x.pt.part"
    server.cut = 30_000
    message = complaint(ConnectionError, lambda: download(server.url, target))
    assert "stopped at 30000 of 102400 bytes" in message and "run again" in message
    assert part.stat().st_size == 30_000 and not target.exists()
    server.cut = None
    download(server.url, target)
    assert server.asked == ["bytes=0-", "bytes=30000-"]
    assert target.read_bytes() == CONTENT and not part.exists()
    download(server.url, target)
    assert len(server.asked) == 2  # what is there is not asked for again


def test_server_without_ranges_starts_over(tmp_path, server):
    (tmp_path / "x.pt.part").write_bytes(b"z" * 500)
    server.ranges = False
    download(server.url, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 9])
def test_part_that_is_not_a_beginning_is_replaced(tmp_path, server, size):
    (tmp_path / "x.pt.part").write_bytes(b"z" * size)
    download(server.url, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").read_bytes() == CONTENT


def test_length_has_to_be_stated(tmp_path, server):
    server.ranges = server.length = False
    message = complaint(ConnectionError, lambda: download(server.url, tmp_path / "x.pt"))
    assert "does not state the length" in message and not (tmp_path / "x.pt").exists()


def test_server_out_of_reach(tmp_path, server):
    server.shutdown()
    server.server_close()
    assert "refused" in complaint(ConnectionError, lambda: download(server.url, tmp_path / "x.pt"))


def test_two_at_once_fetch_once(tmp_path, server):
    threads = [threading.Thread(target=download, args=(server.url, tmp_path / "x.pt")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"] and (tmp_path / "x.pt").read_bytes() == CONTENT


def test_published_weights_are_downloaded_once_and_loaded(tmp_path, server, monkeypatch):
    small = {key: TINY[key] for key in ("depth", "hidden_size", "num_heads", "patch_size")}
    monkeypatch.setitem(SHAPES, "DiT-XL/2", small)
    monkeypatch.setattr(loading, "URL", server.url)
    original = randomised(input_size=32, num_classes=1000)
    torch.save(original.state_dict(), tmp_path / "served.pt")
    server.content = (tmp_path / "served.pt").read_bytes()
    for _ in range(2):
        model = load_dit(folder=tmp_path / "weights")
        assert equal_states(model, original)
    assert len(server.asked) == 1 and (tmp_path / "weights" / "DiT-XL-2-256x256.pt").exists()
