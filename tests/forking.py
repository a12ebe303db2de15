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
    environments = request.pop("environments")
    children = [start(i, environment, **request) for i, environment in enumerate(environments)]
    for child in children:
        codes.pop(child, None)  # an id may come again
    return children


def main():
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


main()
