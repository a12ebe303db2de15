"""CLIP models -> `Scorer`, through open_clip: OpenAI's weights, open_clip's own, a local folder, or the small one that ships."""

import contextlib
import difflib
import json
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.datasets.transforms import to_rgb
from diffusion.models.loading import hub
from diffusion.models.loading.tokens import Tokens, check_vocabulary, tokenize
from diffusion.models.source import Checkpoint
from diffusion.utils.files import hash_files, read_json
from diffusion.utils.paths import TINY_CLIP

# OpenAI's names -> open_clip's
OPENAI = {
    **{name: name for name in ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")},
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
}
PAPER_TAGS = {"ViT-H-14": "laion2b_s32b_b79k"}  # the only OpenCLIP of the paper's tables
CONFIG_KEYS = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
WEIGHTS = ("{}.safetensors", "{}.pt", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # {}: the config's stem


@dataclass(frozen=True)
class ClipSource(Checkpoint):
    """Where the weights of a contrastive model are, known before they are read.

    Attributes:
        architecture: open_clip's name; of a local folder the config's stem.
        pretrained: the tag of published weights, or the path of a local state dict.
        config: the local model config; None for published weights.
        quick_gelu: whether a published tag has OpenAI's approximate GELU; a local config says it itself.
    """

    architecture: str
    pretrained: str
    config: Path | None
    quick_gelu: bool = False

    def describe(self) -> str:
        """The folder, or architecture and tag, as a person would name them."""
        return str(self.config.parent) if self.config else f"open_clip {self.architecture} {self.pretrained}"

    def identity(self) -> str:
        """The hash of what is used of a local folder, the names of published weights."""
        if self.config is None:
            return self.describe()
        root = self.config.parent
        return hash_files(root, [self.config, Path(self.pretrained), *(root / "tokenizer").glob("*")])

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """The token ids of texts. Raises ValueError for a tokenizer that is missing, damaged or another model's."""
        text = _model_config(self.config)["text_cfg"] if self.config else {}
        encode, length = _encoder(self)
        return tokenize(encode, texts, length, text.get("vocab_size"), self.describe())

    def load(self, device: str) -> "Scorer":
        """The model with its weights (`load_clip`)."""
        return load_clip(self, device)


@dataclass(frozen=True)
class Scorer:
    """A contrastive model reduced to what matching captions to images needs; everything float32 on the device.

    Attributes:
        preprocess: PIL image of any mode -> [3,H,W] on the CPU, by the model's own recipe; other processes can unpickle it.
        embed_images: [B,3,H,W] -> [B,D], L2-normalised.
        embed_texts: list of B strings -> [B,D], L2-normalised.
        logits: (images [N,D], texts [M,D]) -> [N,M]: cosine times the learned scale, about 100 for published weights.
    """

    preprocess: Callable
    embed_images: Callable
    embed_texts: Callable
    logits: Callable


# ---------------------------------------------------------------- which weights


def find(kind: str, version: str, model_path: str | None = None, pretrained: str | None = None) -> ClipSource:
    """Find a contrastive model; names are checked, and that local files exist. Its weights are not read.

    Args:
        kind: "clip" (OpenAI's names) or "openclip" (open_clip's names, and `tiny`).
        version: the architecture's name; only a label where model_path is given.
        model_path: local folder; None: published weights.
        pretrained: open_clip's tag of published weights; None: the only usual one.

    Raises:
        ValueError: open_clip does not publish the name or tag, or the folder lacks config or weights.
    """
    if model_path is None and (kind, version) == ("openclip", "tiny"):
        model_path = str(TINY_CLIP)
    if model_path is not None:
        if pretrained is not None:
            raise ValueError(f"--pretrained {pretrained} names published weights, and {model_path} is a folder: leave it out")
        return _find_local(Path(model_path))
    return _find_openai(version, pretrained) if kind == "clip" else _find_openclip(version, pretrained)


def _find_openai(version: str, pretrained: str | None) -> ClipSource:
    if version not in OPENAI:
        raise ValueError(f"--version {version} is none of OpenAI's: {', '.join(OPENAI)} (others: --model openclip)")
    if pretrained not in (None, "openai"):
        raise ValueError(f"--pretrained {pretrained} needs --model openclip: --model clip is OpenAI's weights")
    return _published(OPENAI[version], "openai")


def _find_openclip(version: str, pretrained: str | None) -> ClipSource:
    import open_clip

    names = open_clip.list_models()
    if version not in names:
        close = ", ".join(difflib.get_close_matches(version, names, n=8, cutoff=0.3)) or "ViT-H-14"
        raise ValueError(f"--version {version} is no architecture of open_clip: take tiny, or one such as {close}")
    tag, tags = pretrained or PAPER_TAGS.get(version), open_clip.list_pretrained_tags_by_model(version)
    if not tags:
        raise ValueError(f"--version {version}: open_clip publishes no weights for it, name yours with --model_path")
    if tag is None:
        raise ValueError(f"--version {version} needs --pretrained, one of {', '.join(tags)}")
    if not open_clip.is_pretrained_cfg(version, tag):
        raise ValueError(f"--pretrained {tag} is no tag of {version}: take one of {', '.join(tags)}")
    return _published(version, tag)


def _published(architecture: str, tag: str) -> ClipSource:
    """The source of published weights. The activation comes from the tag: most architectures' configs name GELU, and OpenAI's
    weights are QuickGELU's."""
    import open_clip

    return ClipSource(architecture, tag, None, bool(open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu")))


def _find_local(root: Path) -> ClipSource:
    if not root.is_dir():
        raise ValueError(f"--model_path {root} is no folder: give one with an open_clip config <name>.json and <name>.pt")
    configs = [path for path in sorted(root.glob("*.json")) if _model_config(path).keys() >= CONFIG_KEYS.keys()]
    if len(configs) != 1:
        several = " and ".join(path.name for path in configs) or "no .json"
        raise ValueError(f"--model_path {root}: {several} with {', '.join(sorted(CONFIG_KEYS))}, and one is needed")
    check_config(configs[0])
    names = [name.format(configs[0].stem) for name in WEIGHTS]
    weights = next((root / name for name in names if (root / name).is_file()), None)
    if weights is None:
        raise ValueError(f"--model_path {root} has none of {', '.join(names)} beside {configs[0].name}")
    return ClipSource(configs[0].stem, str(weights), configs[0])


def _read_json(path: Path) -> dict:
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"--model_path: {error}") from None


def _model_config(path: Path) -> dict:
    """The architecture in a .json: the whole of it, or its `model_cfg` in folders from the hub (open_clip_config.json)."""
    content = _read_json(path)
    inner = content.get("model_cfg", content)
    if not isinstance(inner, dict):
        raise ValueError(f"--model_path: {path}: 'model_cfg' is no JSON object")
    return inner


def check_config(path: Path) -> None:
    """Check the types that open_clip needs in a model's config. Raises ValueError for another one, with file and key."""
    config = _model_config(path)
    wrong = [key for key, kind in CONFIG_KEYS.items() if type(config[key]) is not kind]
    if wrong or not isinstance(_read_json(path).get("preprocess_cfg", {}), dict):
        key = (wrong or ["preprocess_cfg"])[0]
        raise ValueError(f"--model_path: {path}: {key!r} is not of type {CONFIG_KEYS.get(key, dict).__name__}")
    sizes = {key: config["text_cfg"][key] for key in ("context_length", "vocab_size") if key in config["text_cfg"]}
    hub.check_sizes(f"--model_path: {path}: text_cfg", embed_dim=config["embed_dim"], **sizes)


# ---------------------------------------------------------------- the model


def load_clip(source: ClipSource, device: str) -> Scorer:
    """The model in float32, with the kernels that the published scores were computed with.

    Those ran with gradients on. For frozen weights PyTorch takes other kernels, which round by up to 4e-5 of a logit near 0;
    so the weights are left as they are, and the gradients are turned off around every call.

    Args:
        source: of the weights.
        device: torch's name.

    Raises:
        ValueError: the weights cannot be fetched or read.
    """
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose

    model = (_fetch_published(source) if source.config is None else _read_local(source)).to(device).eval()
    recipe = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    preprocess = Compose([to_rgb, recipe])  # RGB first, as published: a palette could only be resized to the nearest pixel
    encode, length = _encoder(source)

    @torch.inference_mode()
    def embed_images(images):
        with unfused_attention():
            return model.encode_image(images.to(device), normalize=True)

    @torch.inference_mode()
    def embed_texts(texts):
        with unfused_attention():
            return torch.cat([model.encode_text(ids.to(device), normalize=True) for ids in encode(texts, length).split(64)])

    @torch.inference_mode()
    def logits(images, texts):  # without the bias of SigLIP models, which moves all scores alike
        return model.logit_scale.exp() * images @ texts.T

    return Scorer(preprocess, embed_images, embed_texts, logits)


@contextlib.contextmanager
def unfused_attention() -> Iterator[None]:
    """Keep PyTorch from the fused layers that it has for inference alone."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _fetch_published(source: ClipSource) -> Any:
    """open_clip's model with published weights. Raises ValueError for weights that cannot be fetched."""
    import open_clip

    try:  # by itself first, since create_model logs a traceback's worth when it fails
        open_clip.download_pretrained(open_clip.get_pretrained_cfg(source.architecture, source.pretrained))
    except Exception as error:  # urllib, the hub's client and open_clip raise many kinds
        raise ValueError(
            f"{source.describe()} is not in the cache and cannot be fetched ({type(error).__name__}): "
            "give a local folder with --model_path, or work offline with --model openclip --version tiny"
        ) from None
    return open_clip.create_model(source.architecture, source.pretrained, force_quick_gelu=source.quick_gelu)


def _read_local(source: ClipSource) -> Any:
    """open_clip's model of a local folder. Raises ValueError for weights that are damaged or another architecture's."""
    import open_clip

    assert source.config
    preprocess = _read_json(source.config).get("preprocess_cfg", {})
    try:
        _register(source.config)
        return open_clip.create_model(source.architecture, source.pretrained, force_preprocess_cfg=preprocess)
    except Exception as error:  # whatever a broken zip, pickle or header makes of itself; other shapes; unknown config keys
        cause = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        raise ValueError(f"{source.pretrained} is damaged or no model of {source.config.name} ({cause})") from None


def _register(config: Path) -> None:
    """Make a local architecture known to open_clip, which builds and tokenizes by name only."""
    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / config.name
        path.write_text(json.dumps(_model_config(config)))
        open_clip.add_model_config(path)


def _encoder(source: ClipSource) -> tuple[Callable, int]:
    """The tokenizer: (strings, length) -> ids [B,length], and the length that the model takes.

    It is that of the folder's `tokenizer/` (Hugging Face's layout), else open_clip's for this model. Raises ValueError for a
    folder that is damaged; so does the tokenizer for a string that it knows nothing of.
    """
    folder = source.config and source.config.parent / "tokenizer"
    if not (source.config and folder and folder.is_dir()):
        import open_clip

        if source.config:
            _register(source.config)
        tokenizer = open_clip.get_tokenizer(source.architecture)
        return lambda texts, length: tokenizer(texts, context_length=length), tokenizer.context_length
    tokenizer = _folder_tokenizer(folder)
    settings = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}

    def encode(texts, length):
        check_vocabulary(tokenizer, texts, str(folder))
        return tokenizer(texts, max_length=length, **settings).input_ids

    return encode, _model_config(source.config)["text_cfg"].get("context_length", 77)


def _folder_tokenizer(folder: Path):
    """The tokenizer in a folder, by transformers: open_clip's own wrapper needs transformers 4 in open_clip 2.30."""
    from transformers import AutoTokenizer

    for path in sorted(folder.glob("*.json")):
        _read_json(path)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the reader of damaged files raises whatever it runs into
        raise ValueError(f"--model_path: {folder} cannot be read as a tokenizer ({hub.cause(error)})") from None
