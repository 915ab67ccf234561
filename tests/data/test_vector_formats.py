"""Formats of vector files: whatever is written comes back equal, alone or joined from parts; what cannot is refused."""

from __future__ import annotations

import io
import pickle
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ebr.data.vectors.formats import (
    VectorFormat,
    check_output_columns,
    detected_format,
    files_of,
    format_of,
    join_parts,
    read_batches,
    suffix_of,
    unfit_rows,
    write_vectors,
)
from ebr.data.vectors.numbers import format_vectors, parse_vectors
from ebr.errors import ConfigError, DataError

QUICK = settings(deadline=None, max_examples=40, database=None)
TXT, PARQUET, NPY = VectorFormat.TXT, VectorFormat.PARQUET, VectorFormat.NPY
FORMATS = [TXT, PARQUET, NPY]

LARGEST = np.finfo(np.float32).max
SMALLEST = np.float32(1e-45)  # subnormal, one bit
VECTORS = np.array([[0.1, -0.0, LARGEST], [SMALLEST, -1 / 3, 1e-7], [1, 2.5, -9.75]], dtype=np.float32)
COLUMNS = {"id": ["1", "2", None], "title": ['北京 "大学"', "", "a\rb\u2028\0"]}


def table(columns):
    return pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()})


def write(path, fmt, columns=COLUMNS, vectors=VECTORS, delimiter="\x01", **options):
    path = path.with_suffix(suffix_of(fmt))
    write_vectors(path, fmt, table(columns), vectors, delimiter=delimiter, **options)
    return path


def read(path, fmt, delimiter="\x01", columns=None, batch_rows=2):
    """(columns, vectors) of all batches."""
    batches = list(read_batches(path, fmt, delimiter=delimiter, columns=columns, batch_rows=batch_rows))
    assert all(0 < len(batch.vectors) <= batch_rows for batch in batches)
    names = batches[0].columns
    cells = {name: [cell for batch in batches for cell in batch.columns[name]] for name in names}
    return cells, np.concatenate([batch.vectors for batch in batches])


def cut(columns, vectors, bounds):
    """Parts of a table between row numbers."""
    for start, stop in pairwise(bounds):
        yield {name: cells[start:stop] for name, cells in columns.items()}, vectors[start:stop]


def write_joined(folder, name, fmt, parts, delimiter="\x01", **options):
    paths = [write(folder / f"{name}-{at}", fmt, *part, delimiter, **options) for at, part in enumerate(parts)]
    output = folder / f"{name}{suffix_of(fmt)}"
    join_parts(paths, output, fmt)
    return output


# ---------------------------------------------------------------- numbers

bits = st.integers(0, 2**32 - 1).map(lambda number: np.uint32(number).view(np.float32)).filter(np.isfinite)


def texts_of(vectors):
    return [line.decode() for line in format_vectors(vectors)]


@settings(deadline=None, max_examples=200, database=None)
@given(st.lists(bits, min_size=1, max_size=20))
def test_every_float32_is_written_as_percent_9g_writes_it(values):
    vectors = np.array([values], dtype=np.float32)
    assert texts_of(vectors) == [" ".join(["%.9g"] * len(values)) % tuple(vectors[0].tolist())]


@pytest.mark.parametrize("sign", [1, -1])
def test_neighbours_of_every_power_of_ten_and_short_numbers_are_exact_too(sign):
    steps = np.arange(-40, 41, dtype=np.int32)
    powers = np.float32([float(f"{digit}e{power}") for power in range(-12, 12) for digit in range(1, 10)])
    near = (powers.view(np.int32)[:, None] + steps).view(np.float32).reshape(-1)
    short = np.arange(0, 12, 1 / 64, dtype=np.float32)  # few digits: where zeros at the end are cut
    ties = np.arange(1, 4000, 2, dtype=np.float32) / np.float32(2**12)  # exact ties at nine digits among them
    values = sign * np.concatenate([near, short, ties])
    assert texts_of(values[:, None]) == [f"{value:.9g}" for value in values.tolist()]


