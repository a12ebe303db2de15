"""torchrun's agent, whose processes are forked from one that has imported everything: python tests/elastic.py N ARGV...

Starts N processes of eval_prob_adaptive.py, and all of them once more when one dies. Each writes its id into rank.<RANK>.
"""

import logging
import multiprocessing
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def work(argv):
    """What a process does; its environment is torchrun's."""
    import torch

    import eval_prob_adaptive
    from diffusion.runs import loop

    torch.set_num_threads(1)
    Path(f"rank.{os.environ['RANK']}").write_text(str(os.getpid()))
    if code := loop.run(lambda: eval_prob_adaptive.main(argv)):
        sys.exit(code)


def main(size, *argv):
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)  # where the server of forks looks for what it imports
    multiprocessing.set_forkserver_preload(["preload"])
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)  # a traceback for each death
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(size),
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=1,
        start_method="forkserver",
    )
    elastic_launch(config, work)(list(argv))


if __name__ == "__main__":
    main(*sys.argv[1:])
