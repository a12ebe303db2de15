#!/usr/bin/env python
"""A report of run folders as one file: accuracy, cost, confusions, mistakes, and how several runs compare. No model runs.

one run, and several on the same images:
  python scripts/report.py data/fashion_mnist/vtiny_1trials_5_1keep_10_50samples_l1_64 -o report
  python scripts/report.py RUN RUN -o report --format md

report.html opens from disk, in light and dark mode, and loads nothing; md, csv and json hold the same numbers without pictures.
"""

import base64
import csv
import io
import json
import sys
from argparse import Namespace
from dataclasses import dataclass, field
from html import escape
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion import cli

MATRIX = 40  # classes up to which all of them are shown
SHOWN = 20  # of more classes: how many of the worst, and how many confused pairs
MISTAKES = 12
GROUPS = 5  # of images, by their evaluations
COLOURS = 6  # that report.css has
SIDE = 192  # pixels of the longer side of a picture
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 340, 240, 40, 22, 34  # of a chart, and of the room for its axes


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="run folder; several are compared image by image")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for report.<format>")
    parser.add_argument("--format", default="html", choices=list(FORMATS), help="default: html")
    parser.add_argument("--data_dir", help="where the images of the mistakes are (default: where the run found them)")
    parser.add_argument("--prompt_path", help="prompt CSV of a folder that the published code wrote")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- reading


def read_all(args) -> list:
    """The runs. Raises ValueError for a folder that is none, and for runs that are not about the same images and classes."""
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"-o {args.out} is a file: name a folder, report.{args.format} is written into it")
    if len({folder.resolve() for folder in args.folders}) < len(args.folders):
        raise ValueError("a run folder is given twice: name each RUN once")
    runs = [read(folder, args.prompt_path) for folder in args.folders]
    for other in runs[1:]:
        check_alike(runs[0], other)
    return runs


def read(folder: Path, prompt_path):
    from diffusion import tables

    try:
        return tables.read_run(folder, prompt_path=prompt_path)
    except KeyError as error:
        raise ValueError(f"{folder}: config.json or a record lacks {error}: give a run folder of one classification") from None
    except ValueError as error:
        raise ValueError(f"{error}{hint(folder)}") from None


def hint(folder: Path) -> str:
    """Which other script reads the folder, if one does."""
    import warnings

    from diffusion import runlog

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in runlog.list_records(folder).values():
            if runlog.load_errors(path) is not None:
                return ". It holds errors of one DiT class: give all class folders to scripts/print_dit_acc.py"
            if runlog.load_pair(path) is not None:
                return ". It holds captions and images: give it to scripts/print_winoground.py"
    return ""


def check_alike(first, other):
    """Raises ValueError when two runs cannot be compared image by image."""
    either = f"{first.folder} and {other.folder}"
    for name, what in (("dataset", "--dataset"), ("split", "--split"), ("images", "the images under --data_dir")):
        a, b = first.config["identity"].get(name), other.config["identity"].get(name)
        if None not in (a, b) and a != b:
            raise ValueError(f"{either} differ in {what} ({a}, {b}): report them one by one")
    if set(first.class_of) != set(other.class_of):
        sizes = f"{len(set(first.class_of))}, {len(set(other.class_of))}"
        raise ValueError(f"{either} differ in the classes to choose from ({sizes} of them): report them one by one")
    labels = {image.index: image.label for image in first.images}
    if any(labels.get(image.index, image.label) != image.label for image in other.images):
        raise ValueError(f"{either} give one image two labels, so they are of different datasets: report them one by one")


# ---------------------------------------------------------------- the numbers


def make_report(runs) -> dict:
    """All that the formats hold: plain values and Estimates."""
    return {"runs": [summarise(number, run) for number, run in enumerate(runs, 1)], "comparisons": compare(runs)}


def summarise(number: int, run) -> dict:
    from diffusion import metrics

    preds, labels = [image.pred for image in run.images], [image.label for image in run.images]
    seconds = [image.seconds for image in run.images if image.seconds is not None]
    names = {label: run.names.get(label, str(label)) for label in {*run.names, *preds, *labels}}
    return {
        "number": number,
        "name": name_of(run),
        "folder": str(run.folder),
        "config": run.config,
        "unreadable": run.unreadable,
        "n": len(preds),
        "n_expected": run.config.get("images_expected"),
        "kept": kind_of(run),
        "top1": metrics.top1(preds, labels),
        "top5": top5(run),
        "mean_per_class": metrics.mean_per_class(preds, labels),
        "evaluations": metrics.cost(evaluations(run)),
        "seconds": metrics.cost(seconds) | {"n": len(seconds)} if seconds else None,
        "names": names,
        "classes": metrics.per_class(preds, labels),
        "confusion": metrics.confusion(preds, labels),
        "curve": curve(run),
        "groups": groups(run),
        "mistakes": mistakes(run),
    }


