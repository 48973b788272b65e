"""Two nodes of two ranks each lose the link between them in mid-epoch."""

import json
import sys

import pytest
import torch
from cuts import on_ranks
from node_script import CUT, OPTIONS, TIMEOUT_SECONDS
from processes import REPOSITORY
from two_nodes import two_nodes

from recipes.benchmarks.fault_run import differences

SCRIPT = REPOSITORY / "tests" / "support" / "node_script.py"
RANKS = range(4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nodes_that_lose_their_link_end_by_name_and_go_on_to_the_weights_of_the_uncut_run(tmp_path):
    with two_nodes() as nodes:
        codes, printed = nodes.torchrun(SCRIPT, tmp_path, "cut")
        assert all(codes) and (tmp_path / "cut").exists(), printed
        epoch, batch = CUT
        for rank in RANKS:
            file = tmp_path / f"cut.{rank}.json"
            assert file.exists(), printed
            end, waited = json.loads(file.read_text()), file.stat().st_mtime - (tmp_path / "cut").stat().st_mtime
            assert end["type"] == "RuntimeError" and waited < 2 * TIMEOUT_SECONDS, (end, waited)
            if sys.version_info >= (3, 11):  # exceptions have notes since then
                assert any(f"rank {rank}, in epoch {epoch} after step {batch} of" in note for note in end["notes"]), end
        nodes.restore_link()
        codes, printed = nodes.torchrun(SCRIPT, tmp_path, "resumed")
        assert codes == [0, 0], printed
    uncut = on_ranks(tmp_path / "uncut", "kakurenbo", 4, strategy="ddp_find_unused_parameters_true", **OPTIONS)
    for rank in RANKS:
        resumed = torch.load(tmp_path / f"resumed.{rank}.pt", weights_only=True)
        assert resumed["resumed"] == {"epoch": 1, "step": 2, "validated": 0, "ended": 0}, (
            "from the checkpoint after 8 steps, 6 of them in epoch 0"
        )
        assert differences(uncut[rank], resumed) == []
