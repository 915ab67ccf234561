import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr.errors import DataError
from ebr.retrieval.measures.lexical import LexicalIndex, reciprocal_rank_fusion, segment


def found(index, query, k=10):
    """Rows of the documents that were found, best first."""
    rows = index.search([query], k)[1][0]
    return rows[rows >= 0].tolist()


# --- words


def test_case_width_and_punctuation_make_no_difference():
    assert segment("The ＲＥＤ, Straße: x_1!") == ["the", "red", "strasse", "x_1"]


def test_chinese_gives_words_characters_and_pairs():
    assert segment("北京大学") == ["北京大学", "北", "京", "大", "学", "北京", "京大", "大学"]
    assert segment("国") == ["国", "国"]


def test_traditional_chinese_and_the_rarest_characters_are_found_too():
    assert {"臺灣", "灣", "大學"} <= set(segment("臺灣大學"))
    assert "𠮷野" in segment("𠮷野")


def test_words_that_the_dictionary_lacks_are_not_guessed():
    # Guessing makes one word of 小明, which the dictionary has not.
    assert segment("小明硕士毕业")[:4] == ["小", "明", "硕士", "毕业"]


def test_scripts_in_one_text_keep_their_order():
    assert segment("买 iPhones, 钱。NBA") == ["买", "买", "iphone", "钱", "钱", "nba"]


def test_kana_and_thai_give_pairs_and_a_lone_character_itself():
    assert segment("カメラの") == ["カメ", "メラ", "ラの"]
    assert segment("ไทย ก") == ["ไท", "ทย", "ก"]


def test_korean_and_indian_words_are_whole():
    assert segment("한국어 사전") == ["한국어", "사전"]
    assert segment("हिन्दी भाषा।") == ["हिन्दी", "भाषा"]


@pytest.mark.parametrize(
    ("words", "shared"),
    [
        ("shoe shoes", "shoe"),
        ("battery batteries", "battery"),
        ("movie movies", "movy"),
        ("pie pies", "pie"),
        ("tree trees", "tree"),
        ("glass", "glass"),
        ("campus", "campus"),
        ("gas is", None),
        ("señoras", None),
    ],
)
def test_an_english_plural_meets_its_singular_and_nothing_else_changes(words, shared):
    assert segment(words) == ([shared] * len(words.split()) if shared else words.split())


@given(st.text())
def test_any_text_has_words_without_white_space_and_capitals_do_not_matter(text):
    words = segment(text)
    assert all(word and not any(character.isspace() for character in word) for word in words)
    assert segment(text.casefold()) == segment(text.casefold().casefold())


@pytest.mark.parametrize("text", ["", "  \n", "!?，。…", "🙂"])
def test_a_text_without_words_has_none(text):
    assert segment(text) == []


# --- BM25


def test_scores_are_bm25_by_hand():
    # Three documents of 2, 1 and 3 words, mean 2. k1 = 0.9, b = 0.4; idf = ln(1 + (N - df + 0.5) / (df + 0.5)).
    index = LexicalIndex(["red lamp", "blue", "red red cup"])
    scores, rows = index.search(["red cup"], 3)

    def weight(df, tf, length):
        return math.log(1 + (3 - df + 0.5) / (df + 0.5)) * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * length / 2))

    assert rows.tolist() == [[2, 0, -1]]
    assert scores[0] == pytest.approx([weight(2, 2, 3) + weight(1, 1, 3), weight(2, 1, 2), 0])
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)


def test_a_document_that_shares_no_word_is_not_found_even_when_every_document_has_the_word():
    index = LexicalIndex(["the red cup", "the lamp", "nothing"])
    assert found(index, "the lamp") == [1, 0]
    assert found(LexicalIndex(["same", "same"]), "same") == [0, 1]


def test_a_word_asked_twice_weighs_twice():
    scores, rows = LexicalIndex(["red", "blue", "green"]).search(["red red blue"], 2)
    assert rows.tolist() == [[0, 1]]
    assert scores[0, 0] == pytest.approx(2 * scores[0, 1])


def test_equal_scores_stand_in_row_order_and_the_cut_takes_the_lower_rows():
    index = LexicalIndex(["blue cup", *["red cup"] * 50, "red red"])
    assert found(index, "red", k=4) == [51, 1, 2, 3]


def test_fewer_documents_than_asked_for_leave_the_rest_empty():
    scores, rows = LexicalIndex(["red", "red cup"]).search(["red", "", "unknown"], 5)
    assert rows.tolist() == [[0, 1, -1, -1, -1], [-1] * 5, [-1] * 5]
    assert scores.shape == (3, 5)
    assert scores[rows < 0].tolist() == [0] * 13


@pytest.mark.parametrize("documents", [[], [""], ["", "?!"], ["", "red", ""]])
def test_empty_documents_and_empty_corpora_work(documents):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = LexicalIndex(documents)
    assert found(index, "red") == ([1] if "red" in documents else [])
    assert index.search([], 3)[1].shape == (0, 3)


def test_k_below_one_is_refused():
    with pytest.raises(ValueError, match="k must be at least 1"):
        LexicalIndex(["red"]).search(["red"], 0)


def test_chinese_documents_are_found_by_a_part_of_a_name():
    index = LexicalIndex(["他在一家公司工作", "欧几里得撰写了几何原本", "几里之外"])
    assert found(index, "欧几里得是谁")[0] == 1


