"""The page in a real browser: Debian's chromium, driven by Playwright, with the network off."""

import io
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ebr.visualization.colours import LabelGroup
from ebr.visualization.page.page import PageContent, PagePanel, write_map_page
from ebr.visualization.picture.columns import MapColumn
from tests.browser import measure_page, missing_browser, opened_browser, wait_until_ready

WHY_NOT = missing_browser()
pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

EVIL = (
    "<script>window.ran = 1</script></script><img src=x onerror='window.ran = 2'>"
    "<b>bold</b><a href='javascript:window.ran = 3'>x</a>"
)
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#9E9E9E"
# Four corners and the middle; rows 0 and 1 are apples, 2 and 3 pears, row 4 holds the script.
CORNERS = np.array([[0, 0], [0, 10], [10, 0], [10, 10], [5, 5]], dtype=np.float32)
TEXTS = ["red apple", "green apple", "ripe pear", "中文的梨", EVIL]
LABELS = ("apple", "apple", "pear", "pear", EVIL)
GROUPS = [
    LabelGroup("apple", BLUE, np.array([0, 1]), "label"),
    LabelGroup("pear", ORANGE, np.array([2, 3]), "label"),
    LabelGroup(EVIL, "#000000", np.array([4]), "label"),
]
NEIGHBOURS = np.array([[1, 2], [0, 3], [3, 0], [2, 1], [0, 1]], dtype=np.int32)
COSINES = np.array([[0.9, 0.5]] * 5, dtype=np.float32)


def five_points(**changes):
    given = {
        "title": EVIL,
        "panels": [PagePanel(EVIL, EVIL, "Not to be trusted", CORNERS)],
        "columns": [MapColumn("kind", LABELS), MapColumn(EVIL, ("1", "2", "", "04.0", "9"), kind="numbers")],
        "groups": {"kind": GROUPS},
        "ids": ["a", "b", "c", "d", EVIL],
        "texts": TEXTS,
        "neighbours": NEIGHBOURS,
        "similarities": COSINES,
        "lines": ["silhouette  0.25"],
    }
    return PageContent(**(given | changes))


