"""How many images the published sets have, known before their files are there."""

# Images of each test set, as its authors counted them; of sets without an official split all
TEST_IMAGES = {
    "food": 25_250,
    "cifar10": 10_000,
    "aircraft": 3_333,
    "pets": 3_669,
    "flowers": 6_149,
    "stl10": 8_000,
    "imagenet": 50_000,
    "objectnet": 18_574,
    "imagenetv2": 10_000,
    "imagenetA": 7_500,
    "winoground": 400,
    "fashion_mnist": 1_000,  # that ship
    "cifar100": 10_000,
    "mnist": 10_000,
    "caltech101": 8_677,  # without those of its background class
    "eurosat": 27_000,
}
TRAINING_IMAGES = {
    "food": 75_750,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "mnist": 60_000,
    "aircraft": 6_667,
    "pets": 3_680,
    "flowers": 1_020,
    "stl10": 5_000,
    "imagenet": 1_281_167,
    "fashion_mnist": 60_000,
}
FETCHED_FASHION_MNIST = 10_000  # test images of the set that --download fetches


def n_images(dataset: str, split: str) -> int | None:
    """The number of images of a published split; None where it is not known."""
    return {"test": TEST_IMAGES, "train": TRAINING_IMAGES}.get(split, {}).get(dataset)
