"""`kakurenbo-report`: what it writes: tables, figures, the page in a browser, the summary of a sweep."""

import csv
import html
import json
import re
import shutil
import subprocess

import pytest
from omegaconf import OmegaConf
from PIL import Image
from report_runs import RunFolder, groups_of, write_sweep

from kakurenbo_lightning.report.curves import overview
from kakurenbo_lightning.report.groups import Group
from kakurenbo_lightning.report.main import draw_all, main
from kakurenbo_lightning.report.maps import f_tau, kind, luminance, sweeps, thumbnails
from kakurenbo_lightning.report.panels import class_shares, first_run, parts, phases
from kakurenbo_lightning.report.summary import Summary
from kakurenbo_lightning.report.tables import best_of, comparison, not_drawn

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


def grid_runs(seeds=(0,), **options):
    """A 2 x 2 sweep of F and tau beside its baseline."""
    runs = [RunFolder("baseline", seed, score=0.9, seconds=20.0, **options) for seed in seeds]
    for fraction, tau, score in ((0.2, 0.5, 0.91), (0.2, 0.7, 0.92), (0.3, 0.5, 0.93), (0.3, 0.7, 0.94)):
        settings = {"max_fraction": fraction, "tau": tau}
        runs += [RunFolder("kakurenbo", seed, settings, score=score, seconds=100 * fraction * tau, **options) for seed in seeds]
    return runs


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A 2 x 2 sweep with 2 seeds and one run of each of the other families, reported; the folder of the runs."""
    folder = tmp_path_factory.mktemp("sweep")
    others = [RunFolder("selective_backprop", 0, score=0.9), RunFolder("plb", 0, score=0.9)]
    write_sweep(folder, [*grid_runs(seeds=(0, 1)), *others])
    main([str(folder)])
    return folder


# ---- output


def test_markdown_is_a_table_and_nothing_else(tmp_path, capsys):
    write_sweep(tmp_path, [RunFolder("baseline", score=0.9), RunFolder("a|b", score=0.91, seconds=5.0)])
    main([str(tmp_path), "--format", "markdown"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| method | accuracy (%) | difference (points) | seconds | saving |")
    assert lines[1] == "| --- |" + " ---: |" * 9
    assert lines[3].startswith("| a\\|b | 91.00 | +1.00 | 5.0 | 50.0% |") and len(lines) == 4
    assert not (tmp_path / "report").exists()


def test_the_help_shows_what_to_type(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "kakurenbo-report multirun/2026-01-31/12-00-00 --format markdown >> README.md" in capsys.readouterr().out


def test_a_report_has_a_picture_and_a_table_file_for_everything(sweep):
    names = {path.name for path in (sweep / "report").iterdir()}
    figures = {f"{name}.png" for name in ("overview", "scores", "selection", "f_tau", "phases", "losses", "classes", "samples_1")}
    assert figures | {"report.html", "comparison.csv", "runs.csv"} <= names
    for name in names:
        if name.endswith(".png"):
            with Image.open(sweep / "report" / name) as image:
                assert image.width == 800


def test_the_csv_files_hold_the_figures_unrounded(sweep):
    rows = list(csv.DictReader((sweep / "report" / "comparison.csv").open()))
    assert len(rows) == 7 and rows[1]["group"] == "kakurenbo, max_fraction=0.2, tau=0.5"
    assert float(rows[1]["difference"]) == pytest.approx(0.01)
    runs = list(csv.DictReader((sweep / "report" / "runs.csv").open()))
    assert len(runs) == 12
    assert "torch=2.13.0" in runs[0]["versions"] and "dirty=True" in runs[0]["git"]


def test_figures_that_do_not_apply_are_left_out(tmp_path):
    write_sweep(tmp_path, [RunFolder("baseline", image_size=None), RunFolder("plb", image_size=None)])
    problems = []
    drawn = draw_all(groups_of(tmp_path), problems)
    assert [one.picture.name for one in drawn] == ["overview", "scores", "phases", "losses"]
    assert not problems


def test_the_map_has_each_value_at_its_f_and_tau(sweep):
    ((name, rows),) = sweeps(groups_of(sweep))
    assert name == "kakurenbo"
    scores = {(row.max_fraction, row.tau): row.score for row in rows.itertuples()}
    assert scores == pytest.approx({(0.2, 0.5): 0.91, (0.2, 0.7): 0.92, (0.3, 0.5): 0.93, (0.3, 0.7): 0.94})
    savings = {(row.max_fraction, row.tau): row.saving for row in rows.itertuples()}
    assert savings[0.2, 0.5] > savings[0.3, 0.5] > savings[0.3, 0.7]


def test_a_map_shows_f_to_the_right_and_tau_upwards_and_a_dash_for_what_was_not_run(tmp_path):
    write_sweep(tmp_path, grid_runs(image_size=None)[:-1])
    (picture,) = f_tau(groups_of(tmp_path))
    axes = picture.figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.2", "0.3"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0.7", "0.5"]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "92.0",
        (1, 0): "-",
        (0, 1): "91.0",
        (1, 1): "93.0",
    }


def scattered(number):
    """Runs as a search makes them: every one has an F and a tau of its own."""
    places = [(0.1 + 0.5 * one / number, 0.3 + 0.6 * (7 * one % number) / number) for one in range(number)]
    options = {"image_size": None, "epochs": 2, "samples": 30}
    return [RunFolder("kakurenbo", 0, {"max_fraction": f, "tau": tau}, score=0.5 + 0.4 * f, **options) for f, tau in places]


def test_a_map_of_which_most_cells_would_be_empty_shows_points_in_the_colour_of_the_score(tmp_path):
    write_sweep(tmp_path, scattered(30))
    (picture,) = f_tau(groups_of(tmp_path))
    axes, (points,) = picture.figure.axes[0], picture.figure.axes[0].collections
    assert not axes.texts and picture.figure.get_size_inches()[1] < 4
    found = sorted((*place, score) for place, score in zip(points.get_offsets().tolist(), points.get_array(), strict=True))
    wanted = [(run.settings["max_fraction"], run.settings["tau"], 100 * run.score) for run in scattered(30)]
    assert [value for one in found for value in one] == pytest.approx([value for one in sorted(wanted) for value in one])


@pytest.mark.parametrize("scores", [(0.9, 0.9, 0.9, 0.9), (0.5, 0.6, 0.8, 0.9)])
def test_the_numbers_of_a_map_stand_out_from_their_cells(tmp_path, scores):
    runs = grid_runs(image_size=None)[1:]
    for run, score in zip(runs, scores, strict=True):
        run.score = score
    write_sweep(tmp_path, runs)
    (picture,) = f_tau(groups_of(tmp_path))
    axes = picture.figure.axes[0]
    (image,) = axes.images
    for text in axes.texts:
        column, row = text.get_position()
        cell = luminance(image.to_rgba(image.get_array())[row, column])
        assert abs(cell - (text.get_color() == "white")) > 0.45


def test_three_of_one_setting_are_no_map(tmp_path):
    write_sweep(tmp_path, [RunFolder("kakurenbo", 0, {"max_fraction": f, "tau": 0.7}) for f in (0.1, 0.2, 0.3)])
    assert sweeps(groups_of(tmp_path)) == []


def test_the_parts_of_a_runs_time_add_up_to_it(sweep):
    for group in groups_of(sweep):
        assert sum(parts(group.runs[0]).values()) == pytest.approx(group.runs[0].seconds)


def test_unfinished_runs_are_thin_lines_and_in_no_mean(tmp_path):
    killed = {"status": "running", "epochs": 2, "max_epochs": 6, "totals": {"train_seconds": 900.0}}
    runs = [
        RunFolder("kakurenbo", 0, changes=killed, epochs=2, image_size=16),
        RunFolder("kakurenbo", 1),
        RunFolder("kakurenbo", 2),
    ]
    (group,) = groups_of(write_sweep(tmp_path, runs))
    finished = Group(group.name, group.finished, {})
    assert first_run(group, lambda run: True).seed == 1
    assert class_shares(group).tolist() == class_shares(finished).tolist()
    assert [one.lines for one in thumbnails(group, True, 3)] == [one.lines for one in thumbnails(finished, True, 3)]
    lengths = [len(line.get_xdata()) for line in overview([group])[0].figure.axes[0].lines]
    assert sorted(lengths) == [2, 6, 6, 6]
    (thick,) = [line for line in overview([group])[0].figure.axes[0].lines if line.get_linewidth() > 1]
    assert len(thick.get_xdata()) == 6
    (bar,) = phases([group])
    assert bar.figure.axes[0].texts[1].get_text() == phases([finished])[0].figure.axes[0].texts[1].get_text()


def test_figures_show_the_best_groups_and_the_page_names_the_others(tmp_path):
    runs = [RunFolder("baseline", 0, score=0.1, image_size=None, epochs=2, samples=30), *scattered(23)]
    write_sweep(tmp_path, runs)
    groups = groups_of(tmp_path)
    best = best_of(groups)
    assert [group.method for group in best] == ["baseline", *["kakurenbo"] * 20]
    assert {group.runs[0].score for group in best} == {0.1, *(run.score for run in runs[-20:])}
    (problem,) = not_drawn(groups)
    named = problem.reason.split("these too: ")[1].split("; ")
    assert named == [group.name for group in groups if group not in best]
    assert len(comparison(groups)) == 24


def test_the_best_by_a_loss_are_the_lowest(tmp_path):
    runs = scattered(23)
    for run in runs:
        run.changes["metric"] = "val/loss"
    groups = groups_of(write_sweep(tmp_path, runs))
    assert {group.runs[0].score for group in best_of(groups)} == {run.score for run in runs[:20]}


def test_figures_of_an_earlier_report_are_removed_and_other_files_are_not(tmp_path):
    report = tmp_path / "report"
    RunFolder("kakurenbo", epochs=2, samples=30).write(tmp_path / "run")
    main([str(tmp_path / "run"), "-o", str(report)])
    assert (report / "samples_0.png").is_file()
    Image.new("RGB", (2, 2)).save(report / "scores_mine.png")
    (report / "text.png").write_text("no picture")
    (tmp_path / "run" / "thumbnails.npz").unlink()
    main([str(tmp_path / "run"), "-o", str(report)])
    names = {path.name for path in report.iterdir()}
    assert "samples_0.png" not in names and {"overview.png", "scores_mine.png", "text.png"} <= names


def test_classes_count_what_was_hidden_or_for_the_other_families_not_trained(tmp_path):
    write_sweep(tmp_path, [RunFolder("kakurenbo"), RunFolder("selective_backprop")])
    hides, rejects = (class_shares(group) for group in groups_of(tmp_path))
    assert hides.tolist() == pytest.approx(rejects.tolist()) and len(hides) == 10
    assert 0 <= hides[0] < hides[9] <= 100


def test_thumbnails_have_class_index_and_times(tmp_path):
    write_sweep(tmp_path, [RunFolder("baseline"), RunFolder("kakurenbo"), RunFolder("plb")])
    baseline, hides, draws = groups_of(tmp_path)
    assert not thumbnails(baseline, True, 24) and len(thumbnails(baseline, False, 24)) == 24
    label, index, times = thumbnails(hides, True, 24)[0].lines
    assert label == RunFolder().class_names[int(index[1:]) % 10] and re.fullmatch(r"hidden [3-6]x", times)
    assert thumbnails(hides, False, 24)[0].lines[2] == "hidden 0x"
    assert thumbnails(draws, True, 1)[0].lines[2] == "trained 6x"
    assert [kind(group, most) for group in (hides, draws) for most in (True, False)] == [
        "most hidden",
        "least hidden",
        "least trained",
        "most trained",
    ]


# ---- the page


def test_what_a_run_is_called_cannot_change_the_page(tmp_path):
    evil = "<script>alert(1)</script>$x^\ud800"
    run = RunFolder("kakurenbo", settings={"max_fraction": 0.3, "note": evil}, class_names=(evil, "[red]b"))
    run.changes = {"command": evil, "error": f'"{evil}', "method": "<b>\n[red]m", "metric": f"val/{evil}"}
    run.write(tmp_path / "run").rename(tmp_path / "<i>\udcff")
    main([str(tmp_path), "-o", str(tmp_path / "report")])
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script" not in page and "<b>" not in page and "<i>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$x^?" in page and "&lt;b&gt; [red]m" in page
    assert "could not be drawn" not in page


@pytest.mark.parametrize(("groups", "seeds"), [(5, 4), pytest.param(20, 1, marks=pytest.mark.slow)])
def test_a_page_of_twenty_runs_is_light_and_needs_no_network(tmp_path, groups, seeds):
    fractions = [round(0.9 * (number + 1) / groups, 2) for number in range(groups - 1)]
    big = {"image_size": 64, "samples": 100, "epochs": 30}
    runs = [RunFolder("kakurenbo", seed, {"max_fraction": one}, **big) for one in fractions for seed in range(seeds)]
    write_sweep(tmp_path, [*(RunFolder("baseline", seed, **big) for seed in range(seeds)), *runs])
    main([str(tmp_path)])
    page = (tmp_path / "report" / "report.html").read_text()
    assert 300_000 < len(page) < 3_000_000
    assert len(re.findall(r'<img src="data:image/(?:png|webp);base64,', page)) == page.count("<img ")
    assert not re.search(r'href="[^#]|@import|url\(|<link|<script|https?:', re.sub(r'"data:[^"]*"', "", page))


def test_a_browser_shows_every_table_and_image_at_desktop_and_phone_width(sweep, tmp_path):
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome here: apt-get install chromium")
    page = html.escape((sweep / "report" / "report.html").read_text())
    probe = """<script>addEventListener("load", () => { document.body.dataset.found = JSON.stringify(
        [...document.querySelectorAll("iframe")].map(frame => { const page = frame.contentDocument; return {
            images: page.images.length, decoded: [...page.images].filter(image => image.naturalWidth > 1).length,
            widest: Math.max(...[...page.querySelectorAll("figure > img")].map(image => image.clientWidth)),
            without_text: [...page.images].filter(image => !image.alt).length,
            rows: [...page.querySelectorAll("table")].map(table => table.tBodies[0].rows.length),
            wide: page.documentElement.scrollWidth, window: page.documentElement.clientWidth}})) })</script>"""
    frames = "".join(f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{page}"></iframe>' for width in (1280, 390))
    (tmp_path / "probe.html").write_text(f"<!DOCTYPE html><body>{probe}{frames}</body>")
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path / 'probe.html'}"]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', dumped)[1]))
    for width, one in zip((1280, 390), found, strict=True):
        assert one["images"] > 7 + 2 * 6 * 4 and one["decoded"] == one["images"] and one["without_text"] == 0
        assert one["rows"] == [7, 12]
        assert one["window"] > width - 20 and one["wide"] <= one["window"]
        assert 300 < one["widest"] <= one["window"]


# ---- the summary of a sweep


def test_a_sweep_ends_with_its_table_and_the_command_that_draws_it(sweep, capsys):
    Summary().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep)}}}))
    said = capsys.readouterr().out
    assert re.search(r"selective_backprop +90.00 +\+0.00", said) and f"kakurenbo-report {sweep}" in said


@pytest.mark.parametrize("config", [{}, {"hydra": {"sweep": {"dir": "nowhere"}}}])
def test_a_summary_never_ends_a_sweep_with_an_error(config):
    Summary().on_multirun_end(OmegaConf.create(config))