def name_of(run) -> str:
    """The folder's name; where that is only the split's, as for DiT on ImageNet, with its parent's."""
    folder = run.folder.resolve()
    return folder.name if folder.name != run.config["identity"].get("split") else f"{folder.parent.name}/{folder.name}"


def kind_of(run) -> str:
    """sums; full: all errors of all candidates; stages or race: of those still alive."""
    if any(image.errors is None for image in run.images):
        return "sums"
    if "race" in str(run.config["identity"].get("strategy")):
        return "race"
    return "stages" if any(image.counts.min() < image.counts.max() for image in run.images) else "full"


def evaluations(run) -> list[int]:
    return [int(image.counts.sum()) for image in run.images]


def top5(run):
    """None where candidates were eliminated, which leaves the others unranked, and where five are all the classes."""
    from diffusion import metrics

    if kind_of(run) not in ("sums", "full") or len(set(run.class_of)) <= 5:
        return None
    return metrics.proportion([metrics.class_rank(image.means, run.class_of, image.label) < 5 for image in run.images])


def curve(run) -> list[dict]:
    """Accuracy, had every image stopped after so many pairs; nothing when only sums were kept."""
    import numpy as np

    from diffusion import metrics

    kind = kind_of(run)
    if kind == "sums":
        return []
    points = stops(run, kind)
    along = [metrics.running_predictions(in_order(image, kind), run.class_of, points) for image in run.images]
    preds, spent = (np.array(part) for part in zip(*along, strict=True))
    labels = [image.label for image in run.images]
    return [
        {"pairs": n, "evaluations": float(spent[:, i].mean()), "accuracy": metrics.top1(preds[:, i], labels)}
        for i, n in enumerate(points)
    ]


def stops(run, kind: str) -> list[int]:
    """Numbers of pairs: the ends of stages, elsewhere 1, 2, 5, 10, ... and all."""
    if kind == "stages":
        return sorted({int(n) for image in run.images for n in image.counts})
    most = max(int(image.counts.max()) for image in run.images)
    return [n for n in (d * 10**e for e in range(6) for d in (1, 2, 5)) if n < most] + [most]


def in_order(image, kind: str) -> list:
    """Errors of every candidate; those of a full grid, which ascends by t, in an order that covers the timesteps evenly."""
    import numpy as np

    from diffusion import schedule

    if kind != "full":
        return list(image.errors)
    order = np.argsort(image.t, kind="stable")[schedule.spread_order(len(image.t))]
    return [e[order] for e in image.errors]


def groups(run) -> list[dict]:
    """Accuracy among images by what they needed; nothing when all needed the same."""
    from diffusion import metrics

    spent = evaluations(run)
    found = [[(spent[i], run.images[i]) for i in members] for members in metrics.quantile_groups(spent, GROUPS)]
    return [
        {
            "from": min(n for n, _ in members),
            "to": max(n for n, _ in members),
            "accuracy": metrics.proportion([image.pred == image.label for _, image in members]),
        }
        for members in found
        if len(found) > 1
    ]


def mistakes(run) -> list[dict]:
    """The wrong predictions with the largest margins."""
    wrong = [
        {"index": image.index, "label": image.label, "pred": image.pred} | margin(image, run.class_of)
        for image in run.images
        if image.pred != image.label and {image.pred, image.label} <= set(run.class_of)
    ]
    known = [mistake for mistake in wrong if mistake["margin"] is not None]
    return sorted(known, key=lambda mistake: (-mistake["margin"], mistake["index"]))[:MISTAKES]


def margin(image, class_of) -> dict:
    """How much worse the true class's best row is than the predicted one's, on the pairs that both saw.

    In standard errors of the paired difference; in percent of the lower error where only sums were kept.
    """
    from diffusion import metrics

    right, wrong = (best_row(image, class_of, label) for label in (image.label, image.pred))
    n = int(min(image.counts[right], image.counts[wrong]))
    if image.errors is None:
        return {"margin": float(100 * (image.means[right] / image.means[wrong] - 1)), "unit": "%", "pairs": n}
    value = metrics.paired_margin(image.errors[right][:n], image.errors[wrong][:n])
    return {"margin": value, "unit": "SE", "pairs": n}


