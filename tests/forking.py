"""Starts our commands by forking from a process that has imported everything: a start takes a second instead of ten.

Requests come as lines of JSON: {"command", "argv", "folder", "environments"} starts one process for each environment, its output
in the folder's out.0, err.0, ..., and is answered with their ids; {"wait": ids} with their exit codes, negative for signals;
{"ended": ids} at once with whether each has ended.
The first line printed is `ready`. No thread runs here, a store's least of all: a lock that one holds would stay locked in a fork.
"""

import importlib
import json
import os
import sys

import preload  # noqa: F401
import torch

from diffusion import session


def start(number, environment, command, argv, folder):
    """Forks; the id of the child, which runs the command as its script would."""
    child = os.fork()
    if child:
        return child
    os.chdir(folder)
    os.environ.update(environment)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    try:
        code = session.run(lambda: importlib.import_module(command).main(argv))
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = 1 if isinstance(stop.code, str) else stop.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def ended(child):
    """Whether a child has ended; it can still be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def answer(request):
    if "wait" in request:
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in request["wait"]]
    if "ended" in request:
        return [ended(child) for child in request["ended"]]
    environments = request.pop("environments")
    return [start(i, environment, **request) for i, environment in enumerate(environments)]


def main():
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


main()
