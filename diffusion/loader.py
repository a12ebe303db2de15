"""Images of a dataset in a given order, decoded by other processes while the device works."""

import signal


class Indexed:
    """dataset[index] as (index, image, label, problem): an image that cannot be read becomes a problem, not a crash."""

    def __init__(self, dataset, indices):
        self.dataset, self.indices = dataset, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position):
        index = self.indices[position]
        try:
            image, label = self.dataset[index]
        except OSError as error:
            return index, None, None, str(error)
        return index, image, label, None


def processes(device: str) -> int:
    """How many decode images beside this one: none on a CPU, where the network needs every core itself."""
    return 2 if device.startswith("cuda") else 0


def load_images(dataset, indices, workers: int):
    """Iterates over (index, image [3,H,W] or None, label, problem) in the order of `indices`; 0 workers: in this process."""
    from torch.utils.data import DataLoader

    return DataLoader(Indexed(dataset, indices), batch_size=None, num_workers=workers, worker_init_fn=_ignore_signals)


def _ignore_signals(worker_id):
    """Ctrl-C reaches the whole process group; the parent still wants the image that is being evaluated."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