def test_numbers_by_hand():
    values = [[0.1, -0.0, 2], [0.5, 1e-5, 0.001], [-12.25, 9.999999, 1e9]]
    assert texts_of(np.float32(values)) == ["0.100000001 -0 2", "0.5 9.99999975e-06 0.00100000005", "-12.25 9.99999905 1e+09"]


@QUICK
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=bits))
@example(VECTORS)
@example(-VECTORS)
def test_vector_text_names_the_same_float32_bit_for_bit(vectors):
    again = parse_vectors(texts_of(vectors))
    assert again.dtype == np.float32
    assert again.shape == vectors.shape
    assert again.tobytes() == vectors.tobytes()


@pytest.mark.parametrize("texts", [["1 2", "1"], ["1 2 3", "4"], ["1 two"], [""], ["1  2"]])
def test_texts_that_are_no_matrix_are_refused(texts):
    with pytest.raises(ValueError, match=r"vectors of 1 and of|parse"):
        parse_vectors(texts)


# ---------------------------------------------------------------- round trips

text = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["", " ", "\r", "\u2028", "\ufeff", '"', '"a",b', "\\", "NA"]
)
name = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\x01\ufeff\0"), max_size=5).map(str.strip)


@st.composite
def tables(draw):
    """(columns, vectors, two places to cut them into three parts, some perhaps empty)."""
    n_rows, dim = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    cells = st.lists(st.none() | text, min_size=n_rows, max_size=n_rows)
    columns = draw(st.dictionaries(name.filter(lambda name: name not in {"vector", "\\N"}), cells, max_size=3))
    vectors = draw(hnp.arrays(np.float32, (n_rows, dim), elements=bits))
    first, second = sorted(draw(st.tuples(st.integers(0, n_rows), st.integers(0, n_rows))))
    return columns, vectors, [0, first, second, n_rows]


def kept_rows(columns, vectors, fmt, delimiter):
    """The rows that are not unfit, as a run keeps them."""
    unfit = unfit_rows(table(columns), fmt, delimiter)
    keep = [row for row in range(len(vectors)) if row not in unfit]
    return {name: [cells[row] for row in keep] for name, cells in columns.items()}, vectors[keep]


@pytest.mark.parametrize(("fmt", "delimiter"), [(TXT, "\x01"), (TXT, ","), (PARQUET, ","), (NPY, "\x01")])
def test_any_table_reads_back_equal_alone_and_joined_from_parts(tmp_path_factory, fmt, delimiter):
    folder = tmp_path_factory.mktemp("formats")

    @QUICK
    @given(tables())
    @example((COLUMNS, VECTORS, [0, 0, 1, 3]))
    @example(({}, VECTORS, [0, 1, 1, 3]))
    def check(drawn):
        columns, vectors, bounds = drawn
        columns, vectors = kept_rows(columns, vectors, fmt, delimiter)
        if not len(vectors):
            return
        bounds = [min(bound, len(vectors)) for bound in bounds]
        alone = write(folder / "alone", fmt, columns, vectors, delimiter)
        joined = write_joined(folder, "joined", fmt, cut(columns, vectors, [*bounds[:3], len(vectors)]), delimiter)
        for path in (alone, joined):
            cells, again = read(path, fmt, delimiter)
            assert cells == columns
            assert again.tobytes() == vectors.tobytes()
            assert again.shape == vectors.shape
        if fmt is not PARQUET:
            assert joined.read_bytes() == alone.read_bytes()

    check()


@pytest.mark.parametrize("fmt", FORMATS)
def test_few_cells_are_ever_unfit(fmt):
    cells = {"a": ["x", None, "a\x01b", "a\nb", "\\N", "\\N ", "a\rb", "", 'a"b', "a,b"], "b": ["\\N"] + ["y"] * 9}
    unfit = unfit_rows(table(cells), fmt, "\x01")
    if fmt is TXT:
        assert list(unfit) == [0, 2, 3, 4]
        assert unfit[2] == "a holds the delimiter '\\x01': txt output cannot hold it, parquet and npy can"
        assert unfit[3] == "a holds a line break: txt output cannot hold it, parquet and npy can"
        assert unfit[0] == "b holds \\N, which means null: txt output cannot hold it, parquet and npy can"
        assert list(unfit_rows(table(cells), fmt, ",")) == [0, 4]
    else:
        assert unfit == {}


