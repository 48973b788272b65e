"""The console script `kakurenbo-inspect`, on checkpoints of real trainings."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from helpers import Net, SureNet, fit, hide_then_grow, loader
from lightning.pytorch.callbacks import ModelCheckpoint

from kakurenbo_lightning import SampleSelection
from kakurenbo_lightning.cli.inspection import main, selection_in
from kakurenbo_lightning.record import RunRecorder


def saved(folder, selection, *callbacks, module=None, epochs=3, **settings):
    trainer = fit(module or SureNet(), loader(), selection, *callbacks, max_epochs=epochs, **settings)
    path = folder / "run.ckpt"
    trainer.save_checkpoint(path)
    return str(path)


def said(capsys, *arguments):
    main(arguments)
    return capsys.readouterr().out


def test_a_page_says_method_epoch_and_hidden_share(tmp_path, capsys):
    selection = hide_then_grow(seed=7)
    text = said(capsys, saved(tmp_path, selection))
    assert "kakurenbo(" in text and "max_fraction=0.5" in text and "drop_top" not in text, "settings that are not the defaults"
    assert "epoch 2 (counted from 0), step 16, after 4 batches of the epoch" in text and "64 samples" in text
    assert "hidden now  32 (50.0%)" in text and "learning rate x 2.000" in text
    assert re.search(r"^so far      trained .* \(of whole epochs\)$", text, re.MULTILINE)
    assert selection.totals.summary("hide") in text


def test_without_a_recorder_the_hidden_of_lowest_loss_are_listed(tmp_path, capsys):
    selection = hide_then_grow()
    found = json.loads(said(capsys, saved(tmp_path, selection), "--json", "--most", "5"))
    hidden, loss = selection.plan.hidden, selection.statistics.loss
    assert found["hidden"] == len(hidden) == 32 and found["hidden_share"] == 0.5
    assert [row["index"] for row in found["most_hidden"]] == hidden[loss[hidden].argsort(stable=True)[:5]].tolist()
    assert found["measured"] == 64 and found["correct"] == 64 and found["not_finite"] == 0
    assert found["loss_quantiles"][0] == pytest.approx(loss.min().item()) and found["loss_quantiles"][4] == pytest.approx(
        loss.max().item()
    )


class Regression(Net):
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.network(batch[0])[:, 0], batch[1].float())


def test_of_a_regression_nobody_knows_how_many_are_right(tmp_path, capsys):
    path = saved(tmp_path, SampleSelection("infobatch"), module=Regression())
    assert json.loads(said(capsys, path, "--json"))["correct"] is None
    assert "64 samples, unknown how many predicted correctly" in said(capsys, path)
    resumed = SampleSelection("infobatch")
    fit(Regression(), loader(), resumed, ckpt_path=path, max_epochs=3)
    assert resumed.statistics.measured.all() and not resumed.statistics.judged.any()


def test_with_a_recorder_those_hidden_most_often_are_listed(tmp_path, capsys):
    selection = hide_then_grow()
    path = saved(tmp_path, selection, RunRecorder(selection, tmp_path / "files"), epochs=4)
    found = json.loads(said(capsys, path, "--json", "--most", "64"))
    times = [row["times_hidden"] for row in found["most_hidden"]]
    assert times == sorted(times, reverse=True) and sum(times) == selection.totals.samples_hidden
    assert times[-1] > 0 and len(times) < 64, "samples that were never hidden are none of the most hidden"
    assert all(row["times_hidden"] + row["times_trained"] == 4 for row in found["most_hidden"])
    assert "times hidden" in said(capsys, path)


def test_the_step_is_that_of_the_files_name(tmp_path, capsys):
    keep = ModelCheckpoint(tmp_path, filename="{epoch}-{step}", every_n_epochs=1, save_top_k=-1)
    fit(SureNet(), loader(), hide_then_grow(), keep, max_epochs=3, enable_checkpointing=True, accumulate_grad_batches=2)
    names = [path.name for path in tmp_path.iterdir()]
    for name in names:
        found = json.loads(said(capsys, str(tmp_path / name), "--json"))
        assert name == f"epoch={found['epoch']}-step={found['step']}.ckpt"
        assert found["epoch_batches"] == [8, 4, 4][found["epoch"]]
    assert len(names) == 3


def test_samples_that_wait_in_a_pool_are_counted(tmp_path, capsys):
    selection = SampleSelection("selective_backprop", beta=2.0, warmup_epochs=0, leftover="carry")
    path = saved(tmp_path, selection, epochs=2)
    waiting = selection.session.engine.counts.pooled
    found = json.loads(said(capsys, path, "--json"))
    assert found["waits"] == waiting
    assert ("are chosen and not trained yet" in said(capsys, path)) == (waiting > 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"CHECKPOINT='.*there\.ckpt' is not a file"),
        (b"no zip file", r"there\.ckpt is not a Lightning checkpoint \(no zip file\)"),
        (b"PK but no zip file", r"there\.ckpt is truncated or damaged"),
        ({"callbacks": {"ModelCheckpoint": {"best": 1.0}}}, r"holds no selection: it has the callbacks ModelCheckpoint"),
        ({}, r"holds no selection: it has the callbacks none"),
        ({"callbacks": None}, r"is not a Lightning checkpoint"),
        ([1, 2], r"is not a Lightning checkpoint"),
    ],
)
def test_a_file_without_a_selection_is_named(tmp_path, capsys, content, message):
    path = tmp_path / "there.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(SystemExit) as ended:
        main([str(path)])
    assert ended.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_a_state_of_another_version_is_named(tmp_path, capsys):
    path = saved(tmp_path, hide_then_grow())
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["SampleSelection"]["version"] = 99
    torch.save(checkpoint, path)
    with pytest.raises(SystemExit):
        main([path])
    assert "version 99, this release reads 1 to 2" in " ".join(capsys.readouterr().err.split())


def test_a_truncated_checkpoint_is_named(tmp_path, capsys):
    path = Path(saved(tmp_path, hide_then_grow()))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SystemExit):
        main([str(path)])
    assert "truncated or damaged" in capsys.readouterr().err


def test_a_sharded_checkpoint_that_is_not_finished_is_named(tmp_path, capsys):
    dcp.save({"values": torch.ones(3)}, checkpoint_id=tmp_path / "last.ckpt")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "last.ckpt")])
    assert "last.ckpt is not finished: meta.pt, which is written last, is not there" in " ".join(capsys.readouterr().err.split())


def test_a_checkpoint_of_the_old_format_is_read(tmp_path, capsys):
    path = saved(tmp_path, hide_then_grow())
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    assert "64 samples" in said(capsys, path)


def test_the_state_is_found_under_any_key(tmp_path):
    class Own(SampleSelection):
        pass

    path = tmp_path / "own.ckpt"
    trainer = fit(SureNet(), loader(), Own("baseline"), max_epochs=1)
    trainer.save_checkpoint(path)
    assert selection_in(path)[0].method["method"] == "baseline"


def test_objects_of_other_kinds_need_trust(tmp_path, capsys):
    path = saved(tmp_path, hide_then_grow())
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "hyper_parameters": {"optimizer": torch.optim.SGD}}, path)
    with pytest.raises(SystemExit):
        main([path])
    assert "holds an object of torch.optim.sgd.SGD. If you trust the file, add --trust" in " ".join(
        capsys.readouterr().err.split()
    )
    assert "hidden now  32 (50.0%)" in said(capsys, path, "--trust")


def test_json_is_json_where_losses_are_unknown(tmp_path, capsys):
    path = saved(tmp_path, SampleSelection("random", max_fraction=0.5), epochs=1)
    found = json.loads(said(capsys, path, "--json"), parse_constant=lambda name: pytest.fail(name))
    assert found["most_hidden"][0]["loss"] is None
