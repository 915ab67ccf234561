"""The sample corpus: read from docstrings without importing anything, split without leakage, written byte for byte the same."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

from ebr.data.evaluation.evaluation_set import read_evaluation_set
from ebr.data.sample.corpus import build_sample
from ebr.data.sample.docstrings import parse_docstring, read_api_docs, source_files
from ebr.data.text.near_duplicates import Groups, jaccard, tokens
from ebr.data.training.examples import read_examples
from ebr.errors import DataError

ROOT = Path(__file__).parents[2]

NUMPY_STYLE = """Compute the weighted average along an axis.

The average is taken over the ``flattened`` array by default, otherwise over :ref:`the given
axis <axes>`. Weights must sum to a positive number.

Parameters
----------
a : array_like
    Numbers to be averaged over the axis.
"""
GOOGLE_STYLE = """Split a long text into passages of equal size.

Every passage ends at a **sentence boundary** where one is near, so that no thought is cut in half.

Args:
    text (`str`): What is cut into passages.
"""
SPHINX_STYLE = """Send a request and wait for the response.

.. versionadded:: 2.1
   The timeout.

A connection is taken from the pool and returned to it afterwards, even when the server hangs up.

:param url: Where the request goes.
"""

WORDS = (
    "amber basin cedar delta ember fjord grove haven inlet jetty knoll larch marsh north ocean prairie "
    "quarry ridge shore tundra upland valley willow xenon yonder zephyr birch canyon dune estuary forest glacier"
).split()


def docstring_of(number):
    """Two sentences of which those of another number are no near-duplicates."""
    words = WORDS[number % 32 :] + WORDS[: number % 32]
    mark = f"{WORDS[number // 32]}{number}"
    return (
        f"Chart {mark} {' '.join(words[:4])} carefully.\n\n"
        f"Travellers {mark}x meet {' '.join(words[9:18])} where {mark}y {mark}z {mark}v {mark}w wander together at dusk."
    )


def function(name, docstring):
    return f'def {name}():\n    """{docstring}"""\n\n\n'


@pytest.fixture
def fake_library(tmp_path, monkeypatch):
    """Write a package from {module path: source} and put it on the path; its import raises."""

    def write(modules, library="fakelib"):
        package = tmp_path / "site" / library
        package.mkdir(parents=True)
        (package / "__init__.py").write_text('raise RuntimeError("imported")\n')
        for path, source in modules.items():
            (package / path).parent.mkdir(parents=True, exist_ok=True)
            (package / path).write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(str(package.parent))
        return package

    return write


@pytest.fixture
def forty_functions(fake_library):
    return fake_library({"maps.py": "".join(function(f"chart_{n}", docstring_of(n)) for n in range(40))})


def build(root, **options):
    return build_sample(root, **{"train_pairs": 10, "eval_queries": 5, "seed": 1, "libraries": ["fakelib"], **options})


def texts_of(root):
    """Every training text and every evaluation text."""
    pairs = json.loads((root / "train_text/api_docs.json").read_text(encoding="utf-8"))
    evaluation = read_evaluation_set(root / "datasets/api_docs")
    return {text for pair in pairs for text in pair.values()}, {*evaluation.queries, *evaluation.documents}


def names_in(package):
    return [doc.name for path in source_files(package) for doc in read_api_docs(path, package)]


@pytest.mark.parametrize(
    ("docstring", "summary", "description"),
    [
        (
            NUMPY_STYLE,
            "Compute the weighted average along an axis",
            "The average is taken over the flattened array by default, otherwise over the given axis. "
            "Weights must sum to a positive number.",
        ),
        (
            GOOGLE_STYLE,
            "Split a long text into passages of equal size",
            "Every passage ends at a sentence boundary where one is near, so that no thought is cut in half.",
        ),
        (
            SPHINX_STYLE,
            "Send a request and wait for the response",
            "A connection is taken from the pool and returned to it afterwards, even when the server hangs up.",
        ),
    ],
    ids=["numpy", "google", "sphinx"],
)
def test_each_docstring_style_gives_its_summary_and_the_prose_before_its_first_section(docstring, summary, description):
    assert parse_docstring(docstring, "unrelated", "function") == (summary, description)


@pytest.mark.parametrize(
    "docstring",
    [
        "Compute the weighted average along an axis.",
        "Too short.\n\n" + NUMPY_STYLE.split("\n\n")[1],
        "Compute the weighted average along an axis.\n\nOnly a few words here.",
        "Compute the weighted average along an axis.\n\n>>> compute([1, 2, 3], axis=0, weights=[1, 2, 3], keep=True, out=None)",
        NUMPY_STYLE.replace("Parameters", ".. deprecated:: 1.2\n\nParameters"),
        r"Compute the weighted average along an axis."
        + "\n\n"
        + r"It is \sum_i w_i x_i over all the rows of the array that were given.",
    ],
    ids=["one line", "short summary", "short description", "example", "deprecated", "formula"],
)
def test_a_docstring_without_enough_prose_is_skipped(docstring):
    assert parse_docstring(docstring, "unrelated", "function") is None


def test_a_very_short_description_is_lengthened_from_the_notes():
    notes = "\n\nNotes\n-----\nIt walks over the rows from the last to the first and stops early at a gap.\n"
    _, description = parse_docstring("Find the last filled row. Gaps are ignored." + notes, "unrelated", "function")
    assert description == "Gaps are ignored. It walks over the rows from the last to the first and stops early at a gap."


def test_a_description_ends_with_a_sentence_near_600_characters():
    sentence = "Every one of these sentences has exactly sixty characters ok."
    assert len(sentence) == 61
    _, description = parse_docstring("Show how the cut works.\n\n" + f"{sentence} " * 20, "unrelated", "function")
    assert description == " ".join([sentence] * 9)  # 9 * 62 = 558; a tenth would reach 619


@pytest.mark.parametrize(
    ("name", "mention"),
    [
        ("rolling_mean", "rolling_mean"),
        ("rolling_mean", "the :func:`~fakelib.stats.rolling_mean` function"),
        ("rolling_mean", "fakelib.rolling_mean(x)"),
        ("RollingMean", "`rolling_mean`"),
        ("RollingMean", "a RollingMean object"),
        ("mean", "``mean``"),
    ],
)
def test_the_object_s_own_name_is_replaced_in_the_description(name, mention):
    docstring = (
        f"Smooth a series of numbers.\n\nFor short windows {mention} keeps a running sum, which is faster than adding anew."
    )
    _, description = parse_docstring(docstring, name, "function")
    assert description == "For short windows this function keeps a running sum, which is faster than adding anew."


def test_a_summary_that_names_its_object_is_skipped():
    docstring = "Use {} to smooth a series.\n\nA running sum is kept, which is faster than adding all numbers anew each time."
    assert parse_docstring(docstring.format("it"), "RollingMean", "class")
    assert parse_docstring(docstring.format("RollingMean"), "RollingMean", "class") is None


def test_a_sentence_that_repeats_the_summary_is_removed_from_the_description():
    new = "A running sum is kept, which is faster than adding all numbers anew each time."
    docstring = f"Smooth a series of numbers.\n\nIt is to smooth a series of numbers. Smooth a series of numbers. {new}"
    assert parse_docstring(docstring, "unrelated", "function") == ("Smooth a series of numbers", new)


def test_private_deprecated_tested_and_vendored_objects_are_skipped(fake_library):
    package = fake_library(
        {
            "_impl.py": function("kept", docstring_of(1)) + function("_private", docstring_of(2)),
            "old.py": "@deprecated('1.0')\n" + function("gone", docstring_of(3)),
            "tests/test_it.py": function("test_it", docstring_of(4)),
            "_vendor/other.py": function("other", docstring_of(5)),
            "shapes.py": f'class Box:\n    def grow(self):\n        """{docstring_of(6)}"""\n',
            "broken.py": function("broken", docstring_of(7)) + "def (",
        }
    )
    assert names_in(package) == ["fakelib.kept", "fakelib.shapes.Box.grow"]


def test_jaccard_similarity_ignores_case_width_and_punctuation():
    assert tokens("Ｆｏｏ, BAR_baz!") == {"foo", "bar", "baz"}
    assert jaccard(tokens("a b c d"), tokens("b c d e")) == pytest.approx(3 / 5)


def test_prefix_filtering_finds_the_same_groups_as_comparing_all_pairs():
    texts = [" ".join(combination) for combination in itertools.combinations("abcdefg", 4)]
    texts += [" ".join(combination) for combination in itertools.combinations("uvwxyz", 5)] + ["u v w x y z"]
    found, expected = Groups(len(texts)), Groups(len(texts))
    found.join_similar(texts, threshold=0.8)
    for left, right in itertools.combinations(range(len(texts)), 2):
        if jaccard(tokens(texts[left]), tokens(texts[right])) >= 0.8:
            expected.join(left, right)
    assert [found.root(item) for item in range(len(texts))] == [expected.root(item) for item in range(len(texts))]
    assert len({found.root(item) for item in range(len(texts))}) == 36  # 35 fours that share at most 3 of 5; one group of fives


def test_no_library_is_imported(forty_functions, tmp_path):
    assert build(tmp_path / "out").n_train_pairs == 10
    assert "fakelib" not in sys.modules


def test_every_file_reads_back(forty_functions, tmp_path):
    root = tmp_path / "out"
    corpus = build(root)
    assert (corpus.n_train_pairs, corpus.n_eval_queries, corpus.n_eval_documents) == (10, 5, 15)
    examples = read_examples([corpus.training_file])
    assert len(examples) == 10
    evaluation = read_evaluation_set(corpus.evaluation_dir)
    assert (len(evaluation.queries), len(evaluation.documents)) == (5, 15)
    answers = {query_id: list(grades) for query_id, grades in evaluation.qrels.items()}
    assert answers == {query_id: [query_id.removeprefix("query:")] for query_id in evaluation.query_ids}
    header, *rows = [line.split("\x01") for line in corpus.table_file.read_text(encoding="utf-8").splitlines()]
    assert header == ["id", "description", "label"]
    assert len(rows) == len({row[0] for row in rows}) == 25
    assert {row[2] for row in rows} == {"fakelib"}
    described = {row[1] for row in rows}
    assert all(f"{example.query}. {example.positives[0]}" in described for example in examples)


def test_a_query_s_answer_is_the_description_of_its_own_function(forty_functions, tmp_path):
    build(tmp_path / "out")
    evaluation = read_evaluation_set(tmp_path / "out/datasets/api_docs")
    documents = dict(zip(evaluation.doc_ids, evaluation.documents, strict=True))
    for query_id, query in zip(evaluation.query_ids, evaluation.queries, strict=True):
        (answer,) = evaluation.qrels[query_id]
        mark = query.split()[1]  # the word by which docstring_of tells one function from another
        assert f"Travellers {mark}x meet" in documents[answer]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_split(forty_functions, tmp_path):
    def files(root):
        return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    for name, seed in (("first", 1), ("second", 1), ("third", 2)):
        build(tmp_path / name, seed=seed)
    build(tmp_path / "first", seed=1)
    assert len(files(tmp_path / "first")) == 5
    assert files(tmp_path / "first") == files(tmp_path / "second")
    assert texts_of(tmp_path / "first") != texts_of(tmp_path / "third")


def test_training_and_evaluation_share_no_text(forty_functions, tmp_path):
    build(tmp_path / "out")
    training, evaluation = texts_of(tmp_path / "out")
    assert len(training) == 20
    assert not training & evaluation


@pytest.mark.parametrize("seed", range(5))
def test_functions_of_one_name_stay_on_one_side(fake_library, tmp_path, seed):
    fake_library({f"part_{n}.py": function("shared" if n % 2 else f"only_{n}", docstring_of(n)) for n in range(40)})
    corpus = build(tmp_path / "out", seed=seed)
    ids = [line.split("\x01")[0] for line in corpus.table_file.read_text(encoding="utf-8").splitlines()[1:]]
    assert len(ids) == 21
    assert sum(name.endswith(".shared") for name in ids) == 1


@pytest.mark.parametrize("part", ["summary", "description"])
def test_near_duplicate_texts_stay_on_one_side(fake_library, tmp_path, part):
    def near_copy(number):
        # Nine words in ten are the same: 10 / 12 > 0.8.
        summary, description = docstring_of(number).split("\n\n")
        if part == "summary":
            return f"Turn every page of the book over until line {number}.\n\n{description}"
        return f"{summary}\n\nOne two three four five six seven eight nine ten eleven twelve thirteen copies of {number}."

    copies = {f"copy_{n}.py": function(f"copy_{n}", near_copy(n)) for n in range(20)}
    fake_library(copies | {f"other_{n}.py": function(f"other_{n}", docstring_of(n + 20)) for n in range(20)})
    corpus = build(tmp_path / "out")
    ids = [line.split("\x01")[0] for line in corpus.table_file.read_text(encoding="utf-8").splitlines()[1:]]
    assert len(ids) == 21
    assert sum(".copy_" in name for name in ids) == 1


def test_functions_come_before_methods(fake_library, tmp_path):
    methods = "".join(f'    def grow_{n}(self):\n        """{docstring_of(n)}"""\n' for n in range(25))
    functions = "".join(function(f"chart_{n}", docstring_of(n)) for n in range(25, 48))
    # In the order of names, the methods of Atlas come before function grow_0, which shares the name of one of them.
    fake_library({"maps.py": f"class Atlas:\n{methods}\n\n{functions}{function('grow_0', docstring_of(48))}"})
    corpus = build(tmp_path / "out")
    ids = [line.split("\x01")[0] for line in corpus.table_file.read_text(encoding="utf-8").splitlines()[1:]]
    assert len(ids) == 25
    assert sum(".Atlas." in name for name in ids) == 1  # 24 functions, and one method to fill up
    assert "fakelib.maps.grow_0" in ids


def test_libraries_give_equal_shares_until_one_runs_out(fake_library, tmp_path):
    fake_library({"maps.py": "".join(function(f"chart_{n}", docstring_of(n)) for n in range(60))}, library="big")
    fake_library({"maps.py": "".join(function(f"draw_{n}", docstring_of(n)) for n in range(60, 65))}, library="small")
    corpus = build(tmp_path / "out", libraries=["big", "small", "absent"])
    assert corpus.objects_by_library == {"big": 20, "small": 5}
    assert corpus._repr_html_().count("small") == 1  # a notebook is told once


def test_both_sides_shrink_and_the_summary_says_so_when_too_little_is_found(forty_functions, tmp_path):
    corpus = build(tmp_path / "out", train_pairs=50, eval_queries=10)  # asks for 50 + 3 * 10 = 80, finds 40
    assert (corpus.n_train_pairs, corpus.n_eval_queries, corpus.n_eval_documents) == (25, 10, 15)
    assert "only 40 of 80 objects found" in corpus.summary()
    assert not build(tmp_path / "enough").shortfall


def test_nothing_to_read_is_an_error_that_writes_nothing(tmp_path):
    with pytest.raises(DataError, match="none of absent_library is installed"):
        build(tmp_path / "out", libraries=["absent_library"])
    assert not (tmp_path / "out").exists()


def test_a_real_library_gives_readable_pairs(tmp_path):
    corpus = build(tmp_path, libraries=["joblib"])
    assert corpus.n_train_pairs == 10
    assert corpus.versions["joblib"][0].isdigit()
    for text in set.union(*texts_of(tmp_path)):
        assert not any(mark in text for mark in ("``", ":class:", ">>>", "\n", "\x01"))


def script_of(*texts):
    """A row's script: GB 2312 holds no Traditional characters, Big5 no Simplified ones, ASCII neither."""
    scripts = {"ascii": "English", "gb2312": "Simplified", "big5": "Traditional"}
    for encoding, script in scripts.items():
        try:
            "".join(texts).encode(encoding)
        except UnicodeEncodeError:
            continue
        return script
    return "mixed"


