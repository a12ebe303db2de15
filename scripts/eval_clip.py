#!/usr/bin/env python
"""Zero-shot classification with CLIP or OpenCLIP: the cosine of an image with each class's prompts.

  offline, on the shipped model and images:
    python scripts/eval_clip.py --model openclip --version tiny --dataset tiny_combos
  published weights, several prompts per class (CLIP's own list, a template per line in a text file, or a row each in a CSV):
    python scripts/eval_clip.py --model clip --version ViT-L/14 --dataset cifar10 --templates clip

A class's embedding is the normalised mean of its normalised prompts (Radford et al. 2021, section 3.1.4). Records and folders are
those of eval_prob_adaptive.py, with minus the logit in place of an error, so that all scripts that read runs read these.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, datasets, settings
from diffusion.baselines import contrastive, runner
from diffusion.cli import parsing
from diffusion.datasets import DATASETS, prompts
from diffusion.runs import loop


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    cli.add_selection_options(cli.add_data_options(parser, list(DATASETS)))
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", choices=("clip", "openclip"), default="openclip", help="OpenAI's weights, or any of open_clip's"
    )
    group.add_argument("--version", required=True, help="ViT-L/14, RN50 (clip); ViT-H-14, tiny (openclip); any with --model_path")
    group.add_argument("--pretrained", help="tag of open_clip's weights (default: the paper's, where it has one)")
    group.add_argument("--model_path", help="local folder with an open_clip config and its weights")
    group.add_argument("--device", help="default: cuda if there is one, else cpu")
    group = parser.add_argument_group("prompts")
    group.add_argument("--prompt_path", help="CSV of prompt,classname,classidx (default: the dataset's in prompts/)")
    group.add_argument("--template", help='prompts from the class names instead of a CSV: "a photo of a {}."')
    group.add_argument("--templates", metavar="FILE", help="several such templates: a text file, one per line; clip: the list "
                       "that CLIP's authors published for the data set")  # fmt: skip
    cli.add_run_options(parser)
    return parser.parse_args(argv)


def prepare(options: dict) -> runner.ScoreTask:
    """Checks every option against the others and the files, cheap things first. Raises ValueError or OSError."""
    images, model = runner.open_images(*cli.scored_of(options)), settings.pick(settings.Contrastive, options)
    table, ending = find_prompts(options, images.data.dataset, images.dataset)
    where = "--templates" if ending else "--prompt_path or --template"
    return runner.ScoreTask(images, contrastive.scorer(model, table, ending, where))


def find_prompts(options: dict, name: str, dataset) -> tuple[prompts.PromptTable, str]:
    """The prompts, and how a folder is called by them. Raises ValueError for flags at odds and for an unreadable file."""
    if not options["templates"]:
        return datasets.load_prompts(name, dataset, options["prompt_path"], options["template"]), ""
    if options["prompt_path"] or options["template"]:
        raise ValueError("--templates makes the prompts from class names: leave --prompt_path and --template out")
    templates = datasets.templates_of(name, options["templates"])
    tables = [datasets.load_prompts(name, dataset, None, template) for template in templates]
    return prompts.joined(tables), f"_{len(templates)}templates"


def main(argv=None) -> int:
    options = vars(parse_args(argv))
    return runner.main(partial(prepare, options), options["command"])


if __name__ == "__main__":
    sys.exit(loop.run(main))
