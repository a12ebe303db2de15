"""The processes that torchrun started with this one, which talk through the key-value store that torchrun serves.

A few short messages are all that they exchange, so there is no process group of torch.distributed: nothing to set up between
the machines, and nothing that hangs when one of them goes. Images are handed out one by one from a counter in the store.
"""

import functools
import os
import pickle
import re
import signal
import sys
import threading
import time
import uuid
import zlib

PATIENCE = 300  # seconds without a sign of life after which another process counts as lost
POLL = 0.05  # seconds between two looks for a message
UNHURRIED = 10  # images left for each process, below which none is taken before it can be worked


class Share:
    """The images of a process that shares them with nobody, in order."""

    loaders = 2  # processes that may fetch images ahead

    def __init__(self, indices):
        self.indices, self.finished = indices, 0

    def __len__(self):
        return len(self.indices)

    def __iter__(self):
        return iter(self.indices)

    def finish(self) -> int:
        """Counts one more as finished; how many are, of all those that len() counts."""
        self.finished += 1
        return self.finished


class HandedOut(Share):
    """The images of a whole team; iterating takes the next one that nobody has, when it is asked for.

    Near the end it yields None between images. A loader asks for one ahead; there it finds nothing to fetch while an image is
    in work, so that no process holds back a second image when others have none left.
    """

    loaders = 1

    def __init__(self, indices, store, team_size: int):
        super().__init__(indices)
        self.store, self.unhurried = store, UNHURRIED * team_size

    def __iter__(self):
        position = -1
        while True:
            if len(self) - position <= self.unhurried:
                yield None
            position = self.store.add("taken", 1) - 1
            if position >= len(self):
                return
            yield self.indices[position]

    def finish(self) -> int:
        return self.store.add("finished", 1)


class Team:
    """One of `size` processes; rank 0 leads: it goes first, talks for all, and its list of images counts.

    patience: seconds without a sign of life after which another process counts as lost.
    A team of one needs no store, and every wait returns at once.
    """

    def __init__(self, rank: int = 0, size: int = 1, patience: float = PATIENCE):
        self.rank, self.size, self.patience = rank, size, patience
        self.leads = rank == 0
        self._store = None
        self.step = 0  # how many of the leader's steps this process knows to be passed
        self.beats: dict[int, tuple[int, float]] = {}  # rank -> its last sign of life, and when it was seen first

    @property
    def store(self):
        """torchrun's store, below a name that belongs to this start of the team; the first use waits for all to be there."""
        from torch.distributed import PrefixStore

        if self._store is None:
            raw = connect()
            self._store = PrefixStore(_meet(raw, self.rank, self.size, self.patience), raw)
            threading.Thread(target=_beat, args=(self._store, self.rank, self.patience / 20)).start()
        return self._store

    def _wait(self, keys: dict[int, str], stopped=lambda: False) -> dict[int, bytes]:
        """What process `rank` sets as keys[rank], without those of processes that are lost before; ends early when stopped()."""
        values, waiting = {}, dict(keys)
        while True:
            for rank, key in list(waiting.items()):
                if self.store.check([key]):
                    values[rank] = self.store.get(waiting.pop(rank))
                elif self._lost(rank):
                    del waiting[rank]
            if not waiting or stopped():
                return values
            time.sleep(POLL)

    def _lost(self, rank: int) -> bool:
        beat, now = self.store.add(f"beat/{rank}", 0), time.monotonic()
        if rank not in self.beats or self.beats[rank][0] != beat:
            self.beats[rank] = beat, now
        return now - self.beats[rank][1] > self.patience

    def _from_leader(self, key: str) -> bytes:
        answers = self._wait({0: key})
        if not answers:
            sys.exit(f"error: rank {self.rank} has lost contact with rank 0: run the same command to continue")
        return answers[0]

    def follow(self) -> None:
        """Waits until the leader has passed its next step; exits with its code 2 when the leader refused, which has said why."""
        if self.leads:
            return
        if self._from_leader(f"step/{self.step}") == b"refused":
            self._finish_undisturbed()
            sys.exit(2)
        self.step += 1

    def passed(self) -> None:
        """The leader lets the others follow."""
        self._tell("passed")
        self.step += self.leads

    def refuse(self) -> None:
        """Before a process exits because of its input: the leader makes the others exit too."""
        self._tell("refused")
        self._finish_undisturbed()

    def _tell(self, word: str) -> None:
        if self.leads and self.size > 1:
            self.store.set(f"step/{self.step}", word)

    def _finish_undisturbed(self) -> None:
        """torchrun sends SIGTERM as soon as one process has exited; all are to exit with their own code."""
        if self.size > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def share(self, todo: list[int]) -> Share:
        """The leader's `todo` for all to take from, whatever the others found, as records appear meanwhile."""
        if self.size == 1:
            return Share(todo)
        if self.leads:
            self.store.set("todo", _pack(todo))
        return HandedOut(_unpack(self._from_leader("todo")), self.store, self.size)

    def gather(self, mine, stopped) -> list:
        """For the leader what every process brings, in order of rank, without those that are lost; [] for the others.

        All stay until the leader has everything, because torchrun can start no process again on a machine whose own are gone.
        stopped: () -> whether to wait no longer.
        """
        if self.size == 1:
            return [mine]
        self.store.set(f"end/{self.rank}", _pack(mine))
        if not self.leads:
            self._wait({0: "all ends"}, stopped)
            return []
        ends = self._wait({rank: f"end/{rank}" for rank in range(1, self.size)}, stopped)
        self.store.set("all ends", "here")
        return [mine, *(_unpack(ends[rank]) for rank in sorted(ends))]


