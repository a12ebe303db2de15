"""The paper's tables and figures, and our miniature of its Table 1, as rows that `reproduced` reads and prices."""

from collections.abc import Callable
from pathlib import Path

from diffusion import datasets, settings
from diffusion.baselines.shortlist import USUAL
from diffusion.datasets import counts
from diffusion.datasets.prompts import PromptTable, read_prompts
from diffusion.datasets.registry import Recipe
from diffusion.metrics import robustness
from diffusion.paper import published, reproduction
from diffusion.paper.reproduction import Row, Target, accuracy
from diffusion.runs import run_folder, sharding
from diffusion.strategy import Grid, Race, Stages
from diffusion.utils import paths

N_LEVELS, TINY_LEVELS = 1000, 500  # of Stable Diffusion, and of the shipped tiny-sd
SHARED = "imagenet_10each.npy"  # ImageNet's images of Table 4
SHIFTS = ("imagenet", *robustness.BENCHMARKS)  # columns of Table 4
DEBIANS = Path("/usr/share/datasets/fashion-mnist")  # of its package dataset-fashion-mnist
TINY = ("--version", "tiny", "--dataset", "fashion_mnist")
STEPS, GUIDANCE = 50, 7.5  # of an image that is drawn, the defaults of synthetic_data.py
PER_CLASS = 10_000
PLAIN = settings.Ablation()
EPOCHS = 100  # of a head on features
OF_TABLE_1 = (
    "Mean per class for food, aircraft, pets and flowers. ImageNet: a seeded choice of 2,000 images. The paper does not say "
    "which prompts its CLIP rows had: both are here. Its ObjectNet rows of synthetic data and features learn from ImageNet's "
    "classes, which no command here does."
)
CAPTIONED = "59,000 captioned images"  # what the shipped models learned from


def prompts_of(dataset: str) -> PromptTable:
    """Those that ship."""
    shipped = datasets.DATASETS[dataset].prompts
    assert shipped is not None, dataset
    return read_prompts(paths.PROMPTS / shipped)


def recipe_of(dataset: str) -> Recipe:
    recipe = datasets.DATASETS[dataset].recipe
    assert recipe is not None, dataset
    return recipe


def n_prompts(dataset: str) -> int:
    return len(prompts_of(dataset).prompts)


def n_classes(dataset: str) -> int:
    return len(set(prompts_of(dataset).classidx))


def metric(dataset: str) -> Callable:
    return accuracy("mean_per_class_recall" if dataset in published.MEAN_PER_CLASS else "acc1")


def images_of(dataset: str) -> tuple[int, tuple[str, ...]]:
    """How many the paper's tables have of a data set, and the words that say so."""
    if dataset == "imagenet":
        return published.IMAGENET_IMAGES, ("--imgs_to_eval", str(published.IMAGENET_IMAGES))
    return counts.TEST_IMAGES[dataset], ()


def words(*some) -> tuple[str, ...]:
    return tuple(map(str, some))


# ---------------------------------------------------------------- rows of one command each


def classifier(dataset: str, number=None, method="diffusion classifier", chosen=None, loss=None, version="2-0", ablation=PLAIN,
               read=None, n=None) -> Row:  # fmt: skip
    """By stages. chosen, loss: others than the data set's recipe; read: else by `metric`; n: fewer images than tables have."""
    recipe = recipe_of(dataset)
    chosen, loss = chosen or Stages(recipe.to_keep, recipe.n_samples), loss or recipe.loss
    n_images, few = (n, words("--imgs_to_eval", n)) if n else images_of(dataset)
    trials = words("--n_trials", chosen.n_trials) if chosen.n_trials > 1 else ()
    options = {"--guidance": ablation.guidance, "--crop_errors": ablation.crop_errors, "--noise": ablation.noise}
    tried = [word for name, value in options.items() if value not in (0, "normal") for word in words(name, value)]
    how = ("--to_keep", *chosen.to_keep, "--n_samples", *chosen.n_samples, *trials, "--loss", loss, *tried)
    model = settings.TextToImage(version=version, img_size=512)
    plan = chosen.plan(N_LEVELS)
    return Row(
        method,
        dataset,
        words("eval_prob_adaptive.py", "--dataset", dataset, "--version", version, *how, *few),
        str(run_folder.adaptive_folder(Path(), dataset, None, model, chosen, loss, ablation.name)),
        read or metric(dataset),
        chosen.price(plan, n_prompts(dataset)) + ablation.guided * len(plan.t),
        n_images,
        published=number,
    )


