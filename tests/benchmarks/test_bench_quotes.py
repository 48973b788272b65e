"""What documents quote of the arenas: blocks that are generated, sentences with their figures, and commands that train the tables."""

import re
import shlex

import pytest
from processes import REPOSITORY

from kakurenbo_lightning import available_methods
from kakurenbo_lightning.arena.runs import Comparison, Entry, Training
from kakurenbo_lightning.arena.verdict import standings
from recipes.benchmarks import arena, quotes
from recipes.benchmarks.fits import written

BENCHMARKS, RESULTS = REPOSITORY / "recipes/benchmarks/README.md", REPOSITORY / "docs/results.md"
CHOOSING, CARD = REPOSITORY / "docs/choosing.md", REPOSITORY / "kakurenbo_lightning/methods/hide/kakurenbo.md"
ARENAS = sorted(path.stem for path in quotes.RESULTS.glob("arena*.json"))
FAST = {"max_fraction": 0.5, "fractions": [1.0], "milestones": [], "every_n_epochs": 3}
END = {**FAST, "end_fraction": 0.14}
COMPARED = tuple(quotes.entries(quotes.result_of("arena-wide")))


def text_of(path):
    return " ".join(path.read_text().split())


def standings_of(name):
    """The standings of an arena, by their names."""
    return {one["name"]: one for one in quotes.result_of(name)["standings"]}


def of(name, settings=None, method="kakurenbo"):
    """The standing of a method with settings."""
    return standings_of(name)[Entry(method, settings or {}).name]


def standings_over(name, methods, seeds):
    """The standings of some methods of an arena over some of its seeds."""
    result = quotes.result_of(name)
    trained = {Training(Entry(row["method"], row["settings"]), row["seed"], row["epochs"]).name: row for row in result["rows"]}
    return [arena.as_row(one) for one in standings(Comparison(methods, seeds, result["epochs"]), trained)]


def points(one, name, form=".2f"):
    """A figure of a standing in points, as its mean ± its deviation; without its sign, as far as ``form`` has none."""
    figure = {**one[name], "mean": abs(one[name]["mean"])} if form[0] == "." else one[name]
    return written(figure, form, 100)


def times(one):
    return f"{one['time']['mean']:.2f}"


@pytest.mark.parametrize("path", quotes.documents(), ids=lambda path: path.stem)
def test_blocks_are_those_of_the_results(path):
    text = path.read_text()
    assert quotes.updated(text) == text, "run python -m recipes.benchmarks.quotes"


@pytest.mark.parametrize("method", sorted({name.split()[0] for name in COMPARED} - {"baseline", "random"}))
def test_each_method_of_the_arena_says_in_its_card_how_it_did(method):
    (card,) = (path for path in quotes.documents() if path.stem == method)
    one = next(one for name, one in standings_of("arena-wide").items() if name.split()[0] == method)
    text = text_of(card)
    assert f"differs by {points(one, 'gain', '+.2f').replace('+-', '±')} points from the baseline in {times(one)}" in text
    assert f"by {points(one, 'over_time', '+.2f').replace('+-', '±')} from a baseline of equal time: " in text
    assert {"yes": "better", "no": "worse", "not resolved": "not resolved"}[one["survives"]] in text.split("of equal time: ")[1]


def test_a_card_of_a_method_without_a_row_says_nothing_and_old_figures_are_replaced():
    result = quotes.result_of("arena")
    assert quotes.line(result, "seta") == ""
    begin, end = "<!-- infobatch in arena, made by hand -->\n", "<!-- end of arena -->\n"
    assert quotes.updated(f"{begin}old\n{end}kept\n") == begin + quotes.line(result, "infobatch") + end + "kept\n"
    assert len(list(quotes.all_rows(result))) == 2 + len(result["standings"])


