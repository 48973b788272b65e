"""Groups of runs that differ in their seed only, their names and baselines."""

from report_runs import RunFolder, groups_of, write_sweep


def named(folder, *runs):
    """Name and number of runs of each group."""
    return [(group.name, len(group.runs)) for group in groups_of(write_sweep(folder, list(runs)))]


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
    assert named(tmp_path, *runs, RunFolder("random", 0, {"max_fraction": 0.3}, config(0.1, 0.3))) == [
        ("kakurenbo, max_fraction=0.2, lr=0.1", 1),
        ("kakurenbo, max_fraction=0.2, lr=0.05", 1),
        ("kakurenbo, max_fraction=0.3, lr=0.1", 1),
        ("kakurenbo, max_fraction=0.3, lr=0.05", 1),
        ("random, max_fraction=0.3, lr=0.1", 1),
    ]


def test_epochs_that_a_static_method_adds_are_no_difference(tmp_path):
    config = {"trainer": {"max_epochs": 6}}
    runs = [RunFolder("baseline", config=config), RunFolder("el2n", config=config, changes={"max_epochs": 7})]
    assert named(tmp_path, *runs) == [("baseline", 1), ("el2n", 1)]


def test_another_data_set_is_named_once_and_has_its_own_baseline(tmp_path):
    digits = {"data": {"_target_": "kakurenbo_recipes.data.Digits", "size": 32, "crop_padding": 4}}
    images = {"data": {"_target_": "kakurenbo_recipes.data.CIFAR10", "size": None, "crop_padding": 2}}
    write_sweep(
        tmp_path, [RunFolder(method, 0, config=config) for config in (digits, images) for method in ("baseline", "random")]
    )
    pairs = [(group.name, group.baseline.name) for group in groups_of(tmp_path) if group.baseline]
    assert pairs == [("random, data=Digits", "baseline, data=Digits"), ("random, data=CIFAR10", "baseline, data=CIFAR10")]


def test_a_baseline_of_other_length_is_compared_with_when_it_is_the_only_one(tmp_path):
    long, short = {"trainer": {"max_epochs": 6}}, {"trainer": {"max_epochs": 4}}
    write_sweep(tmp_path, [RunFolder("baseline", 0, config=long), RunFolder("random", 0, config=short, epochs=4)])
    assert [(group.name, group.baseline and group.baseline.name) for group in groups_of(tmp_path)] == [
        ("baseline, max_epochs=6", None),
        ("random, max_epochs=4", "baseline, max_epochs=6"),
    ]


def test_a_finished_group_has_no_baseline_that_goes_on(tmp_path):
    write_sweep(tmp_path, [RunFolder("baseline", changes={"status": "running"}), RunFolder("random")])
    assert [group.baseline for group in groups_of(tmp_path)] == [None, None]


def test_other_data_of_the_same_configuration_are_other_groups(tmp_path):
    def data(root, **options):
        config = {"data": {"_target_": "kakurenbo_recipes.data.Folders", "root": root}}
        return RunFolder("baseline", config=config, image_size=None, **options)

    names = named(tmp_path / "size", data("a"), data("b", samples=400))
    assert names == [("baseline, num_samples=200", 1), ("baseline, num_samples=400", 1)]
    names = named(tmp_path / "names", data("a"), data("b", class_names=("cat", "dog")))
    assert [number for _, number in names] == [1, 1] and names[1][0] == 'baseline, class_names=["cat", "dog"]'
    names = named(tmp_path / "content", *(data("a", changes={"fingerprint": text * 32}) for text in "fg"))
    assert names == [(f"baseline, fingerprint={text * 32}", 1) for text in "fg"]


def test_a_run_that_ended_before_its_data_were_read_changes_no_name(tmp_path):
    unknown = {"status": "stopped", "num_samples": None, "class_names": None, "fingerprint": None}
    runs = [RunFolder("baseline", seed, changes={"fingerprint": "f"}) for seed in (0, 1)]
    assert named(tmp_path, *runs, RunFolder("baseline", 2, changes=unknown)) == [("baseline", 3)]


def test_a_setting_that_some_runs_have_separates_them_within_its_configuration_group(tmp_path):
    def optimizer(seed, target="SGD", **settings):
        return RunFolder("random", seed, config={"optimizer": {"_target_": f"torch.optim.{target}", "lr": 0.1, **settings}})

    assert named(tmp_path / "clip", optimizer(0), optimizer(1, clip=0.5)) == [("random", 1), ("random, clip=0.5", 1)]
    assert named(tmp_path / "null", optimizer(0), optimizer(1, clip=None)) == [("random", 2)]
    names = named(tmp_path / "other", optimizer(0), optimizer(1), optimizer(0, "AdamW", eps=1e-8))
    assert names == [("random, optimizer=SGD", 2), ("random, optimizer=AdamW", 1)]


def test_seeds_that_begin_with_weights_of_their_own_are_one_group(tmp_path):
    runs = [RunFolder("random", seed, config={"weights": weights}) for seed, weights in ((0, None), (0, "a.ckpt"), (1, "b.ckpt"))]
    assert named(tmp_path, *runs) == [("random", 1), ("random, weights=given", 2)]


def test_a_run_of_format_1_is_of_the_group_of_its_successors(tmp_path):
    old = {"data": {"_target_": "recipes.data.Digits", "size": 8}, "optimizer": {"_target_": "torch.optim.SGD"}}
    new = {**old, "data": {"_target_": "kakurenbo_recipes.data.Digits", "size": 8}}
    runs = [
        RunFolder("random", 0, config=old, format=1),
        RunFolder("random", 1, config=new),
        RunFolder("plb", 0, config=old, format=1),
    ]
    assert named(tmp_path, *runs) == [("random", 2), ("plb", 1)]
