#!/usr/bin/env python
"""Zero-shot classification with CLIP or OpenCLIP: the cosine of an image with each class's prompts.

  offline, on the shipped model and images:
    python scripts/eval_clip.py --model openclip --version tiny --dataset tiny_combos
  published weights, several prompts per class (a row each in a CSV, or a template per line in a text file):
    python scripts/eval_clip.py --model clip --version ViT-L/14 --dataset pets --templates templates.txt

A class's embedding is the normalised mean of its normalised prompts (Radford et al. 2021, section 3.1.4). Records and folders are
those of eval_prob_adaptive.py, with minus the logit in place of an error, so that all scripts that read runs read these.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion import startup

    startup.be_quiet()

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diffusion import cli, datasets, models, paths, records, runlog, session, settings, sharding, tracking
from diffusion.analysis import results
from diffusion.datasets import DATASETS, prompts
from diffusion.files import fingerprint
from diffusion.models import clip


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
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
    group.add_argument("--templates", type=Path, metavar="FILE", help="text file of several such templates, one per line")
    cli.add_run_options(parser)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Run:
    """What was asked for, and what is known before any weights are loaded."""

    data: settings.Data
    selection: settings.Selection
    model: settings.Contrastive
    running: settings.Running
    dataset: Any
    prompts: prompts.PromptTable
    seed: int
    ending: str  # of the folder's name, when the prompts are several per class
    source: Any  # of the weights

    @cached_property
    def folder(self) -> Path:
        name = f"{self.model.model}_{self.model.version.replace('/', '_')}{self.ending}"
        return runlog.dataset_folder(paths.log_dir(), self.data.dataset, self.running.extra) / name

    @cached_property
    def identity(self) -> dict:
        hashes = {
            "images": self.dataset.fingerprint(),
            "prompts": fingerprint(self.prompts.prompts, self.prompts.classidx),
            "weights": self.source.identity(),
            "subset": sharding.subset_identity(self.selection.subset_path, len(self.dataset)),
        }
        return self.data.identity() | {"version": self.model.version, "score": "cosine"} | hashes

    @property
    def options(self) -> dict:
        """All of them, resolved."""
        return settings.options_of(self.data, self.selection, self.model, self.running)

    @cached_property
    def classes(self) -> list[int]:
        """Labels that have prompts, ascending: the rows of a record."""
        return sorted(set(self.prompts.classidx))

    @cached_property
    def selected(self) -> list[int]:
        return sharding.select(len(self.dataset), self.selection.subset_path, self.selection.imgs_to_eval, self.seed)

    @cached_property
    def unreadable(self) -> list[str]:
        """Names of files in the place of records that are none of this run's, which are redone; filled by `done`."""
        return []

    @cached_property
    def done(self) -> dict[int, runlog.Outcome]:
        wanted, labels = records.Wanted(range(len(self.classes)), self.classes, np.zeros(1, int)), self.dataset.labels
        places = {i: self.record_path(i) for i in self.selected}
        return runlog.load_outcomes(places, lambda i, record: wanted.check(record, int(labels[i])), self.unreadable)

    @cached_property
    def todo(self) -> list[int]:
        return [i for i in sharding.shard(self.selected, self.running.worker_idx, self.running.n_workers) if i not in self.done]

    def record_path(self, index: int) -> Path:
        return runlog.record_path(self.folder, index, len(self.dataset))


def prepare(options: dict) -> Run:
    """Checks every option against the others and the files, cheap things first. Raises ValueError or OSError."""
    data, running = cli.data_of(options), cli.running_of(options)
    selection, model = (settings.pick(group, options) for group in (settings.Selection, settings.Contrastive))
    dataset = datasets.open_images(data)
    table, ending = find_prompts(options, data.dataset, dataset)
    source = clip.find(model.model, model.version, model.model_path, model.pretrained)
    run = Run(data, selection, model, running, dataset, table, options["seed"], ending, source)
    runlog.check_config(run.folder, run.identity)
    return run


