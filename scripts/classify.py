#!/usr/bin/env python
"""Which of these labels fits a picture? For pictures without a label, one or folders of them, with a diffusion model.

  python scripts/classify.py picture.jpg --labels "a cat" "a dog"
  python scripts/classify.py bag.png --version tiny --labels bag boot coat --map map.png
a table of a folder, of WebDataset shards or of a CSV of paths, which the same command continues after a crash:
  python scripts/classify.py my_pictures --labels cat dog -o predictions.csv
  python scripts/classify.py list.csv --classes names.txt -o predictions.csv

Labels are ranked by probability. --fit takes a fit that scripts/calibrate.py RUN --write_fit wrote on a run of the same model,
size, loss and strategy; without it probabilities are uncalibrated: the softmax of the mean errors as they are, nearly flat.
A picture's noise depends on --seed and on the bytes of its file, so its result does not depend on what else is classified.
"""

import contextlib
import json
import os
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from diffusion import classify, cli, datasets, models, settings, strategy
from diffusion.analysis import figures
from diffusion.cli import parsing
from diffusion.datasets import prompts, transforms
from diffusion.datasets.pictures import Member
from diffusion.datasets.readers import folders, unlabelled
from diffusion.kernel import noise, scores
from diffusion.metrics import calibration
from diffusion.predict import predictions
from diffusion.runs import loop, printing, run_folder, schema
from diffusion.runs.task import Task
from diffusion.strategy.method import Method
from diffusion.utils import drawing, files, outputs

MOST_SHOWN = 10  # labels of a picture
LABEL_FLAGS = "--labels, --classes, --template or --prompts"


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="file, or folder: all pictures in it and below it; "
                        ".tar, or folder with nshards.txt: WebDataset shards; .csv: the files in its column path")  # fmt: skip
    group = parser.add_argument_group("labels")
    group.add_argument("--labels", nargs="+", metavar="LABEL", help="two or more")
    group.add_argument("--classes", metavar="FILE.txt", help="text file of labels, one per line, in place of --labels")
    group.add_argument("--template", help='what makes a prompt of a label (default: "a photo of a {}.")')
    group.add_argument("--prompts", metavar="FILE", help="CSV of prompt,classname,classidx in place of --labels")
    group.add_argument("--fit", type=Path, metavar="FILE", help="calibrated probabilities, by a fit of scripts/calibrate.py")
    group = parser.add_argument_group("results")
    group.add_argument("-o", "--out", type=outputs.Output(".csv", beside=(".parquet",)), metavar="FILE.csv",
                       help="write a table of all pictures, and FILE.parquet "
                       "beside it; rows of others stay; FILE.records/ keeps what is done")  # fmt: skip
    renamed = group.add_argument("--print_json", action="store_true",
                        help="print the form of transformers' zero-shot-image-classification, and "
                       "everything else on standard error")  # fmt: skip
    parser.rename("--json", renamed)
    group.add_argument("--map", type=figures.picture_file, metavar="FILE", help="of one picture: draw where its first two labels "
                       "disagree (.png or .svg); costs the full plan of both once more")  # fmt: skip
    cli.add_sd_options(parser)
    group = parser.add_argument_group("method")
    group.add_argument("--loss", choices=list(scores.SCORES), default="l2", help="error of a prediction (default: l2)")
    cli.add_resize_options(group)
    group.add_argument("--seed", type=parsing.seed, default=0, help="seed of the noise (default: 0)")
    group.add_argument("--dry_run", action="store_true", help="print the price, and stop")
    cli.add_strategy_options(parser, default="race", default_text="race")
    args = parser.parse_args(argv)
    if not args.pictures:
        label = next(filter(os.path.isfile, args.labels or []), None)
        taken = f"{label} was taken for a label: put PICTURE before --labels"
        parser.error(taken if label else "give a PICTURE, or a folder of them")
    return args