@pytest.mark.parametrize("fmt", FORMATS)
def test_files_of_more_than_a_slice_and_a_batch_keep_their_rows_in_order(tmp_path, fmt):
    n_rows = 1300
    vectors = np.arange(n_rows * 30, dtype=np.float32).reshape(n_rows, 30) / 1000
    columns = {"id": [str(row) for row in range(n_rows)]}
    path = write(tmp_path / "v", fmt, columns, vectors)
    cells, again = read(path, fmt, batch_rows=512)
    assert cells == columns
    assert (again == vectors).all()
    joined = write_joined(tmp_path, "joined", fmt, cut(columns, vectors, [0, 600, 600, 1300]))
    cells, again = read(joined, fmt, batch_rows=700)
    assert cells == columns
    assert (again == vectors).all()


@pytest.mark.parametrize("fmt", FORMATS)
def test_chosen_columns_come_in_the_order_asked_for_and_none_is_none(tmp_path, fmt):
    path = write(tmp_path / "v", fmt)
    assert list(read(path, fmt, columns={"title": "x", "id": "y"})[0]) == ["title", "id"]
    cells, vectors = read(path, fmt, columns={})
    assert cells == {}
    assert vectors.shape == (3, 3)


@pytest.mark.parametrize("fmt", FORMATS)
def test_file_without_rows_has_no_batch(tmp_path, fmt):
    path = write(tmp_path / "v", fmt, {"id": []}, VECTORS[:0])
    assert list(read_batches(path, fmt, delimiter="\x01")) == []


@pytest.mark.parametrize("fmt", FORMATS)
def test_same_rows_are_the_same_bytes(tmp_path, fmt):
    first, second = write(tmp_path / "a", fmt), write(tmp_path / "b", fmt)
    for one, other in zip(files_of(first, fmt), files_of(second, fmt), strict=True):
        assert one.read_bytes() == other.read_bytes()


# ---------------------------------------------------------------- each format by itself


def test_text_is_a_header_and_rows_of_cells_by_hand(tmp_path):
    path = write(tmp_path / "v", TXT, {"id": ["1", None], "title": ["a,b", ""]}, np.float32([[0.1, 2], [-0.5, 1e-5]]), ",")
    assert path.read_bytes() == b'id,title,vector\n1,"a,b",0.100000001 2\n\\N,,-0.5 9.99999975e-06\n'
    path = write(tmp_path / "w", TXT, {}, np.float32([[0.5], [1]]))
    assert path.read_bytes() == b"vector\n0.5\n1\n"


def test_npy_is_what_numpy_saves_and_maps_with_the_columns_beside_it(tmp_path):
    path = write(tmp_path / "v.2", NPY)
    assert files_of(path, NPY) == [tmp_path / "v.npy", tmp_path / "v.rows.parquet"]
    saved = io.BytesIO()
    np.save(saved, VECTORS)
    assert path.read_bytes() == saved.getvalue()
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    assert isinstance(mapped, np.memmap)
    assert (mapped == VECTORS).all()
    assert pq.read_table(tmp_path / "v.rows.parquet").to_pydict() == COLUMNS


@pytest.mark.parametrize(("dtype", "kind"), [("float32", pa.float32()), ("float16", pa.float16())])
def test_parquet_is_text_and_a_list_of_fixed_size_split_by_bytes_and_compressed(tmp_path, dtype, kind):
    noted = table({"id": ["1", "2"]}).replace_schema_metadata({"secret": "token"})
    write_vectors(tmp_path / "v.parquet", PARQUET, noted, VECTORS[1:], delimiter=",", dtype=dtype)
    with pq.ParquetFile(tmp_path / "v.parquet") as file:
        assert file.schema_arrow.field("id").type == pa.string()
        assert file.schema_arrow.field("vector").type == pa.list_(pa.field("element", kind), 3)
        chunk = file.metadata.row_group(0).column(1)
        assert "BYTE_STREAM_SPLIT" in chunk.encodings
        assert not chunk.has_dictionary_page
        assert chunk.compression == "ZSTD"
        assert set(file.metadata.metadata) == {b"ARROW:schema"}
        assert not file.schema_arrow.metadata
    write_vectors(tmp_path / "v.npy", NPY, noted, VECTORS[1:], delimiter=",", dtype=dtype)
    assert not pq.read_schema(tmp_path / "v.rows.parquet").metadata


