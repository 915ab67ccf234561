import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from ebr.visualization.colours import LabelGroup
from ebr.visualization.page.page import MOST_CHARACTERS, PageContent, PagePanel, escaped_json, map_page, write_map_page
from ebr.visualization.picture.columns import MapColumn
from ebr.visualization.words import words

ENGLISH, CHINESE = words("page", "en"), words("page", "zh")

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#9E9E9E"
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & <b>bold</b> \u2028\u2029"


def rows(*numbers):
    return np.array(numbers, dtype=np.int64)


def panel(n_rows, title="UMAP"):
    coords = np.arange(2 * n_rows, dtype=np.float32).reshape(n_rows, 2) / 7
    return PagePanel(title, "15 neighbours", "", coords)


def three_rows(**changes):
    """Rows 0 and 2 are apples, row 1 has no label; a column of numbers lacks the second."""
    given = {
        "title": "fruit",
        "panels": [panel(3)],
        "columns": [MapColumn("kind", ("apple", "", "apple")), MapColumn("price", ("0.1", "", "-2.5"), kind="numbers")],
        "groups": {
            "kind": [LabelGroup("apple", BLUE, rows(0, 2), "label"), LabelGroup("(no label)", GREY, rows(1), "missing")]
        },
        "ids": ["a", "b", "c"],
        "texts": ["red", "green", "sour"],
    }
    return PageContent(**(given | changes))


