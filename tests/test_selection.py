"""Which images are evaluated and with which noise: independent of sharding, batch and order."""

import numpy as np
import pytest
import torch

from diffusion import noise, sharding


def test_shards_are_the_published_interleaving():
    indices = [39, 3, 17, 0, 25, 8, 99]
    shards = [sharding.shard(indices, i, 3) for i in range(3)]
    assert shards == [[39, 0, 99], [3, 25], [17, 8]]


def test_imgs_to_eval_is_seeded_sorted_and_grows():
    few, many = (sharding.select(1000, None, n, seed=0) for n in (100, 300))
    assert len(few) == 100 and few == sorted(few) and set(few) < set(many)
    assert few != sharding.select(1000, None, 100, seed=1)
    assert few != list(range(100))
    assert sharding.select(10, None, 99, seed=0) == list(range(10))


def test_subset_keeps_its_order_and_is_cut_by_imgs_to_eval(tmp_path):
    np.save(tmp_path / "s.npy", np.array([5, 1, 8, 2]))
    assert sharding.select(10, str(tmp_path / "s.npy"), None, 0) == [5, 1, 8, 2]
    assert set(sharding.select(10, str(tmp_path / "s.npy"), 2, 0)) < {5, 1, 8, 2}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([0, 10], "index 10"),
        ([-1, 2], "index -1"),
        ([1, 1], "twice"),
        ([0.5], "not a list of integers"),
        ([[1], [2]], "integers"),
    ],
)
def test_bad_subsets(tmp_path, content, told):
    np.save(tmp_path / "s.npy", np.array(content))
    with pytest.raises(ValueError, match=rf"--subset_path.*{told}"):
        sharding.select(10, str(tmp_path / "s.npy"), None, 0)


def test_missing_and_broken_subset_files(tmp_path):
    (tmp_path / "s.npy").write_bytes(b"no array")
    for path in ("none.npy", "s.npy"):
        with pytest.raises(ValueError, match=r"--subset_path.*write_subset"):
            sharding.read_subset(str(tmp_path / path), 10)


def test_noise_is_a_function_of_seed_and_index():
    a, again = noise.seeded_noise(0, 7, (50, 4, 8, 8)), noise.seeded_noise(0, 7, (50, 4, 8, 8))
    torch.randn(3)  # the global generator plays no part
    assert torch.equal(a, again)
    for seed, index in ((0, 8), (1, 7), (7, 0)):
        assert (noise.seeded_noise(seed, index, (50, 4, 8, 8)) - a).abs().mean() > 1
    assert abs(a.mean()) < 0.02 and abs(a.std() - 1) < 0.02


def test_a_shared_bank_is_cut_to_the_rows_needed(tmp_path):
    bank = torch.randn(20, 4, 8, 8)
    torch.save(bank, tmp_path / "n.pt")
    assert torch.equal(noise.read_noise(str(tmp_path / "n.pt"), 12, (4, 8, 8), 64), bank[:12])


@pytest.mark.parametrize("content", [torch.randn(5, 4, 8, 8), torch.randn(20, 4, 4, 4), torch.randn(20, 8, 8), {"a": 1}, None])
def test_noise_of_the_wrong_shape_says_what_is_needed_and_how_to_make_it(tmp_path, content):
    if content is not None:
        torch.save(content, tmp_path / "n.pt")
    with pytest.raises(ValueError, match=r"--noise_path.*save_noise.py --img_size 64"):
        noise.read_noise(str(tmp_path / "n.pt"), 10, (4, 8, 8), 64)