def best_row(image, class_of, label: int) -> int:
    """Of the rows of a class that survived longest, the one with the lowest error, the lower row at a tie."""
    rows = [row for row, c in enumerate(class_of) if c == label]
    return min(rows, key=lambda row: (-image.counts[row], image.means[row], row))


def compare(runs) -> list[dict]:
    """Every two runs that have images in common."""
    from diffusion import metrics

    right = [{image.index: image.pred == image.label for image in run.images} for run in runs]
    found = []
    for i, j in combinations(range(len(runs)), 2):
        common = sorted(right[i].keys() & right[j].keys())
        if common:
            pair = [[result[index] for index in common] for result in (right[i], right[j])]
            tested = metrics.mcnemar(*pair).as_dict()
            found.append({"first": i + 1, "second": j + 1, "difference": metrics.paired_difference(*pair)} | tested)
    return found


# ---------------------------------------------------------------- tables of text, for md and html


@dataclass
class Table:
    """Rows of text under a title. marks: a row's Estimates, to be drawn beside it in html; span: what their bars cover."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    marks: list = field(default_factory=list)
    span: tuple[float, float] = (0.0, 1.0)


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def between(estimate, sign: str = "") -> str:
    return f"{100 * estimate.low:{sign}.1f} to {100 * estimate.high:{sign}.1f}"


def told(estimate) -> list[str]:
    return [percent(estimate.value), between(estimate), f"{estimate.n:,}"]


def number(value: float) -> str:
    """Whole from 100 on, else three digits."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def of_expected(run: dict) -> str:
    return f"{run['n']:,} of " + (f"{run['n_expected']:,}" if run["n_expected"] else "an unknown number")


def overview(report: dict) -> Table:
    rows = [
        [
            f"{run['number']}: {run['name']}",
            f"{percent(run['top1'].value)} ({between(run['top1'])})",
            of_expected(run),
            number(run["evaluations"]["median"]),
            number(run["seconds"]["median"]) if run["seconds"] else "not recorded",
        ]
        for run in report["runs"]
    ]
    columns = ["Run", "Top-1 (95 % interval)", "Images", "Evaluations an image", "Seconds an image"]
    return Table("Runs", columns, rows, "Medians of evaluations and seconds.")


def figures(run: dict) -> Table:
    """The headline figures: name, value, what belongs to it."""
    spent, seconds = run["evaluations"], run["seconds"]
    why = "one of at most five classes" if run["kept"] in ("sums", "full") else "not ranked: candidates were eliminated"
    rows = [[name, *headline(run[key], why)] for name, key in ACCURACIES.items()]
    rows.append(["Images", *of_expected(run).split(" ", 1)])
    rows.append(["Evaluations an image", number(spent["median"]), cost_note(spent)])
    if seconds:
        rows.append(["Seconds an image", number(seconds["median"]), f"{cost_note(seconds)}; n = {seconds['n']:,}"])
    else:
        rows.append(["Seconds an image", "-", "not recorded"])
    return Table("Accuracy and cost", ["Figure", "Value", "95 % interval, n; or 95th percentile, total"], rows)


ACCURACIES = {"Top-1": "top1", "Top-5": "top5", "Mean per class": "mean_per_class"}


def headline(estimate, why: str) -> list[str]:
    return [percent(estimate.value), f"{between(estimate)}, n = {estimate.n:,}"] if estimate else ["-", why]


def cost_note(spent: dict) -> str:
    return f"median; mean {number(spent['mean'])}, 95th percentile {number(spent['p95'])}, {number(spent['total'])} in all"


def classes_table(run: dict) -> Table:
    """All classes, or of many those with the lowest accuracy."""
    chosen, title = list(run["classes"].items()), "Accuracy by class"
    if len(chosen) > MATRIX:
        title = f"The {SHOWN} of {len(chosen):,} classes with the lowest accuracy"
        chosen = sorted(chosen, key=lambda c: (c[1].value, -c[1].n, c[0]))[:SHOWN]
    rows = [[run["names"][label], *told(estimate)] for label, estimate in chosen]
    return Table(title, ["Class", "Accuracy", "95 % interval", "n"], rows, marks=[estimate for _, estimate in chosen])


