"""The report: what it says is what was measured, in both languages, and no text from data can harm or leave the page."""

import base64
import dataclasses
import json
import math
import re
import string
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ebr.data.evaluation.comparison import Change, Comparison, Interval
from ebr.data.evaluation.leaks import LeakCheck, LeakedText
from ebr.retrieval.measures.changes import ChangedQuery, Expected, Hit, Slice
from ebr.retrieval.measures.compression import Compressed
from ebr.retrieval.measures.measurement import Evaluation, compare
from ebr.retrieval.measures.significance import WinsTiesLosses
from ebr.retrieval.measures.space import SpaceHealth
from ebr.retrieval.report import write as report_module
from ebr.retrieval.report.page import report_html
from ebr.retrieval.report.parts import MOST_CHARACTERS
from ebr.retrieval.report.text import isolated, printable, probability, score, shortened, signed
from ebr.retrieval.report.write import Contrast, DatasetReport, Measured, Report, report_json, write_report
from ebr.visualization.words import words

ENGLISH, CHINESE = words("report", "en"), words("report", "zh")

EVIL = [
    "<script>alert(1)</script>",
    "\"><img src=http://x.test/a onerror='alert(1)'>",
    '\'; style="x" {{ 7 * 7 }} {% raw %}',
    "{0} {tuned}",
    "line\u2028separator",
    "nul\x00bell\x07",
    "half \ud800 pair",
    "\u202eright to left\u200f",
    "</style></title>&amp;",
    "中文“引号”",
]


@pytest.fixture(autouse=True)
def pictures(monkeypatch, request):
    """Pictures take most of the time; what they show is tested in test_report_plots.py."""
    if "draws" not in request.fixturenames:
        for name in ("forest_svg", "differences_svg", "sizes_svg"):
            monkeypatch.setattr(f"ebr.retrieval.report.page.{name}", lambda *numbers: "<svg/>")


@pytest.fixture
def draws():
    """For a test that wants real pictures."""


class Page(HTMLParser):
    """Tags with their attributes, and the text of the whole page and of each section."""

    def __init__(self, html):
        super().__init__()
        self.html, self.tags, self.text, self.sections = html, [], "", {}
        self._open = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag in {"td", "th", "div", "li", "dd"}:
            self.handle_data(" ")
        if tag == "section":
            self._open.append(attrs["id"])
            self.sections[attrs["id"]] = ""

    def handle_endtag(self, tag):
        if tag == "section":
            self._open.pop()

    def handle_data(self, data):
        self.text += data
        for name in self._open:
            self.sections[name] += data

    def of_class(self, name):
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]


def coloured(html):
    return re.findall(r'<td class="(up|down)">([^<]*)</td>', html)


def words_of(text):
    return " ".join(text.split())


def evaluation(ndcg, **others):
    scores = {name: np.asarray(values, np.float64) for name, values in {"ndcg@10": ndcg, **others}.items()}
    n = len(ndcg)
    ids = [f"q{row}" for row in range(n)]
    return Evaluation("esci", ids, 7, scores, np.zeros((n, 10), np.int64), np.zeros((n, 10), np.float32))


def measured(name="base", ndcg=(0.5, 0.25), *, space=None, compression=(), facts=None, **others):
    return Measured(name, evaluation(ndcg, **others), space, list(compression), facts or {})


def change(metric="ndcg@10", base=0.4, tuned=0.5, low=0.05, high=0.15, p=0.0123, p_holm=0.0246, n=1000):
    return Change(metric, base, tuned, Interval(tuned - base, low, high, n), p, p_holm)


def contrast(*changes, base="base", tuned="tuned", worse=(), better=(), slices=(), n=1000):
    comparison = Comparison("esci", n, 26_000, changes or (change(),))
    return Contrast(base, tuned, comparison, WinsTiesLosses(6, 3, 1), list(worse), list(better), list(slices))


def dataset(*models, baselines=None, contrasts=(), facts=None, name="esci"):
    return DatasetReport(name, facts or {}, list(models) or [measured()], baselines or {}, list(contrasts))


def whole(main=None, forgetting=None, leaks=None, leak_note="", facts=None):
    return Report(main or dataset(), forgetting, leaks, leak_note, facts or {})


def compared(*changes, forgetting=None, **options):
    main = dataset(measured("base"), measured("tuned", (0.75, 0.5)), contrasts=[contrast(*changes, **options)])
    return whole(main, forgetting)


