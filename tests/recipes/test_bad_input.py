"""Bad input through the command line: one sentence that names the setting and what is allowed, exit status 1, and no traceback."""

import logging

import pytest
from kakurenbo_recipes import train
from recipe_runs import TINY, kakurenbo_train

# settings by what they are, with values that none of them can have
COUNTS = ["seed", "data.batch_size", "data.eval_batch_size", "data.num_workers", "data.label_noise_seed", "data.crop_padding",
          "model.depth", "model.width", "trainer.max_epochs", "trainer.max_steps", "trainer.accumulate_grad_batches", "trainer.num_nodes",
          "trainer.num_sanity_val_steps", "trainer.log_every_n_steps"]  # fmt: skip
NUMBERS = ["F", "tau", "optimizer.lr", "optimizer.momentum", "optimizer.weight_decay", "schedule.gamma", "schedule.warmup_factor",
           "data.held_out", "data.label_noise", "task.label_smoothing"]  # fmt: skip
FLAGS = [
    "debug",
    "test",
    "data.flip",
    "data.drop_last",
    "optimizer.nesterov",
    "trainer.enable_checkpointing",
    "trainer.sync_batchnorm",
]
GROUPS = [
    "data",
    "model",
    "scorer",
    "task",
    "method",
    "optimizer",
    "schedule",
    "trainer",
    "logger",
    "record",
    "checkpoint",
    "callbacks",
]
TYPOS = {
    "optimiser.lr=0.5": "optimizer.lr", "trainer.max_epoch=3": "trainer.max_epochs", "data.batchsize=3": "data.batch_size",
    "method.tua=0.5": "method.tau", "model.dept=8": "model.depth", "sede=1": "seed", "tua=0.5": "tau", "schedule.gama=1": "schedule.gamma",
    "checkpoint.save_topk=1": "checkpoint.save_top_k", "record.to_logger=true": "record.to_loggers",
    "logger.csv.save_dri=a": "logger.csv.save_dir",
}  # fmt: skip
OTHERS = {
    "compare=[baseline,baseline]": "compare=['baseline', 'baseline'] is not possible: it must be a list that names each method once",
    "compare=[baseline,randm]": "Did you mean random?",
    "compare=[]": "compare=[] is not possible",
    "trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches=0 is not possible: it must be an int >= 1",
    "trainer.limit_train_batches=0": "trainer.limit_train_batches=0 is not possible: it must be null, an int >= 1 or a share in (0, 1]",
    "trainer.limit_train_batches=1.5": "trainer.limit_train_batches=1.5",
    "trainer.limit_val_batches=-1": "trainer.limit_val_batches=-1",
    "trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch=0",
    "trainer.devices=0": "trainer.devices=0 is not possible: it must be auto, -1 for all, an int >= 1 or a list of devices",
    "trainer.precision=17": "trainer.precision=17 is not possible: it must be one of 64, 32, 16, transformer-engine",
    "trainer.strategy=dpp": "`strategy='dpp'`",
    "trainer.accelerator=gpuu": "`accelerator='gpuu'`",
    "trainer.max_epochs=null": "trainer.max_epochs=None is not possible: it must be an int >= 1",
    "seed=-1": "seed=-1 is not possible: it must be an int from 0",
    "F=1.5": "max_fraction",
    "tau=2": "tau=2.0 is not allowed",
    "F=-0.1": "max_fraction",
    "optimizer.lr=inf": "optimizer.lr=inf is not possible: it must be a finite number",
    "optimizer.lr=0": "optimizer.lr=0 is not possible: it must be a number above 0",
    "optimizer.lr=-1": "optimizer.lr=-1 is not possible",
    "optimizer.weight_decay=-1": "optimizer: Invalid weight_decay value: -1",
    "lr_batch_size=0": "lr_batch_size=0 is not possible",
    "data.held_out=1": "data.held_out=1 is not possible",
    "data.batch_size=0": "data.batch_size=0 is not possible: it must be an int >= 1. Try 128.",
    "model.depth=9": "model.depth=9 is not possible: it must be 6n + 2",
    "scorer=small": "scorer='small' is not possible: it must be none: method=kakurenbo scores no batches. Try method=selective_backprop.",
    "schedule.warmup_factor=0": "schedule.warmup_factor=0 is not possible",
    "ckpt_path=folder": "ckpt_path='folder' is not possible: it must be null, last or the file of a checkpoint",
    "ckpt_path=nowhere.ckpt": "ckpt_path='nowhere.ckpt' is not possible",
    "ckpt_path=text": "ckpt_path='text' is not possible: it must be null, last or the file of a checkpoint",
    "weights=text": "weights='text' cannot be read",
    "weights=nowhere": "weights='nowhere' is not a file",
    "method=rho_loss method.irreducible=text": "irreducible='text' is not allowed; irreducible must be a file with {'irreducible'",
    "method=rho_loss method.irreducible=folder": "irreducible='folder' is not allowed; irreducible must be an existing file",
    "method=rho_loss": "irreducible='irreducible.pt' is not allowed",
    "save=0.9": "save=0.9 is not allowed; save must be a number in (0, 0.5)",
    "save=abc": "save=abc",
    "save=0.3 F=0.2": "save=0.3 is not possible: it must be left out beside F. save chooses F.",
    "method=plb save=0.2": "save=0.2 is not possible: it must be left out: method=plb has no share to set. Methods that have one: "
    "el2n, forget, forget_online, infobatch, kakurenbo, random, random_cycle, rcap.",
    "method=orderdp method.values=bls save=0.2": "method=orderdp has no share to set. Methods that have one and read only the loss: "
    "infobatch, random, random_cycle, rcap.",
    "save=0.4 tau=0": "save=0.4 cannot be reached: kakurenbo saves at most 20.0% of 2 epochs when its max_fraction is max_share=0.5",
    "method=plb guard=metric": "guard=['plb'] is not possible: it must be left out for methods that hide nothing. Write guard=none.",
    "guard=metric guard.max_drop=-1": "max_drop=-1 is not allowed; max_drop must be a number >= 0.",
    "guard=metric guard.max_dorp=1": "guard.max_drop",
    "guard=metric guard.reference=folder": "reference='folder' holds no selection.parquet of a run",
    "guard=metric guard.monitor=val/acuracy": "the validation logged no such value; it logged ",
    "method=weighted": "weights=None is not allowed; weights must be one number >= 0 for each sample",
    "method=weighted method.weights=nowhere.npy": "weights='nowhere.npy' is not allowed",
    "method=plb +method.values=bls": "values='bls' is not allowed with plb",
    "method=plb F=0.4": "F=0.4 is not possible: it must be left out: method=plb has none",
    "hydra.run.dir=text/run": "hydra.run.dir='text/run' is not possible: it must be a folder that can be made (Not a directory)",
    "hydra.run.dir=/proc/kakurenbo": "hydra.run.dir='/proc/kakurenbo' is not possible: it must be a folder that can be made",
    "hydra.run.dir=ran": "hydra.run.dir='ran' is not possible: it must be a folder that holds no run yet",
    "F=[": "F=[ is not possible: it cannot be read as KEY=VALUE",
    "F": "cannot be read as KEY=VALUE",
    "trainer.callbacks=[a]": "trainer.callbacks=[a] is not possible: the program gives it. Write callbacks=",
    "+trainer.callbacks=[a]": "trainer.callbacks=['a'] is not possible: the program gives it. Write callbacks=",
    "callbacks=[early_stopin]": "callbacks='early_stopin' is not possible: it must be one of best_checkpoint, early_stopping,",
    "logger=none callbacks=lr_monitor": "LearningRateMonitor",
    "trainer=fsdp": "fsdp",
    "checkpoint.monitor=val/acuracy": "val/acuracy",
    "method.milestones=[a]": "milestones=['a'] is not allowed; milestones must be a list of epochs",
    "method=baseline,random": "method=baseline,random is not possible: it must be one value. Add -m for a run with each",
    "~seed": "seed is missing",
    "~optimizer.lr": "optimizer.lr is missing",
    "~sed": "sed",
    "~data data.subset=5": "~data is not possible: the program reads data. Leave it out, or choose data=OPTION.",
    "~method.tau": "~method.tau is not possible: method.tau has its default where it is left out. Leave ~method.tau out.",
    "method=[random,plb]": "method=[random,plb] is not possible: it must be one value. Write compare=[baseline,kakurenbo], or -m method=",
    "callbacks.early_stopping.patience=3": "callbacks has no early_stopping yet. Add callbacks=[early_stopping].",
    "schedule.milestones=[a,b]": "schedule.milestones=['a', 'b'] is not possible: it must be null or a list, each a number.",
    "method.milestones=0.5": "method.milestones=0.5 is not possible: it must be a list, such as [1,2]",
    "callbacks=[early_stopping] callbacks.early_stopping.monitor=val/acc": "monitor=val/acc is not possible: it must be a metric",
    "F=${nope}": "F=${nope} is not possible: there is no nope.",
    "F=${oc.env:NOPE}": "F=${oc.env:NOPE} is not possible: there is no NOPE.",
    "method=": "method='' is not possible: it must be one of baseline,",
    "hydra.job.nam=x": "hydra.job.nam=x is not possible: it is no setting of Hydra's.",
    "optimizer.momentum=2": "optimizer.momentum=2 is not possible: it must be a number in [0, 1)",
    "compare=[random] method=plb": "method='plb' is not possible: it must be left out, or one of compare=['random']",
    "data=parquet": "data.",
    "trainer.devices=999": "trainer.devices=999 is not possible: it must be at most ",
    "trainer.devices=[0]": "`devices` selected with `CPUAccelerator` should be an int > 0.",
    "trainer.val_check_interval=0": "trainer.val_check_interval=0 is not possible: it must be null, an int >= 1 of batches",
    "trainer.limit_test_batches=0 test=true": "test=True is not possible: it must be false with trainer.limit_test_batches=0",
    "trainer.overfit_batches=1": "it is no setting yet. lightning.Trainer takes it: write +trainer.overfit_batches=1.",
    "logger=wandb logger.wandb.tags=[a,b]": "WandbLogger takes it: write +logger.wandb.tags=[a,b].",
    "logger=[]": "or logger=none",
    "logger=null": "logger='null' is not possible: it must be one of csv, many, none",
    "data=3": "data='3' is not possible: it must be one of cifar10,",
    "callbacks=early_stopping callbacks.early_stopping.monitor=": "Early stopping conditioned on metric `` which is not available",
    "F=${nothing}": "F=${nothing} is not possible: there is no nothing.",
    "experiment=imagenet": "experiment='imagenet' is not possible: it must be one of cifar100_wrn28_10",
}  # fmt: skip