@dataclass(frozen=True)
class PictureTask(Task):
    """Pictures without labels, and the prompts that compete for each; one record of each content, where any are kept."""

    command = "classify"

    prompt_settings: settings.Prompts
    model: settings.TextToImage
    bank: settings.Noise
    running: settings.Running
    strategy: strategy.Strategy
    loss: str
    paths: list[str | Member]  # of the pictures
    ignored: str | None  # what of their places was left out
    dataset: datasets.ImageData
    table: prompts.PromptTable
    source: Any  # of the weights
    fit: calibration.Fit | None
    out: Path | None
    map: Path | None

    @cached_property
    def class_of(self) -> list[int]:
        """The place in `labels` of each prompt's label."""
        places = {index: place for place, index in enumerate(dict.fromkeys(self.table.classidx))}
        return [places[index] for index in self.table.classidx]

    @cached_property
    def labels(self) -> list[str]:
        return list(dict(zip(self.table.classidx, self.table.classnames, strict=True)).values())

    @cached_property
    def plan(self):
        return self.strategy.plan(self.source.n_levels)

    @property
    def price(self) -> int:
        return self.strategy.price(self.plan, len(self.class_of))

    @property
    def folder(self) -> Path | None:
        """The folder of the records."""
        return self.out and self.out.with_suffix(".records")

    @cached_property
    def identity(self) -> dict:
        """What the numbers depend on."""
        table = files.fingerprint(self.table.prompts, self.table.classidx)
        hashes = {"prompts": table, "weights": self.source.identity(), "noise": "seeded by content and timestep"}
        return self.model.identity() | self.strategy.identity() | {"loss": self.loss, "seed": self.bank.seed} | hashes

    @property
    def options(self) -> dict:
        """All of them, resolved."""
        parts = settings.options_of(self.model, self.prompt_settings, self.bank, self.strategy, self.running)
        return parts | {"loss": self.loss, "strategy": self.strategy.NAME}

    @cached_property
    def keys(self) -> list[str | None]:
        """The key of every picture's content."""
        return [predictions.content_key(path) for path in self.paths]

    @property
    def selected(self) -> range:
        return range(len(self.paths))

    def key(self, index: int) -> str | None:
        return self.keys[index]

    def record_path(self, index: int) -> Path:
        return self.folder / f"sha256_{self.key(index)}.pt"

    def read_records(self) -> dict[str, predictions.Prediction]:
        """Predictions of the contents that are known."""
        wanted = schema.Wanted(range(len(self.class_of)), self.class_of, self.plan.t, not self.strategy.TRIES_ALL)

        def convert(key, record):
            wanted.check(record, predictions.NO_LABEL)
            return self.predict(predictions.result_of(record, self.class_of))

        places = {self.key(i): self.record_path(i) for i in self.selected if self.key(i)} if self.out else {}
        return run_folder.load_classifications(places, convert, self.unreadable)

    @cached_property
    def kept(self) -> list[dict]:
        """Rows of other pictures that the table has from before. Raises ValueError where they cannot stay."""
        if not (self.out and self.out.exists()):
            other = self.out and self.out.with_suffix(".parquet")
            if other and other.exists() and not self.folder.exists():
                raise ValueError(f"{other} is there, and no {self.out} that it was written with: name another file with -o")
            return []
        header, rows = predictions.read_rows(self.out, self.labels)
        ours = {os.path.abspath(str(path)) for path in self.paths}
        others = [row for row in rows if os.path.abspath(row["path"]) not in ours]
        same = header == predictions.columns(self.labels, False) and not self.fit and run_folder.read_config(self.folder)
        if others and not same:
            why = "has rows of other pictures, whose probabilities or records are not those of this run"
            raise ValueError(f"-o {self.out} {why}: name another file, or give all pictures")
        return others

    def predict(self, result: classify.Result) -> predictions.Prediction:
        return predictions.predict(result, dict(enumerate(self.labels)), self.fit)

    @cached_property
    def todo(self) -> list[int]:
        """Indices of pictures, each content once."""
        new = {key or path: i for i, (key, path) in enumerate(zip(self.keys, self.paths, strict=True)) if key not in self.done}
        return sorted(new.values())

    @property
    def predicted(self) -> list[predictions.Prediction | None]:
        """The prediction of every picture, in order; None where it failed or was not reached."""
        return [self.done.get(key) for key in self.keys]


# ---------------------------------------------------------------- what is asked for


def find_prompts(options: dict) -> prompts.PromptTable:
    """Raises ValueError where there are not two or more labels, all of them different."""
    given = [f"--{name}" for name in ("labels", "classes", "prompts") if options[name]]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} each say what the labels are: give one of them")
    if options["prompts"]:
        cli.refuse_idle(options, ["template"], "with --prompts, which has whole prompts")
        table, flag = prompts.read_prompts(options["prompts"]), f"--prompts {options['prompts']}"
    elif given:
        names = options["labels"] or prompts.read_classes(options["classes"], "--classes")
        table, flag = prompts.prompts_from_classes(names, options["template"] or "a photo of a {}."), given[0]
    else:
        raise ValueError('--labels are missing: give two or more, as in --labels "a cat" "a dog", or a file of --classes')
    prompts.check_choice(table, flag)
    return table