@pytest.mark.parametrize("fmt", [PARQUET, NPY])
def test_float16_is_stored_in_half_and_read_as_float32(tmp_path, fmt):
    vectors = np.float32([[0.1, -2, 65504], [1e-3, 0, 1]])
    path = write(tmp_path / "v", fmt, {"id": ["1", "2"]}, vectors, dtype="float16")
    joined = write_joined(tmp_path, "j", fmt, cut({"id": ["1", "2"]}, vectors, [0, 1, 2]), dtype="float16")
    for each in (path, joined):
        again = read(each, fmt)[1]
        assert again.dtype == np.float32
        assert (again == vectors.astype(np.float16).astype(np.float32)).all()
    if fmt is NPY:
        assert np.load(joined).dtype == np.float16


@pytest.mark.parametrize("fmt", [PARQUET, NPY])
def test_number_beyond_float16_is_refused(tmp_path, fmt):
    with pytest.raises(DataError, match=r"vector of row 2 holds 70000, beyond float16 \(65504\); write float32"):
        write(tmp_path / "v", fmt, {}, np.float32([[1, 2], [3, -70000]]), dtype="float16")


def test_parquet_join_keeps_a_row_group_for_each_part_with_rows(tmp_path):
    joined = write_joined(tmp_path, "j", PARQUET, cut(COLUMNS, VECTORS, [0, 2, 2, 3]))
    metadata = pq.read_metadata(joined)
    n_rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert [count for count in n_rows if count] == [2, 1]


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_with_the_row_they_belong_to(tmp_path, fmt, value):
    vectors = VECTORS.copy()
    vectors[1, 2] = value
    with pytest.raises(DataError, match=r"the model gave nan or inf for the row '2 \| '; its weights may be broken"):
        write(tmp_path / "v", fmt, vectors=vectors)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fmt", FORMATS)
def test_rows_and_vectors_of_unequal_number_are_refused(tmp_path, fmt):
    with pytest.raises(ValueError, match="3 rows of columns for 2 vectors"):
        write(tmp_path / "v", fmt, vectors=VECTORS[:2])
    with pytest.raises(ValueError, match=r"must be \(N, D\)"):
        write(tmp_path / "v", fmt, vectors=VECTORS[:, 0])


@pytest.mark.parametrize(
    ("names", "fmt", "message"),
    [
        (["id", "vector"], NPY, "'vector' is the name of the column that is added"),
        (["id", "id"], PARQUET, "id stands there twice"),
        (["a\x01b"], TXT, r"'a\\x01b' holds the delimiter '\\x01'; leave it out, or set output_format to parquet"),
        (["a\nb"], TXT, "holds a line break"),
        ([" a"], TXT, "would be read back as another name"),
    ],
)
def test_column_name_that_the_format_cannot_hold_is_refused(names, fmt, message):
    with pytest.raises(DataError, match=message):
        check_output_columns(names, fmt, "\x01")


def test_column_name_is_refused_at_the_latest_when_it_is_written(tmp_path):
    with pytest.raises(DataError, match="holds the delimiter"):
        write(tmp_path / "v", TXT, {"a\x01b": ["1"]}, VECTORS[:1])
    assert list(tmp_path.iterdir()) == []


def test_column_names_that_only_text_cannot_hold():
    check_output_columns(["a\x01b", "a\nb", " a"], PARQUET, "\x01")
    check_output_columns(["a\x01b", "a|b"], TXT, ",")