def generated():
    """The words of each case, and what its sentence must hold."""
    for name in COUNTS:
        yield from ((f"{name}={value}", f"{name}=") for value in ("abc", "1.5", "true"))
    for name in NUMBERS:
        yield from ((f"{name}={value}", f"{name}=") for value in ("abc", "true", "nan"))
    for name in FLAGS:
        yield f"{name}=maybe", f"{name}="
    for group in GROUPS:
        yield f"{group}=nowhere", f"{group}='nowhere' is not possible: it must be one of"
        yield f"~{group}", group
    for typo, meant in TYPOS.items():
        yield typo, f"Did you mean {meant}?"
        yield f"+{typo}", f"Did you mean {meant}?"
    yield from OTHERS.items()


CASES = dict(generated())
# one of each kind that the issue names; the others take the same paths
QUICK = {
    *("F=abc", "seed=true", "optimizer.lr=nan", "compare=[baseline,baseline]", "trainer.accumulate_grad_batches=0", "~method"),
    *("trainer.limit_train_batches=0", "ckpt_path=folder", "method=rho_loss method.irreducible=text", "hydra.run.dir=text/run"),
    *("optimiser.lr=0.5", "method=[random,plb]", "compare=[random] method=plb"),
    *("logger=null", "trainer.overfit_batches=1", "callbacks=early_stopping callbacks.early_stopping.monitor="),
    *("save=0.3 F=0.2", "guard=metric guard.reference=folder"),
}


