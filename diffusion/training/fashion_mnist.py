"""Fashion-MNIST's files, and the captioned pictures that the shipped models learn from. torch is imported for batches."""

import numpy as np

from diffusion.datasets.readers import idx
from diffusion.datasets.scenes import CANVAS, COLOURS, NOUNS, PLACES, Item, draw_pair, draw_single, pair_caption
from diffusion.training import loop

# ---------------------------------------------------------------- Fashion-MNIST's files


def read_idx(folder, stem):
    """One idx file, plain or gzipped, as a uint8 array without its header (images [N,28,28], labels [N]).

    Raises FileNotFoundError when the folder has neither form, ValueError naming a file that is damaged.
    """
    path = idx.find_idx(folder, stem)
    if path is None:
        raise FileNotFoundError(f"no {stem}[.gz] in {folder}: give the folder of Fashion-MNIST's files with --data_dir")
    return idx.read_idx(path, 3 if "idx3" in stem else 1)


def write_idx(path, array):
    """The inverse of read_idx, unpacked: magic number, dimensions as big-endian int32, bytes."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())


def set_aside(labels, per_class=100, seed=0):
    """(training, validation): the sorted rows of labels [N]; `per_class` rows of every class are for validation.

    What is chosen (steps, learning rates, thresholds, calibration) is chosen on the validation images, so that the test images
    are used once. They are the same for every seed of a training. Raises ValueError for a class with no more images than that.
    """
    if np.bincount(labels).min() <= per_class:
        raise ValueError(f"--data_dir: {per_class} images of every class are set aside for validation, and one has no more")
    rng = np.random.default_rng(seed)
    validation = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:per_class] for c in np.unique(labels)])
    return np.setdiff1d(np.arange(len(labels)), validation), np.sort(validation)


# ---------------------------------------------------------------- pictures and captions

TEMPLATES = ("a photo of a {}.", "a {}.", "a picture of a {}.", "a photo of a {}, a type of clothing.")


def single_caption(rng, item):
    """Mostly the evaluation's template, some others, so that a user's own wording still means something."""
    name = item.phrase.removeprefix("a ")
    return TEMPLATES[rng.choice(4, p=[0.7, 0.1, 0.1, 0.1])].format(name)


def random_item(rng, images, labels, coloured, held_out):
    """Any picture, grey or in any colour that its noun is not held out in. held_out: pairs of colour and noun."""
    i = rng.integers(len(images))
    noun = NOUNS[labels[i]]
    seen = [colour for colour in COLOURS if (colour, noun) not in held_out]
    return Item(images[i], noun, str(rng.choice(seen)) if coloured else None)


def random_scene(rng, images, labels, held_out):
    """(picture, caption) of one coloured item (a quarter) or of two, with and without colours, with and without a relation."""
    if rng.random() < 0.25:
        item = random_item(rng, images, labels, True, held_out)
        return draw_single(item), single_caption(rng, item)
    coloured = rng.random() < 0.6
    first, second = (random_item(rng, images, labels, coloured, held_out) for _ in range(2))
    relation = str(rng.choice(list(PLACES)))
    across = [0, 1] if relation.startswith("to the") else [1, 0]  # jitter only at right angles, so that items never overlap
    jitter = rng.integers(-8, 9, size=(2, 1)) * across
    said = None if coloured and rng.random() < 0.5 else relation
    return draw_pair(first, second, relation, jitter), pair_caption(first, second, said)


def to_batch(pictures):
    """PIL pictures -> [B,3,64,64] float32 in [-1,1]."""
    import torch

    pixels = torch.from_numpy(np.stack([np.asarray(p.convert("RGB")) for p in pictures]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def captioned(seed, images, labels, held_out):
    """The (picture, caption) pairs of a training: every image once by itself, then as many scenes without these pairs."""
    rng = np.random.default_rng(seed)
    for image, label in zip(images, labels, strict=True):
        item = Item(image, NOUNS[label])
        yield draw_single(item), single_caption(rng, item)
    for _ in images:
        yield random_scene(rng, images, labels, held_out)


def encoded(vae, pairs, total):
    """Scaled latents [N,4,8,8] float32 of the pictures in (picture, caption) pairs, and the captions.

    256 pictures at a time, so that no pool of them is kept.
    """
    import torch
    from tqdm import tqdm

    latents, captions, waiting = [], [], []
    with torch.inference_mode(), loop.precision():
        for i, (picture, caption) in enumerate(tqdm(pairs, total=total, desc="encoding", mininterval=5), 1):
            waiting.append(picture)
            captions.append(caption)
            if len(waiting) == 256 or i == total:
                latents.append(vae.encode(to_batch(waiting)).latent_dist.mean.float())
                waiting = []
    return torch.cat(latents) * vae.config.scaling_factor, captions


def drawn(pairs, total):
    """Pictures [N,3,64,64] uint8 (1.5 GB for 120,000) of the (picture, caption) pairs, and the captions."""
    import torch
    from tqdm import tqdm

    pictures, captions = torch.empty(total, 3, CANVAS, CANVAS, dtype=torch.uint8), []
    for i, (picture, caption) in enumerate(tqdm(pairs, total=total, desc="drawing", mininterval=5)):
        pictures[i] = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        captions.append(caption)
    return pictures, captions


def mixed_rows(generator, batch_size, n_plain, n):
    """Rows [B] of the captioned pairs for one batch: 62 % plain items (below n_plain), 38 % scenes (from there below n)."""
    import torch

    scenes = int(0.38 * batch_size)
    plain = torch.randint(n_plain, (batch_size - scenes,), generator=generator)
    return torch.cat([plain, torch.randint(n_plain, n, (scenes,), generator=generator)])
