"""--prune_img_size in eval_prob_adaptive.py on the shipped model, whose U-Net takes 32 and 64 pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script
from PIL import Image

import eval_prob_adaptive
from diffusion.analysis import tables
from diffusion.datasets import transforms

RUN = ["--version", "tiny", "--dataset", "fashion_mnist", "--imgs_to_eval", 2, "--to_keep", 3, 1, "--n_samples", 4, 10]
FOLDER = Path("data/fashion_mnist/vtiny_1trials_3_1keep_4_10samples_64_32prune")


def test_survivors_are_evaluated_in_full(run_main):
    code, out, err = run_main(eval_prob_adaptive.main, *RUN, "--prune_img_size", 32)
    assert code == 0, err
    assert (
        "Price: 70 network evaluations an image (40 of them at 32 pixels), 140 in all" in out and "70 evaluations an image" in out
    )
    plain, files = Path(str(FOLDER).removesuffix("_32prune")), sorted(FOLDER.glob("*.pt"))
    assert run_main(eval_prob_adaptive.main, *RUN)[0] == 0 and len(files) == 2
    for file in files:
        record, other = (torch.load(folder / file.name, weights_only=True) for folder in (FOLDER, plain))
        assert len(record["pruned"]) == 7 and record["evaluations"] == 70 and record["pred"] not in record["pruned"]
        lengths = {row: len(c["pred_errors"]) for row, c in record["errors"].items()}
        assert lengths == {row: 4 if row in record["pruned"] else 10 for row in range(10)}
        both = [row for row in range(10) if row not in record["pruned"] and len(other["errors"][row]["t"]) == 10]
        for row in both:  # a survivor's errors are those of a run without pruning
            np.testing.assert_allclose(record["errors"][row]["pred_errors"], other["errors"][row]["pred_errors"], rtol=1e-4)
    assert "70 evaluations" in run_main(load_script("print_acc").main, FOLDER)[1]
    with pytest.raises(ValueError, match="two image sizes"):
        tables.read_run(FOLDER)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--prune_img_size", 64], ["--prune_img_size 64", "below --img_size 64"]),
        (["--prune_img_size", 20], ["--prune_img_size 20", "multiple of 16"]),
        (["--prune_img_size", 32, "--to_keep", 1, "--n_samples", 10], ["--prune_img_size", "one stage"]),
    ],
)
def test_bad_input(argv, told, run_main):
    code, _, err = run_main(eval_prob_adaptive.main, *RUN, *argv)
    assert code == 2 and err.count("\n") == 1 and all(words in err for words in told), err
    assert not Path("data").exists()


def test_a_race_does_not_prune_by_size(run_main):
    code, _, err = run_main(eval_prob_adaptive.main, *RUN[:6], "--strategy", "race", "--prune_img_size", 32)
    assert code == 2 and "--strategy race" in err


def test_shrinking_is_pils():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    expected = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)) / 127.5 - 1
    assert np.abs(transforms.shrink(image, 32).permute(1, 2, 0).numpy() - expected).max() < 0.03
