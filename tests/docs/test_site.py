"""The documentation is built strictly, without a network, and no link in it leads nowhere."""

import logging
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from browser import found_in
from doc_pages import CONFIG, HOOKS, PAGES, REPOSITORY, blocks, prose, text_of
from mkdocs.commands.build import build
from mkdocs.config import load_config

import kakurenbo_lightning

PICTURES = {"training.svg": "getting_started", "report.png": "reports", "doctor.png": "reports"}  # by `make screenshots`
LONGEST, WIDEST = 120, 84  # characters of a line of prose, and of code that fits a page of 1280 pixels
OURS = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").glob("*.md"))


class Page(HTMLParser):
    """Collects what a page links to, what a browser fetches for it, and where links may lead."""

    def __init__(self, path):
        super().__init__()
        self.links, self.fetched, self.anchors = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag in ("img", "script", "iframe", "source") and found.get("src"):
            self.fetched.append(found["src"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "preconnect", "icon", "preload"):
            self.fetched.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages by their path; a warning while they are built is an error."""
    folder = tmp_path_factory.mktemp("documentation", numbered=False)  # other modules of tests have sites too
    log = logging.getLogger("mkdocs")
    level = log.level
    try:
        build(load_config(str(CONFIG), site_dir=str(folder), strict=True))
    finally:
        log.setLevel(level)
    return {path: Page(path) for path in folder.rglob("*.html") if path.name != "404.html"}


def test_every_page_is_built(site):
    built = {path.as_posix().split("/documentation/")[-1] for path in site}
    assert built == {place.replace(".md", ".html") for place in HOOKS.PAGES.values()}


def test_links_lead_to_files_and_headings(site):
    assert sum(len(page.links) for page in site.values()) > 1000
    lost = []
    for path, page in site.items():
        for link in {*page.links, *page.fetched}:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target.suffix == ".html" and anchor not in site[target].anchors):
                lost.append(f"{path.name}: {link}")
    assert lost == []


def test_the_page_of_the_api_has_what_it_lists_and_what_the_package_exports(site):
    (anchors,) = (page.anchors for path, page in site.items() if path.name == "api.html")
    listed = set()
    for block in text_of("docs/api.md").split("\n::: ")[1:]:
        name, _, settings = block.partition("\n")
        members = (yaml.safe_load(settings.partition("\n\n")[0]) or {"options": {}})["options"].get("members") or []
        listed |= {name, *(f"{name}.{member}" for member in members)}
    assert len(listed) > 60 and listed - anchors == {"kakurenbo_lightning.errors"}  # its classes have headings, it has none
    assert set(kakurenbo_lightning.__all__) <= {anchor.rpartition(".")[2] for anchor in anchors}
    assert {"keep", "BackpropMethod", "DrawMethod", "StreamMethod", "read_runs"} <= {each.rpartition(".")[2] for each in listed}


def test_a_browser_fetches_nothing_from_elsewhere(site):
    assert {link for page in site.values() for link in page.fetched if urlsplit(link).netloc} == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_work_in_the_repository_too(page):
    """As on GitHub, or in an editor."""
    linked = {link for link in HOOKS.relative_links(text_of(page)) if not link.startswith("#")}
    assert [link for link in linked if not (REPOSITORY / HOOKS.in_repository(page, link)).exists()] == []


@pytest.mark.parametrize("page", ["README.md", *OURS])
def test_lines_of_prose_are_short(page):
    assert [line for line in prose(text_of(page)) if len(line) > LONGEST] == []


@pytest.mark.parametrize("page", ["README.md", *OURS])
def test_code_fits_the_width_of_a_page(page):
    assert [line for _, block in blocks(page) for line in block.splitlines() if len(line) > WIDEST] == []


def test_a_block_of_code_is_in_a_language_that_is_tested():
    """Those of TOML and Markdown are a package that tests/methods/test_plugin.py makes and installs."""
    languages = {name for page in PAGES for name, _ in blocks(page)}
    assert languages == {"python", "sh", "yaml", "toml", "markdown", "diff", "text"}
    assert {page for page in PAGES for name, _ in blocks(page) if name in ("toml", "markdown")} == {
        "kakurenbo_lightning/methods/ADDING.md"
    }


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_of_a_program_is_small_described_on_its_page_and_made_by_a_command(name):
    assert f'"{name}"' in (REPOSITORY / ".ci/screenshots.py").read_text()
    assert 2_000 < (REPOSITORY / "docs" / name).stat().st_size < 150_000
    assert re.search(rf"^!\[[^\]]{{30,}}\]\({name}\)$", text_of(f"docs/{PICTURES[name]}.md"), re.M)


def test_a_picture_of_a_terminal_needs_no_font_from_elsewhere():
    addresses = re.findall(r"url\(([^)]*)\)|href=.([^'\" ]*)", (REPOSITORY / "docs/training.svg").read_text())
    assert all(address.startswith("#") for pair in addresses for address in pair if address)


@pytest.mark.parametrize("page", OURS)
def test_a_page_begins_with_its_title(page):
    assert text_of(page).startswith("# ")


def test_a_picture_for_dark_pages_is_shown_by_the_palette(site):
    """On GitHub ``<picture>`` goes by the reader's system; here the reader may choose."""
    pictures = {page: HOOKS.PICTURE.findall(text_of(page)) for page in PAGES if "<picture" in text_of(page)}
    assert {"README.md", "docs/results.md"} <= set(pictures)
    for page, found in pictures.items():
        assert len(found) == text_of(page).count("<picture"), "in the form that the hook knows"
        (path,) = (
            path for path in site if path.as_posix().endswith(f"documentation/{HOOKS.PAGES[page].replace('.md', '.html')}")
        )
        shown = [link.rpartition("/")[2] for link in site[path].fetched if "#only-" in link]
        names = [
            f"{name.rpartition('/')[2]}#only-{kind}"
            for dark, light, _ in found
            for name, kind in ((light, "light"), (dark, "dark"))
        ]
        assert shown == names


def test_a_browser_scrolls_no_page_sideways_and_shows_its_pictures(site, tmp_path):
    """A wide table or block of code scrolls by itself; the first page has a picture for each palette, of which one is shown."""
    paths = [path for path in site if path.name in ("index.html", "choosing.html", "reports.html", "benchmarks.html")]
    paths = [path for path in paths if path.parent.name == "documentation"]
    what = "{scrolls, window: root.clientWidth, lost: [...page.images].filter(image => image.naturalWidth < 2).length}"
    found = found_in(paths, what, tmp_path, patience=1500)  # Material's script puts tables into frames that scroll
    assert len(found) == 8 and all(one["window"] > width - 20 for _, width, one in found)
    assert [(path.name, width) for path, width, one in found if one["scrolls"] or one["lost"]] == []