@pytest.mark.parametrize(("fmt", "dtype"), [(TXT, "float16"), (PARQUET, "float64"), (NPY, "bfloat16")])
def test_type_that_the_format_cannot_store_is_refused(tmp_path, fmt, dtype):
    with pytest.raises(ConfigError, match=f"dtype '?{dtype}"):
        write(tmp_path / "v", fmt, dtype=dtype)


@pytest.mark.parametrize(
    ("fmt", "columns", "vectors"),
    [
        (TXT, {"id": ["1"]}, VECTORS[:1]),
        (PARQUET, {"id": ["1"]}, VECTORS[:1]),
        (PARQUET, {"id": ["1"], "title": ["a"]}, VECTORS[:1, :2]),
        (NPY, {"id": ["1"], "title": ["a"]}, VECTORS[:1, :2]),
        (NPY, {"id": ["1"]}, VECTORS[:1]),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(tmp_path, fmt, columns, vectors):
    with pytest.raises(DataError, match=r"p-1.* differ.* p.*remove the parts and run again|p-1\S+ its .* differ"):
        write_joined(tmp_path, "p", fmt, [(COLUMNS, VECTORS), (columns, vectors)])


@pytest.mark.parametrize(("fmt", "called"), [(PARQUET, "Parquet"), (NPY, "npy")])
def test_torn_file_is_a_message_and_no_traceback(tmp_path, fmt, called):
    path = write(tmp_path / "v", fmt)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"v\.{fmt.value}: cannot be read as {called} \("):
        read(path, fmt)


def test_parquet_that_is_broken_inside_is_a_message_too(tmp_path):
    path = write(tmp_path / "v", PARQUET)
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 100 + data[104:])
    with pytest.raises(DataError, match=r"v\.parquet: cannot be read as Parquet \("):
        read(path, PARQUET)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1, 2], [3]], pa.list_(pa.float32())), "row 2: the vector has 1 numbers where the first has 2"),
        (pa.array([[1.0], None]), "row 2: the vector is empty"),
        (pa.array([[], [1.0]]), "row 1: the vector is empty"),
        (pa.array([[1.0], [None]]), "a vector among rows 1 to 2 holds null"),
        (pa.array([[1.0], [float("nan")]]), "row 2: the vector holds nan, inf or a number beyond float32"),
        (pa.array([[1.0], [1e39]]), "row 2: the vector holds nan, inf or a number beyond float32"),
        (pa.array([["1"], ["2"]]), "column 'vector' is list<.*string>; it must be a list of numbers"),
        (pa.array([[[1.0]], [[2.0]]]), "column 'vector' is list<.*list<.*double>>; it must be a list of numbers"),
        (pa.array([b"1234", b"5678"]), "column 'vector' is binary; it must be a list of numbers"),
        (pa.array([1.0, 2.0]), "column 'vector' is double; it must be a list of numbers"),
        (pa.array(["1 2", "3"]), "row 2: the vector has 1 numbers where the first has 2"),
        (pa.array(["1 2", None]), r"row 2: the vector is no list of numbers: '\\\\N'"),
    ],
)
def test_parquet_column_that_holds_no_vectors_is_refused(tmp_path, column, message):
    pq.write_table(pa.table({"vector": column}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match=rf"v\.parquet: {message}"):
        read(tmp_path / "v.parquet", PARQUET)


def test_row_of_a_later_batch_is_named_by_its_place_in_the_file(tmp_path):
    column = pa.array([[1.0], [2.0], [3.0], [1.0, 2.0]])
    pq.write_table(pa.table({"vector": column}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match="row 4: the vector has 2 numbers where the first has 1"):
        read(tmp_path / "v.parquet", PARQUET, batch_rows=3)


def test_column_that_is_no_text_is_refused_only_when_it_is_asked_for(tmp_path):
    columns = {"tags": pa.array([["a"]]), "n": pa.array([7]), "vector": pa.array([[1.0]])}
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(
        DataError, match=r"column 'tags' is list<.*> and cannot be read as text; choose another for label_column"
    ):
        read(tmp_path / "v.parquet", PARQUET, columns={"tags": "label_column"})
    assert read(tmp_path / "v.parquet", PARQUET, columns={"n": "label_column"})[0] == {"n": ["7"]}


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.float32([1, 2]), r"is float32 of shape \(2,\); it must be a matrix of numbers"),
        (np.array([["1", "2"]]), r"is <U1 of shape \(1, 2\); it must be a matrix of numbers"),
        (np.array([[None]]), "cannot be read as npy .*Python objects"),
        (np.array([[1, np.inf]]), "row 1: the vector holds nan, inf"),
    ],
)
def test_npy_that_holds_no_vectors_is_refused(tmp_path, array, message):
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=rf"v\.npy: {message}"):
        read(tmp_path / "v.npy", NPY)


