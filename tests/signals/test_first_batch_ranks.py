"""The first batch on two ranks, whose steps wait for each other: they run equally often, and fail together."""

import subprocess
import sys

import pytest
from processes import environment

CASES = """
import datetime, sys
from functools import partial
import torch
import torch.distributed as dist
import torch.nn.functional as F
from losses import BATCH, Heads, NoScoring
from kakurenbo_lightning.errors import OutputsError
from kakurenbo_lightning.signals.outputs import SampleOutputs

store, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
heads = Heads()
runs = []


def gathered(value):
    runs.append(value)
    dist.all_reduce(torch.tensor(float(value)))  # a metric of all ranks


def noisy(batch):
    logits = heads.classes(batch["x"])
    if rank == 1:
        logits = logits + torch.randn_like(logits).flip(0)  # of half a batch it is not the first half
    gathered(logits.detach().mean())
    return F.cross_entropy(logits, batch["y"])


def gradients_within(batch):
    logits = heads.classes(batch["x"])
    gathered(logits.detach().mean())
    if rank == 0:
        with torch.enable_grad():
            return F.cross_entropy(logits, batch["y"]) * 2
    return F.cross_entropy(logits, batch["y"]) * 2


def fails_in_eval(batch):
    logits = heads.classes(batch["x"])
    gathered(logits.detach().mean())
    if rank == 0 and not torch.is_grad_enabled():
        return None
    return F.cross_entropy(logits, batch["y"])


def mixed_up(batch):
    order = torch.randperm(len(batch["x"]), generator=torch.Generator().manual_seed(3)) if rank == 1 else slice(None)
    logits = heads.classes(batch["x"][order])
    gathered(logits.detach().mean())
    return F.cross_entropy(logits, batch["y"][order])


def of_the_batch(batch):
    logits = heads.classes(batch["x"])
    gathered(logits.detach().mean())
    if rank == 0:
        return F.cross_entropy(logits, batch["y"])
    p, one = logits.sigmoid(), F.one_hot(batch["y"], 10)
    return 1 - 2 * (p * one).sum() / (p.sum() + one.sum())


def skipping(batch):
    if rank == 1 and batch["x"].shape[0] > 1 and torch.is_grad_enabled() and not skipping.done:
        skipping.done = True
        gathered(0)
        return None
    return plain(batch)


def plain(batch):
    logits = heads.classes(batch["x"])
    gathered(logits.detach().mean())
    return F.cross_entropy(logits, batch["y"])


skipping.done = False
CASES = {"noisy": noisy, "gradients within": gradients_within, "fails in eval": fails_in_eval, "mixed up": mixed_up,
         "of the batch": of_the_batch, "skipping": skipping, "one sample": plain, "function": plain}
for name, step in CASES.items():
    del runs[:]
    function = None
    if name == "function":
        def function(batch):
            noise = torch.rand(len(batch["x"])).flip(0) if rank == 1 else 0
            gathered(1)
            return {"sample_loss": F.cross_entropy(heads.classes(batch["x"]), batch["y"], reduction="none") + noise}
    source = SampleOutputs(("loss",), function)
    try:
        for number in range(3):
            size = 1 if (name, rank, number) == ("one sample", 1, 0) else BATCH
            batch = heads.batch(number * BATCH, size)
            source.observe(partial(step, batch), batch, size, NoScoring, replay=step)
        outcome = source.report.attribution
    except OutputsError as error:
        outcome = str(error)
    print(name, "|", len(runs), "|", outcome.replace("\\n", " "), flush=True)
dist.barrier()
dist.destroy_process_group()  # a thread of gloo that is left at the exit may abort it
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each rank has said of each case."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "cases.py"
    script.write_text(CASES)
    ranks = [
        subprocess.Popen(
            [sys.executable, script, folder / "store", str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(folder),
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=240) for process in ranks]
    finally:
        for process in ranks:  # one that hangs would outlive the tests
            process.kill()
            process.wait()
    found = []
    for process, (out, errors) in zip(ranks, printed, strict=True):
        assert process.returncode == 0, out + errors[-3000:]
        lines = [line.split(" | ", 2) for line in out.splitlines() if " | " in line]
        found.append({name: (int(runs), outcome) for name, runs, outcome in lines})
    return found


@pytest.mark.parametrize(
    ("case", "runs", "outcomes"),
    [
        ("noisy", 8, ("verified", "skipped: two equal passes differ")),
        ("gradients within", None, ("verified", "verified")),
        ("fails in eval", None, ("skipped: in a scoring pass the step returned", "verified")),
        ("mixed up", 4, ("on rank 1: ", "attribution")),
        ("of the batch", None, ("on rank 1: ", "cannot be split")),
        ("skipping", None, ("verified", "skipped: the step cannot be given another batch")),
        ("one sample", None, ("verified", "verified")),
        ("function", None, ("verified", "skipped: two equal passes differ")),
    ],
)
def test_ranks_run_the_step_equally_often_and_fail_together(case, runs, outcomes, said):
    (first, one), (second, other) = (rank[case] for rank in said)
    assert first == second and (runs is None or first == runs), "every run of one rank waits for one of the other"
    assert one.startswith(outcomes[0]), one
    assert outcomes[1] in other, other
    if outcomes[0].startswith("on rank"):
        assert one == f"on rank 1: {other}"
