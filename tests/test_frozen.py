"""Every command and recipe writes the folder name, the identity and the options that frozen.json holds.

They are read from the config.json that a command writes before its first image, here as a worker whose share has none. A change
that is meant to alter them stores the table anew, and `git diff` shows what it alters:

    FREEZE=1 python -m pytest tests/test_frozen.py
"""

import hashlib
import json
import os
from importlib import import_module
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT, load_script
from safetensors.torch import save_file

from tests import tiny_pipelines

STORED = Path(__file__).with_name("frozen.json")
ENTRIES = ("eval_prob_adaptive", "eval_prob_dit", "run_winoground")

IDLE = "--device cpu --n_workers 2 --worker_idx 1"  # the first worker has the one image
ONE = f"{IDLE} --imgs_to_eval 1"
SD = f"{ONE} --version tiny --dataset fashion_mnist"
SETS = f"{ONE} --data_dir sets --model_path mine.py --dataset"  # whose prompts cost nothing to embed
FLOW = f"{ONE} --version tiny-sd3 --dataset fashion_mnist"
DIT = f"{ONE} --model tiny --dataset fashion_mnist"
SHAPE = f"{ONE} --model_path golden/tiny-dit/DiT-XL-2-256x256.pt --vae_path golden/tiny-sd20/vae --data_dir sets --t_interval 250"
PAIRS = "--device cpu --n_workers 9 --worker_idx 8"  # there are at most eight examples
FEW = f"{PAIRS} --dataset tiny_pairs --data_dir pairs"
WINOGROUND = f"{PAIRS} --dataset winoground --data_dir golden/data/winoground"
CLIP = f"{ONE} --model openclip --version tiny --dataset"
TABLE = "dot.png --version tiny --device cpu -o OUT/table.csv"
PROBE = f"{SD} --train_split validation --train_images 20"
DRAWN = f"{IDLE} --version tiny --dataset fashion_mnist --per_class 2 --steps 1"

COURSE = "--epochs 3 --batch_size 4 --lr 0.01 --patience 2"
SHORT = "--to_keep 2 1 --n_samples 2 5"
RECIPES = [*layouts.LAYOUTS, "tiny_combos", "tiny_scenes"]
OWN = {"folder": "own", "hf": "table", "webdataset": "shards", "csv": "list.csv"}  # sets of the user's own -> where they lie

