"""--guidance, --crop_errors and --noise: the formulas by plain loops and scipy, their cost, and that zero of them is nothing."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_SD20, load_script, with_method
from scipy import stats

import eval_prob_adaptive
import eval_prob_dit
import run_winoground
from diffusion import classify, settings, strategy
from diffusion.analysis import reload, replay, summary, tables
from diffusion.datasets import load_prompts, open_dataset, transforms
from diffusion.kernel import batching, blocks, noise, scores
from diffusion.models.denoiser import Conditions, Denoiser, ddpm, in_space
from diffusion.runs import run_folder
from diffusion.strategy import schedule

W = 0.7
SIZES = (1, 3, 7, 100)  # of a call


@pytest.fixture(scope="module")
def clothes():
    return open_dataset("fashion_mnist", "test", None, "nowhere")


@pytest.fixture(scope="module")
def prompts(clothes):
    return load_prompts("fashion_mnist", clothes, None, None).prompts


@pytest.fixture(scope="module")
def shipped(prompts):
    """The shipped text-to-image model with guidance, by a race."""
    return classify.text_to_image("tiny", prompts, loss="l1", guidance=W, strategy=strategy.Race(max_samples=12))


@pytest.fixture(scope="module")
def problem():
    """x0 [4,8,8], t [5], noise [5,4,8,8]."""
    g = torch.Generator().manual_seed(1)
    return torch.randn(4, 8, 8, generator=g), torch.tensor([3, 999, 500, 0, 500]), torch.randn(5, 4, 8, 8, generator=g)


def by_loop(denoiser, x0, conditions, t, epsilons, weight, convert=None):
    """l2 of the guided prediction of the conditions after the first, one evaluation at a time and in double precision."""
    rows = []
    for row in range(1, len(conditions)):
        for step, epsilon in zip(t, epsilons, strict=True):
            signal, sigma = denoiser.levels.signal[step].double(), denoiser.levels.sigma[step].double()
            x_t = (signal * x0.double() + sigma * epsilon.double()).float()[None]
            with torch.inference_mode():
                e_c, e_0 = (denoiser.predict(x_t, step[None], conditions[[one]])[0].double() for one in (row, 0))
            found, wanted = (1 + weight) * e_c - weight * e_0, epsilon.double()
            if convert:
                found, wanted = convert(found, x_t[0].double(), signal, sigma), convert(wanted, x_t[0].double(), signal, sigma)
            rows.append((found - wanted).square().mean().item())
    return np.array(rows).reshape(len(conditions) - 1, len(t))


# ---------------------------------------------------------------- guidance


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.slow
def test_guidance_is_the_formula(shipped, problem, size):
    """Of a U-Net that shares work and one that does not."""
    conditions = shipped.conditions[[10, 0, 3, 7]]
    expected = by_loop(shipped.denoiser, problem[0], conditions, *problem[1:], W)
    for denoiser in (shipped.denoiser, dataclasses.replace(shipped.denoiser, shared=None)):
        x0, t, epsilons = problem
        found = blocks.errors(denoiser, x0, conditions, t, epsilons, scores.l2, blocks.Batch(size), W)
        assert found.shape == (4, 5)
        np.testing.assert_allclose(found[1:], expected, rtol=2e-5)


def test_the_empty_prompt_is_the_pipelines(shipped):
    same = shipped.denoiser.embed(["", "a photo of a bag."])
    torch.testing.assert_close(shipped.conditions.sequence[10], same.sequence[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("space", ["x0", "velocity"])
def test_guidance_in_another_space_is_that_of_epsilon_converted(shipped, space):
    """Level 700, where no conversion divides by a small number."""
    x0, t = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([700])
    epsilons, conditions = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)), shipped.conditions[[10, 2, 5]]

    def convert(e, x_t, signal, sigma):
        clean = (x_t - sigma * e) / signal
        return clean if space == "x0" else signal * e - sigma * clean

    expected = by_loop(shipped.denoiser, x0, conditions, t, epsilons, W, convert)
    denoiser = in_space(shipped.denoiser, space)
    found = blocks.errors(denoiser, x0, conditions, t, epsilons, scores.l2, blocks.Batch(4), W)
    np.testing.assert_allclose(found[1:], expected, rtol=1e-4)


class Counting:
    """A network that answers ids * x_t, counts evaluations by (id, level), and has memory for so many inputs."""

    def __init__(self, most=1000):
        self.most, self.seen = most, {}
        self.denoiser = Denoiser(None, None, self.predict, ddpm(torch.linspace(0.99, 0.01, 1000)))

    def predict(self, x_t, t, conditions):
        if len(x_t) > self.most:
            raise torch.OutOfMemoryError("no")
        for key in zip(conditions.ids.tolist(), t.tolist(), strict=True):
            self.seen[key] = self.seen.get(key, 0) + 1
        return x_t * conditions.ids.view(-1, 1, 1, 1)


@pytest.mark.parametrize("size", SIZES)
def test_the_empty_condition_is_evaluated_once_a_pair(size):
    network, t = Counting(), torch.tensor([10, 200, 700])
    args = torch.ones(1, 2, 2), Conditions(ids=torch.arange(6)), t, torch.randn(3, 1, 2, 2), scores.l2
    blocks.errors(network.denoiser, *args, blocks.Batch(size), W)
    assert network.seen == {(k, step): 1 for k in range(6) for step in t.tolist()}


@pytest.mark.filterwarnings("ignore:out of memory")
def test_guidance_where_blocks_do_not_fit():
    args = torch.ones(1, 2, 2), Conditions(ids=torch.arange(6)), torch.tensor([10, 200, 700]), torch.randn(3, 1, 2, 2), scores.l2
    expected = blocks.errors(Counting().denoiser, *args, blocks.Batch(32), W)
    for most in (1, 2, 5):
        torch.testing.assert_close(blocks.errors(Counting(most).denoiser, *args, blocks.Batch(32), W), expected)


def asked_of(images, rows, t, epsilons):
    return [batching.Cells(x0, rows, t, epsilons.__getitem__, range(len(rows) * len(t))) for x0 in images]


@pytest.mark.parametrize("size", SIZES)
def test_cells_of_several_images_are_guided_too(shipped, problem, size):
    """In calls that cut pairs, and in questions that are answered in pieces."""
    x0, t, epsilons = problem
    images, rows, batch = (x0, x0.flip(-1)), [10, 4, 6], blocks.Batch(size)
    expected = [
        blocks.errors(shipped.denoiser, one, shipped.conditions[rows], t, epsilons, scores.l2, batch, W) for one in images
    ]
    asked, pieces = asked_of(images, rows, t, epsilons), [[], []]
    for start, stop in ((0, 2), (2, 11), (11, 15)):
        parts = [cells.part(start, stop) for cells in asked]
        found = batching.cell_errors(shipped.denoiser, parts, shipped.conditions, lambda x0: scores.l2, batch, W)
        for piece, values in zip(pieces, found, strict=True):
            piece.append(values)
    for cells, piece, right in zip(asked, pieces, expected, strict=True):
        torch.testing.assert_close(cells.table(piece), right, rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize("most", [1, 2, 5])
def test_cells_are_guided_where_calls_do_not_fit(most):
    t, epsilons, images = torch.tensor([10, 200, 700]), torch.randn(3, 1, 2, 2), torch.ones(2, 1, 2, 2)
    conditions, whole, small = Conditions(ids=torch.arange(6)), Counting(), Counting(most)

    def errors(network):
        asked = asked_of(images, [0, 1, 3, 5], t, epsilons)
        return batching.cell_errors(network.denoiser, asked, conditions, lambda x0: scores.l2, blocks.Batch(32), W)

    for found, right in zip(errors(small), errors(whole), strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("kind", ["race", "stages"])
@pytest.mark.slow
def test_images_in_flight_and_their_cost(shipped, clothes, kind):
    chosen = {"race": strategy.Race(max_samples=12), "stages": strategy.Stages((3, 1), (2, 8))}[kind]
    classifier = with_method(shipped, strategy=chosen)
    images = [(i, clothes.picture(i * 29), 0) for i in range(6)]
    together = {index: call() for index, call, _ in classifier.several(images, 4)}
    for index, picture, _ in images:
        alone = classifier(picture, index)
        assert (alone.label, alone.evaluations) == (together[index].label, together[index].evaluations)
        for row in range(10):
            np.testing.assert_allclose(together[index].errors[row], alone.errors[row], rtol=1e-5)
        counts = [len(errors) for errors in alone.errors.values()]
        assert len(alone.errors) == 10 and alone.evaluations == sum(counts) + max(counts)


def test_a_dits_variance_is_not_guided(clothes):
    """epsilon is guided and the variance the candidate's own: the four numbers of the bound's own function of such an output."""
    classifier = classify.class_conditional("tiny", loss="vlb", guidance=W, strategy=strategy.Stages((1,), (4,)))
    denoiser, x0, t = classifier.denoiser, *classifier._given(clothes.picture(29))
    epsilons = noise.Seeded(0)(0, classifier.plan, x0.shape)
    x_t = denoiser.levels.add_noise(x0, epsilons, t)
    result = classifier(clothes.picture(29))
    assert classifier.conditions.ids.tolist() == [*range(10), 10] and result.terms.shape == (10, 4, 4)
    for c in (0, 7):
        with torch.inference_mode():
            own, null = (denoiser.predict(x_t, t, Conditions(ids=torch.full((4,), k))) for k in (c, 10))
        output = torch.cat([own[:, :4] + W * (own[:, :4] - null[:, :4]), own[:, 4:]], 1)
        expected = denoiser.terms(x0.expand_as(epsilons), x_t, t, epsilons, output)
        torch.testing.assert_close(result.terms[c], expected, rtol=1e-3, atol=1e-7)


# ---------------------------------------------------------------- cropped errors


@pytest.mark.parametrize("crop", [1, 3])
def test_cropped_errors_are_means_of_the_inner_errors(shipped, clothes, crop):
    plain = with_method(shipped, ablation=settings.NO_ABLATION, strategy=strategy.Stages((1,), (4,)), loss="l2")
    x0, t = plain._given(clothes.picture(29))
    args = plain.denoiser, x0, plain.conditions[[2, 4]], t, noise.Seeded(0)(5, plain.plan, x0.shape)
    maps = blocks.errors(*args, scores.error_map, blocks.Batch(32))
    result = with_method(plain, ablation=settings.Ablation(crop_errors=crop))(clothes.picture(29), 5)
    inside = maps[..., crop : 8 - crop, crop : 8 - crop].mean((-1, -2))
    for row, expected in zip((2, 4), inside, strict=True):
        np.testing.assert_allclose(result.errors[row], expected, rtol=1e-5)
    whole = blocks.errors(*args, scores.l2, blocks.Batch(32))
    assert not np.allclose(result.errors[2], whole[0])  # a border that is as hard as the rest would tell nothing


@pytest.mark.parametrize("loss", ["l1", "huber"])
def test_every_loss_is_cropped(loss):
    g = torch.Generator().manual_seed(0)
    target, output = torch.randn(3, 4, 6, 6, generator=g), torch.randn(3, 4, 6, 6, generator=g)
    found = scores.cropped(scores.SCORES[loss], 2)(target, output, target, torch.zeros(3))
    d = (output - target)[..., 2:4, 2:4].double().numpy()
    expected = np.abs(d) if loss == "l1" else np.where(np.abs(d) < 1, d**2 / 2, np.abs(d) - 0.5)
    np.testing.assert_allclose(found, expected.mean((1, 2, 3)), rtol=1e-5)


def test_a_dits_terms_are_cropped(clothes):
    classifier = classify.class_conditional("tiny", loss="kl", crop_errors=2, strategy=strategy.Stages((1,), (3,)))
    denoiser, x0, t = classifier.denoiser, *classifier._given(clothes.picture(29))
    epsilons = noise.Seeded(0)(0, classifier.plan, x0.shape)
    x_t = denoiser.levels.add_noise(x0, epsilons, t)
    with torch.inference_mode():
        output = denoiser.predict(x_t, t, Conditions(ids=torch.full((3,), 6)))
    parts = (x0.expand_as(epsilons), x_t, epsilons, output)
    clean, x_t, epsilons, output = (part[..., 2:6, 2:6] for part in parts)
    found = classifier(clothes.picture(29)).terms[6]
    torch.testing.assert_close(found, denoiser.terms(clean, x_t, t, epsilons, output), rtol=1e-3, atol=1e-7)


# ---------------------------------------------------------------- kinds of noise

PLAN = schedule.make_plan((6,), 1, 1000)
SHAPE = (4, 16, 16)


def drawn(kind):
    """(standard normal rows, the same rows made into this kind), [6,4,16,16] each."""
    source = noise.Seeded(3)
    return source(7, PLAN, SHAPE), noise.shaped(source, settings.NoiseKind.parse(kind))(7, PLAN, SHAPE)


def test_normal_noise_is_the_source_itself():
    source = noise.Seeded(3)
    assert noise.shaped(source, settings.NoiseKind.parse("normal")) is source


def test_zero_noise():
    _, found = drawn("zero")
    assert found.shape == (6, *SHAPE) and (found == 0).all() and found.dtype == torch.float32


@pytest.mark.parametrize("bound", [1, 2.5, 9])
def test_truncated_noise_has_scipys_law_and_keeps_quantiles(bound):
    plain, found = drawn(f"truncated:{bound}")
    assert found.abs().max() <= bound and found.dtype == torch.float32
    assert stats.kstest(found.flatten().numpy(), stats.truncnorm(-bound, bound).cdf).pvalue > 0.01
    expected = stats.truncnorm(-bound, bound).ppf(stats.norm.cdf(plain.double().numpy()))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("bound", [1, 2.5])
def test_clipped_noise(bound):
    plain, found = drawn(f"clipped:{bound}")
    np.testing.assert_array_equal(found, np.clip(plain.numpy(), -bound, bound))


def test_noise_of_expected_norm():
    plain, found = drawn("expected_norm")
    norms = np.linalg.norm(found.flatten(1).double(), axis=1)
    np.testing.assert_allclose(norms, stats.chi(math.prod(SHAPE)).mean(), rtol=1e-6)
    cosines = torch.nn.functional.cosine_similarity(found.flatten(1).double(), plain.flatten(1).double())
    np.testing.assert_allclose(cosines, 1, rtol=1e-6)


@pytest.mark.parametrize("kind", ["zero", "truncated:1", "expected_norm"])
def test_a_part_of_the_pairs_has_the_noise_of_the_whole(kind):
    source = noise.shaped(noise.Seeded(3), settings.NoiseKind.parse(kind))
    torch.testing.assert_close(source(7, PLAN, SHAPE, slice(2, 4)), source(7, PLAN, SHAPE)[2:4], rtol=0, atol=0)


@pytest.mark.parametrize(
    "text", ["truncated", "truncated:", "truncated:0", "truncated:-1", "truncated:inf", "zero:1", "uniform", ""]
)
def test_unknown_kinds(text):
    with pytest.raises(ValueError, match="--noise"):
        settings.Ablation(noise=text)


def test_kinds_are_written_in_one_way():
    assert settings.Ablation(noise="truncated:1.0") == settings.Ablation(noise="truncated:1")
    assert settings.Ablation(0.5, 2, "truncated:2.50").name == "_0.5guidance_2crop_truncated2.5_noise"
    assert settings.NO_ABLATION.name == "" and settings.NO_ABLATION.identity() == {}


# ---------------------------------------------------------------- the commands

SD = ["--dataset", "fashion_mnist", "--model_path", TINY_SD20, "--img_size", 64, "--imgs_to_eval", 3]
STAGES = ["--to_keep", 2, 1, "--n_samples", 2, 5]
ALL = ["--guidance", 1.5, "--crop_errors", 2, "--noise", "truncated:1"]
NAME = "v2-0_1trials_2_1keep_2_5samples_64"


def records_of(folder):
    return {path.name: torch.load(path, weights_only=True) for path in sorted(Path(folder).glob("*.pt"))}


def test_none_of_it_is_the_same_run_bit_for_bit(run_main):
    folder = Path("data/fashion_mnist") / NAME
    assert run_main(eval_prob_adaptive.main, *SD, *STAGES)[0] == 0
    first, config = records_of(folder), run_folder.read_config(folder)
    for path in folder.glob("*.pt"):
        path.unlink()
    none = ["--guidance", 0, "--crop_errors", 0, "--noise", "normal"]
    code, out, err = run_main(eval_prob_adaptive.main, *SD, *STAGES, *none)
    assert code == 0 and [path.name for path in folder.parent.iterdir()] == [NAME], err
    assert "Price: 26 network evaluations" in out
    assert not set(settings.ABLATIONS) & set(config["identity"])
    for name, record in records_of(folder).items():
        assert "evaluations" not in record
        for row, candidate in record["errors"].items():
            assert torch.equal(candidate["pred_errors"], first[name]["errors"][row]["pred_errors"])


@pytest.fixture
def run(run_main):
    """A run with all three options, by stages."""
    code, out, err = run_main(eval_prob_adaptive.main, *SD, *STAGES, *ALL)
    assert code == 0, err
    assert "Price: 31 network evaluations per image" in out  # 10 * 2 + 2 * 3, and 5 of the empty prompt
    assert "Cost: 31 evaluations per image" in out
    return Path("data/fashion_mnist") / f"{NAME}_1.5guidance_2crop_truncated1_noise"


def test_a_run_with_all_three(run, run_main):
    config = run_folder.read_config(run)
    known = {"guidance": 1.5, "crop_errors": 2, "noise_kind": "truncated:1"}
    assert config["identity"].items() >= known.items() and config["options"]["noise"] == "truncated:1"
    assert [record["evaluations"] for record in records_of(run).values()] == [31] * 3
    assert "0 to do here, 3 of 3 done before" in run_main(eval_prob_adaptive.main, *SD, *STAGES, *ALL)[1]  # goes on with it
    read = tables.read_run(run)
    assert [image.evaluations for image in read.images] == summary.evaluations(read) == [31] * 3
    assert [point.evaluations for point in summary.curve(read)] == [22, 31]
    report = load_script("report")
    assert run_main(report.main, run, "-o", "report")[0] == 0
    assert "truncated:1" in next(Path("report").glob("*.html")).read_text()


def test_from_python_it_is_the_same(run, clothes, prompts):
    about = {"guidance": 1.5, "crop_errors": 2, "noise": "truncated:1", "img_size": 64}
    classifier = classify.text_to_image(
        "2-0", prompts, model_path=str(TINY_SD20), strategy=strategy.Stages((2, 1), (2, 5)), **about
    )
    for name, record in records_of(run).items():
        result = classifier(clothes.picture(int(Path(name).stem)), int(Path(name).stem))
        assert result.evaluations == 31
        for row, candidate in record["errors"].items():
            np.testing.assert_allclose(result.errors[row], candidate["pred_errors"], rtol=1e-5)


def test_maps_are_of_the_errors_in_the_record(run_main):
    grid = ["--to_keep", 1, "--n_samples", 4]
    assert run_main(eval_prob_adaptive.main, *SD, *grid, *ALL)[0] == 0
    folder = Path("data/fashion_mnist/v2-0_1trials_1keep_4samples_64_1.5guidance_2crop_truncated1_noise")
    past = reload.Past(folder, run_folder.read_config(folder))
    dataset = reload.open_images(past)
    assert dataset.transform == transforms.sd_transform(64)
    name, record = next(iter(records_of(folder).items()))
    index = int(Path(name).stem)
    maps = reload.error_maps(past, dataset[index][0], reload.candidates_of(past, dataset), [7, 2], index, "cpu")
    assert maps.shape == (2, 8, 8) and (maps[:, :2] == 0).all() and (maps[..., -2:] == 0).all()
    for found, row in zip(maps, (7, 2), strict=True):
        expected = record["errors"][row]["pred_errors"].mean()
        torch.testing.assert_close(found[2:6, 2:6].mean(), expected, rtol=1e-5, atol=0)
    classifier = classify.text_to_image("2-0", reload.candidates_of(past, dataset), model_path=str(TINY_SD20), img_size=64,
                                        strategy=strategy.Stages((1,), (4,)), guidance=1.5, crop_errors=2,
                                        noise="truncated:1")  # fmt: skip
    torch.testing.assert_close(classifier.error_maps(dataset[index][0], [7, 2], index), maps, rtol=1e-5, atol=0)


def test_a_replay_counts_the_empty_prompt(run_main):
    grid = ["--to_keep", 1, "--n_samples", 6, "--guidance", 1]
    assert run_main(eval_prob_adaptive.main, *SD, *grid)[0] == 0
    read = tables.read_run("data/fashion_mnist/v2-0_1trials_1keep_6samples_64_1guidance")
    played = replay.play(tables.grid_of(read), strategy.Stages((2, 1), (2, 6)))
    assert played.evaluations.tolist() == [10 * 2 + 2 * 4 + 6] * 3
    assert run_main(load_script("replay").main, read.folder, "--stages", "2 1 / 2 6")[0] == 0


@pytest.mark.parametrize(
    "how", [["--t_interval", 250], ["--strategy", "race", "--max_samples", 6], ["--t_interval", 250, "--save_errors"]]
)
def test_a_dit_with_all_three(how, tiny_dit, run_main):
    argv = [*tiny_dit, "--image-size", 64, "--dataset", "fashion_mnist", "--imgs_to_eval", 2, *how, *ALL]
    code, out, err = run_main(eval_prob_dit.main, *argv)
    assert code == 0, err
    (folder,) = Path("data/fashion_mnist").iterdir()
    assert folder.name.endswith("_1.5guidance_2crop_truncated1_noise")
    for record in records_of(folder).values():
        counts = [len(c["pred_errors"]) for c in record["errors"].values()] if "errors" in record else [4] * 10
        assert record["evaluations"] == sum(counts) + max(counts) == run_folder.outcome(record).evaluations
    assert ("at most 66 " if "race" in how else "Price: 44 ") in out
    assert "0 to do here, 2 of 2 done before" in run_main(eval_prob_dit.main, *argv)[1]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--guidance", -1], "--guidance -1 must be a number from 0 on"),
        (["--guidance", "nan"], "--guidance nan must be"),
        (["--guidance", "inf"], "--guidance inf must be"),
        (["--guidance", "much"], "--guidance"),
        (["--crop_errors", -1], "--crop_errors"),
        (["--crop_errors", 4], "--crop_errors 4 leaves nothing of a latent of 8 x 8: give 3 or less"),
        (["--noise", "uniform"], "--noise uniform: give one of normal, zero"),
        (["--noise", "truncated"], "--noise truncated: give one of"),
        (["--noise", "zero", "--noise_path", "bank.pt"], "leave one of them out"),
    ],
)
def test_what_means_nothing_is_refused_before_any_work(more, told, tiny_dit, run_main):
    dit = [*tiny_dit, "--image-size", 64, "--dataset", "fashion_mnist", "--imgs_to_eval", 2]
    for main, argv in ((eval_prob_adaptive.main, [*SD, *STAGES]), (eval_prob_dit.main, dit)):
        code, _, err = run_main(main, *argv, *more)
        assert code == 2 and err.count("\n") == 1 and told in err, err
    assert not list(Path().iterdir())


@pytest.mark.parametrize("more", [["--guidance", 1], ["--crop_errors", 1], ["--noise", "zero"]])
def test_what_has_none_of_it_says_so(more, run_main):
    """Files of one class are the published ones; Winoground's models, among them contrastive ones, have no such options."""
    argv = ["--model", "tiny", "--dataset", "fashion_mnist", "--cls", 3, *more]
    code, _, err = run_main(eval_prob_dit.main, *argv)
    assert code == 2 and err.count("\n") == 1 and f"{more[0]} does nothing" in err
    for model in ("sd", "openclip"):
        code, _, err = run_main(run_winoground.main, "--model", model, "--version", "tiny", "--dataset", "tiny_pairs", *more)
        assert code == 2 and err.count("\n") == 1 and more[0] in err


def test_a_model_without_an_empty_condition_is_not_guided():
    with pytest.raises(ValueError, match="--guidance needs a model with an empty condition"):
        classify.with_empty([0, 1], None, settings.Ablation(1.0))
    assert classify.with_empty([0, 1], None, settings.Ablation(0.0, 1)) == [0, 1]
