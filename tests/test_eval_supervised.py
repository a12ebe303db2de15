"""scripts/eval_supervised.py on random weights of torchvision's and timm's networks: outputs, preprocessing, refusals."""

import json
from pathlib import Path

import layouts
import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import load_script
from PIL import Image
from safetensors.torch import save_file

from diffusion.baselines import supervised
from diffusion.runs import run_folder
from diffusion.utils.distributed import team

SMALL = "shufflenet_v2_x0_5"  # torchvision's smallest
VIT = "timm:test_vit"
RESIZE = torchvision.transforms.Resize(256)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network_of(model, n_outputs=1000):
    torch.manual_seed(0)
    if model == VIT:
        return timm.create_model("test_vit", num_classes=n_outputs).eval()
    return torchvision.models.get_model(model, num_classes=n_outputs).eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Model -> file of its random weights."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"state_dict": {f"module.{k}": v for k, v in network_of(SMALL).state_dict().items()}}, folder / "small.pth")
    save_file(network_of(VIT).state_dict(), folder / "vit.safetensors")
    save_file(network_of(VIT, 10).state_dict(), folder / "ten.safetensors")
    save_file(network_of(VIT, 113).state_dict(), folder / "objects.safetensors")
    return {SMALL: folder / "small.pth", VIT: folder / "vit.safetensors", 10: folder / "ten.safetensors",
            113: folder / "objects.safetensors"}  # fmt: skip


@pytest.fixture
def run(run_main):
    return lambda *argv: run_main(load_script("eval_supervised").main, *argv)


def scores_of(record):
    """Label -> score, with the class names' order left to config.json."""
    return np.array([-float(row["pred_errors"][0]) for row in record["errors"].values()])


def read(folder):
    config = json.loads((folder / "config.json").read_text())
    return config, [run_folder.load_record(path) for path in run_folder.list_records(folder).values()]


def by_hand(model, picture):
    """Logits [1000] of a picture by torchvision's documented steps, or by timm's own functions."""
    network, image = network_of(model), picture.convert("RGB")
    if model == VIT:
        recipe = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
    else:
        to_tensor = torchvision.transforms.functional.to_tensor
        recipe = lambda i: (to_tensor(torchvision.transforms.functional.center_crop(RESIZE(i), 224))  # noqa: E731
                            - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]  # fmt: skip
    with torch.inference_mode():
        return network(recipe(image)[None])[0].numpy()


# ---------------------------------------------------------------- which outputs count


@pytest.mark.parametrize("model", [SMALL, VIT])
def test_imagenet_has_all_outputs(model, weights, run, run_main):
    layouts.imagenet(Path("datasets"))
    code, out, err = run("--network", model, "--weights", weights[model], "--dataset", "imagenet", "--results", "r.json")
    assert code == 0 and "1,000, of 1,000 of the network's 1,000 outputs" in out and "Top-5 accuracy: " in out, err
    [folder] = Path("data/imagenet").iterdir()
    config, records = read(folder)
    assert [record["label"] for record in records] == [0, 1, 2]  # tench, goldfish, great white shark
    logits = by_hand(model, Image.open(next(Path("datasets").rglob("*.JPEG"))))  # all three are one picture
    for record in records:
        np.testing.assert_allclose(scores_of(record), logits, atol=1e-4)
        assert record["pred"] == logits.argmax() and record["evaluations"] == 1
    assert config["command"] == "eval_supervised" and config["candidates"]["names"][1] == "goldfish"
    found = json.loads(Path("r.json").read_text())
    assert (found["task"], found["model"], found["n"]) == ("supervised_classification", model, 3)
    code, out, err = run_main(load_script("report").main, folder, "--format", "md", "-o", "report")
    assert code == 0, err


def test_imagenetv2_has_number_folders(weights, run):
    layouts.imagenet_v2(Path("datasets"))
    assert run("--network", VIT, "--weights", weights[VIT], "--dataset", "imagenetv2")[0] == 0
    _, records = read(Path("data/imagenetv2/timm_test_vit_vit"))
    assert [record["label"] for record in records] == [0, 1, 10, 2, 999]  # folders by name
    for record in records:
        name = record["label"]
        logits = by_hand(VIT, Image.open(f"datasets/ImageNetV2-matched-frequency/{name}/img.jpeg"))
        np.testing.assert_allclose(scores_of(record), logits, atol=1e-4)


# ImageNet-A's first classes as its authors list them: stingray, goldfinch, junco ... golden retriever
HARD = [6, 11, 13, 15, 17, 22, 23, 27, 30, 37, 39, 42, 47, 50, 57, 70, 71, 76, 79, 89, 90, 94, 96, 97, 99, 105, 107, 108, 110,
        113, 124, 125, 130, 132, 143, 144, 150, 151, 207]  # fmt: skip


