"""`kakurenbo-report`: reading run folders, groups and their comparison."""

import math

import pytest
from report_runs import RunFolder, groups_of, write_sweep

from kakurenbo_lightning.report.main import main
from kakurenbo_lightning.report.tables import comparison, comparison_text, count, notes


def scored(method, seed, score, seconds, **options):
    return RunFolder(method, seed, score=score, changes={"seconds": seconds}, image_size=None, **options)


# ---- groups


def test_runs_that_differ_in_their_seed_only_are_a_group_and_baselines_come_first(tmp_path):
    write_sweep(tmp_path, [RunFolder("kakurenbo", 1), RunFolder("baseline", 0), RunFolder("kakurenbo", 0)])
    groups = groups_of(tmp_path)
    assert [(group.name, [run.seed for run in group.runs]) for group in groups] == [("baseline", [0]), ("kakurenbo", [0, 1])]


def test_a_group_is_named_by_what_differs(tmp_path):
    def config(rate, fraction):
        return {
            "F": fraction,
            "seed": 0,
            "optimizer": {"_target_": "torch.optim.SGD", "lr": rate},
            "logger": {"save_dir": f"outputs/{rate}"},
            "trainer": {"default_root_dir": f"outputs/{rate}", "max_epochs": 6},
            "method": {"max_fraction": fraction},
        }

    runs = [RunFolder("kakurenbo", 0, {"max_fraction": f}, config(rate, f)) for f in (0.2, 0.3) for rate in (0.1, 0.05)]
    write_sweep(tmp_path, [*runs, RunFolder("random", 0, {"max_fraction": 0.3}, config(0.1, 0.3))])
    assert [group.name for group in groups_of(tmp_path)] == [
        "kakurenbo, max_fraction=0.2, lr=0.1",
        "kakurenbo, max_fraction=0.2, lr=0.05",
        "kakurenbo, max_fraction=0.3, lr=0.1",
        "kakurenbo, max_fraction=0.3, lr=0.05",
        "random, max_fraction=0.3, lr=0.1",
    ]


def test_epochs_that_a_static_method_adds_are_no_difference(tmp_path):
    config = {"trainer": {"max_epochs": 6}}
    write_sweep(tmp_path, [RunFolder("baseline", config=config), RunFolder("el2n", config=config, changes={"max_epochs": 7})])
    assert [group.name for group in groups_of(tmp_path)] == ["baseline", "el2n"]


def test_another_data_set_is_named_once_and_has_its_own_baseline(tmp_path):
    digits = {"data": {"_target_": "kakurenbo_recipes.data.Digits", "size": 32, "crop_padding": 4}}
    images = {"data": {"_target_": "kakurenbo_recipes.data.CIFAR10", "size": None, "crop_padding": 2}}
    write_sweep(
        tmp_path, [RunFolder(method, 0, config=config) for config in (digits, images) for method in ("baseline", "random")]
    )
    groups = groups_of(tmp_path)
    pairs = [(group.name, group.baseline.name) for group in groups if group.baseline]
    assert pairs == [("random, data=Digits", "baseline, data=Digits"), ("random, data=CIFAR10", "baseline, data=CIFAR10")]


def test_a_sweep_over_f_leaves_one_baseline_whose_repeats_count_as_one_seed(tmp_path):
    runs = [scored("baseline", 0, score, 20.0, config={"F": f}) for f, score in ((0.2, 0.8), (0.3, 0.9))]
    write_sweep(tmp_path, [*runs, scored("kakurenbo", 0, 0.9, 10.0)])
    groups = groups_of(tmp_path)
    baseline, other = comparison(groups).to_dict("records")
    assert (baseline["group"], baseline["seeds"], baseline["runs"]) == ("baseline", 1, 2)
    assert baseline["score"] == pytest.approx(0.85) and math.isnan(baseline["score_std"])
    assert other["difference"] == pytest.approx(0.05)
    assert comparison_text(groups).rows[0][-1] == "1 (2 runs)"