def test_there_are_a_hundred_cases_and_more():
    assert len(CASES) >= 100 and CASES.keys() >= QUICK


def started(words, monkeypatch, capsys):
    """Run the program's own main function as its script would, and return the exit status and what it said."""
    typed = words.split()  # options come first: argparse takes no override after one that follows others
    monkeypatch.setattr("sys.argv", ["kakurenbo-train", *(typed + TINY if words.startswith("--") else TINY + typed)])
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's handler keeps the stream that an earlier test has closed
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train.main()
    said = capsys.readouterr().err
    return (1, ended.value.code + said) if isinstance(ended.value.code, str) else (ended.value.code, said)


@pytest.mark.parametrize("words", [pytest.param(w, marks=[] if w in QUICK else pytest.mark.slow, id=w) for w in CASES])
def test_bad_input_ends_with_a_sentence(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KAKURENBO_STARTED", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    for folder in ("folder", "ran"):
        (tmp_path / folder).mkdir()
    (tmp_path / "text").write_text("no checkpoint")
    (tmp_path / "ran" / "results.json").touch()
    status, said = started(words, monkeypatch, capsys)
    assert status == 1 and "Traceback" not in said
    assert "Error executing job" not in said, "Hydra's line, with every override"
    sentences = [line for line in said.splitlines() if CASES[words] in line]
    assert len(sentences) == 1, said
    assert sentences[0].endswith((".", "?")), "it is a sentence"


def test_a_sweep_says_which_run_has_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KAKURENBO_STARTED", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    status, said = started("F=1.5,2 hydra.mode=MULTIRUN", monkeypatch, capsys)
    sentences = [line for line in said.splitlines() if "max_fraction" in line]
    assert status == 1 and "Error executing job" not in said
    assert (
        len(sentences) == 1 and sentences[0].startswith("run 0 (") and " F=1.5): kakurenbo: F=1.5 (max_fraction)" in sentences[0]
    )


def test_options_of_a_folder_of_the_users_are_suggested(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "method").mkdir(parents=True)
    (tmp_path / "own" / "method" / "halved.yaml").write_text("defaults: [/kakurenbo/method@_here_: random]\n")
    status, said = started("--config-dir own method=halvd", monkeypatch, capsys)
    assert status == 1 and "Did you mean halved?" in said


def test_the_traceback_is_there_for_who_asks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr("sys.argv", ["kakurenbo-train", *TINY, "seed=-1"])
    with pytest.raises(ValueError, match="seed=-1 is not possible"):
        train.main()


def test_without_a_gpu_the_setting_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KAKURENBO_STARTED", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    status, said = started("trainer.accelerator=gpu", monkeypatch, capsys)
    assert status == 1 and "trainer.accelerator=gpu is not possible: torch finds no GPU here." in said


def test_an_error_of_the_code_keeps_its_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KAKURENBO_STARTED", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(train, "fit", lambda *given: {}["a mistake"])
    status, said = started("seed=1", monkeypatch, capsys)
    assert status == 1 and "Traceback" in said and "KeyError: 'a mistake'" in said


@pytest.mark.slow
def test_a_process_ends_with_the_sentence_and_the_status(tmp_path):
    said = kakurenbo_train("optimizer.lr=abc", cwd=tmp_path, fails=True)
    assert "optimizer.lr='abc' is not possible: it must be a number." in said and "Traceback" not in said
    said = kakurenbo_train("optimizer.lr=abc", cwd=tmp_path, fails=True, HYDRA_FULL_ERROR="1")
    assert "Traceback" in said