ROWS = {
    "eval_prob_adaptive": {
        **{f"recipe of {name}": f"{SETS} {name}" + " --split 60" * (name == "tiny_scenes") for name in RECIPES},
        **{f"recipe of {name}": f"{SETS} {name}".replace("sets", place) for name, place in OWN.items()},
        "stages": f"{SD} {SHORT} --n_trials 2",
        "race": f"{SD} --strategy race",
        "race with its options": f"{SD} --strategy race --alpha 0.05 --min_samples 3 --round_size 2 --max_samples 50 "
        "--n_trials 2 --batch_size 7 --images_in_flight 3",
        "race_calibrated": f"{SD} --loss l1 --strategy race_calibrated --race_fit shipped/races/tiny-sd_l1.json",
        "surrogate": f"{SD} --strategy surrogate --representatives 4 --width 3 --caution 1.5 --alpha 0.1 "
        "--min_samples 2 --max_samples 40 --n_trials 2",
        "tree": f"{SD} --strategy tree --seed 3 --extra mine",
        "tree of a file": f"{SD} --strategy tree --tree tree.json",
        "tree that ships": f"{SETS} imagenet --strategy tree --tree imagenet",
        "validation images": f"{SD} --split validation --loss huber --load_stats --results results.json",
        "subset": f"{SD} --subset_path subset.npy --template a_{{}}",
        "prompts": f"{SD} --prompt_path prompts.csv --to_keep 1 --n_samples 5",
        "noise bank": f"{SD} --noise_path noise.pt --dtype bfloat16 {SHORT}",
        "size and resize": f"{SD} --img_size 32 --interpolation lanczos --noise expected_norm",
        "error space": f"{SD} --error_space velocity --crop_errors 1",
        "error space of the model": f"{SD} --error_space epsilon --noise zero",
        "guidance": f"{SD} --guidance 1.5 --noise clipped:2",
        "ablations in a race": f"{SD} --guidance 1 --crop_errors 2 --noise truncated:2.5 --strategy race --error_space x0",
        "loras": f"{SD} --lora lora.safetensors@0.5 --lora lora.safetensors",
        "embedding": f"{SD} --lora lora.safetensors --embedding item.safetensors",
        "embedding with a token": f"{SD} --embedding item.safetensors@<thing>",
        "level weights": f"{SD} --loss l1 --level_weights weights_sd.json",
        "level weights in a race": f"{SD} --loss l1 --level_weights weights_sd.json --strategy race",
        "shortlist of a model": f"{SD} --shortlist openclip:tiny",
        "shortlist of a run": f"{SD} --shortlist earlier/fashion_mnist/openclip_tiny --shortlist_size 4 {SHORT}",
        "flow": FLOW,
        "flow in a race": f"{FLOW} --strategy race --loss l1 --levels logit-normal",
        "flow in velocity": f"{FLOW} --error_space velocity --levels uniform --guidance 1",
        "text encoders": f"{ONE} --dataset fashion_mnist --model_path sd3 --img_size 16 --text_encoders clip",
        "another family": f"{ONE} --dataset fashion_mnist --version sdxl --model_path sdxl --img_size 16",
        "folder of weights": f"{ONE} --dataset fashion_mnist --version mine --model_path golden/tiny-sd20",
        "Python file": f"{ONE} --dataset fashion_mnist --model_path mine.py --to_keep 1 --n_samples 5",
    },
    "eval_prob_dit": {
        "grid": DIT,
        "grid with its options": f"{DIT} --t_interval 50 --n_trials 2 --split validation --loss l1",
        "some classes": f"{DIT} --cls 1,3-5",
        "one class": f"{DIT} --cls 3",
        "class folders": f"{DIT} --cls 3,5 --save_per_class --n_trials 2",
        **{f"class folders with {kept}": f"{DIT} --cls 3,5 --save_per_class --{kept}"
           for kept in ("spatial", "save_eps", "save_eps_and_var", "save_vb")},
        "errors": f"{DIT} --save_errors",
        "loss in a race": f"{DIT} --loss vlb --strategy race",
        "stages": f"{DIT} {SHORT} --loss kl",
        "race": f"{DIT} --strategy race --max_samples 50",
        "race_calibrated": f"{DIT} --strategy race_calibrated --race_fit shipped/races/tiny-dit_l2.json",
        "tree": f"{DIT} --strategy tree --tree tree.json",
        "level weights": f"{DIT} --save_errors --level_weights weights_dit.json",
        "level weights in a race": f"{DIT} --level_weights weights_dit.json --strategy race",
        "ablations": f"{DIT} --guidance 1 --crop_errors 1 --noise clipped:2",
        "noise bank by position": f"{DIT} --noise_path noise.pt --batch_size 4 --t_interval 125",
        "noise bank by pair": f"{DIT} --noise_path noise.pt --randomize_noise --t_interval 125",
        "subset": f"{DIT} --subset_path subset.npy --seed 2 --extra mine --dtype bfloat16",
        "imagenet": f"{SHAPE} --dataset imagenet",
        "imagenet, one class": f"{SHAPE} --dataset imagenet --cls 7 --image-size 256",
        "imagenetA": f"{SHAPE} --dataset imagenetA --cls 6,11,988",
        "objectnet": f"{SHAPE} --dataset objectnet",
        "Python file": f"{ONE} --dataset fashion_mnist --model_path mine.py --t_interval 4",
    },
    "run_winoground": {
        "sd": f"{PAIRS} --dataset tiny_pairs --version tiny --n_workers 999 --worker_idx 998",
        "sd with its options": f"{FEW} --version tiny --t_interval 250 --n_trials 2 --interpolation bicubic --seed 4 "
        "--extra mine --score_mode normalised",
        "random noise": f"{FEW} --version tiny --t_interval 250 --randomize_noise",
        "noise bank": f"{FEW} --version tiny --t_interval 125 --noise_path noise.pt --batch_size 4",
        "error space": f"{FEW} --version tiny --t_interval 250 --error_space x0 --lora lora.safetensors",
        "flow": f"{FEW} --version tiny-sd3 --t_interval 100 --levels shift3",
        "winoground": f"{WINOGROUND} --model_path golden/tiny-sd20 --img_size 64",
        "openclip": f"{FEW} --model openclip --version tiny",
        "openclip's folder": f"{WINOGROUND} --model openclip --version mine --model_path golden/tiny-openclip --randomize_noise",
        "clip": f"{WINOGROUND} --model clip --model_path golden/tiny-openclip",
    },
    "eval_clip": {
        "default": f"{CLIP} fashion_mnist",
        "combos": f"{CLIP} tiny_combos --split validation --seed 2 --extra mine",
        "CLIP's templates": f"{CLIP} stl10 --data_dir sets --templates clip",
        "templates": f"{CLIP} fashion_mnist --templates templates.txt",
        "template": f"{CLIP} fashion_mnist --template a_{{}}",
        "subset": f"{CLIP} fashion_mnist --subset_path subset.npy",
        "folder of weights": f"{ONE} --model clip --version ViT-L/14 --model_path golden/tiny-openclip --dataset fashion_mnist",
    },
    "eval_supervised": {
        "imagenet": f"{ONE} --model timm:test_vit --weights vit.safetensors --dataset imagenet --data_dir sets",
        "imagenetA": f"{ONE} --model timm:test_vit --weights vit.safetensors --dataset imagenetA --data_dir sets",
        "objectnet": f"{ONE} --model timm:test_vit --weights vit.safetensors --dataset objectnet --data_dir sets --extra mine",
    },
    "classify": {
        "race": f"{TABLE} --labels bag boot --max_samples 4",
        "stages": f"{TABLE} --labels bag boot --strategy stages --to_keep 1 --n_samples 2 --template a_{{}} --loss l1",
        "prompts": f"{TABLE} --prompts prompts.csv --max_samples 4 --seed 1 --img_size 32 --error_space x0",
        "classes": f"{TABLE} --classes names.txt --max_samples 4 --version tiny-sd3",
    },
    "sd_features": {
        "resnet": PROBE,
        "resnet with its options": f"{PROBE} --layer down_blocks.1 --t 50 --augment {COURSE}",
        "linear": f"{PROBE} --head linear --pool flat --val_share 0.2 --img_size 32 --interpolation bilinear --seed 1",
    },
    "synthetic_data": {
        "default": DRAWN,
        "with its options": f"{DRAWN} --guidance 1 --draw_batch 2 --templates templates.txt --network resnet18 --size 32 "
        f"{COURSE} --seed 1 --extra mine",
        "flow": f"{DRAWN} --version tiny-sd3 --draw_only",
    },
}  # fmt: skip
BUILT = {"text encoders": "sd3", "another family": "sdxl"}  # row -> its pipeline, whose random weights no table can know
MODEL = """
import torch
from diffusion.models.denoiser import Conditions, Denoiser, Levels

IMG_SIZE = 16

def load(device, dtype):
    s = torch.arange(1, 1001) / 1000
    return Denoiser(encode=lambda image: image.mean(0, keepdim=True),
                    embed=lambda prompts: Conditions(pooled=torch.ones(len(prompts), 1)),
                    predict=lambda x_t, t, conditions: x_t * conditions.pooled[:, :, None, None],
                    levels=Levels(1 - s, s, flow=True), space="velocity")
"""
PAIRS_THAT_SHIP = ROOT / "shipped" / "datasets" / "tiny_pairs"
TREE = {"height": 2, "parts": [{"height": 1, "parts": [0, 1, 2, 3, 4]}, 5, 6, 7, 8, 9]}