def confusion_table(run: dict) -> Table:
    """True classes by predicted ones; of many classes the pairs that are confused most."""
    name, counts = run["names"], {(label, pred): n for label, pred, n in run["confusion"]}
    shown = sorted(name)
    if len(shown) <= MATRIX:
        rows = [[name[label], *(str(counts.get((label, pred), 0)) for pred in shown)] for label in shown]
        return Table("Confusion matrix", ["true \\ predicted", *(name[pred] for pred in shown)], rows, "Number of images.")
    wrong = sorted((pair for pair in counts if pair[0] != pair[1]), key=lambda pair: (-counts[pair], pair))[:SHOWN]
    rows = [[name[a], name[b], f"{counts[a, b]:,}", f"{run['classes'][a].n:,}"] for a, b in wrong]
    return Table(f"The {len(rows)} most confused pairs", ["True", "Predicted", "Images", "of its class"], rows)


CURVE_NOTES = {
    "sums": "Not known: the records hold sums only. Run again with --save_errors (and another --extra).",
    "full": "Had every candidate seen only so many (timestep, noise) pairs, spread evenly over the timesteps.",
    "stages": "Had every image stopped at the end of a stage; evaluations are the mean.",
    "race": "Had every race ended after so many (timestep, noise) pairs; evaluations are the mean.",
}


def curve_table(run: dict) -> Table:
    rows = [[f"{p['pairs']:,}", number(p["evaluations"]), *told(p["accuracy"])] for p in run["curve"]]
    columns = ["Pairs", "Evaluations an image", "Accuracy", "95 % interval", "n"]
    return Table("Accuracy against evaluations", columns, rows, CURVE_NOTES[run["kept"]])


def groups_table(run: dict) -> Table:
    rows = [[f"{g['from']:,} to {g['to']:,}", *told(g["accuracy"])] for g in run["groups"]]
    columns = ["Evaluations", "Accuracy", "95 % interval", "n"]
    note = "Images in groups of about one size by the evaluations that each took."
    return Table("Accuracy by what an image needed", columns, rows, note, [g["accuracy"] for g in run["groups"]])


def mistakes_table(run: dict) -> Table:
    name = run["names"]
    rows = [[f"{m['index']}", name[m["label"]], name[m["pred"]], margin_told(m)] for m in run["mistakes"]]
    note = "Margin: error of the true class less that of the predicted one, on the pairs that both saw"
    note += ", in standard errors (SE) of the paired difference." if run["kept"] != "sums" else ", in percent of the lower one."
    return Table("Most confident mistakes", ["Image", "True", "Predicted", "Margin"], rows, note)


def margin_told(mistake: dict) -> str:
    return f"{mistake['margin']:.2f} {mistake['unit']} on {mistake['pairs']:,} pairs"


TABLES = {
    "figures": figures,
    "curve": curve_table,
    "groups": groups_table,
    "classes": classes_table,
    "confusion": confusion_table,
    "mistakes": mistakes_table,
}


def run_tables(run: dict) -> dict[str, Table]:
    """The tables of a run that have rows; that of the curve says why when it has none."""
    tables = {part: make(run) for part, make in TABLES.items()}
    return {part: table for part, table in tables.items() if table.rows or part == "curve"}


def comparison_table(report: dict) -> Table:
    found = report["comparisons"]
    rows = [
        [
            f"{c['first']} less {c['second']}",
            f"{100 * c['difference'].value:+.2f}",
            between(c["difference"], "+"),
            f"{c['difference'].n:,}",
            f"{c['only_first']:,} / {c['only_second']:,}",
            f"{c['p_value']:.2g}",
        ]
        for c in found
    ]
    columns = ["Runs", "Points of top-1", "95 % interval", "n", "Only first / only second right", "p"]
    note = "On the images that two runs share. Interval: Newcombe's for paired proportions; p: McNemar's exact test."
    marks = [c["difference"] for c in found]
    widest = max((abs(bound) for d in marks for bound in (d.low, d.high)), default=1.0)
    return Table("Paired comparison", columns, rows, note, marks, (-widest, widest))


def differences_table(report: dict) -> Table:
    """In which settings the runs differ, a column a run."""
    identities = [run["config"]["identity"] for run in report["runs"]]
    keys = dict.fromkeys(key for identity in identities for key in identity)
    rows = [[key, *(setting(identity.get(key)) for identity in identities)] for key in keys]
    columns = ["Setting", *(f"Run {run['number']}" for run in report["runs"])]
    return Table("Where the runs differ", columns, [row for row in rows if len(set(row[1:])) > 1])


