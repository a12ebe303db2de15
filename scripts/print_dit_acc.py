#!/usr/bin/env python
"""Accuracy of DiT runs by L2, L1, VLB (the KL term) and L2+VLB: of ours and the reference's, without a model.

records of all classes:
  python scripts/print_dit_acc.py data/fashion_mnist/DiT64x64_10classes_t10_1trials
folders of one class each, in one parent, as the reference writes them; labels come from the dataset:
  python scripts/print_dit_acc.py data/imagenet --dataset imagenet
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, datasets
from diffusion.analysis import dit_columns, figures, reload
from diffusion.cli import parsing
from diffusion.datasets import DATASETS
from diffusion.runs import loop, run_folder
from diffusion.utils import files, outputs


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="run folder, or the parent of class folders, or these"
    )
    parser.add_argument("--json", type=outputs.Output(), metavar="FILE", help="also write the figures as JSON")
    cli.add_data_options(parser, list(DATASETS), required=False)
    return parser.parse_args(argv)


# ---------------------------------------------------------------- folders of one class each


def class_folders(args) -> dict[int, Path]:
    """Class id -> folder of its files, ascending. Raises ValueError when they are of several runs."""
    first = args.folders[0]
    named = args.folders if len(args.folders) > 1 or run_folder.CLASS_FOLDER.fullmatch(first.name) else first.iterdir()
    matches = [(match, path) for path in named if (match := run_folder.CLASS_FOLDER.fullmatch(path.name))]
    runs = sorted({match[1] + "*" + match[3] for match, _ in matches})
    if len(runs) > 1:
        parent = matches[0][1].parent
        raise ValueError(f"{parent} holds {len(runs)} runs: give the folders of one, such as {parent / runs[0]}")
    folders = {int(match[2]): path / args.split if (path / args.split).is_dir() else path for match, path in matches}
    return dict(sorted(folders.items()))


def shared_files(folders) -> list[str]:
    """Names of the records that every class has, by index."""
    shared = None
    for folder in folders:  # one class's names at a time: there may be a thousand classes of ten thousand images
        names = {path.name for path in run_folder.list_records(folder).values()}
        shared = names if shared is None else shared & names
    return sorted(shared, key=lambda name: int(Path(name).stem))


def class_means(folders, name, unreadable: list[str]):
    """Means [K,Q] over an image's evaluations, one file at a time; None when one cannot be read or holds NaN.

    Q is 4 where all files hold the four numbers, else 1: a published folder can have files with and without --save_vb.
    unreadable: where the names of what cannot be read go. Raises ValueError for files that hold no errors.
    """
    import torch

    means = []
    for folder in folders:
        errors = run_folder.load_errors(folder / name, unreadable=unreadable)
        if errors is None:
            return None
        if errors.ndim not in (2, 3, 4) or (errors.ndim == 3 and errors.shape[2] != 4):
            raise ValueError(f"{folder / name} holds predictions, not errors: use folders of squared errors or of --save_vb")
        # [T,n], [T,n,4], or an error map [T,n,h,w] whose mean is the squared error
        means.append(errors.double().mean((0, 1)).view(-1) if errors.ndim < 4 else errors.double().mean().view(1))
    q = min(map(len, means))
    means = torch.stack([mean[:q] for mean in means])
    return means if means.isfinite().all() else None  # a NaN would win or lose by how argmin sorts it


def check_images(folders, names, dataset, name: str):
    """Raises ValueError when these records cannot be about the images of this dataset."""
    for folder in folders:
        config = run_folder.read_config(folder)
        if config:
            reload.check_images(reload.Past(folder, config), dataset, f"--dataset {name}")
    if names and int(Path(names[-1]).stem) >= len(dataset):
        raise ValueError(
            f"there is a record of image {Path(names[-1]).stem}, but --dataset {name} has {len(dataset)} images here"
        )


def read_classes(args, folders: dict[int, Path]) -> tuple[list, list, dict]:
    """Predictions and labels of every image that all classes have, and what to say about them."""
    if not args.dataset:
        raise ValueError("folders of one class hold no labels: name their --dataset (and --data_dir or DATASET_ROOT)")
    dataset = datasets.open_images(cli.data_of(vars(args)))
    expected = run_folder.images_expected(list(folders.values()), ignore=("cls",))
    label_of = datasets.labels_of_classes(args.dataset, len(dataset.classes))
    unknown = [c for c in folders if c not in label_of]
    if unknown:
        raise ValueError(f"{folders[unknown[0]]}: {unknown[0]} is not a class of {args.dataset}")
    names = shared_files(folders.values())
    check_images(folders.values(), names, dataset, args.dataset)
    print(f"Found {len(names)} shared files across all {len(folders)} subdirs.", flush=True)
    rows = [label_of[c] for c in folders]
    unreadable = []
    averaged = ((int(Path(name).stem), class_means(folders.values(), name, unreadable)) for name in names)
    read = [(dit_columns.predictions(means, rows), int(dataset.labels[i])) for i, means in averaged if means is not None]
    about = {"classes": len(folders), "n_expected": expected, "left_out": len(names) - len(read), "unreadable": unreadable}
    return [preds for preds, _ in read], [label for _, label in read], about


# ---------------------------------------------------------------- records of all classes


FOR_CLASS_FOLDERS = ("split", "data_dir", "download", *datasets.MORE)


def read_records(args, folder: Path) -> tuple[list, list, dict]:
    """Predictions and labels of every record, and what to say about them; one record in memory at a time."""
    config = run_folder.read_config(folder)
    past = config and config["identity"].get("dataset")
    if past and args.dataset not in (None, past):
        raise ValueError(f"--dataset {args.dataset}: {folder} is a run on {past}: leave the option out")
    cli.refuse_idle(vars(args), FOR_CLASS_FOLDERS, "with records of all classes, which hold their labels")
    columns = dit_columns.read(folder, config, args.dataset or past)
    about = {"classes": columns.n_classes, "n_expected": config and config.get("images_expected"), "left_out": columns.left_out}
    about |= {"unreadable": columns.unreadable, "evaluations_per_image": columns.evaluations / max(1, len(columns.preds))}
    return columns.preds, columns.labels, about


# ---------------------------------------------------------------- the command


def read(args) -> tuple[list, list, dict]:
    """Reads a folder of either kind. Raises ValueError when it is neither."""
    first = args.folders[0]
    if not first.is_dir():
        raise ValueError(f"{first} does not exist")
    folders = class_folders(args)
    if folders:
        return read_classes(args, folders)
    if len(args.folders) == 1 and run_folder.list_records(first):
        return read_records(args, first)
    inner = sorted({path.parent for path in first.glob("**/[0-9]*.pt")})
    hint = f"; did you mean {inner[0]}?" if inner else ""
    raise ValueError(f"{first} holds neither records <index>.pt nor folders DiT..._cls<class>_...{hint}")


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        preds, labels, about = read(args)
        if not preds:
            raise ValueError(f"{args.folders[0]}: no image has records that can all be read")
        result = dit_columns.accuracies(preds, labels)
        if args.json:
            files.write_text(args.json, figures.to_json(result | about))
    for name, estimate in result.items():
        print(f"Accuracy for {name}: {estimate}")
    print(f"Images: {len(preds)} of {about['n_expected'] or 'an unknown number'}, {about['classes']} classes")
    if any(estimate.n < len(preds) for estimate in result.values()):
        print("Note: the folder holds two kinds of records; each accuracy is over the n images that have its numbers")
    if message := run_folder.unreadable_message(about["unreadable"], "not counted"):
        print(message)
    if about["left_out"]:
        print(f"Left out: {about['left_out']} images with records that cannot be read or hold values that are not finite")
    if "evaluations_per_image" in about:
        print(f"Cost: {about['evaluations_per_image']:,.0f} evaluations per image")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