@pytest.fixture(scope="module")
def mains():
    """Command -> main."""
    return {name: (import_module(name) if name in ENTRIES else load_script(name)).main for name in ROWS}


@pytest.fixture(scope="module")
def world(mains, tmp_path_factory):
    """The folder that all commands work in, with the files that their options name."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("world")
        patch.chdir(folder)
        patch.setattr(layouts, "save_picture", save_picture)
        layouts.forget_sums(patch)
        lay_out_sets()
        lay_out_files()
        lay_out_fits(mains, patch)
        yield folder


def save_picture(path, seed=0, **kwargs):
    """A lossless file whatever its name ends with: what is read back from JPEG depends on the library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layouts.picture(seed, **kwargs).save(path, "png")


def lay_out_sets():
    import datasets

    Path("pairs").mkdir()
    Path("pairs/images").symlink_to(PAIRS_THAT_SHIP / "images")
    examples = (PAIRS_THAT_SHIP / "examples.jsonl").read_text().splitlines()[:8]
    Path("pairs/examples.jsonl").write_text("\n".join(examples))
    Path("golden").symlink_to(GOLDEN)
    Path("shipped").symlink_to(ROOT / "shipped")
    for layout in layouts.LAYOUTS.values():
        layout.write(Path("sets"))
    for name in ("ant", "bee"):
        save_picture(Path("own", name, "0.png"), len(name))
    table = datasets.Dataset.from_dict({"image": [layouts.picture(i) for i in range(2)], "label": ["ant", "bee"]})
    table.cast_column("image", datasets.Image()).save_to_disk("table")
    layouts.webdataset(Path("shards"))
    layouts.csv_file(Path("list.csv"))