def setting(value) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) if len(value) <= SHOWN else f"{value[0]} ... {value[-1]} ({len(value)})"
    return "-" if value is None else str(value)


def across_tables(report: dict) -> list[Table]:
    """Of several runs also how they compare and where they differ."""
    tables = [overview(report), comparison_table(report), differences_table(report)]
    return [table for table in tables if table.rows]


def about_table(run: dict) -> Table:
    """What config.json says."""
    config = run["config"]
    identity = config["identity"]
    options = config.get("options", {})
    given = {k: v for k, v in (options or identity).items() if v is not None and v is not False}
    rows = [["folder", run["folder"]]]
    rows += [[key, str(identity[key])] for key in ("weights", "images", "noise") if identity.get(key)]
    rows += [["versions", ", ".join(f"{k} {v}" for k, v in config["versions"].items())]] if "versions" in config else []
    rows += [["commit", str(config["git_commit"])]] if "git_commit" in config else []
    rows += [["--" + key, setting(value)] for key, value in given.items()]
    note = "" if options else "The folder has no config.json: the published code wrote it."
    return Table("What was run", ["What", "Value"], rows, note)


# ---------------------------------------------------------------- md, csv, json


def unreadable_told(run: dict) -> str:
    """One line about records that do not count; nothing without any."""
    names = run["unreadable"]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        f"Run {run['number']}: {len(names)} unreadable record{'s' * (len(names) > 1)}, not counted: {', '.join(names[:5])}{more}"
        if names
        else ""
    )


def heading(report: dict) -> str:
    sets = {run["config"]["identity"].get("dataset") for run in report["runs"]} - {None}
    n = len(report["runs"])
    return f"Report of {n} run{'s' if n > 1 else ''}{' on ' + sets.pop() if sets else ''}"


def to_md(report: dict, pictures) -> str:
    def cell(text):
        return escape(" ".join(text.split()), quote=False).replace("\\", "\\\\").replace("|", "\\|")

    def lines(table, level):
        yield f"{level} {table.title}\n"
        if table.rows:
            yield "\n".join(
                "| " + " | ".join(map(cell, row)) + " |" for row in [table.columns, ["---"] * len(table.columns), *table.rows]
            )
        yield f"\n{table.note}\n" if table.note else ""

    parts = [f"# {heading(report)}\n"]
    for table in across_tables(report):
        parts += lines(table, "##")
    for run in report["runs"]:
        parts += [f"## Run {run['number']}: {cell(run['name'])}\n", unreadable_told(run)]
        for table in [about_table(run), *run_tables(run).values()]:
            parts += lines(table, "###")
    return "\n".join(parts)


def to_csv(report: dict, pictures) -> str:
    """One row a number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "quantity", "item", "value", "low", "high", "n"])
    for run in report["runs"]:
        writer.writerows([run["number"], *row] for row in numbers(run))
    for c in report["comparisons"]:
        pair, d = f"{c['first']} less {c['second']}", c["difference"]
        writer.writerow([pair, "difference", "", d.value, d.low, d.high, d.n])
        writer.writerows([pair, name, "", c[name], "", "", d.n] for name in ("only_first", "only_second", "p_value"))
    return text.getvalue()


def numbers(run: dict):
    """quantity, item, value, low, high, n of all that a run's part holds."""

    def proportion(quantity, item, e):
        return [quantity, item, e.value, e.low, e.high, e.n]

    name = run["names"]
    yield ["images", "", run["n"], "", "", ""]
    yield ["images_expected", "", run["n_expected"], "", "", ""]
    yield ["unreadable", "", len(run["unreadable"]), "", "", ""]
    yield from (proportion(key, "", run[key]) for key in ACCURACIES.values() if run[key])
    for key in ("evaluations", "seconds"):
        spent = run[key] or {}
        yield from (
            [key, item, spent[item], "", "", spent.get("n", run["n"])] for item in ("median", "mean", "p95", "total") if spent
        )
    yield from (proportion("accuracy_of_class", name[label], e) for label, e in run["classes"].items())
    yield from (["confusion", f"{name[a]} > {name[b]}", n, "", "", run["classes"][a].n] for a, b, n in run["confusion"])
    for point in run["curve"]:
        yield proportion("accuracy_after_pairs", point["pairs"], point["accuracy"])
        yield ["evaluations_after_pairs", point["pairs"], point["evaluations"], "", "", run["n"]]
    yield from (proportion("accuracy_by_evaluations", f"{g['from']} to {g['to']}", g["accuracy"]) for g in run["groups"])
    for m in run["mistakes"]:
        item = f"{m['index']}: {name[m['label']]} > {name[m['pred']]}"
        yield [f"margin_{m['unit']}", item, m["margin"], "", "", m["pairs"]]