def test_a_baseline_of_other_length_is_compared_with_when_it_is_the_only_one(tmp_path):
    long, short = {"trainer": {"max_epochs": 6}}, {"trainer": {"max_epochs": 4}}
    write_sweep(tmp_path, [RunFolder("baseline", 0, config=long), RunFolder("random", 0, config=short, epochs=4)])
    assert [(group.name, group.baseline and group.baseline.name) for group in groups_of(tmp_path)] == [
        ("baseline, max_epochs=6", None),
        ("random, max_epochs=4", "baseline, max_epochs=6"),
    ]


def names_of(folder, *runs):
    return [(group.name, len(group.runs)) for group in groups_of(write_sweep(folder, list(runs)))]


def test_other_data_of_the_same_configuration_are_other_groups(tmp_path):
    def data(root, **options):
        config = {"data": {"_target_": "kakurenbo_recipes.data.Folders", "root": root}}
        return RunFolder("baseline", config=config, image_size=None, **options)

    names = names_of(tmp_path / "size", data("a"), data("b", samples=400))
    assert names == [("baseline, num_samples=200", 1), ("baseline, num_samples=400", 1)]
    names = names_of(tmp_path / "names", data("a"), data("b", class_names=("cat", "dog")))
    assert [number for _, number in names] == [1, 1] and names[1][0] == 'baseline, class_names=["cat", "dog"]'
    names = names_of(tmp_path / "content", *(data("a", changes={"fingerprint": text * 32}) for text in "fg"))
    assert names == [(f"baseline, fingerprint={text * 32}", 1) for text in "fg"]


def test_a_run_without_fingerprint_belongs_to_those_that_have_one(tmp_path):
    def data(seed, size, fingerprint, method="baseline"):
        changes = {"fingerprint": fingerprint} if fingerprint else {}
        return RunFolder(method, seed, samples=size, changes=changes, image_size=None)

    runs = [data(0, 100, None), data(1, 100, "f"), data(0, 200, "g"), data(0, 100, "f", "random"), data(1, 200, None)]
    assert names_of(tmp_path, *runs) == [
        ("baseline, num_samples=100", 2),
        ("baseline, num_samples=200", 2),
        ("random, num_samples=100", 1),
    ]


def test_a_setting_that_some_runs_have_separates_them_within_its_configuration_group(tmp_path):
    def optimizer(seed, target="SGD", **settings):
        return RunFolder("random", seed, config={"optimizer": {"_target_": f"torch.optim.{target}", "lr": 0.1, **settings}})

    assert names_of(tmp_path / "clip", optimizer(0), optimizer(1, clip=0.5)) == [("random", 1), ("random, clip=0.5", 1)]
    assert names_of(tmp_path / "null", optimizer(0), optimizer(1, clip=None)) == [("random", 2)]
    names = names_of(tmp_path / "other", optimizer(0), optimizer(1), optimizer(0, "AdamW", eps=1e-8))
    assert names == [("random, optimizer=SGD", 2), ("random, optimizer=AdamW", 1)]


def test_seeds_that_begin_with_weights_of_their_own_are_one_group(tmp_path):
    runs = [RunFolder("random", seed, config={"weights": weights}) for seed, weights in ((0, None), (0, "a.ckpt"), (1, "b.ckpt"))]
    assert names_of(tmp_path, *runs) == [("random", 1), ("random, weights=given", 2)]


# ---- comparison


def told(groups):
    return " ".join(notes(groups)[1:])


