"""The figures of a report: what they show, of which runs."""

import re

import pytest
from PIL import Image
from report_runs import RunFolder, grid_runs, groups_of, write_sweep

from kakurenbo_lightning.report import Group, comparison, write_report
from kakurenbo_lightning.report.curves import overview, scores, selection, stored_values
from kakurenbo_lightning.report.grids import shown_samples
from kakurenbo_lightning.report.maps import f_tau, luminance, sweeps
from kakurenbo_lightning.report.notes import best_of, not_drawn
from kakurenbo_lightning.report.page import draw_all
from kakurenbo_lightning.report.panels import class_shares, classes, parts, phases
from kakurenbo_lightning.report.style import WHITE


def test_figures_that_do_not_apply_are_left_out(tmp_path):
    write_sweep(tmp_path, [RunFolder("baseline", image_size=None), RunFolder("plb", image_size=None)])
    problems = []
    pictures = draw_all(groups_of(tmp_path), problems)
    assert [picture.name for picture in pictures] == ["overview", "scores", "pareto", "time_to_error", "phases", "losses"]
    assert not problems


def test_the_parts_of_a_runs_time_add_up_to_it(tmp_path):
    write_sweep(tmp_path, [RunFolder(method) for method in ("baseline", "kakurenbo", "selective_backprop", "plb")])
    for group in groups_of(tmp_path):
        assert sum(parts(group.runs[0]).values()) == pytest.approx(group.runs[0].seconds)


def test_unfinished_runs_are_thin_lines_and_in_no_mean(tmp_path):
    killed = {"status": "running", "epochs": 2, "max_epochs": 6, "totals": {"train_seconds": 900.0}}
    runs = [RunFolder("kakurenbo", 0, changes=killed, epochs=2), RunFolder("kakurenbo", 1), RunFolder("kakurenbo", 2)]
    (group,) = groups_of(write_sweep(tmp_path, runs))
    finished = Group(group.name, group.finished, {})
    assert group.counted[0].seed == 1
    assert class_shares(group).tolist() == class_shares(finished).tolist()
    samples = [[one.lines for one in shown_samples(one_group, 3)["most hidden"]] for one_group in (group, finished)]
    assert samples[0] == samples[1]
    lines = overview([group])[0].figure.axes[0].lines
    assert sorted(len(line.get_xdata()) for line in lines) == [2, 6, 6, 6]
    assert [len(line.get_xdata()) for line in lines if line.get_linewidth() > 1] == [6]
    bars = [phases([one])[0].figure.axes[0].texts[1].get_text() for one in (group, finished)]
    assert bars[0] == bars[1]


def test_classes_count_what_was_hidden_or_for_the_other_families_not_trained(tmp_path):
    write_sweep(tmp_path, [RunFolder("kakurenbo"), RunFolder("selective_backprop")])
    hides, rejects = (class_shares(group) for group in groups_of(tmp_path))
    assert hides.tolist() == pytest.approx(rejects.tolist()) and len(hides) == 10
    assert 0 <= hides[0] < hides[9] <= 100


def test_samples_are_shown_with_class_index_and_times(tmp_path):
    write_sweep(tmp_path, [RunFolder("baseline"), RunFolder("kakurenbo"), RunFolder("plb")])
    baseline, hides, draws = (shown_samples(group) for group in groups_of(tmp_path))
    assert baseline == {}  # it hid none
    label, index, times = hides["most hidden"][0].lines
    assert label == RunFolder().class_names[int(index[1:]) % 10] and re.fullmatch(r"hidden [3-6]x", times)
    assert hides["least hidden"][0].lines[2] == "hidden 0x"
    assert draws["least trained"][0].lines[2] == "trained 6x"
    assert (list(hides), list(draws)) == (["most hidden", "least hidden"], ["least trained", "most trained"])


def test_each_fact_has_one_figure(tmp_path):
    (group,) = groups_of(write_sweep(tmp_path, [RunFolder("kakurenbo", image_size=None)]))
    labels = [axes.get_ylabel() for picture in (*overview([group]), *selection([group])) for axes in picture.figure.axes]
    assert len(set(labels)) == len(labels) > 2


def test_no_point_of_a_curve_is_outside_its_axes(tmp_path):
    groups = groups_of(write_sweep(tmp_path, [RunFolder(method, image_size=None) for method in ("baseline", "kakurenbo", "plb")]))
    for axes in [axes for picture in (*overview(groups), *scores(groups)) for axes in picture.figure.axes]:
        low, high = axes.get_ylim()
        assert all(low <= value <= high for line in axes.lines for value in line.get_ydata())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_panels_leave_no_half_of_a_row_empty(tmp_path, count):
    methods = ("kakurenbo", "selective_backprop", "plb")[:count]
    (picture,) = classes(groups_of(write_sweep(tmp_path, [RunFolder(method, image_size=None) for method in methods])))
    picture.figure.draw_without_rendering()
    boxes = [axes.get_position() for axes in picture.figure.axes]
    rows = {round(box.y0, 2): [one for one in boxes if abs(one.y0 - box.y0) < 0.01] for box in boxes}
    assert all(min(box.x0 for box in row) < 0.3 and max(box.x1 for box in row) > 0.9 for row in rows.values())