def to_json(report: dict, pictures) -> str:
    return json.dumps(report, default=lambda estimate: estimate.as_dict(), indent=1) + "\n"


# ---------------------------------------------------------------- pictures


def pictures_of(runs, report: dict, data_dir) -> list[dict | str]:
    """For every run: index -> data URI of its mistakes' images, or why there are none."""
    return [pictures_of_run(run, part["mistakes"], data_dir) for run, part in zip(runs, report["runs"], strict=True)]


def pictures_of_run(run, wrong: list[dict], data_dir) -> dict | str:
    try:
        data = open_images(run.config, data_dir) if wrong else ()
        return {m["index"]: data_uri(data[m["index"]][0]) for m in wrong}
    except (ValueError, OSError, IndexError) as error:
        return f"Their images are not at hand: {' '.join(str(error).split())}"


def open_images(config: dict, data_dir):
    """The run's dataset. Raises ValueError or OSError when it is not there, or not the one that it was."""
    if "options" not in config:
        raise ValueError("the folder has no config.json that names the dataset")
    absent = dict.fromkeys(("config_name", "image_column", "label_column"))
    options = Namespace(**absent | config["options"] | {"download": False})
    options.data_dir = data_dir or options.data_dir
    data = cli.open_images(options)
    if data.fingerprint() != config["identity"].get("images"):
        raise ValueError(
            f"{options.dataset} in {options.data_dir} is another set than the run saw; say where it is with --data_dir"
        )
    return data


def data_uri(image) -> str:
    """A PIL image, made small: PNG for icons, where JPEG would blur them, else JPEG."""
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    kind = "PNG" if max(image.size) <= 64 else "JPEG"
    file = io.BytesIO()
    image.save(file, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


# ---------------------------------------------------------------- html


def to_html(report: dict, pictures) -> str:
    style = Path(__file__).with_suffix(".css").read_text()
    title = escape(heading(report))
    several = len(report["runs"]) > 1
    body = [f"<h1>{title}</h1>", f"<p>{READING}</p>"]
    body += [across(report)] if several else []
    body += [run_html(run, images) for run, images in zip(report["runs"], pictures, strict=True)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f'<title>{title}</title>\n<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n'
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


READING = (
    "Accuracies come with their 95 % interval (Wilson) and n, the number of images. An evaluation is one pass of the network for "
    "one candidate; a pair is a timestep and a noise, which all candidates of an image share."
)


def across(report: dict) -> str:
    """What is about several runs: the table of runs with links, their curves in one chart, the comparison."""
    runs, *others = across_tables(report)
    parts = ["<section>", "<h2>Runs</h2>", table_html(runs, [f"#run-{run['number']}" for run in report["runs"]]), note(runs)]
    drawn = [run for run in report["runs"] if run["curve"]]
    if drawn:
        parts += ["<h3>Accuracy against evaluations</h3>", chart("all", drawn), legend(drawn)]
    for table in others:
        parts += [f"<h3>{table.title}</h3>", table_html(table), note(table)]
    return "\n".join([*parts, "</section>"])


def run_html(run: dict, images) -> str:
    about, tables = about_table(run), run_tables(run)
    parts = [f'<section id="run-{run["number"]}">', f"<h2>Run {run['number']}: {escape(run['name'])}</h2>"]
    parts += [f'<p class="warning">{escape(line)}</p>' for line in [unreadable_told(run)] if line]
    parts.append(tiles(tables.pop("figures")))
    parts.append(f"<details><summary>{about.title}</summary>{table_html(about)}{note(about)}</details>")
    for part, table in tables.items():
        parts += [f"<h3>{escape(table.title)}</h3>", note(table), part_html(part, table, run, images)]
    return "\n".join([*parts, "</section>"])


def part_html(part: str, table: Table, run: dict, images) -> str:
    """A table, or what shows it better."""
    if part == "confusion" and len(run["names"]) <= MATRIX:
        return matrix_html(table)
    if part == "curve":
        return f'<div class="beside">{chart(str(run["number"]), [run])}{table_html(table)}</div>' if table.rows else ""
    if part == "mistakes":
        return cards(run, images) if isinstance(images, dict) else f"<p>{escape(images)}</p>{table_html(table)}"
    return table_html(table)


def note(table: Table) -> str:
    return f'<p class="note">{escape(table.note)}</p>' if table.note else ""


def tiles(table: Table) -> str:
    cells = "".join(f"<div><dt>{escape(a)}</dt><dd><b>{escape(b)}</b><br>{escape(c)}</dd></div>" for a, b, c in table.rows)
    return f'<dl class="tiles">{cells}</dl>'


def table_html(table: Table, links=()) -> str:
    """A table in a box of its own that scrolls, with a row's bar behind its name. links: where the names lead."""
    numeric = [i > 0 and all(row[i][:1] in "+-0123456789" for row in table.rows) for i in range(len(table.columns))]
    head = [th(text, "col", numeric[i]) for i, text in enumerate(table.columns)]
    body = []
    for number, row in enumerate(table.rows):
        name = th(row[0], "row", link=links[number] if links else "")
        cells = [f"<td{' class=num' if numeric[i] else ''}>{escape(text)}</td>" for i, text in enumerate(row) if i]
        bars = [f"<td class=bar>{bar(table.marks[number], *table.span)}</td>"] if table.marks else []
        body.append(f"<tr>{''.join([name, *bars, *cells])}</tr>")
    if table.marks:
        head.insert(1, "<td></td>")
    return box(table, f"<table><thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(body)}</tbody></table>")


def th(text: str, scope: str, numeric: bool = False, link: str = "") -> str:
    shown = f'<a href="{escape(link)}">{escape(text)}</a>' if link else escape(text)
    return f'<th scope="{scope}"{" class=num" if numeric else ""}>{shown}</th>'


def box(table: Table, inner: str) -> str:
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.title)}">{inner}</div>'


