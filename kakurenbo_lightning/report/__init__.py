"""Tables and pictures of what a :class:`~kakurenbo_lightning.record.RunRecorder` has written (extra ``report``)::

    runs, problems = read_runs([Path("results")])
    groups = make_groups(runs)
    print(comparison(groups))  # a pandas.DataFrame
    write_report(groups, problems, Path("report"), title="My runs")

The console script ``kakurenbo-report`` does this from the command line.
"""

from kakurenbo_lightning.core import extras

extras.require(__name__, "report", *extras.REPORT)

from kakurenbo_lightning.report.groups import Group, make_groups  # noqa: E402
from kakurenbo_lightning.report.page import write_report  # noqa: E402
from kakurenbo_lightning.report.reading import Problem, Run, read_runs  # noqa: E402
from kakurenbo_lightning.report.tables import comparison, comparison_text, latex, markdown, runs_table  # noqa: E402

__all__ = [
    "Group",
    "Problem",
    "Run",
    "comparison",
    "comparison_text",
    "latex",
    "make_groups",
    "markdown",
    "read_runs",
    "runs_table",
    "write_report",
]
