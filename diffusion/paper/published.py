"""The paper's numbers that runs are held against, in percent unless it says otherwise: Li et al., "Your Diffusion Model is
Secretly a Zero-Shot Classifier" (ICCV 2023, arXiv 2303.16203). Those of Table 4 and figure 6 are in `analysis.robustness`.
"""

IMAGENET_IMAGES = 2_000  # of Table 1
MEAN_PER_CLASS = ("food", "aircraft", "pets", "flowers")  # sets whose accuracy is the mean over classes

DATASETS = ("food", "cifar10", "aircraft", "pets", "flowers", "stl10", "imagenet", "objectnet")
TABLE_1 = {  # method -> by DATASETS
    "diffusion classifier": (77.7, 88.5, 26.4, 87.3, 66.3, 95.4, 61.4, 43.4),
    "synthetic data": (12.6, 35.3, 9.4, 31.3, 22.1, 38.0, 18.9, 5.2),
    "SD features": (73.0, 84.0, 35.2, 75.9, 70.0, 87.2, 56.6, 10.2),
    "CLIP RN50": (81.1, 75.6, 19.3, 85.4, 65.9, 94.3, 58.2, 40.0),
    "OpenCLIP ViT-H-14": (92.7, 97.3, 42.3, 94.6, 79.9, 98.3, 76.8, 69.2),
}
TABLE_2 = dict(zip(DATASETS, (56.3, 0.0, 94.4, 0.9, 0.0, 0.0, 3.4, 20.2), strict=True))  # of test images pass LAION's filters
TABLE_3 = {  # text score by TAGS
    "Stable Diffusion 2.0": (46.1, 29.2, 80.8, 38.5),
    "CLIP ViT-L/14": (27.0, 25.8, 57.7, 28.2),
    "OpenCLIP ViT-H-14": (39.0, 26.6, 57.7, 33.0),
}
TAGS = ("Object", "Relation", "Both", "Overall")
TABLE_5 = {  # (pixels, column of print_dit_acc.py) -> ImageNet, V2, A
    (256, "VLB"): (71.6, 57.7, 17.9),
    (256, "L2+VLB"): (77.5, 64.6, 20.0),
    (512, "VLB"): (74.0, 59.1, 24.9),
    (512, "L2+VLB"): (79.0, 66.6, 30.2),
}
TABLE_6 = dict(zip(DATASETS, (5120, 2750, 5100, 1890, 5140, 3000, 100_000, 13_400), strict=True))  # network evaluations per image
TABLE_7 = dict(zip(DATASETS[:-1], (78.7, 88.5, 26.8, 86.4, 67.0, 95.4, 62.6), strict=True))  # 20 classes that CLIP RN50 proposes
TABLE_8 = {  # data set -> l2, l1, huber
    "food": (77.7, 73.8, 77.7),
    "cifar10": (84.4, 88.4, 84.6),
    "pets": (86.3, 87.3, 86.6),
    "flowers": (62.2, 66.3, 62.6),
    "imagenet": (61.4, 59.6, 60.9),
}
TABLE_9 = {256: (74.9, 60.5, 9.7, 24.7), 512: (75.6, 62.1, 13.2, 26.2)}  # l1 of a DiT: ImageNet, V2, A, ObjectNet
VERSIONS = ("1-1", "1-2", "1-3", "1-4", "1-5", "2-0", "2-1")
TABLE_10 = {  # by VERSIONS
    "food": (60.3, 75.7, 77.5, 77.8, 78.4, 77.7, 77.9),
    "imagenet": (51.7, 57.3, 59.7, 59.2, 59.6, 61.4, 58.4),
}
TABLE_12 = {"zero": 41.3, "truncated:1": 49.9, "truncated:2.5": 81.5, "expected_norm": 86.9, "normal": 87.5}  # on 10 % of Pets
