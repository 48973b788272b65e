"""The figures that documents quote are those of the files in recipes/benchmarks/results, and each file is quoted."""

import json
import re

import pytest
from processes import REPOSITORY

from recipes.benchmarks.fits import written
from recipes.benchmarks.report import compact, in_units

RESULTS = REPOSITORY / "recipes/benchmarks/results"
METHODS = "kakurenbo_lightning/methods"
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "recipes/benchmarks/README.md", *(REPOSITORY / METHODS).rglob("*.md")]
MILLION = 1_280_000


def rows_of(result):
    """The rows of a result, whatever it calls them."""
    return next(
        value for name, value in result.items() if name != "machines" and isinstance(value, list) and isinstance(value[0], dict)
    )


def interval(figure):
    return f"{figure['median']:.3f} ({figure['low']:.3f} - {figure['high']:.3f})"


def million(rows):
    return next(row for row in rows if row["samples"] == MILLION)


def controls(rows):
    for row in rows:
        yield from (written(row["accuracy"], ".2f", 100), written(row["samples_trained"], ",.0f").split(" ")[0])
        yield f"{row['cpu_s']['mean']:.1f}"
        if row["run"] != "baseline":
            yield from (written(row["difference"], "+.2f", 100), written(row["time_ratio"], ".3f"))


def losers(rows):
    for row in rows:
        yield written({"mean": 1 - row["error"]["mean"], "std": row["error"]["std"]}, ".2f", 100)
        yield f"{row['samples_trained']['mean']:,.0f}"
        if row["run"] != "baseline":
            yield written(row["difference"], ".1f" if row["run"].endswith("beta 3") else ".2f", 100)
            yield f"{row['time_ratio']['mean']:.3f}"
        if row["there_cpu_s"]:
            yield f"{row['there_cpu_s']['mean']:.1f} s"
        yield from (
            f" {100 * row[f'error_at_{share}']['mean']:.2f} " for share in (0.25, 0.5, 0.75, 1.0) if row[f"error_at_{share}"]
        )


def noise(rows):
    for row in rows:
        for share in (0.0, 0.001, 0.1, 0.2):
            difference = "" if row["run"] == "baseline" else f" ({written(row[f'difference_at_{share}'], '+.1f', 100)})"
            yield written(row[f"accuracy_at_{share}"], ".1f", 100) + difference


def stale(rows):
    for row in rows:
        yield from (written(row["accuracy"], ".1f", 100), f"{row['samples_refreshed']['mean']:,.0f}")
        yield from (written(row["distribution_distance"], ".3f"), written(row["ordered_share"], ".2f"))


def plans(rows):
    for row in rows:
        if row["options"] == "default" and row["samples"] == MILLION:
            yield f"| `{row['method']}` | "
            yield f"{100 * row['hidden_share']:.0f} % |"


def selection(rows):
    for row in rows:
        yield f"{row['ns_per_sample']:.0f} ns"
    yield f"| {million(rows)['times_faster']:.0f} |"


def saving(rows):
    for row in rows[1:]:
        yield from (f"{100 * row['saving']:.1f} %", f"{100 * row['ideal_saving']:.1f} %")
    yield from (f"{100 * row['achieved']:.1f} %" for row in rows[2:])


def overhead(rows):
    yield from (f"{row['plain_ms']:.1f} ms" for row in rows[1:])
    yield from (f"{rows[0]['ratio']:.3f} | {rows[0]['extra_us_per_step']:.0f} us", f"{rows[1]['ratio']:.4f}")


def transfer(rows):
    by_run = {row["run"]: row for row in rows}
    yield f"{by_run['kakurenbo']['cpu_s_ratio']['mean']:.2f}"
    for run in ("kakurenbo", "baseline", "random"):
        yield written(by_run[run]["pre_accuracy"], ".1f", 100).replace("+-", "±")
    for run in by_run:
        yield written(by_run[run]["accuracy"], ".1f", 100).replace("+-", "±")


def faults(rows):
    kills = sum(len(row["moments"]) for row in rows)
    assert all(row["exact"] for row in rows) and {row["world_size"] for row in rows} == {1, 2}
    yield f"{kills} kills over the {len({row['method'] for row in rows})} methods"
    yield f"{kills} exact"


def drawing(rows):
    for row in rows:
        yield f"{row['samples']:,} | " + " | ".join(
            f"{1e6 * row[key]['median']:.0f} us" for key in ("draw_s", "update_s", "both_s")
        )


