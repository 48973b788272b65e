"""The method cards: one outline, and settings tables that say what the code says."""

import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
from helpers import Net, fit, loader

import kakurenbo_lightning.methods
from kakurenbo_lightning import Epoch, HideMethod, SampleSelection, available_methods, get_method
from kakurenbo_lightning.cli import cards
from kakurenbo_lightning.cli import methods as script
from kakurenbo_lightning.cli.cards import BLOCK, own_and_common, updated
from kakurenbo_lightning.methods import BackpropMethod, DrawMethod, StreamMethod, registry

FOLDER = Path(kakurenbo_lightning.methods.__file__).parent
ADDING = FOLDER / "ADDING.md"
LIST = FOLDER / "README.md"
OUTLINE = [
    "What it does",
    "Formula",
    "Settings",
    "Cost per epoch",
    "When it helps, and when not",
    "Differences from the authors' code",
    "Measured",
]
# class whose fields are the common settings of its methods, without those of a class it derives from -> the section that describes them
FAMILIES = {
    HideMethod: "Common settings",
    BackpropMethod: "Backprop settings",
    DrawMethod: "PoD settings",
    StreamMethod: "Stream settings",
}
CARDS = sorted(path for path in FOLDER.rglob("*.md") if path.name not in ("README.md", "ADDING.md"))
# what other packages in this environment register is not ours to describe
METHODS = {
    name: info
    for name, info in available_methods().items()
    if type(get_method(name)).__module__.startswith("kakurenbo_lightning.")
}
HIDE = {name: info for name, info in METHODS.items() if info.family == "hide"}
BACKPROP = {name: info for name, info in METHODS.items() if info.family == "backprop"}
POD = {name: info for name, info in METHODS.items() if info.family == "draw"}


def sections(path):
    """Heading -> text of the ``##`` sections of a file, in order; ``""`` is what stands before the first one."""
    parts = re.split(r"^## (.+)$", path.read_text(), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def table(text):
    """The first table of a text: its head, and its rows, each a list of cells."""
    lines = re.search(r"(?:^\|.*\|$\n?)+", text + "\n", flags=re.MULTILINE)
    if lines is None:
        return [], []
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines.group().strip().splitlines()]
    return rows[0], rows[2:]


def families(cls):
    """Of :data:`FAMILIES` those that ``cls`` derives from, the nearest first."""
    return [base for base in cls.__mro__ if base in FAMILIES]


