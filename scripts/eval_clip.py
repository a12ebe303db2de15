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
    from diffusion import startup

    startup.be_quiet()

from diffusion import cli, datasets, models, parsing, scored, session, settings
from diffusion.datasets import DATASETS, prompts
from diffusion.files import fingerprint
from diffusion.models import clip


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


def prepare(options: dict) -> scored.Run:
    """Checks every option against the others and the files, cheap things first. Raises ValueError or OSError."""
    images, model = scored.open_images(*cli.scored_of(options)), settings.pick(settings.Contrastive, options)
    table, ending = find_prompts(options, images.data.dataset, images.dataset)
    source = clip.find(model.model, model.version, model.model_path, model.pretrained)
    classes, names = sorted(set(table.classidx)), dict(zip(table.classidx, table.classnames, strict=True))
    told = f'{len(table.prompts)} of {len(classes)} classes, such as "{table.prompts[0]}"'
    hashes = {"prompts": fingerprint(table.prompts, table.classidx), "weights": source.identity()}
    method = scored.Method(
        command="eval_clip",
        name=f"{model.model}_{model.version.replace('/', '_')}{ending}",
        settings=(model,),
        identity={"version": model.version, "score": "cosine"} | hashes,
        labels=classes,
        names=[names[label] for label in classes],
        about={"prompts": told, "weights": source.describe()},
        notices=("contrastive model: encoding one image counts as one evaluation",),
        load=partial(load, source, table, classes, "--templates" if ending else "--prompt_path or --template"),
    )
    return scored.Run(images, method)


def find_prompts(options: dict, name: str, dataset) -> tuple[prompts.PromptTable, str]:
    """The prompts, and how a folder is called by them. Raises ValueError for flags at odds and for an unreadable file."""
    if not options["templates"]:
        return datasets.load_prompts(name, dataset, options["prompt_path"], options["template"]), ""
    if options["prompt_path"] or options["template"]:
        raise ValueError("--templates makes the prompts from class names: leave --prompt_path and --template out")
    templates = datasets.templates_of(name, options["templates"])
    tables = [datasets.load_prompts(name, dataset, None, template) for template in templates]
    return prompts.joined(tables), f"_{len(templates)}templates"


def load(source, table: prompts.PromptTable, classes: list[int], where: str, device: str):
    """Loads the weights and embeds the classes: (transform, image [3,H,W] -> logits float32 [K]). where: flags of the prompts."""
    if notice := models.check_prompts(source, table.prompts, table.classidx, table.classnames, where):
        print(f"Note: {notice}", flush=True)
    scorer = source.load(device)
    embedded = class_embeddings(scorer.embed_texts(table.prompts), table.classidx, classes)
    return scorer.preprocess, lambda image: scorer.logits(scorer.embed_images(image[None]), embedded)[0].float().cpu()


def class_embeddings(rows, classidx: list[int], classes: list[int]):
    """Embeddings of prompts [N,D], each of length 1 -> of classes [K,D]: mean over a class's prompts, again of length 1."""
    import torch

    of_class = torch.tensor(classidx)
    means = torch.stack([rows[of_class == label].mean(0) for label in classes])
    return torch.nn.functional.normalize(means, dim=-1)


def main(argv=None) -> int:
    options = vars(parse_args(argv))
    return scored.main(partial(prepare, options), options["command"])


if __name__ == "__main__":
    sys.exit(session.run(main))