def find_prompts(options: dict, name: str, dataset) -> tuple[prompts.PromptTable, str]:
    """The prompts, and how a folder is called by them. Raises ValueError for flags at odds and for an unreadable file."""
    if not options["templates"]:
        return datasets.load_prompts(name, dataset, options["prompt_path"], options["template"]), ""
    if options["prompt_path"] or options["template"]:
        raise ValueError("--templates makes the prompts from class names: leave --prompt_path and --template out")
    templates = prompts.read_templates(options["templates"])
    tables = [datasets.load_prompts(name, dataset, None, template) for template in templates]
    return prompts.joined(tables), f"_{len(templates)}templates"


def announce(run: Run):
    about = {
        "prompts": f'{len(run.prompts.prompts)} of {len(run.classes)} classes, such as "{run.prompts.prompts[0]}"',
        "weights": run.source.describe(),
    }
    redone = runlog.unreadable_told(run.unreadable, "redone")
    notices = (run.dataset.notice, "contrastive model: encoding one image counts as one evaluation", redone)
    counts = (len(run.todo), len(run.done), len(run.selected))
    cli.announce(run.options, about, notices, run.folder, counts, 1)


def start(run: Run):
    """Loads the weights, embeds the classes, writes config.json; returns image [3,H,W] -> logits float32 [K] of `run.classes`."""
    runlog.make_ready(run.folder)
    table, where = run.prompts, "--templates" if run.ending else "--prompt_path or --template"
    if notice := models.check_prompts(run.source, table.prompts, table.classidx, table.classnames, where):
        print(f"Note: {notice}", flush=True)
    scorer = run.source.load(run.running.device)
    run.dataset.transform = scorer.preprocess
    embedded = class_embeddings(scorer.embed_texts(table.prompts), table.classidx, run.classes)
    if session.team().leads:
        names = dict(zip(table.classidx, table.classnames, strict=True))
        candidates = {"labels": run.classes, "names": [names[label] for label in run.classes]}
        what = ("eval_clip", runlog.CLASSIFICATION, run.identity, run.options, len(run.selected))
        runlog.write_config(run.folder, runlog.describe(*what, candidates=candidates))
    else:
        run.folder.mkdir(parents=True, exist_ok=True)  # on a network file system it may not be seen here yet
    return lambda image: scorer.logits(scorer.embed_images(image[None]), embedded)[0].float().cpu()


def class_embeddings(rows, classidx: list[int], classes: list[int]):
    """Embeddings of prompts [N,D], each of length 1 -> of classes [K,D]: mean over a class's prompts, again of length 1."""
    import torch

    of_class = torch.tensor(classidx)
    means = torch.stack([rows[of_class == label].mean(0) for label in classes])
    return torch.nn.functional.normalize(means, dim=-1)


def record_of(logits, classes: list[int], label: int) -> dict:
    """One "error" of every class, minus its logit, at level 0."""
    import torch

    t = torch.zeros(1, dtype=torch.int64)
    errors = {row: {"t": t, "pred_errors": -logits[row : row + 1]} for row in range(len(classes))}
    return {"errors": errors, "pred": classes[int(logits.argmax())], "label": label, "evaluations": 1}


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        run = prepare(vars(args))
        announce(run)
    if run.running.dry_run:
        return 0
    with cli.bad_input():
        score = start(run)
        tracker = tracking.Tracker(run.running.tracker).start(run.options, run.folder.name)

    def work(index, image, label):
        logits = score(image)
        record = record_of(logits, run.classes, label)
        runlog.save_record(run.record_path(index), record)
        run.done[index] = runlog.outcome(record)
        return run.done[index]

    ended = session.work_through(run.running, run.dataset, run.todo, run.done, work, tracker.progress)
    lines, in_folder = session.accuracy_lines(run.done.values()), len(runlog.list_records(run.folder))
    lines += results.at_end(run.running.results, tracker, ended, run.folder, run.selected, args.command)
    return session.close(lines, run.done, f"scripts/print_acc.py {run.folder}", ended, in_folder=in_folder)


if __name__ == "__main__":
    sys.exit(session.run(main))
