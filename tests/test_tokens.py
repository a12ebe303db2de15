"""Prompts as a model reads them: those of two classes that are one to it are refused, those that are cut are told."""

import json
import shutil
from pathlib import Path

import layouts
import pytest
from conftest import TINY_SD20
from test_baselines import CONFIG, find, make_model

import eval_prob_adaptive
import run_winoground
from diffusion import classify, models
from diffusion.models.families.sd import StableDiffusion
from diffusion.utils.paths import TINY_SD

HEADER = "prompt,classname,classidx\n"
RUN = ["--dataset", "fashion_mnist", "--img_size", 64, "--to_keep", 1, "--n_samples", 1, "--imgs_to_eval", 1]
LONG = "a photo of a very very " + "very " * 80


@pytest.fixture
def no_model(monkeypatch):
    def refuse(*args):
        raise AssertionError("a model was loaded before the prompts were checked")

    monkeypatch.setattr(StableDiffusion, "load", refuse)


def rows(*prompts):
    """A CSV of these prompts, of classes 0, 1, ..."""
    Path("p.csv").write_text(HEADER + "".join(f"{prompt},name{i},{i}\n" for i, prompt in enumerate(prompts)))
    return ["--prompt_path", "p.csv"]


def copy_model(name="model"):
    shutil.copytree(TINY_SD20, name)
    return Path(name)


def without_vocabulary(root):
    (root / "tokenizer" / "tokenizer.json").unlink()
    (root / "tokenizer" / "vocab.json").write_text('{"!": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}')
    (root / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")


def of_another_text_encoder(root):
    path = root / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 700}))


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        (["a dog", "a cat", "a dog"], ["class 0 (name0)", "class 2 (name2)", "'a dog'", "--prompt_path"]),
        (["a dog", "A DOG"], ["class 0", "class 1", "same tokens of 'a dog' and 'A DOG'"]),  # CLIP's tokenizer ignores case
        ([LONG + "dog", "a cat", LONG + "fish"], ["class 0", "class 2", "77 tokens", "shorten"]),
    ],
)
def test_prompts_that_are_one_to_the_model(prompts, told, run_main, no_model):
    code, _, err = run_main(eval_prob_adaptive.main, *RUN, "--model_path", TINY_SD20, *rows(*prompts))
    assert code == 2 and err.count("\n") == 1 and all(words in err for words in told), err
    with pytest.raises(ValueError, match="one and the same to the model"):
        classify.text_to_image("x", prompts, model_path=str(TINY_SD20), device="cpu")
    assert not list(Path().rglob("*.pt"))


@pytest.mark.parametrize("given", [[], ["--template", "a {}."]])
def test_classes_of_the_published_list_may_have_one_prompt(given, run_main, monkeypatch):
    """ImageNet has two missiles and two pairs of sunglasses. The run is a worker whose share has no image."""
    layouts.imagenet(Path("sets"))
    argv = ["--dataset", "imagenet", "--data_dir", "sets", "--model_path", TINY_SD20, "--img_size", 64, "--to_keep", 1]
    argv += ["--n_samples", 1, "--imgs_to_eval", 1, "--n_workers", 2, "--worker_idx", 1]
    code, out, err = run_main(eval_prob_adaptive.main, *argv, *given)
    assert code == 0, err
    assert "classes 657 and 744 (missile), 836 and 837 (sunglasses) have one prompt each in the published list" in out


def test_a_template_that_is_longer_than_the_limit(run_main, no_model):
    code, _, err = run_main(eval_prob_adaptive.main, *RUN, "--version", "tiny", "--template", LONG + "{}")
    assert code == 2 and "class 0" in err and "class 1" in err and "24 tokens" in err and err.count("\n") == 1, err


def test_equal_prompts_of_one_class_are_its_own_business(run_main):
    Path("p.csv").write_text(HEADER + "a dog,dog,0\na dog,dog,0\na cat,cat,1\n")
    code, out, err = run_main(eval_prob_adaptive.main, *RUN, "--model_path", TINY_SD20, "--prompt_path", "p.csv")
    assert code == 0 and "are cut" not in out, err


def test_prompts_that_are_cut_are_told_once(run_main):
    argv = rows(f"dog {LONG}", "a cat", f"fish {LONG}", " ".join("a" for _ in range(75)))  # 75 and two fit into 77
    code, out, err = run_main(eval_prob_adaptive.main, *RUN, "--model_path", TINY_SD20, *argv)
    assert code == 0 and out.count("2 of 4 prompts are longer than the model's limit of 77 tokens") == 1, (out, err)