def leak(queries=0, answered=0, near=0, documents=0, examples=()):
    return LeakCheck(31_234, 500, 26_000, queries, answered, near, documents, 0, examples)


def query(text="red shoe", **changed):
    found = (
        Hit(1, "d1", "a red shoe", 0.91234, 3),
        Hit(2, "d2", "a lamp", 0.5, 0),
        Hit(3, "d3", "who knows", 0.25, None),
    )
    expected = (Expected("d1", "a red shoe", 3, None, 2), Expected("d9", "", 1, 7, None))
    entry = ChangedQuery("q1", text, 0.25, 0.75, found, found[1:], expected)
    return dataclasses.replace(entry, **changed)


def everything(text="plain", language="en"):
    """A report with every part, with one text wherever data can put one."""
    space = SpaceHealth(0.6, -3.0, 0.1, 1.5, 0.004, 0.08, 5000)
    sizes = [Compressed(384, "float32", 1536, 0.7), Compressed(384, "int8", 384, 0.695), Compressed(64, "int8", 64, 0.5)]
    document, base, tuned = f"{text} document", f"{text} base", f"{text} tuned"
    hit = Hit(1, text, document, 0.5, 2)
    changed = ChangedQuery(text, text, 0.1, 0.9, (hit,), (), (Expected(text, document + 300 * "x", 1, None, 4),))
    pair = contrast(
        base=base,
        tuned=tuned,
        worse=[changed],
        better=[changed],
        slices=[Slice("1–2 words", 2, 0.3, 0.4, Interval(0.1, -0.1, 0.2, 2))],
    )
    models = [measured(name, space=space, compression=sizes, facts={text: {text: [text]}}) for name in (base, tuned)]
    part = dataset(*models, baselines={f"BM25 + {text}": {"ndcg@10": 0.3}}, contrasts=[pair], facts={"sha256": text}, name=text)
    leaks = leak(1, 1, 1, 1, (LeakedText("query", text, ""), LeakedText("answered", text, document)))
    return whole(part, part, leaks, text, {"command": text, text: text})


# the words


def test_both_languages_have_the_same_words_with_the_same_placeholders():
    def holes(text):
        return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)

    assert ENGLISH.keys() == CHINESE.keys()
    assert {key: holes(text) for key, text in ENGLISH.items()} == {key: holes(text) for key, text in CHINESE.items()}


def test_every_word_is_in_its_own_language():
    han = re.compile(r"[\u4e00-\u9fff]")
    assert [key for key, text in ENGLISH.items() if han.search(text)] == []
    assert [key for key, text in CHINESE.items() if not han.search(text)] == []