def test_the_shorter_table_of_many_rows_has_the_first_of_each_method():
    lines = list(quotes.first_rows(quotes.result_of("arena-wide")))[2:]
    shown = [re.match(r"\| `(\w+)`", line)[1] for line in lines]
    assert shown == list(dict.fromkeys(name.split()[0] for name in standings_of("arena-wide")))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_fraction": 0.3, "every_n_epochs": 1}, "`kakurenbo`"),
        (FAST, '`kakurenbo`, `preset="fast"`'),
        ({**FAST, "max_fraction": 0.7}, '`kakurenbo`, `preset="fast"`, `max_fraction=0.7`'),
        ({"tau": 0.8}, "`kakurenbo`, `tau=0.8`"),
    ],
)
def test_a_method_is_named_by_as_few_settings_as_say_the_same(settings, said):
    assert quotes.label(Entry("kakurenbo", settings)) == said


def commands(name):
    """Settings of the commands in the heading of the table of an arena."""
    heading = BENCHMARKS.read_text().partition(f"<!-- all rows of {name},")[0].rpartition("**Arena")[2]
    for command in re.findall(r"`python -m recipes.benchmarks.arena ([^`]*)`", heading):
        words, arguments = arena.options(), shlex.split(command)
        words.set_defaults(**arena.TASKS[words.parse_known_args(arguments)[0].task].defaults)
        yield words.parse_args(arguments)


@pytest.mark.parametrize("name", re.findall(r"<!-- all rows of ([\w-]+),", BENCHMARKS.read_text()))
def test_the_command_above_a_table_trains_all_of_its_rows(name):
    (settings,) = commands(name)
    result = quotes.result_of(name)
    if arena.TASKS[settings.task].network:
        settings.network = "its own"
    assert {key: getattr(settings, key) for key in arena.ALIKE} == {key: result[key] for key in arena.ALIKE}
    comparison = arena.comparison_of(settings)
    assert {one["name"] for one in result["standings"][1:]} <= {entry.name for entry in comparison.entries}
    assert len(comparison.seeds) >= max(one["seeds"] for one in result["standings"])


@pytest.mark.parametrize("name", ARENAS)
def test_the_standings_of_a_file_are_those_of_its_rows(name):
    result = quotes.result_of(name)
    names = quotes.entries(result)
    methods = [names[one["name"]] for one in result["standings"][1:]]
    assert result["standings"] == standings_over(name, methods, range(result["seeds"]))


def resolved(one, name):
    """Whether the 95 % interval of a difference leaves out zero, and on which side: 1, 0 or -1."""
    low, high = one[name]["interval"]
    return (low > 0) - (high < 0)


def interval(one, name, form=".2f"):
    low, high = one[name]["interval"]
    return f"{100 * low:{form}} to {100 * high:{form}}"


def family_of(standings):
    """Those that score every sample in larger batches, and those that draw with replacement."""
    draw = {name for name, info in available_methods().items() if info.family == "draw"}
    return [one for name, one in standings.items() if name.split()[0] in {"sb_fixed", "katharopoulos", *draw}]


def on_every_method():
    """Sentences on the arena of every method that two documents share."""
    found = standings_of("arena-wide")
    own = [one for name, one in found.items() if name.startswith("kakurenbo")]
    hiding = {name: one for name, one in found.items() if one["trained"]["mean"] < quotes.NOTHING}
    assert "ies" not in hiding, "its losses have not stopped to bend in so few epochs"
    above = [
        name for name, one in hiding.items() if (one["over_random"]["mean"] or 0) > 0 and (one["over_time"]["mean"] or 0) > 0
    ]
    assert {name.split()[0] for name in above} == {"infobatch", "kakurenbo"}
    assert "yes" not in {one["survives"] for one in found.values()}, "three seeds resolve none"
    slow = family_of(found)
    assert all(one["gain"]["mean"] < 0 for one in slow)
    counted = f"InfoBatch and {len(above) - 1} of KAKURENBO's {len(own)} entries"
    yield f"{counted} lie above both controls, no other method that leaves samples out does"
    yield f"take {min(map(times, slow))} to {max(map(times, slow))} of the time and end below the baseline"


