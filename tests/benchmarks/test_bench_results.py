"""The figures that documents quote are those of the files in recipes/benchmarks/results, and each file is quoted."""

import json
import re
from statistics import mean

import pytest
from processes import REPOSITORY

from kakurenbo_lightning import available_methods
from recipes.benchmarks import quotes
from recipes.benchmarks.fits import written
from recipes.benchmarks.report import compact

RESULTS = REPOSITORY / "recipes/benchmarks/results"
METHODS = REPOSITORY / "kakurenbo_lightning/methods"
DOCS, BENCHMARKS = REPOSITORY / "docs", REPOSITORY / "recipes/benchmarks/README.md"
MILLION = 1_280_000


def result_of(name):
    """A result with its rows, whatever it calls them, and the row of 1.28 million samples, if there is one."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    lists = [value for key, value in result.items() if key != "machines" and isinstance(value, list)]
    rows = next(value for value in lists if isinstance(value[0], dict))
    return result, rows, next((row for row in rows if row.get("samples") == MILLION), None)


def keys(result, rows):
    pair = result["epochs"]
    yield "{:.1f}, {:.1f} and {:.1f} million".format(*(row["per_second"]["median"] / 1e6 for row in rows))
    yield f"{pair['ratio']['median']:.2f} of one that trains on everything"
    yield f"of which reading takes {100 * pair['reading_share']:.0f} % and decoding {100 * pair['decoding_share']:.0f} %"


def controls(rows):
    for row in rows:
        yield from (written(row["accuracy"], ".2f", 100), f"{row['samples_trained']['mean']:,.0f}", f"{row['cpu_s']['mean']:.1f}")
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


def saving(rows):
    yield from (f"{100 * row[key]:.1f} %" for row in rows[1:] for key in ("saving", "ideal_saving"))
    yield from (f"{100 * row['achieved']:.1f} %" for row in rows[2:])


def how_near(result, rows):
    """The sentences on the ideal saving, and on what a forward pass takes."""
    thirty, half = rows[2:4]
    yield f"the forward pass took {100 * result['forward_s'] / result['full_s']:.0f} % of an epoch"
    yield f"hiding 30 % saved {100 * thirty['saving']:.1f} % of the time and hiding half {100 * half['saving']:.1f} %"
    yield f"{100 * thirty['achieved']:.1f} % and {100 * half['achieved']:.1f} % of the ideal"


def forward_passes(result, rows):
    yield f"{100 * result['forward_s'] / result['full_s']:.0f} % o"  # of training, or on ResNet-8
    yield f"iding 30 % saved {100 * rows[2]['saving']:.0f} % of the time"


def quarter(rows):
    """The paragraph of docs/results.md on a quarter of the images."""
    baseline, infobatch, alike, _, own, random, in_time = rows
    shares = [f"{100 * row['accuracy']['mean']:.1f}" for row in (own, baseline, random, in_time, alike, infobatch)]
    yield f"({shares[0]} against {shares[1]} %) in {own['time_ratio']['mean']:.2f} of its time"
    yield f"hiding as much at random ({shares[2]} %) and a baseline of equal time ({shares[3]} %)"
    yield f"takes {infobatch['time_ratio']['mean']:.2f} of the time and loses {-100 * infobatch['difference']['mean']:.1f} points there"
    yield f"no better than random ({shares[4]} against {shares[5]} %)"


def save(rows):
    for row in rows[1:]:
        figures = [f"{row['chosen_share']['mean']:.3f}", f"{row['chosen_interval']['mean']:.0f}"]
        figures += [f"{100 * row[key]['mean']:.1f} %" for key in ("hidden_share", "predicted")]
        saved, moved = ([100 * row[key][part] for part in ("mean", "std")] for key in ("saved", "difference"))
        yield " | ".join([*figures, f"{saved[0]:.1f} ± {saved[1]:.1f} %", f"{moved[0]:+.2f} ± {moved[1]:.2f}"])


def sharded(rows):
    for row in rows:
        seconds = [f"{row[key]:.2f} s" for key in ("merge_s", "plan_s", "shard_s", "seconds")]
        held = f"{round(row['statistics_bytes_per_sample'], 2):g} | {row['peak_bytes_per_sample']:.1f}"
        yield " | ".join([*seconds, held, f"{row['sent_bytes_per_trained_sample']:.1f} |"])


def overhead(rows):
    yield from (f"{row['plain_ms']:.1f} ms" for row in rows[1:])
    yield from (f"{rows[0]['ratio']:.3f} | {rows[0]['extra_us_per_step']:.0f} us", f"{rows[1]['ratio']:.4f}")


def transfer(rows):
    yield f"{rows[2]['cpu_s_ratio']['mean']:.2f}"
    figures = [row[key] for row in rows for key in ("accuracy", "pre_accuracy") if row[key]]
    yield from (written(figure, ".1f", 100).replace("+-", "±") for figure in figures)


def recent(rows):
    for row in rows:
        if not row["run"].startswith("random, data of random"):
            yield from (written(row["accuracy"], ".2f", 100), written(row["worst"], ".1f", 100))
            yield from (f"{row[key]['mean']:,.0f}" for key in ("samples_trained", "samples_refreshed"))
            yield "baseline" if row["run"] == "baseline" else written(row["difference"], "+.2f", 100)


def transfer_of_five(rows):
    assert [row["run"] for row in rows] == ["none", "baseline", "iswr", "forget", "selective_backprop", "kakurenbo"]
    keys = [("pre_loss", ".3f", 1), ("pre_accuracy", ".1f", 100), ("hidden_share", ".1f", 100), ("cost_ratio", ".2f", 1)]
    for key, form, scale in [*keys, ("cpu_s_ratio", ".2f", 1), ("accuracy", ".1f", 100)]:
        yield f"| {' | '.join(written(row[key], form, scale).replace('+-', '±') for row in rows[1:])} |"
    yield f"Without pre-training: {written(rows[0]['accuracy'], '.1f', 100).replace('+-', '±')} %"


def faults(rows):
    kills = sum(len(row["moments"]) for row in rows)
    assert all(row["exact"] for row in rows) and {row["world_size"] for row in rows} == {1, 2, 3}
    yield from (f"{kills} kills over the {len({row['method'] for row in rows})} methods", f"{kills} exact")


def drawing(rows):
    for row in rows:
        yield f"{row['samples']:,} | " + " | ".join(
            f"{1e6 * row[key]['median']:.0f} us" for key in ("draw_s", "update_s", "both_s")
        )


def fractal(rows):
    for form in ("array", "folder"):
        yield " and ".join(f"{row['images_per_s'][form]['median']:,.0f}" for row in rows if row["instances"] == 100)


def backprop(rows):
    ratios = [row["ratio"] for row in rows if row["variant"] != "baseline"]
    return [f"{ratio['median']:.3f} ({ratio['low']:.3f} - {ratio['high']:.3f})" for ratio in ratios]


def plans(rows):
    rows = [row for row in rows if row["options"] == "default" and row["samples"] == MILLION]
    return [f"| `{row['method']}` | " for row in rows] + [f"{100 * row['hidden_share']:.0f} % |" for row in rows]


def on_digits(rows):
    for row in rows:
        yield written(row["accuracy"], ".2f", 100)
        for key, form in (("rare_accuracy", ".2f"), ("left_out", ".1f")):
            if key in row:
                yield written(row[key], form, 100)
        if row.get("rank_correlation"):
            yield written(row["rank_correlation"], ".2f")


def advice(rows):
    for row in rows[1:]:
        assert row["off"]["mean"] == pytest.approx(abs(row["saved"]["mean"] - row["most"]["mean"]))  # of its one seed
        figures = [format(100 * row[key]["mean"], ".1f") for key in ("now", "most", "saved", "off")]
        yield f"| `{row['run']}` | {' | '.join(figures)} |"
    yield f"at most {max(100 * row['off']['mean'] for row in rows[1:]):.1f} points"
    yield f"up to {max(100 * (row['saved']['mean'] - row['now']['mean']) for row in rows[1:]):.1f} "


def refreshed(summary):
    parts = (
        ("accuracy", ".2f", 100),
        ("difference", "+.2f", 100),
        ("samples_trained", ",.0f", 1),
        ("samples_refreshed", ",.0f", 1),
    )
    for row in summary:
        figures = [written(row[name], form, scale).replace("+-", "±") for name, form, scale in (*parts, ("time_ratio", ".3f", 1))]
        yield f"| {row['run']} | {' | '.join(figures)} |"


def doctor(rows):
    for row in rows:
        area = "-" if row["auroc"] is None else f"{row['auroc']['mean']:.4f}"
        shares = [f"{100 * row[key]['mean']:.1f}" for key in ("precision", "recall")]
        yield f"| {row['run']} | {area} | {row['flagged']['mean']:,.0f} | {' | '.join(shares)} |"


def copies(summary):
    parts = (("copies", ",.0f", 1), ("chance", ".2f", 100), ("found", ".1f", 100), ("precision", ".1f", 100))
    for row in summary:
        yield f"| {row['run']} | {' | '.join(written(row[name], *form).replace('+-', '±') for name, *form in parts)} |"


def limits(summary):
    means = {
        row["run"]: [100 * row[name]["mean"] for name in ("candidates", "hidden", "moved_back", "scored")] for row in summary
    }
    for epoch in range(len(summary) // 2):
        figures = [f"{figure:.1f}" for run in ("defaults", "fast") for figure in means[f"{run}, epoch {epoch}"]]
        yield f"| {epoch} | {' | '.join(figures)} |"
    for run in ("defaults", "fast"):
        yield f"{mean(hidden for name, (_, hidden, _, _) in means.items() if name.startswith(run)):.1f} % are hidden on average"
        yield f"{mean(scored for name, (_, _, _, scored) in means.items() if name.startswith(run)):.1f} %"


def strategies(result, rows):
    def interval(one):
        return f"{one['median']:.3f} ({one['low']:.3f} to {one['high']:.3f})"

    for row in rows:
        yield f"| {row['strategy']} | {row['plain_ms']:.1f} ms | {interval(row['ratio'])} | {interval(row['control_ratio'])} |"
    against = result["fsdp2_against_ddp"]
    yield f"{against['median']:.3f} of that under DDP ({against['low']:.3f} to {against['high']:.3f})"


# by document and file, what makes the quoted figures of the result, its rows and its row of 1.28 million samples
QUOTED = {
    (METHODS / "hide/infobatch.md", "controls"): lambda result, rows, million: controls(rows),
    (METHODS / "hide/orderdp.md", "recent"): lambda result, rows, million: recent(rows),
    (METHODS / "hide/rcap.md", "recent-rare"): lambda result, rows, million: recent(rows),
    (METHODS / "hide/ies.md", "recent"): lambda result, rows, million: [
        written(row["accuracy"], ".2f", 100) for row in rows if row["run"] == "baseline" or row["run"].endswith("ies")
    ],
    (METHODS / "hide/kakurenbo.md", "selection"): lambda result, rows, million: [f"{million['ns_per_sample']:.0f} ns per sample"],
    (METHODS / "backprop/selective_backprop.md", "losers"): lambda result, rows, million: losers(rows),
    (METHODS / "backprop/selective_backprop.md", "masks"): lambda result, rows, million: controls(rows),
    (METHODS / "backprop/selective_backprop.md", "backprop-1"): lambda result, rows, million: backprop(rows),
    (METHODS / "backprop/selective_backprop.md", "backprop-2"): lambda result, rows, million: backprop(rows),
    (METHODS / "draw/plb.md", "noise"): lambda result, rows, million: noise(rows),
    (METHODS / "draw/plb.md", "stale"): lambda result, rows, million: stale(rows),
    (METHODS / "draw/plb.md", "stale-owc"): lambda result, rows, million: stale(rows),
    (METHODS / "draw/plb.md", "drawing"): lambda result, rows, million: drawing(rows),
    (METHODS / "draw/plb.md", "overhead-plb"): lambda result, rows, million: [
        f"{rows[0][key]:.3f}" for key in ("ratio", "control_ratio")
    ],
    (METHODS / "draw/weighted.md", "on_digits-weighted"): lambda result, rows, million: on_digits(rows),
    (METHODS.parent / "signals/batch_loss.md", "on_digits-bls"): lambda result, rows, million: on_digits(rows),
    (BENCHMARKS, "overhead"): lambda result, rows, million: overhead(rows),
    (BENCHMARKS, "verification"): lambda result, rows, million: [
        f"{row['first_batch_steps']['median']:.2f} | {row['later_ratio']['median']:.3f}" for row in rows
    ],
    (BENCHMARKS, "strategies"): lambda result, rows, million: strategies(result, rows),
    (DOCS / "strategies.md", "strategies"): lambda result, rows, million: list(strategies(result, rows))[-1:],
    (BENCHMARKS, "selection"): lambda result, rows, million: [f"{row['ns_per_sample']:.0f} ns" for row in rows],
    (BENCHMARKS, "plans"): lambda result, rows, million: plans(rows),
    (BENCHMARKS, "saving"): lambda result, rows, million: saving(rows),
    (BENCHMARKS, "advice"): lambda result, rows, million: advice(rows),
    (DOCS / "choosing.md", "advice"): lambda result, rows, million: list(advice(rows))[-2:],
    (BENCHMARKS, "arena"): lambda result, rows, million: quotes.all_rows(result),
    (BENCHMARKS, "arena-wide"): lambda result, rows, million: quotes.all_rows(result),
    (BENCHMARKS, "arena-deep"): lambda result, rows, million: quotes.all_rows(result),
    (BENCHMARKS, "arena-fractals"): lambda result, rows, million: quotes.all_rows(result),
    (BENCHMARKS, "arena-text"): lambda result, rows, million: quotes.all_rows(result),
    (BENCHMARKS, "refresh"): lambda result, rows, million: refreshed(result["summary"]),
    (BENCHMARKS, "doctor"): lambda result, rows, million: doctor(rows),
    (BENCHMARKS, "copies"): lambda result, rows, million: copies(result["summary"]),
    (BENCHMARKS, "limits"): lambda result, rows, million: limits(result["summary"]),
    (BENCHMARKS, "sharded"): lambda result, rows, million: sharded(rows),
    (BENCHMARKS, "sharded-simulated"): lambda result, rows, million: sharded(rows[1:]),
    (DOCS / "scale.md", "sharded"): lambda result, rows, million: sharded(rows),
    (DOCS / "scale.md", "sharded-simulated"): lambda result, rows, million: sharded(rows[1:]),
    (BENCHMARKS, "keys"): lambda result, rows, million: keys(result, rows),
    (DOCS / "streams.md", "keys"): lambda result, rows, million: keys(result, rows),
    (BENCHMARKS, "save"): lambda result, rows, million: save(rows),
    (BENCHMARKS, "fractal"): lambda result, rows, million: fractal(rows),
    (BENCHMARKS, "fractal-exfractaldb"): lambda result, rows, million: fractal(rows),
    (BENCHMARKS, "fractal-rcdb"): lambda result, rows, million: fractal(rows),
    (BENCHMARKS, "transfer-five"): lambda result, rows, million: transfer_of_five(rows),
    (BENCHMARKS, "recording"): lambda result, rows, million: [
        *(f"{100 * result['run']['share']:.2f} %", f"{result['run']['fit_cpu_s']:.0f} s"),
        *(f"{1e3 * million[key]:.0f} ms" for key in ("epoch_s", "write_s")),
    ],
    (DOCS / "results.md", "recording"): lambda result, rows, million: [f"{100 * result['run']['share']:.2f} %"],
    (DOCS / "recipes.md", "transfer"): lambda result, rows, million: transfer(rows),
    (DOCS / "resume.md", "faults"): lambda result, rows, million: faults(rows),
    (DOCS / "resume.md", "checkpoint"): lambda result, rows, million: [
        f"{million['bytes_per_sample']:.1f} bytes per sample, written in {1e3 * million['write_file_s']:.0f} ms",
        f"and read in {1e3 * million['read_file_s']:.0f} ms",
    ],
    (DOCS / "results.md", "selection"): lambda result, rows, million: [
        f"{million['times_faster']:.0f} times",
        f"({rows[-1]['seconds']:.1f} s)",
    ],
    (DOCS / "results.md", "drawing"): lambda result, rows, million: [
        f"{1e3 * million['both_s']['median']:.2f} ms at N = 1.28M",
        f"{1e3 * rows[-1]['both_s']['median']:.2f} ms at 100M",
    ],
    (DOCS / "results.md", "overhead-plb"): lambda result, rows, million: [
        f"{rows[0]['ratio']:.3f} times a plain one (a second plain one: {rows[0]['control_ratio']:.3f})"
    ],
    (DOCS / "results.md", "saving"): lambda result, rows, million: how_near(result, rows),
    (DOCS / "choosing.md", "saving"): lambda result, rows, million: forward_passes(result, rows),
    (REPOSITORY / "README.md", "saving"): lambda result, rows, million: forward_passes(result, rows),
    (DOCS / "faq.md", "saving"): lambda result, rows, million: list(forward_passes(result, rows))[:1],
    (DOCS / "choosing.md", "save"): lambda result, rows, million: [
        "{:.0f} to {:.0f} % of a step".format(
            *(100 * end(row["forward_share"]["mean"] for row in rows[1:]) for end in (min, max))
        )
    ],
    (DOCS / "results.md", "controls"): lambda result, rows, million: quarter(rows),
    (DOCS / "reports.md", "doctor"): lambda result, rows, million: [
        f"{100 * rows[0]['precision']['mean']:.1f} % are among the {rows[0]['flagged']['mean']:,.0f} with the lowest average margin"
    ],
    (DOCS / "results.md", "overhead"): lambda result, rows, million: [
        f"{rows[1]['ratio']:.4f}",
        "{:.2f} to {:.2f} ms more".format(*sorted(row["extra_us_per_step"] / 1e3 for row in rows[:2])),
    ],
}


@pytest.mark.parametrize(("document", "name"), QUOTED, ids=[f"{name} in {path.name}" for path, name in QUOTED])
def test_a_document_quotes_the_figures_of_a_file(document, name):
    text = " ".join(document.read_text().split())
    figures = [" ".join(figure.split()) for figure in QUOTED[document, name](*result_of(name))]
    assert figures and [figure for figure in figures if figure not in text] == []


def test_each_file_is_quoted_and_each_named_file_is_there():
    documents = [REPOSITORY / "README.md", *DOCS.glob("*.md"), BENCHMARKS, *METHODS.parent.rglob("*.md")]
    named = {name for path in documents for name in re.findall(r"results/([\w-]+\.\w+)", path.read_text())}
    # the sentences on arena-tried are in test_bench_quotes.py
    arenas = {"arena-tried.json"} | {
        f"{name}{dark}.png" for name in ("arena", "arena-deep", "arena-fractals", "arena-wide") for dark in ("", "-dark")
    }
    quoted = {f"{name}.json" for _, name in QUOTED} | {"stale.png", "draws.png"} | arenas
    assert named <= quoted == {path.name for path in RESULTS.iterdir()}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_file_is_as_benchmarks_write_it(path):
    result = json.loads(path.read_text())
    assert path.read_text() == compact(result)
    assert result["benchmark"] == re.sub(r"-\w+$", "", path.stem) and "recipes.benchmarks." in result["machine"]["command"]


def test_the_row_on_memory_names_every_method_that_takes_more():
    row = next(line for line in (DOCS / "results.md").read_text().splitlines() if line.startswith("| memory on the device"))
    said, _, _ = row.partition(";")
    of_a_draw = int(re.search(r"the draw family and `rcap` (\d+)", said)[1])
    named = {
        name: int(size) for names, size in re.findall(r"((?:`\w+`, )*`\w+`) (\d+)", said) for name in re.findall(r"\w+", names)
    }
    for name, info in available_methods().items():
        if info.card and METHODS in info.card.parents:
            assert named.get(name, of_a_draw if info.family == "draw" else 12) == info.bytes_per_sample, name


def test_what_was_not_measured_again_is_named():
    """Since 2026-11-20, when the files were first written: overhead and savings of older code."""
    dates = {path.stem: json.loads(path.read_text())["machine"]["date"] for path in RESULTS.glob("*.json")}
    old = sorted(name for name, date in dates.items() if date == "2026-11-20")
    assert f"Measured on 2026-11-20 and not again since: {', '.join(old)}." in " ".join(BENCHMARKS.read_text().split())
    quoted = [name for name in old if (DOCS / "results.md", name) in QUOTED]
    assert f"quoted here, {', '.join(quoted)} are of 2026-11-20" in " ".join((DOCS / "results.md").read_text().split())
    torch = {json.loads((RESULTS / f"{name}.json").read_text())["machine"]["torch"].partition("+")[0] for name in dates}
    assert f"torch {' or '.join(sorted(torch))}" in " ".join(BENCHMARKS.read_text().split())