@pytest.fixture(scope="module")
def browser():
    with opened_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def open_page(browser, tmp_path_factory):
    """Open a content's page with the network off. Gives the page and what it asked for and complained of, which grows."""
    context = browser.new_context(viewport={"width": 1100, "height": 700}, accept_downloads=True)
    context.set_offline(True)

    def opened(content):
        path = tmp_path_factory.mktemp("page") / "map.html"
        write_map_page(path, content)
        page, requests, errors = context.new_page(), [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto(path.as_uri())
        wait_until_ready(page)
        return page, lambda: [url for url in requests if url != path.as_uri() and not url.startswith("blob:")] + errors

    yield opened
    context.close()


@pytest.fixture(scope="module")
def fruit_page(open_page):
    return open_page(five_points())


@pytest.fixture
def fruit(fruit_page):
    """The page of five points as it is when opened; afterwards, nothing was asked for, went wrong, or ran."""
    page, complaints = fruit_page
    page.bring_to_front()
    page.mouse.move(5, 5)
    for key in ("Escape", "Escape"):
        page.keyboard.press(key)
    page.fill("#search", "")
    page.select_option("#colour-by", "0")
    page.click("#reset")
    page.wait_for_function("ebrMap.drawn() === 5 && ebrMap.emphasised() === null && ebrMap.ranges()[0][0] < 0")
    yield page
    assert complaints() == []
    assert page.evaluate("window.ran") is None


def point_at(page, row, panel=0):
    x, y = page.evaluate(f"ebrMap.place({row}, {panel})")
    page.mouse.move(x - 2, y - 2)
    page.mouse.move(x, y)
    page.wait_for_selector("#tip:not([hidden])")
    return x, y


def test_hover_shows_the_text_the_label_and_the_neighbours_of_the_original_space(fruit):
    page = fruit
    point_at(page, 2)
    assert page.text_content("#tip") == "pearripe pear"
    assert page.text_content("#point .text") == "ripe pear"
    assert page.locator("#point ol li").all_text_contents() == ["中文的梨0.900", "red apple0.500"]
    page.mouse.move(5, 5)
    page.wait_for_selector("#tip", state="hidden")
    assert page.locator("#point .text").count() == 0


def test_webgl_draws_each_point_where_it_lies_in_its_colour(fruit):
    page = fruit
    assert page.evaluate("ebrMap.drawnBy()") == "scattergl"
    page.uncheck("#names")
    picture = plt.imread(io.BytesIO(page.screenshot()))[..., :3]
    for row, colour in enumerate([BLUE, BLUE, ORANGE, ORANGE, "#000000"]):
        x, y = page.evaluate(f"ebrMap.place({row})")
        np.testing.assert_allclose(picture[round(y), round(x)], to_rgb(colour), atol=0.2)  # dots let a little through
    page.check("#names")


def test_the_tip_comes_back_where_the_wheel_zoomed_over_a_point(fruit):
    page = fruit
    x, y = point_at(page, 2)
    page.mouse.wheel(0, -100)
    page.wait_for_selector("#tip", state="hidden")
    page.wait_for_function("ebrMap.isAtRest()")
    page.mouse.move(x + 1, y)
    page.wait_for_selector("#tip:not([hidden])")
    assert page.text_content("#tip") == "pearripe pear"


def test_a_click_keeps_a_point_and_its_neighbour_can_be_clicked(fruit):
    page = fruit
    page.mouse.click(*point_at(page, 0))
    page.mouse.move(5, 5)
    assert page.text_content("#point .text") == "red apple"
    page.click("#point ol li:first-child button")
    assert page.text_content("#point .text") == "green apple"
    page.keyboard.press("Escape")
    assert page.locator("#point .text").count() == 0


def test_a_row_with_a_script_is_shown_as_text_and_does_not_run(fruit):
    page = fruit
    point_at(page, 4)
    assert page.text_content("#point .text") == EVIL
    assert page.text_content("#tip div") == EVIL  # 132 characters: shown whole
    assert page.text_content("h1") == EVIL
    assert page.text_content("figcaption b") == EVIL
    assert page.locator("body img, body a, #maps b b, #point b b, #legend b, #tip b b").count() == 0


def test_search_counts_and_highlights_and_enter_zooms_to_what_was_found(fruit):
    page = fruit
    page.fill("#search", "RIPE")
    page.wait_for_selector("#found:not([hidden])")
    assert page.text_content("#found-count").startswith("1 found")
    assert page.evaluate("ebrMap.emphasised()") == [2]
    page.wait_for_selector(".stage.dim")
    page.press("#search", "Enter")
    page.wait_for_function("ebrMap.ranges()[0][0] > 5 && ebrMap.ranges()[0][1] < 15 && ebrMap.ranges()[1][1] < 5")
    page.fill("#search", "apple")  # a label too
    page.wait_for_function("ebrMap.emphasised().length === 2")
    page.fill("#search", "nowhere")
    page.wait_for_function("document.getElementById('found-count').textContent === 'nothing found'")
    page.fill("#search", "")
    page.wait_for_selector(".stage:not(.dim)")


def test_the_legend_hides_one_label_isolates_another_and_shows_all_or_none(fruit):
    page = fruit
    entries = page.locator("#legend button")
    assert [text[:5] for text in entries.all_text_contents()] == ["apple", "pear2", "<scri"]
    entries.nth(0).click()
    page.wait_for_function("ebrMap.drawn() === 3")
    assert entries.nth(0).get_attribute("aria-pressed") == "false"
    page.fill("#search", "apple")
    page.wait_for_function("document.getElementById('found-count').textContent === '0 found, 2 more in hidden labels'")
    entries.nth(1).dblclick()
    page.wait_for_function("ebrMap.drawn() === 2")
    page.click("#show-none")
    page.wait_for_function("ebrMap.drawn() === 0")
    page.click("#show-all")
    page.wait_for_function("ebrMap.drawn() === 5")


def test_colouring_by_a_column_of_numbers_draws_its_bar_and_greys_what_is_missing(fruit):
    page = fruit
    assert sorted(page.evaluate("ebrMap.colours()")) == ["#000000", BLUE, BLUE, ORANGE, ORANGE]
    page.select_option("#colour-by", label=EVIL[:59] + "…")
    page.wait_for_function("ebrMap.colours().includes('rgb(253,231,37)')")  # viridis' end, for the largest number
    # Grey ones are drawn first, hence lowest; then the mixed order.
    assert page.evaluate("ebrMap.colours()[0]") == "#9A9A9A"
    assert page.locator("#colour-bar span").all_text_contents() == ["1", "", "5", "", "9"]
    assert page.locator("#legend").is_hidden()


def test_a_number_is_shown_as_its_cell_is_written(fruit):
    page = fruit
    point_at(page, 3)
    assert page.locator("#point dd").all_text_contents() == ["d", "04.0"]


def test_a_lasso_round_the_left_points_exports_their_ids(fruit):
    page = fruit
    page.click("[data-tool=lasso]")
    (x, low), (_, high) = page.evaluate("[ebrMap.place(0), ebrMap.place(1)]")
    middle, half = (low + high) / 2, abs(low - high) / 2 + 12
    around = [(x + 25 * math.cos(turn / 4), middle + half * math.sin(turn / 4)) for turn in range(26)]
    page.mouse.move(*around[0])
    page.mouse.down()
    for place in around[1:]:
        page.mouse.move(*place)
    page.mouse.up()
    assert page.text_content("#selected-count") == "2 selected"
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.path().read_text(encoding="utf-8") == "a\nb\n"
    page.click("#clear")
    assert page.locator("#selection").is_hidden()


def test_a_drag_moves_the_map_the_wheel_zooms_and_a_double_click_shows_all(fruit):
    page = fruit
    home, (x, y) = page.evaluate("ebrMap.ranges()"), page.evaluate("ebrMap.place(4)")
    page.mouse.move(x + 60, y + 30)
    page.mouse.down()
    page.mouse.move(x + 160, y + 30, steps=4)
    page.mouse.up()
    page.wait_for_function("ebrMap.isAtRest()")
    assert page.evaluate("ebrMap.place(4)") == pytest.approx([x + 100, y], abs=0.5)
    page.mouse.wheel(0, 100)
    page.wait_for_function("ebrMap.ranges()[0][1] - ebrMap.ranges()[0][0] > 1.1 * %f" % (home[0][1] - home[0][0]))
    page.wait_for_function("ebrMap.isAtRest()")
    (left, right), _ = page.evaluate("ebrMap.ranges()")
    assert (right - left) / (home[0][1] - home[0][0]) == pytest.approx(1.18)  # one notch out
    page.mouse.dblclick(x + 60, y + 60)
    page.wait_for_function("left => Math.abs(ebrMap.ranges()[0][0] - left) < 1e-6", arg=home[0][0])


def test_two_maps_in_chinese_share_the_pointed_at_point_and_list_what_moved_most(open_page):
    panels = [PagePanel("before", "", "", CORNERS), PagePanel("after", "", "", CORNERS[::-1].copy())]
    moved = np.array([0, 1, 0, 4, 0], dtype=np.float32)
    page, complaints = open_page(five_points(panels=panels, moved=moved, language="zh", theme="dark", title="水果"))
    assert (page.text_content("h1"), page.text_content("#count")) == ("水果", "5 个点")
    assert page.locator("figcaption b").all_text_contents() == ["before", "after"]
    assert [text[:4] for text in page.locator("#point ol li").all_text_contents()] == ["中文的梨", "gree"]
    page.uncheck("#names")
    page.wait_for_function(f"!({_RING_AT})([3, 0]) && !({_RING_AT})([3, 1])")
    page.click("#point ol li:first-child button")
    page.wait_for_function(_RING_AT, arg=[3, 0])
    page.wait_for_function(_RING_AT, arg=[3, 1])
    point_at(page, 0, panel=1)
    assert page.text_content("#point .text") == "red apple"
    assert "#FFFFFF" in page.evaluate("ebrMap.colours()")  # the palette's black would vanish on the dark ground
    page.click("#theme")
    page.wait_for_function("ebrMap.colours(1).includes('#000000')")
    page.click("#show-figures")
    assert page.text_content("#figures pre") == "silhouette  0.25"
    assert complaints() == []


# Some ink of the ring stands just above the point, on the canvas over that map.
_RING_AT = """([row, panel]) => {
  const canvas = document.querySelectorAll(".stage > canvas")[panel];
  const { left, top } = canvas.getBoundingClientRect();
  const [x, y] = ebrMap.place(row, panel);
  const around = canvas.getContext("2d").getImageData(x - left - 1, y - top - 14, 3, 14).data;
  return around.some((value, i) => i % 4 === 3 && value > 0);
}"""


def test_one_point_and_no_column_make_a_map(open_page):
    page, complaints = open_page(PageContent("one", [PagePanel("", "", "", CORNERS[:1])], [], {}, ["a"], ["alone"]))
    point_at(page, 0)
    assert page.text_content("#point .text") == "alone"
    assert page.locator("#colour-part").is_hidden()
    assert complaints() == []


def test_a_measured_page_tells_when_it_was_ready_and_how_fast_it_moves(browser, tmp_path):
    write_map_page(tmp_path / "map.html", five_points())
    measured = measure_page(tmp_path / "map.html", browser=browser, n_frames=5)
    assert measured["ready_s"] > 0 and 0 < measured["frame_ms"] < 5000 and 4 < measured["megabytes"] < 8
