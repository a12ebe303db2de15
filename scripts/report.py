#!/usr/bin/env python
"""A report of run folders as one file: accuracy, cost, confusions, mistakes, and how several runs compare. No model runs.

one run, and several on the same images:
  python scripts/report.py data/fashion_mnist/vtiny_1trials_5_1keep_10_50samples_l1_64 -o report
  python scripts/report.py RUN RUN -o report --format md

report.html opens from disk, in light and dark mode, and loads nothing; md, csv and json hold the same numbers without pictures.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli
from diffusion.analysis import figures, pages, reload, summary, tables, web
from diffusion.analysis.pages import Table, between, estimate_cells, number, percent
from diffusion.analysis.summary import Cost, Mistake, Report, RunSummary
from diffusion.cli import parsing
from diffusion.runs import loop, run_folder
from diffusion.strategy import STRATEGIES
from diffusion.utils import files

MATRIX = 40  # classes up to which all of them are shown
SHOWN = 20  # of more classes: how many of the worst, and how many confused pairs


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="run folder; several are compared image by image")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for report.<format>")
    parser.add_argument("--format", default="html", choices=list(FORMATS), help="default: html")
    parser.add_argument("--data_dir", help="where the images of the mistakes are (default: where the run found them)")
    parser.add_argument("--prompt_path", help="prompt CSV of a folder that the published code wrote")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- reading


def read_all(args) -> list:
    """The runs. Raises ValueError for a folder that is none or is given twice, and for an --out that is a file."""
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"-o {args.out} is a file: name a folder, report.{args.format} is written into it")
    if len({folder.resolve() for folder in args.folders}) < len(args.folders):
        raise ValueError("a run folder is given twice: name each RUN once")
    return [read(folder, args.prompt_path) for folder in args.folders]


def read(folder: Path, prompt_path):
    try:
        return tables.read_run(folder, prompt_path=prompt_path)
    except KeyError as error:
        raise ValueError(f"{folder}: config.json or a record lacks {error}: give a run folder of one classification") from None
    except ValueError as error:
        raise ValueError(f"{error}{hint(folder)}") from None


HINTS = {
    run_folder.ONE_CLASS: ". It holds errors of one DiT class: give all class folders to scripts/print_dit_acc.py",
    run_folder.PAIRS: ". It holds captions and images: give it to scripts/print_winoground.py",
}


def hint(folder: Path) -> str:
    """Which other script reads the folder, if one does: by its config, or of a log of the reference by its records."""
    config = run_folder.read_config(folder)
    return HINTS.get(config["kind"] if config else kind_of_records(folder), "")


def kind_of_records(folder: Path) -> str | None:
    unreadable = []  # by one of the two at least
    for path in run_folder.list_records(folder).values():
        if run_folder.load_errors(path, unreadable=unreadable) is not None:
            return run_folder.ONE_CLASS
        if run_folder.load_pair(path, unreadable) is not None:
            return run_folder.PAIRS
    return None


# ---------------------------------------------------------------- the tables
def of_expected(run: RunSummary) -> str:
    return f"{run.n:,} of " + (f"{run.n_expected:,}" if run.n_expected else "an unknown number")


def overview(report: Report) -> Table:
    rows = [
        [
            f"{run.number}: {run.name}",
            run.top1,
            of_expected(run),
            run.evaluations.mean,
            run.seconds.mean if run.seconds else "not recorded",
        ]
        for run in report.runs
    ]
    columns = ["Run", "Top-1 (95 % interval)", "Images", "Evaluations per image", "Seconds per image"]
    return Table("Runs", columns, rows, "Means of evaluations and seconds.")


def headlines(run: RunSummary) -> Table:
    """The headline figures: name, value, what belongs to it."""
    why = "one of at most five classes" if run.kept in ("sums", "full") else "not ranked: candidates were eliminated"
    rows = [[name, *headline(getattr(run, key), why)] for name, key in ACCURACIES.items()]
    rows.append(["Images", *of_expected(run).split(" ", 1)])
    rows.append(["Evaluations per image", run.evaluations.mean, cost_note(run.evaluations)])
    if run.seconds:
        rows.append(["Seconds per image", run.seconds.mean, f"{cost_note(run.seconds)}; n = {run.seconds.n:,}"])
    else:
        rows.append(["Seconds per image", "-", "not recorded"])
    return Table("Accuracy and cost", ["Figure", "Value", "95 % interval, n; or median, 95th percentile, total"], rows)


ACCURACIES = {"Top-1": "top1", "Top-5": "top5", "Mean per class": "mean_per_class"}


def headline(estimate, why: str) -> list[str]:
    return [percent(estimate.value), f"{between(estimate)}, n = {estimate.n:,}"] if estimate else ["-", why]


def cost_note(cost: Cost) -> str:
    return f"mean; median {number(cost.median)}, 95th percentile {number(cost.p95)}, {number(cost.total)} in all"


def classes_table(run: RunSummary) -> Table:
    """All classes, or of many those with the lowest accuracy."""
    chosen, title = list(run.classes.items()), "Accuracy by class"
    if len(chosen) > MATRIX:
        title = f"The {SHOWN} of {len(chosen):,} classes with the lowest accuracy"
        chosen = sorted(chosen, key=lambda c: (c[1].value, -c[1].n, c[0]))[:SHOWN]
    rows = [[run.names[label], *estimate_cells(estimate)] for label, estimate in chosen]
    return Table(title, ["Class", "Accuracy", "95 % interval", "n"], rows, marks=[estimate for _, estimate in chosen])


def confusion_table(run: RunSummary) -> Table:
    """True classes by predicted ones; of many classes the pairs that are confused most."""
    name = run.names
    if len(name) <= MATRIX:
        shown, counts = sorted(name), {(c.label, c.pred): c.n for c in run.confusion}
        rows = [[name[label], *(counts.get((label, pred), 0) for pred in shown)] for label in shown]
        return Table("Confusion matrix", ["true \\ predicted", *(name[pred] for pred in shown)], rows, "Number of images.")
    wrong = sorted((c for c in run.confusion if c.label != c.pred), key=lambda c: (-c.n, c))[:SHOWN]
    rows = [[name[c.label], name[c.pred], c.n, run.classes[c.label].n] for c in wrong]
    return Table(f"The {len(rows)} most confused pairs", ["True", "Predicted", "Images", "of its class"], rows)


CURVE_NOTES = {
    "sums": "Not known: the records hold sums only. Run again with --save_errors (and another --extra).",
    "full": "If every candidate had seen only that many (timestep, noise) pairs, spread evenly over the timesteps.",
} | {name: strategy.NOTE for name, strategy in STRATEGIES.items()}


def curve_table(run: RunSummary) -> Table:
    rows = [[point.pairs, point.evaluations, *estimate_cells(point.accuracy)] for point in run.curve]
    columns = ["Pairs", "Evaluations per image", "Accuracy", "95 % interval", "n"]
    return Table("Accuracy against evaluations", columns, rows, CURVE_NOTES[run.kept])


def groups_table(run: RunSummary) -> Table:
    rows = [[f"{group.fewest:,} to {group.most:,}", *estimate_cells(group.accuracy)] for group in run.groups]
    columns = ["Evaluations", "Accuracy", "95 % interval", "n"]
    note = "Images in groups of about equal size, by the evaluations each took."
    return Table("Accuracy by number of evaluations", columns, rows, note, [group.accuracy for group in run.groups])


def mistakes_table(run: RunSummary) -> Table:
    rows = [[str(m.index), run.names[m.label], run.names[m.pred], margin_text(m)] for m in run.mistakes]
    note = "Margin: error of the true class minus that of the predicted one, on the pairs that both saw"
    note += ", in standard errors (SE) of the paired difference." if run.kept != "sums" else ", in percent of the lower one."
    return Table("Most confident mistakes", ["Image", "True", "Predicted", "Margin"], rows, note)


def margin_text(mistake: Mistake) -> str:
    return f"{mistake.margin:.2f} {mistake.unit} on {mistake.pairs:,} pairs"


TABLES = {
    "headlines": headlines,
    "curve": curve_table,
    "groups": groups_table,
    "classes": classes_table,
    "confusion": confusion_table,
    "mistakes": mistakes_table,
}


def run_tables(run: RunSummary) -> dict[str, Table]:
    """The tables of a run that have rows; that of the curve says why when it has none."""
    made = {part: make(run) for part, make in TABLES.items()}
    return {part: table for part, table in made.items() if table.rows or part == "curve"}


def comparison_table(report: Report) -> Table:
    comparisons = report.comparisons
    rows = [
        [
            f"{c.first} less {c.second}",
            f"{100 * c.difference.value:+.2f}",
            between(c.difference, "+"),
            c.difference.n,
            f"{c.only_first:,} / {c.only_second:,}",
            f"{c.p_value:.2g}",
        ]
        for c in comparisons
    ]
    columns = ["Runs", "Points of top-1", "95 % interval", "n", "Only first / only second right", "p"]
    note = "On the images that both runs have. Interval: Newcombe's for paired proportions; p: McNemar's exact test."
    marks = [c.difference for c in comparisons]
    widest = max((abs(bound) for d in marks for bound in (d.low, d.high)), default=1.0)
    return Table("Paired comparison", columns, rows, note, marks, (-widest, widest))


def differences_table(report: Report) -> Table:
    """In which settings the runs differ, a column a run."""
    identities = [run.config["identity"] for run in report.runs]
    keys = dict.fromkeys(key for identity in identities for key in identity)
    rows = [[key, *(setting(identity.get(key)) for identity in identities)] for key in keys]
    columns = ["Setting", *(f"Run {run.number}" for run in report.runs)]
    return Table("Where the runs differ", columns, [row for row in rows if len(set(row[1:])) > 1])


def setting(value) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) if len(value) <= SHOWN else f"{value[0]} ... {value[-1]} ({len(value)})"
    return "-" if value is None else str(value)


def across_tables(report: Report) -> list[Table]:
    """How several runs compare and where they differ."""
    made = [overview(report), comparison_table(report), differences_table(report)]
    return [table for table in made if table.rows]


def about_table(run: RunSummary) -> Table:
    """What config.json says."""
    config = run.config
    identity = config["identity"]
    options = config.get("options", {})
    given = {k: v for k, v in (options or identity).items() if v is not None and v is not False}
    rows = [["folder", run.folder]]
    rows += [[key, str(identity[key])] for key in ("weights", "images", "noise") if identity.get(key)]
    rows += [["versions", ", ".join(f"{k} {v}" for k, v in config["versions"].items())]] if "versions" in config else []
    rows += [["commit", str(config["git_commit"])]] if "git_commit" in config else []
    rows += [["--" + key, setting(value)] for key, value in given.items()]
    note = "" if options else "The folder has no config.json: the published code wrote it."
    return Table("What was run", ["What", "Value"], rows, note)


# ---------------------------------------------------------------- md, csv, json


def unreadable_message(run: RunSummary) -> str:
    """One line about records that do not count; nothing without any."""
    message = run_folder.unreadable_message(run.unreadable, "not counted")
    return f"Run {run.number}: {message}" if message else ""


def heading(report: Report) -> str:
    sets = {run.config["identity"].get("dataset") for run in report.runs} - {None}
    n = len(report.runs)
    return f"Report of {n} run{'s' if n > 1 else ''}{' on ' + sets.pop() if sets else ''}"


def to_md(report: Report, pictures) -> str:
    parts = [f"# {heading(report)}\n", *(pages.markdown(table, "##") for table in across_tables(report))]
    for run in report.runs:
        parts += [f"## Run {run.number}: {pages.markdown_cell(run.name)}\n", unreadable_message(run)]
        parts += [pages.markdown(table, "###") for table in [about_table(run), *run_tables(run).values()]]
    return "\n".join(parts)


def to_csv(report: Report, pictures) -> str:
    """One row a number."""
    columns = ("run", "quantity", "item", "value", "low", "high", "n")
    return files.csv_text([columns, *summary.number_rows(report)])


def to_json(report: Report, pictures) -> str:
    return figures.to_json(report)


# ---------------------------------------------------------------- pictures


def pictures_of(runs, report: Report, data_dir) -> list[list[str] | str]:
    """For every run: data URIs of its mistakes' images, or why there are none."""
    return [pictures_of_run(run, part.mistakes, data_dir) for run, part in zip(runs, report.runs, strict=True)]