@functools.cache
def team() -> Team:
    """This process's team; one of its own without torchrun. Exits where its variables contradict each other."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Team()
    rank, size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if not (re.fullmatch(r"\d{1,9} \d{1,9}", f"{rank} {size}", re.ASCII) and int(rank) < int(size)):
        fault = f"RANK={rank} of WORLD_SIZE={size} is no process of torchrun's"
        print(f"error: TORCHELASTIC_RUN_ID is set, and {fault}: unset it, or start with torchrun", file=sys.stderr)
        sys.exit(2)
    return Team(int(rank), int(size))


def connect():
    """The store of torchrun's agent. Exits where another rendezvous than torchrun's own two serves none."""
    from torch.distributed import TCPStore

    if os.environ["TORCHELASTIC_USE_AGENT_STORE"] != "True":
        sys.exit("error: torchrun serves no store here: use --rdzv_backend c10d, and unset TORCH_DISABLE_SHARE_RDZV_TCP_STORE")
    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


def lost_contact(error: Exception) -> bool:
    """Whether an error of the store means that the machine that serves it is gone."""
    return type(error).__name__ in ("DistNetworkError", "DistStoreError")


def _meet(store, rank: int, size: int, patience: float) -> str:
    """A name for this start of the team, once all its processes are there. Exits when some do not come in `patience` seconds.

    The store outlives a restart, and with it the words of processes that are gone; torchrun's count of restarts does not tell
    them apart, as it differs between machines. So the leader invents the name, and answers only those that ask for it now.
    """
    me, deadline = uuid.uuid4().hex, time.monotonic() + patience
    if rank:
        store.set(f"ask/{rank}", me)
    while not (store.check([f"answer/{me}"]) if rank else store.add(f"{me}/met", 0) == size - 1):
        if rank == 0:
            _answer(store, size, me)
        if time.monotonic() > deadline:
            sys.exit(f"error: rank {rank} waited {patience} s for the other {size - 1} processes to start")
        time.sleep(POLL)
    if rank == 0:
        return me
    name = store.get(f"answer/{me}").decode()
    store.add(f"{name}/met", 1)
    return name


def _answer(store, size: int, name: str) -> None:
    """Gives the name to whoever asked last for each rank."""
    for key in (f"ask/{rank}" for rank in range(1, size)):
        if store.check([key]):
            store.set(f"answer/{store.get(key).decode()}", name)


def _beat(store, rank: int, seconds: float) -> None:
    """Shows the others that this process lives, as long as its main thread does."""
    main = threading.main_thread()
    while main.is_alive():
        try:
            store.add(f"beat/{rank}", 1)
        except RuntimeError:  # the store is gone: the main thread will find out
            return
        main.join(seconds)


def _pack(value) -> bytes:
    return zlib.compress(pickle.dumps(value))


def _unpack(packed: bytes):
    return pickle.loads(zlib.decompress(packed))