def test_the_committed_training_files_are_valid_distinct_and_in_three_scripts():
    pairs = json.loads((ROOT / "train_text/sample.json").read_text(encoding="utf-8"))
    lines = (ROOT / "datasets/sample_data.jsonl").read_text(encoding="utf-8").splitlines()
    triplets = [json.loads(line) for line in lines]
    assert len(read_examples([ROOT / "train_text/sample.json"])) == len(pairs) == len(triplets) == 36
    for rows in (
        [(record["anchor"], record["positive"]) for record in pairs],
        [(record["query"], *record["pos"], *record["neg"]) for record in triplets],
    ):
        scripts = [script_of(*row) for row in rows]
        assert {script: scripts.count(script) for script in scripts} == {"Simplified": 12, "Traditional": 12, "English": 12}
    negatives = [record["negative"] for record in pairs if "negative" in record]
    texts = [record[key] for record in pairs for key in ("anchor", "positive")]
    texts += [text for negative in negatives for text in (negative if isinstance(negative, list) else [negative])]
    texts += [text for record in triplets for text in (record["query"], *record["pos"], *record["neg"])]
    assert len(texts) == len(set(texts))
    assert 15 <= len(negatives) <= 24
    assert any(isinstance(negative, list) for negative in negatives)
    assert any(len(record["pos"]) > 1 for record in triplets)
    assert any(not record["neg"] for record in triplets)


