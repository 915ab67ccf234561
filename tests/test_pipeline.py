"""Tables in, vector file out, with an engine that needs no model: every row in its place, every row left out listed."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr.data.embeddings import read_embeddings
from ebr.errors import DataError
from ebr.inference import pipeline
from ebr.inference.batching import length_sorted_batches
from ebr.inference.pipeline import embed_tables, open_source

QUICK = settings(deadline=None, max_examples=30, database=None)


class FakeEngine:
    """Texts → (n, 3) float32 computed from the text alone; notes how many came at a time."""

    def __init__(self):
        self.sizes = []

    def encode(self, texts):
        self.sizes.append(len(texts))
        return vectors_of(texts)


def vectors_of(texts):
    return np.array([[len(text), ord(text[0]), ord(text[-1]) / 3] for text in texts], dtype=np.float32)


def table(path, *rows, header="id|text|label", delimiter="|"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else row.encode() for row in [header, *rows]) + b"\n")
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "v.txt"


def source_of(folder, text="text", columns=None, delimiter="|"):
    return open_source(folder, "*.csv", delimiter, text, columns)


def embed(folder, out, engine=None, columns=None):
    return embed_tables(source_of(folder, columns=columns), engine or FakeEngine(), out, {"model": "fake"})


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 4096])
def test_rows_keep_their_order_over_files_and_chunks(folder, out, monkeypatch, chunk_rows):
    monkeypatch.setattr(pipeline, "CHUNK_ROWS", chunk_rows)
    table(folder / "b.csv", *[f"b{i}|text b{i}|B" for i in range(4)])
    table(folder / "a" / "a.csv", *[f"a{i}|文 a{i}!|A" for i in range(3)])
    engine = FakeEngine()
    done = embed(folder, out, engine)
    texts = [f"文 a{i}!" for i in range(3)] + [f"text b{i}" for i in range(4)]
    read = read_embeddings(out, "|")
    assert read.columns == {"id": ["a0", "a1", "a2", "b0", "b1", "b2", "b3"], "text": texts, "label": list("AAABBBB")}
    assert read.vectors.tobytes() == vectors_of(texts).tobytes()
    assert (done.n_files, done.n_rows, done.n_rejected, done.dim, done.rejects_path) == (2, 7, 0, 3, None)
    assert sum(engine.sizes) == 7
    assert max(engine.sizes) == min(chunk_rows, 7)


def test_chunk_size_does_not_change_the_file(folder, tmp_path, monkeypatch):
    table(folder / "a.csv", *[f"{i}|text {i}|L" if i % 4 else f"{i}" for i in range(20)])
    files = []
    for chunk_rows in (1, 3, 4096):
        monkeypatch.setattr(pipeline, "CHUNK_ROWS", chunk_rows)
        files.append(embed(folder, tmp_path / f"{chunk_rows}.txt"))
    assert len({done.output_path.read_bytes() for done in files}) == 1
    assert len({done.rejects_path.read_bytes() for done in files}) == 1


def test_rejected_rows_are_listed_with_file_line_reason_and_bytes_and_counted(folder, out):
    first = table(folder / "a.csv", "1|good|A", "2| |A", b"3|\xff|A", "4|two", "5|\\N|A")
    second = table(folder / "b.csv", "6||B", "7|good|B")
    done = embed(folder, out)
    lines = [json.loads(line) for line in done.rejects_path.read_text(encoding="utf-8").splitlines()]
    assert [(line["file"], line["line"], line["reason"], base64.b64decode(line["raw_base64"])) for line in lines] == [
        (str(first), 3, "text is empty", b"2| |A\n"),
        (str(first), 4, "not UTF-8", b"3|\xff|A\n"),
        (str(first), 5, "2 columns where the header has 3", b"4|two\n"),
        (str(first), 6, "text is empty", b"5|\\N|A\n"),
        (str(second), 2, "text is empty", b"6||B\n"),
    ]
    assert (done.n_rows, done.n_rejected) == (2, 5)
    assert done.first_rejects[0] == f"{first}:3: text is empty"
    assert read_embeddings(out, "|").columns["id"] == ["1", "7"]


def test_only_the_first_five_rejects_are_told(folder, out):
    table(folder / "a.csv", "0|good|A", *["1|" for _ in range(9)])
    done = embed(folder, out)
    assert [line.split(":")[-2] for line in done.first_rejects] == ["3", "4", "5", "6", "7"]
    assert done.n_rejected == 9


def test_rejects_of_the_run_before_go_when_there_are_none(folder, out):
    table(folder / "a.csv", "1|good|A", "2")
    rejects = embed(folder, out).rejects_path
    assert rejects.exists()
    table(folder / "a.csv", "1|good|A")
    assert embed(folder, out).rejects_path is None
    assert sorted(path.name for path in out.parent.iterdir()) == ["v.txt", "v.txt.manifest.json"]


def test_manifest_counts_rows_and_names_inputs(folder, out):
    table(folder / "a.csv", "1|good|A", "2")
    embed(folder, out)
    manifest = read_embeddings(out, "|").manifest
    assert {key: manifest[key] for key in ("n_rows", "n_rejected", "dim", "model", "columns", "delimiter")} == {
        "n_rows": 1, "n_rejected": 1, "dim": 3, "model": "fake", "columns": ["id", "text", "label"], "delimiter": "|",
    }  # fmt: skip
    before = manifest["inputs_sha256"]
    table(folder / "a.csv", "1|good|B", "2")
    embed(folder, out)
    assert read_embeddings(out, "|").manifest["inputs_sha256"] != before


# ---------------------------------------------------------------- columns


def test_chosen_columns_go_out_in_the_order_chosen(folder, out):
    table(folder / "a.csv", "1|good|A")
    table(folder / "b.csv", "fine|2|B|more", header="text|id|label|extra")
    embed(folder, out, columns=["label", "id"])
    assert read_embeddings(out, "|").columns == {"label": ["A", "B"], "id": ["1", "2"]}
    assert out.read_text().startswith("label|id|vector\nA|1|4 103 33.3333321\n")


def test_same_columns_in_another_order_are_put_in_order(folder, out):
    table(folder / "a.csv", "1|good|A")
    table(folder / "b.csv", "B|fine|2", header="label|text|id")
    embed(folder, out)
    assert read_embeddings(out, "|").columns == {"id": ["1", "2"], "text": ["good", "fine"], "label": ["A", "B"]}


@pytest.mark.parametrize("header", ["id|text", "id|text|label|more", "id|text|lable"])
def test_differing_headers_are_refused_before_anything_is_embedded(folder, header):
    first, second = table(folder / "a.csv"), table(folder / "b.csv", header=header)
    with pytest.raises(DataError) as caught:
        source_of(folder)
    assert str(caught.value).startswith(
        f"{second}: its columns {header.split('|')} differ from ['id', 'text', 'label'] of {first}"
    )
    assert "output_columns" in str(caught.value)


@pytest.mark.parametrize(
    ("header", "text", "columns", "message"),
    [
        ("id|text|vector", "text", None, "'vector' is the name of the column that the run adds"),
        ("id|text|vector", "text", ["vector"], "'vector' is the name of the column that the run adds"),
        ("id|text", "txt", None, r"a\.csv: no column 'txt' \(description_column\); it has 'id', 'text'; did you mean 'text'"),
        ("id|text", "text", ["idd"], r"a\.csv: no column 'idd' \(output_columns\).* did you mean 'id'"),
        ("id|text", "text", ["id", "id"], "output_columns: id, id names a column twice"),
    ],
)
def test_wrong_columns_are_refused_with_the_option_to_mend(folder, header, text, columns, message):
    table(folder / "a.csv", header=header)
    with pytest.raises(DataError, match=message):
        source_of(folder, text, columns)


def test_vector_column_of_the_input_may_be_left_out(folder, out):
    table(folder / "a.csv", "1|good|9 9", header="id|text|vector")
    embed(folder, out, columns=["id"])
    assert read_embeddings(out, "|").vectors.tobytes() == vectors_of(["good"]).tobytes()


def test_lines_are_counted_without_the_header(folder):
    table(folder / "a.csv", "1|a|A", "2|b|B")
    (folder / "b.csv").write_bytes(b"id|text|label\n3|c|C")
    (folder / "c.csv").write_bytes(b"id|text|label")
    assert source_of(folder).n_lines == 3


# ---------------------------------------------------------------- nothing half-written


@pytest.mark.parametrize(
    ("rows", "why"),
    [(["1||A", "2"], r"the first reason: .*a\.csv:2: text is empty"), ([], "the tables hold a header and no rows")],
)
def test_no_usable_row_is_an_error_and_writes_nothing(folder, out, rows, why):
    table(folder / "a.csv", *rows)
    with pytest.raises(DataError, match=f"^no row could be embedded; {why}$"):
        embed(folder, out)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_engine_that_dies_leaves_what_was_there(folder, out, monkeypatch, error):
    monkeypatch.setattr(pipeline, "CHUNK_ROWS", 1)
    table(folder / "a.csv", "1|good|A", "2", "3|fine|A")
    embed(folder, out)
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}

    class Dies(FakeEngine):
        def encode(self, texts):
            if texts == ["fine"]:
                raise error
            return super().encode(texts) * 2

    with pytest.raises(error):
        embed(folder, out, Dies())
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before
    assert len(before) == 3


# ---------------------------------------------------------------- batches of like length


@QUICK
@given(st.lists(st.integers(0, 20), max_size=50), st.integers(1, 60))
def test_batches_cover_every_text_once_longest_first(lengths, batch_size):
    batches = [batch.tolist() for batch in length_sorted_batches(lengths, batch_size)]
    flat = [index for batch in batches for index in batch]
    assert flat == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_batches_by_hand():
    assert [batch.tolist() for batch in length_sorted_batches([3, 9, 3, 5, 9], 2)] == [[1, 4], [3, 0], [2]]
