"""A checkpoint saved anywhere in a step resumes exactly that step, also between accumulated batches and after one kill more."""

import pytest
import torch
from cuts import SaveAt, on_ranks
from test_resume_exact import assert_same, final_state, run, saved

from recipes.benchmarks.fault_run import differences

# in the order of a step; the last one is over
MOMENTS = (
    "on_train_batch_start",
    "training_step",
    "forward",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "optimizer_step",
    "on_train_batch_end",
)
METHODS = ("kakurenbo", "selective_backprop", "plb")
EPOCH, MIDDLE, LAST = 3, 3, -1  # the backprop method makes a step of each of these batches, whatever the version of torch


def cut_and_resumed(folder, method, *cuts, **settings):
    """The end of a run, and that of one that was resumed from a checkpoint of each of ``cuts`` (a hook and a batch) in turn."""
    made, selection, record, module = run(method, **settings)
    whole, resume = (final_state(made, selection, module), record), None
    for number, (hook, batch) in enumerate(cuts):
        save = SaveAt(folder / f"{number}.ckpt", hook, EPOCH, batch)
        run(method, save, ckpt_path=resume, seed=number, **settings)
        resume = save.path
        assert resume.exists()
    made, selection, record, module = run(method, ckpt_path=resume, seed=99, **settings)
    return *whole, final_state(made, selection, module), record


def assert_exact(folder, method, *cuts, **settings):
    expected, record, end, rerecord = cut_and_resumed(folder, method, *cuts, **settings)
    assert_same(expected, end)
    for epoch, batches in rerecord.batches.items():
        assert batches == {number: rows for number, rows in record.batches[epoch].items() if number in batches}
        assert rerecord.rates[epoch] == {number: rate for number, rate in record.rates[epoch].items() if number in batches}
    assert rerecord.logged == {epoch: record.logged[epoch] for epoch in rerecord.logged}


# the others in test-all: they are just before or after one of these
@pytest.mark.slow_cases(
    "plb",
    "last",
    "forward",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
@pytest.mark.parametrize("batch", [MIDDLE, LAST], ids=["middle", "last"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("method", METHODS)
def test_a_save_within_a_step_resumes_that_step(tmp_path, method, moment, batch):
    assert_exact(tmp_path, method, (moment, batch))


@pytest.mark.slow_cases(
    "plb",
    "on_before_zero_grad",
    "training_step",
    "forward",
    "on_train_batch_start",
    "on_before_backward",
    "on_before_optimizer_step",
)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("batch", [1, 2], ids=["accumulating", "stepping"])
@pytest.mark.parametrize("method", ["kakurenbo", "plb"])
def test_accumulated_gradients_go_on(tmp_path, method, batch, moment):
    if batch == 1 and moment in ("optimizer_step", "on_before_optimizer_step"):
        moment, batch = "on_train_batch_end", 0
    if moment == "on_before_zero_grad":  # of the first batch alone
        batch = 3
    assert_exact(tmp_path, method, (moment, batch), accumulate_grad_batches=3)


def test_gradients_are_saved_only_between_accumulated_batches(tmp_path):
    saves = [SaveAt(tmp_path / f"{batch}.ckpt", "on_train_batch_end", EPOCH, batch) for batch in range(4)]
    run("baseline", *saves, accumulate_grad_batches=2)
    gradients = [saved(save.path)["pending"][0]["gradients"] for save in saves]
    assert [bool(each) for each in gradients] == [True, False, True, False]
    assert all(each.dtype == torch.float32 for each in gradients[0]["of"].values())
    without = SaveAt(tmp_path / "without.ckpt", "on_train_batch_end", EPOCH, 0)
    run("baseline", without)
    assert saved(without.path)["pending"][0]["gradients"] == {}


@pytest.mark.slow_cases("selective_backprop", "plb")
@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_kills(tmp_path, method):
    cuts = [
        ("on_train_batch_end", 0),
        ("on_after_backward", 1),
        ("on_before_optimizer_step", 1),
        ("optimizer_step", 1),
        ("forward", 2),
    ]
    if method == "selective_backprop":
        cuts = [("on_train_batch_start", 1), ("forward", 2), ("on_after_backward", 2), ("optimizer_step", 2), ("forward", 3)]
    assert_exact(tmp_path, method, *cuts, accumulate_grad_batches=1 if method == "selective_backprop" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS)
def test_two_ranks(tmp_path, moment, accumulate):
    save = SaveAt(tmp_path / "cut.ckpt", moment, 1, 2 if moment == "on_before_zero_grad" else 1)
    whole = on_ranks(tmp_path, "random", 2, callbacks=(save,), accumulate_grad_batches=accumulate)
    resumed = on_ranks(tmp_path / "resumed", "random", 2, seed=9, resume=save.path, accumulate_grad_batches=accumulate)
    for rank in (0, 1):
        assert differences(whole[rank], resumed[rank]) == []
