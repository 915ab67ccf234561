"""Drive the interactive map in Debian's chromium: for the tests, for pictures of the page, and for benchmarks/maps.py."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
READY_MS = 60_000
_WEBGL_WITHOUT_A_CARD = "--enable-unsafe-swiftshader"
# Each frame moves the pointer once with the button down, then waits for the next frame: its time is that of one step of a drag.
_FRAMES = """async (nFrames) => {
  const stage = document.querySelector(".stage");
  const box = stage.getBoundingClientRect();
  const pointer = (type, i) => new PointerEvent(type, { bubbles: true, button: 0, buttons: 1,
    clientX: box.left + box.width / 2 + 60 * Math.sin(i / 6), clientY: box.top + box.height / 2 + 60 * Math.cos(i / 6) });
  const frame = () => new Promise(requestAnimationFrame);
  stage.dispatchEvent(pointer("pointerdown", 0));
  window.dispatchEvent(pointer("pointermove", 1));
  await frame();
  const start = performance.now();
  for (let i = 2; i < nFrames + 2; i++) {
    window.dispatchEvent(pointer("pointermove", i));
    await frame();
  }
  const mean = (performance.now() - start) / nFrames;
  window.dispatchEvent(pointer("pointerup", nFrames + 2));
  return mean;
}"""


def missing_browser() -> str:
    """Why no browser can be driven here; empty when one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install -e '.[dev]', then `make browser`"
    return "" if _chromium() else "no chromium on PATH: `make browser` installs it"


def _chromium() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def opened_browser() -> Iterator[Any]:
    """One process of chromium, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers run as root and have a small /dev/shm.
        flags = ["--no-sandbox", "--disable-dev-shm-usage", _WEBGL_WITHOUT_A_CARD]
        browser = playwright.chromium.launch(executable_path=_chromium(), args=flags)
        try:
            yield browser
        finally:
            browser.close()


def measure_page(path: Path, *, browser: Any = None, n_frames: int = 60) -> dict[str, float]:
    """ready_s: from opening the file to the first picture. frame_ms: mean time of a step of a drag. megabytes: of the file.

    redraw_ms: what plotly needs for a new picture. Where that is below 40 ms, each step of a drag is one; else the picture that
    stands is moved, and drawn anew when the drag rests: a short drag before the measured one lets the page learn which.
    browser: an open one; else one is opened, outside the time. Raises AssertionError when the map did not move.
    """
    with opened_browser() if browser is None else nullcontext(browser) as opened:
        page = opened.new_page(viewport={"width": 1400, "height": 900})
        start = time.perf_counter()
        page.goto(path.resolve().as_uri())
        wait_until_ready(page)
        ready_s = time.perf_counter() - start
        page.evaluate(_FRAMES, 2)
        page.wait_for_function("Number.isFinite(ebrMap.redrawMs()) && ebrMap.isAtRest()", timeout=READY_MS)
        before = page.evaluate("ebrMap.ranges()")
        frame_ms = page.evaluate(_FRAMES, n_frames)
        assert page.evaluate("ebrMap.ranges()") != before, f"{path}: the map did not move"
        page.wait_for_function("ebrMap.isAtRest()", timeout=READY_MS)
        redraw_ms = page.evaluate("ebrMap.redrawMs()")
        page.close()
    return {"ready_s": ready_s, "frame_ms": frame_ms, "redraw_ms": redraw_ms, "megabytes": path.stat().st_size / 1e6}


def wait_until_ready(page: Any) -> None:
    page.wait_for_selector("html[data-ready]", state="attached", timeout=READY_MS)
