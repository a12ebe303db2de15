"""Groups of options that the commands share."""

from dataclasses import fields

from diffusion import settings
from diffusion.cli.parsing import at_least, how_many, limit, name_part, positive, seed
from diffusion.datasets import transforms
from diffusion.models.speed import devices
from diffusion.runs import tracking
from diffusion.strategy import STRATEGIES
from diffusion.utils import outputs


def add_data_options(parser, datasets, required=True, class_list=True):
    """Which dataset; returns the group. class_list: False for a command whose --classes are something else."""
    group = parser.add_argument_group("images")
    group.add_argument("--dataset", required=required, choices=datasets, metavar="NAME", help=f"one of: {', '.join(datasets)}")
    group.add_argument("--split", default="test", help="test, train, or a split of an hf dataset (default: test)")
    group.add_argument(
        "--data_dir",
        help="folder that holds all datasets (default: $DATASET_ROOT, else ./datasets); for `folder` the image folder "
        "itself, one sub-folder per class; for `hf` a hub name or a local copy; for `webdataset` the folder of the splits, or "
        "one .tar; for `csv` the file",
    )
    group.add_argument("--download", action="store_true", help="fetch a missing dataset where torchvision can")
    group.add_argument("--config_name", help="configuration of an hf dataset that has several")
    group.add_argument("--image_column", help="image column of an hf dataset (default: found by type)")
    group.add_argument("--label_column", help="label column of an hf dataset (default: found by type, then by name)")
    group.add_argument("--streaming", action="store_true", help="read only the first --limit images of an hf dataset, and keep "
                       "nothing on disk")  # fmt: skip
    group.add_argument("--limit", type=limit, metavar="N", help="with --streaming: the first N images, or a fraction such as 0.1 "
                       "of them; a stream has no random choice, which --imgs_to_eval makes among these")  # fmt: skip
    if class_list:
        add_class_list(group)
    return group


def add_class_list(group):
    group.add_argument("--classes", metavar="FILE.txt", help="class names, one per line, in the order of the labels; of a set of "
                       "your own in place of its own names")  # fmt: skip


def add_selection_options(group, which="a seeded choice of N images; a larger N adds to it"):
    """Which of the dataset's images; `which` says what --imgs_to_eval takes."""
    group.add_argument("--subset_path", help=".npy file of the indices to evaluate (scripts/write_subset.py)")
    group.add_argument("--imgs_to_eval", type=at_least(1), metavar="N", help=which)


def add_weights_options(parser):
    """Whose weights a text-to-image model has; returns the group."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--version",
        type=name_part,
        default="2-0",
        help="1-1 ... 1-5, 2-0, 2-1, sdxl, sd3-medium, flux-dev, tiny, ... "
        "(docs/models.md), or any with --model_path (default: 2-0)",
    )
    group.add_argument("--model_path", help="local pipeline folder, hub id, single file of weights, or Python file "
                       "(docs/own_model.md) in place of the version's weights")  # fmt: skip
    return group


def add_sd_options(parser):
    group = add_weights_options(parser)
    add_text_to_image_options(group)
    add_network_options(group)


def add_text_to_image_options(group):
    """What a model is made to do that differs from its weights' own."""
    add_error_space(group)
    group.add_argument("--levels", choices=settings.LEVELS, default="own", help="how a flow's noise levels are spread: evenly in "
                       "its time s, shifted to more noise, with normal logits (default: own, of its scheduler)")  # fmt: skip
    group.add_argument("--config", metavar="FOLDER_OR_ID", help="pipeline that gives a single file of weights its configs and "
                       "tokenizers (default: that of --version)")  # fmt: skip
    group.add_argument("--text_encoders", choices=["all", "clip"], default="all", help="clip: without T5, where the model can do "
                       "without (SD 3; default: all)")  # fmt: skip
    group.add_argument("--lora", action="append", metavar="PATH[@SCALE]", help="LoRA file or hub id, fused into the weights; may "
                       "be given several times (docs/models.md)")  # fmt: skip
    group.add_argument("--embedding", action="append", metavar="PATH[@TOKEN]", help="textual inversion, file or hub id, whose "
                       "token prompts may have; may be given several times")  # fmt: skip


def add_level_weights(group):
    group.add_argument("--level_weights", metavar="FILE", help="weights of scripts/fit_weights.py, by which each level's errors "
                       "are multiplied before candidates are compared; records keep them as they are")  # fmt: skip


def add_ablation_options(group):
    """What the paper tried and found to hurt."""
    group.add_argument("--guidance", type=float, default=0.0, metavar="W", help="classifier-free guidance of the prediction, "
                       "(1 + W) of a candidate's less W of the empty one's (the paper's figure 8; default: 0, none)")  # fmt: skip
    group.add_argument("--crop_errors", type=at_least(0), default=0, metavar="N", help="leave N latents at each side out of "
                       "errors (figure 9; default: 0)")  # fmt: skip
    group.add_argument("--noise", default="normal", metavar="KIND", help="normal, zero, expected_norm, truncated:A (the normal "
                       "law on -A..A) or clipped:A (Table 12; default: normal)")  # fmt: skip


def add_shortlist_options(group):
    group.add_argument("--shortlist", metavar="MODEL_OR_RUN", help="only the classes that this ranks first on an image compete "
                       "for it: openclip:ViT-H-14, clip:RN50, ... (scripts/eval_clip.py, whose run is made first where it lacks "
                       "images) or the folder of any earlier run on these images")  # fmt: skip
    group.add_argument("--shortlist_size", type=at_least(2), metavar="N", help="how many (default: 20, or all of fewer)")


