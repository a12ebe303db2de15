"""Races that candidates enter: guides against closed forms, trees, the scenes with candidates of their own, whole commands."""

import conftest
import numpy as np
import pytest
from conftest import load_script

from diffusion import classify
from diffusion.datasets import DATASETS, open_dataset, shipped
from diffusion.strategy import STRATEGIES, Grid, Race, race, schedule
from diffusion.strategy.elimination import drive
from diffusion.strategy.open_race import SHIPPED, SurrogateRace, TreeRace
from diffusion.strategy.surrogates import Branch, Entrance, LinearGuide, TreeGuide, clustered, principal, representatives

LEVELS = 1000


def test_a_linear_guide_finds_a_plane():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((60, 4))
    truth = features @ [1, -2, 0.5, 3] + 7
    means, deviations = LinearGuide(features).expect(range(30), truth[:30], np.full(30, 5))
    assert np.abs(means - truth).max() < 0.05 and deviations.max() < 0.05


def test_its_deviation_is_the_error_of_leaving_one_out():
    """Against a plain loop of refits, at the penalty that they like best."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((12, 3)), rng.standard_normal(12)

    def left_out(penalty):
        found = []
        for i in range(12):
            rest = np.arange(12) != i
            design = np.column_stack([x[rest] - x.mean(0), np.ones(11)])
            ridge = np.diag([penalty] * 3 + [0])
            beta = np.linalg.solve(design.T @ design + ridge, design.T @ y[rest])
            found.append(y[i] - np.append(x[i] - x.mean(0), 1) @ beta)
        return np.sqrt(np.mean(np.square(found)))

    unit = (np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2).mean()
    best = min(left_out(penalty * unit) for penalty in LinearGuide.PENALTIES)
    assert LinearGuide(x).expect(range(12), y, np.ones(12))[1][0] == pytest.approx(best, rel=1e-6)


def test_a_tree_guide_asks_the_nearest():
    tree = Branch.of({"height": 4, "parts": [{"height": 1, "parts": [0, 1, 2]}, {"height": 2, "parts": [3, 4]}]})
    guide = TreeGuide(tree.distances([0, 1, 2, 3, 4]))
    means, deviations = guide.expect([0, 3], np.array([0.0, 6.0]), np.array([2, 2]))
    assert means.tolist() == [0, 0, 0, 6, 6]
    assert deviations == pytest.approx(np.array([0, 1, 1, 0, 2]) * 6 / 4)  # 6 apart at a distance of 4
    assert guide.picked([1, 2, 4], [0, 3], 3) == [1, 2, 4]


@pytest.mark.parametrize(
    "saved",
    [
        [],
        {"height": 1},
        {"height": 0, "parts": [1]},
        {"height": 1, "parts": []},
        {"height": "1", "parts": [1]},
        {"height": 1, "parts": [1.5]},
        {"height": 1, "parts": [{"height": 1, "parts": [0]}]},
    ],
)
def test_what_is_no_tree(saved):
    with pytest.raises(ValueError, match="branch"):
        Branch.of(saved)


def test_leaves_that_are_lacking_or_twice():
    with pytest.raises(ValueError, match="twice"):
        Branch.of({"height": 1, "parts": [0, 0]}).distances([0])
    with pytest.raises(ValueError, match="lacks 1 of"):
        Branch.of({"height": 1, "parts": [0, 1]}).distances([0, 7])


def test_representatives_are_one_of_each_cluster():
    points = np.repeat(np.arange(5) * 10.0, 8)[:, None] + np.linspace(0, 1, 40)[:, None]
    found = representatives(np.abs(points - points.T), 5)
    assert sorted(row // 8 for row in found) == [0, 1, 2, 3, 4]
    assert representatives(np.abs(points - points.T), 100) == list(range(40))


def test_clusters_by_their_mean_distances():
    distances = clustered(np.array([[0.0], [1.0], [10.0]]))
    assert distances[0, 1] == 1 and distances[0, 2] == distances[1, 2] == pytest.approx(9.5)


def table(rng, n=300):
    """Errors [n,250] that are linear in features [n,6], with noise, in order of t."""
    features = rng.standard_normal((n, 6))
    means = features @ rng.standard_normal(6)
    return features, (means[:, None] + 0.5 * rng.standard_normal((n, 250)) + 20).astype(np.float32)


@pytest.mark.parametrize("name", ["surrogate", "tree"])
def test_an_open_race_finds_the_winner_for_less(name):
    spent, found, wins = {name: 0, "race": 0}, [], []
    for seed in range(5):
        features, errors = table(np.random.default_rng(seed))
        chosen = STRATEGIES[name]().bind(range(300), lambda features=features: features).restrict(range(300))
        for strategy in (chosen, Race()):
            plan = strategy.plan(LEVELS)
            outcome = drive(strategy.eliminate(list(range(300)), plan), conftest.table(errors)[0])
            spent[strategy.NAME] += sum(map(len, outcome.errors.values()))
            found += [outcome.winner] if strategy is chosen else []
        wins.append(int(errors.mean(1).argmin()))
    assert sum(a == b for a, b in zip(found, wins, strict=True)) >= 4
    assert spent[name] < 0.7 * spent["race"]


def test_with_few_candidates_it_is_a_race():
    """All are representatives: the same errors as a race of the same rounds."""
    features, errors = table(np.random.default_rng(3), 20)
    strategy = SurrogateRace().bind(range(20), lambda: features)
    plan = strategy.plan(LEVELS)

    answer, _ = conftest.table(errors)
    guided = drive(strategy.eliminate(list(range(20)), plan), answer)
    ends = schedule.growing_rounds(250, strategy.min_samples, 1)
    plain = drive(race.run_race(list(range(20)), ends, race.LevelRule(plan.t, ends, 0.2)), answer)
    assert guided.winner == plain[1] and guided.dropped == plain[2]
    assert all((guided.errors[row] == own).all() for row, own in plain[0].items())


def test_who_enters_is_expected_to_be_better():
    guide = LinearGuide(np.arange(6.0)[:, None])
    errors = {0: np.array([5.0, 5]), 1: np.array([4.0, 4]), 2: np.array([3.0, 3])}
    assert Entrance(guide, 2, 0.0)(errors, 2) == [5, 4]
    assert Entrance(guide, 2, 0.0)({4: np.ones(2), 5: np.zeros(2), 3: np.full(2, 2.0)}, 5) == []


# ---------------------------------------------------------------- trees that ship


@pytest.mark.parametrize(("name", "n"), [("imagenet", 1000), ("objectnet", 113)])
def test_the_trees_that_ship(name, n):
    tree = TreeRace(tree=name).read()
    assert sorted(tree.leaves) == list(range(n))


def test_near_classes_of_imagenet_are_near():
    distances = TreeRace(tree="imagenet").read().distances([281, 282, 207, 817])  # tabby, tiger cat, retriever, sports car
    assert distances[0, 1] < distances[0, 2] < distances[0, 3]


def test_a_tree_of_other_classes_is_refused():
    with pytest.raises(ValueError, match="--tree imagenet is of imagenet, imagenetv2, imagenetA, not of food"):
        TreeRace(tree="imagenet").check_run({"dataset": "food"}, 101)
    for name, sets in SHIPPED.items():
        for dataset in sets:
            assert dataset in DATASETS
            TreeRace(tree=name).check_run({"dataset": dataset}, 10)


def test_the_tree_of_a_small_wordnet(tmp_path):
    lines = [
        "  1 a line of the licence",
        "00000001 03 n 01 entity 0 000 | all",
        "00000002 03 n 01 animal 0 001 @ 00000001 n 0000 | moves",
        "00000003 03 n 02 cat 0 true_cat 0 002 #m 00000001 n 0000 @ 00000002 n 0000 | purrs",
        "00000004 03 n 01 dog 0 001 @ 00000002 n 0000 | barks",
        "00000005 03 n 01 car 0 001 @ 00000001 n 0000 | drives",
    ]
    (tmp_path / "data.noun").write_text("\n".join(lines))
    script = load_script("write_tree")
    above = script.hypernyms(tmp_path / "data.noun")
    found = script.tree({0: "00000003", 1: "00000005", 2: "00000004"}, above)
    assert found == {"height": 2, "parts": [{"height": 1, "parts": [0, 2]}, 1]}
    (tmp_path / "data.noun").write_text("x")
    with pytest.raises(ValueError, match="is not WordNet's"):
        script.hypernyms(tmp_path / "data.noun")


# ---------------------------------------------------------------- scenes


def test_fewer_candidates_are_the_beginning_of_more():
    sets = [shipped.Scenes(size) for size in shipped.Scenes.SIZES]
    for i in (0, 57, 199):
        few, *more = (set(one.candidates[i].tolist()) for one in sets)
        assert [len(one.candidates[i]) for one in sets] == [10, 60, 250, 1000]
        assert all(few <= other for other in more) and int(sets[0].targets[i]) in few


def test_hard_candidates_differ_in_one_part():
    scenes = shipped.Scenes("10")
    for target, own in zip(scenes.targets[:20], scenes.candidates, strict=False):
        differing = sorted((shipped.scene_parts()[own] != shipped.scene_parts()[target]).sum(1).tolist())
        assert differing[:6] == [0, 1, 1, 1, 2, 2]


def test_no_picture_is_used_twice_and_none_is_held_out():
    scenes = shipped.Scenes("10")
    numbers = np.array(scenes.numbers).ravel()
    assert len(set(numbers.tolist())) == len(numbers) == 400
    assert not {pair for scene in shipped.SCENES for pair in scene[:2]} & shipped.HELD_OUT


def test_principal_components_keep_distances():
    x = np.random.default_rng(0).standard_normal((30, 5))
    found = principal(x, 48)
    between = [np.linalg.norm(v[:, None] - v[None], axis=2) for v in (x, found)]
    assert between[0] == pytest.approx(between[1])


@pytest.mark.slow
def test_scenes_are_run_and_continued(monkeypatch, tmp_path, capsys):
    """Only candidates of the image are in its record, whoever runs it."""
    import eval_prob_adaptive
    from diffusion.analysis import tables

    monkeypatch.setenv("LOG_DIR", str(tmp_path))
    words = ["--version", "tiny", "--dataset", "tiny_scenes", "--split", "60", "--loss", "l1", "--device", "cpu"]
    assert eval_prob_adaptive.main([*words, "--strategy", "surrogate", "--imgs_to_eval", "2"]) == 0
    assert eval_prob_adaptive.main([*words, "--strategy", "surrogate", "--imgs_to_eval", "3"]) == 0
    assert "2 of 3 done before" in capsys.readouterr().out
    (folder,) = (tmp_path / "tiny_scenes").iterdir()
    run, scenes = tables.read_run(folder), open_dataset("tiny_scenes", "60", None, tmp_path)
    for image in run.images:
        tried = np.flatnonzero(image.counts)
        assert set(tried.tolist()) <= set(scenes.candidates(image.index).tolist()) and len(tried) >= 48
        assert np.isinf(image.means[image.counts == 0]).all()
    with pytest.raises(ValueError, match="did not try all candidates"):
        tables.grid_of(run)


SCENES = [
    "--version",
    "tiny",
    "--dataset",
    "tiny_scenes",
    "--split",
    "60",
    "--loss",
    "l1",
    "--device",
    "cpu",
    "--imgs_to_eval",
    "2",
]
NUMBERS = "6 4 2.5 0.2 3"
OPEN = ["--representatives", "6", "--width", "4", "--max_samples", "8"]


@pytest.mark.slow
def test_a_replay_of_scenes_is_the_run(run_main):
    """Evaluations and prediction of every image, of races that the model's embeddings guide, too."""
    import csv
    from pathlib import Path

    import eval_prob_adaptive
    from diffusion.analysis import reload, replay, tables
    from diffusion.runs import run_folder

    def run(*argv):
        code, out, err = run_main(eval_prob_adaptive.main, *SCENES, *argv)
        assert code == 0, err
        return Path(next(line for line in out.splitlines() if line.startswith("Report:")).split()[-1])

    full = run("--to_keep", "1", "--n_samples", "8")
    settings = {"surrogate": OPEN, "tree": OPEN, "race": ["--max_samples", "8"]}
    real = {name: run("--strategy", name, *more) for name, more in settings.items()}
    words = ["--surrogate", NUMBERS, "--tree", NUMBERS, "--race", "0.2 2 1", "--csv", "table.csv"]
    code, out, err = run_main(load_script("replay").main, full, *words)
    assert code == 0 and "2 images, 60 candidates, 8 pairs each" in out, err
    table = {row["kind"]: row for row in csv.DictReader(Path("table.csv").read_text().splitlines())}
    read = tables.read_run(full)
    grid, embeddings = tables.grid_of(read, uneven=True), reload.embeddings(reload.Past(full, read.config))
    for name, folder in real.items():
        outcomes = run_folder.load_outcomes(run_folder.list_records(folder))
        assert float(table[name]["evaluations"]) == np.mean([o.evaluations for o in outcomes.values()]) < 480
        chosen = STRATEGIES[name].from_text("0.2 2 1" if name == "race" else NUMBERS, grid.plan)
        played = replay.play(grid, chosen.bind(grid.class_of, lambda: embeddings))
        assert [outcomes[image.index].pred for image in read.images] == played.preds.tolist()
        assert [outcomes[image.index].evaluations for image in read.images] == played.evaluations.tolist()
    code, _, err = run_main(load_script("replay").main, real["race"])
    assert code == 2 and "--to_keep 1 --n_samples N" in err
    code, out, err = run_main(load_script("plot_candidates").main, *real.values())
    rows = {line.split()[0]: line.split() for line in out.splitlines()[1:]}
    assert code == 0 and all(rows[name][1] == "60" for name in real), err  # also of those that did not try all
    assert "as the race" in out and out.count("n = 2") == 2