@pytest.mark.parametrize("other", [{"machine": {"processor": "another", "device": "cpu"}}, {"world_size": 2}])
def test_seconds_of_another_machine_or_number_of_processes_are_no_saving(tmp_path, other):
    usual = {"seconds": 5.0, "machine": {"processor": "a processor", "device": "cpu"}}
    changed = RunFolder("random", 1, score=0.95, changes=usual | other)
    write_sweep(tmp_path, [RunFolder("baseline", 0, changes=usual | {"seconds": 10.0}), RunFolder("random", 0, changes=usual)])
    changed.write(tmp_path / "2")
    RunFolder("baseline", 1, changes=usual).write(tmp_path / "3")
    groups = groups_of(tmp_path)
    rows = comparison(groups).set_index("group")
    assert rows.loc[groups[-1].name, "difference"] == pytest.approx(0.05 if "world_size" in other else 0.025)
    assert rows.loc[groups[-1].name, "saving"] == pytest.approx(math.nan if "world_size" in other else 0.5, nan_ok=True)
    assert f"or number of processes: {groups[-1].name}." in told(groups)
    assert comparison_text(groups).rows[-1][4] == ("-" if "world_size" in other else "50.0% (1 of 2 seeds)")


def test_a_baseline_of_other_conditions_or_epochs_is_told(tmp_path):
    long, short = {"trainer": {"max_epochs": 6}}, {"trainer": {"max_epochs": 4}}
    write_sweep(tmp_path, [RunFolder("baseline", 0, config=long), RunFolder("random", 0, config=short, epochs=4)])
    said = told(groups_of(tmp_path))
    assert "random, max_epochs=4 (against baseline, max_epochs=6: another max_epochs)." in said
    assert "random, max_epochs=4 (4, its baseline 6)." in said


def test_means_of_some_seeds_only_say_so(tmp_path):
    runs = [scored("baseline", 0, 0.90, 20.0), *(scored("kakurenbo", seed, 0.89, 10.0) for seed in range(3))]
    runs += [scored("random", seed, score, 10.0) for seed, score in ((0, 0.9), (1, None), (2, None))]
    for run in runs:
        run.changes["metric"] = "val/accuracy"
    groups = groups_of(write_sweep(tmp_path, runs))
    baseline, fewer, lacking = comparison_text(groups).rows
    assert baseline[1:3] == ["90.00", "-"] and fewer[1:3] == ["89.00 ± 0.00", "-1.00 (1 of 3 seeds)"]
    assert lacking[1:3] == ["90.00 (1 of 3 seeds)", "+0.00 (1 of 3 seeds)"] and lacking[-1] == "3"
    assert comparison(groups)[["seeds", "pairs", "scored"]].to_numpy().tolist() == [[1, 0, 1], [3, 1, 3], [3, 1, 1]]
    assert "kakurenbo (3 seeds, 3 with a score, 1 with a difference); random (3 seeds, 1 with" in told(groups)


def test_means_differences_and_savings_are_those_computed_by_hand(tmp_path):
    runs = [scored("baseline", 0, 0.90, 20.0), scored("baseline", 1, 0.92, 40.0), scored("kakurenbo", 0, 0.91, 15.0)]
    write_sweep(tmp_path, [*runs, scored("kakurenbo", 1, 0.92, 20.0), scored("kakurenbo", 2, 0.96, 10.0)])
    baseline, other = comparison(groups_of(tmp_path)).to_dict("records")
    assert baseline["score"] == pytest.approx(0.91) and baseline["score_std"] == pytest.approx(math.sqrt(2e-4))
    assert other["score"] == pytest.approx(0.93) and other["score_std"] == pytest.approx(math.sqrt(7e-4))
    assert other["difference"] == pytest.approx(0.005) and other["difference_std"] == pytest.approx(math.sqrt(0.5e-4))
    assert other["seconds"] == pytest.approx(15.0) and other["seconds_std"] == pytest.approx(5.0)
    assert other["saving"] == pytest.approx((0.25 + 0.5) / 2)
    assert (baseline["seeds"], other["seeds"], other["runs"]) == (2, 3, 3)