def of_results_md():
    yield from on_every_method()
    yield from of_deep()
    of_wide = [of("arena-wide", {} if beta == 1 else {"beta": beta}, "selective_backprop") for beta in (1, 2)]
    one, two = of_wide
    yield f"`selective_backprop` takes {times(one)} of the time, {times(two)} with `beta=2`, and ends {points(one, 'gain').split()[0]} and"
    yield f"and {points(two, 'gain').split()[0]} points below the baseline."
    defaults = of("arena-wide", {"max_fraction": 0.3, "every_n_epochs": 1})
    assert defaults["over_time"]["mean"] < 0
    yield f"The defaults of KAKURENBO are the seventh, {points(defaults, 'over_time').split()[0]} points below a baseline of equal time."
    seven, preset, nine = (of("arena-fractals", {**FAST, "max_fraction": share}) for share in (0.7, 0.5, 0.9))
    assert times(seven) == "0.50" and resolved(seven, "gain") == resolved(preset, "gain") == 0
    yield f"takes {times(preset)} of it and loses nothing that they resolve"
    yield f"F 0.9 goes too far: it ends {points(nine, 'gain').split()[0]} points below the baseline"
    for one in (of("arena-text"), of("arena-text", FAST)):
        assert resolved(one, "gain") == 0 and resolved(one, "over_random") + resolved(one, "over_time") == 1
        assert one["over_random"]["mean"] > 0 and one["over_time"]["mean"] > 0


def of_the_benchmarks():
    yield from on_every_method()
    yield from of_the_short_list()
    yield from of_deep()
    deep = of("arena-deep", FAST)
    yield f"(95 % intervals {interval(deep, 'over_random')} and {interval(deep, 'over_time')})"
    yield f"({interval(deep, 'gain', '+.2f')})"
    found = standings_of("arena-wide")
    own = [one for name, one in found.items() if name.startswith("kakurenbo")]
    gains = sorted((f"{-100 * one['gain']['mean']:.1f}" for one in own), key=float)
    yield f"KAKURENBO ends {gains[0]} to {gains[-1]} points below the baseline in {min(map(times, own))} to {max(map(times, own))} of the"
    yield f"InfoBatch {points(found['infobatch'], 'gain', '.1f').split()[0]} points below it"
    beta = [times(of("arena-wide", chosen, "selective_backprop")) for chosen in ({}, {"beta": 2})]
    yield f"Selective-Backprop takes {beta[0]} of the time, {beta[1]} with `beta=2`"
    worse = {name.split()[0] for name, one in found.items() if name != "baseline" and resolved(one, "over_time") < 0}
    collapsed = {name for name in worse if found.get(name, found["seta"])["gain"]["mean"] < -0.1}
    assert collapsed == {"owc", "lb", "nlb"}
    assert worse - collapsed - {"forget", "el2n"} == {
        "sb_fixed",
        "katharopoulos",
        "iswr",
        "peb",
        "seta",
        "orderdp",
        "selective_backprop",
    }
    seven, preset = (of("arena-fractals", {**FAST, "max_fraction": share}) for share in (0.7, 0.5))
    low, high = seven["time"]["interval"]
    yield f"Half of the time is met by F 0.7 ({times(seven)}, 95 % interval {low:.3f} to {high:.3f})"
    yield f"and not by the preset `fast` ({times(preset)})"
    yield f"{points(seven, 'over_time', '.1f').split()[0]} above a baseline of half the epochs"
    yield f"({points(preset, 'gain', '+.2f').replace('+-', '±')} points)"
    fast, defaults = of("arena-text", FAST), of("arena-text")
    yield f"beats random hiding (95 % interval {interval(fast, 'over_random')} points)"
    yield f"the defaults beat the baseline of equal time ({interval(defaults, 'over_time')})"
    yield f"Only {100 - 100 * fast['trained']['mean']:.0f} % is hidden with F 0.5"
    _, end = standings_over("arena-text", [Entry("kakurenbo", END)], [0])
    yield f"(`end_fraction=0.14`, seed 0 alone) took {times(end)} of the time, {points(end, 'gain', '+.2f')} points"


def of_the_short_list():
    fast, defaults = of("arena", FAST), of("arena")
    assert [name for name, one in standings_of("arena").items() if one["survives"] == "yes"] == [fast["name"]]
    parts = [points(fast, name).split()[0] for name in ("over_random", "over_time", "gain")]
    yield f"It takes {times(fast)} of the time, {parts[0]} points above hiding as much at random"
    yield f"(95 % interval {interval(fast, 'over_random')})"
    yield f"{parts[1]} above a baseline of equal time ({interval(fast, 'over_time')})"
    yield f"ends {parts[2]} points below the baseline ({interval(fast, 'gain', '+.2f')})"
    yield f"the defaults save {100 - 100 * defaults['time']['mean']:.0f} % at no loss"
    _, end = standings_over("arena", [Entry("kakurenbo", END)], range(3))
    yield f"looked better with three seeds ({points(end, 'gain', '+.2f').split()[0]} points) and is not with five"
    yield from of_what_was_tried()