def test_stored_values_are_shown_of_the_runs_that_were_diagnosed(tmp_path):
    runs = [RunFolder("baseline"), RunFolder("plb"), *(RunFolder("owc", seed, {"diagnose": 9}) for seed in (0, 1))]
    groups = groups_of(write_sweep(tmp_path, runs))
    assert stored_values(groups[:2]) == []
    (picture,) = stored_values(groups)
    order, shift = picture.figure.axes
    assert [text.get_text() for text in picture.figure.legends[0].get_texts()] == ["owc"]
    assert (order.get_ylabel(), shift.get_ylabel()) == ("pairs in the right order", "distribution shift")
    (mean,) = (line for line in order.lines if line.get_linewidth() > 1)
    assert list(mean.get_xdata()) == [1, 2, 3, 4, 5, 6] and mean.get_ydata() == pytest.approx(
        [0.5 + 0.4 * e / 6 for e in range(6)]
    )
    assert order.get_ylim() == shift.get_ylim() == (-0.03, 1.03)


# --- the map of F and tau


def test_the_map_has_each_value_at_its_f_and_tau(tmp_path):
    ((name, rows),) = sweeps(groups_of(write_sweep(tmp_path, grid_runs(image_size=None))))
    assert name == "kakurenbo"
    scores = {(row.max_fraction, row.tau): row.score for row in rows.itertuples()}
    assert scores == pytest.approx({(0.2, 0.5): 0.91, (0.2, 0.7): 0.92, (0.3, 0.5): 0.93, (0.3, 0.7): 0.94})
    savings = {(row.max_fraction, row.tau): row.saving for row in rows.itertuples()}
    assert savings[0.2, 0.5] > savings[0.3, 0.5] > savings[0.3, 0.7]


def test_a_map_shows_f_to_the_right_and_tau_upwards_and_a_dash_for_what_was_not_run(tmp_path):
    (picture,) = f_tau(groups_of(write_sweep(tmp_path, grid_runs(image_size=None)[:-1])))
    axes = picture.figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.2", "0.3"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0.7", "0.5"]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "92.0", (1, 0): "-", (0, 1): "91.0", (1, 1): "93.0"}


@pytest.mark.parametrize("scores", [(0.9, 0.9, 0.9, 0.9), (0.5, 0.6, 0.8, 0.9)])
def test_the_numbers_of_a_map_stand_out_from_their_cells(tmp_path, scores):
    runs = grid_runs(image_size=None)[1:]
    for run, score in zip(runs, scores, strict=True):
        run.score = score
    (picture,) = f_tau(groups_of(write_sweep(tmp_path, runs)))
    axes = picture.figure.axes[0]
    (image,) = axes.images
    for text in axes.texts:
        column, row = text.get_position()
        cell = luminance(image.to_rgba(image.get_array())[row, column])
        assert abs(cell - (text.get_color() == WHITE)) > 0.45


def test_three_of_one_setting_are_no_map(tmp_path):
    write_sweep(tmp_path, [RunFolder("kakurenbo", 0, {"max_fraction": f, "tau": 0.7}) for f in (0.1, 0.2, 0.3)])
    assert sweeps(groups_of(tmp_path)) == []


# --- many groups


def scattered(number):
    """Runs as a search makes them: every one has an F and a tau of its own."""
    places = [(0.1 + 0.5 * one / number, 0.3 + 0.6 * (7 * one % number) / number) for one in range(number)]
    options = {"image_size": None, "epochs": 2, "samples": 30}
    return [RunFolder("kakurenbo", 0, {"max_fraction": f, "tau": tau}, score=0.5 + 0.4 * f, **options) for f, tau in places]


def test_a_map_of_which_most_cells_would_be_empty_shows_points_in_the_colour_of_the_score(tmp_path):
    (picture,) = f_tau(groups_of(write_sweep(tmp_path, scattered(30))))
    axes, (points,) = picture.figure.axes[0], picture.figure.axes[0].collections
    assert not axes.texts and picture.figure.get_size_inches()[1] < 4
    found = sorted((*place, score) for place, score in zip(points.get_offsets().tolist(), points.get_array(), strict=True))
    wanted = [(run.settings["max_fraction"], run.settings["tau"], 100 * run.score) for run in scattered(30)]
    assert [value for one in found for value in one] == pytest.approx([value for one in sorted(wanted) for value in one])


def test_figures_show_the_best_groups_and_the_page_names_the_others(tmp_path):
    runs = [RunFolder("baseline", 0, score=0.1, image_size=None, epochs=2, samples=30), *scattered(23)]
    groups = groups_of(write_sweep(tmp_path, runs))
    best = best_of(groups)
    assert [group.method for group in best] == ["baseline", *["kakurenbo"] * 20]
    assert {group.runs[0].score for group in best} == {0.1, *(run.score for run in runs[-20:])}
    (problem,) = not_drawn(groups)
    assert problem.reason.split("these too: ")[1].split("; ") == [group.name for group in groups if group not in best]
    assert len(comparison(groups)) == 24


def test_the_best_by_a_loss_are_the_lowest(tmp_path):
    runs = scattered(23)
    for run in runs:
        run.changes["metric"] = "val/loss"
    groups = groups_of(write_sweep(tmp_path, runs))
    assert {group.runs[0].score for group in best_of(groups)} == {run.score for run in runs[:20]}


@pytest.mark.slow
def test_figures_of_an_earlier_report_are_removed_and_other_files_are_not(tmp_path):
    report, run = tmp_path / "report", tmp_path / "run"
    RunFolder("kakurenbo", epochs=2, samples=30).write(run)
    write_report(groups_of(run), [], report, "first")
    assert (report / "samples_0.png").is_file() and (report / "samples_0.svg").is_file()
    (report / "mine.svg").write_text("<svg/>")
    Image.new("RGB", (2, 2)).save(report / "scores_mine.png")
    (report / "text.png").write_text("no picture")
    (run / "thumbnails.npz").unlink()
    write_report(groups_of(run), [], report, "second")
    names = {path.name for path in report.iterdir()}
    assert not any(name.startswith("samples_0.") for name in names)
    assert {"overview.png", "overview.pdf", "mine.svg", "scores_mine.png", "text.png"} <= names
