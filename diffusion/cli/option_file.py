"""Options from a YAML file, as words of a command line, so that argparse's own types and checks hold for them.

A value is the text that stands in the file, as if it were typed: 010 is no octal number, 1e-3 no text, no is no boolean.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from diffusion.utils import files

SWITCHES = {"true": True, "false": False}


def words_of(path: str, actions: Mapping[str, argparse.Action]) -> dict[str, list[str]]:
    """Key -> its words, `--key` first; none for a flag that is false.

    actions: of the parser, by `--key`. Raises ValueError, naming the file and the key, for what no command line could say
    and for a file that cannot be read.
    """
    try:
        return {key: _words(key, value, actions.get(f"--{key}")) for key, value in read(path).items()}
    except OSError as error:
        raise ValueError(f"--options {files.one_line(error)}") from None
    except ValueError as error:
        raise ValueError(f"--options {path}: {error}") from None


def read(path: str) -> dict[str, str | list[str]]:
    """The mapping of a YAML file: keys to texts or lists of texts. Raises ValueError for anything else."""
    import yaml

    try:
        root = yaml.compose(Path(path).read_bytes(), yaml.BaseLoader)  # nodes: a loader would keep the last of two equal keys
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"it is no YAML ({files.one_line(error)})") from None
    if not isinstance(root, yaml.MappingNode):
        raise ValueError("it holds no mapping: write a line `option: value` for each")
    words = {}
    for key, value in root.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError("a key is no text: write a line `option: value` for each")
        if key.value in words:
            raise ValueError(f"{key.value!r} stands there twice")
        words[key.value] = _texts(key.value, value)
    return words


def _texts(key: str, node) -> str | list[str]:
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode) and all(isinstance(one, yaml.ScalarNode) for one in node.value):
        return [one.value for one in node.value]
    raise ValueError(f"{key!r} is neither a value nor a list of values")


def _words(key: str, value: str | list[str], action: argparse.Action | None) -> list[str]:
    if action is None or isinstance(action, argparse._HelpAction) or key == "options":
        raise ValueError(f"{key!r} is no option of this command that a file can have")
    if action.nargs == 0:
        return _switch(key, value)
    several = [value] if isinstance(value, str) else value
    if isinstance(action, argparse._AppendAction):
        return [f"--{key}={one}" for one in several]
    if action.nargs is None:
        if not isinstance(value, str):
            raise ValueError(f"{key!r} takes one value, not a list")
        return [f"--{key}={value}"]
    if any(one.startswith("-") for one in several):
        raise ValueError(f"{key!r} takes no value that begins with a dash")
    return [f"--{key}", *several]


def _switch(key: str, value) -> list[str]:
    """A flag, which has no value in a command line."""
    if not isinstance(value, str) or value.lower() not in SWITCHES:
        raise ValueError(f"{key!r} is a flag: write true or false")
    return [f"--{key}"] if SWITCHES[value.lower()] else []
