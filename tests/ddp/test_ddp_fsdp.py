"""FSDP2 and tensor parallelism: what DDP on as many data-parallel ranks chooses and trains, to the bit."""

from pathlib import Path

import pytest
import torch
from records import assert_same_bits
from torch.torch_version import TorchVersion

from kakurenbo_lightning import available_methods
from kakurenbo_lightning.cli.inspection import selection_in, summary

pytestmark = pytest.mark.skipif(
    TorchVersion(torch.__version__) < (2, 13),
    reason="over gloo FSDP2 added gradients up in earlier releases: pytorch issue 162338",
)
FAST = ("kakurenbo", "selective_backprop", "plb")  # one of each family
METHODS = available_methods()
CUTS = ["kakurenbo", "last", "end", "selective_backprop", "plb", "forget", "scoring", "file"]


def cases(kind, names=METHODS):
    return pytest.mark.parametrize("ranks", [f"{kind}_{name}" for name in names], indirect=True)


def slow_cases(kind, names=METHODS, fast=FAST):
    return pytest.mark.slow_cases(*(f"{kind}_{name}" for name in names if name not in fast))


def assert_same_course(one, other, exact=True):
    """The same was hidden, trained and known; weights to the bit, or nearly so."""
    assert list(one["epochs"]) == list(other["epochs"])
    for epoch, expected in one["epochs"].items():
        found = other["epochs"][epoch]
        assert found["checksum"] == expected["checksum"] and torch.equal(found["hidden"], expected["hidden"])
        assert [batch.tolist() for batch in found["trained"]] == [batch.tolist() for batch in expected["trained"]]
        assert_same_bits(found["statistics"], expected["statistics"])
    assert_same_bits(other["statistics"], one["statistics"])
    assert (other["global_step"], other["totals"]) == (one["global_step"], one["totals"])
    for name, weight in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], weight, rtol=0, atol=0 if exact else 1e-12)


def assert_goes_on(whole, resumed):
    """The rest of it is that of a training that was not interrupted."""
    for epoch, found in resumed["epochs"].items():
        expected = whole["epochs"][epoch]
        left = len(found["trained"])
        assert [batch.tolist() for batch in found["trained"]] == [
            b.tolist() for b in expected["trained"][len(expected["trained"]) - left :]
        ]
        assert found["checksum"] == expected["checksum"]
    assert max(resumed["epochs"]) == max(whole["epochs"])
    assert_same_bits(resumed["statistics"], whole["statistics"])
    assert_same_bits(resumed["weights"], whole["weights"])
    assert (resumed["global_step"], resumed["totals"]) == (whole["global_step"], whole["totals"])


@slow_cases("fsdp2")
@cases("fsdp2")
def test_fsdp2_chooses_and_trains_what_ddp_does(ranks):
    for rank in ranks:
        assert_same_course(rank["ddp"], rank["sharded"])
        assert not [text for text in rank["sharded"]["warnings"] if "scoring pass" in text]


@slow_cases("fsdp2_cut", CUTS, fast=("kakurenbo",))
@cases("fsdp2_cut", CUTS)
def test_fsdp2_cut_and_resumed_equals_uncut(ranks, request):
    for rank in ranks:
        assert Path(rank["path"]).is_dir() is ("file" not in request.node.callspec.params["ranks"])  # a sharded checkpoint
        assert_goes_on(rank["whole"], rank["resumed"])


def comparable(course, share=slice(None)):
    """A training without the checksums, which the two kinds of statistics make differently, and of its statistics the rows in ``share``."""

    def rows(statistics):
        return {name: column[share].clone() for name, column in statistics.items()}

    epochs = {n: {**epoch, "checksum": 0, "statistics": rows(epoch["statistics"])} for n, epoch in course["epochs"].items()}
    return {**course, "epochs": epochs, "statistics": rows(course["statistics"])}


def assert_shares_change_nothing(ranks):
    """Statistics of which each process has a share plan, to the bit, what replicated ones do."""
    for process, found in enumerate(ranks):
        assert any(len(epoch["hidden"]) for epoch in found["replicated"]["epochs"].values())
        assert_same_course(comparable(found["replicated"], slice(process, None, len(ranks))), comparable(found["sharded"]))


@slow_cases("fsdp2_share", ("kakurenbo", "infobatch", "forget"))
@cases("fsdp2_share", ("kakurenbo", "infobatch", "forget"))
def test_sharded_statistics_choose_and_train_under_fsdp2_what_replicated_ones_do(ranks):
    assert_shares_change_nothing(ranks)


@pytest.mark.slow
@cases("tensor_parallel", ["share"])
def test_sharded_statistics_are_spread_over_all_processes_of_tensor_parallelism(ranks):
    assert_shares_change_nothing(ranks)


@pytest.mark.slow
@cases("fsdp2", ["share_cut"])
def test_either_kind_of_statistics_goes_on_from_a_folder_of_the_other(ranks):
    for found in ranks:
        for kind, resumed in found["resumed"].items():
            assert_goes_on(found["whole"][kind], resumed)


@cases("fsdp2_cut", ["kakurenbo"])
def test_a_sharded_checkpoint_is_inspected(ranks):
    state, _, steps = selection_in(Path(ranks[0]["path"]))
    found = summary(state, None, steps, most=3)
    whole = ranks[0]["whole"]["epochs"]
    assert (found["method"], found["epoch"], found["epoch_batches"], found["world_size"]) == ("kakurenbo", 1, 3, 2)
    assert found["step"] == len(whole[0]["trained"]) + 3
    assert torch.equal(state.epoch.plan.hidden, whole[1]["hidden"])


