#!/usr/bin/env python
"""Write prompt CSVs from class names and a template: prompt,classname,classidx. And CLIP's lists of templates.

    python scripts/write_prompts.py all                  # every file in prompts/, from prompts/classes.json
    python scripts/write_prompts.py pets --out /tmp      # one of them, to another folder
    python scripts/write_prompts.py birds --classes names.txt --template "a photo of a {}, a type of bird."

The last one is for your own data: names.txt holds one class name per line, in label order. The lists of templates, one per line,
are those that CLIP's authors published for zero-shot classification; scripts/eval_clip.py --templates clip reads them.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli
from diffusion.cli import parsing
from diffusion.datasets.prompts import COLUMNS, PromptTable, prompts_from_classes, read_classes
from diffusion.runs import loop
from diffusion.utils import files
from diffusion.utils.paths import PROMPTS, made_anew


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("dataset", metavar="DATASET", help="a name in prompts/classes.json, all, or with --classes a new name")
    parser.add_argument("-o", "--out", type=Path, default=made_anew(PROMPTS), metavar="DIR",
                        help="folder to write to (default: prompts/)")  # fmt: skip
    parser.add_argument("--classes", type=Path, help="text file with your own class names, one per line, in label order")
    parser.add_argument("--template", help='with --classes: the prompt, {} for the name (default: "a photo of a {}.")')
    args = parser.parse_args(argv)
    if args.classes and Path(args.dataset).name != args.dataset:
        parser.error(f"DATASET {args.dataset} becomes a file's name in --out: leave out slashes")
    if args.template and not args.classes:
        parser.error("--template is for your own --classes; the published templates are in prompts/classes.json")
    return args


def published_table(entry: dict) -> PromptTable:
    """The table of one entry of classes.json: template, names_in_prompt, classnames and, for a selection, classidx."""
    names, classnames = entry["names_in_prompt"], entry["classnames"]
    if names == "open_clip.IMAGENET_CLASSNAMES":
        from open_clip import IMAGENET_CLASSNAMES

        names = classnames = list(IMAGENET_CLASSNAMES)
    indices = entry.get("classidx", list(range(len(names))))
    prompts = [entry["template"].replace("{}", name) for name in names]
    if len(names) > len(indices):  # ImageNet-A: 200 of ImageNet's 1000
        prompts, classnames = [prompts[i] for i in indices], [classnames[i] for i in indices]
    return PromptTable(prompts, classnames, indices)


def published_templates(entry: dict) -> list[str]:
    """CLIP's templates of one entry of classes.json; none where its authors published no list."""
    templates = entry.get("clip_templates", [])
    if templates == "open_clip.OPENAI_IMAGENET_TEMPLATES":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    return templates


def custom_table(path: Path, template: str | None) -> PromptTable:
    """Raises ValueError for an unreadable or empty file, and for a template without {}."""
    return prompts_from_classes(read_classes(path, "--classes"), template or "a photo of a {}.")


def entries(dataset: str) -> dict[str, dict]:
    """Name -> entry of classes.json. Raises ValueError for a name that it lacks."""
    published = json.loads((PROMPTS / "classes.json").read_text(encoding="utf-8"))
    if dataset != "all" and dataset not in published:
        raise ValueError(f"DATASET {dataset}: choose all or one of {', '.join(published)}; or give --classes")
    return published if dataset == "all" else {dataset: published[dataset]}


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        wanted = {} if args.classes else entries(args.dataset)
        tables = {name: published_table(entry) for name, entry in wanted.items()}
        tables |= {args.dataset: custom_table(args.classes, args.template)} if args.classes else {}
        for name, table in tables.items():
            path = args.out / f"{name}_prompts.csv"
            files.write_csv(path, [COLUMNS, *zip(table.prompts, table.classnames, table.classidx, strict=True)])
            print(f"{path}: {len(table.prompts)} prompts")
        for name, entry in wanted.items():
            if templates := published_templates(entry):
                path = args.out / f"{name}_templates.txt"
                files.write_text(path, "".join(f"{template}\n" for template in templates))
                print(f"{path}: {len(templates)} templates")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
