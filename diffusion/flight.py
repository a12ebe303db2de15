"""Several images at once. Each one's elimination runs in a thread of its own, which waits whenever it asks for errors; the thread
that called gathers what all of them ask for into full calls of the network, and alone does what needs the device.

What goes into a call follows from the order of the images and from what they ask for, not from the timing of threads.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any


def width(asked: int | str | None, device: str, batch_size: int | str) -> int | str | None:
    """How many images are in flight where --images_in_flight asks for so many, None: where the command has no such option.

    auto is 1 on a CPU and batch_size // 2 + 1 on a GPU: an image that is not decided yet has two candidates or more and asks for
    one pair or more, and of one image a part may be evaluated already, so that these fill a call. It stays "auto" while the
    batch size is that.
    """
    if asked != "auto":
        return asked
    if not device.startswith("cuda"):
        return 1
    return "auto" if batch_size == "auto" else batch_size // 2 + 1


class Landed(BaseException):
    """Ends the thread of an image whose errors nobody will evaluate any more; no `except Exception` of a strategy stops it."""


class Flight:
    """One image on its way. begin() -> job, in the calling thread; job(ask) runs in a thread of its own.

    ask(question) waits for the answer: what has the methods of kernel.Cells -> the pieces that it was evaluated in, in order.
    """

    def __init__(self, key, begin: Callable):
        self.key, self.question, self.pieces, self.done = key, None, [], 0
        self.told, self.answers = SimpleQueue(), SimpleQueue()
        self.problem = self.result = self.thread = None
        try:
            job = begin()
        except Exception as problem:
            self.problem = problem
            return
        self.thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        self.thread.start()

    def _run(self, job) -> None:
        try:
            self.result = job(self._ask)
        except BaseException as problem:
            self.problem = problem
        self.told.put(None)

    def _ask(self, question):
        self.told.put(question)
        answer = self.answers.get()
        if answer is None:
            raise Landed
        return answer

    def asks(self) -> bool:
        """Waits until the image asks for something or ends: whether it does the former."""
        if self.thread is None:
            return False
        self.question, self.pieces, self.done = self.told.get(), [], 0
        if self.question is None:
            self.thread.join()
        return self.question is not None

    @property
    def left(self) -> int:
        """Cells of the question that were not evaluated."""
        return len(self.question) - self.done

    def next_part(self, most: int):
        """At most so many of these."""
        start, self.done = self.done, min(self.done + most, len(self.question))
        return self.question.part(start, self.done)

    def answer(self) -> None:
        self.answers.put(self.pieces)

    def end(self) -> Any:
        """What the job returned. Raises what it raised."""
        if self.problem:
            raise self.problem
        return self.result

    def land(self) -> None:
        """Ends the thread, wherever it is: from now on nothing is answered."""
        if self.thread is not None:
            self.answers.put(None)
            self.thread.join()


def together(begins: Iterable[tuple[Any, Callable]], n: int, size: Callable[[], int], evaluate: Callable) -> Iterator:
    """Runs jobs, n at once, and yields (key, end) as they end: end() is what the job returned, or raises what it raised.

    begins: (key, begin) of each, as of Flight, taken when there is room. size() is how many cells a call of the network has at
    most; evaluate(parts) -> their errors, one piece each, is given full calls, those first that have waited longest, and less
    only where all that is asked for is less. What evaluate raises, like a KeyboardInterrupt, ends all threads.
    """
    waiting: list[Flight] = []  # for answers, in the order in which they asked
    going: list[Flight] = []
    begins = iter(begins)
    try:
        while True:
            while len(waiting) + len(going) < n and (next_one := next(begins, None)):
                going.append(Flight(*next_one))
            if not waiting + going:
                return
            ended = []
            while going:
                (waiting if going[0].asks() else ended).append(going[0])
                del going[0]
            yield from ((flight.key, flight.end) for flight in ended)
            if not ended:  # else others may take their places first
                going = _answered(waiting, size(), evaluate)
                waiting = [flight for flight in waiting if flight not in going]
    finally:
        for flight in waiting + going:
            flight.land()


def _answered(waiting: list[Flight], size: int, evaluate: Callable) -> list[Flight]:
    """Evaluates what fills calls; those whose questions are answered."""
    asked = sum(flight.left for flight in waiting)
    room, parts = asked // size * size or asked, []
    for flight in waiting:
        if room:
            parts.append((flight, flight.next_part(room)))
            room -= len(parts[-1][1])
    for (flight, _), piece in zip(parts, evaluate([part for _, part in parts]) if parts else (), strict=True):
        flight.pieces.append(piece)
    answered = [flight for flight in waiting if not flight.left]
    for flight in answered:
        flight.answer()
    return answered