def of_what_was_tried():
    tried = standings_of("arena-tried")
    assert sum(name.startswith("kakurenbo") for name in tried) == 8
    names = [Entry("kakurenbo", {**start, **more}).name for start, more in ((END, {"tau": 0.5}), (FAST, {"drop_top": 0.1}))]
    tau, top = (tried[name] for name in names)
    each = tried[Entry("kakurenbo", {name: value for name, value in FAST.items() if name != "every_n_epochs"}).name]
    five, seven = (tried[Entry("kakurenbo", {**FAST, "max_fraction": share}).name] for share in (0.5, 0.7))
    assert five["trained"] == seven["trained"], "F 0.7 hides no more"
    yield f"where the baseline has {points(tried['baseline'], 'score')} %: that with `tau=0.5` ({points(tau, 'score')} % in {times(tau)}"
    yield f"`drop_top=0.1` ({points(top, 'score')} % in {times(top)})"
    yield f"a refresh before each epoch ({points(each, 'score')} % in {times(each)})"


def of_the_card():
    """Of kakurenbo.md."""
    fast, defaults = of("arena", FAST), of("arena")
    seven, preset = (of("arena-fractals", {**FAST, "max_fraction": share}) for share in (0.7, 0.5))
    yield f"({points(defaults, 'gain', '+.2f')} points, {defaults['seeds']} seeds) in {times(defaults)} of its time"
    yield f"The preset `fast` takes {times(fast)} of it, {points(fast, 'over_random')} points above hiding as much at random"
    yield f"{points(fast, 'over_time')} above a baseline of equal time ({fast['seeds']} seeds, both beyond the 95 % interval)"
    yield f"{points(fast, 'gain')} below the baseline"
    assert seven["survives"] == preset["survives"] == fast["survives"] == "yes"
    yield f"takes half of the time at {points(seven, 'gain', '+.2f')} points, and the preset itself {times(preset)} of it at"
    yield f"{points(preset, 'gain', '+.2f')}, both above their controls beyond the interval"


def of_deep():
    """Sentences on the deeper network that two documents share."""
    fast, info = of("arena-deep", FAST), of("arena-deep", {}, "infobatch")
    assert [name for name, one in standings_of("arena-deep").items() if one["survives"] == "yes"] == [fast["name"]]
    assert resolved(fast, "gain") == 1
    parts = [points(fast, name).split()[0] for name in ("over_random", "over_time", "gain")]
    yield f"takes {times(fast)} of the time, {parts[0]} points above hiding as much at random"
    yield f"and {parts[1]} above a baseline of equal time"
    yield f"{parts[2]} points above the baseline, beyond the"
    yield f"InfoBatch ends {points(info, 'gain').split()[0]} points below"


def of_choosing():
    fast, defaults, other = of("arena", FAST), of("arena"), of("arena-fractals", FAST)
    parts = [points(fast, name, ".1f").split()[0] for name in ("over_random", "over_time", "gain")]
    yield f"It took {times(fast)} of the time, {parts[0]} points above hiding as much at random and {parts[1]} above a baseline"
    yield f"ended {parts[2]} points below the baseline; the defaults lost nothing in {times(defaults)} of the time"
    assert defaults["gain"]["mean"] > 0 and other["gain"]["mean"] > 0
    yield f"On fractals, which it was not chosen on, it took {times(other)} of the time and lost nothing"


@pytest.mark.parametrize(
    ("path", "sentences"),
    [(RESULTS, of_results_md), (BENCHMARKS, of_the_benchmarks), (CARD, of_the_card), (CHOOSING, of_choosing)],
)
def test_sentences_on_the_arenas_have_their_figures(path, sentences):
    text = text_of(path)
    assert [sentence for sentence in sentences() if sentence not in text] == []