def bar(estimate, least: float, most: float) -> str:
    """From zero to the value, with the interval as a line; what it says is in the cells beside it."""

    def x(value):
        return 100 * (value - least) / (most - least)

    start, end = sorted((x(0), x(estimate.value)))
    return (
        '<svg aria-hidden="true" viewBox="0 0 100 12" preserveAspectRatio="none">'
        f'<rect x="{start:.2f}" y="1" width="{end - start:.2f}" height="10"/>'
        f'<path d="M{x(estimate.low):.2f} 6H{x(estimate.high):.2f}"/><path class="zero" d="M{x(0):.2f} 0V12"/></svg>'
    )


def matrix_html(table: Table) -> str:
    """The confusion matrix, shaded by the share of the true class: right ones linearly, mistakes by the root, to be seen."""
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in table.columns[1:])
    rows = []
    for i, (name, *cells) in enumerate(table.rows):
        counts = [int(n) for n in cells]
        shares = [n / max(1, sum(counts)) for n in counts]
        shaded = "".join(shade(n, s if i == j else s**0.5, i == j) for j, (n, s) in enumerate(zip(counts, shares, strict=True)))
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{shaded}</tr>')
    corner = f"<td>{escape(table.columns[0])}</td>"
    inner = f'<table class="matrix"><thead><tr>{corner}{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return box(table, inner) + f'<p class="note">{SHADES}</p>'


SHADES = "Blue: share of the true class that is right. Orange: the root of the share that is mistaken, so that few show too."


def shade(n: int, strength: float, right: bool) -> str:
    """A cell of the matrix; its text turns over where the shade is dark."""
    kind = " ".join(filter(None, ["right" if right else "wrong", "deep" if strength > 0.5 else "", "" if n else "none"]))
    return f'<td class="{kind}" style="--v:{strength:.3f}">{n}</td>'


def cards(run: dict, images: dict) -> str:
    name = run["names"]
    shown = []
    for m in run["mistakes"]:
        true, pred = escape(name[m["label"]]), escape(name[m["pred"]])
        shown.append(
            f'<li><img src="{images[m["index"]]}" alt="image {m["index"]}: {true}, taken for {pred}">'
            f"<p>{true}, taken for <b>{pred}</b><br><small>{margin_told(m)}<br>image {m['index']}</small></p></li>"
        )
    return f'<ul class="cards">{"".join(shown)}</ul>'


# ---------------------------------------------------------------- the chart


