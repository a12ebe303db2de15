"""--options FILE.yaml: what a file says is what the same words on the command line say, which overrides it."""

import json
from pathlib import Path

import pytest
from conftest import load_script

import eval_prob_adaptive
import eval_prob_dit
import run_winoground

PARSERS = {
    "eval_prob_adaptive": eval_prob_adaptive.parse_args,
    "eval_prob_dit": eval_prob_dit.parse_args,
    "run_winoground": run_winoground.parse_args,
    "eval_clip": load_script("eval_clip").parse_args,
}
NOT_SAID = ("options", "given", "command")


def of_file(text, *argv, parse_args=eval_prob_adaptive.parse_args):
    Path("o.yaml").write_text(text)
    return vars(parse_args([*argv, "--options", "o.yaml"]))


def alike(options):
    return {name: value for name, value in options.items() if name not in NOT_SAID}


def refused(text, capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        of_file(text, *argv)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and err.startswith("error: --options o.yaml: "), err
    return err


FILE = """
# the paper's recipe, thinned
dataset: fashion_mnist
version: tiny
to_keep: [5, 1]
n_samples:
  - 4
  - 10
loss: l1
template: "a photo of a {}: blurred."
lora: [a.safetensors@0.5, b.safetensors]
dry_run: true
download: False
batch_size: auto
"""
WORDS = [
    "--dataset", "fashion_mnist", "--version", "tiny", "--to_keep", "5", "1", "--n_samples", "4", "10", "--loss", "l1",
    "--template", "a photo of a {}: blurred.", "--lora", "a.safetensors@0.5", "--lora", "b.safetensors", "--dry_run",
    "--batch_size", "auto",
]  # fmt: skip


def test_a_file_says_what_the_command_line_would():
    found, typed = of_file(FILE), vars(eval_prob_adaptive.parse_args(WORDS))
    assert alike(found) == alike(typed) and found["given"] == typed["given"] | {"options"}


def test_the_command_line_overrides_wherever_the_file_stands():
    argv = ["--loss", "l2", "--to_keep", "1", "--n_samples", "3", "--lora", "c.safetensors", "-b", "8"]
    found = of_file(FILE, *argv)
    assert (found["loss"], found["to_keep"], found["n_samples"]) == ("l2", [1], [3])
    assert found["lora"] == ["c.safetensors"] and found["batch_size"] == 8  # and nothing is added to a list
    Path("o.yaml").write_text(FILE)
    assert alike(vars(eval_prob_adaptive.parse_args(["--options", "o.yaml", *argv]))) == alike(found)
    assert alike(vars(eval_prob_adaptive.parse_args([*argv, "--opt=o.yaml"]))) == alike(found)


def test_the_command_that_is_kept_needs_no_file():
    found = of_file(FILE, "--loss", "l2")
    assert "--to_keep 5 1" in found["command"] and "--loss=l1" not in found["command"] and "--loss l2" in found["command"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("1_0", 10), ('"7"', 7), ("12", 12)],
)
def test_a_value_is_the_text_that_stands_there(text, value):
    """YAML's own types would make 8 of 010."""
    assert of_file(f"dataset: pets\nseed: {text}\n")["seed"] == value


@pytest.mark.parametrize(
    ("text", "value"), [("no", "no"), ("1e-3", "1e-3"), ("2024-01-01", "2024-01-01"), ("'-x'", "-x"), ("2-0", "2-0")]
)
def test_a_text_stays_a_text(text, value):
    assert of_file(f"dataset: pets\nextra: {text}\n")["extra"] == value


def test_aliases_and_both_spellings_of_an_option():
    dit = {"parse_args": eval_prob_dit.parse_args}
    assert of_file("dataset: &name pets\nextra: *name\n")["extra"] == "pets"
    assert of_file("dataset: pets\nimage-size: 64\n", **dit)["img_size"] == 64
    assert of_file("dataset: pets\nimg_size: 64\n", "--image-size", "32", **dit)["img_size"] == 32
    assert of_file("dataset: pets\ncls: 0-2,7\n", **dit)["cls"] == [0, 1, 2, 7]


def test_a_required_option_may_be_in_either_place(capsys):
    assert of_file("seed: 1\n", "--dataset", "pets")["seed"] == 1
    with pytest.raises(SystemExit):
        of_file("seed: 1\n")
    assert capsys.readouterr().err == "error: the following arguments are required: --dataset\n"


@pytest.mark.parametrize("command", PARSERS)
def test_every_command_takes_a_file(command):
    text = "version: tiny\n" if command == "eval_clip" else ""
    text += "" if command == "run_winoground" else "dataset: tiny_combos\n"
    assert of_file(text + "extra: mine\n", parse_args=PARSERS[command])["extra"] == "mine"


BAD = {
    "an unknown key": ("sed: 1", "'sed'"),
    "an abbreviation": ("see: 1", "'see'"),
    "a short option": ("b: 1", "'b'"),
    "help": ("help: true", "'help'"),
    "another file": ("options: x.yaml", "'options'"),
    "a word for a number": ("seed: x", "--seed"),
    "a wrong choice": ("loss: l3", "--loss"),
    "a check of ours": ("extra: a/b", "--extra"),
    "an empty value": ("seed:", "--seed"),
    "an empty list": ("to_keep: []", "--to_keep"),
    "a list for one value": ("seed: [1]", "'seed'"),
    "a mapping": ("seed: {a: 1}", "'seed'"),
    "a list in a list": ("to_keep: [[1]]", "'to_keep'"),
    "a flag that is a word": ("dry_run: yes please", "'dry_run'"),
    "a key twice": ("seed: 1\nseed: 2", "'seed'"),
    "an option in a list": ("to_keep: ['5', '--dry_run']", "'to_keep'"),
    "a list": ("- seed", "no mapping"),
    "nothing": ("", "no mapping"),
    "two documents": ("seed: 1\n---\nseed: 2", "no YAML"),
    "no YAML": ("seed: [1", "no YAML"),
    "a Python object": ("seed: !!python/object/apply:os.mkdir [it_ran]", "'seed'"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_wrong_file_is_one_line_that_names_the_key(fault, capsys):
    text, told = BAD[fault]
    assert told in refused(text, capsys, "--dataset", "pets") and not Path("it_ran").exists()


def test_what_the_command_line_overrides_is_checked_all_the_same(capsys):
    assert "--loss" in refused("loss: l3", capsys, "--dataset", "pets", "--loss", "l1")


def test_a_file_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as stop:
        eval_prob_adaptive.parse_args(["--options", "none.yaml"])
    assert stop.value.code == 2 and capsys.readouterr().err == "error: --options none.yaml: No such file or directory\n"


def test_checks_of_options_against_each_other_hold(run_main):
    Path("o.yaml").write_text("model: openclip\nversion: tiny\ndataset: tiny_pairs\nt_interval: 20\n")
    code, _, err = run_main(run_winoground.main, "--options", "o.yaml")
    assert code == 2 and "--t_interval does nothing with --model openclip" in err


def test_a_run_from_a_file(run_main):
    Path("o.yaml").write_text("version: tiny\ndataset: tiny_combos\nimgs_to_eval: 2\nresults: r.json\n")
    code, out, err = run_main(load_script("eval_clip").main, "--options", "o.yaml", "--extra", "x")
    assert code == 0 and "imgs_to_eval  2\n" in out, err
    assert json.loads(Path("r.json").read_text())["run"] == "data/tiny_combos_x/openclip_tiny"
