"""The pages of the documentation, wherever they lie in the repository, and what stands in their blocks of code."""

import importlib.util
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / ".ci" / "mkdocs.yml"


def loaded_hooks():
    """The module by which the site finds pages; it lies in no package."""
    spec = importlib.util.spec_from_file_location("docs_hooks", CONFIG.with_name("docs_hooks.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = loaded_hooks()
PAGES = sorted(HOOKS.PAGES)  # paths from the top of the repository
BLOCK = re.compile(r"^(`{3,})(\w*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


def text_of(page):
    """A page as it lies in the repository."""
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page, language=None):
    """Texts of a page's blocks of code in one language, or pairs (language, text) of all."""
    found = [(match[2], match[3]) for match in BLOCK.finditer(text_of(page))]
    return found if language is None else [text for name, text in found if name == language]


def with_blocks(*languages):
    """Pages that have blocks of code in one of the languages."""
    return [page for page in PAGES if any(name in languages for name, _ in blocks(page))]


def prose(text):
    """Lines of a page without code, tables, headings and pictures, in which nobody can break a line where it is too long."""
    lines = BLOCK.sub("", text).splitlines()
    return [re.sub(r"\]\([^)]*\)", "]", line) for line in lines if not line.startswith(("|", "#", "![", "<!--"))]
