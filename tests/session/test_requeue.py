"""SLURM's signal to save and requeue the job may come anywhere; what it saves resumes as if it had not come."""

import pytest
from cuts import SignalAt, on_ranks
from lightning.pytorch.plugins.environments import SLURMEnvironment
from test_resume_exact import assert_same, final_state, position, run, saved

from recipes.benchmarks.fault_record import Kill
from recipes.benchmarks.fault_run import differences
from recipes.benchmarks.faults import Training, newest

METHODS = ("kakurenbo", "selective_backprop", "plb")
EPOCH, BATCH = 3, 3  # the backprop method makes a step of this batch, whatever the version of torch
# the hook that the signal comes in, and the steps of the epoch that are done when it is answered
MOMENTS = {
    "on_train_batch_start": BATCH + 1,
    "forward": BATCH + 1,
    "on_after_backward": BATCH + 1,
    "on_before_optimizer_step": BATCH + 1,
    "optimizer_step": BATCH + 1,
    "on_train_batch_end": BATCH + 1,
    "on_train_epoch_start": 1,
}


@pytest.fixture
def requeues(tmp_path, monkeypatch):
    """A stand-in for SLURM: a file that ``scontrol`` writes its arguments to, and the settings of a Trainer in a job."""
    (tmp_path / "bin").mkdir()
    calls, scontrol = tmp_path / "calls", tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=":")
    for name in ("NTASKS", "NTASKS_PER_NODE"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NAME", "training")
    return calls, {"plugins": [SLURMEnvironment(auto_requeue=True)], "default_root_dir": tmp_path}


@pytest.mark.slow_cases("selective_backprop", "plb", "on_train_batch_start", "on_before_optimizer_step")
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("method", METHODS)
def test_the_signal_is_answered_between_two_steps(tmp_path, requeues, method, moment):
    calls, job = requeues
    made, selection, _, module = run(method, SignalAt(tmp_path, moment, EPOCH, BATCH), **job)
    expected, path = final_state(made, selection, module), tmp_path / "hpc_ckpt_1.ckpt"
    assert calls.read_text() == "requeue 17\n"
    assert (position(path)[0], saved(path)["step"]) == (EPOCH, MOMENTS[moment])
    remade, reselection, _, remodule = run(method, seed=9, ckpt_path="hpc", **job)
    assert_same(expected, final_state(remade, reselection, remodule))


def test_a_long_validation_answers_too(tmp_path, requeues):
    _, job = requeues
    made, selection, _, module = run("kakurenbo", SignalAt(tmp_path, "on_validation_batch_start", EPOCH, 0), **job)
    assert saved(tmp_path / "hpc_ckpt_1.ckpt")["phase"] == "validating"
    remade, reselection, _, remodule = run("kakurenbo", seed=9, ckpt_path="hpc", **job)
    assert_same(final_state(made, selection, module), final_state(remade, reselection, remodule))


def test_a_signal_after_the_last_step_is_answered_at_the_end(tmp_path, requeues):
    calls, job = requeues
    made, *_ = run("kakurenbo", SignalAt(tmp_path, "on_train_epoch_end", 4), **job)
    assert calls.exists() and position(tmp_path / "hpc_ckpt_1.ckpt")[1] == made.global_step


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["after forward", "after the update", "batch end", "validation"])
def test_ranks_answer_after_the_same_step_although_one_got_the_signal(tmp_path, moment):
    """A kill follows at once."""
    whole = on_ranks(tmp_path / "whole", "random", 2)
    job = Training(tmp_path / "job", "random", 2)
    job.die(Kill(f"requeue:{moment}", tick=6, rank=1))
    resumed = job.finish("resumed", resume=newest(job.folder), seed=9)
    for rank in (0, 1):
        assert differences(whole[rank], resumed[rank]) == []
