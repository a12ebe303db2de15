"""A bar over images on a terminal, lines in a log."""

import sys
import threading

from diffusion.utils.distributed import team

FIRST, NEXT = 10, 60  # seconds until the first line in a log, and between later ones


class _Lines:
    """A tqdm output file that turns every redraw into a line of its own, for logs."""

    def write(self, text):
        if text.strip("\r\n "):
            print(text.strip("\r\n "), file=sys.stderr, flush=True)

    def flush(self):
        sys.stderr.flush()


def progress(total: int):
    """A tqdm bar over images on a terminal; elsewhere lines, the first one soon, even if no image is done by then. Of torchrun's
    processes only rank 0 shows one."""
    from tqdm import tqdm

    if not team().leads:
        return tqdm(disable=True)
    if sys.stderr.isatty():
        return tqdm(total=total, unit="image", dynamic_ncols=True)
    bar = tqdm(total=total, unit="image", file=_Lines(), mininterval=NEXT, miniters=1, ncols=0, leave=False, delay=1)
    first, close = threading.Timer(FIRST, bar.refresh), bar.close

    def close_with_timer() -> None:
        first.cancel()
        close()

    bar.close = close_with_timer
    first.daemon = True
    first.start()
    return bar