def open_pictures(places: list[str]) -> tuple[list[str | Member], str | None, datasets.ImageData]:
    """Raises ValueError or OSError where there is nothing, and for a single picture that is none."""
    paths, ignored = unlabelled.find_pictures(places)
    raw = folders.LabelledFiles([(path, predictions.NO_LABEL) for path in paths], custom=True)
    dataset = datasets.ImageData(raw, None, [])
    if len(paths) == 1:
        dataset.picture(0)
    return paths, "; ".join(filter(None, (ignored, dataset.notice))) or None, dataset


def prepare(options: dict) -> PictureTask:
    """Checks every option against the others and the files, cheap things first. Raises ValueError or OSError."""
    running = cli.running_of(options | {"worker_idx": 0, "n_workers": 1})
    strategy.from_options(options["strategy"], options)  # its own mistakes first
    table = find_prompts(options)
    fit = calibration.Fit.read(options["fit"]) if options["fit"] else None
    paths, ignored, dataset = open_pictures(options["pictures"])
    if options["map"] and len(paths) > 1:
        raise ValueError(f"--map {options['map']} is of one picture, and there are {len(paths)}: give one, or leave it out")
    if options["map"]:
        outputs.check(options["map"], [path.file if isinstance(path, Member) else path for path in paths])  # of a list, too
    chosen = cli.strategy_of(options, len(table.prompts))
    source, model, chosen = cli.checked_model(options, running, chosen, len(table.prompts))
    dataset.transform = transforms.sd_transform(model.img_size, model.interpolation)
    prompt_settings = settings.Prompts(options["prompts"], options["template"])
    bank = settings.Noise(options["seed"])
    run = PictureTask(prompt_settings, model, bank, running, chosen, options["loss"], paths, ignored, dataset, table, source, fit,
              options["out"], options["map"])  # fmt: skip
    chosen.check_run(run.identity, len(table.prompts), run.class_of)
    if fit:
        predictions.check_fit(fit, run.identity, options["fit"])
    if run.folder:
        files.try_file(run.out)
        run.check_folders("name another file with -o")
        run.kept  # noqa: B018  read, and refused, before the work
    return run


def announce(run: PictureTask) -> None:
    """Prints what will be done and its price; for pictures of which nothing is kept, the price alone."""
    others = predictions.fit_notice(run.fit, run.identity["prompts"])
    usual = run.strategy.usual(len(run.class_of))
    notices = (run.ignored, run.strategy.notice(run.source.n_levels), others, run.slow(run.model.img_size, usual))
    more = f", and {2 * len(run.plan.t):,} for the map" if run.map else ""
    if run.folder:
        about = {"prompts": f'{len(run.class_of)}, such as "{run.table.prompts[0]}"', "weights": run.source.describe(),
                 "memory": models.memory_message(run.source, run.model.dtype)}  # fmt: skip
        run.announce(about, notices, at_most=run.strategy.AT_MOST, usual=usual)
        return
    for notice in filter(None, notices):
        print(f"Note: {notice}")
    printing.print_price(run.price, len(run.todo), run.strategy.AT_MOST, more=more, usual=usual)


# ---------------------------------------------------------------- the work


def make_ready(run: PictureTask) -> None:
    """Raises OSError where a result could not be written in the end."""
    tables = [run.out, run.out.with_suffix(".parquet")] if run.out else []
    for path in (*tables, *filter(None, [run.map])):
        files.try_file(path)
    if run.folder:
        run.make_ready()


def start(run: PictureTask) -> classify.Classifier:
    """Loads the weights, embeds the prompts and writes config.json where there are records."""
    loop.tell_loading(run.source)
    table, shape = run.table, run.source.latent_shape(run.model.img_size)
    names = [run.labels[label] for label in run.class_of]
    if notice := models.check_prompts(run.source, table.prompts, run.class_of, names, LABEL_FLAGS):
        print(f"Note: {notice}", flush=True)
    load = partial(models.load, run.source, space=run.model.error_space)
    before = run_folder.known_batch_size(run.folder) if run.folder else None
    likely = models.likely_batch(run.source, run.model.img_size, run.running.device, run.model.dtype)
    network = loop.start_network(load, table.prompts, shape, run.running, run.model.dtype, run.price, before, likely)
    if run.folder:
        candidates = {"labels": run.class_of, "names": names}
        run.write_config(**network.about, candidates=candidates, partial=not run.strategy.TRIES_ALL or None)
    method, bank = Method(run.strategy, run.loss), noise.Seeded(run.bank.seed)
    return classify.Classifier(network.denoiser, network.conditions, run.class_of, method, bank, network.batch)