def test_imagenet_a_has_the_best_of_its_200(weights, run):
    layouts.imagenet_a(Path("datasets"))
    code, out, err = run("--network", SMALL, "--weights", weights[SMALL], "--dataset", "imagenetA")
    assert code == 0 and "200, of 200 of the network's 1,000 outputs" in out, err
    config, records = read(Path(f"data/imagenetA/torchvision_{SMALL}_small"))
    labels = config["candidates"]["labels"]
    assert len(labels) == 200 and labels[: len(HARD)] == HARD and labels[-3:] == [986, 987, 988]
    for record, name in zip(records, ("n01498041", "n12267677"), strict=True):
        logits = by_hand(SMALL, Image.open(f"datasets/imagenet-a/{name}/0.0_picture.jpg"))
        np.testing.assert_allclose(scores_of(record), logits[labels], atol=1e-4)
        assert record["pred"] == labels[logits[labels].argmax()]
    assert [record["label"] for record in records] == [6, 988]


# ObjectNet's label and name -> ImageNet's numbers, by their published names: analog and digital clock; banana; tandem and
# mountain bike; barber, folding and rocking chair; bow and Windsor tie; wok
OBJECTS = {(0, "alarm_clock"): [409, 530], (2, "banana"): [954], (7, "bicycle"): [444, 671], (17, "chair"): [423, 559, 765],
           (94, "tie"): [457, 906], (112, "wok"): [909]}  # fmt: skip


def test_objectnet_s_classes_have_the_best_of_several_outputs(weights, run):
    layouts.objectnet(Path("datasets"))
    code, out, err = run("--network", VIT, "--weights", weights[VIT], "--dataset", "objectnet")
    assert code == 0 and "113, of 125 of the network's 1,000 outputs" in out, err
    config, records = read(Path("data/objectnet/timm_test_vit_vit"))
    places = ("alarm_clock/a", "banana/a", "banana/b", "wok/a")
    assert config["candidates"]["labels"] == list(range(113)) and [r["label"] for r in records] == [0, 2, 2, 112]
    for record, place in zip(records, places, strict=True):
        picture = Image.open(f"datasets/objectnet-1.0/images/{place}.png").convert("RGB")
        logits = by_hand(VIT, picture.crop((2, 2, picture.width - 2, picture.height - 2)))  # the red border
        for (label, name), several in OBJECTS.items():
            assert scores_of(record)[label] == pytest.approx(logits[several].max(), abs=1e-4)
            assert config["candidates"]["names"][label] == name
        assert record["pred"] == scores_of(record).argmax()


def test_a_network_of_the_set_s_own_classes(weights, run):
    """Its outputs are the labels; so too where ImageNet's could be taken."""
    layouts.objectnet(Path("datasets"))
    assert run("--network", VIT, "--weights", weights[113], "--dataset", "objectnet")[0] == 0
    code, out, err = run("--network", VIT, "--weights", weights[10], "--dataset", "fashion_mnist", "--imgs_to_eval", 3)
    assert code == 0 and "10, of 10 of the network's 10 outputs" in out, err
    code, out, err = run("--network", VIT, "--weights", weights[10], "--dataset", "fashion_mnist", "--imgs_to_eval", 5)
    assert code == 0 and "2 to do here, 3 of 5 done before" in out, err
    _, records = read(Path("data/fashion_mnist/timm_test_vit_ten"))
    assert len(records) == 5 and all(len(record["errors"]) == 10 for record in records)


# ---------------------------------------------------------------- weights of the libraries


def test_the_paper_s_weights_are_the_default():
    for model in ("resnet18", "resnet34", "resnet50", "resnet101", "vit_l_32", "vit_l_16", "vit_b_16"):  # of its Table 4
        assert supervised.find(model).describe() == f"torchvision {model} IMAGENET1K_V1"
    assert supervised.find("resnet50", "IMAGENET1K_V2").tag == "IMAGENET1K_V2"
    assert supervised.find("timm:resnet50").describe() == "timm resnet50 a1_in1k"
    assert supervised.find("timm:resnet50.tv_in1k").tag == "tv_in1k"


