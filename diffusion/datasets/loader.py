"""Images of a dataset in a given order, decoded by other processes while the device works."""

import signal


class Indexed:
    """dataset[index] as (index, image, label, problem): an image that cannot be read becomes a problem, not a crash."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, index):
        if index is None:
            return None
        try:
            image, label = self.dataset[index]
        except OSError as error:
            return index, None, None, str(error)
        return index, image, label, None


def processes(device: str) -> int:
    """How many decode images beside this one: none on a CPU, where the network needs every core itself."""
    return 2 if device.startswith("cuda") else 0


def load_images(dataset, indices, workers: int):
    """Iterates over (index, image [3,H,W] or None, label, problem) in the order of `indices`; 0 workers: in this process.

    indices: any iterable, read in this process: one image ahead with one worker, four with two. A None among them is nothing to
    load, and fills such a place ahead.
    """
    from torch.utils.data import DataLoader

    ahead = 1 if workers == 1 else None
    loaded: DataLoader = DataLoader(Indexed(dataset), None,  # type: ignore[arg-type]  # a Dataset but for the class, which is torch's
                        sampler=indices, num_workers=workers, prefetch_factor=ahead,
                        worker_init_fn=_ignore_signals)  # fmt: skip
    return (image for image in loaded if image is not None)


def _ignore_signals(worker_id):
    """Ctrl-C reaches the whole process group; the parent still wants the image that is being evaluated."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
