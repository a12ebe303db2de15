"""--embedding: an embedding changes the conditions of prompts with its token as diffusers' pipelines do, and no others."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

import eval_prob_adaptive
from diffusion import classify, models
from diffusion.models.loading import hub
from diffusion.models.loading import textual_inversion as embeddings
from diffusion.runs import run_folder
from diffusion.settings import Embedding, ModelOptions
from diffusion.utils.paths import TINY_SD
from tests import tiny_pipelines

PROMPTS = ["a photo of a <item>.", "a red <item> bag, a <item>", "a photo of a bag."]  # all but the last have the token
SIZE = 16


def vectors(n, width, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def source(path=TINY_SD, *given):
    return models.text_to_image("none", str(path), ModelOptions(SIZE, embeddings=tuple(map(Embedding.parse, map(str, given)))))


def embedded(path, *given, prompts=PROMPTS):
    return source(path, *given).load("cpu", "float32").embed(prompts)


def saved(state, file):
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return file


@torch.no_grad()
def pipelines_own(state, prompts=PROMPTS):
    pipeline = StableDiffusionPipeline.from_pretrained(TINY_SD)
    pipeline.load_textual_inversion(state)
    return pipeline.encode_prompt(prompts, "cpu", 1, False)[0]


@pytest.mark.parametrize("n", [1, 3])
def test_conditions_are_the_pipelines_own(n, tmp_path):
    state = {"<item>": vectors(n, 128)}
    with_it, without = embedded(TINY_SD, saved(state, tmp_path / "x.safetensors")).sequence, embedded(TINY_SD).sequence
    torch.testing.assert_close(with_it, pipelines_own(state), rtol=1e-5, atol=1e-5)
    assert torch.equal(with_it[2], without[2])
    assert not torch.isclose(with_it[:2], without[:2]).all(-1).all(-1).any()


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("x.pt", lambda v: {"string_to_token": {"*": 265}, "string_to_param": {"*": v}, "name": "<item>", "step": 9}),
        ("x.bin", lambda v: {"<item>": v}),
        ("<item>.pt", lambda v: v),
        ("<item>.safetensors", lambda v: {"emb_params": v}),
        ("<item>.safetensors", lambda v: {"clip_l": v}),
        ("x.safetensors@<item>", lambda v: {"<other>": v}),
    ],
)  # fmt: skip
def test_layouts_of_files(name, wrap, tmp_path):
    """Of A1111 (two), diffusers, a bare tensor, SDXL's keys; and a token of the user's."""
    rows = vectors(2, 128)
    saved(wrap(rows), tmp_path / name.partition("@")[0])
    expected = pipelines_own({"<item>": rows})
    torch.testing.assert_close(embedded(TINY_SD, tmp_path / name).sequence, expected, rtol=1e-5, atol=1e-5)


def test_a_token_with_capitals_has_all_its_vectors(tmp_path):
    """Of which diffusers' prompts keep the first."""
    rows = vectors(2, 128)
    file = saved({"MyItem": rows}, tmp_path / "x.safetensors")
    found = embedded(TINY_SD, file, prompts=["a MyItem.", "a myitem."]).sequence
    expected = pipelines_own({"<item>": rows}, ["a <item>."])
    torch.testing.assert_close(found, expected.expand(2, -1, -1), rtol=1e-5, atol=1e-5)


def folder_of_learned(tmp_path, state):
    (tmp_path / "learned").mkdir()
    saved(state, tmp_path / "learned" / "learned_embeds.bin")
    return tmp_path / "learned"


@torch.no_grad()
def test_sdxl_in_both_encoders(tmp_path):
    pipeline = tiny_pipelines.build("sdxl", tmp_path / "model")
    state = {"clip_l": vectors(2, 8), "clip_g": vectors(2, 24)}
    for part, end in (("clip_l", ""), ("clip_g", "_2")):
        where = {"tokenizer": getattr(pipeline, f"tokenizer{end}"), "text_encoder": getattr(pipeline, f"text_encoder{end}")}
        pipeline.load_textual_inversion({"<item>": state[part]}, **where)
    sequence, _, pooled, _ = pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    found = embedded(tmp_path / "model", f"{saved(state, tmp_path / 'x.safetensors')}@<item>")
    torch.testing.assert_close(found.sequence, sequence, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)
    first = embedded(tmp_path / "model", folder_of_learned(tmp_path, {"<item>": state["clip_l"]}))
    assert torch.equal(first.sequence[:1, :, :8], found.sequence[:1, :, :8]) and not torch.equal(first.pooled, found.pooled)


@torch.no_grad()
def test_flux_in_clip_and_t5(tmp_path):
    pipeline = tiny_pipelines.build("flux-dev", tmp_path / "model")
    state = {"clip_l": vectors(2, 16), "t5": vectors(2, 24)}
    pipeline.load_textual_inversion({"<item>": state["clip_l"]})
    pipeline.load_textual_inversion({"<item>": state["t5"]}, tokenizer=pipeline.tokenizer_2, text_encoder=pipeline.text_encoder_2)
    sequence, pooled, _ = pipeline.encode_prompt(PROMPTS, None, device="cpu", max_sequence_length=512)
    found = embedded(tmp_path / "model", f"{saved(state, tmp_path / 'x.safetensors')}@<item>")
    torch.testing.assert_close(found.sequence, sequence, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)


