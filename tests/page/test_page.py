"""A run's page in a real browser: light and dark, wide and narrow and on paper, with no request to anybody."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image, ImageStat

from console.report_page import page
from tests.page.browser import Browser
from tests.unit.report_runs import EVERY_RUN
from tests.unit.test_report_page import hostile_page

WIDTHS = (1200, 400, 320)
# Everything that sticks out of the screen, or out of the box that should hold it.
STICKING_OUT = """
[...document.querySelectorAll('body *')].filter(each => {
  const box = each.getBoundingClientRect();
  if (!box.width || getComputedStyle(each).clipPath !== 'none') return false;
  const holder = each.closest('section, header') || document.body;
  return box.right > holder.getBoundingClientRect().right + 0.5 || box.left < -0.5;
}).map(each => each.outerHTML.slice(0, 120))
"""
# Text whose colour is too near to what is behind it, as WCAG 2.1 counts contrast (1.4.3, level AA).
PALE = """
(() => {
  const parse = text => { const found = text.match(/[0-9.]+/g).map(Number);
    return {rgb: found.slice(0, 3), alpha: found.length > 3 ? found[3] : 1}; };
  const luminance = rgb => rgb.map(part => part / 255).map(part =>
    part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const {rgb, alpha} = parse(getComputedStyle(each).backgroundColor);
      if (alpha === 1) return rgb;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  let count = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || ['title', 'desc'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const colour = parse(element instanceof SVGElement ? style.fill : style.color).rgb;
    const [darker, lighter] = [luminance(colour), luminance(behind(element))].sort((a, b) => a - b);
    count += 1;
    if ((lighter + 0.05) / (darker + 0.05) < 4.5) found.push(walker.currentNode.data);
  }
  return {count, found};
})()
"""


def picture(browser: Browser) -> Image.Image:
    """What the browser shows, all of it."""
    return Image.open(io.BytesIO(browser.picture())).convert("RGB")


def brightness(image: Image.Image) -> float:
    """From 0 to 255."""
    return ImageStat.Stat(image.convert("L")).mean[0]


@pytest.mark.parametrize("name", EVERY_RUN)
def test_nothing_sticks_out_on_any_screen(name: str, browser: Browser, pages: Mapping[str, Path]) -> None:
    browser.open(pages[name])
    browser.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    for width in WIDTHS:
        browser.look(width=width, dark=False)
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate(STICKING_OUT) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", EVERY_RUN)
def test_all_text_can_be_told_from_what_is_behind_it(
    name: str, dark: bool, browser: Browser, pages: Mapping[str, Path],
) -> None:
    browser.open(pages[name], dark=dark)
    seen = browser.evaluate(PALE)
    assert seen["count"] > 50
    assert seen["found"] == []


@pytest.mark.parametrize("width", WIDTHS[:2])
def test_a_page_is_light_or_dark_as_its_reader_likes(
    width: int, browser: Browser, pages: Mapping[str, Path], tmp_path: Path,
) -> None:
    shown = {}
    for dark in (False, True):
        browser.open(pages["moved"], width=width, dark=dark)
        image = picture(browser)
        shown[dark] = image
        # In the directory of the test, for whoever wants to see what it looked at.
        image.save(tmp_path / f"moved-{width}-{'dark' if dark else 'light'}.png")
        assert image.width == width
        assert image.height > 1500
        assert len(image.getcolors(1 << 24) or []) > 100, "there is next to nothing on it"
        assert ImageStat.Stat(image.convert("L")).stddev[0] > 10
    assert brightness(shown[False]) > 225
    assert brightness(shown[True]) < 50
    assert shown[False].getpixel((3, 300)) == (0xf4, 0xf6, 0xf8)
    assert shown[True].getpixel((3, 300)) == (0x0e, 0x11, 0x16)


def test_the_chart_shows_each_disk_and_the_memory_in_its_own_colour(
    browser: Browser, pages: Mapping[str, Path],
) -> None:
    browser.open(pages["moved"])
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.chart .drawing .area')].map(each => {"
        "const box = each.getBoundingClientRect();"
        "return [each.getAttribute('class'), box.left, box.top + scrollY, box.width, box.height]; })")
    assert [name for name, *_box in boxes] == ["area files", "area disk-1", "area disk-2", "area memory"]
    image = picture(browser)
    plot = browser.evaluate(
        "(() => { const box = document.querySelector('.chart .drawing').getBoundingClientRect();"
        "return [box.left, box.top + scrollY, box.right, box.bottom]; })()")
    colours = set()
    for _name, left, top, width, height in boxes:
        assert width > 15
        assert height > 40
        assert plot[0] - 1 <= left
        assert left + width <= plot[2] + 1
        assert plot[1] - 1 <= top
        assert top + height <= plot[3] + 1
        # Near its lower right corner: no name stands there, and no other band.
        colours.add(image.getpixel((round(left + width * 0.8), round(top + height - 6))))
    assert len(colours) == 4


def test_a_page_asks_nobody_for_anything(browser: Browser, pages: Mapping[str, Path]) -> None:
    for path in pages.values():
        browser.open(path)
        browser.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        browser.picture()
        assert browser.requests() == [path.as_uri()]
        assert browser.complaints() == []
        assert browser.evaluate("document.scripts.length") == 0


def test_a_page_would_not_get_through_with_a_request(
    browser: Browser, pages: Mapping[str, Path], tmp_path: Path,
) -> None:
    """What the test above looks for is there to be found: something that slips in is asked for by nobody."""
    path = tmp_path / "slipped-in.html"
    path.write_text(pages["moved"].read_text(encoding="utf-8").replace(
        "</main>", '<img src="http://192.0.2.99/x.png"/><script>document.title = "run"</script></main>'))
    browser.open(path)
    browser.picture()
    assert any("Content Security Policy" in told for told in browser.complaints())
    assert browser.evaluate("document.title") != "run"
    assert browser.evaluate("document.scripts.length") == 1


def test_a_page_reads_the_same_without_scripts(browser: Browser, pages: Mapping[str, Path]) -> None:
    browser.open(pages["moved"])
    text = browser.evaluate("document.body.innerText")
    browser.open(pages["moved"], script=False)
    assert browser.evaluate("document.body.innerText") == text
    assert "mail runs on 192.168.111.132 now." in text


def test_what_other_hosts_say_runs_nothing_and_asks_for_nothing(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(page(hostile_page()), encoding="utf-8")
    browser.open(path)
    assert browser.requests() == [path.as_uri()]
    assert browser.evaluate("document.scripts.length + document.images.length") == 0
    assert not [event for event in browser.events if event.get("method") == "Page.javascriptDialogOpening"]
    assert browser.evaluate("document.querySelector('h1').innerText").startswith("<script>alert(1) runs on")


def test_no_name_of_a_step_is_cut_on_a_wide_screen(browser: Browser, pages: Mapping[str, Path]) -> None:
    browser.open(pages["moved"])
    assert browser.evaluate(
        "[...document.querySelectorAll('.who, .took')].filter(each => each.scrollWidth > each.clientWidth + 1)"
        ".map(each => each.innerText)") == []


def test_on_paper_a_page_is_light_and_whole(browser: Browser, pages: Mapping[str, Path]) -> None:
    browser.open(pages["moved"], width=720, dark=True)
    assert browser.printed().startswith(b"%PDF-")
    browser.ask("Emulation.setEmulatedMedia", media="print", features=[
        {"name": "prefers-color-scheme", "value": "dark"}])
    try:
        assert brightness(picture(browser)) > 225
        # What is folded up on a screen cannot be unfolded on paper.
        assert browser.evaluate("document.querySelector('details table').checkVisibility()")
        assert browser.evaluate("document.documentElement.scrollWidth") == 720
        assert browser.evaluate(STICKING_OUT) == []
    finally:
        browser.ask("Emulation.setEmulatedMedia", media="")


def test_the_findings_are_folded_up_on_a_screen_and_unfold_by_the_keyboard(
    browser: Browser, pages: Mapping[str, Path],
) -> None:
    browser.open(pages["moved"])
    height = "document.querySelector('details').getBoundingClientRect().height"
    folded = browser.evaluate(height)
    assert not browser.evaluate("document.querySelector('details table').checkVisibility()")
    browser.evaluate("document.querySelector('summary').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    assert folded < 60
    assert browser.evaluate(height) > 1000
    assert browser.evaluate("document.querySelector('details table').checkVisibility()")
