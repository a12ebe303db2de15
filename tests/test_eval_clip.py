"""scripts/eval_clip.py on the shipped contrastive model: embeddings of classes, records, resuming, what it refuses."""

import json
from pathlib import Path

import layouts
import numpy as np
import open_clip
import pytest
import torch
from conftest import load_script
from torch.nn.functional import normalize

from diffusion import metrics
from diffusion.baselines import contrastive
from diffusion.datasets import open_dataset
from diffusion.datasets.prompts import joined, prompts_from_classes, read_templates
from diffusion.models import clip
from diffusion.runs import run_folder
from diffusion.utils.paths import PROMPTS

MODEL = ["--model", "openclip", "--version", "tiny"]
CLOTHES = ["--dataset", "fashion_mnist"]
FOLDER = Path("data/fashion_mnist/openclip_tiny")


@pytest.fixture
def run(run_main):
    return lambda *argv: run_main(load_script("eval_clip").main, *MODEL, *argv)


def by_hand(templates, images):
    """Logits [n,10] with open_clip alone: normalise, mean, normalise."""
    source = clip.find("openclip", "tiny")
    clip._register(source.config)
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
    records = run_folder.list_records(Path(f"{FOLDER}_{len(templates)}templates"))
    data = open_dataset("fashion_mnist", "test", None, "datasets")
    wanted = by_hand(templates, [data.picture(i) for i in records])
    for row, (index, path) in zip(wanted, records.items(), strict=True):
        record = run_folder.load_record(path)
        logits = -np.array([float(record["errors"][k]["pred_errors"][0]) for k in range(10)])
        np.testing.assert_allclose(logits, row, rtol=1e-4, atol=1e-3)
        assert record["pred"] == row.argmax() and record["label"] == data.labels[index]


def test_embeddings_of_classes_are_open_clip_s_own():
    """build_zero_shot_classifier, the library's implementation of the ensemble, on prompts that stand class by class."""
    templates, names = read_templates(PROMPTS / "cifar10_templates.txt")[:5], ["boot", "bag", "coat"]
    table = joined([prompts_from_classes(names, template) for template in templates])
    source = clip.find("openclip", "tiny")
    scorer = source.load("cpu")
    ours = contrastive.class_embeddings(scorer.embed_texts(table.prompts), table.classidx, [0, 1, 2])
    encode, length = clip._encoder(source)
    model = open_clip.create_model(source.architecture, source.pretrained).eval()
    theirs = open_clip.build_zero_shot_classifier(model, lambda texts: encode(texts, length), names, templates)
    torch.testing.assert_close(ours, theirs.T, rtol=1e-4, atol=1e-5)


def test_clip_s_own_templates(run, tmp_path, monkeypatch):
    layouts.stl10(tmp_path)
    layouts.forget_sums(monkeypatch)
    code, out, err = run("--dataset", "stl10", "--data_dir", tmp_path, "--templates", "clip")
    assert code == 0 and '20 of 10 classes, such as "a photo of a airplane."' in out, err
    assert len(run_folder.list_records(Path("data/stl10/openclip_tiny_2templates"))) == 3
    code, _, err = run(*CLOTHES, "--templates", "clip")
    assert code == 2 and "published none for fashion_mnist" in err


def test_top5_is_that_of_the_scores(run, run_main):
    code, out, err = run("--dataset", "tiny_combos", "--imgs_to_eval", 12, "--results", "r.json")
    folder = Path("data/tiny_combos/openclip_tiny")
    right = []
    for path in run_folder.list_records(folder).values():
        record = run_folder.load_record(path)
        scores = {k: -float(row["pred_errors"][0]) for k, row in record["errors"].items()}
        right.append(sum(scores[k] > scores[record["label"]] for k in scores) < 5)
    told = str(metrics.proportion(right))
    assert code == 0 and len(right) == 12 and f"Top-5 accuracy: {told}" in out, err
    assert json.loads(Path("r.json").read_text())["metrics"]["acc5"] == sum(right) / 12
    code, out, err = run_main(load_script("print_acc").main, folder, "--json", "acc.json")
    assert code == 0 and f"Top 5: {told}" in out, err
    assert json.loads(Path("acc.json").read_text())["top5"]["value"] == sum(right) / 12
    code, out, err = run("--dataset", "tiny_combos", "--imgs_to_eval", 12)  # all from records
    assert code == 0 and "0 to do here" in out and f"Top-5 accuracy: {told}" in out, err


def test_one_template_is_the_single_prompt(run):
    Path("one.txt").write_text("a photo of a {}.\n")
    assert run(*CLOTHES, "--imgs_to_eval", 3, "--templates", "one.txt")[0] == run(*CLOTHES, "--imgs_to_eval", 3)[0] == 0
    for index, path in run_folder.list_records(FOLDER).items():
        ours, other = (run_folder.load_record(p) for p in (path, Path(f"{FOLDER}_1templates") / path.name))
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
    assert code == 2 and "holds another run, which differs in prompts" in err