def contrastive(dataset: str, model: str, version: str, number: float, method: str, templates: int) -> Row:
    """templates: of CLIP's list for the data set, 0: the one prompt of the diffusion classifier."""
    n, few = images_of(dataset)
    options = ("--model", model, "--version", version, "--dataset", dataset, *(("--templates", "clip") if templates else ()))
    ending = f"_{templates}templates" if templates else ""
    return Row(method, dataset, words("scripts/eval_clip.py", *options, *few), f"{dataset}/{model}_{version}{ending}",
               metric(dataset), 1, n, published=number)  # fmt: skip


def contrastives(dataset: str, model: str, version: str, number: float, method: str) -> list[Row]:
    """Both readings of a row that the paper gives no prompts of, where they differ."""
    n = len(datasets.clip_templates(dataset))
    several = contrastive(dataset, model, version, number, f"{method}, CLIP's templates", n)
    return [several, contrastive(dataset, model, version, number, f"{method}, one prompt", 0)] if n > 1 else [several]


def features(dataset: str, number: float) -> Row:
    """The paper's: a ResNet-like head that learns from crops."""
    n, few = images_of(dataset)
    train = ("--train_dir", "imagenet_train") if dataset == "imagenet" else ()
    options = ("--dataset", dataset, "--head", "resnet", "--augment", "--epochs", EPOCHS, *train, *few)
    return Row("SD features", dataset, words("scripts/sd_features.py", *options),
               f"{dataset}/features_v2-0_mid_block_t100_512_resnet_augment", metric(dataset), 1, n,
               before=EPOCHS * counts.TRAINING_IMAGES[dataset], published=number)  # fmt: skip


def synthetic(dataset: str, number: float) -> Row:
    n, few = images_of(dataset)
    drawn = PER_CLASS * n_classes(dataset)
    options = ("--dataset", dataset, "--templates", "clip", *few)
    folder = f"{dataset}/drawn_v2-0_{STEPS}steps_{GUIDANCE:g}guidance_512_{PER_CLASS}each_resnet50_224"
    return Row("synthetic data", dataset, words("scripts/synthetic_data.py", *options), folder, metric(dataset), 1, n,
               before=drawn * 2 * STEPS, published=number)  # fmt: skip


def dit(dataset: str, pixels: int, number: float | None, method: str, column: str) -> Row:
    """One grid gives all columns of Table 5. column: of those."""
    chosen, n_classes = Grid(4), len(datasets.labels_of_classes(dataset, 1000))
    options = ("--dataset", dataset, "--image-size", pixels, *shared_images(dataset))
    folder = run_folder.dit_folder(
        Path(), dataset, settings.Data.split, None, "DiT", pixels, f"{n_classes}classes", chosen.folder()
    )
    return Row(method, dataset, words("eval_prob_dit.py", *options), str(folder), reproduction.dit_column(column),
               chosen.price(chosen.plan(N_LEVELS), n_classes), n_shared(dataset), published=number)  # fmt: skip


def shared_images(dataset: str) -> tuple[str, ...]:
    """Options for the images of a set; of ImageNet Table 4 has 10,000."""
    return ("--subset_path", str(paths.log_dir() / SHARED)) if dataset == "imagenet" else ()


def n_shared(dataset: str) -> int:
    return 10_000 if dataset == "imagenet" else counts.TEST_IMAGES[dataset]


def subset() -> Row:
    """Which images of ImageNet; the paper does not say which its 10,000 were."""
    options = ("--dataset", "imagenet", "--per_class", 10, "--out", paths.log_dir() / SHARED)
    return Row("which images", "imagenet", words("scripts/write_subset.py", *options), SHARED, None)


def supervised(dataset: str, network: str, number: float, method: str) -> Row:
    options = ("--model", network, "--dataset", dataset, *shared_images(dataset))
    return Row(method, dataset, words("scripts/eval_supervised.py", *options), f"{dataset}/torchvision_{network}_IMAGENET1K_V1",
               accuracy("acc1"), 1, n_shared(dataset), published=number)  # fmt: skip


def pair_matcher(method: str, options: tuple, folder: str, price: int) -> list[Row]:
    numbers = zip(published.TAGS, published.TABLE_3[method], strict=True)
    n = counts.TEST_IMAGES["winoground"]
    return [Row(method, tag, words("run_winoground.py", *options), f"winoground/{folder}", reproduction.text_score(tag), price, n,
                published=number) for tag, number in numbers]  # fmt: skip


