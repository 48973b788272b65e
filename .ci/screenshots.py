"""The pictures of docs/ that show programs at work: `make screenshots` makes them from real trainings, on digits.

The trainings run on a terminal of their own, whose text becomes an SVG file; headless chromium opens the reports. build/screenshots keeps
the trainings, so that a second run only draws; `make clean` deletes them. Needs Linux, chromium and rich.
"""

import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from PIL import Image, ImageChops
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
DOCS, WORK = ROOT / "docs", ROOT / "build" / "screenshots"
COLUMNS, WIDTH = 118, 1280  # of the terminal, in letters, and of the browser's window, in pixels
TRAININGS = {  # the words of kakurenbo-train by the folder that it fills: as `make train`, and with labels for the data doctor to find
    "digits": ("experiment=quickstart",),
    "wrong_labels": ("experiment=quickstart", "compare=null", "data.label_noise=0.05"),
}
FRAME = re.compile(r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*")  # how rich begins to draw its bar again
SHOWN = "Epoch 12/19"  # the epoch that is shown, of KAKURENBO
PAGES = {  # by picture: the training, how high the window is, and which parts of the report are left out
    "report.png": ("digits", 1420, "#samples, #data, #runs"),
    "doctor.png": ("wrong_labels", 1500, "header, section:not(#data), #data > .note ~ .note"),
}


def trained(name: str) -> str:
    """Train on a terminal, unless that was done before, and return all that was written to it."""
    log = WORK / f"{name}.txt"
    if not log.exists():
        shutil.rmtree(WORK / name, ignore_errors=True)
        WORK.mkdir(parents=True, exist_ok=True)
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        command = [sys.executable, "-m", "kakurenbo_recipes.train", *TRAININGS[name], f"hydra.run.dir={WORK / name}"]
        training = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=WORK)
        os.close(theirs)
        written = b"".join(iter(lambda: read(ours), b""))
        if training.wait():
            sys.exit(written.decode()[-3000:])
        log.write_bytes(written)
    return log.read_bytes().decode()


def read(terminal: int) -> bytes:
    """What was written to a terminal; nothing once nobody has it open."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how Linux says so
        return b""


def draw_terminal(written: str, target: Path) -> None:
    """Draw the bar in the midst of the training with KAKURENBO, and what is printed at its end."""
    frames = FRAME.split(written.replace("\r\n", "\n").replace("\x1b[?25h", ""))  # it shows the cursor again
    bars = [frame for frame in frames if frame.startswith(SHOWN) and "hidden:" in frame and "Validation" not in frame]
    summary = re.findall(r"^INFO: SampleSelection: kakurenbo\n.*?\n(?=\S|\Z)", "\n".join(frames[-2:]), re.M | re.S)[-1]
    table = re.findall(r"^method .*?(?=^$)", frames[-1], re.M | re.S)[-1]
    shown = ("$ make train", "...", bars[len(bars) // 2], "...", summary.rstrip(), "", table.rstrip())
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in "\n".join(shown).split("\n"):
        console.print(Text.from_ansi(line.rstrip()), soft_wrap=True)
    svg = console.export_svg(title="make train", unique_id="terminal")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)  # fonts from elsewhere, which no page fetches
    target.write_text(svg, encoding="utf-8")


def draw_page(report: Path, target: Path, height: int, hidden: str) -> None:
    """Take a picture of a part of a page, cut at the height or where it ends."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("no chromium or google-chrome here: apt-get install chromium")
    page = report.with_name(f"part-{target.stem}.html")
    page.write_text(report.read_text().replace("</head>", f"<style>{hidden} {{ display: none }}</style></head>", 1))
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "taken.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
        flags += [f"--window-size={WIDTH},{height}", f"--screenshot={taken}"]
        subprocess.run([browser, *flags, page.as_uri()], check=True, capture_output=True, timeout=300)
        with Image.open(taken) as image:
            picture = image.convert("RGB")
    page.unlink()
    empty = Image.new("RGB", picture.size, picture.getpixel((WIDTH - 1, height - 1)))
    *_, end = ImageChops.difference(picture, empty).getbbox() or picture.getbbox()
    picture = picture.crop((0, 0, WIDTH, min(height, end + 24)))
    picture.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> None:
    """Make all pictures."""
    draw_terminal(trained("digits"), DOCS / "training.svg")
    for picture, (name, height, hidden) in PAGES.items():
        trained(name)
        report = WORK / f"{name}_report"
        command = [sys.executable, "-m", "kakurenbo_lightning.cli.report", name, "-o", str(report)]
        subprocess.run(command, check=True, cwd=WORK, stdout=subprocess.DEVNULL)
        draw_page(report / "report.html", DOCS / picture, height, hidden)
    for picture in ("training.svg", *PAGES):
        print(f"docs/{picture}: {(DOCS / picture).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