class _Page(HTMLParser):
    """Scripts by their attributes, and every tag that the page's HTML opens."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.policy, self.title, self.inside = [], [], "", "", ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "meta" and dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"]
        if tag == "script":
            self.scripts.append([dict(attrs), ""])
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1][1] += data
        elif self.inside == "title":
            self.title += data

    @property
    def data(self):
        return json.loads(next(text for attrs, text in self.scripts if attrs.get("id") == "data"))


def numbers(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


def test_coordinates_codes_neighbours_and_numbers_come_back_from_the_page():
    similarities = np.array([[1, 0.5], [-1, 0.25], [0.125, np.nan]], dtype=np.float32)
    content = three_rows(neighbours=np.array([[1, 2], [2, 0], [0, -1]], dtype=np.int32), similarities=similarities)
    data = _Page(map_page(content)).data
    assert numbers(data["panels"][0]["x"], "<f4") == pytest.approx([0, 2 / 7, 4 / 7])
    assert numbers(data["panels"][0]["y"], "<f4") == pytest.approx([1 / 7, 3 / 7, 5 / 7])
    kind, price = data["columns"]
    assert numbers(kind["group_of"]["data"], "u1").tolist() == [0, 1, 0]
    assert [kind["values"][i] for i in numbers(kind["value_of"]["data"], "u1")] == ["apple", "", "apple"]
    assert [(group["text"], group["count"]) for group in kind["groups"]] == [("apple", 2), ("(no label)", 1)]
    assert np.array_equal(numbers(price["numbers"], "<f8"), [0.1, np.nan, -2.5], equal_nan=True)
    assert price["written"] == ["0.1", "", "-2.5"]
    assert numbers(data["neighbours"], "<i4").tolist() == [1, 2, 2, 0, 0, -1]
    # 0.5 lies at (0.5 + 1) * 32767 = 49150.5 steps: a cosine comes back to half a step, 0.000015.
    assert numbers(data["similarities"], "<u2") / 32_767 - 1 == pytest.approx([1, 0.5, -1, 0.25, 0.125, -1], abs=2e-5)


def test_nothing_from_data_can_leave_its_json_or_the_title():
    content = three_rows(
        title=EVIL,
        panels=[PagePanel(EVIL, EVIL, EVIL, panel(3).coords)],
        columns=[MapColumn(EVIL, (EVIL, "", EVIL))],
        groups={EVIL: [LabelGroup(EVIL, BLUE, rows(0, 2), "label"), LabelGroup("", GREY, rows(1), "missing")]},
        ids=[EVIL, "b", "c"],
        texts=[EVIL, "green", "sour"],
        lines=[EVIL],
    )
    page, plain = map_page(content), map_page(three_rows())
    assert [tag for tag, _ in _Page(page).tags] == [tag for tag, _ in _Page(plain).tags]  # not one element more
    assert "<script>alert" not in page and "onerror=alert(2)>" not in page and "<b>bold" not in page
    data = _Page(page).data
    assert {data["texts"][0], data["ids"][0], data["title"], data["columns"][0]["name"], data["lines"][0]} == {EVIL}
    assert _Page(page).title.startswith("</script><script>alert(1)")


def _own_parts(page):
    from plotly.offline import get_plotlyjs

    return page.replace(get_plotlyjs(), "")


def test_escaped_json_holds_no_angle_bracket_ampersand_or_line_separator():
    value = ["<!-- <script> -->", "a & b", "\u2028\u2029", "中文 🍎"]
    text = str(escaped_json(value))
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value
    assert "中文 🍎" in text  # as it is: six characters for each would double a Chinese page


def test_a_lone_surrogate_becomes_the_replacement_character():
    data = _Page(map_page(three_rows(title="a\ud800b\x00", texts=["\udfff", "green", "\x00"]))).data
    assert data["texts"] == ["\ufffd", "green", "\x00"]


def test_the_page_asks_for_nothing_and_runs_two_scripts_only():
    page = map_page(three_rows())
    parsed = _Page(page)
    assert "default-src 'none'" in parsed.policy
    running = [text for attrs, text in parsed.scripts if "type" not in attrs]
    hashes = ["'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'" for text in running]
    assert len(hashes) == 2
    assert re.search(r"script-src ([^;]*)", parsed.policy).group(1).split() == [*hashes, "'unsafe-eval'"]
    assert not [(tag, attrs) for tag, attrs in parsed.tags if {"src", "href", "action", "srcset"} & set(attrs)]
    assert "http://" not in _own_parts(page) and "https://" not in _own_parts(page) and "innerHTML" not in _own_parts(page)


def test_a_long_text_is_cut_at_three_hundred_characters_and_counted():
    data = _Page(map_page(three_rows(texts=["x" * 301, "y" * 300, "z"]))).data
    assert data["texts"] == ["x" * 299 + "…", "y" * 300, "z"]
    assert (data["n_cut"], data["most_characters"], MOST_CHARACTERS) == (1, 300, 300)


def test_what_moved_most_comes_first_and_what_stayed_is_not_listed():
    data = _Page(map_page(three_rows(moved=np.array([0.5, np.nan, 2.0], dtype=np.float32)))).data
    assert data["moved"] == [[2, 2.0], [0, 0.5]]


def test_more_than_256_values_take_two_bytes_a_row():
    texts = tuple(f"value {i}" for i in range(300))
    groups = {"many": [LabelGroup("other", GREY, np.arange(300), "other")]}
    content = PageContent("t", [panel(300)], [MapColumn("many", texts)], groups, texts, texts)
    column = _Page(map_page(content)).data["columns"][0]
    assert (column["group_of"]["type"], column["value_of"]["type"]) == ("u1", "u2")
    assert numbers(column["value_of"]["data"], "<u2").tolist() == list(range(300))


@pytest.mark.parametrize("text", ["🍎🍏", "x" * 200, "$a_b$", "", "\n\t", "مرحبا"])
def test_a_single_point_with_an_odd_label_is_a_page(text):
    groups = {"label": [LabelGroup(text, BLUE, rows(0), "label" if text else "missing")]}
    content = PageContent("one", [panel(1)], [MapColumn("label", (text,))], groups, ["0"], [text])
    assert _Page(map_page(content)).data["columns"][0]["values"] == [text]


def test_rows_without_any_group_have_one_colour():
    column = _Page(map_page(three_rows(columns=[MapColumn("kind", ("", "", ""))], groups={"kind": []}))).data["columns"][0]
    assert (column["groups"], numbers(column["group_of"]["data"], "u1").tolist()) == ([], [0, 0, 0])


def test_every_colour_of_one_theme_has_its_like_in_the_other():
    swaps = _Page(map_page(three_rows())).data["swaps"]
    assert (swaps["dark"]["#000000"], swaps["light"]["#FFFFFF"]) == ("#FFFFFF", "#000000")
    assert {new: old for old, new in swaps["dark"].items()} == swaps["light"]


def test_chinese_and_english_words_have_equal_keys_and_places():
    places = {key: set(re.findall(r"{(\w+)}", text)) for key, text in ENGLISH.items()}
    assert {key: set(re.findall(r"{(\w+)}", text)) for key, text in CHINESE.items()} == places
    page = map_page(three_rows(language="zh", theme="dark"))
    assert '<html lang="zh-CN" data-theme="dark">' in page and ">套索<" in page


def test_a_page_is_written_whole_and_equal_contents_give_equal_pages(tmp_path):
    write_map_page(tmp_path / "new" / "map.html", three_rows())
    assert (tmp_path / "new" / "map.html").read_text(encoding="utf-8") == map_page(three_rows())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["map.html"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ["red"]}, "3 ids but 1 in texts"),
        ({"panels": [panel(3), panel(2, "t-SNE")]}, "3 ids but 2 in map 't-SNE'"),
        ({"panels": []}, "one map or two, not 0"),
        ({"panels": [PagePanel("", "", "", np.full((3, 2), np.nan, dtype=np.float32))]}, "a coordinate is not finite"),
        ({"columns": [MapColumn("colour", ("a", "b", "c"))]}, "column 'colour' has neither groups nor numbers"),
        ({"columns": [MapColumn("kind", ("a", "b", "c"))] * 2}, "two columns share a name"),
        ({"neighbours": np.zeros((3, 2), dtype=np.int32)}, "neighbours and similarities are given together"),
        ({"moved": np.zeros(2, dtype=np.float32)}, "3 ids but 2 in moved"),
    ],
)
def test_what_does_not_fit_together_is_one_error(changes, message):
    with pytest.raises(ValueError, match=message):
        three_rows(**changes)


def test_a_row_in_no_group_is_an_error():
    with pytest.raises(ValueError, match="column 'kind': 2 rows are in no group"):
        map_page(three_rows(groups={"kind": [LabelGroup("apple", BLUE, rows(0), "label")]}))


def test_marks_that_turn_a_text_round_are_in_nothing_but_the_ids_that_are_saved():
    turned = "lab\u202e14"
    content = three_rows(
        title=turned,
        panels=[PagePanel(turned, turned, turned, panel(3).coords)],
        columns=[MapColumn(turned, (turned, "", turned)), MapColumn("n" + turned, ("1", "2", "3"), kind="numbers")],
        groups={turned: [LabelGroup(turned, BLUE, rows(0, 2), "label"), LabelGroup("", GREY, rows(1), "missing")]},
        ids=[turned, "b", "c"],
        texts=[turned, "green", "sour"],
        lines=[turned],
    )
    page = map_page(content)
    data = _Page(page).data
    assert data["ids"][0] == turned
    assert page.count("\u202e") == 1
    assert data["texts"][0] == data["columns"][0]["groups"][0]["text"] == data["columns"][0]["name"] == "lab\ufffd14"
