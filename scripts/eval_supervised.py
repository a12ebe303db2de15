#!/usr/bin/env python
"""Networks trained on labels: torchvision's and timm's ImageNet classifiers, with their own weights and preprocessing.

  the paper's ResNet-50 (torchvision's first weights), on the test sets of its Table 4:
    python scripts/eval_supervised.py --network resnet50 --dataset imagenetA
  timm's weights, and weights of your own, whose last layer has as many rows as the data set has classes:
    python scripts/eval_supervised.py --network timm:vit_base_patch16_224.augreg2_in21k_ft_in1k --dataset imagenetv2
    python scripts/eval_supervised.py --network resnet18 --weights mine.safetensors --dataset pets

On ImageNet-A the best of its 200 classes is taken, on ObjectNet a class has the best of its ImageNet classes' scores. Records are
those of eval_prob_adaptive.py, with minus the logit in place of an error, so that all scripts that read runs read these.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import baselines, cli, datasets, settings
from diffusion.baselines import runner, supervised
from diffusion.cli import parsing
from diffusion.datasets import DATASETS
from diffusion.runs import loop


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    cli.add_selection_options(cli.add_data_options(parser, list(DATASETS)))
    group = parser.add_argument_group("model")
    renamed = group.add_argument("--network", dest="model", required=True, metavar="NAME", help="resnet50, vit_b_16, ... of "
                                 "torchvision; timm:NAME or timm:NAME.TAG")  # fmt: skip
    parser.rename("--model", renamed)
    group.add_argument("--weights", metavar="TAG_OR_FILE", help="IMAGENET1K_V2 or another tag of torchvision's, or a state dict "
                       "(.safetensors, .pth) (default: IMAGENET1K_V1 of torchvision, timm's own default)")  # fmt: skip
    group.add_argument("--device", help="default: cuda if there is one, else cpu")
    cli.add_run_options(parser)
    return parser.parse_args(argv)


def prepare(options: dict) -> runner.ScoreTask:
    """Checks every option against the others and the files, cheap things first. Raises ValueError or OSError."""
    images, model = runner.open_images(*cli.scored_of(options)), settings.pick(baselines.Supervised, options)
    network = supervised.find(model.model, model.weights)
    label_of = outputs(images, network)
    labels = sorted(set(label_of.values()))
    scorer = runner.Scorer(
        command="eval_supervised",
        name=f"{network.LIBRARY}_{network.name}_{Path(network.file).stem if network.file else network.tag}",
        settings=(model,),
        identity={"version": model.model, "score": "logit", "weights": network.identity(), "preprocess": network.preprocessing},
        labels=labels,
        names=[images.dataset.classes[label] for label in labels],
        about={"weights": network.describe(), "images": network.preprocessing,
               "classes": f"{len(labels):,}, of {len(label_of):,} of the network's {network.n_outputs:,} outputs"},
        notices=("supervised network: one forward pass counts as one evaluation",),
        load=partial(load, network, label_of, labels),
        task="supervised_classification",
    )  # fmt: skip
    return runner.ScoreTask(images, scorer)


def outputs(images: runner.Images, network) -> dict[int, int]:
    """Output of the network -> label, of those that count. Raises ValueError for a network of other classes than the set's."""
    name, n, n_outputs = images.data.dataset, len(images.dataset.classes), network.n_outputs
    if n_outputs == supervised.N_IMAGENET and name in datasets.OF_IMAGENET:
        return datasets.labels_of_classes(name, n)
    if n_outputs != n:
        raise ValueError(f"--dataset {name} has {n:,} classes, and {network.describe()} {n_outputs:,} outputs: "
                         f"give --weights that were trained on it, or one of {', '.join(datasets.OF_IMAGENET)}")  # fmt: skip
    return {i: i for i in range(n)}


def load(network, label_of: dict[int, int], labels: list[int], device: str):
    """Loads the weights: (transform, image [3,H,W] -> scores float32 [K] of the labels)."""
    logits = network.load(device)
    return network.preprocess, lambda image: best_of(logits(image), label_of, labels)


def best_of(logits, label_of: dict[int, int], labels: list[int]):
    """Scores [K] of labels, each the largest of its outputs' logits [n]."""
    import torch

    row = {label: k for k, label in enumerate(labels)}
    rows = torch.tensor([row[label] for label in label_of.values()])
    return torch.full((len(labels),), -torch.inf).scatter_reduce(0, rows, logits[list(label_of)], "amax")


def main(argv=None) -> int:
    options = vars(parse_args(argv))
    return runner.main(partial(prepare, options), options["command"])


if __name__ == "__main__":
    sys.exit(loop.run(main))