def lay_out_files():
    import timm

    save_picture(Path("dot.png"))
    np.save("subset.npy", np.array([5, 900, 31]))
    spread = torch.special.ndtri((torch.arange(2048, dtype=torch.float64) * 1021 % 2048 + 0.5) / 2048)  # as normal noise is
    torch.save(spread.mul(2**12).round().div(2**12).float().reshape(8, 4, 8, 8), "noise.pt")
    Path("prompts.csv").write_text("prompt,classname,classidx\na bag,Bag,8\na boot,Ankle boot,9\none boot,Ankle boot,9\n")
    Path("templates.txt").write_text("a photo of a {}.\na {}.\n")
    Path("names.txt").write_text("bag\nboot\ncoat\n")
    Path("tree.json").write_text(json.dumps(TREE))
    Path("mine.py").write_text(MODEL)
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q.lora_"
    save_file({f"{module}A.weight": torch.ones(2, 128), f"{module}B.weight": torch.ones(128, 2)}, "lora.safetensors")
    save_file({"<item>": torch.ones(1, 128)}, "item.safetensors")
    vit = timm.create_model("test_vit").state_dict()
    save_file({name: torch.zeros_like(value) for name, value in vit.items()}, "vit.safetensors")
    for name in BUILT.values():
        tiny_pipelines.build(name, name)


def lay_out_fits(mains, patch):
    """Level weights for the two models, which the models' own runs name, and a run to take a shortlist from."""
    patch.setenv("LOG_DIR", "earlier")
    for name, command, row in (("sd", "eval_prob_adaptive", f"{SD} --loss l1"), ("dit", "eval_prob_dit", DIT)):
        assert mains[command](row.split()) == 0
        [place] = Path("earlier").rglob("config.json")
        config = json.loads(place.read_text())
        place.unlink()
        about = {"loss": "l2", "levels": None} | config | config["identity"]
        known = {name: about[name] for name in ("weights", "loss", "n_levels", "error_space", "levels", "img_size")}
        content = {"coefficients": [1.0, -0.5, 0.25], "n": 100, "about": known}
        Path(f"weights_{name}.json").write_text(json.dumps(content))
    assert mains["eval_clip"](f"{CLIP} fashion_mnist".split()) == 0
    patch.delenv("LOG_DIR")


def configs_of(command, words, mains, logs):
    """Run the command; each run folder below `logs` -> its config.json."""
    assert mains[command](words.replace("OUT", str(logs)).split()) == 0
    found = {}
    for place in sorted(logs.rglob("config.json")):
        folder = place.parent.relative_to(logs).as_posix().removeprefix(".configs/")
        assert (logs / folder).is_dir()
        found[folder] = json.loads(place.read_text())
    return found


def portable(config, row):
    """The parts of a config.json that are the same on every machine, long values as their hashes."""
    unknown = ("preprocess", "weights") if row in BUILT else ("preprocess",)  # preprocess: as timm prints it
    identity = {name: short(value) for name, value in config["identity"].items() if name not in unknown}
    options = {name: short(value) for name, value in config["options"].items()}
    others = {name: short(value) for name, value in config.items() if name not in ("versions", "git_commit")}
    return others | {"identity": identity, "options": options}


def short(value):
    text = json.dumps(value)
    return value if len(text) < 100 else f"{text[:30]} ... sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


# ---------------------------------------------------------------- the table


def read_table():
    """Command -> row -> folder -> `portable` part of its config.json."""
    return {command: {row: {folder: config | {"options": stored["options"] | config["options"]}
                            for folder, config in configs.items()} for row, configs in stored["rows"].items()}
            for command, stored in json.loads(STORED.read_text()).items()}  # fmt: skip


def write_table(table):
    """Write frozen.json, in which the options that all folders of a command share stand once."""
    compact = {}
    for command, rows in table.items():
        configs = [config for folders in rows.values() for config in folders.values()]
        first = configs[0]["options"]
        shared = {name: first[name] for name in first if all(c["options"].get(name, ...) == first[name] for c in configs)}
        for config in configs:
            config["options"] = {name: value for name, value in config["options"].items() if name not in shared}
        compact[command] = {"options": shared, "rows": rows}
    STORED.write_text(json.dumps(compact, indent=1, sort_keys=True) + "\n")


def store(command, row, found):
    table = read_table() if STORED.is_file() else {}
    rows = table.get(command, {}) | {row: found}
    table[command] = {row: rows[row] for row in ROWS[command] if row in rows}
    write_table({command: table[command] for command in ROWS if command in table})


@pytest.mark.parametrize(("command", "row"), [(command, row) for command, rows in ROWS.items() for row in rows])
def test_runs_are_what_they_were(command, row, mains, world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    layouts.forget_sums(monkeypatch)
    monkeypatch.setenv("LOG_DIR", str(tmp_path))
    found = {folder: portable(config, row) for folder, config in configs_of(command, ROWS[command][row], mains, tmp_path).items()}
    if row.removeprefix("recipe of ") in OWN:
        found = dict(zip([""], found.values(), strict=True))  # these folders are named after the user's data
    if "FREEZE" in os.environ:
        store(command, row, found)
        pytest.skip("stored")
    assert found == read_table()[command][row]


def test_the_table_holds_these_rows():
    assert {command: set(rows) for command, rows in read_table().items()} == {c: set(rows) for c, rows in ROWS.items()}
