"""The picture of a comparison: the score of each method, and of its controls, against the time it took."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib import rc_context

from kakurenbo_lightning.arena.runs import Comparison, Row
from kakurenbo_lightning.arena.verdict import points
from kakurenbo_lightning.report.pareto import RELATIVE, pareto_picture
from kakurenbo_lightning.report.style import RC


def draw(comparison: Comparison, rows: Mapping[str, Row], target: Path, higher_is_better: bool = True) -> str:
    """Write the picture as a PNG file, and return what it shows in words.

    Baselines of fewer epochs are the line that a method must be left of and below; random choices of as few samples are beside them.

    Args:
        comparison: what was compared.
        rows: of what is trained, by name.
        target: the file; its folder is made.
        higher_is_better: whether a higher score is better; then the error is what the score lacks to 1, in percent.
    """
    table = pd.DataFrame(points(comparison, rows))
    if higher_is_better:
        table["error"], table["error_std"] = 100 * (1 - table["score"]), 100 * table["score_std"]
    else:
        table["error"], table["error_std"] = table["score"], table["score_std"]
    with rc_context(RC):
        picture = pareto_picture("arena", table, [RELATIVE], "error (%)" if higher_is_better else "score, lower is better")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture.png)
    return picture.alt
