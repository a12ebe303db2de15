"""Every dataset runs on its own recipe: laid out as a miniature, through the command and up to the price."""

import re

import layouts
import pytest
from conftest import TINY_SD20

import eval_prob_adaptive
from diffusion.datasets import DATASETS, recipe_for
from diffusion.datasets.prompts import read_prompts
from diffusion.utils.paths import PROMPTS


@pytest.fixture(autouse=True)
def without_md5(monkeypatch):
    layouts.forget_sums(monkeypatch)


def own_folder(root):
    for i in range(45):  # more than 40 classes take the long recipe
        layouts.save_picture(root / f"class {i}" / "1.png", i)
    return root


def saved_set(root):
    import datasets

    table = datasets.Dataset.from_dict({"image": [layouts.picture(i) for i in range(3)], "label": ["ant", "bee", "cow"]})
    table.cast_column("image", datasets.Image()).save_to_disk(str(root))
    return root


OWN = {"folder": own_folder, "hf": saved_set, "webdataset": layouts.webdataset, "csv": layouts.csv_file}


@pytest.mark.parametrize("name", DATASETS)
def test_the_default_recipe_runs(name, run_main, tmp_path):
    root = tmp_path / "sets"
    if name in layouts.LAYOUTS:
        layouts.LAYOUTS[name].write(root)
    elif name in OWN:
        OWN[name](root)
    code, out, err = run_main(
        eval_prob_adaptive.main,
        "--dataset",
        name,
        "--data_dir",
        root,
        "--model_path",
        TINY_SD20,
        "--img_size",
        64,
        "--dry_run",
        *(("--split", "60") if name == "tiny_scenes" else ()),
    )
    assert code == 0 and "error" not in err, err
    prompts = DATASETS[name].prompts
    n = (
        len(read_prompts(PROMPTS / prompts).prompts)
        if prompts
        else {"folder": 45, "hf": 3, "webdataset": 3, "csv": 2, "tiny_scenes": 60}[name]
    )
    recipe = recipe_for(name, n)
    assert re.search(r"^Price: ([\d,]+) ", out, re.M).group(1) == f"{price(recipe.to_keep, recipe.n_samples, n):,}"
    assert re.search(rf"^  to_keep +{' '.join(map(str, recipe.to_keep))}$", out, re.M)


def price(to_keep, n_samples, n):
    """Evaluations of an image: each stage tries the timesteps that are new in it on the candidates that are left."""
    total, before = 0, set()
    for keep, samples in zip(to_keep, n_samples, strict=True):
        grid = range(1000 // max(n_samples) // 2, 1000, 1000 // max(n_samples))[: max(n_samples)]
        skip = len(grid) // samples
        new = set(grid[skip // 2 :: skip][:samples]) - before
        total, before, n = total + n * len(new), before | new, keep
    return total


def test_the_price_above_is_the_published_one():
    """reference.md's counts: 50 500 evaluates 50 and then 500 timesteps in all, and so on."""
    assert price((5, 1), (50, 500), 10) == 10 * 50 + 5 * 450
    assert price((500, 50, 10, 1), (50, 100, 500, 1000), 1000) == 1000 * 50 + 500 * 100 + 50 * 400 + 10 * 450