def test_no_word_is_left_unused():
    folder = Path(report_module.__file__).parent
    sources = [*folder.glob("templates/*.html"), *folder.glob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    composed = ("where_", "leak_", "queries_", "documents_", "records_")  # their ends come from data
    unused = [key for key in ENGLISH if f'"{key}"' not in code and not key.startswith(composed)]
    assert [key for key in unused if not key.endswith(("_means", "_good"))] == []


def test_page_in_chinese_has_no_english_sentence():
    english, chinese = (Page(report_html(everything("7"), language)) for language in ("en", "zh"))
    assert ("html", {"lang": "en"}) in english.tags and ("html", {"lang": "zh-CN"}) in chinese.tags
    lines = {line.strip() for line in english.text.splitlines() if re.search(r"[a-z]{3,} [a-z]{2,}", line)}
    kept = [line for line in lines if line in chinese.text and "{" not in line and ":" not in line]
    assert kept == []
    assert not re.search(r"[\u4e00-\u9fff]", english.text)
    assert [
        attrs["alt"] for tag, attrs in chinese.tags if tag == "img" and not re.search(r"[\u4e00-\u9fff]", attrs["alt"])
    ] == []


def test_chinese_writes_per_cent_as_the_readme_does():
    assert [key for key, text in CHINESE.items() if re.search(r"\d%", text)] == []
    page = "".join(Page(report_html(everything(), "zh")).sections.values())
    assert "8.0 %" in page and not re.search(r"\d%", page)


# the verdict


@pytest.mark.parametrize(
    ("low", "high", "p", "tuned", "state", "english", "chinese"),
    [
        (
            0.05,
            0.15,
            0.01,
            0.5,
            "better",
            "tuned retrieves better than base: nDCG@10 rose by 0.1000, from 0.4000",
            "提高 0.1000",
        ),
        (
            -0.15,
            -0.05,
            0.01,
            0.3,
            "worse",
            "tuned retrieves worse than base: nDCG@10 fell by 0.1000, from 0.4000",
            "下降 0.1000",
        ),
        (
            -0.05,
            0.15,
            0.01,
            0.45,
            "unclear",
            "no clear difference between tuned and base: nDCG@10 went",
            "看不出 tuned 与 base",
        ),
        (0.0, 0.15, 0.01, 0.45, "unclear", "no clear difference between tuned and base: nDCG@10 went", "看不出 tuned 与 base"),
        (
            0.05,
            0.15,
            0.0625,
            0.5,
            "unclear",
            "no clear difference between tuned and base: nDCG@10 went",
            "看不出 tuned 与 base",
        ),
    ],
)
def test_verdict_and_colour_say_what_interval_and_test_say(low, high, p, tuned, state, english, chinese):
    report = compared(change(tuned=tuned, low=low, high=high, p=p, p_holm=p))
    html = report_html(report, "en")
    page = Page(html)
    colour = {"better": "up", "worse": "down"}.get(state)
    assert coloured(html) == ([(colour, signed(tuned - 0.4))] if colour else [])
    (card,) = page.of_class("verdict")
    assert card["class"].split() == ["verdict", state]
    assert english in page.text
    assert (
        f"interval of the difference: {signed(low)} to {signed(high)}. Measured on 1,000 queries and 26,000 documents."
        in page.text
    )
    assert chinese in Page(report_html(report, "zh")).text


def test_one_query_is_never_a_verdict():
    before, after = evaluation([0.25]), evaluation([0.75])
    pair = dataclasses.replace(contrast(), comparison=compare(before, after, seed=0))
    models = [Measured("base", before, None, [], {}), Measured("tuned", after, None, [], {})]
    html = report_html(whole(dataset(*models, contrasts=[pair])), "en")
    page = Page(html)
    assert coloured(html) == [] and "+0.5000 … +0.5000" in page.text
    assert page.of_class("verdict")[0]["class"] == "verdict unclear"
    assert "one query has no spread to judge it by" in page.text
    assert "Measured on 1 query and 7 documents." in page.text


def test_model_alone_is_reported_without_a_judgement():
    page = Page(report_html(whole(dataset(measured("only", (0.5, 0.25)))), "en"))
    assert page.of_class("verdict")[0]["class"] == "verdict measured"
    assert "only reaches nDCG@10 0.3750." in page.text and "Measured on 2 queries and 7 documents." in page.text
    assert set(page.sections) == {"all", "made"}
    assert not page.of_class("best")


def test_each_tuned_model_has_its_verdict_and_its_section():
    models = [measured(name) for name in ("base", "one", "two")]
    pairs = [contrast(tuned="one"), contrast(change(tuned=0.3, low=-0.2, high=-0.1), tuned="two")]
    page = Page(report_html(whole(dataset(*models, contrasts=pairs)), "en"))
    assert [card["class"] for card in page.of_class("verdict")] == ["verdict better", "verdict worse"]
    assert {"contrast-1", "contrast-2"} <= set(page.sections)


# leaks


@pytest.mark.parametrize("found", [{"queries": 7}, {"answered": 7}, {"near": 7}])
def test_leak_is_loud(found):
    page = Page(report_html(dataclasses.replace(compared(), leaks=leak(**found), leak_note="Of pairs.json."), "en"))
    (box,) = page.of_class("leak")
    assert box["role"] == "alert"
    assert "Warning: training has seen evaluation queries" in page.text
    assert "7 of 500 · " in page.text and "0 of 500" not in page.text
    assert "Compared with 31,234 training texts. · Of pairs.json." in page.text
    assert len(page.of_class("distrust")) == 1


def test_leak_shows_examples_with_what_goes_with_them():
    examples = (LeakedText("near query", "cheap shoes", "cheap shoes!"), LeakedText("of a new kind", "lamp", ""))
    page = Page(report_html(whole(leaks=leak(near=1, examples=examples)), "en"))
    for text in ("near query, and the training text", "cheap shoes!", "of a new kind", "lamp"):
        assert text in page.text


def test_no_leak_is_one_quiet_line_and_shared_documents_are_none():
    page = Page(report_html(whole(leaks=leak(documents=420), leak_note="Of pairs.json."), "en"))
    assert not page.of_class("leak") and not page.of_class("distrust")
    assert "none of the 500 queries is among the 31,234 training texts" in page.text
    assert "420 of the documents are training texts" in page.text and "Of pairs.json." in page.text
    assert "of the documents" not in Page(report_html(whole(leaks=leak()), "en")).text


def test_leak_check_that_was_not_done_is_not_called_clean():
    page = Page(report_html(whole(leak_note="No training records were named."), "en"))
    assert "Leak check: not done. · No training records were named." in words_of(page.text)
    assert "none of the" not in page.text


# the tables


def test_best_of_each_column_is_marked_ties_too_and_unjudged_never():
    models = [
        measured("base", (0.5, 0.5), **{"map": (0.2, 0.2), "unjudged@10": (0.9, 0.9)}),
        measured("tuned", (0.6, 0.6), **{"map": (0.1, 0.1), "unjudged@10": (0.1, 0.0)}),
    ]
    html = report_html(whole(dataset(*models, baselines={"BM25": {"ndcg@10": 0.60001, "map": 0.3}})), "en")
    best = re.findall(r'<td class="best"[^>]*>([^<]*)</td>', html)
    assert best == ["0.6000", "0.6000", "0.3000"]
    section = words_of(Page(html).sections["all"])
    assert "base 0.5000 0.2000 90.0 % tuned 0.6000 0.1000 5.0 % BM25 0.6000 0.3000 –" in section
    assert "MRR@10" not in section and "the share of the first ten that nobody has judged" in section


def test_contrast_shows_each_metric_with_interval_p_values_and_counts():
    changes = (
        change(),
        change("mrr@10", 0.5, 0.49, -0.03, 0.01, 0.5, 0.5),
        change("recall@1", 0.2, 0.1, -0.2, -0.05, 0.00001, 0.0002),
    )
    report = compared(*changes)
    html = report_html(report, "en")
    section = words_of(Page(html).sections["contrast-1"])
    assert "nDCG@10 0.4000 0.5000 +0.1000 +0.0500 … +0.1500 0.0123 0.0246" in section
    assert "MRR@10 0.5000 0.4900 −0.0100 −0.0300 … +0.0100 0.5000 0.5000" in section
    assert "Recall@1 0.2000 0.1000 −0.1000 −0.2000 … −0.0500 < 0.0001 0.0002" in section
    assert coloured(html) == [("up", "+0.1000"), ("down", "−0.1000")]
    assert "worse: 1 (10.0 %) equal: 3 (30.0 %) better: 6 (60.0 %)" in section
    assert re.findall(r'<i class="\w+" style="width:([\d.]+)%">', html) == ["10.00", "30.00", "60.00"]


def test_pictures_are_drawn_from_the_numbers_and_described(monkeypatch):
    drawn = {}
    monkeypatch.setattr("ebr.retrieval.report.page.forest_svg", lambda *numbers: drawn.update(forest=numbers) or "<svg/>")
    monkeypatch.setattr("ebr.retrieval.report.page.differences_svg", lambda numbers: drawn.update(each=numbers) or "<svg/>")
    page = Page(report_html(compared(), "en"))
    *numbers, outcomes = drawn["forest"]
    assert [list(map(pytest.approx, part)) for part in numbers] == [["nDCG@10"], [0.1], [0.05], [0.15]]
    assert outcomes == ("better",)
    assert drawn["each"].tolist() == [0.25, 0.25]
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert "nDCG@10 +0.1000 [+0.0500, +0.1500]" in alts[0]
    assert alts[1] == "Difference in nDCG@10 of each query, sorted: 1 worse, 3 equal, 6 better"


@pytest.mark.parametrize(("label", "shown"), [("3–5 words", "3–5"), ("1 word", "1"), ("odd", "odd")])
def test_slices_are_shown_without_their_english_unit(label, shown):
    entry = Slice(label, 1250, 0.3, 0.4, Interval(0.1, 0.05, 0.2, 1250))
    text = words_of(Page(report_html(compared(slices=[entry]), "zh")).sections["contrast-1"])
    assert f"{shown} 1,250 0.3000 0.4000 +0.1000 +0.0500 … +0.2000" in text and "word" not in text


@pytest.mark.parametrize(
    ("n", "low", "high", "outcome", "colour"),
    [
        (20, 0.05, 0.15, "better", [("up", "+0.1000")]),
        (20, -0.15, -0.05, "worse", [("down", "−0.1000")]),
        (19, 0.05, 0.15, "unclear", []),
        (19, -0.15, -0.05, "unclear", []),
        (1, 0.1, 0.1, "unclear", []),
        (500, 0.0, 0.2, "unclear", []),
        (500, -0.2, 0.0, "unclear", []),
    ],
)
def test_slice_is_coloured_by_its_interval_where_it_has_queries_enough(monkeypatch, n, low, high, outcome, colour):
    drawn = []
    monkeypatch.setattr("ebr.retrieval.report.page.forest_svg", lambda *numbers: drawn.append(numbers[-1]) or "<svg/>")
    entry = Slice("1 word", n, 0.3, 0.4, Interval((low + high) / 2, low, high, n))
    unclear = change(tuned=0.4, low=-0.1, high=0.1, p=1.0, p_holm=1.0)
    html = report_html(compared(unclear, slices=[entry]), "en")
    assert drawn == [("unclear",), (outcome,)] and coloured(html) == colour
    assert "there are fewer than 20 queries, too few to judge by" in Page(html).sections["contrast-1"]


def test_picture_of_the_metrics_has_the_colours_of_the_verdict(monkeypatch):
    """Few queries: an interval above zero, and a test that chance passes as well."""
    drawn = []
    monkeypatch.setattr("ebr.retrieval.report.page.forest_svg", lambda *numbers: drawn.append(numbers[-1]) or "<svg/>")
    report_html(compared(change(p=0.0625, p_holm=0.0625), change("mrr@10", 0.5, 0.4, -0.2, -0.1, 0.01, 0.02)), "en")
    assert drawn == [("unclear", "worse")]


def test_lists_of_several_metrics_allow_for_there_being_several():
    fell = change("recall@1", 0.7, 0.6, -0.15, -0.05, p=0.03, p_holm=0.06)
    rose = change("map", 0.4, 0.5, 0.05, 0.15, p=0.03, p_holm=0.06)
    wide = change("mrr@10", 0.7, 0.65, -0.15, 0.01, p=0.01, p_holm=0.04)
    pair = contrast(change(p_holm=0.05), fell, rose, wide)
    other = dataset(measured("base"), measured("tuned"), contrasts=[pair], name="news")
    section = Page(report_html(compared(forgetting=other), "en")).sections["forgetting"]
    assert "No metric is clearly worse here, looking at all of them at once" in section
    assert "Got better here: nDCG@10 +0.1000." in section and "Got worse" not in section


def test_forgetting_says_plainly_what_got_worse_there():
    fell = change(base=0.7, tuned=0.6, low=-0.15, high=-0.05)
    rose = change("recall@1", 0.4, 0.5, 0.05, 0.15)
    unclear = change("mrr@10", 0.7, 0.69, -0.05, 0.02)
    other = dataset(measured("base"), measured("tuned"), contrasts=[contrast(fell, rose, unclear)], name="news")
    page = Page(report_html(compared(forgetting=other), "en"))
    assert "On news, it fell: −0.1000. Something was forgotten there." in page.text
    assert "Got worse here: nDCG@10 −0.1000." in page.sections["forgetting"]
    assert "Got better here: Recall@1 +0.1000." in page.sections["forgetting"]
    kept = dataset(measured("base"), measured("tuned"), contrasts=[contrast(unclear, change())], name="news")
    page = Page(report_html(compared(forgetting=kept), "en"))
    assert "No metric is clearly worse here" in page.sections["forgetting"]
    assert "On news, it rose: +0.1000." in page.text


# the queries


def test_changed_query_shows_what_was_found_and_what_should_have_been():
    html = report_html(compared(worse=[query()], better=[]), "en")
    section = words_of(Page(html).sections["queries"])
    assert "1 that got worse red shoe nDCG@10 0.2500 → 0.7500" in section and "No query got better." in section
    assert "Found by base 1.✓3 a red shoe d1 · 0.912 2.✗ a lamp d2 · 0.500 3.? who knows d3 · 0.250" in section
    assert "Found by tuned 2.✗ a lamp" in section
    assert "✓3 a red shoe d1 not found 2 ✓ (not in the corpus) d9 7 not found" in section
    assert 'title="relevant, grade 3"' in html and 'title="not judged"' in html and 'title="judged irrelevant"' in html


def test_query_that_found_nothing_says_so():
    assert "Nothing was found." in Page(report_html(compared(better=[query(found_after=())]), "en")).text


def test_five_hits_and_ten_expected_documents_are_shown():
    hits = tuple(Hit(rank, f"hit{rank}", "text", 0.5, None) for rank in range(1, 9))
    expected = tuple(Expected(f"doc{number}", "text", 1, None, None) for number in range(13))
    text = Page(report_html(compared(worse=[query(found_before=hits, expected=expected)]), "en")).text
    assert "hit5" in text and "hit6" not in text
    assert "doc9" in text and "doc10" not in text and "and 3 more" in text


def test_long_text_is_cut_and_stands_in_full_behind_a_click():
    text = "长" * 299 + "文" * 3
    html = report_html(compared(worse=[query(found_before=(Hit(1, "d", text, 0.5, 1),), found_after=())]), "en")
    assert f"<summary>{'长' * 299}…</summary>" in html
    assert f'<div dir="auto">{text}</div>' in html
    exact = "x" * 300
    assert f"<bdi>{exact}</bdi>" in report_html(compared(worse=[query(found_before=(Hit(1, "d", exact, 0.5, 1),))]), "en")


def test_text_without_end_stays_a_page():
    text = "a" * (MOST_CHARACTERS + 25)
    report = compared(worse=[query(found_before=(Hit(1, "d", text, 0.5, 1),), expected=())])
    html = report_html(report, "en")
    assert "a" * MOST_CHARACTERS in html and text not in html and "(25 more characters)" in html
    (found, *_) = report_json(report)["comparisons"][0]["worse"][0]["found_before"]
    assert found["text"] == "a" * MOST_CHARACTERS + "…"


# space and sizes


def test_health_of_the_space_stands_beside_what_is_good():
    spaces = [SpaceHealth(0.6, -3.0, 0.1, 1.5, 0.004, 0.08, 5000), None]
    models = [measured(name, space=space) for name, space in zip(("base", "tuned"), spaces, strict=True)]
    text = words_of(Page(report_html(whole(dataset(*models)), "en")).sections["space"])
    assert "measured on 5,000 documents" in text
    assert "alignment 0.6000 lower: queries lie near" in text and "uniformity −3.0000 lower" in text
    assert "mean cosine 0.1000 near 0" in text and "hubness 1.5000 lower" in text
    assert "largest hub 0.4 % lower" in text and "orphans 8.0 % lower" in text
    assert "nobody's ten nearest neighbours: outliers" in text and "search" not in text


def test_sizes_name_the_smallest_that_loses_at_most_a_hundredth():
    sizes = [
        Compressed(384, "float32", 1536, 0.7000),
        Compressed(384, "float16", 768, 0.7001),
        Compressed(384, "int8", 384, 0.6950),
        Compressed(256, "int8", 256, 0.6901),
        Compressed(192, "int8", 192, 0.6899),
        Compressed(384, "binary", 48, 0.6000),
    ]
    html = report_html(whole(dataset(measured(compression=sizes))), "en")
    text = words_of(Page(html).sections["sizes"])
    assert "the smallest within 0.01 of full (0.7000) is 256 dimensions as int8: 256 bytes a vector instead of 1,536" in text
    assert "384 0.70001,536 bytes 0.7001768 bytes 0.6950384 bytes 0.600048 bytes 256 – – 0.6901" in text
    assert re.findall(r'<td class="best">([\d.]+)<', html) == ["0.6901"]


def test_sizes_say_when_nothing_smaller_is_good_enough():
    sizes = [Compressed(64, "float32", 256, 0.7), Compressed(64, "int8", 64, 0.6)]
    text = Page(report_html(whole(dataset(measured(compression=sizes))), "en")).text
    assert "nothing smaller stays within 0.01 of full (0.7000, 256 bytes a vector)" in text


def test_tuned_models_come_first_among_the_sizes():
    sizes = [Compressed(64, "float32", 256, 0.7)]
    models = [measured(name, compression=sizes) for name in ("first", "second")]
    text = Page(report_html(whole(dataset(*models)), "en")).sections["sizes"]
    assert text.index("second") < text.index("first")


# how it was made


def test_facts_of_any_depth_are_shown_in_the_readers_language():
    facts = {"prompts": {"query": "query: ", "document": ""}, "seed": 42, "made_up": [1, True, None], "rate": 0.123456789}
    report = whole(facts={**facts, "n_documents": 26_000, "versions": {}, "query_max_len": None})
    english, chinese = (words_of(Page(report_html(report, language)).sections["made"]) for language in ("en", "zh"))
    assert "prompts queries query: documents none seed 42 made_up 1, yes, not set rate 0.123457" in english
    assert "documents 26,000 versions none tokens kept of a query not set" in english
    assert "提示 查询 query: 文档 无 随机种子 42 made_up 1, 是, 未设置" in chinese
    assert "版本 无 查询保留的 token 数 未设置" in chinese


# safety


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_text_from_data_becomes_part_of_the_page(text, language, tmp_path):
    (page_path, json_path) = write_report(tmp_path, everything(text), language)
    page, plain = Page(page_path.read_text(encoding="utf-8")), Page(report_html(everything("plain"), language))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attrs) for _, attrs in page.tags] == [sorted(attrs) for _, attrs in plain.tags]
    assert words_of(page.text).count(words_of(printable(text))) == words_of(plain.text).count("plain") > 50
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", page.html)
    json.loads(json_path.read_text(encoding="utf-8"))