def checkpoint(rows):
    row = million(rows)
    yield f"{row['bytes_per_sample']:.1f} bytes per sample, written in {1e3 * row['write_file_s']:.0f} ms"
    yield f"and read in {1e3 * row['read_file_s']:.0f} ms"


def fractal(rows):
    for form in ("array", "folder"):
        yield " and ".join(f"{row['images_per_s'][form]['median']:,.0f}" for row in rows if row["instances"] == 100)


def backprop(rows):
    yield from (interval(row["ratio"]) for row in rows if row["variant"] != "baseline")


def recording(result):
    yield from (f"{100 * result['run']['share']:.2f} %", f"{result['run']['fit_cpu_s']:.0f} s")
    yield from (f"{1e3 * result['large'][0]['epoch_s']:.0f} ms", f"{1e3 * result['large'][0]['write_s']:.0f} ms")


QUOTED = [
    (f"{METHODS}/hide/infobatch.md", "controls", controls),
    (f"{METHODS}/backprop/selective_backprop.md", "losers", losers),
    (f"{METHODS}/backprop/selective_backprop.md", "backprop-1", backprop),
    (f"{METHODS}/backprop/selective_backprop.md", "backprop-2", backprop),
    (f"{METHODS}/draw/plb.md", "noise", noise),
    (f"{METHODS}/draw/plb.md", "stale", stale),
    (f"{METHODS}/draw/plb.md", "drawing", drawing),
    (f"{METHODS}/draw/plb.md", "overhead-plb", lambda rows: [f"{rows[0]['ratio']:.3f}", f"{rows[0]['control_ratio']:.3f}"]),
    (f"{METHODS}/hide/kakurenbo.md", "selection", lambda rows: [f"{million(rows)['ns_per_sample']:.0f} ns per sample"]),
    ("recipes/benchmarks/README.md", "overhead", overhead),
    ("recipes/benchmarks/README.md", "selection", selection),
    ("recipes/benchmarks/README.md", "plans", plans),
    ("recipes/benchmarks/README.md", "saving", saving),
    ("recipes/benchmarks/README.md", "fractal", fractal),
    ("README.md", "transfer", transfer),
    ("README.md", "faults", faults),
    ("README.md", "checkpoint", checkpoint),
    (
        "README.md",
        "selection",
        lambda rows: [f"{million(rows)['times_faster']:.0f} times", f"({in_units(rows[-1]['seconds'])[:3]} s)"],
    ),
    ("README.md", "drawing", lambda rows: [f"{1e3 * million(rows)['both_s']['median']:.2f} ms at N = 1.28M"]),
    ("README.md", "saving", lambda rows: [f"{100 * rows[2]['achieved']:.1f} %"]),
    ("README.md", "overhead", lambda rows: [f"{rows[1]['ratio']:.4f}"]),
]


def holds(document, result_file, quoted):
    text = " ".join((REPOSITORY / document).read_text().split())
    missing = [figure for figure in quoted if " ".join(figure.split()) not in text]
    assert not missing, f"{document} does not hold what {result_file} says: {missing}"


@pytest.mark.parametrize(("document", "name", "figures"), QUOTED, ids=[f"{name} in {document}" for document, name, _ in QUOTED])
def test_a_document_quotes_the_figures_of_a_file(document, name, figures):
    holds(document, name, figures(rows_of(json.loads((RESULTS / f"{name}.json").read_text()))))


def test_the_documents_quote_what_recording_costs():
    result = json.loads((RESULTS / "recording.json").read_text())
    share, fit, *large = recording(result)
    holds("recipes/benchmarks/README.md", "recording", [share, fit, *large])
    holds("README.md", "recording", [share, fit])


def test_each_file_is_quoted_and_each_named_file_is_there():
    named = {name for path in DOCUMENTS for name in re.findall(r"results/([\w-]+\.\w+)", path.read_text())}
    assert all((RESULTS / name).is_file() for name in named)
    quoted = {f"{name}.json" for _, name, _ in QUOTED} | {"recording.json", "stale.png"}
    assert quoted == {path.name for path in RESULTS.iterdir()} and named <= quoted


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_file_is_as_benchmarks_write_it(path):
    result = json.loads(path.read_text())
    assert path.read_text() == compact(result)
    assert result["benchmark"] == re.sub(r"-\w+$", "", path.stem) and "recipes.benchmarks." in result["machine"]["command"]