def draw_map(run: PictureTask, classifier: classify.Classifier) -> str:
    """Writes --map, of the first two labels of the only picture; says what is in it."""
    first, second = run.predicted[0].candidates[:2]
    image = run.dataset[0][0]
    ours, theirs = classifier.error_maps(image, [first.row, second.row], predictions.noise_index(run.keys[0])).numpy()
    figure, axes = drawing.pyplot().subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    figures.draw_image(axes[0], image, Path(str(run.paths[0])).name)
    short = [textwrap.shorten(candidate.label, 24, placeholder=" ...") for candidate in (first, second)]
    title, label = "green: {}, pink: {}".format(*short), "squared error of {1} less that of {0}".format(*short)
    figures.draw_map(figure, axes[1], image, theirs - ours, title, label)
    figures.save(figure, run.map)
    return f"Drawn, green: {first.label}, pink: {second.label}: {run.map}"


# ---------------------------------------------------------------- what comes out


def table_lines(path: str | Member, prediction: predictions.Prediction, calibrated: bool) -> list[str]:
    """The ranking of a picture."""
    shown = prediction.candidates[:MOST_SHOWN]
    width = max(len(candidate.label) for candidate in shown)
    what = "probability" if calibrated else "uncalibrated"
    lines = [f"{path}: {prediction.label}", f"  {'':{width}}{what:>14}{'mean error':>12}{'evaluations':>13}"]
    lines += [f"  {c.label:{width}}{c.probability:14.4f}{c.error:12.6f}{c.evaluations:13}" for c in shown]
    left = len(prediction.candidates) - len(shown)
    return lines + ([f"  and {left} more"] if left else [])


def write_tables(run: PictureTask) -> str:
    """The CSV and the Parquet file of all pictures that are done; says where."""
    predicted = zip(run.paths, run.predicted, strict=True)
    rows = [predictions.as_row(path, one, run.labels, run.fit is not None) for path, one in predicted if one]
    before = f", after {len(run.kept)} of before" if run.kept else ""
    other = run.out.with_suffix(".parquet")
    figures.write_csv(run.out, run.kept + rows)
    figures.write_parquet(other, run.kept + rows)
    return f"Predictions of {len(rows)} pictures{before}: {run.out} and {other}"


def results(run: PictureTask, ended, classifier) -> list[str]:
    """Writes the files that were asked for; the lines that are printed."""
    if not run.done:
        return []
    lines = []
    for path, prediction in zip(run.paths, run.predicted, strict=True):
        lines += table_lines(path, prediction, run.fit is not None) if prediction and not run.out else []
    lines += [predictions.probabilities_text(run.fit)]
    lines += [write_tables(run)] if run.out and not ended.unwritten else []
    return lines + ([draw_map(run, classifier)] if run.map else [])


def json_text(run: PictureTask, places: list[str]) -> str:
    """One list of a single file; else a list of lists, null for a picture that failed."""
    lists = [predictions.as_json(one) if one else None for one in run.predicted]
    return json.dumps(lists[0] if run.paths == places and len(places) == 1 else lists)


def classify_all(args) -> tuple[int, PictureTask]:
    """The exit code, and the run with what it has found."""
    with cli.bad_input():
        run = prepare(vars(args))
        announce(run)
    if run.running.dry_run:
        return 0, run
    with cli.bad_input():
        make_ready(run)
        classifier = start(run) if run.todo or run.map else None

    def work(index, image, _):
        result = classifier(image, predictions.noise_index(run.key(index)))
        prediction = run.predict(result)
        if run.folder:
            return run.save(index, run_folder.record_of(result, range(len(run.class_of)), predictions.NO_LABEL), prediction)
        run.done[run.key(index)] = prediction
        return prediction

    ended = loop.work_through(run.running, run.dataset, run.todo, run.done, work)
    lines = results(run, ended, classifier) if loop.team().leads else []
    return loop.close(lines, run.done, None, ended), run


def main(argv=None) -> int:
    args = parse_args(argv)
    with contextlib.redirect_stdout(sys.stderr) if args.print_json else contextlib.nullcontext():
        code, run = classify_all(args)
    if args.print_json and not args.dry_run and loop.team().leads:
        print(json_text(run, args.pictures))
    return code


if __name__ == "__main__":
    sys.exit(loop.run(main))
