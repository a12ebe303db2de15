"""Which images are evaluated and with which noise: independent of sharding, batch and order."""

import os

import numpy as np
import pytest
import torch

from diffusion.kernel import noise
from diffusion.runs import sharding
from diffusion.strategy import schedule


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


def npy(header, data=b""):
    """A .npy file of version 1 with this text as its header."""
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def archive(tmp_path, save):
    path = tmp_path / "other.npz"
    save(path, np.arange(3))
    return path.read_bytes()


HUGE = "{'descr': '<i8', 'fortran_order': False, 'shape': (%s,), }\n"
FOREIGN = {
    "empty": b"",
    "text": b"no array",
    "PK": b"PK",
    "zip signature": b"PK\x03\x04" + bytes(40),
    "empty zip": b"PK\x05\x06" + bytes(18),
    "pickle": b"\x80\x04\x95" + bytes(20),
    "magic alone": b"\x93NUMPY",
    "version": b"\x93NUMPY\x09\x09" + bytes(20),
    "no header": b"\x93NUMPY\x01\x00\xff\xff",
    "header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
    "header no dict": npy("[1, 2]\n"),
    "header an expression": npy("{'descr': __import__('os')}\n"),
    "header nested": npy("(" * 20_000 + "\n"),
    "no type": npy("{'descr': 'nonsense', 'fortran_order': False, 'shape': (2,), }\n", bytes(16)),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }\n", bytes(16)),
    "shape negative": npy(HUGE % -2, bytes(16)),
    "shape a word": npy(HUGE % "'a'", bytes(16)),
    "shape 10^12": npy(HUGE % 10**12, bytes(16)),
    "shape 10^30": npy(HUGE % 10**30, bytes(16)),
    "shape 2^61": npy(HUGE % (2**61 + 2), bytes(16)),  # 16 bytes, modulo 2^64
    "cut": npy(HUGE % 3, bytes(16)),
}


@pytest.mark.parametrize("kind", [*FOREIGN, "npz", "compressed npz", "folder", "missing", "pipe"])
def test_files_that_are_no_subset(tmp_path, kind):
    """Nothing is waited for, nothing is allocated, and the line names flag and file."""
    path = tmp_path / "s.npy"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        zipped = {"npz": np.savez, "compressed npz": np.savez_compressed}
        path.write_bytes(FOREIGN[kind] if kind in FOREIGN else archive(tmp_path, zipped[kind]))
    with pytest.raises(ValueError) as caught:
        sharding.read_subset(str(path), 10)
    assert f"--subset_path {path}" in str(caught.value) and "write_subset.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_called_so(tmp_path):
    (tmp_path / "s.npy").write_bytes(FOREIGN["cut"])
    with pytest.raises(ValueError, match="is cut off: it ends before its 3 indices do"):
        sharding.read_subset(str(tmp_path / "s.npy"), 10)


@pytest.mark.parametrize(
    "content",
    [
        np.array([1, 2], "m8[s]"),
        np.array([1, 2], "M8[s]"),
        np.array([True, False]),
        np.array([1.0, 2.0]),
        np.array([1, 2], complex),
        np.array(["1", "2"]),
        np.array([b"1"]),
        np.array([(1, 2)], [("a", int), ("b", int)]),
        np.array(3),
        np.array([], int),
        np.empty((0, 3), int),
        np.ones((2, 2), int),
        np.array([2**64 - 1], np.uint64),
        np.array([2**63 - 1]),
        np.array([-(2**63)]),
        np.array([10], np.uint8),
        np.zeros(11, np.int8),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_arrays_that_are_no_indices_of_ten_images(tmp_path, content):
    np.save(tmp_path / "s.npy", content)
    with pytest.raises(ValueError, match=r"--subset_path .*s\.npy (holds|names) .*write_subset"):
        sharding.select(10, str(tmp_path / "s.npy"), None, 0)


@pytest.mark.parametrize("dtype", ["<i8", ">i8", "<i2", "u1", "<u8"])
def test_integers_of_any_size_and_order_are_indices(tmp_path, dtype):
    np.save(tmp_path / "s.npy", np.array([7, 0, 3], dtype))
    indices = sharding.select(10, str(tmp_path / "s.npy"), None, 0)
    assert indices == [7, 0, 3] and all(type(i) is int for i in indices)


def test_noise_is_a_function_of_seed_index_timestep_and_trial():
    plan, shape = schedule.make_plan([50], 2, 1000), (4, 8, 8)
    a = noise.Seeded(0)(7, plan, shape)
    torch.randn(3)  # the global generator plays no part
    assert torch.equal(a, noise.Seeded(0)(7, plan, shape)) and a.shape == (100, 4, 8, 8)
    for seed, index in ((0, 8), (1, 7), (7, 0)):
        assert (noise.Seeded(seed)(index, plan, shape) - a).abs().mean() > 1
    rows = a.flatten(1)
    assert abs(a.mean()) < 0.02 and abs(a.std() - 1) < 0.02
    assert np.abs(np.corrcoef(rows) - np.eye(100)).max() < 0.35  # 256 numbers a row: six standard deviations


def test_strategies_that_come_to_a_timestep_find_the_same_noise_there():
    """A race, stages, and a coarser grid whose timesteps nest in a finer one's."""
    fine, shape = schedule.make_plan([250], 2, 1000), (1, 4, 4)
    rows = dict(zip(zip(fine.t.tolist(), fine.trial.tolist(), strict=True), noise.Seeded(3)(5, fine, shape), strict=True))
    for plan in (schedule.race_plan(250, 2, 1000), schedule.make_plan([25, 250], 1, 1000), schedule.make_plan([50], 2, 1000)):
        for s, key in enumerate(zip(plan.t.tolist(), plan.trial.tolist(), strict=True)):
            assert torch.equal(noise.Seeded(3)(5, plan, shape, slice(s, s + 1))[0], rows[key])


def test_noise_of_all_images_is_one():
    plan, shape = schedule.interval_plan(100, 1, 1000), (1, 4, 4)
    shared = noise.Seeded(0, 4)
    assert torch.equal(shared(1, plan, shape), shared(2, plan, shape))
    assert torch.equal(shared(1, plan, shape), noise.Seeded(0)(4, plan, shape))


def test_noise_of_old_runs_is_drawn_as_it_was():
    """Numbers drawn by the code of that time: seed 0, image 7, the second of three pairs."""
    plan = schedule.make_plan([3], 1, 1000)
    old = noise.SeededInOrder(0)(7, plan, (1, 2, 2), slice(1, 2))
    torch.testing.assert_close(old.flatten(), torch.tensor([0.43521342, 0.06495921, -0.31937525, 1.0459267]))
    assert old.shape == (1, 1, 2, 2) and noise.SeededInOrder(0).identity() != noise.Seeded(0).identity()


def test_a_bank_gives_row_s_to_pair_s():
    bank = noise.Bank(torch.randn(3, 1, 2, 2))
    plan = schedule.make_plan([3], 1, 1000)
    assert torch.equal(bank(9, plan, (1, 2, 2), slice(1, 3)), bank.noise[1:])
    with pytest.raises(ValueError, match="needed is"):
        bank(9, schedule.make_plan([4], 1, 1000), (1, 2, 2))


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