def test_page_loads_nothing():
    page = Page(report_html(everything(), "en"))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "form", "base", "video", "audio"}
    for _, attrs in page.tags:
        assert attrs.get("src", "data:").startswith("data:image/svg+xml;base64,") or "src" not in attrs
        assert attrs.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attrs)
    assert "url(" not in page.html and "@import" not in page.html and "http:" not in page.html and "https:" not in page.html
    (policy,) = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_every_picture_is_whole_and_every_link_leads_somewhere(draws):
    html = report_html(everything(), "en")
    assert html == report_html(everything(), "en")  # equal reports give equal pages
    page = Page(html)
    pictures = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 2 + 1 + 2 + 2  # of the contrast, its slices, the contrast on the other set, the sizes of two models
    for address in pictures:
        assert base64.b64decode(address.split(",", 1)[1], validate=True).startswith(b"<svg")
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"} == ids


def test_name_that_changes_the_direction_is_kept_apart_inside_a_sentence():
    assert isolated("\u05d0a<b") == "<bdi>\u05d0a&lt;b</bdi>"
    assert isolated("\u202ea") == "<bdi>\ufffda</bdi>"  # a mark that turns the letters round is shown and not obeyed
    models = [measured("base"), measured("\u05d0tuned")]
    html = report_html(whole(dataset(*models, contrasts=[contrast(tuned="\u05d0tuned")])), "en")
    assert "<bdi>\u05d0tuned</bdi> retrieves better than <bdi>base</bdi>" in html


