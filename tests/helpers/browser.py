"""Debian's Chromium, driven by playwright: what an operator sees."""

from __future__ import annotations

import io
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(__file__).parents[2] / "plugins/web/node_modules/axe-core/axe.min.js"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt install chromium")
needs_axe = pytest.mark.skipif(not AXE.exists(), reason="no axe-core: run `npm ci` in plugins/web")
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}


@contextmanager
def browser(*, gpu=False):
    """Give a browser without a screen; software rendering unless ``gpu``."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    flags = ["--no-sandbox", "--enable-precise-memory-info", "--js-flags=--expose-gc"]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=CHROMIUM, args=flags if gpu else [*flags, "--disable-gpu"]
        )
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def page(viewport=DESKTOP, *, scheme="dark", gpu=False):
    """Give a page that fails the test where it meets an error or asks a foreign address."""
    with browser(gpu=gpu) as opened:
        tab = opened.new_page(viewport=viewport, color_scheme=scheme)
        wrong: list[str] = []
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda said: _note(wrong, said))
        tab.on(
            "request", lambda r: None if "127.0.0.1" in r.url or _local(r) else wrong.append(r.url)
        )
        tab.set_default_timeout(60_000)
        tab.wrong = wrong
        yield tab
        assert not wrong, wrong


def _note(wrong, said) -> None:
    """Keep what the page complains of; that a connection is gone is no fault of the page."""
    if said.type == "error" and "WebSocket" not in said.text and "net::ERR" not in said.text:
        wrong.append(said.text)


def _local(request) -> bool:
    return request.url.startswith(("data:", "blob:"))


def pixels(element):
    """Give (h, w, 3): what is on the screen there."""
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB"))


def colour_counts(image):
    """Give how often each colour (r, g, b) is there."""
    colours, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(int(part) for part in c): int(n) for c, n in zip(colours, counts, strict=True)}


def word(tab, testid):
    return tab.get_by_test_id(testid)
