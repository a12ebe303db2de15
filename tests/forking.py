"""Starts our commands by forking from a process that has imported what it was told to: a start takes a second instead of ten.

Requests come as lines of JSON: {"command", "argv", "folder", "environments"} starts one process for each environment, its output
in the folder's out.0, err.0, ..., and is answered with their ids; {"wait": ids} with their exit codes, negative for signals;
{"ended": ids} at once with whether each has ended; {"load": modules} imports more, scripts too, for all that start later.
With "limits" a process gets so many bytes of memory beside what this one has, and so many seconds of CPU time.
The first line printed is `ready`. No thread runs here, a store's least of all: a lock that one holds would stay locked in a fork.
"""

import gc
import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "scripts")]

from diffusion.runs import loop  # noqa: E402


def limit(memory, seconds):
    """What this process may take; going beyond is a failure of the command, and no danger to the machine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(10 * seconds)  # for what waits without working


def start(number, environment, command, argv, folder, limits=None):
    """Forks; the id of the child, which runs the command as its script would."""
    child = os.fork()
    if child:
        return child
    if limits:
        limit(**limits)
    os.chdir(folder)
    os.environ.update(environment)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    try:
        code = loop.run(lambda: importlib.import_module(command).main(argv))
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = 1 if isinstance(stop.code, str) else stop.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def load(modules):
    names = [importlib.import_module(name).__name__ for name in modules]
    gc.freeze()  # or a collection in a child would copy every page
    return names


codes = {}  # of children that have ended: process id -> exit code


def ended(child, options=os.WNOHANG):
    """Whether a child has ended, which without WNOHANG is waited for."""
    if child not in codes:
        number, status = os.waitpid(child, options)
        codes.update({child: os.waitstatus_to_exitcode(status)} if number else {})
    return child in codes


def answer(request):
    if "wait" in request:
        return [codes[child] for child in request["wait"] if ended(child, 0)]
    if "ended" in request:
        return [ended(child) for child in request["ended"]]
    if "load" in request:
        return load(request["load"])
    environments = request.pop("environments")
    children = [start(i, environment, **request) for i, environment in enumerate(environments)]
    for child in children:
        codes.pop(child, None)  # an id may come again
    return children


def main():
    load(sys.argv[1:])
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
    gc.unfreeze()  # or libraries complain of what they have not freed


main()
