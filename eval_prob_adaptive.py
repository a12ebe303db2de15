#!/usr/bin/env python
"""Zero-shot classification with a text-to-image diffusion model: which prompt best predicts the noise added to an image?

  offline, on the shipped model and images; docs/dit.md says what it prints:
    python eval_prob_adaptive.py --version tiny --dataset fashion_mnist --imgs_to_eval 100
  the paper's experiment on Oxford-IIIT Pets with Stable Diffusion 2.0 (87.3 % mean per class in the paper):
    python eval_prob_adaptive.py --dataset pets --split test --to_keep 5 1 --n_samples 25 250 --loss l1 \\
        --prompt_path prompts/pets_prompts.csv
"""

import sys

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from diffusion import classify, cli, datasets, models, settings, strategy
from diffusion.analysis import results
from diffusion.baselines import runner, shortlist
from diffusion.cli import parsing
from diffusion.datasets import DATASETS, transforms
from diffusion.kernel import noise, scores
from diffusion.runs import few_levels, loop, printing, run_folder, schema, sharding, tracking
from diffusion.runs.task import Task
from diffusion.strategy import candidate_sets
from diffusion.strategy.level_weights import LevelWeights, belonging
from diffusion.strategy.method import Method
from diffusion.utils import paths
from diffusion.utils.files import fingerprint


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    cli.add_selection_options(cli.add_data_options(parser, list(DATASETS)))
    cli.add_sd_options(parser)
    group = parser.add_argument_group("method (defaults: the dataset's published recipe)")
    group.add_argument("--loss", choices=list(scores.SCORES), help="error of a prediction (l2 when stages are given without it)")
    group.add_argument("--prompt_path", help="CSV of prompt,classname,classidx (default: the dataset's in prompts/)")
    group.add_argument("--template", help='prompts from the class names instead of a CSV: "a photo of a {}."')
    group.add_argument("--noise_path", help="noise bank shared by all images (scripts/save_noise.py; default: seeded)")
    cli.add_level_weights(group)
    cli.add_ablation_options(group)
    cli.add_resize_options(group)
    cli.add_shortlist_options(group)
    cli.add_strategy_options(parser)
    cli.add_run_options(parser, several=True)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class PromptTask(Task):
    """Images and the prompts that compete for each."""

    command = "eval_prob_adaptive"

    data: settings.Data
    selection: settings.Selection
    prompt_settings: settings.Prompts
    model: settings.TextToImage
    bank: settings.Noise
    running: settings.Running
    strategy: strategy.Strategy
    loss: str
    level_weights: LevelWeights | None
    ablation: settings.Ablation
    dataset: Any
    prompts: Any
    source: Any  # of the weights
    noise: Any  # a source of noise
    proposals: candidate_sets.Proposals | None  # None: all candidates compete for every image
    shortlist: shortlist.Shortlist | None  # that the proposals are of

    @property
    def method(self) -> Method:
        return Method(self.strategy, self.loss, self.level_weights, self.ablation)

    @cached_property
    def plan(self):
        return self.strategy.plan(self.source.n_levels)

    @property
    def price(self) -> int:
        return self.strategy.price(self.plan, self.n_candidates) + self.ablation.guided * len(self.plan.t)

    @property
    def n_candidates(self) -> int:
        """The most that an image has."""
        return self.proposals.n_candidates if self.proposals else len(self.prompts.prompts)

    @cached_property
    def folder(self) -> Path:
        weights = f"_{self.level_weights.name}" if self.level_weights else ""
        ending = weights + self.ablation.name + (self.shortlist.name if self.shortlist else "")

        def make(dataset: str) -> Path:
            named = (self.running.extra, self.model, self.strategy, self.loss, ending)
            return run_folder.adaptive_folder(paths.log_dir(), dataset, *named)

        return run_folder.continued(make, datasets.name_of(self.data), self.data.dataset, lambda: self.identity)

    @cached_property
    def identity(self) -> dict:
        """What the numbers depend on, and which images the folder is about."""
        hashes = {
            "images": self.dataset.fingerprint(),
            "prompts": fingerprint(self.prompts.prompts, self.prompts.classidx),
            "weights": self.source.identity(),
            "noise": self.noise.identity(),
            "subset": sharding.subset_identity(self.selection.subset_path, len(self.dataset)),
        }
        method = self.strategy.identity() | {"loss": self.loss, "seed": self.bank.seed}
        method |= {"level_weights": self.level_weights.identity} if self.level_weights else {}
        method |= self.ablation.identity() | (self.shortlist.identity if self.shortlist else {})
        return self.data.identity() | self.model.identity() | method | hashes

    @property
    def options(self) -> dict:
        """All of them, resolved."""
        chosen = self.shortlist.requested if self.shortlist else settings.Shortlist()
        parts = (self.data, self.selection, self.model, self.prompt_settings, self.bank)
        parts += (self.ablation, chosen, self.strategy, self.running)
        method = {"loss": self.loss, "level_weights": self.level_weights and self.level_weights.path}
        return settings.options_of(*parts) | method | {"strategy": self.strategy.NAME}

    @cached_property
    def selected(self) -> list[int]:
        """Indices of the images, over all workers."""
        return sharding.select(len(self.dataset), self.selection.subset_path, self.selection.imgs_to_eval, self.bank.seed)

    def read_records(self) -> dict[int, run_folder.Outcome]:
        classidx, labels = self.prompts.classidx, self.dataset.labels
        wanted = schema.Wanted(range(len(classidx)), classidx, self.plan.t, partial=not self.strategy.TRIES_ALL)
        rows_of = self.proposals.rows if self.proposals else lambda index: None
        paths = {i: self.record_path(i) for i in self.selected if self.is_ready(i)}
        return run_folder.load_outcomes(
            paths, lambda i, record: wanted.check(record, int(labels[i]), rows_of(i)), self.unreadable
        )

    def is_ready(self, index: int) -> bool:
        """Whether it is known who competes: an image that a shortlist's run could not read is not ranked."""
        return self.shortlist is None or index in self.shortlist.ranked

    @property
    def partial(self) -> bool:
        """Whether a record may lack some of the candidates."""
        all_compete = self.proposals is None or (self.shortlist is not None and not self.shortlist.leaves_out)
        return not (self.strategy.TRIES_ALL and all_compete)

    def record_of(self, index: int, result: classify.Result, label: int) -> dict:
        record = run_folder.record_of(result, range(len(result.class_of)), label)
        return record | ({"proposed": list(self.shortlist.ranked[index].labels)} if self.shortlist else {})

    def record_path(self, index: int) -> Path:
        return run_folder.record_path(self.folder, index, len(self.dataset))