# the JSON


def test_json_holds_every_number_by_name():
    models = [
        measured("base", map=(0.2, 0.4), facts={"dim": 384}),
        measured("tuned", (0.75, 0.5), space=SpaceHealth(*[0.5] * 6, 10)),
    ]
    entry = Slice("1 word", 2, 0.3, 0.4, Interval(0.1, 0.0, 0.2, 2))
    pair = contrast(worse=[query()], slices=[entry])
    main = dataset(*models, baselines={"BM25": {"ndcg@10": 0.3}}, contrasts=[pair], facts={"n_queries": 2})
    record = report_json(whole(main, dataset(name="news"), leak(queries=1), "note", {"seed": 42, "models": "hidden"}))
    assert record["kind"] == "evaluation" and next(iter(record)) == "kind"
    assert record["models"] == {
        "base": {"ndcg@10": 0.375, "map": pytest.approx(0.3)},
        "tuned": {"ndcg@10": 0.625},
    }
    assert record["baselines"] == {"BM25": {"ndcg@10": 0.3}}
    (comparison,) = record["comparisons"]
    assert comparison["metrics"]["ndcg@10"].pop("outcome") == "better"
    assert comparison["metrics"]["ndcg@10"] == pytest.approx(
        {"base": 0.4, "tuned": 0.5, "difference": 0.1, "low": 0.05, "high": 0.15, "p": 0.0123, "p_holm": 0.0246}
    )
    assert (comparison["base"], comparison["tuned"]) == ("base", "tuned")
    assert (comparison["wins"], comparison["ties"], comparison["losses"]) == (6, 3, 1)
    assert comparison["slices"] == [
        {
            "label": "1 word",
            "n_queries": 2,
            "base": 0.3,
            "tuned": 0.4,
            "interval": {"difference": 0.1, "low": 0.0, "high": 0.2, "n": 2},
        }
    ]
    assert comparison["worse"][0]["expected"][1] == {
        "doc_id": "d9",
        "text": "",
        "grade": 1,
        "rank_before": 7,
        "rank_after": None,
    }
    assert comparison["better"] == []
    assert record["dataset"] == {"name": "esci", "n_queries": 2}
    assert record["forgetting"]["dataset"] == {"name": "news"} and record["forgetting"]["models"] == {
        "base": {"ndcg@10": 0.375}
    }
    assert record["leaks"]["queries"] == 1 and record["leaks"]["is_leak"] is True and record["leak_note"] == "note"
    assert record["space"]["tuned"]["alignment"] == 0.5 and "base" not in record["space"]
    assert record["model_facts"]["base"] == {"dim": 384}
    assert record["seed"] == 42


