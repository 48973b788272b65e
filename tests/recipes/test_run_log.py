"""What a run says, on the terminal and in the log of its folder."""

import csv
import json
import logging
import re
import warnings

import pytest
from kakurenbo_recipes.log import logged, say
from recipe_runs import TINY, kakurenbo_train

BAR = "trainer.enable_progress_bar=true"


def test_a_run_and_its_resumption_say_no_nonsense_and_keep_what_they_said(tmp_path):
    words = [*TINY, "tau=0", "hydra.run.dir=run", "ckpt_path=last"]
    shown = kakurenbo_train(*words, BAR, cwd=tmp_path)
    assert "/kakurenbo/checkpoints, so training starts from scratch" in shown and "hydra.run.dir=outputs/DATE/TIME" in shown
    log, kept = tmp_path / "run" / "kakurenbo-train.log", "SampleSelection: kakurenbo\n"
    assert "deprecated" not in shown
    assert re.search(r"hidden[:=] ?0\.\d", shown) and "train/loss" in shown and "v_num" not in shown
    said = log.read_text()
    for text in (kept, "`Trainer.fit` stopped", "after the last epoch", "results: "):
        assert text in said, text
    assert shown.count(kept) == 1

    shown = kakurenbo_train(*words, "trainer.max_epochs=3", cwd=tmp_path)
    assert "deleted" not in shown and "starts from scratch" not in shown and "Restored all states" in shown
    more = log.read_text().removeprefix(said)
    assert more != said and "Restored all states" in more and "[py.warnings][WARNING]" in more
    parts = [tmp_path / "run" / "kakurenbo" / part / "metrics.csv" for part in ("", "v2")]
    epochs = [{row["epoch"] for row in csv.DictReader(path.read_text().splitlines())} for path in parts]
    assert epochs == [{"0", "1"}, {"2"}]
    assert json.loads((tmp_path / "run" / "kakurenbo" / "run.json").read_text())["epochs"] == 3


@pytest.fixture
def log(tmp_path):
    """The file of a handler of the root's log, as Hydra makes one."""
    handler = logging.FileHandler(tmp_path / "run.log")
    logging.getLogger().addHandler(handler)
    yield tmp_path / "run.log"
    logging.getLogger().removeHandler(handler)
    handler.close()


def test_a_warning_is_shown_once_and_kept_and_an_error_is_kept(log, capsys):
    with pytest.raises(KeyError, match="lost"), logged():
        warnings.warn(" ".join(["look", "here"]), stacklevel=1)
        say("done")
        raise KeyError("lost")
    found, shown = log.read_text(), capsys.readouterr()
    assert found.count("look here") == found.count("done") == 1 and "KeyError: 'lost'" in found
    assert (shown.err.count("look here"), shown.out) == (1, "done\n") and "lost" not in shown.err


def test_after_a_run_logs_and_warnings_are_as_they_were(log):
    names = ("lightning.pytorch", "lightning.fabric", "py.warnings", "kakurenbo-train")
    before, show = [list(logging.getLogger(name).handlers) for name in names], warnings.showwarning
    with logged():
        assert [list(logging.getLogger(name).handlers) for name in names] != before
    assert [list(logging.getLogger(name).handlers) for name in names] == before and warnings.showwarning is show