def picture(name: str, *options, folder=False, about="") -> Row:
    """options: script and what it is given. folder: whether it takes a folder for several files."""
    made = f"figures/{name}" if folder else f"figures/{name}.png"
    return Row("picture", name, words(*options, "-o", paths.log_dir() / made), made, None, about=about)


# ---------------------------------------------------------------- tables


def table1() -> Target:
    by_method = {method: dict(zip(published.DATASETS, row, strict=True)) for method, row in published.TABLE_1.items()}
    rows = [classifier(dataset, number) for dataset, number in by_method["diffusion classifier"].items()]
    rows += [synthetic(dataset, number) for dataset, number in by_method["synthetic data"].items() if dataset != "objectnet"]
    rows += [features(dataset, number) for dataset, number in by_method["SD features"].items() if dataset != "objectnet"]
    rows += [no_command(method, "objectnet", by_method[method]["objectnet"]) for method in ("synthetic data", "SD features")]
    for name, model, version in (("CLIP RN50", "clip", "RN50"), ("OpenCLIP ViT-H-14", "openclip", "ViT-H-14")):
        rows += [
            row for dataset, number in by_method[name].items() for row in contrastives(dataset, model, version, number, name)
        ]
    return Target("Zero-shot classification and its baselines", tuple(rows), OF_TABLE_1)


def no_command(method: str, dataset: str, number: float) -> Row:
    return Row(method, dataset, (), "", None, published=number)


def table2() -> Target:
    rows = []
    for dataset, number in published.TABLE_2.items():
        made = f"laion/{dataset}.csv"
        options = (f"laion_{dataset}.csv", "--dataset", dataset, "--csv", paths.log_dir() / made)
        command, n = words("scripts/print_laion.py", *options), counts.TEST_IMAGES[dataset]
        rows += [Row("passes all three filters", dataset, command, made, reproduction.laion_share, n=n, published=number)]
    return Target("Test images that pass LAION's filters", tuple(rows), "From a CSV of each image's scores, which you bring: "
                  "docs/ablations.md says how.")  # fmt: skip


def table3() -> Target:
    rows = pair_matcher("Stable Diffusion 2.0", (), "sd_v2-0_t1_1trials", 4 * N_LEVELS)
    rows += pair_matcher("CLIP ViT-L/14", ("--model", "clip", "--version", "ViT-L/14"), "clip_ViT-L_14", 4)
    rows += pair_matcher("OpenCLIP ViT-H-14", ("--model", "openclip", "--version", "ViT-H-14"), "openclip_ViT-H-14", 4)
    return Target("Winoground, text score", tuple(rows))


def table4() -> Target:
    known = {256: robustness.DIT["DiT-XL/2 256 px"], 512: robustness.DIT["DiT-XL/2 512 px"]}
    rows = [subset()]
    for pixels, numbers in known.items():
        rows += [dit(d, pixels, x, f"DiT-XL/2 {pixels} px", "L2") for d, x in zip(SHIFTS, numbers, strict=True)]
    for name, numbers in robustness.DISCRIMINATIVE.items():
        network = name.lower().replace("resnet-", "resnet").replace("vit-", "vit_").replace("/", "_")
        rows += [supervised(d, network, x, name) for d, x in zip(SHIFTS, numbers, strict=True)]
    return Target("ImageNet and its shifts, class-conditional DiT and supervised networks", tuple(rows))


def table5() -> Target:
    rows = [subset()]
    for (pixels, column), numbers in published.TABLE_5.items():
        rows += [dit(d, pixels, x, f"DiT-XL/2 {pixels} px, {column}", column) for d, x in zip(SHIFTS[:3], numbers, strict=True)]
    return Target("The variational bound in place of l2", tuple(rows), "From the runs of Table 4. The paper's ObjectNet column "
                  "is a misprint: it repeats, and is at odds with Table 4.")  # fmt: skip


def table6() -> Target:
    rows = [classifier(d, x, read=reproduction.evaluations) for d, x in published.TABLE_6.items()]
    return Target("Network evaluations per image", tuple(rows), "From the runs of Table 1. The paper counts stages whose "
                  "timesteps contain those before; its code's do not always.", unit="evaluations")  # fmt: skip