def test_the_committed_table_has_four_labels_a_language_and_three_or_four_rows_a_label():
    lines = (ROOT / "infer_data/sample.csv").read_text(encoding="utf-8").splitlines()
    header, *rows = [line.split("\x01") for line in lines]
    assert header == ["id", "description", "label"]
    assert len({row[0] for row in rows}) == len({row[1] for row in rows}) == len(rows) == 39
    scripts = {"zh": "Simplified", "tw": "Traditional", "en": "English"}
    assert all(script_of(*row[1:]) == scripts[row[0][:2]] for row in rows)
    labels = [(row[0][:2], row[2]) for row in rows]
    assert {language: len({label for of, label in labels if of == language}) for language, _ in labels} == {
        "zh": 4,
        "tw": 4,
        "en": 4,
    }
    assert all(3 <= labels.count(label) <= 4 for label in labels)


def test_every_option_of_the_sample_reaches_the_builder_and_the_manifest_reruns_it(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from ebr.config import SampleConfig
    from ebr.config.options import read_record
    from ebr.data.files.write import manifest_path
    from ebr.data.sample.command import build_sample_corpus

    seen = {}

    def build(output_root, **options):
        seen.update(options, output_root=output_root)
        return SimpleNamespace(evaluation_dir=tmp_path, versions={"numpy": "2"})

    monkeypatch.setattr("ebr.data.sample.corpus.build_sample", build)
    config = SampleConfig(output_root=tmp_path / "x", train_pairs=11, eval_queries=12, seed=13)
    build_sample_corpus(config, say=lambda _: None)
    assert seen == {"output_root": tmp_path / "x", "train_pairs": 11, "eval_queries": 12, "seed": 13}
    assert SampleConfig(**read_record(manifest_path(tmp_path))) == config
