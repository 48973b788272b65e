"""Pages in a headless browser, as wide as on a desk and on a phone."""

import html
import json
import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--allow-file-access-from-files"),
)
WIDTHS = (1280, 390)


def found_in(paths, what, profile, patience=0):
    """What a browser finds in pages at each width, as ``[(path, width, found), ...]``.

    Args:
        paths: the pages' files, all in one folder, which gets another page that shows them.
        what: JavaScript of an object, in which ``page`` is the document and ``scrolls`` whether it can be scrolled sideways.
        profile: an empty folder for the browser.
        patience: milliseconds of the browser's clock for scripts of the pages.
    """
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome here: apt-get install chromium")
    shown = [(path, width) for path in paths for width in WIDTHS]
    frames = "".join(
        f'<iframe width="{width}" height="900" style="border: 0" src="{path.name}"></iframe>' for path, width in shown
    )
    probe = f"""<script>addEventListener("load", () => setTimeout(() => {{ document.body.dataset.found = JSON.stringify(
        [...document.querySelectorAll("iframe")].map(frame => {{ const page = frame.contentDocument, root = page.documentElement,
            scrolls = root.scrollWidth > root.clientWidth; return {what} }})) }}, {patience}))</script>"""
    file = paths[0].with_name("probe.html")
    file.write_text(f"<!DOCTYPE html><body>{probe}{frames}</body>")
    command = [BROWSER, *FLAGS, f"--virtual-time-budget={patience + 10_000}", f"--user-data-dir={profile}", "--dump-dom"]
    try:
        dumped = subprocess.run([*command, f"file://{file}"], capture_output=True, text=True, timeout=120).stdout
    finally:
        file.unlink()
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', dumped)[1]))
    return [(path, width, one) for (path, width), one in zip(shown, found, strict=True)]
