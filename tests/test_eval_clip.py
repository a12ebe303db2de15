"""scripts/eval_clip.py on the shipped contrastive model: embeddings of classes, records, resuming, what it refuses."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import load_script
from torch.nn.functional import normalize

from diffusion import runlog
from diffusion.datasets import open_dataset
from diffusion.models import clip

MODEL = ["--model", "openclip", "--version", "tiny"]
CLOTHES = ["--dataset", "fashion_mnist"]
FOLDER = Path("data/fashion_mnist/openclip_tiny")


@pytest.fixture
def run(run_main):
    return lambda *argv: run_main(load_script("eval_clip").main, *MODEL, *argv)


def by_hand(templates, images):
    """Logits [n,10] with open_clip alone: normalise, mean, normalise."""
    source = clip.find("openclip", "tiny")
    clip._register(source)
    model = open_clip.create_model(source.architecture, source.pretrained).eval()
    encode, length = clip._encoder(source)
    names = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
    recipe = open_clip.transform.image_transform(64, is_train=False)
    with torch.no_grad():
        texts = torch.stack(
            [
                normalize(normalize(model.encode_text(encode([t.format(n) for t in templates], length)), dim=-1).mean(0), dim=0)
                for n in names
            ]
        )
        pictures = normalize(model.encode_image(torch.stack([recipe(image.convert("RGB")) for image in images])), dim=-1)
        return (model.logit_scale.exp() * pictures @ texts.T).numpy()


@pytest.mark.parametrize("templates", [["a photo of a {}."], ["a photo of a {}.", "a {}.", "a picture of a {}."]])
def test_logits_are_those_of_open_clip_by_hand(templates, run):
    Path("templates.txt").write_text("\n".join(templates) + "\n\n")
    code, out, err = run(*CLOTHES, "--imgs_to_eval", 6, "--templates", "templates.txt")
    assert code == 0 and f"{10 * len(templates)} of 10 classes" in out, err
    records = runlog.list_records(Path(f"{FOLDER}_{len(templates)}templates"))
    data = open_dataset("fashion_mnist", "test", None, "datasets")
    wanted = by_hand(templates, [data.picture(i) for i in records])
    for row, (index, path) in zip(wanted, records.items(), strict=True):
        record = runlog.load_record(path)
        logits = -np.array([float(record["errors"][k]["pred_errors"][0]) for k in range(10)])
        np.testing.assert_allclose(logits, row, rtol=1e-4, atol=1e-3)
        assert record["pred"] == row.argmax() and record["label"] == data.labels[index]


def test_one_template_is_the_single_prompt(run):
    Path("one.txt").write_text("a photo of a {}.\n")
    assert run(*CLOTHES, "--imgs_to_eval", 3, "--templates", "one.txt")[0] == run(*CLOTHES, "--imgs_to_eval", 3)[0] == 0
    for index, path in runlog.list_records(FOLDER).items():
        ours, other = (runlog.load_record(p) for p in (path, Path(f"{FOLDER}_1templates") / path.name))
        assert ours["pred"] == other["pred"], index
        assert all(torch.equal(ours["errors"][k]["pred_errors"], other["errors"][k]["pred_errors"]) for k in range(10))


def test_a_run_goes_on_and_its_scripts_read_it(run, run_main):
    assert run(*CLOTHES, "--imgs_to_eval", 4)[0] == 0
    code, out, err = run(*CLOTHES, "--imgs_to_eval", 7)
    assert code == 0 and "3 to do here, 4 of 7 done before" in out, err
    code, out, err = run_main(load_script("print_acc").main, FOLDER)
    assert code == 0 and "Images: 7 of 7" in out and "Cost: 1 evaluations per image" in out, err
    code, out, err = run_main(load_script("compare_runs").main, FOLDER, FOLDER)
    assert code == 0 and "7 of 7 records" in out, err


@pytest.mark.parametrize(
    "argv,told",
    [
        (["--templates", "missing.txt"], "--templates missing.txt cannot be read"),
        (["--templates", "empty.txt"], "--templates empty.txt is empty"),
        (["--templates", "flat.txt"], "flat.txt: the line 'a photo' has no {}"),
        (["--templates", "good.txt", "--template", "a {}."], "leave --prompt_path and --template out"),
        (["--pretrained", "openai"], "--pretrained openai names published weights"),
    ],
)
def test_bad_input(argv, told, run):
    for name, text in (("empty", "\n"), ("flat", "a photo\n"), ("good", "a {}.\n")):
        Path(f"{name}.txt").write_text(text)
    code, _, err = run(*CLOTHES, *argv)
    assert (code, err.count("\n")) == (2, 1) and told in err, err
    assert not Path("data").exists()


def test_other_prompts_are_another_run(run):
    assert run(*CLOTHES, "--imgs_to_eval", 2)[0] == 0
    code, _, err = run(*CLOTHES, "--imgs_to_eval", 2, "--template", "a {}.")
    assert code == 2 and "was made with other settings: prompts" in err