@pytest.mark.slow
@cases("fsdp2", ["rho_model"])
def test_a_model_of_irreducible_losses_chooses_under_fsdp2_what_it_does_under_ddp_and_its_table(ranks):
    for rank in ranks:
        assert_same_course(rank["ddp"], rank["sharded"])
        assert_same_course(rank["by_table"], rank["sharded"])
        assert_goes_on(rank["sharded"], rank["resumed"])
        assert rank["sharded"]["totals"]["samples_rejected"] > 20


@pytest.mark.slow
@cases("fsdp2", ["rho_flow"])
def test_a_model_of_irreducible_losses_chooses_from_iterable_data_under_fsdp2_what_it_does_under_ddp(ranks):
    for rank in ranks:
        assert_same_course(rank["ddp"], rank["sharded"])
        assert rank["sharded"]["totals"]["samples_rejected"] > 20


@pytest.mark.slow
@cases("fsdp2", ["elastic"])
def test_a_sharded_checkpoint_of_two_goes_on_on_one_and_back_on_two(ranks):
    """Every sample that is not hidden is trained once in each epoch, whatever it was cut into."""
    two, one, again = ([rank[name] for rank in ranks] for name in ("two", "one", "again"))
    for epoch, parts in (1, (two, 3, one[:1])), (2, (one[:1], 4, again)):
        before, done, after = parts
        first = [batch for run in before for batch in run["epochs"][epoch]["trained"][:done]]
        rest = [batch for run in after for batch in run["epochs"][epoch]["trained"]]
        trained = torch.cat([*first, *rest]).sort().values
        hidden = before[0]["epochs"][epoch]["hidden"]
        assert torch.equal(hidden, after[0]["epochs"][epoch]["hidden"])
        assert trained.tolist() == sorted({*range(45)} - {*hidden.tolist()})
    assert len(two[0]["epochs"][1]["hidden"]) + len(one[0]["epochs"][2]["hidden"]) > 0
    assert_same_bits(again[0]["weights"], again[1]["weights"])


@slow_cases("tensor_parallel", fast=("kakurenbo",))
@cases("tensor_parallel")
def test_tensor_parallel_processes_train_the_samples_of_their_data_parallel_rank(ranks, launched, request):
    method = request.node.callspec.params["ranks"].removeprefix("tensor_parallel_")
    for process, rank in enumerate(ranks):
        assert_same_course(launched(f"data_parallel_{method}")[process // 2], rank, exact=False)


@pytest.mark.slow
@cases("tensor_parallel", ["cut"])
def test_tensor_parallel_cut_and_resumed_equals_uncut(ranks):
    for rank in ranks:
        assert_goes_on(rank["whole"], rank["resumed"])


@pytest.mark.slow
@cases("tensor_parallel", ["alone"])
def test_tensor_parallelism_alone_draws_the_same_in_every_process(ranks):
    first, second = ranks
    assert_same_course(first, second)
    assert sum(len(epoch["trained"]) for epoch in first["epochs"].values()) > 0


@pytest.mark.slow
@cases("fsdp2", ["damaged"])
def test_a_damaged_folder_is_named_on_every_rank(ranks):
    said = {
        **{"changed": "__1_0.distcp is damaged: ", "shard": "__1_0.distcp is truncated or damaged ([Errno 2]"},
        **{
            "half shard": "__1_0.distcp is truncated or damaged (it has ",
            "first tensor": "__1_0.distcp is truncated or damaged (it has ",
        },
        **{"list": " is truncated or damaged (.metadata: [Errno 2]", "half list": " is truncated or damaged (.metadata: "},
        **{
            "meta": " is not finished: meta.pt, which is written last, is not there",
            "half meta": "/meta.pt is truncated or damaged (",
        },
    }
    for rank in ranks:
        assert rank.keys() == said.keys()
        for name, error in rank.items():
            assert error.startswith("DamagedCheckpointError: checkpoint /") and f"/{name}/at.ckpt" in error
            assert said[name] in error and error.endswith("; resume from an earlier checkpoint")


@pytest.mark.slow
@cases("fsdp2", ["unfinished"])
def test_a_folder_that_was_being_saved_over_is_named_though_each_of_its_files_is_whole(ranks):
    for rank in ranks:
        assert rank["cut"] and "File too large" in rank["saving"]
        assert "/last.ckpt is not finished: meta.pt, which is written last, is empty. " in rank["error"]
        assert rank["error"].endswith("; resume from an earlier checkpoint")


@pytest.mark.slow
@cases("fsdp2", ["mesh"])
def test_a_process_with_another_mesh_is_refused_before_any_waits_for_it(ranks):
    for rank in ranks:
        assert rank["error"].startswith(
            "ConflictError: the processes have different data-parallel meshes (rank of size, by process: 0 of 1, 1 of 2)"
        )


@pytest.mark.slow
@cases("fsdp2", ["distributed_loss"])
def test_a_loss_that_is_split_over_processes_is_refused_by_name(ranks):
    for rank in ranks:
        assert rank["error"].startswith("OutputsError: ") and "is a distributed tensor (DTensor)" in rank["error"]
        assert "loss_parallel" in rank["error"]


@pytest.mark.slow_cases("fsdp2_compiled")
@cases("fsdp2", ["checkpointed", "compiled"])
def test_a_wrapper_within_the_module_does_not_hide_its_parameters_from_a_restart(ranks):
    """Activation checkpointing and ``torch.compile`` put a name of their own into those of the parameters."""
    for plain, wrapped in ranks:
        wrapped["weights"] = dict(zip(plain["weights"], wrapped["weights"].values(), strict=True))
        assert_same_course(plain, wrapped)