def test_pooled_text_is_what_is_at_the_end(tmp_path):
    """Published configs of CLIP say that texts end with token 2; transformers then takes the largest id, which ours would be."""
    tiny_pipelines.build("sdxl", tmp_path / "model")
    given = f"{saved({'clip_g': vectors(1, 24)}, tmp_path / 'x.safetensors')}@<item>"
    expected = embedded(tmp_path / "model", given)
    config = tmp_path / "model" / "text_encoder_2" / "config.json"
    config.write_text(config.read_text().replace('"eos_token_id": 603', '"eos_token_id": 2'))
    found = embedded(tmp_path / "model", given, prompts=[*PROMPTS, "a red <item> boot, a <item>"])
    torch.testing.assert_close(found.pooled[:3], expected.pooled, rtol=1e-5, atol=1e-5)
    assert not torch.isclose(found.pooled[1], found.pooled[3]).all()


def test_tokens_are_seen_by_the_checks_of_prompts(tmp_path):
    one, two = (saved({f"<{name}>": vectors(n, 128)}, tmp_path / f"{name}.pt") for name, n in (("one", 1), ("two", 30)))
    found = source(TINY_SD, one, two)
    prompts = ["a <one>.", "a <ONE>.", "a <two> bag."]
    rows = found.tokens(prompts).rows
    assert rows[0] == rows[1] == (602, 320, 604, 269, *[603] * 20) and rows[2][2:23] == tuple(range(605, 626))
    assert models.check_prompts(found, prompts[1:], [0, 1], ["a", "b"]).startswith("1 of 2 prompts are longer")
    with pytest.raises(ValueError, match=r"one and the same to the model: it reads 24 tokens"):
        models.check_prompts(found, ["a <two> bag.", "a <two> boot."], [0, 1], ["a", "b"])


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"<item>": torch.ones(1, 99)}, "is for another model: its vectors have 99 numbers, and those of the text_encoder"),
        ({"clip_l": torch.ones(1, 128), "clip_g": torch.ones(1, 99)}, "has vectors for a text_encoder_2, and this Stable"),
        ({"bag</w>": torch.ones(1, 128)}, "'bag</w>' is in the vocabulary already"),
        ({"<item>": torch.ones(1, 2, 128)}, r"holds \[1, 2, 128\] of torch.float32 for the text_encoder"),
        ({"<item>": torch.ones(1, 128).to_sparse()}, "of sparse torch.float32 for the text_encoder"),
        ({"<item>": torch.ones(1, 128, dtype=torch.int64)}, "of torch.int64 for the text_encoder, and has to hold vectors"),
        ({"<item>": torch.full((1, 128), torch.nan)}, "that are not finite"),
        ({"<item>": "text"}, "holds a str for the text_encoder"),
        ({"<a>": torch.ones(1, 128), "<b>": torch.ones(1, 128)}, "holds 2 entries, <a> the first, and one token is wanted"),
        ({"string_to_param": {}, "name": "<item>"}, "holds a NoneType"),
        ({}, "holds nothing, and one token is wanted"),
    ],
)  # fmt: skip
def test_what_does_not_fit(state, expected, tmp_path):
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"--embedding .*x.pt.*{expected}"):
        source(TINY_SD, tmp_path / "x.pt")


def test_tokens_that_cannot_be_told_apart(tmp_path):
    file = saved({"<item>": vectors(1, 128)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"its token '<item>' is a part of '<item>s': name another one"):
        source(TINY_SD, file, f"{file}@<item>s")
    with pytest.raises(ValueError, match="its token '<item>' is a part of '<item>'"):
        source(TINY_SD, file, file)


def test_pipelines_that_have_none(tmp_path):
    file = saved({"<item>": vectors(1, 8)}, tmp_path / "x.pt")
    for name in ("sd3-without-t5", "sana"):
        tiny_pipelines.build(name, tmp_path / name)
        with pytest.raises(ValueError, match="diffusers knows no textual inversion of a S"):
            source(tmp_path / name, file)


def test_one_of_the_hub_is_read_at_the_commit_that_its_identity_names(monkeypatch):
    from diffusers.loaders import textual_inversion

    def read(paths, *, revision):
        assert (paths, revision) == (["someone/an-embedding"], "c0ffee")
        return [{"<item>": torch.ones(1, 128)}]

    monkeypatch.setattr(hub, "commit", lambda path, flag: "c0ffee")
    monkeypatch.setattr(textual_inversion, "load_textual_inversion_state_dicts", read)
    found = source(TINY_SD, "someone/an-embedding").identity()
    assert found.endswith("embedding someone/an-embedding at commit c0ffee as <item>")
    embeddings._read.cache_clear()


def test_the_run_names_it_and_says_where_it_does_nothing(tmp_path, monkeypatch, run_main):
    monkeypatch.setenv("LOG_DIR", str(tmp_path / "runs"))
    file = saved({"<item>": vectors(1, 128)}, tmp_path / "mine.pt")
    run = ["--version", "tiny", "--dataset", "fashion_mnist", "--imgs_to_eval", "1", "--to_keep", "1", "--n_samples", "2"]
    unused = "Note: no prompt has the token <item> of --embedding"
    code, out, err = run_main(eval_prob_adaptive.main, *run, "--embedding", file)
    assert code == 0 and unused in out, err
    code, out, err = run_main(
        eval_prob_adaptive.main, *run, "--embedding", file, "--template", "<ITEM> {}", "--dry_run", "--extra", "x"
    )
    assert code == 0 and unused not in out, err
    (folder,) = (tmp_path / "runs" / "fashion_mnist").iterdir()
    config = run_folder.read_config(folder)
    assert folder.name.endswith("_mine") and config["options"]["embedding"] == [str(file)]
    assert config["identity"]["weights"].endswith(" as <item>")


def test_from_python(tmp_path):
    file = saved({"<item>": vectors(1, 128)}, tmp_path / "mine.pt")
    told = {"img_size": 64, "embedding": [str(file)]}
    classifier = classify.text_to_image("tiny", PROMPTS, **told)
    torch.testing.assert_close(classifier.conditions.sequence, embedded(TINY_SD, file).sequence)