def prepare(options: dict) -> PromptTask:
    """Checks every option against the others and the files, cheap things first. Raises ValueError or OSError."""
    data, running = cli.data_of(options), cli.running_of(options)
    groups = (settings.Selection, settings.Prompts, settings.Noise)
    selection, prompt_settings, bank = (settings.pick(group, options) for group in groups)
    strategy.from_options(options["strategy"], options)  # its own mistakes first
    weights, ablation = cli.level_weights_of(options), cli.ablation_of(options)
    dataset = datasets.open_images(data, running.dry_run)
    prompts = datasets.load_prompts(data.dataset, dataset, prompt_settings.prompt_path, prompt_settings.template)
    proposed = candidate_sets.of_dataset(dataset, prompts.classidx)
    images = runner.Images(data, selection, running, dataset, bank.seed)
    shortlisted = shortlist.find(settings.pick(settings.Shortlist, options), images, prompts, proposed)
    proposed = shortlisted.proposals if shortlisted else proposed
    n_candidates = proposed.n_candidates if proposed else len(prompts.prompts)
    chosen, loss = choose_method(options, data.dataset, len(prompts.prompts), n_candidates)
    source, model, chosen = cli.checked_model(options, running, chosen, n_candidates, expect=running.dry_run)
    dataset.transform = transforms.sd_transform(model.img_size, model.interpolation)
    n_pairs, shape = len(chosen.plan(source.n_levels).t), source.latent_shape(model.img_size)
    ablation.check(shape)
    rows = noise.image_noise(bank.seed, bank.noise_path, n_pairs, shape, model.img_size)
    parts = (data, selection, prompt_settings, model, bank, running, chosen, loss, weights, ablation)
    run = PromptTask(*parts, dataset, prompts, source, rows, proposed, shortlisted)
    if run.incomplete:
        return run
    if weights:
        weights.check(belonging(run.identity, loss, source.n_levels, model.error_space or source.space))
    run = replace(run, noise=noise.shaped(noise.continued(rows, run_folder.noise_of(run.folder)), ablation.kind))
    chosen.check_run(run.identity, n_candidates, prompts.classidx)
    run.check_folders()
    return run