@pytest.mark.parametrize(
    ("damage", "told"), [(without_vocabulary, "knows nothing of 'a dog'"), (of_another_text_encoder, "text encoder knows 700")]
)
def test_a_tokenizer_that_is_not_the_models(damage, told, run_main, no_model):
    damage(copy_model())
    code, _, err = run_main(eval_prob_adaptive.main, *RUN, "--model_path", "model", *rows("a dog", "a rubber plant"))
    assert code == 2 and told in err and "model" in err and err.count("\n") == 1, err


@pytest.mark.parametrize("stated", [None, 10**30, 1e30, 5000])
def test_a_tokenizer_without_a_limit_has_that_of_the_text_encoder(stated):
    path = copy_model() / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["model_max_length"]
    path.write_text(json.dumps(config | ({"model_max_length": stated} if stated else {})))
    tokens = models.text_to_image("x", "model").tokens(["a dog"])
    assert tokens.limit == 77 and tokens == models.text_to_image("x", "model").tokens(["a dog"])
    assert tokens.rows == models.text_to_image("x", str(TINY_SD20)).tokens(["a dog"]).rows


def test_tokens_are_what_the_text_encoder_is_given():
    """Against the vocabulary: begin, the words, end, and padding to the limit."""
    vocabulary = json.loads((TINY_SD / "tokenizer" / "vocab.json").read_text())
    words = ["<|startoftext|>", "a</w>", "red</w>", "bag</w>", *["<|endoftext|>"] * 20]
    tokens = models.text_to_image("tiny").tokens(["a red bag"])
    assert tokens.rows == [tuple(vocabulary[word] for word in words)] and tokens.cut == 0 and tokens.limit == 24


# ---------------------------------------------------------------- contrastive models


def test_open_clips_own_tokenizer_says_what_it_cuts(tmp_path):
    make_model(tmp_path / "m", CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"context_length": 6}})
    source = find(tmp_path / "m")
    tokens = source.tokens(["a dog", "one two three four", "one two three four five"])
    assert (tokens.limit, tokens.cut) == (6, 1) and len(tokens.rows[0]) == 6


def test_a_tokenizer_folder_without_its_vocabulary(tmp_path):
    make_model(tmp_path, CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"vocab_size": 604}})
    shutil.copytree(TINY_SD / "tokenizer", tmp_path / "tokenizer")
    assert find(tmp_path).tokens(["a dog"]).cut == 0
    without_vocabulary(tmp_path)
    with pytest.raises(ValueError, match="tokenizer knows nothing of 'a dog'"):
        find(tmp_path).tokens(["a dog"])
    with pytest.raises(ValueError, match="knows nothing"):
        find(tmp_path).load("cpu").embed_texts(["a dog"])


def pairs_of(*captions):
    """A folder of pairs with these captions."""
    from PIL import Image

    Path("pairs/images").mkdir(parents=True)
    lines = []
    for i, (one, other) in enumerate(captions):
        for k in (0, 1):
            Image.new("RGB", (40, 40), ["red", "blue"][k]).save(f"pairs/images/{i}_{k}.png")
        images = {"image_0": f"{i}_0", "image_1": f"{i}_1"}
        lines.append({"id": i, **images, "caption_0": one, "caption_1": other, "collapsed_tag": "Object"})
    Path("pairs/examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("model", [["sd", "--version", "tiny", "--t_interval", 500], ["openclip", "--version", "tiny"]])
def test_captions_that_the_model_cannot_tell_apart(model, run_main):
    argv = ["--data_dir", "pairs", "--model", *model]
    long = "red " * 40
    pairs_of(("a red bag", "a blue bag"), ("a bag", "A bag"), (long + "bag", long + "boot"))
    code, out, err = run_main(run_winoground.main, *argv)
    assert code == 0 and "captions of 2 of 3 examples are one and the same to the model" in out and ": 1, 2" in out, err
    assert "2 of 6 prompts are longer than the model's limit of 24 tokens" in out
    shutil.rmtree("pairs")
    shutil.rmtree("data")
    pairs_of(("a bag", "A bag"), (long + "bag", long + "boot"))
    code, _, err = run_main(run_winoground.main, *argv)
    assert code == 2 and "every example, 0 the first" in err and err.count("\n") == 1, err
    assert not list(Path().rglob("*.pt"))


def test_a_model_of_classes_has_no_prompts():
    assert models.check_prompts(models.class_conditional("tiny"), [0, 1], [0, 1], [0, 1]) is None
