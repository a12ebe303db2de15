"""Words of a command line: a parser with errors of one line, and types that check what an option is given."""

import argparse
import contextlib
import math
import os
import re
import shlex
import sys
from pathlib import Path

from diffusion.cli import option_file
from diffusion.utils import commands, files, outputs
from diffusion.utils.distributed import team

READ_WHOLE = ("data_dir", "train_dir", "model_path", "vae_path", "config", "weights")  # options of folders of inputs
MOST_CLASSES = 1_000_000  # of --cls, whose list is written out
MOST_SHOWN = 30  # options in --help; of a command with more, those of RARE are in --help_all only
RARE = {  # what they are about -> names
    "images": "config_name image_column label_column streaming limit",
    "model": "error_space levels config text_encoders embedding vae_path pretrained compile",
    "method": "noise_path randomize_noise noise level_weights guidance crop_errors interpolation shortlist shortlist_size",
    "records": "spatial save_eps save_eps_and_var save_vb save_errors",
    "strategy": "n_trials min_samples round_size max_samples race_fit representatives width caution tree",
    "training": "val_share lr patience",
    "run": "options images_in_flight load_stats tracker rate",
}
_RARE = {name for names in RARE.values() for name in names.split()}


class _HelpAll(argparse._HelpAction):
    """Prints the help with all options."""

    def __call__(self, parser, *_):
        parser.print_help_all()
        parser.exit()


class Parser(argparse.ArgumentParser):
    """argparse with the module docstring as it stands, errors of one line, and no empty value for any option.

    The namespace also holds `given`, the names of the options that stood in the command or in the file of --options, and
    `command`, both as one line for a shell. --help shows MOST_SHOWN options, --help_all those of RARE too.
    """

    def __init__(self, doc: str):
        super().__init__(commands.prog(), description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--help_all", action=_HelpAll, help="show all options, also those that few runs need")
        self._given: set[str] = set()
        self._where = ""  # an error lies, other than in the command line

    def parse_known_args(self, words=None, namespace=None):
        words = sys.argv[1:] if words is None else list(words)
        words = [*self._words_of_file(words), *words]
        self._given = set()
        namespace, rest = super().parse_known_args(words, namespace)
        self._check_outputs(namespace)
        namespace.given, namespace.command = frozenset(self._given), " ".join([self.prog, *map(shlex.quote, words)])
        return namespace, rest

    def _check_outputs(self, namespace) -> None:
        """What is written must be no input, no second output, no file of a run and no pipe, whichever command it is."""
        given = {action: _texts(getattr(namespace, action.dest, None)) for action in self._actions}
        kinds = {action: action.type for action in given if isinstance(action.type, outputs.Output)}
        written = {action: given[action][0] for action in kinds if given[action]}
        read = [text for action, texts in given.items() for text in texts if action not in written]
        folders = [text for action, texts in given.items() for text in texts if action.dest in READ_WHOLE]
        taken: set[str] = set()
        for action, path in written.items():
            try:
                for place in kinds[action].all_of(path):
                    outputs.check(place, read, folders, taken)
                    taken.add(os.path.realpath(place))
            except ValueError as error:
                self.error(f"argument {'/'.join(action.option_strings)}: {error}")

    def rename(self, old: str, action: argparse.Action) -> None:
        """Takes the name that an option had before 0.2 too, for one version; the help shows the new one."""
        self._option_string_actions[old] = action

    def format_help(self):
        shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
        hidden = [action for action in shown if action.dest in _RARE] if len(shown) > MOST_SHOWN + 2 else []
        with _without_help([*hidden, *([] if hidden else [self._option_string_actions["--help_all"]])]):
            return commands.typed(super().format_help())

    def print_help_all(self):
        with _without_help([self._option_string_actions["--help_all"]]):
            print(commands.typed(super().format_help()), end="")

    def _words_of_file(self, words: list[str]) -> list[str]:
        """The words of --options FILE, in front of the command line, whose options override it. All of the file is checked."""
        options = self._option_string_actions
        path = self._parse_some(words).options if "--options" in options else None
        if path is None:
            return []
        typed = frozenset(self._given)
        try:
            words_of = option_file.words_of(path, options)
        except ValueError as error:
            self.error(files.one_line(error))
        self._where = f"--options {path}: "
        self._parse_some([word for part in words_of.values() for word in part])
        self._where = ""
        return [word for key, part in words_of.items() if options[f"--{key}"].dest not in typed for word in part]

    def _parse_some(self, words: list[str]):
        """The namespace of words that need not be a whole command line; `_given` are the options in them."""
        required, self._given = [action for action in self._actions if action.required], set()
        for action in required:
            action.required = False
        try:
            return super().parse_known_args(words)[0]
        finally:
            for action in required:
                action.required = True

    def _get_values(self, action, arg_strings):
        """argparse's own hook, the one place that all values pass, before their types. An empty one is mostly an unset shell
        variable."""
        self._given.add(action.dest)
        if any(not text.strip() for text in arg_strings):
            raise argparse.ArgumentError(
                action, "the value is empty (a shell variable that is not set?): give one, or leave it out"
            )
        # which a shell leaves as it is in quotes, behind = and in a file of --options
        at_home = [os.path.expanduser(text) if text.startswith("~/") else text for text in arg_strings]
        return super()._get_values(action, at_home)

    def error(self, message):
        team().follow()
        sys.exit(fail(f"{self._where}{message}"))


def _texts(value) -> list:
    """The words or paths in an option's value."""
    return [part for part in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(part, (str, Path))]


@contextlib.contextmanager
def _without_help(actions: list[argparse.Action]):
    """Inside it, help leaves these options out."""
    texts = [action.help for action in actions]
    for action in actions:
        action.help = argparse.SUPPRESS
    try:
        yield
    finally:
        for action, text in zip(actions, texts, strict=True):
            action.help = text


@contextlib.contextmanager
def bad_input():
    """Inside it, ValueError and OSError mean that the input is wrong: one line, exit code 2.

    Of torchrun's processes rank 0 goes first: it downloads for all, and tells for all what is wrong.
    """
    team().follow()
    try:
        yield
    except BrokenPipeError:  # nobody reads standard output any more, which is no input
        raise
    except (ValueError, OSError) as error:
        sys.exit(fail(error))
    team().passed()


def fail(message: BaseException | str) -> int:
    """Prints one line for the person at the shell and returns the exit code of bad input."""
    crew = team()
    who = "" if crew.leads else f"rank {crew.rank}: "
    print(f"error: {who}{commands.typed(files.one_line(message))}", file=sys.stderr, flush=True)
    crew.refuse()
    return 2


def at_least(low: int, high: int = 2**63 - 1):
    """An argparse type: an integer not below `low`, nor above `high`, which is numpy's largest where it is not given."""

    def integer(text):
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"must be {low} or more, not {text}")
        if int(text) > high:
            raise argparse.ArgumentTypeError(f"must be {high} or less, not {text}")
        return int(text)

    return integer