def test_pickle_that_is_called_npy_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    (tmp_path / "v.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"v\.npy: cannot be read as npy"):
        read(tmp_path / "v.npy", NPY)
    assert not (tmp_path / "sprung").exists()


def test_rows_beside_npy_must_be_as_many_as_its_vectors(tmp_path):
    path = write(tmp_path / "v", NPY)
    np.save(path, VECTORS[:2])
    with pytest.raises(DataError, match=r"v\.npy: 2 vectors, but 3 rows in v\.rows\.parquet; write both again"):
        read(path, NPY)
    (tmp_path / "v.rows.parquet").unlink()
    assert read(path, NPY)[0] == {}
    with pytest.raises(DataError, match=r"no columns beside it; put id into v\.rows\.parquet"):
        read(path, NPY, columns={"id": "label_column"})


@pytest.mark.parametrize("fmt", FORMATS)
def test_column_that_is_absent_or_the_vector_itself_is_refused(tmp_path, fmt):
    path = write(tmp_path / "v", fmt)
    with pytest.raises(DataError, match=r"no column 'titel' \(label_column\).* did you mean 'title'"):
        read(path, fmt, columns={"titel": "label_column"})
    with pytest.raises(DataError, match=r"'vector' \(label_column\) holds the vectors themselves"):
        read(path, fmt, columns={"vector": "label_column"})


# ---------------------------------------------------------------- which format


@pytest.mark.parametrize(
    ("path", "asked", "expected"),
    [
        ("v.txt", None, TXT), ("v.parquet", None, PARQUET), ("v.NPY", None, NPY), ("v.dat", None, TXT), ("folder", None, TXT),
        ("folder", "npy", NPY), ("v.dat", "parquet", PARQUET), ("v.csv", "txt", TXT), ("v.npy", "npy", NPY),
    ],
)  # fmt: skip
def test_format_is_the_one_asked_for_or_the_suffix_or_text(tmp_path, path, asked, expected):
    assert format_of(tmp_path / path, asked) is expected


@pytest.mark.parametrize(
    ("path", "asked", "message"),
    [
        ("v.txt", "npy", r"output_format npy: contradicts output_path .*v\.txt; let it end in \.npy"),
        ("v.parquet", "txt", r"output_format txt: contradicts"),
        ("v", "orc", "output_format 'orc': must be one of txt, parquet, npy"),
        (
            "v.jsonl",
            None,
            r"output_path .*v\.jsonl: no vector file is written as \.jsonl; let it end in \.txt, \.parquet, \.npy",
        ),
        ("v.parquet.gz", None, r"no vector file is written as \.gz"),
        ("v.GZ", "txt", r"no vector file is written as \.gz"),
        ("v.arrow", "parquet", r"no vector file is written as \.arrow"),
    ],
)
def test_format_that_contradicts_the_suffix_is_refused(tmp_path, path, asked, message):
    with pytest.raises(ConfigError, match=message):
        format_of(tmp_path / path, asked)


@pytest.mark.parametrize("fmt", FORMATS)
def test_format_is_known_by_its_first_bytes_where_no_suffix_tells(tmp_path, fmt):
    path = write(tmp_path / "v", fmt)
    assert detected_format(path) is fmt
    assert detected_format(path.rename(tmp_path / "000000_0")) is fmt