def test_json_of_one_model_alone_has_the_same_entries():
    alone, full = report_json(whole()), report_json(everything())
    assert alone["forgetting"] is None and alone["leaks"] is None and alone["comparisons"] == []
    assert set(alone) == set(full) - {"command", "plain"}


def test_json_is_plain():
    odd = {
        "nan": math.nan,
        "infinite": np.float32("inf"),
        "count": np.int64(3),
        "path": Path("a/b"),
        "rows": np.arange(2),
        5: (1, True),
    }
    record = report_json(whole(facts={"odd": odd}))
    assert record["odd"] == {"nan": None, "infinite": None, "count": 3, "path": "a/b", "rows": [0, 1], "5": [1, True]}
    assert type(record["models"]["base"]["ndcg@10"]) is float
    assert json.loads(json.dumps(record, allow_nan=False)) == record


# the files


def test_both_files_are_written_and_nothing_else(tmp_path):
    folder = tmp_path / "new" / "folder"
    paths = write_report(folder, everything(), "en")
    assert paths == (folder / "report.html", folder / "report.json")
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    assert paths[0].read_text(encoding="utf-8") == report_html(everything(), "en")
    assert json.loads(paths[1].read_text(encoding="utf-8")) == report_json(everything())


def test_page_is_written_before_the_json(tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "write_json", lambda path, record: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        write_report(tmp_path, whole(), "en")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_report_that_cannot_be_made_leaves_the_old_one(tmp_path, monkeypatch):
    before = [path.read_bytes() for path in write_report(tmp_path, whole(), "en")]
    monkeypatch.setattr(report_module, "report_json", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path, everything(), "en")
    assert [(tmp_path / name).read_bytes() for name in ("report.html", "report.json")] == before


# numbers and texts


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (score, 0.12345, "0.1235"),
        (score, -1.5, "−1.5000"),
        (score, math.nan, "–"),
        (score, None, "–"),
        (signed, 0.1, "+0.1000"),
        (signed, -0.1, "−0.1000"),
        (signed, -1e-9, "0.0000"),
        (signed, 0.0, "0.0000"),
        (signed, math.inf, "–"),
        (probability, 0.0, "< 0.0001"),
        (probability, 0.00004, "< 0.0001"),
        (probability, 0.0001, "0.0001"),
        (probability, math.nan, "–"),
        (printable, "a\x00b\ud800c\nd\te", "a\ufffdb\ufffdc\nd\te"),
        (printable, "中\u2028文", "中\u2028文"),
        (printable, "a\r\nb\rc\x0cd\x85e", "a\nb\nc\nd\ne"),
        (printable, "".join(map(chr, range(0x7F, 0x85))), "\ufffd" * 6),
        (shortened, " a \n b ", "a b"),
        (shortened, "x" * 300, "x" * 300),
        (shortened, "x" * 301, "x" * 299 + "…"),
        (shortened, "a" + " " * 5000 + "b", "a…"),
    ],
)
def test_numbers_and_texts_are_written_as_people_read_them(write, value, text):
    assert write(value) == text