def anchor(heading):
    """What a link to the heading ends with."""
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def links(path):
    """Relative link targets of a file, without code blocks."""
    text = re.sub(r"^(`{3,}).*?^\1$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]


def test_every_method_has_a_card_and_every_card_a_method():
    assert sorted(str(info.card) for info in METHODS.values()) == [str(card) for card in CARDS]
    assert {name: info.card.stem for name, info in METHODS.items()} == {name: name for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_a_card_keeps_to_the_outline(name):
    found = sections(METHODS[name].card)
    assert list(found) == ["", *OUTLINE]
    assert found[""].splitlines()[0] == f"# {name}"
    assert all(found[heading].strip() for heading in OUTLINE[:-1]), "a section is empty"


@pytest.mark.parametrize("path", [*CARDS, LIST], ids=lambda path: path.stem)
def test_settings_tables_are_those_of_the_code(path):
    text = path.read_text()
    assert updated(text) == text, "run kakurenbo-methods --write-cards"


@pytest.mark.parametrize("name", METHODS)
def test_a_card_shows_the_methods_own_settings_and_leads_to_the_common_ones(name):
    text = sections(METHODS[name].card)["Settings"]
    own, _ = own_and_common(type(get_method(name)))
    assert [block[2] for block in BLOCK.finditer(text)] == [name] * bool(own)
    for family in families(type(get_method(name))):
        assert f"(../README.md#{anchor(FAMILIES[family])})" in text


def test_tables_with_old_values_are_written_again(tmp_path, monkeypatch, capsys):
    card, page = tmp_path / "random.md", tmp_path / "methods" / "README.md"
    page.parent.mkdir()
    shutil.copy(METHODS["random"].card, card)
    page.write_text(LIST.read_text().replace("`max_fraction`, `score_epochs`", "`max_fraction`"))
    card.write_text(card.read_text().replace("| `0.3` |", "| `0.2` |"))
    monkeypatch.setattr(cards, "PACKAGE", tmp_path)
    monkeypatch.setattr(cards, "available_methods", lambda: {"random": replace(METHODS["random"], card=card)})
    script.main(["--write-cards"])
    assert capsys.readouterr().out.split() == [str(card), str(page)]
    assert (card.read_text(), page.read_text()) == (METHODS["random"].card.read_text(), LIST.read_text())
    script.main(["--write-cards"])
    assert capsys.readouterr().out == "all cards are up to date\n"


@pytest.mark.parametrize("name", METHODS)
def test_a_card_states_the_true_memory_per_sample(name):
    head, rows = table(sections(METHODS[name].card)["Cost per epoch"])
    assert head == ["forwards with backward", "forwards only", "bytes per sample"]
    assert [row[-1] for row in rows] == [str(METHODS[name].bytes_per_sample)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_common_settings_of_a_family_are_described_once(family):
    assert [block[2] for block in BLOCK.finditer(sections(LIST)[FAMILIES[family]])] == [family.__name__]


def test_every_method_is_of_a_family_that_the_list_describes():
    assert {info.family for info in METHODS.values()} == {cls.family for cls in FAMILIES}


def test_the_list_tells_of_every_hide_method_what_it_is():
    head, rows = table(sections(LIST)[""])
    assert head == ["method", "an epoch hides", "chosen", "scoring pass", "weights", "bytes per sample", "its own settings"]
    assert [row[0] for row in rows] == [f"[`{name}`](hide/{name}.md)" for name in HIDE]
    for (name, info), (_, _, chosen, looks, weights, memory, _) in zip(HIDE.items(), rows, strict=True):
        method = get_method(name)
        assert memory == str(info.bytes_per_sample)
        assert (looks == "yes") is (method.refresh_mode is not None)
        assert (weights != "no") is method.knows_keep_probability
        assert (weights == "by default") is method.unbiased
        assert (chosen == "once, then restart") is (method.scoring_epochs(200) > 0)


def test_the_list_tells_of_every_backprop_method_what_it_is():
    head, rows = table(sections(LIST)["The backprop family"])
    assert head == ["method", "trains", "in a step of", "scores in", "weights", "bytes per sample", "its own settings"]
    assert [row[0] for row in rows] == [f"[`{name}`](backprop/{name}.md)" for name in BACKPROP]
    for (name, info), (_, _, step, looks, weights, memory, _) in zip(BACKPROP.items(), rows, strict=True):
        method = get_method(name)
        assert memory == str(info.bytes_per_sample)
        assert weights == ("yes" if method.weighs else "no")
        assert (step == "a full batch") is (method.pooled or method.batches_per_choice > 1)
        always = all(method.scores(Epoch(epoch, 10), step, 8, method.memory()) for epoch in range(1, 10) for step in range(8))
        assert (looks == "each epoch") is always


def test_the_list_tells_of_every_pod_method_what_it_is():
    head, rows = table(sections(LIST)["The PoD family"])
    assert head == [
        "method",
        "probability goes by",
        "drawn",
        "normalised",
        "scoring pass",
        "bytes per sample",
        "its own settings",
    ]
    assert [row[0] for row in rows] == [f"[`{name}`](draw/{name}.md)" for name in POD]
    for (name, info), (_, _, drawn, normalised, looks, memory, _) in zip(POD.items(), rows, strict=True):
        method = get_method(name)
        streams = isinstance(method, StreamMethod)
        assert memory == str(info.bytes_per_sample)
        assert drawn == ("batch by batch" if streams else "once per epoch")
        assert normalised == ("every step" if streams and method.normalised else "never")
        assert looks == ("no" if method.refresh_mode is None else "at the start" if streams else "from epoch 2 on")


def test_the_list_names_the_settings_of_every_method_that_are_its_own():
    found = {}
    for heading in ("", "The backprop family", "The PoD family"):
        found |= {re.match(r"\[`(\w+)`", row[0])[1]: row[-1] for row in table(sections(LIST)[heading])[1]}
    assert sorted(found) == sorted(METHODS)
    for name, cell in found.items():
        common = {field.name for field in fields(families(type(get_method(name)))[0])}
        own = [field.name for field in fields(get_method(name)) if field.name not in common]
        assert re.findall(r"`(\w+)`", cell) == own, name


@pytest.mark.parametrize("name", BACKPROP)
def test_a_backprop_card_counts_a_sample_by_the_common_cost_model(name):
    text = sections(METHODS[name].card)["Cost per epoch"]
    assert "With a forward pass counted 1 and a backward pass 2" in text


def trained_from_adding(section, method, number=0, **settings):
    """Three epochs of 61 samples with the method ``method`` that piece ``number`` of a section's code registers."""
    code = re.findall(r"^```python\n(.*?)^```$", sections(ADDING)[section], re.MULTILINE | re.DOTALL)[number]
    try:
        exec(compile(code, "ADDING.md", "exec", dont_inherit=True), {"__name__": "test_cards"})
        selection = SampleSelection(method, **settings)
        fit(Net(), loader(61), selection, max_epochs=3)
    finally:
        registry._METHODS.pop(method, None)  # other tests go through all methods there are
    return selection


def test_the_method_that_scores_in_adding_md_trains():
    totals = trained_from_adding("A method that scores batches", "above_mean").totals
    assert totals.samples_scored == 2 * 61
    assert 0 < totals.samples_rejected < 2 * 61


@pytest.mark.parametrize("settings", [{}, {"unbiased": True, "mix": 0.1}])
def test_the_methods_that_draw_in_adding_md_train(settings):
    stream = trained_from_adding("A method that draws", "log_loss", **settings)
    assert (stream.totals.samples_trained, stream.totals.samples_refreshed) == (3 * 64, 61)
    once = trained_from_adding("A method that draws", "half_by_loss", number=1, **settings)
    assert once.totals.samples_trained == 3 * 30
    assert (once.plan.weights is not None) is bool(settings)


@pytest.mark.parametrize("path", [*CARDS, LIST, ADDING], ids=lambda path: path.stem)
def test_links_lead_to_files_and_headings(path):
    for link in links(path):
        target, _, heading = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), link
        assert not heading or heading in map(anchor, sections(file)), link


@pytest.mark.parametrize("name", ["baseline", "ies", "kakurenbo", "random"])
def test_common_settings_are_listed_without_what_a_method_refuses(name):
    _, common = own_and_common(type(get_method(name)))
    rows = {row[0]: row for row in common}
    has_fraction = name in {"kakurenbo", "random"}
    assert ("fraction_schedule" in rows) == has_fraction and ("unbiased" in rows) == (name in {"baseline", "random"})
    assert rows["balance"][2] == "None or 'class'" + " or 'rcap'" * has_fraction
    assert ("rcap" in rows["balance"][3]) == has_fraction


def test_the_setting_says_that_milestones_are_averaged_over_a_round():
    _, common = own_and_common(type(get_method("kakurenbo")))
    assert "milestones are averaged over it" in next(row[3] for row in common if row[0] == "fraction_schedule")