def test_settings_of_an_open_race():
    grid = Grid(t_interval=50, n_trials=2).plan(1000)
    assert SurrogateRace.from_text(NUMBERS, grid) == SurrogateRace(6, 4, 2.5, 0.2, 3, 20, 2)
    assert TreeRace.from_text(f"{NUMBERS} a b.json", grid).tree == "a b.json"
    assert TreeRace.from_text(NUMBERS, grid).tree is None
    for bad in ("2 4 2.5 0.2 3", "6 0 2.5 0.2 3", "6 4 -1 0.2 3", "6 4 2.5 0.2", "6 4 2.5 7 3"):
        for chosen in (SurrogateRace, TreeRace):
            with pytest.raises(ValueError):
                chosen.from_text(bad, grid)


# ---------------------------------------------------------------- told while it goes on

CAPTIONS = shipped.Scenes("60").classes[:600:15]


@pytest.mark.parametrize(
    "more",
    [
        {"strategy": SurrogateRace(representatives=6, width=4, caution=1.0, max_samples=50)},
        {"strategy": TreeRace(representatives=6, width=4, caution=1.0, max_samples=50)},
        {"strategy": Race(max_samples=20), "guidance": 0.5},
    ],
    ids=["surrogate", "tree", "guidance"],
)
@pytest.mark.slow
def test_rounds_tell_what_the_call_found(more):
    """Nobody is told to have fallen before that, and errors are beginnings of those of the call."""
    classifier = classify.text_to_image("tiny", CAPTIONS, loss="l1", device="cpu", **more)
    image, _ = shipped.Scenes("60")[3]
    called = classifier(image, 3)
    *before, last = classifier.rounds(image, 3)
    assert last.result.errors.keys() == called.errors.keys() and last.result.dropped == called.dropped
    assert all((last.result.errors[row] == own).all() for row, own in called.errors.items())
    assert len(before) > 1 and before[-1].result.evaluations <= called.evaluations == last.result.evaluations
    for standing in before:
        assert set(standing.result.dropped.items()) <= set(called.dropped.items())
        assert not set(standing.alive) & set(standing.result.dropped)
        for row, own in standing.result.errors.items():
            assert len(own) and np.array_equal(own, called.errors[row][: len(own)])