def pictures_of_run(run, wrong: list[Mistake], data_dir) -> list[str] | str:
    try:
        data = reload.open_images(reload.Past(run.folder, run.config), data_dir) if wrong else ()
        return [web.data_uri(data.picture(m.index)) for m in wrong]
    except (ValueError, OSError, IndexError) as error:
        return f"Their images are not available: {files.one_line(error)}"


# ---------------------------------------------------------------- html


def to_html(report: Report, pictures) -> str:
    shown = [html_run(run, images) for run, images in zip(report.runs, pictures, strict=True)]
    lines = [(run.number, points(run)) for run in report.runs if run.curve]
    return web.page(
        "report.html",
        title=heading(report),
        runs=shown,
        across=across_tables(report),
        links=[f"#run-{run.number}" for run in report.runs],
        lines=[(run.number, run.name) for run in report.runs if run.curve],
        chart=web.chart(lines, "all") if lines else None,
    )


def html_run(run: RunSummary, images) -> dict:
    """What report.html shows of a run. images: data URIs of the mistakes' pictures, or why there are none."""
    made = run_tables(run)
    return {
        "number": run.number,
        "name": run.name,
        "unreadable": unreadable_message(run),
        "headlines": made.pop("headlines"),
        "about": about_table(run),
        "tables": made,
        "matrix": len(run.names) <= MATRIX,
        "chart": web.chart([(run.number, points(run))], f"run-{run.number}") if run.curve else None,
        "pictures": images,
    }


def points(run: RunSummary) -> list[tuple]:
    """Evaluations per image and accuracy of each point of its curve."""
    return [(point.evaluations, point.accuracy) for point in run.curve]


# ---------------------------------------------------------------- the command

FORMATS = {"html": to_html, "md": to_md, "csv": to_csv, "json": to_json}


def main(argv=None) -> int:
    args = parse_args(argv)
    path = args.out / f"report.{args.format}"
    with cli.bad_input():
        if args.format != "html":
            cli.refuse_idle(vars(args), ["data_dir"], f"with --format {args.format}, which has no pictures")
        runs = read_all(args)
        summary.check_alike(runs)
        report = summary.make_report(runs)
        pictures = pictures_of(runs, report, args.data_dir) if args.format == "html" else None
        files.write_text(path, FORMATS[args.format](report, pictures))
    print(pages.plain(overview(report)))
    for notice in filter(None, map(unreadable_message, report.runs)):
        print(notice)
    print(f"Written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