def test_what_was_saved_finds_the_same_with_the_same_scores(tmp_path):
    documents = ["red cup", "", "他在北京大学工作", "the red lamps", "北京的大学", "red red"]
    index = LexicalIndex(documents)
    index.save(tmp_path / "bm25")
    again = LexicalIndex.load(tmp_path / "bm25")
    assert (again.n_documents, again.n_words) == (6, index.n_words)
    queries = ["red lamp", "北京大学", "unknown", ""]
    for before, after in zip(index.search(queries, 6), again.search(queries, 6), strict=True):
        assert np.array_equal(before, after)


def test_what_is_saved_is_arrays_and_json_that_are_mapped_and_that_bm25s_opens(tmp_path):
    import bm25s

    LexicalIndex(iter(["red cup", "blue"])).save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy", ".json"}
    assert isinstance(LexicalIndex.load(tmp_path)._bm25.scores["data"], np.memmap)
    theirs = bm25s.BM25.load(tmp_path)
    assert theirs.retrieve([["cup"]], k=1, show_progress=False).documents.tolist() == [[0]]


def test_without_a_word_there_is_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match="no document has a word"):
        LexicalIndex(["", "?!"]).save(tmp_path / "bm25")
    assert not (tmp_path / "bm25").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.index.json", b"{"),
        ("vocab.index.json", b"[]"),
        ("params.index.json", b"{}"),
        ("data.csc.index.npy", b"no array"),
        ("indptr.csc.index.npy", None),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, name, content):
    LexicalIndex(["red cup"]).save(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as a BM25 index|words; build it anew"):
        LexicalIndex.load(tmp_path)


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    LexicalIndex(["red cup"]).save(tmp_path)
    np.save(tmp_path / "data.csc.index.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read as a BM25 index"):
        LexicalIndex.load(tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcde"), max_size=6), min_size=1, max_size=8),
    st.lists(st.sampled_from("abcdef"), max_size=4),
    st.integers(1, 9),
)
def test_found_are_exactly_the_best_that_share_a_word(documents, query, k):
    index = LexicalIndex([" ".join(words) for words in documents])
    scores, rows = index.search([" ".join(query)], k)
    everything_scores, everything = index.search([" ".join(query)], len(documents))
    assert set(everything[everything >= 0].tolist()) == {row for row, words in enumerate(documents) if set(words) & set(query)}
    n = min(k, len(documents))
    assert rows[0, :n].tolist() == everything[0, :n].tolist()
    assert (rows[0, n:] == -1).all()
    keys = [(-score, row) for score, row in zip(everything_scores[0], everything[0], strict=True) if row >= 0]
    assert keys == sorted(keys)
    assert ((scores > 0) == (rows >= 0)).all()


# --- fusion


def test_fusion_by_hand():
    # Row 7: first in one, second in the other. Row 8: second and third. Row 9: first in one. Row 5: third in one.
    scores, rows = reciprocal_rank_fusion([np.array([[7, 8, 5]]), np.array([[9, 7, 8]])], 4)
    assert rows.tolist() == [[7, 8, 9, 5]]
    assert scores[0] == pytest.approx([1 / 61 + 1 / 62, 1 / 62 + 1 / 63, 1 / 61, 1 / 63])
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)


def test_fusion_skips_what_is_no_document_and_pads_what_is_missing():
    scores, rows = reciprocal_rank_fusion([np.array([[3, -1], [-1, -1]]), np.array([[-1, 3, 4], [-1, -1, -1]])], 3)
    # -1 holds its rank: 3 is second, and 4 third, in the second ranking.
    assert rows.tolist() == [[3, 4, -1], [-1, -1, -1]]
    assert scores[0] == pytest.approx([1 / 61 + 1 / 62, 1 / 63, 0])
    assert scores[1].tolist() == [0, 0, 0]


def test_fusion_breaks_ties_by_row_in_whatever_order_the_rankings_come():
    rankings = [np.array([[5, 2, 9]]), np.array([[9, 5, 2]]), np.array([[2, 9, 5]])]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        scores, rows = reciprocal_rank_fusion([rankings[i] for i in order], 2)
        assert rows.tolist() == [[2, 5]]
        assert scores[0, 0] == scores[0, 1]


def test_fusion_ties_although_the_sums_differ_in_their_last_bit():
    # Row 5 has ranks 2, 1, 7 and row 2 has 1, 7, 2: in double precision the first sum is larger by a bit, for its order alone.
    assert 1 / 62 + 1 / 61 + 1 / 67 > 1 / 61 + 1 / 67 + 1 / 62
    rankings = [[2, 5, -1, -1, -1, -1, -1], [5, -1, -1, -1, -1, -1, 2], [-1, 2, -1, -1, -1, -1, 5]]
    assert reciprocal_rank_fusion([np.array([ranking]) for ranking in rankings], 2)[1].tolist() == [[2, 5]]


def test_a_small_constant_trusts_the_first_rank_more():
    first_once, second_twice = np.array([[1, 2]]), np.array([[3, 2]])
    assert reciprocal_rank_fusion([first_once, second_twice], 1, constant=0)[1].item() == 1  # 1 against 1/2 + 1/2, lower row
    assert reciprocal_rank_fusion([first_once, second_twice], 1)[1].item() == 2


def test_one_ranking_stays_as_it_is_and_none_is_refused():
    ranking = np.array([[4, 1, 3, -1]])
    assert reciprocal_rank_fusion([ranking], 4)[1].tolist() == ranking.tolist()
    with pytest.raises(ValueError, match="as many queries each"):
        reciprocal_rank_fusion([], 3)
    with pytest.raises(ValueError, match="as many queries each"):
        reciprocal_rank_fusion([ranking, np.array([[1], [2]])], 3)
    with pytest.raises(ValueError, match="k must be at least 1"):
        reciprocal_rank_fusion([ranking], 0)
