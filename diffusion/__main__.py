"""All commands of the suite behind one, each by its name and with its own options.

  diffusion-classifier list
  diffusion-classifier eval_prob_adaptive --version tiny --dataset fashion_mnist --imgs_to_eval 100
  diffusion-classifier classify picture.jpg --labels "a cat" "a dog"
the options of one of them, and the version of all:
  diffusion-classifier classify --help
  diffusion-classifier --version
"""

import difflib
import runpy
import shlex
import sys

from diffusion import __version__
from diffusion.utils import commands, startup

NAME = "diffusion-classifier"


def list_text() -> str:
    """Every task with its commands, a line each."""
    width, lines = max(map(len, commands.NAMES)), []
    for task, names in commands.TASKS.items():
        lines += [task, *(f"  {name:{width}}  {commands.line_of(name)}" for name in names), ""]
    return "\n".join([*lines, f"Options of one: {commands.starter} {commands.NAMES[0]} --help"])


def help_text() -> str:
    return (__doc__ or "").replace(NAME, commands.starter or NAME).strip()


TEXTS = {"list": list_text, "--version": lambda: f"{NAME} {__version__}", "--help": help_text, "-h": help_text}


def answer(words: list[str]) -> int:
    """Prints one of TEXTS, or says that there is no such command; the exit code."""
    from diffusion.cli import parsing

    requested, *more = words or ["--help"]
    if requested not in TEXTS:
        close = difflib.get_close_matches(requested, [*commands.NAMES, *TEXTS])
        message = f"did you mean {' or '.join(close)}? " if close else ""
        return parsing.fail(f"there is no command {requested!r}: {message}`{commands.starter} list` shows all")
    if more:
        return parsing.fail(f"{requested} takes nothing else: leave out {shlex.join(more)}")
    print(TEXTS[requested]())
    return 0


def main(starter: str = NAME) -> int:
    """Runs the command that the first word names as its file would be run, or answers."""
    startup.be_quiet()
    commands.starter, words = starter, sys.argv[1:]
    if words and words[0] in commands.NAMES:
        sys.argv = words  # of which runpy replaces the first by the file
        runpy.run_path(str(commands.file_of(words[0])), run_name="__main__")
        return 0

    from diffusion.runs import loop  # imports what takes longer than the answer

    return loop.run(lambda: answer(words))


if __name__ == "__main__":
    sys.exit(main("python -m diffusion"))