def table7() -> Target:
    rows = []
    for dataset, number in published.TABLE_7.items():
        size = min(USUAL, n_classes(dataset))
        recipe = recipe_of(dataset)
        recipe = recipe.restrict(size) if size < n_classes(dataset) else recipe
        chosen, (n, few) = Stages(recipe.to_keep, recipe.n_samples), images_of(dataset)
        model = settings.TextToImage(img_size=512)
        folder = run_folder.adaptive_folder(Path(), dataset, None, model, chosen, recipe.loss, f"_shortlist{size}_clip_RN50")
        options = ("--dataset", dataset, "--shortlist", "clip:RN50", *few)
        rows += [Row("shortlist of 20 by CLIP RN50", dataset, words("eval_prob_adaptive.py", *options), str(folder),
                     metric(dataset), chosen.price(chosen.plan(N_LEVELS), size), n, published=number)]  # fmt: skip
    return Target("A shortlist by CLIP", tuple(rows), "CIFAR-10 and STL-10 have fewer than 20 classes, so that all compete.")


def table8() -> Target:
    rows = [classifier(dataset, number, f"loss {loss}", loss=loss)
            for dataset, numbers in published.TABLE_8.items()
            for loss, number in zip(("l2", "l1", "huber"), numbers, strict=True)]  # fmt: skip
    return Target("Losses", tuple(rows))


def table9() -> Target:
    rows = [dit(d, pixels, x, f"DiT-XL/2 {pixels} px, l1", "L1")
            for pixels, numbers in published.TABLE_9.items()
            for d, x in zip(SHIFTS, numbers, strict=True)]  # fmt: skip
    return Target("l1 of a DiT", (subset(), *rows), "From the runs of Table 4.")


def table10() -> Target:
    rows = [classifier(dataset, number, f"Stable Diffusion {version.replace('-', '.')}", version=version)
            for dataset, numbers in published.TABLE_10.items()
            for version, number in zip(published.VERSIONS, numbers, strict=True)]  # fmt: skip
    return Target("Versions of Stable Diffusion", tuple(rows))


