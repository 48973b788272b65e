"""What the documentation has from elsewhere in the repository: pages, files that pages link to, and the links themselves.

Links in a page are those of its place in the repository, so that they work on GitHub and in an editor too; here they become those of
the site. A file that is no page (a result, a module) is put below ``files/``. A folder cannot be opened on a site, so only the text of
a link to one is left. A picture that is another one on dark pages, which GitHub takes by the reader's system, is one by the palette here.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "kakurenbo_lightning"
PAGES = {  # place in the repository -> place on the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "recipes/benchmarks/README.md": "benchmarks.md",
    f"{PACKAGE}/methods/README.md": "methods/index.md",
    f"{PACKAGE}/methods/ADDING.md": "methods/adding.md",
    f"{PACKAGE}/signals/batch_loss.md": "methods/batch_loss.md",
    **{
        str(path.relative_to(ROOT)): f"methods/{path.parent.name}/{path.name}"
        for path in sorted(ROOT.glob(f"{PACKAGE}/methods/*/*.md"))
    },
    **{str(path.relative_to(ROOT)): path.name for path in sorted(ROOT.glob("docs/*.md"))},
}
SOURCES = {place: source for source, place in PAGES.items()}
# a block of code, a link, or code within a line, whichever begins first
LINK = re.compile(
    r"^(?P<fence>`{3,})[^\n]*$.*?^(?P=fence)$|(?P<text>!?\[(?:[^\]`]|`[^`]*`)*\])\((?P<target>[^)\s]+)\)|`[^`\n]+`", re.M | re.S
)
PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">\s*'
    r'<img src="(?P<light>[^"]+)" alt="(?P<text>[^"]+)">\s*</picture>'
)
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?([^<]+)</code>")


def relative_links(text: str) -> list[str]:
    """Targets of the links of a page that are no web addresses, without those in code."""
    return [found["target"] for found in LINK.finditer(pictured(text)) if found["target"] and "://" not in found["target"]]


def pictured(text: str) -> str:
    """A page with two images in the place of a picture, of which Material for MkDocs shows the one for the palette."""
    return PICTURE.sub(r"![\g<text>](\g<light>#only-light)\n![\g<text>](\g<dark>#only-dark)", text)


def in_repository(source: str, target: str) -> str:
    """The path from the top of the repository of what a page links to."""
    return os.path.normpath(os.path.join(os.path.dirname(source), target.partition("#")[0]))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the methods of a family where the navigation says so."""

    def filled(item: object) -> object:
        if isinstance(item, list):
            return [filled(each) for each in item]
        if isinstance(item, dict):
            return {name: filled(each) for name, each in item.items()}
        folder = f"methods/{str(item).removeprefix('METHODS ')}/"
        return [place for place in SOURCES if place.startswith(folder)] if str(item).startswith("METHODS ") else item

    config.nav = filled(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, and the files that pages link to."""
    linked = {in_repository(source, target) for source in PAGES for target in relative_links((ROOT / source).read_text("utf-8"))}
    others = {name: f"files/{name}" for name in sorted(linked - set(PAGES)) if (ROOT / name).is_file()}
    for source, place in {**PAGES, **others}.items():
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links within the repository into links within the site, and leave out the marks of generated tables."""
    source = SOURCES[page.file.src_uri]

    def link(found: re.Match[str]) -> str:
        target = found["target"]
        if target is None or "://" in target or target.startswith("#"):
            return found[0]
        name = in_repository(source, target)
        if (ROOT / name).is_dir():
            return found["text"][1:-1]
        place = os.path.relpath(PAGES.get(name, f"files/{name}"), os.path.dirname(page.file.src_uri))
        return f"{found['text']}({place}{''.join(target.partition('#')[1:])})"

    return re.sub(r"^<!-- .* -->\n", "", LINK.sub(link, pictured(markdown)), flags=re.MULTILINE)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings are written for Sphinx too: of ``:class:`Saving``` a reader needs the name, before code one colon."""
    return ROLE.sub(r"<code>\1</code>", html).replace("::</p>", ":</p>")
