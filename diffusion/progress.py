"""A bar over images on a terminal, lines in a log."""

import sys

from diffusion.team import team


class _Lines:
    """A tqdm output file that turns every redraw into a line of its own, for logs."""

    def write(self, text):
        if text.strip("\r\n "):
            print(text.strip("\r\n "), file=sys.stderr, flush=True)

    def flush(self):
        sys.stderr.flush()


def progress(total: int):
    """A tqdm bar over images on a terminal; elsewhere a line a minute. Of torchrun's processes only rank 0 shows one."""
    from tqdm import tqdm

    if not team().leads:
        return tqdm(disable=True)
    if sys.stderr.isatty():
        return tqdm(total=total, unit="image", dynamic_ncols=True)
    return tqdm(total=total, unit="image", file=_Lines(), mininterval=60, miniters=1, ncols=0, leave=False, delay=1)