def legend(runs: list[dict]) -> str:
    items = "".join(f'<li class="s{colour(run)}"><b>{run["number"]}</b> {escape(run["name"])}</li>' for run in runs)
    return f'<ul class="legend">{items}</ul>'


def colour(run: dict) -> int:
    return (run["number"] - 1) % COLOURS + 1


def chart(name: str, runs: list[dict]) -> str:
    """Accuracy against evaluations an image, a line a run, as SVG. name: makes the ids unique."""
    points = [point for run in runs for point in run["curve"]]
    spent = [point["evaluations"] for point in points]
    bottom = int(10 * min(point["accuracy"].low for point in points)) / 10
    x, y = scales(min(spent), max(spent), bottom)
    drawn = axes(x, y, ticks(min(spent), max(spent)), bottom) + "".join(line(run, x, y, len(runs) > 1) for run in runs)
    title = f'<title id="chart-{name}">Accuracy against evaluations an image; tables hold the numbers</title>'
    return f'<svg class="chart" role="img" aria-labelledby="chart-{name}" viewBox="0 0 {WIDTH} {HEIGHT}">{title}{drawn}</svg>'


def scales(least: float, most: float, bottom: float):
    """Where a number of evaluations (log scale) and an accuracy are in the chart."""
    import math

    span = math.log(most / least) or 1.0

    def x(n):
        return LEFT + 8 + math.log(n / least) / span * (WIDTH - LEFT - 30)

    def y(accuracy):
        return HEIGHT - BOTTOM - (accuracy - bottom) / (1 - bottom) * (HEIGHT - BOTTOM - TOP)

    return x, y


def axes(x, y, counts: list[int], bottom: float) -> str:
    shown = []
    for tenth in range(10, round(bottom * 10) - 1, -2 if bottom < 0.5 else -1):
        height = y(tenth / 10)
        shown.append(f'<path class="grid" d="M{LEFT} {height:.1f}H{WIDTH - 8}"/>')
        shown.append(f'<text x="{LEFT - 5}" y="{height + 4:.1f}" text-anchor="end">{10 * tenth}</text>')
    for n in counts:
        shown.append(f'<path class="grid" d="M{x(n):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        shown.append(f'<text x="{x(n):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{n:,}</text>')
    shown.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">evaluations an image</text>')
    shown.append('<text x="2" y="11">accuracy, %</text>')
    return "".join(shown)


def ticks(least: float, most: float) -> list[int]:
    """1, 2, 5, 10, ... within the range; only powers of ten where these would be too many."""
    within = [d * 10**e for e in range(9) for d in (1, 2, 5) if 0.999 * least <= d * 10**e <= 1.001 * most]
    return within if len(within) <= 7 else [n for n in within if str(n).strip("0") == "1"]


def line(run: dict, x, y, numbered: bool) -> str:
    """A run's points with their intervals, joined; its number at the last one."""
    at = [(x(p["evaluations"]), p["accuracy"]) for p in run["curve"]]
    path = "L".join(f"{px:.1f} {y(e.value):.1f}" for px, e in at)
    spans = "".join(f"M{px:.1f} {y(e.low):.1f}V{y(e.high):.1f}" for px, e in at)
    dots = "".join(f'<circle cx="{px:.1f}" cy="{y(e.value):.1f}" r="3"/>' for px, e in at)
    px, e = at[-1]
    text = f'<text class="number" x="{px + 6:.1f}" y="{y(e.value) + 4:.1f}">{run["number"]}</text>' if numbered else ""
    return f'<g class="line s{colour(run)}"><path d="M{path}"/><path class="interval" d="{spans}"/>{dots}{text}</g>'


# ---------------------------------------------------------------- the command

FORMATS = {"html": to_html, "md": to_md, "csv": to_csv, "json": to_json}


def print_table(table: Table):
    widths = [max(len(row[i]) for row in [table.columns, *table.rows]) for i in range(len(table.columns))]
    for row in [table.columns, *table.rows]:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def main(argv=None) -> int:
    args = parse_args(argv)
    from diffusion import runlog

    path = args.out / f"report.{args.format}"
    with cli.bad_input():
        runs = read_all(args)
        report = make_report(runs)
        pictures = pictures_of(runs, report, args.data_dir) if args.format == "html" else None
        args.out.mkdir(parents=True, exist_ok=True)
        runlog.write_text(path, FORMATS[args.format](report, pictures))
    print_table(overview(report))
    for notice in filter(None, map(unreadable_told, report["runs"])):
        print(notice)
    print(f"Written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
