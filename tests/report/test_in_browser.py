"""The page in a real browser: no complaint, no sideways scrolling, nothing loaded."""

import pytest
from browser import A4, EXECUTABLE, TOO_WIDE_ON_PAPER, Browser
from made_up_runs import made_up_run, write_run

from mlecs_jax.report.run_report import write_report

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium installed")

_TOO_WIDE = """
[...document.querySelectorAll('body *')]
  .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 0.5)
  .map(e => e.tagName + '.' + e.className).join(' ')
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    base = tmp_path_factory.mktemp("pages")
    long_name = "a_configuration_with_a_name_that_goes_on_and_on_without_any_place_to_break"
    named = made_up_run(3, 4)
    named["config"]["config_name"] = named["summary"]["dataset"] = long_name
    named["summary"]["class_names"] = [long_name, "b", "c"]
    named["summary"]["client"]["per_client"][0]["modalities"] = [long_name]
    named["summary"]["modalities"] = [long_name, "rgb", "depth"]
    runs = {"three": made_up_run(), "many": made_up_run(64, 20, source="simulated", changing=True),
            "names": named}
    return {name: write_report(write_run(base / name, run)) for name, run in runs.items()}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("name", ["three", "many", "names"])
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, False), (390, True)])
def test_page_fits_and_is_silent(browser, pages, tmp_path, name, width, dark):
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(pages[name], width=width, dark=dark)
    picture = browser.screenshot(tmp_path / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    assert picture.stat().st_size > 10_000
    assert browser.evaluate(_TOO_WIDE) == ""
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.complaints == []
    assert set(browser.requests) == {pages[name].resolve().as_uri()}


def test_pointer_reads_out_a_round(browser, pages):
    browser.open(pages["three"], width=1200)
    before, during, after = browser.evaluate("""
      (() => {
        const figure = document.querySelector('#learning figure');
        const out = figure.querySelector('.readout'), before = out.textContent;
        figure.querySelectorAll('.hit')[2].dispatchEvent(new PointerEvent('pointerenter'));
        const during = out.textContent;
        figure.dispatchEvent(new PointerEvent('pointerleave', {pointerType: 'mouse'}));
        return [before, during, out.textContent];
      })()""")
    assert before.startswith("Round 12: test") and during.startswith("Round 3: test")
    assert after == before


_READ_OUT = "document.querySelector('#learning .readout').textContent"


def test_a_round_that_is_touched_stays_read(browser, pages):
    browser.open(pages["three"], width=390)
    before = browser.evaluate(_READ_OUT)
    browser.tap("document.querySelectorAll('#learning figure')[0].querySelectorAll('.hit')[2]")
    assert before.startswith("Round 12: test")
    assert browser.evaluate(_READ_OUT).startswith("Round 3: test")


def test_rounds_are_read_by_keyboard_and_aloud(browser, pages):
    browser.open(pages["three"], width=1200)
    charts, reachable = browser.evaluate("""
      [document.querySelectorAll('svg:has(.hit)').length,
       document.querySelectorAll('svg[tabindex="0"]:has(.hit)').length]""")
    assert charts == reachable > 3  # one stop a chart, not one a round
    browser.evaluate("document.querySelector('#learning svg:has(.hit)').focus()")
    for key in ("ArrowLeft", "ArrowLeft", "ArrowRight"):
        browser.press(key)
    assert browser.evaluate(_READ_OUT).startswith("Round 11: test")
    assert browser.evaluate("document.querySelector('#learning .hit.read').ariaLabel"
                            ).startswith("Round 11: test")
    assert browser.evaluate("document.querySelectorAll('.hit:not([aria-label])').length") == 0
    assert browser.evaluate("document.querySelectorAll('[role=img] .hit').length") == 0
    browser.evaluate("document.activeElement.blur()")
    assert browser.evaluate(_READ_OUT).startswith("Round 12: test")


@pytest.mark.parametrize("name", ["three", "many", "names"])
def test_nothing_runs_off_the_paper(browser, pages, name):
    browser.open(pages[name], width=1200)
    browser.on_paper(width=A4)
    assert browser.evaluate(TOO_WIDE_ON_PAPER) == ""


@pytest.mark.parametrize("width", [1200, 360])
def test_long_names_stand_beside_charts_whole(browser, pages, width):
    browser.open(pages["names"], width=width)
    names, left, right = browser.evaluate("""
      (() => {
        const rows = [...document.querySelectorAll('#modalities svg text.row')];
        const boxes = rows.map(row => row.getBoundingClientRect());
        return [rows.map(row => row.textContent).join(''),
                Math.min(...boxes.map(box => box.left)), Math.max(...boxes.map(box => box.right))];
      })()""")
    assert "a_configuration_with_a_name_that_goes_on_and_on_without_any_place_to_break" in names
    assert "…" not in names and 0 <= left < right <= width


def test_prints_all_of_it(browser, pages, tmp_path):
    browser.open(pages["three"], width=1200)
    printed = browser.pdf(tmp_path / "three.pdf").read_bytes()
    assert printed.startswith(b"%PDF") and 2 <= printed.count(b"/Type /Page\n") <= 9
