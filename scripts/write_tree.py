#!/usr/bin/env python
"""Write the trees of --strategy tree: for ImageNet's and ObjectNet's classes, from WordNet's nouns (Debian: wordnet-base).

python scripts/write_tree.py
python scripts/write_tree.py --wordnet /usr/share/wordnet --out shipped/trees

A class's branch is the path of its synset's first hypernyms; nodes with a single part are left out. The height of a branch is the
number of nodes to its farthest leaf.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli
from diffusion.cli import parsing
from diffusion.datasets.readers import imagenet
from diffusion.runs import loop
from diffusion.utils import files
from diffusion.utils.paths import TREES, made_anew


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), metavar="DIR",
                        help="folder with WordNet 3.0's data.noun (default: /usr/share/wordnet)")  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, default=made_anew(TREES), metavar="DIR",
                        help="folder to write (default: shipped/trees)")  # fmt: skip
    return parser.parse_args(argv)


def hypernyms(path: Path) -> dict[str, str]:
    """Synset -> its first hypernym, by the offsets in WordNet's data.noun (wndb(5)). Raises ValueError for another file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        parents = dict(_hypernym(line.split(" | ")[0].split()) for line in lines if not line.startswith("  "))
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"--wordnet: {path} is not WordNet's: {files.one_line(error)}") from None
    return {synset: above for synset, above in parents.items() if above}


def _hypernym(words: list[str]) -> tuple[str, str | None]:
    """The hypernym in a line's fields: offset, file, type, number of words (hexadecimal), two fields each, number of
    pointers, four each."""
    start = 4 + 2 * int(words[3], 16)
    pointers = [words[start + 1 + 4 * i : start + 5 + 4 * i] for i in range(int(words[start]))]
    return words[0], next((offset for symbol, offset, *_ in pointers if symbol in ("@", "@i")), None)


def path_of(synset: str, above: dict[str, str]) -> Iterator[str]:
    """The synset and its hypernyms, up to the root."""
    while synset:
        yield synset
        synset = above.get(synset)


def tree(leaves: dict[int, str], above: dict[str, str]) -> dict:
    """{"height", "parts"} of leaf -> synset."""
    below: dict[str, list] = {}
    for leaf, synset in leaves.items():
        below.setdefault(synset, []).append(leaf)
        for child in path_of(synset, above):
            parts = below.setdefault(above.get(child, "root"), [])
            if child not in parts:
                parts.append(child)
    return _branch("root", below)


def _branch(node: str, below: dict[str, list]):
    """The branch of a node, or its only part, as JSON values."""
    parts = [part if isinstance(part, int) else _branch(part, below) for part in below[node]]
    if len(parts) == 1:
        return parts[0]
    return {"height": 1 + max(0 if isinstance(part, int) else part["height"] for part in parts), "parts": parts}


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        above, ids = hypernyms(args.wordnet / "data.noun"), [name[1:] for name in imagenet.imagenet_ids()]
        if strangers := [name for name in ids if name not in above]:
            raise ValueError(
                f"--wordnet: data.noun lacks {len(strangers)} of ImageNet's classes, such as n{strangers[0]}: give 3.0's"
            )
        groups = {"imagenet": [[i] for i in range(len(ids))], "objectnet": imagenet.objectnet_classes().values()}
        for name, classes in groups.items():
            class_tree = tree({label: ids[first] for label, (first, *_) in enumerate(classes)}, above)
            files.write_text(args.out / f"{name}.json", json.dumps(class_tree, separators=(",", ":")) + "\n")
            print(f"{args.out / name}.json: {len(classes):,} classes, height {class_tree['height']}")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