def table12() -> Target:
    tenth = -(-counts.TEST_IMAGES["pets"] // 10)
    rows = [classifier("pets", number, f"noise {kind}", ablation=settings.Ablation(noise=kind), n=tenth)
            for kind, number in published.TABLE_12.items()]  # fmt: skip
    return Target("Noise, on 10 % of Pets", tuple(rows), "The paper does not say which tenth: here a seeded choice. "
                  "docs/ablations.md has the two readings of `truncated`.")  # fmt: skip


# ---------------------------------------------------------------- figures


def all_errors(n: int | None = None, n_trials: int = 1) -> Row:
    """A run on Pets that keeps every error."""
    chosen = Stages((1,), (N_LEVELS,), n_trials)
    return classifier("pets", method=f"all errors, {n_trials} noises" if n_trials > 1 else "all errors", chosen=chosen, n=n)


def figure2() -> Target:
    run = all_errors(1, 4)
    [image] = sharding.select(counts.TEST_IMAGES["pets"], None, 1, 0)
    drawn = picture("figure2", "scripts/plot_timesteps.py", run.place, "--image", image, folder=True)
    return Target("Errors against timesteps, of one image", (run, drawn))


def figures3_and_4() -> Target:
    run = all_errors()
    drawn = picture("figures3_and_4", "scripts/plot_timesteps.py", run.place, folder=True)
    return Target("Accuracy from single timesteps, and by how they are chosen, on Pets", (run, drawn))


def figure5() -> Target:
    run = pair_matcher("Stable Diffusion 2.0", (), "sd_v2-0_t1_1trials", 4 * N_LEVELS)[-1]
    return Target("Winoground's examples", (run, picture("figure5", "scripts/plot_winoground.py", run.place, "--example", 0)))


def figure6() -> Target:
    runs = [dit(dataset, pixels, robustness.DIT[f"DiT-XL/2 {pixels} px"][SHIFTS.index(dataset)], f"DiT-XL/2 {pixels} px", "L2")
            for dataset in ("imagenet", "imagenetA")
            for pixels in (256, 512)]  # fmt: skip
    places = [run.place for run in runs]
    options = (
        "--benchmark",
        "imagenetA",
        "--in_dist",
        *places[:2],
        "--out_dist",
        *places[2:],
        "--curve",
        "knee",
        "--clopper_pearson",
    )
    return Target("Effective robustness", (subset(), *runs, picture("figure6", "scripts/plot_robustness.py", *options)))


def figure7() -> Target:
    options = ("--dataset", "pets", "--image", 0, "--caption", "a photo of an Abyssinian, a type of pet.", "--under",
               "a photo of a Bengal, a type of pet.", "a photo of a Beagle, a type of pet.")  # fmt: skip
    return Target("Inversion and what comes back", (picture("figure7", "scripts/plot_inversion.py", *options),))


def figure8() -> Target:
    rows = [classifier("pets", method=f"guidance {w}", ablation=settings.Ablation(guidance=w)) for w in (0, 1, 2, 4)]
    return Target(
        "Classifier-free guidance, on Pets", tuple(rows), "The paper draws it and gives no numbers: no guidance is best."
    )


def figure9() -> Target:
    rows = [
        classifier("pets", method=f"border of {n} latents", ablation=settings.Ablation(crop_errors=n)) for n in (0, 1, 2, 4, 8)
    ]
    return Target(
        "Borders left out of the errors, on Pets", tuple(rows), "The paper draws it and gives no numbers: any border hurts."
    )


# ---------------------------------------------------------------- the miniature


def tiny_classifier(chosen, method: str, *options) -> Row:
    model = settings.TextToImage(version="tiny", img_size=64)
    return Row(method, "fashion_mnist", words("eval_prob_adaptive.py", *TINY, *options),
               str(run_folder.adaptive_folder(Path(), "fashion_mnist", None, model, chosen, "l1")), accuracy("acc1"),
               chosen.price(chosen.plan(TINY_LEVELS), n_prompts("fashion_mnist")), counts.TEST_IMAGES["fashion_mnist"],
               about=f"no labels; the model {CAPTIONED}")  # fmt: skip


def tiny_features(method: str, ending: str, n: int, *options) -> Row:
    """n: labelled images."""
    train = ("--train_dir", DEBIANS) if DEBIANS.is_dir() else ()
    return Row(method, "fashion_mnist", words("scripts/sd_features.py", *TINY, *train, *options),
               f"fashion_mnist/features_vtiny_mid_block_t100_64_{ending}", accuracy("acc1"), 1,
               counts.TEST_IMAGES["fashion_mnist"], before=n,
               about=f"{n:,} labelled images; the model {CAPTIONED}")  # fmt: skip


def table1_tiny() -> Target:
    n, per_class, few = counts.TEST_IMAGES["fashion_mnist"], 300, 10_000
    recipe = recipe_of("fashion_mnist")
    draw = ("--per_class", per_class, "--network", "resnet18", "--size", 32, "--batch_size", 64, "--epochs", 40)
    rows = (
        tiny_classifier(Stages(recipe.to_keep, recipe.n_samples), "diffusion classifier, stages"),
        tiny_classifier(Race(), "diffusion classifier, race", "--strategy", "race"),
        Row("synthetic data, ResNet-18", "fashion_mnist", words("scripts/synthetic_data.py", *TINY, *draw),
            f"fashion_mnist/drawn_vtiny_{STEPS}steps_{GUIDANCE:g}guidance_64_{per_class}each_resnet18_32", accuracy("acc1"), 1, n,
            before=10 * per_class * 2 * STEPS, about=f"{10 * per_class:,} drawn images; the model {CAPTIONED}"),
        tiny_features("SD features, ResNet head", f"resnet_{few}images", few, "--train_images", few, "--head", "resnet",
                      "--epochs", 10),
        tiny_features("SD features, linear probe", "linear_flat", counts.TRAINING_IMAGES["fashion_mnist"], "--head", "linear",
                      "--pool", "flat"),
        Row("OpenCLIP tiny", "fashion_mnist", words("scripts/eval_clip.py", "--model", "openclip", *TINY),
            "fashion_mnist/openclip_tiny", accuracy("acc1"), 1, n, about=f"no labels; the model {CAPTIONED}"),
    )  # fmt: skip
    return Target("Table 1 on Fashion-MNIST with the shipped models", rows, "tiny-sd and tiny-clip learned from the same "
                  "captioned pictures; the features' labelled images are the same pictures.")  # fmt: skip


TARGETS: dict[str, Callable[[], Target]] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "table6": table6,
    "table7": table7,
    "table8": table8,
    "table9": table9,
    "table10": table10,
    "table12": table12,
    "figure2": figure2,
    "figure3": figures3_and_4,
    "figure4": figures3_and_4,
    "figure5": figure5,
    "figure6": figure6,
    "figure7": figure7,
    "figure8": figure8,
    "figure9": figure9,
    "table1-tiny": table1_tiny,
}
