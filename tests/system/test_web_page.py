"""The live page in a real browser: what an operator sees and does."""

import threading
import time

import matplotlib as mpl
import numpy as np
import pytest

from helpers.browser import (
    AXE,
    PHONE,
    colour_counts,
    needs_axe,
    needs_chromium,
    page,
    pixels,
)
from helpers.waiting import until
from helpers.web import TOKEN, RunEnd, pair, serving, started

pytestmark = needs_chromium

SHAPE = (240, 320)
LEVELS = (0, 85, 170, 255)


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path) as served:
        yield served


def url(server, settings=""):
    return f"http://127.0.0.1:{server.port}/#live?{settings}"


def blocks():
    """Give an image of six stripes: four levels, no data, saturated."""
    image = np.zeros(SHAPE, np.uint16)
    values = [*LEVELS, 65535, 60000]
    for place, value in enumerate(values):
        image[:, place * 50 : (place + 1) * 50 + 20] = value
    return image


def shown(tab, state="live"):
    tab.wait_for_selector(f'[data-testid="freshness"][data-state="{state}"]')


def here(tab):
    """Give the address; asked of the page, which playwright follows only while it is asked."""
    return tab.evaluate("location.href")


def frame_number(tab):
    word = tab.get_by_test_id("read-frame").inner_text().split()[0]
    return int(word) if word.isdigit() else -1


class Stream:
    """Sends a frame every 0.1 s, as a detector does."""

    def __init__(self, server, shape=SHAPE, rate_hz=10.0):
        self.server, self.index, self.going = server, 0, True
        server.put(started(shape=shape))
        self.shape, self.pause_s = shape, 1 / rate_hz
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while self.going:
            self.server.put(*pair(self.index, shape=self.shape))
            self.index += 1
            time.sleep(self.pause_s)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.going = False
        self.thread.join()


def colours_match(server, renderer, name):
    table = (np.array(mpl.colormaps[name].colors) * 255).round().astype(int)
    server.put(started(shape=SHAPE, nodata=65535, saturation=50000))
    server.put(*pair(0, raw=blocks(), shape=SHAPE))
    settings = f"renderer={renderer}&planes=raw&autoscale=minmax&active=raw&colours={name}"
    with page() as tab:
        tab.goto(url(server, settings))
        tab.wait_for_selector(f'[data-testid="stage"][data-renderer="{renderer}"]')
        canvas = tab.get_by_test_id("pixels")
        wanted = [tuple(int(part) for part in table[level]) for level in LEVELS]

        def read_back():
            found = colour_counts(pixels(canvas))
            return all(_near(found, colour) > 2000 for colour in wanted)

        until(read_back, 60, f"the colours {wanted} in {renderer}")
        found = colour_counts(pixels(canvas))
        assert _near(found, (255, 64, 129)) > 2000  # saturated


def _near(found, colour):
    """Count pixels of this colour; tables differ by one where they were rounded otherwise."""
    return sum(
        n for c, n in found.items() if max(abs(a - b) for a, b in zip(c, colour, strict=True)) <= 1
    )


def test_the_page_shows_the_stream_in_the_colours_of_its_map(server):
    colours_match(server, "canvas2d", "viridis")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["viridis", "cividis", "magma"])
@pytest.mark.parametrize("renderer", ["canvas2d", "webgl2"])
def test_both_renderers_give_the_colour_map_of_known_values(server, renderer, name):
    colours_match(server, renderer, name)


