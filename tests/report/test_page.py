"""The report's page, and the files beside it."""

import csv
import re

import pytest
from browser import found_in
from PIL import Image
from report_runs import RunFolder, grid_runs, groups_of, write_sweep

from kakurenbo_lightning.report import write_report

FIGURES = ("overview", "scores", "pareto", "time_to_error", "selection", "f_tau", "phases", "losses", "classes", "samples_1")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of a 2 x 2 sweep with 2 seeds and one run of each of the other families, of which three groups have pictures; its folder."""
    folder = tmp_path_factory.mktemp("sweep")
    others = [RunFolder("selective_backprop", 0, score=0.9), RunFolder("plb", 0, score=0.9)]
    grid = grid_runs(seeds=(0, 1))
    for run in grid[4:]:
        run.image_size = None
    groups = groups_of(write_sweep(folder, [*grid, *others]))
    return write_report(groups, [], folder / "report", "a sweep").parent


def test_a_report_has_a_picture_and_a_table_file_for_everything(report):
    names = {path.name for path in report.iterdir()}
    figures = {f"{name}.{ending}" for name in FIGURES for ending in ("png", "svg", "pdf")}
    tables = {f"{name}.{ending}" for name in ("comparison", "runs") for ending in ("csv", "md", "tex")}
    assert figures | tables | {"report.html"} <= names
    for name in FIGURES:  # 3.3 inches, a column of a paper
        with Image.open(report / f"{name}.png") as image:
            assert image.width == 3.3 * 320
        assert re.search(r'<svg [^>]*width="237.6pt"', (report / f"{name}.svg").read_text())
        assert re.search(rb"/MediaBox \[ 0 0 237.6 ", (report / f"{name}.pdf").read_bytes())


def test_pictures_have_colours_of_their_own_in_the_dark(report):
    sheet = '[style*="fill: #1c1e21"]{fill:#e6e8eb!important}'
    for name in ("overview", "pareto", "phases"):
        text = (report / f"{name}.svg").read_text()
        assert (
            sheet in text.partition("@media (prefers-color-scheme:dark){")[2] and "fill: #1c1e21" in text.partition("</style>")[2]
        )
        used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", text.rpartition("</style>")[2]))
        assert not {"#000000"} & used, "black is not to be seen in the dark"


@pytest.mark.slow
def test_equal_reports_are_equal_files(tmp_path):
    write_sweep(tmp_path, [RunFolder(method, image_size=None, epochs=2, samples=30) for method in ("baseline", "plb")])
    first, second = (write_report(groups_of(tmp_path), [], tmp_path / name, "one").parent for name in ("a", "b"))
    for file in ("overview.svg", "overview.pdf", "overview.png", "comparison.tex"):
        assert (first / file).read_bytes() == (second / file).read_bytes()


def test_the_csv_files_hold_the_figures_unrounded(report):
    rows = list(csv.DictReader((report / "comparison.csv").open()))
    assert len(rows) == 7 and rows[1]["group"] == "kakurenbo, max_fraction=0.2, tau=0.5"
    assert float(rows[1]["difference"]) == pytest.approx(0.01)
    runs = list(csv.DictReader((report / "runs.csv").open()))
    assert len(runs) == 12
    assert "torch=2.13.0" in runs[0]["versions"] and "dirty=True" in runs[0]["git"]


def test_names_of_runs_and_classes_cannot_change_the_page(tmp_path):
    evil = "<script>alert(1)</script>$x^\ud800"
    run = RunFolder("kakurenbo", settings={"max_fraction": 0.3, "note": evil}, class_names=(evil, "[red]b"))
    run.changes = {"command": evil, "error": f'"{evil}', "method": "<b>\n[red]m", "metric": f"val/{evil}"}
    run.write(tmp_path / "run").rename(tmp_path / "<i>\udcff")
    problems = []
    page = write_report(groups_of(tmp_path), problems, tmp_path / "report", "<u>").read_text()
    assert "<script" not in page and "<b>" not in page and "<i>" not in page and "<u>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$x^?" in page and "&lt;b&gt; [red]m" in page
    assert not problems


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "seeds"), [(5, 4), (20, 1)])
def test_a_page_of_twenty_runs_is_light_and_needs_no_network(tmp_path, groups, seeds):
    fractions = [round(0.9 * (number + 1) / groups, 2) for number in range(groups - 1)]
    big = {"image_size": 64, "samples": 100, "epochs": 30}
    runs = [RunFolder("kakurenbo", seed, {"max_fraction": one}, **big) for one in fractions for seed in range(seeds)]
    write_sweep(tmp_path, [*(RunFolder("baseline", seed, **big) for seed in range(seeds)), *runs])
    page = write_report(groups_of(tmp_path), [], tmp_path / "report", "twenty").read_text()
    assert 300_000 < len(page) < 3_000_000
    assert len(re.findall(r'<img src="data:image/(?:svg\+xml|webp);base64,', page)) == page.count("<img ")
    assert not re.search(
        r'href="(?!#|\w+\.(?:svg|pdf|png|csv|md|tex)")|@import|url\(|<link|<script|https?:', re.sub(r'"data:[^"]*"', "", page)
    )


def test_a_browser_shows_every_table_and_image_at_desktop_and_phone_width(report, tmp_path):
    what = """{images: page.images.length, decoded: [...page.images].filter(image => image.naturalWidth > 1).length, scrolls,
        widest: Math.max(...[...page.querySelectorAll("figure > img")].map(image => image.clientWidth)),
        without_text: [...page.images].filter(image => !image.alt).length, window: root.clientWidth,
        rows: [...page.querySelectorAll("table")].map(table => table.tBodies[0].rows.length)}"""
    for _, width, one in found_in([report / "report.html"], what, tmp_path):
        assert one["images"] > 7 + 2 * 3 * 4 and one["decoded"] == one["images"] and one["without_text"] == 0
        assert one["rows"] == [7, 12]
        assert one["window"] > width - 20 and not one["scrolls"]
        assert 300 < one["widest"] <= one["window"]