def choose_method(options: dict, dataset: str, n_prompts: int, n_candidates: int):
    """The strategy and the loss; what the recipe says of options that were not given. n_candidates: most of an image."""
    recipe = datasets.recipe_for(dataset, n_candidates)
    recipe = recipe.restrict(n_candidates) if n_candidates < n_prompts else recipe
    defaults = {"to_keep": recipe.to_keep, "n_samples": recipe.n_samples}
    chosen = strategy.from_options(options["strategy"], options, defaults)
    # the published default is l2; a recipe's own loss goes with its own stages only
    return chosen, options["loss"] or ("l2" if options["to_keep"] or options["n_samples"] else recipe.loss)


def announce(run: PromptTask):
    """Prints what will be done and its price. Raises ValueError where a shortlist's folder holds records of another run."""
    if run.shortlist and run.shortlist.todo:
        runner.announce(run.shortlist.model)
    about = {"prompts": f'{len(run.prompts.prompts)}, such as "{run.prompts.prompts[0]}"', "weights": run.source.describe(),
             "memory": models.memory_message(run.source, run.model.dtype),
             "competing": run.shortlist and run.shortlist.described}  # fmt: skip
    unused = None if run.incomplete else run.source.unused_additions(run.prompts.prompts)
    usual = run.strategy.usual(run.n_candidates)
    notices = (
        run.dataset.notice,
        run.prompts.notice,
        run.strategy.notice(run.source.n_levels),
        unused,
        run.slow(run.model.img_size, usual),
    )
    more = run.shortlist.priced if run.shortlist else ""
    run.announce(about, notices, at_most=run.strategy.AT_MOST, usual=usual, more=more)


def start(run: PromptTask) -> tuple[classify.Classifier, int]:
    """Loads the weights, embeds the prompts and writes config.json; the second is how many images are in flight."""
    loop.tell_loading(run.source)
    run.make_ready()
    before, shape = run_folder.known_batch_size(run.folder), run.source.latent_shape(run.model.img_size)
    table = run.prompts
    of_table = (table.prompts, table.classidx, table.classnames, "--prompt_path or --template", table.published)
    if notice := models.check_prompts(run.source, *of_table):
        print(f"Note: {notice}", flush=True)
    load = partial(models.load, run.source, space=run.model.error_space)
    candidates = classify.with_empty(table.prompts, models.EMPTY_PROMPT, run.ablation)
    likely = models.likely_batch(run.source, run.model.img_size, run.running.device, run.model.dtype)
    network = loop.start_network(load, candidates, shape, run.running, run.model.dtype, run.price, before, likely)
    candidates = {"labels": run.prompts.classidx, "names": run.prompts.classnames}
    weights = run.level_weights and run.level_weights.as_json()
    run.write_config(**network.about, candidates=candidates, level_weights=weights, partial=run.partial or None)
    classifier = classify.Classifier(network.denoiser, network.conditions, run.prompts.classidx, run.method, run.noise,
                                     network.batch, rows_of=run.proposals and run.proposals.rows)  # fmt: skip
    return classifier, network.in_flight


def ranked(run: PromptTask) -> tuple[PromptTask, int]:
    """With the shortlist's rankings that a contrastive model was to make first, and the exit code of that."""
    if not (run.shortlist and run.shortlist.todo):
        return run, 0
    made, code = run.shortlist.made()
    return replace(run, shortlist=made, proposals=made.proposals), code


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        run = prepare(vars(args))
        announce(run)
        printing.tell_missing(run.dataset, run.source)
    if run.running.dry_run:
        return 0
    run, code = ranked(run)
    todo = list(filter(run.is_ready, run.todo))
    if code > 1 or (code and not todo):  # stopped, or no image was ranked
        return code
    with cli.bad_input():
        classifier, in_flight = start(run)
        tracker = tracking.Tracker(run.running.tracker).start(run.options, run.folder.name)

    watch = few_levels.Watch(run.source.n_levels)

    def work(index, result, label):
        watch.add(result.compared, result.winner, result.t)
        record = run.record_of(index, result, label)
        return run.save(index, record, run_folder.outcome(record))

    several = partial(classifier.several, n=in_flight)
    ended = loop.work_through(run.running, run.dataset, todo, run.done, work, tracker.progress, several)
    lines = loop.accuracy_lines(run.done.values())
    if run.shortlist and run.done:
        lines.append(run.shortlist.line({index: outcome.label for index, outcome in run.done.items()}))
    lines += results.at_end(run.running.results, tracker, ended, run.folder, run.selected, args.command)
    return run.close(lines, f"scripts/print_acc.py {run.folder}", ended) or code


if __name__ == "__main__":
    sys.exit(loop.run(main))