def test_forwards_backwards_and_hidden_share_are_counted_over_the_run(tmp_path):
    totals = {
        "samples_trained": 600,
        "samples_hidden": 300,
        "samples_refreshed": 250,
        "samples_scored": 40,
        "samples_rejected": 100,
    }
    RunFolder(changes={"totals": totals}).write(tmp_path)
    (row,) = comparison(groups_of(tmp_path)).to_dict("records")
    assert [row[name] for name in ("samples_trained", "forwards", "backwards", "hidden_share")] == [600, 890, 600, 0.4]


def test_the_table_says_mean_and_deviation_in_percent_and_points(tmp_path):
    runs = [scored("baseline", 0, 0.90, 20.0), scored("baseline", 1, 0.92, 40.0), scored("kakurenbo", 0, 0.91, 15.0)]
    write_sweep(tmp_path, [*runs, scored("kakurenbo", 1, 0.92, 20.0)])
    table = comparison_text(groups_of(tmp_path))
    assert table.headings[1:3] == ["accuracy (%)", "difference (points)"]
    assert table.rows[1][:5] == ["kakurenbo", "91.50 ± 0.71", "+0.50 ± 0.71", "17.5 ± 3.5", "37.5%"]


def test_one_seed_has_no_deviation_and_other_seeds_no_pair(tmp_path, capsys):
    write_sweep(tmp_path, [scored("baseline", 0, 0.9, 20.0), scored("kakurenbo", 1, 0.91, 15.0)])
    assert comparison_text(groups_of(tmp_path)).rows[1][1:5] == ["91.00", "-", "15.0", "-"]
    main([str(tmp_path), "--format", "terminal"])
    assert "No baseline with the same data, network and seeds for kakurenbo." in " ".join(capsys.readouterr().out.split())


def test_without_a_baseline_the_table_says_to_add_one(tmp_path, capsys):
    RunFolder("kakurenbo").write(tmp_path)
    main([str(tmp_path), "--format", "terminal"])
    assert "add method=baseline" in capsys.readouterr().out


def test_a_metric_that_is_no_share_is_shown_as_it_is(tmp_path):
    write_sweep(tmp_path, [RunFolder("baseline", 0, score=3.25, changes={"metric": "val/perplexity"})])
    table = comparison_text(groups_of(tmp_path))
    assert table.headings[1] == "perplexity" and table.rows[0][1] == "3.25"


@pytest.mark.parametrize(
    "name", ["accuracy", "acc_top1", "MulticlassAccuracy", "mIoU", "f1", "F1Score", "recall", "auroc", "top5"]
)
def test_metrics_that_are_shares_by_their_name_are_shown_in_percent(tmp_path, name):
    RunFolder("baseline", score=0.5, changes={"metric": f"val/{name}"}).write(tmp_path)
    assert comparison_text(groups_of(tmp_path)).rows[0][1] == "50.00"


@pytest.mark.parametrize("name", ["mae", "loss", "accuracy_loss", "stopped", "previous", "perplexity"])
def test_a_metric_of_another_name_is_no_share_however_small(tmp_path, name):
    RunFolder("baseline", score=0.5, changes={"metric": f"val/{name}"}).write(tmp_path)
    assert comparison_text(groups_of(tmp_path)).rows[0][1] == "0.50"


def test_runs_without_validation_are_compared_by_their_seconds(tmp_path):
    write_sweep(tmp_path, [scored("baseline", None, None, 20.0), scored("random", None, None, 10.0)])
    assert comparison_text(groups_of(tmp_path)).rows[1][:5] == ["random, max_fraction=0.3"[:6], "-", "-", "10.0", "50.0%"]


@pytest.mark.parametrize(
    ("number", "text"), [(9876, "9,876"), (12_345, "12.3k"), (123_456, "123k"), (999_999, "1.00M"), (43.2e6, "43.2M")]
)
def test_numbers_of_samples_are_short(number, text):
    assert count(number) == text