def add_resize_options(group, default="bicubic", about="of the resize"):
    """What of a picture a text-to-image model sees."""
    group.add_argument("--img_size", type=at_least(1), help="pixels a side (default: 512, or what a smaller or larger model "
                       "was trained on)")  # fmt: skip
    known = transforms.INTERPOLATIONS
    group.add_argument("--interpolation", default=default, choices=known, help=f"{about} (default: {default})")


def add_error_space(group):
    group.add_argument("--error_space", choices=settings.SPACES, help="in which errors are taken (default: epsilon, and velocity "
                       "for a flow)")  # fmt: skip


def add_network_options(group):
    """How a network runs, whichever it is."""
    group.add_argument("--dtype", default="auto", choices=["auto", *devices.DTYPES],
                       help="of the network; errors stay float32 (default: auto, float16 on CUDA, else float32)")  # fmt: skip
    group.add_argument("--device", help="default: cuda if there is one, else cpu")
    group.add_argument("--batch_size", "-b", type=how_many, metavar="N", help="network inputs per call; auto: as many as fit, "
                       "on a CPU as many as its caches like (default: 32)")  # fmt: skip
    group.add_argument(
        "--compile", action="store_true", help="use torch.compile: up to a minute or more at the start, faster evaluations"
    )


def add_noise_options(group):
    """A grid's noise, which all images share."""
    group.add_argument("--noise_path", help="noise bank (scripts/save_noise.py; default: seeded); all images share it")
    group.add_argument(
        "--randomize_noise",
        action="store_true",
        help="sample i takes row i of --noise_path; without it, as published, its row is its position in a batch of "
        "--batch_size (1 where that is not given: row 0 for all)",
    )


def add_strategy_options(parser, default: str | None = "stages", default_text="stages"):
    """--strategy, and the options of every strategy in the table."""
    group = parser.add_argument_group("strategy")
    each = "; ".join(f"{name}: {cls.about()}" for name, cls in STRATEGIES.items())
    group.add_argument("--strategy", choices=list(STRATEGIES), default=default, help=f"{each} (default: {default_text})")
    added = set()
    for strategy in STRATEGIES.values():
        for field in fields(strategy):
            if field.metadata and field.name not in added:
                _add_option(group, field)
                added.add(field.name)


def _add_option(group, field):
    """An option of one or more strategies, with its owners and their defaults."""
    about = field.metadata
    defaults = {s.NAME: f.default for s in STRATEGIES.values() for f in fields(s) if f.name == field.name}
    each = [name if value in ((), "", None) else f"{name} {value}" for name, value in defaults.items()]
    same = len(set(defaults.values())) == 1 and field.default not in ((), "", None)
    note = f"{', '.join(defaults)}; default: {field.default}" if same else ", ".join(each)
    group.add_argument(
        f"--{field.name}",
        type=about["type"] if about["least"] is None else at_least(about["least"]),
        nargs="+" if about["several"] else None,
        choices=about["choices"],
        metavar=None if about["choices"] else about["metavar"],
        help=f"{about['help']} ({note})",
    )


def add_epoch_options(group, epochs: int, batch_size: int, lr: float, patience: int, about=""):
    """How long a classifier learns, with these defaults. about: what else is to be said of the learning rate"""
    group.add_argument("--epochs", type=at_least(1), default=epochs, help=f"at most so many (default: {epochs})")
    group.add_argument("--batch_size", type=at_least(1), default=batch_size, metavar="N", help="training images per step "
                       f"(default: {batch_size})")  # fmt: skip
    group.add_argument("--lr", type=positive, default=lr, help=f"learning rate of AdamW (default: {lr:g}{about})")
    group.add_argument("--patience", type=at_least(1), default=patience, metavar="EPOCHS", help="it ends after so many without a "
                       f"better accuracy on the validation images (default: {patience})")  # fmt: skip


def add_rate_option(group):
    group.add_argument("--rate", type=positive, metavar="N", help="network evaluations per second, for hours beside prices")


def add_run_options(parser, several=False):
    """several: of a command that can have several images at once in work."""
    group = parser.add_argument_group("run")
    group.add_argument("--options", metavar="FILE.yaml", help="options as lines `name: value`; the command line overrides them "
                       "(docs/own-data-and-models.md)")  # fmt: skip
    if several:
        group.add_argument("--images_in_flight", type=how_many, default="auto", metavar="N", help="images that share network "
                           "calls (default: auto, 1 on a CPU, half of --batch_size and 1 more on a GPU)")  # fmt: skip
    group.add_argument("--extra", type=name_part, help="added to the dataset's name in the run folder")
    group.add_argument("--seed", type=seed, default=0, help="seed of the noise and of a random choice of images (default: 0)")
    group.add_argument("--n_workers", type=at_least(1), help="processes that share the images (default: 1, or what SLURM says)")
    group.add_argument("--worker_idx", type=at_least(0), help="number of this process, from 0 (default: 0, or what SLURM says)")
    group.add_argument("--load_stats", action="store_true", help="count records of earlier runs in the running accuracy")
    group.add_argument("--results", type=outputs.Output(), metavar="FILE.json",
                       help="write accuracy, intervals and cost in the end, in the fields of "
                       "CLIP_benchmark (docs/reports.md)")  # fmt: skip
    group.add_argument(
        "--tracker", choices=tracking.TRACKERS, help="log options, progress and metrics there, where it is installed"
    )
    add_rate_option(group)
    group.add_argument("--dry_run", action="store_true", help="print options, folder and price, also where images or weights are "
                       "missing, and stop; nothing is fetched")  # fmt: skip