seed = at_least(0, 2**64 - 1)  # an argparse type: what torch's generators take


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return value


def share(text: str) -> float:
    """An argparse type: a part of a whole, more than nothing and less than all."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {text}")
    return value


def limit(text: str) -> int | float:
    """An argparse type: an integer above 0, or a fraction between 0 and 1."""
    try:
        return at_least(1)(text)
    except ValueError:
        if not 0 < float(text) < 1:
            raise argparse.ArgumentTypeError(f"must be a number of images, or a fraction between 0 and 1, not {text}") from None
        return float(text)


def how_many(text: str) -> int | str:
    """An argparse type: `auto` or an integer above 0."""
    return text if text == "auto" else at_least(1)(text)


def class_ranges(text: str) -> list[int] | None:
    """An argparse type: `0-999`, `6,11,13` or a mixture, ascending and without repetition; None for `all`."""
    if text == "all":
        return None
    written = re.fullmatch(r"\d{1,9}(-\d{1,9})?(, ?\d{1,9}(-\d{1,9})?)*", text, re.ASCII)
    parts = [[int(n) for n in part.split("-")] for part in text.split(",")] if written else [[]]
    if any(not part or part[0] > part[-1] for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of classes: write 7, 0-999, 6,11,13 or all")
    if sum(part[-1] + 1 - part[0] for part in parts) > MOST_CLASSES:
        raise argparse.ArgumentTypeError(f"{text!r} names more than {MOST_CLASSES:,} classes, which no model has: write fewer")
    return sorted({i for part in parts for i in range(part[0], part[-1] + 1)})


def name_part(text: str) -> str:
    """An argparse type: text that may be part of a folder's name, so that no run leaves LOG_DIR."""
    if any(sign in "/\\" or not sign.isprintable() for sign in text):
        raise argparse.ArgumentTypeError(f"{text!r} becomes part of a folder's name: leave out slashes and control characters")
    return text