@pytest.mark.slow
def test_swipe_shows_raw_left_and_clean_right_of_the_divider(server):
    raw = np.zeros(SHAPE, np.uint16)
    raw[0, 0] = 255
    server.put(started(shape=SHAPE))
    server.put(*pair(0, raw=raw, clean=np.full(SHAPE, 255, np.float32), shape=SHAPE))
    with page() as tab:
        tab.goto(
            url(server, "mode=swipe&autoscale=manual&limits=raw:0,255~clean:0,255&colours=grey")
        )
        canvas = tab.get_by_test_id("pixels")

        def split():
            image = pixels(canvas)[:, :, 0].astype(int)
            row = image[image.shape[0] // 2]
            black, white = np.flatnonzero(row == 0), np.flatnonzero(row == 255)
            return black.size > 100 and white.size > 100 and black.max() < white.min()

        until(split, 60, "black left of white")
        before = pixels(canvas)[:, :, 0]
        divider = tab.get_by_test_id("swipe-divider")
        divider.focus()
        for _ in range(5):
            tab.keyboard.press("ArrowRight")
        until(lambda: (pixels(canvas)[:, :, 0] == 0).sum() > (before == 0).sum() + 1000)


@pytest.mark.slow
def test_zoom_is_linked_between_panes_and_brings_back_every_pixel(server):
    with Stream(server, (1024, 1024)), page() as tab:
        tab.goto(url(server))
        shown(tab)
        surface = tab.get_by_test_id("stage-surface")
        box = surface.bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
        for _ in range(8):
            tab.mouse.wheel(0, -240)
        until(lambda: "look=" in here(tab), 60, "the look in the address")
        link = here(tab)
        tab.goto("about:blank")
        tab.goto(link)  # an address carries what one looks at
        shown(tab)
        assert "look=" in here(tab)


@pytest.mark.slow
def test_a_region_drawn_by_hand_has_a_series_of_raw_and_clean(server):
    with Stream(server) as stream, page() as tab:
        tab.goto(url(server))
        shown(tab)
        until(lambda: stream.index > 20)
        tab.keyboard.press("r")
        box = tab.get_by_test_id("stage-surface").bounding_box()
        x, y = box["x"] + box["width"] / 4, box["y"] + box["height"] / 2
        tab.mouse.move(x - 40, y - 40)
        tab.mouse.down()
        tab.mouse.move(x + 40, y + 40, steps=5)
        tab.mouse.up()
        until(lambda: "regions=" in here(tab), 60, "the region in the address")
        tab.get_by_role("tab", name="Regions").click()
        tab.wait_for_selector('[role="tabpanel"] .uplot, .uplot canvas')


@pytest.mark.slow
def test_scrubbing_goes_back_and_live_comes_forward(server):
    with Stream(server) as stream, page() as tab:
        tab.goto(url(server))
        shown(tab)
        until(lambda: stream.index > 15)
        tab.get_by_test_id("pause").click()
        slider = tab.get_by_test_id("scrub")
        slider.focus()
        tab.keyboard.press("Home")
        until(lambda: frame_number(tab) == 0, 60, "frame 0")
        assert "live" not in tab.get_by_test_id("stage").inner_text().lower().split()
        tab.get_by_test_id("go-live").click()
        until(lambda: frame_number(tab) > 15, 60, "the newest frame")


@pytest.mark.slow
def test_a_stale_stream_and_a_dead_daemon_are_never_called_live(server):
    server.put(started(shape=SHAPE), *pair(0, shape=SHAPE))
    with page() as tab:
        tab.goto(url(server))
        shown(tab, "stale")
        assert "STALE" in tab.get_by_test_id("stage").inner_text()
        assert tab.get_by_test_id("banner-stale").is_visible()
        server.put(RunEnd(run="r1", reason="completed"))
        shown(tab, "idle")
        server.link.connected = False
        shown(tab, "lost")
        assert tab.get_by_test_id("banner-lost").is_visible()


@pytest.mark.slow
def test_the_page_says_that_it_is_cut_off_and_comes_back_by_itself(tmp_path):
    with page() as tab:
        with serving(tmp_path) as server, Stream(server):
            address, port = url(server), server.port
            tab.goto(address)
            shown(tab)
        tab.wait_for_selector('[data-testid="freshness"]:not([data-state="live"])')
        with serving(tmp_path, address=f"127.0.0.1:{port}") as again, Stream(again):
            shown(tab)


@pytest.mark.slow
def test_nothing_can_be_changed_before_logging_in_and_all_of_it_after(server):
    with Stream(server), page() as tab:
        tab.goto(url(server))
        shown(tab)
        tab.get_by_test_id("login-open").click()
        tab.get_by_test_id("login-token").fill("wrong")
        tab.get_by_test_id("login-submit").click()
        until(lambda: tab.get_by_test_id("login-problem").inner_text() != "")
        tab.wrong.clear()  # the browser tells of the 403 too
        tab.get_by_test_id("login-token").fill(TOKEN)
        tab.get_by_test_id("login-submit").click()
        until(lambda: "out" in tab.get_by_test_id("login-open").inner_text().lower())
        assert "quietbeam_session" not in tab.evaluate("document.cookie")
        assert server.link.commands == [] or server.link.commands[0][0] == "commands"


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["dark", "light"])
@needs_axe
def test_axe_finds_nothing_serious_in_either_theme(server, theme):
    with Stream(server), page(scheme=theme) as tab:
        tab.goto(url(server))
        shown(tab)
        tab.evaluate(AXE.read_text())
        found = tab.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa']})")
        serious = [
            (v["id"], [node["target"] for node in v["nodes"]][:3])
            for v in found["violations"]
            if v["impact"] in {"serious", "critical"}
        ]
        assert serious == []
        assert any(rule["id"] == "color-contrast" for rule in found["passes"])


@pytest.mark.slow
def test_a_phone_shows_the_picture_without_sideways_scrolling(server):
    with Stream(server), page(PHONE) as tab:
        tab.goto(url(server).split("#")[0])
        shown(tab)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert tab.get_by_test_id("pixels").bounding_box()["width"] > 300
        tab.goto(url(server).split("#")[0] + "#recordings")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_five_minutes_do_not_grow_the_heap(server):
    heap = "(gc(), performance.memory.usedJSHeapSize)"
    with Stream(server), page() as tab:
        tab.goto(url(server))
        shown(tab)
        tab.wait_for_timeout(20_000)
        before = tab.evaluate(heap)
        tab.wait_for_timeout(300_000)
        assert tab.evaluate(heap) - before < 10e6
