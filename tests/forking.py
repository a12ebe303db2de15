"""Starts our commands by forking from a process that has imported everything: a start takes a second instead of ten.

Requests come as lines of JSON: {"command", "argv", "folder", "environments"} starts one process for each environment, its output
in the folder's out.0, err.0, ..., and is answered with their ids; {"wait": ids} with their exit codes, negative for signals.
The first line printed is `ready`. No thread runs here, a store's least of all: a lock that one holds would stay locked in a fork.
"""

import importlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel  # noqa: F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

import eval_prob_adaptive  # noqa: F401
import eval_prob_dit  # noqa: F401
import run_winoground  # noqa: F401
from diffusion import models, noise, session  # noqa: F401
from diffusion.datasets import loader  # noqa: F401


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


def main():
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in request["wait"]]
        else:
            environments = request.pop("environments")
            answer = [start(i, environment, **request) for i, environment in enumerate(environments)]
        print(json.dumps(answer), flush=True)


main()
