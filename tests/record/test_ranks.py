"""Two real ranks leave one set of files that is of both; any number of ranks goes on from it."""

import os
from collections import Counter

import pytest
import torch
from cuts import SaveAt
from helpers import Points, SureNet, trainer
from method_tester import short_run
from recorded import EPOCHS, SAMPLES, Files, LoggingNet, Witness
from torch.utils.data import DataLoader

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.record import RunRecorder
from recipes.benchmarks.forked import printed, run_ranks

METHODS = ("kakurenbo", "random", "infobatch", "selective_backprop", "plb", "iswr")
pytestmark = pytest.mark.slow_cases("infobatch", "iswr")


def fit(folder, method, module=None, moment=None, resume=None):
    """Train on the ranks of this process's group; rank r records into `rank<r>`, and what it trained goes to `<r>.pt`."""
    folder.mkdir(exist_ok=True, parents=True)
    world_size, rank = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    selection, witness = SampleSelection(short_run(method, SAMPLES), seed=1), Witness()
    recorder = RunRecorder(selection, folder / f"rank{rank}", every_n_epochs=2)
    saves = [] if moment is None else [SaveAt(folder / "cut.ckpt", *moment)]
    made = trainer(
        selection, recorder, witness, *saves,
        accelerator="cpu", devices=world_size, strategy="ddp" if world_size > 1 else "auto", max_epochs=EPOCHS,
    )  # fmt: skip
    torch.manual_seed(0)
    made.fit(module or LoggingNet(), DataLoader(Points(SAMPLES), 4, shuffle=True), ckpt_path=resume)
    trained = {epoch: list(indices) for epoch, indices in witness.trained.items()}
    files = sorted(path.name for path in folder.glob(f"rank{rank}/*"))
    torch.save({"trained": trained, "hidden": witness.hidden, "files": files}, folder / f"{rank}.pt")


class RecordedSureNet(SureNet):
    """Hides the same on any number of ranks."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.last, self.scored = None, []

    def training_step(self, batch, batch_idx):
        self.last = batch[2].tolist() if torch.is_grad_enabled() else self.last
        return super().training_step(batch, batch_idx)


def all_fits(folder, methods):
    for method in methods:
        fit(folder / method, method)
    fit(folder / "sure", "kakurenbo", RecordedSureNet())
    for name, moment in MOMENTS.items():
        fit(folder / name, "random", moment=moment)
        fit(folder / f"{name} resumed", "random", resume=folder / name / "cut.ckpt")
    fit(folder / "from one", "random", resume=folder / "one" / "cut.ckpt")


MOMENTS = {"within an epoch": ("on_train_batch_end", 2, 2), "at an epoch's end": ("on_train_epoch_end", 2, 0)}


@pytest.fixture(scope="module")
def two(request, tmp_path_factory):
    """The folder of all fits on two ranks that the selected tests look at."""
    folder = tmp_path_factory.mktemp("two")
    selected = [item.callspec.params for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    methods = {"random", *(params["method"] for params in selected if "method" in params)}
    fit(folder / "one", "random", moment=MOMENTS["within an epoch"])
    log = folder / "log"
    assert run_ranks(all_fits, (folder, sorted(methods)), 2, log=log, seconds=120) == [0, 0], printed(log, 2)
    return folder


def by_rank(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("method", METHODS)
def test_the_files_are_of_both_ranks(two, method):
    files, ranks = Files(two / method / "rank0"), by_rank(two / method)
    times = Counter(index for rank in ranks for indices in rank["trained"].values() for index in indices)
    assert files.frame["times_trained"].tolist() == [times[index] for index in range(SAMPLES)]
    pairs = {(epoch, index) for rank in ranks for epoch, indices in rank["trained"].items() for index in indices}
    epochs_trained = Counter(index for _, index in pairs)
    more = files.frame["times_measured"] - [epochs_trained[index] for index in range(SAMPLES)]
    assert more.eq(0).all() if method == "random" else more.ge(0).all(), "those that were scored were measured too"
    assert files.frame["average_margin"].notna().equals(files.frame["times_measured"] > 0)
    for row in files.epochs.to_dict("records"):
        assert row["samples_trained"] == sum(len(rank["trained"].get(row["epoch"], [])) for rank in ranks)
    hidden = Counter(index for indices in ranks[0]["hidden"].values() for index in indices)
    assert files.frame["times_hidden"].tolist() == [hidden[index] for index in range(SAMPLES)]
    assert files.run["world_size"] == 2 and files.run["status"] == "finished"
    assert files.frame["loss"].notna().sum() > SAMPLES / 2, "of both ranks"


@pytest.mark.parametrize("method", METHODS)
def test_one_rank_writes(two, method):
    assert [rank["files"] for rank in by_rank(two / method)] == [["run.json", "samples.parquet", "selection.parquet"], []]


@pytest.mark.parametrize(("name", "method", "module"), [("random", "random", LoggingNet), ("sure", "kakurenbo", RecordedSureNet)])
def test_two_ranks_hide_as_one_does(two, tmp_path, name, method, module):
    fit(tmp_path / name, method, module())
    one, both = Files(tmp_path / name / "rank0"), Files(two / name / "rank0")
    assert both.epochs["samples_hidden"].tolist() == one.epochs["samples_hidden"].tolist()
    assert both.epochs["samples_trained"].tolist() == one.epochs["samples_trained"].tolist()
    if method == "random":
        assert both.frame["times_hidden"].tolist() == one.frame["times_hidden"].tolist()
        assert both.frame["last_change"].tolist() == one.frame["last_change"].tolist()


@pytest.mark.parametrize("name", MOMENTS)
def test_a_run_resumed_on_as_many_ranks_leaves_the_files_of_the_uncut_run(two, name):
    whole, again = Files(two / name / "rank0"), Files(two / f"{name} resumed" / "rank0")
    assert again.frame.equals(whole.frame)
    for column in ("samples_trained", "samples_hidden", "hidden_fraction"):
        assert again.epochs[column].tolist() == whole.epochs[column].tolist()


def test_another_number_of_ranks_goes_on_counting(two, tmp_path):
    fit(tmp_path / "on one", "random", resume=two / "within an epoch" / "cut.ckpt")
    for folder, world_size in ((tmp_path / "on one", 1), (two / "from one", 2)):
        files = Files(folder / "rank0")
        assert files.run["world_size"] == world_size
        assert (files.frame["times_trained"] + files.frame["times_hidden"]).tolist() == [EPOCHS] * SAMPLES
        assert files.epochs["samples_trained"].sum() == files.frame["times_trained"].sum()
        assert files.epochs["epoch"].tolist() == list(range(EPOCHS))
        uncut = Files(two / "random" / "rank0")
        assert files.frame["times_hidden"].tolist() == uncut.frame["times_hidden"].tolist()
