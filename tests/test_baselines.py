"""CLIP scorers: names, local folders, scores against open_clip itself and the published records; the small model's training."""

import json
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import GOLDEN, load_script
from PIL import Image
from safetensors.torch import save_file

from diffusion.models import clip
from diffusion.training import fashion_mnist, two_heads
from diffusion.utils.paths import TINY_CLIP, TINY_SD

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
TINY_OPENCLIP = GOLDEN / "tiny-openclip"


def make_model(folder, config=CONFIG, name="small.json", weights="small.pt", wrap=None):
    """A local folder with a random model; returns the model. wrap: what the config file holds, given the config."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).eval()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(wrap(config) if wrap else config))
    if weights.endswith(".safetensors"):
        save_file(model.state_dict(), folder / weights)
    else:
        torch.save(model.state_dict(), folder / weights)
    return model


def find(folder):
    return clip.find("openclip", "any label", str(folder))


def pictures(n=2, size=(40, 32)):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(n)]


# ---------------------------------------------------------------- names


def test_openai_names_are_open_clip_models_with_openai_weights_and_activation():
    for name in ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"):
        files = clip.find("clip", name)
        assert files.architecture in open_clip.list_models() and files.pretrained == "openai" and files.quick_gelu
        assert files.architecture == name.replace("@336px", "-336").replace("/", "-")


@pytest.mark.parametrize(
    ("argv", "tag", "quick"),
    [
        (("ViT-H-14",), "laion2b_s32b_b79k", False),
        (("ViT-H-14", None, "dfn5b"), "dfn5b", True),
        (("ViT-B-32", None, "laion2b_s34b_b79k"), "laion2b_s34b_b79k", False),
    ],
)
def test_openclip_tags(argv, tag, quick):
    files = clip.find("openclip", *argv)
    assert (files.architecture, files.pretrained, files.quick_gelu, files.config) == (argv[0], tag, quick, None)
    assert files.identity() == f"open_clip {argv[0]} {tag}"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("clip", "ViT-L-14"), r"--version ViT-L-14 is none of OpenAI's: .*ViT-L/14@336px"),
        (("clip", "tiny"), "none of OpenAI's"),
        (("clip", "RN50", None, "cc12m"), "--pretrained cc12m needs --model openclip"),
        (("openclip", "ViT-B/32"), "--version ViT-B/32 is no architecture.*ViT-B-32"),
        (("openclip", "2-0"), "--version 2-0 is no architecture"),
        (("openclip", "ViT-L-14"), "needs --pretrained, one of openai, laion400m_e31"),
        (("openclip", "ViT-H-14", None, "openai"), "--pretrained openai is no tag of ViT-H-14: .*laion2b_s32b_b79k"),
        (("openclip", "ViT-e-14"), "no weights for it.*--model_path"),
        (("openclip", "tiny", None, "openai"), "--pretrained openai names published weights"),
        (("openclip", "ViT-H-14", "nowhere"), "--model_path nowhere is no folder"),
    ],
)
def test_wrong_names_are_told_in_one_line(argv, told):
    with pytest.raises(ValueError, match=told) as caught:
        clip.find(*argv)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_fetched_are_told_in_one_line(monkeypatch):
    def unreachable(config):
        raise FileNotFoundError("many\nlines")

    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)
    with pytest.raises(ValueError, match=r"open_clip ViT-L-14 openai .*FileNotFoundError.*--model_path") as caught:
        clip.find("clip", "ViT-L/14").load("cpu")
    assert "\n" not in str(caught.value)


def test_published_weights_are_built_with_the_activation_of_their_tag(monkeypatch, tmp_path):
    make_model(tmp_path)
    local, seen = clip._read_local(find(tmp_path)), []
    monkeypatch.setattr(open_clip, "download_pretrained", lambda config: None)
    monkeypatch.setattr(open_clip, "create_model", lambda *args, **options: seen.append((*args, options)) or local)
    for kind, name, tag in (("clip", "ViT-L/14@336px", None), ("openclip", "ViT-H-14", None), ("openclip", "ViT-H-14", "dfn5b")):
        clip.find(kind, name, None, tag).load("cpu")
    assert seen == [
        ("ViT-L-14-336", "openai", {"force_quick_gelu": True}),
        ("ViT-H-14", "laion2b_s32b_b79k", {"force_quick_gelu": False}),
        ("ViT-H-14", "dfn5b", {"force_quick_gelu": True}),
    ]


# ---------------------------------------------------------------- local folders


@pytest.mark.parametrize(
    ("name", "weights", "wrap"),
    [
        ("small.json", "small.pt", None),
        ("small.json", "small.safetensors", None),
        ("small.json", "open_clip_pytorch_model.bin", None),
        ("open_clip_config.json", "open_clip_model.safetensors", lambda config: {"model_cfg": config}),
    ],
)
def test_scores_are_those_of_open_clip_itself(tmp_path, name, weights, wrap):
    model = make_model(tmp_path / "m", CONFIG, name, weights, wrap)
    scorer = find(tmp_path / "m").load("cpu")
    transform = open_clip.image_transform(32, is_train=False)
    captions = ["a dog chases a cat", "a cat chases a dog", "a sentence of more words than fit into the twelve tokens of it"]
    x = torch.stack([scorer.preprocess(picture) for picture in pictures()])
    torch.testing.assert_close(x, torch.stack([transform(picture) for picture in pictures()]), rtol=0, atol=0)
    images, texts = scorer.embed_images(x), scorer.embed_texts(captions)
    with torch.no_grad():
        expected, _ = model.get_logits(x, open_clip.SimpleTokenizer(context_length=12)(captions))
    torch.testing.assert_close(scorer.logits(images, texts), expected, rtol=1e-5, atol=1e-5)
    for embedding in (images, texts):
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(len(embedding)))
        assert embedding.dtype == torch.float32


def test_a_folder_from_the_hub_keeps_its_own_preprocessing(tmp_path):
    own = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
    make_model(
        tmp_path, name="open_clip_config.json", weights="open_clip_pytorch_model.bin",
        wrap=lambda config: {"model_cfg": config, "preprocess_cfg": own},
    )  # fmt: skip
    scorer = find(tmp_path).load("cpu")
    white = Image.new("RGB", (50, 20), "white")
    torch.testing.assert_close(scorer.preprocess(white), torch.ones(3, 32, 32))


def test_images_of_every_mode_become_rgb_before_the_resize(tmp_path):
    make_model(tmp_path)
    preprocess = find(tmp_path).load("cpu").preprocess
    for mode in ("P", "RGBA", "L", "LA", "CMYK", "1"):
        picture = pictures(1)[0].convert(mode)
        torch.testing.assert_close(preprocess(picture), preprocess(picture.convert("RGB")))
    again = pickle.loads(pickle.dumps(preprocess))  # what a data-loading process gets
    torch.testing.assert_close(again(picture), preprocess(picture))


def test_half_precision_weights_are_read_into_float32(tmp_path):
    model = make_model(tmp_path)
    torch.save(model.half().state_dict(), tmp_path / "small.pt")
    scorer = find(tmp_path).load("cpu")
    assert scorer.embed_texts(["a"]).dtype == torch.float32
    one = torch.ones(1, 1)
    torch.testing.assert_close(scorer.logits(one, one).item(), model.logit_scale.float().exp().item())


def test_a_local_config_says_its_activation(tmp_path):
    plain, quick = CONFIG, CONFIG | {"quick_gelu": True}
    for folder, config in (("plain", plain), ("quick", quick)):
        make_model(tmp_path / folder, config)
    a, b = (find(tmp_path / folder).load("cpu").embed_texts(["a dog"]) for folder in ("plain", "quick"))
    assert not torch.allclose(a, b, atol=1e-6)


def test_a_folder_with_a_tokenizer_uses_it(tmp_path):
    config = CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"vocab_size": 604}}
    model = make_model(tmp_path, config)
    shutil.copytree(TINY_SD / "tokenizer", tmp_path / "tokenizer")
    vocabulary = json.loads((tmp_path / "tokenizer" / "vocab.json").read_text())
    words = ["<|startoftext|>", "a</w>", "red</w>", "bag</w>", *["<|endoftext|>"] * 8]
    with torch.no_grad():
        expected = model.encode_text(torch.tensor([[vocabulary[word] for word in words]]), normalize=True)
    scorer = find(tmp_path).load("cpu")
    torch.testing.assert_close(scorer.embed_texts(["a red bag", "A  Red BAG"]), expected.expand(2, -1))


def test_missing_files_are_told_before_weights_are_read(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()

    def told():
        with pytest.raises(ValueError, match="--model_path") as caught:
            find(folder)
        return str(caught.value)

    (folder / "config.json").write_text('{"hidden_size": 3}')
    assert "no .json with embed_dim" in told()
    (folder / "small.json").write_text(json.dumps(CONFIG))
    assert "has none of small.safetensors, small.pt" in told()
    (folder / "small.pt").touch()
    assert find(folder).pretrained == str(folder / "small.pt")
    (folder / "other.json").write_text(json.dumps(CONFIG))
    assert "other.json and small.json" in told()
    (folder / "other.json").write_text("{")
    assert "other.json is not readable JSON" in told()


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def truncate(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda path: path.write_bytes(b""),
        lambda path: torch.save({"visual.proj": torch.zeros(3)}, path),
        lambda path: torch.save({}, path),
        lambda path: torch.save(Harmful(), path),
        lambda path: path.with_suffix(".json").write_text(json.dumps(CONFIG | {"colour": "red"})),
        lambda path: path.with_suffix(".json").write_text(json.dumps(CONFIG | {"embed_dim": 8})),
    ],
)
def test_a_damaged_state_dict_is_told_in_one_line(tmp_path, damage):
    make_model(tmp_path)
    damage(tmp_path / "small.pt")
    with pytest.raises(ValueError, match=r"small\.pt is damaged or no model of small\.json") as caught:
        find(tmp_path).load("cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not Path("executed").exists()


def test_damaged_safetensors_are_told_in_one_line(tmp_path):
    make_model(tmp_path, weights="small.safetensors")
    truncate(tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"small\.safetensors is damaged"):
        find(tmp_path).load("cpu")


def test_identity_follows_the_weights_and_the_tokenizer_not_the_place(tmp_path):
    make_model(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = find(tmp_path / "a").identity()
    assert find(tmp_path / "b").identity() == first and first.startswith("sha256 ")
    (tmp_path / "b" / "tokenizer").mkdir()
    (tmp_path / "b" / "tokenizer" / "vocab.json").write_text("{}")
    second = find(tmp_path / "b").identity()
    content = bytearray((tmp_path / "a" / "small.pt").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a" / "small.pt").write_bytes(content)
    assert len({first, second, find(tmp_path / "a").identity()}) == 3


# ---------------------------------------------------------------- published records


def test_published_scores_are_cosines_times_the_learned_scale():
    """w08: exp(4.6055) = 100.03, not 100. A logit is 100 cosines, whose last bits differ between processors."""
    records = torch.load(GOLDEN / "winoground_cases.pt", weights_only=True)["w08_openclip"]["records"]
    scorer = clip.find("openclip", "ViT-H-14", str(TINY_OPENCLIP)).load("cpu")
    root = GOLDEN / "data" / "winoground"
    examples = [json.loads(line) for line in (root / "examples.jsonl").read_text().splitlines()]
    for example in examples:
        images = [Image.open(root / "images" / f"{example[f'image_{i}']}.png") for i in (0, 1)]
        embedded = scorer.embed_images(torch.stack([scorer.preprocess(image) for image in images]))
        logits = scorer.logits(embedded, scorer.embed_texts([example["caption_0"], example["caption_1"]]))
        record = records[f"winoground/openclip_ViT-H-14/{example['id']}.pt"]
        expected = torch.stack([torch.stack([record[f"c{c}_i{i}"] for c in (0, 1)]) for i in (0, 1)])
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=100 * 4 * torch.finfo(torch.float32).eps)


# ---------------------------------------------------------------- the small model and its training


def test_the_loss_is_infonce_when_all_captions_differ():
    loss = load_script("train_tiny").contrastive_loss
    x, y, scale = torch.randn(6, 8), torch.randn(6, 8), torch.tensor(2.0)
    a, b = (torch.nn.functional.normalize(v, dim=1) for v in (x, y))
    expected = open_clip.ClipLoss()(a, b, scale.exp())
    torch.testing.assert_close(loss(x, y, scale, torch.arange(6)), expected)
    torch.testing.assert_close(loss(x, y, torch.tensor(9.0), torch.arange(6)), open_clip.ClipLoss()(a, b, torch.tensor(100.0)))


def test_an_equal_caption_is_no_negative():
    """Three pictures, of which two have one caption: the same sums written out with a mask."""
    loss = load_script("train_tiny").contrastive_loss
    x, y, column = torch.randn(3, 8), torch.randn(2, 8), torch.tensor([0, 1, 0])
    x, y = (torch.nn.functional.normalize(v, dim=1) for v in (x, y))
    e = torch.exp(5 * x @ y.T).double().numpy()  # [3,2]
    to_text = [e[i, column[i]] / (e[i, 0] + e[i, 1]) for i in range(3)]
    to_picture = [e[i, column[i]] / e[:, column[i]].sum() for i in range(3)]
    expected = -np.log(to_text).mean() / 2 - np.log(to_picture).mean() / 2
    torch.testing.assert_close(loss(x, y, torch.tensor(5.0).log(), column).item(), expected.item(), rtol=1e-5, atol=0)


def test_a_batch_is_a_mixture_of_items_and_scenes():
    rows = fashion_mnist.mixed_rows(torch.Generator().manual_seed(0), 100, 60, 150)
    assert (rows[:62] < 60).all() and (rows[62:] >= 60).all() and rows.max() < 150 and len(rows) == 100


def test_the_training_writes_what_load_clip_reads(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    fashion_mnist.write_idx(tmp_path / "raw" / "train-images-idx3-ubyte", rng.integers(0, 256, (1040, 28, 28), dtype=np.uint8))
    fashion_mnist.write_idx(tmp_path / "raw" / "train-labels-idx1-ubyte", (np.arange(1040) % 10).astype(np.uint8))
    script, out = load_script("train_tiny"), tmp_path / "out" / "tiny-clip"
    argv = ["clip", "--data_dir", tmp_path / "raw", "--out", tmp_path / "out", "--steps", 2, "--batch_size", 8]
    script.main([*map(str, argv), "--checkpoint_dir", str(tmp_path / "checkpoints")])
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 12e6
    monkeypatch.setattr(clip, "TINY_CLIP", out)
    scorer = clip.find("openclip", "tiny").load("cpu")
    pixels = torch.from_numpy(rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    x = torch.stack([scorer.preprocess(Image.fromarray(p.numpy())) for p in pixels])
    torch.testing.assert_close(x, two_heads.clip_input(pixels.permute(0, 3, 1, 2)))
    logits = scorer.logits(scorer.embed_images(x), scorer.embed_texts(["a red bag above a boot", "a boot"]))
    assert logits.shape == (2, 2) and logits.isfinite().all() and logits.abs().max() < math.exp(3)


def test_the_shipped_model_is_small_and_knows_colours():
    from diffusion.datasets.scenes import COLOURS, Item, draw_single

    assert sum(path.stat().st_size for path in TINY_CLIP.rglob("*") if path.is_file()) < 12e6
    scorer = clip.find("openclip", "tiny").load("cpu")
    images = fashion_mnist.read_idx(TINY_SD.parent / "datasets" / "FashionMNIST" / "raw", "t10k-images-idx3-ubyte")
    labels = fashion_mnist.read_idx(TINY_SD.parent / "datasets" / "FashionMNIST" / "raw", "t10k-labels-idx1-ubyte")
    bag = images[np.flatnonzero(labels == 8)[0]]
    x = torch.stack([scorer.preprocess(draw_single(Item(bag, "bag", colour))) for colour in COLOURS])
    said = scorer.embed_texts([f"a photo of a {colour} bag." for colour in COLOURS])
    assert scorer.logits(scorer.embed_images(x), said).argmax(1).tolist() == list(range(len(COLOURS)))


def test_the_shipped_models_parameters_are_as_many_as_tiny_sds():
    """A fair opponent (docs/training.md): within three percent."""
    from safetensors import safe_open

    def count(path):
        with safe_open(path, "pt") as file:
            return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118

    sd = TINY_CLIP.parent / "tiny-sd"
    denoiser = count(sd / "text_encoder" / "model.safetensors") + count(sd / "unet" / "diffusion_pytorch_model.safetensors")
    assert abs(count(TINY_CLIP / "tiny-clip.safetensors") / denoiser - 1) < 0.03
