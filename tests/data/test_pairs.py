"""Pairs from a bare corpus: what stands for the question, what for the answer, and what makes none."""

import json

import numpy as np
import pytest

from ebr import cli
from ebr.config import PairsConfig
from ebr.data.files.write import manifest_path, read_manifest
from ebr.data.pairs.command import make_pairs
from ebr.data.pairs.making import PairKind, PairMaker
from ebr.data.records.documents import Document
from ebr.data.training.examples import read_examples
from ebr.data.training.sources import read_sources
from ebr.errors import ConfigError, DataError

TITLE, FIRST, CROPS = PairKind.TITLE, PairKind.FIRST_SENTENCE, PairKind.CROPS
TOMATOES = "Tomatoes like the sun. They take 3.5 litres of water a week. Cut the side shoots."
DOCUMENTS = [
    {
        "_id": "1",
        "title": "Tomatoes",
        "text": "Tomatoes like the sun. They take 3.5 litres of water a week. Cut the side shoots.",
    },
    {"_id": "2", "title": "", "text": "番茄喜欢充足的阳光。每周浇水两到三次，夏天可以适当增加。叶子发黄时应当减少浇水。"},
    {"_id": "3", "title": "Short", "text": "Too short."},
    {
        "_id": "4",
        "title": "Other title",
        "text": "tomatoes  like the sun. They take 3.5 litres of water a week. Cut the side shoots.",
    },
]


def maker(min_words=3, seed=0):
    return PairMaker(min_words, np.random.default_rng(seed))


def document(text, title=""):
    return Document(title, text)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in DOCUMENTS), encoding="utf-8")
    return path


def make(corpus, output, **options):
    return make_pairs(PairsConfig(corpus=[str(corpus)], output_path=output, **{"min_words": 3, **options}), say=lambda _: None)


def test_a_title_asks_for_its_text():
    pair = maker().make(TITLE, document("the text of it", "a title"))
    assert (pair.query, pair.answer) == ("a title", "the text of it")
    assert maker().make(TITLE, document("the text of it")) is None
    assert maker().make(TITLE, document("The  text of it", "the text of it")) is None


@pytest.mark.parametrize(
    ("text", "first", "rest"),
    [
        ("It costs 3.5 dollars. That is not much.", "It costs 3.5 dollars.", "That is not much."),
        ('"Is it so?" she asked him. He said nothing.', '"Is it so?"', "she asked him. He said nothing."),
        ("这是第一句话。”这是第二句话！", "这是第一句话。”", "这是第二句话！"),
        ("A heading of three\nThe text below it.", "A heading of three", "The text below it."),
        # Too short to stand alone: the next one comes along.
        ("Mr. Brown came home. He was late again.", "Mr. Brown came home.", "He was late again."),
    ],
)
def test_the_first_sentence_asks_for_the_rest(text, first, rest):
    pair = maker().make(FIRST, document(text))
    assert (pair.query, pair.answer) == (first, rest)


@pytest.mark.parametrize("text", ["One sentence and no more.", "No end at all here", "The first is long enough. No.", ""])
def test_a_text_of_one_sentence_makes_no_such_pair(text):
    assert maker().make(FIRST, document(text)) is None


def test_crops_are_parts_of_the_text_of_whole_words_and_never_the_same():
    words = [f"w{number}" for number in range(40)]
    text = " ".join(words)
    one = maker()
    for _ in range(200):
        pair = one.make(CROPS, document(text))
        for crop in (pair.query, pair.answer):
            own = crop.split()
            start = words.index(own[0])
            assert words[start : start + len(own)] == own
            assert 3 <= len(own) <= 20
        assert pair.query != pair.answer
    assert one.make(CROPS, document("word word word word")) is None
    assert one.make(CROPS, document("two words")) is None


def test_crops_of_chinese_are_cut_between_its_words():
    text = DOCUMENTS[1]["text"]
    pair = maker(2).make(CROPS, document(text))
    assert pair.query in text
    assert pair.answer in text


def test_the_file_is_a_training_source_and_what_made_nothing_is_counted(corpus, tmp_path):
    result = make(corpus, tmp_path / "pairs.jsonl")
    # The fourth says the same as the first; the third is too short; the second has no title.
    assert (result.n_texts, result.n_repeated) == (4, 1)
    assert result.made == {"title": 1, "first_sentence": 2, "crops": 2}
    assert result.left_out == {"title": 2, "first_sentence": 1, "crops": 1}
    assert "title           1 pair; 2 texts too short or without a title" in result.summary()
    examples = read_examples([result.path])
    assert len(examples) == 5
    assert all(example.query != example.positives[0] for example in examples)
    (source,) = read_sources([{"data_path": str(result.path), "weight": 0.5}])
    assert len(source.examples) == 5
    record = read_manifest(result.path)
    assert (record["kind"], record["made"], record["config"]["seed"]) == ("pairs", result.made, 42)


def test_the_same_seed_gives_the_same_file_and_kinds_are_chosen(corpus, tmp_path):
    files = [make(corpus, tmp_path / f"{name}.jsonl", seed=seed).path for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    first, again, other = (file.read_bytes() for file in files)
    assert first == again != other
    only = make(corpus, tmp_path / "only.json", kinds=["first_sentence"])
    assert only.made == {"first_sentence": 2}
    assert len(json.loads(only.path.read_text(encoding="utf-8"))) == 2


def test_nothing_is_written_where_no_text_makes_a_pair(corpus, tmp_path):
    with pytest.raises(DataError, match=r"no text makes a pair \(crops\): all are shorter than 999 words"):
        make(corpus, tmp_path / "pairs.jsonl", kinds=["crops"], min_words=999)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]


def test_only_what_this_command_made_is_written_over(corpus, tmp_path):
    output = tmp_path / "pairs.jsonl"
    make(corpus, output)
    before = output.read_bytes()
    make(corpus, output, seed=7)
    assert output.read_bytes() != before
    manifest_path(output).unlink()
    with pytest.raises(ConfigError, match="was not made by ebr pairs"):
        make(corpus, output)
    with pytest.raises(ConfigError, match="is a corpus that pairs are made of"):
        make(corpus, corpus)
    with pytest.raises(ConfigError, match="is a folder"):
        (tmp_path / "folder.jsonl").mkdir()
        make(corpus, tmp_path / "folder.jsonl")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kinds": ["titles"]}, "kinds: titles unknown; use title, first_sentence, crops"),
        ({"kinds": []}, "corpus, kinds: name at least one of each"),
        ({"output_path": "pairs.csv"}, r"must end in \.jsonl or \.json"),
    ],
)
def test_options_that_make_nothing_are_refused(options, said, corpus):
    with pytest.raises(ConfigError, match=said):
        PairsConfig(**{"corpus": [str(corpus)], "output_path": "pairs.jsonl", **options}).check()


def test_the_command_line_makes_them(corpus, tmp_path, capsys):
    flags = ["pairs", "--corpus", str(corpus), "--output_path", str(tmp_path / "pairs.jsonl"), "--min_words", "3"]
    assert cli.main([*flags, "--dry_run"]) == 0
    assert not (tmp_path / "pairs.jsonl").exists()
    assert cli.main(flags) == 0
    assert "5 pairs" in capsys.readouterr().out