@pytest.mark.parametrize(
    ("model", "weights", "theirs"),
    [
        ("vit_l_16", None, torchvision.models.ViT_L_16_Weights.IMAGENET1K_V1.transforms()),
        ("resnet50", "IMAGENET1K_V2", torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()),
        ("timm:resnet50.tv_in1k", None, "resnet50.tv_in1k"),
        ("timm:test_vit", None, "test_vit"),
    ],
)
def test_preprocessing_is_the_library_s(model, weights, theirs):
    if isinstance(theirs, str):
        config = timm.data.resolve_data_config(model=timm.create_model(theirs))
        theirs = timm.data.create_transform(**config, is_training=False)
    picture, network = layouts.picture(1, size=(300, 280)), supervised.find(model, weights)
    assert torch.equal(network.preprocess(picture), theirs(picture))
    assert torch.equal(network.preprocess(picture.convert("P")), theirs(picture.convert("P").convert("RGB")))


def test_published_weights_are_taken_from_the_cache(run, monkeypatch, tmp_path):
    """Random ones under the published name, where torchvision looks before it downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = torchvision.models.get_model_weights(SMALL)["IMAGENET1K_V1"]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(network_of(SMALL).state_dict(), tmp_path / "hub" / "checkpoints" / Path(published.url).name)
    layouts.imagenet(Path("datasets"))
    code, _, err = run("--network", SMALL, "--dataset", "imagenet")
    assert code == 0, err
    config, records = read(Path(f"data/imagenet/torchvision_{SMALL}_IMAGENET1K_V1"))
    assert config["identity"]["weights"] == f"torchvision {SMALL} IMAGENET1K_V1"
    logits = by_hand(SMALL, Image.open(next(Path("datasets").rglob("*.JPEG"))))
    np.testing.assert_allclose(scores_of(records[0]), logits, atol=1e-4)


@pytest.mark.parametrize("model", [SMALL, VIT])
def test_weights_that_cannot_be_fetched(model, run, monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    layouts.imagenet(Path("datasets"))
    code, _, err = run("--network", model, "--dataset", "imagenet")
    assert code == 2 and err.count("\n") == 1 and "cannot be fetched" in err and "--weights" in err, err
    assert not Path("data").exists() and team().leads


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--network", "resnet5"], ["--network resnet5 is none of torchvision's", "resnet50"]),
        (["--network", "timm:resnet5x"], ["--network timm:resnet5x is none of timm's", "timm:resnet50"]),
        (["--network", "timm:resnet50.nonsense"], ["nonsense is no tag of resnet50", "a1_in1k"]),
        (["--network", "resnet50", "--weights", "V3"], ["--weights V3", "IMAGENET1K_V2"]),
        (["--network", "vit_h_14"], ["--network vit_h_14 has no IMAGENET1K_V1", "IMAGENET1K_SWAG_E2E_V1"]),
        (["--network", "timm:resnet50", "--weights", "a1_in1k"], ["timm:resnet50.TAG"]),
        (["--network", "timm:test_vit4"], ["timm publishes no weights", "--weights"]),
        (["--network", "resnet18", "--weights", "none.pth"], ["--weights none.pth: there is no such file"]),
        (["--network", "resnet18", "--weights", "text.pth"], ["--weights text.pth cannot be read"]),
        (["--network", "resnet18", "--weights", "list.pth"], ["--weights list.pth"]),
        (["--network", "resnet18", "--weights", "SMALL"], ["unknown to torchvision's resnet18"]),
        (["--network", "timm:test_vit", "--weights", "lacking.pth"], ["lacks 'cls_token'"]),
        (["--network", "timm:test_vit", "--weights", "shape.pth"], ["has 'norm.weight' of [7]"]),
        (["--network", "timm:test_vit", "--weights", "TEN"], ["--dataset imagenet has 1,000 classes", "10 outputs"]),
        (["--network", "timm:test_vit", "--weights", "nan.pth"], ["'head.bias' holds numbers that are not finite"]),
    ],
)
def test_bad_input(argv, told, weights, run):
    state = network_of(VIT).state_dict()
    Path("text.pth").write_text("no weights")
    torch.save([1, 2], "list.pth")
    torch.save({k: v for k, v in state.items() if k != "cls_token"}, "lacking.pth")
    torch.save(state | {"norm.weight": torch.zeros(7)}, "shape.pth")
    torch.save(state | {"head.bias": state["head.bias"] * torch.nan}, "nan.pth")
    layouts.imagenet(Path("datasets"))
    words = [{"SMALL": weights[SMALL], "TEN": weights[10]}.get(word, word) for word in argv]
    code, _, err = run("--dataset", "imagenet", *words)
    assert (code, err.count("\n")) == (2, 1) and all(part in err for part in told), err
    assert not Path("data").exists()


def test_imagenet_s_networks_are_refused_for_other_classes(weights, run):
    code, _, err = run("--network", SMALL, "--weights", weights[SMALL], "--dataset", "fashion_mnist")
    assert code == 2 and err.count("\n") == 1 and "has 10 classes" in err and "1,000 outputs" in err, err
