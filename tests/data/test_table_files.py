"""Input files: which count, what they are by their first bytes, which columns they and their folders give."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebr.data.files.contents import TableKind
from ebr.data.files.dialects import Dialect
from ebr.data.files.unpacking import Compression
from ebr.data.tables.columnar import as_text, columnar_batches, columnar_schema, n_columnar_rows, refuse_columns_without_text
from ebr.data.tables.files import find_tables, open_table
from ebr.errors import ConfigError, DataError

TABLE = b"id\x01text\n1\x01a\n"


def zstd(data, codec="zstd"):
    """One frame."""
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, codec) as stream:
        stream.write(data)
    return packed.getvalue().to_pybytes()


def lz4(data):
    """One frame."""
    return zstd(data, "lz4")


PACKERS = {
    "gzip": gzip.compress, "zstd": zstd, "bzip2": bz2.compress, "xz": lzma.compress, "lz4": lz4, "deflate": zlib.compress,
}  # fmt: skip
every_packer = pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)


def opened(path, data, column_names=None, root=None):
    """The table of a file with these bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return open_table(path, root or path.parent, Dialect.of("\x01"), column_names)


def content(path, data):
    """What a text file with these bytes holds, unpacked."""
    with opened(path, data).open() as stream:
        return stream.read()


# ---------------------------------------------------------------- which files


def test_tables_are_found_below_too_sorted_and_without_what_tools_leave(tmp_path):
    names = ["b.csv", "a/c.csv", "a/.partial.csv", "_SUCCESS.csv", "d.txt", "_temporary/e.csv", ".f.csv.crc", "g.csv.crc"]
    for name in [*names, "_dt=1/h.csv"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_tables(tmp_path, "*.csv*")[0]]
    assert found == ["_dt=1/h.csv", "a/c.csv", "b.csv"]


def test_folder_without_a_table_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no file matches '\*\.tsv'; set file_pattern"):
        find_tables(tmp_path, "*.tsv")
    with pytest.raises(DataError, match=r"input_dir .*absent: no such folder or file"):
        find_tables(tmp_path / "absent", "*.csv")
    with pytest.raises(ConfigError, match="must lie below input_dir"):
        find_tables(tmp_path, "/data/*.csv")


# ---------------------------------------------------------------- what a file is


@pytest.mark.parametrize(
    ("data", "compression"),
    [
        (TABLE, Compression.NONE),
        *((pack(TABLE), Compression(name)) for name, pack in PACKERS.items()),
        (b"\x50\x2a\x4d\x18\x02\0\0\0xy" + zstd(TABLE), Compression.ZSTD),
    ],
)
@pytest.mark.parametrize("name", ["000000_0", "t.csv", "t.parquet", "t.gz"])
def test_file_is_told_by_its_first_bytes_and_never_by_its_name(tmp_path, name, data, compression):
    file = opened(tmp_path / name, data)
    assert (file.kind, file.contents.compression, file.columns) == (TableKind.TEXT, compression, ("id", "text"))
    assert (file.path, file.name, file.n_bytes) == (tmp_path / name, name, len(data))
    with file.open() as stream:
        assert stream.read() == TABLE


def test_parquet_is_told_by_its_first_bytes(tmp_path):
    pq.write_table(pa.table({"id": [1, 2], "text": ["a", "b"]}), tmp_path / "000000_0.csv")
    file = open_table(tmp_path / "000000_0.csv", tmp_path, Dialect.of("\x01"), ["x"])
    assert (file.kind, file.columns) == (TableKind.PARQUET, ("id", "text"))  # its own names, whatever text files lack
    assert n_columnar_rows(file.path, file.kind) == 2


@every_packer
def test_archives_of_several_parts_are_read_to_their_end(tmp_path, pack):
    big = b"id\x01text\n" + os.urandom(3_000_000)
    assert content(tmp_path / "t", pack(big) + pack(b"") + pack(b"\n1\x01a\n")) == big + b"\n1\x01a\n"


def test_xz_filled_up_with_zeros_between_two_streams_is_read_to_its_end(tmp_path):
    assert content(tmp_path / "t", lzma.compress(TABLE) + b"\0" * 8 + lzma.compress(b"2\x01b\n")) == TABLE + b"2\x01b\n"


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data[: len(data) // 2], lambda data: data + b"garbage!"]
)
def test_broken_archive_is_named(tmp_path, name, damage):
    data = damage(PACKERS[name](b"id\x01text\n" + os.urandom(3_000_000)))
    with pytest.raises(DataError, match=rf"/t: the {name} archive is broken or cut short \(.+\); copy the file again"):
        content(tmp_path / "t", data)


def test_broken_parquet_is_named(tmp_path):
    with pytest.raises(DataError, match=r"/t: cannot be read \(.*[Pp]arquet.*\)"):
        opened(tmp_path / "t", b"PAR1" + b"x" * 50)


def test_absent_file_is_named(tmp_path):
    file = opened(tmp_path / "t", TABLE)
    file.path.unlink()
    with pytest.raises(DataError, match=r"/t: cannot be read \(No such file or directory\)"):
        file.open()
    with pytest.raises(DataError, match=r"/t: cannot be read \(No such file or directory\)"):
        open_table(file.path, tmp_path, Dialect.of("\x01"), None)


def test_position_on_disk_runs_with_the_content(tmp_path):
    data = gzip.compress(b"id\x01text\n" + b"x" * 9_000_000)
    with opened(tmp_path / "t", data).open() as stream:
        n_bytes = len(stream.read())
        assert stream.disk_position(n_bytes) == len(data)
        assert stream.disk_position(n_bytes // 2) == pytest.approx(len(data) / 2, rel=0.01)


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b"\n" * 3_000_000])
@pytest.mark.parametrize("pack", [bytes, *PACKERS.values()])
@pytest.mark.parametrize("column_names", [None, ["id"]])
def test_file_of_nothing_but_line_ends_is_empty(tmp_path, data, pack, column_names):
    assert opened(tmp_path / "t", pack(data), column_names) is None


def test_names_of_columns_are_given_for_text_without_a_header_line(tmp_path):
    assert opened(tmp_path / "t", b"1\x01a\n", ["id", "text"]).columns == ("id", "text")


def test_bom_is_no_part_of_the_first_name(tmp_path):
    assert opened(tmp_path / "t", b"\xef\xbb\xbf" + TABLE).columns == ("id", "text")


def test_header_that_names_a_column_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"t:1: column id occurs twice; rename one"):
        opened(tmp_path / "t", b"id\x01id\n")
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["id", "id"]), tmp_path / "p")
    with pytest.raises(DataError, match=r"p: column id occurs twice; rename one"):
        open_table(tmp_path / "p", tmp_path, Dialect.of("\x01"), None)


def test_folders_give_columns_unescaped_and_null(tmp_path):
    path = (
        tmp_path / "dt=2026-01-01" / "plain" / "city=a%2Fb%20%E5%8C%97=c" / "x=__HIVE_DEFAULT_PARTITION__" / "y=" / "=z" / "k=v"
    )
    file = opened(path, TABLE, root=tmp_path)
    assert file.partitions == (("dt", "2026-01-01"), ("city", "a/b 北=c"), ("x", None), ("y", ""))
    assert file.name == path.relative_to(tmp_path).as_posix()
    assert file.all_columns == ("id", "text", "dt", "city", "x", "y")


def test_folder_above_input_dir_gives_no_column(tmp_path):
    assert opened(tmp_path / "dt=1" / "t", TABLE).partitions == ()


@pytest.mark.parametrize("name", ["dt=%FF/t", os.fsdecode(b"dt=\xff/t")])
def test_folder_that_is_not_utf8_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="its name or a folder's is not UTF-8; rename it") as caught:
        opened(tmp_path / name, TABLE, root=tmp_path)
    str(caught.value).encode()


# ---------------------------------------------------------------- Parquet as text


def of_schema(path):
    """[(name, type)] of a Parquet file."""
    schema = columnar_schema(path, TableKind.PARQUET)
    return list(zip(schema.names, schema.types, strict=True))


def text_batches(path, names):
    places = [columnar_schema(path, TableKind.PARQUET).names.index(name) for name in names]
    for batch in columnar_batches(path, TableKind.PARQUET, places):
        yield pa.table({name: as_text(path, name, cells) for name, cells in zip(names, batch.columns, strict=True)})


def test_parquet_columns_come_as_text(tmp_path):
    columns = {
        "int": pa.array([1, None]), "float": pa.array([0.1, -2.0]), "bool": pa.array([True, False]),
        "date": pa.array([0, 1], pa.date32()), "time": pa.array([0, 1_500_000], pa.timestamp("us")),
        "decimal": pa.array([1, 2]).cast(pa.decimal128(21, 2)), "binary": pa.array([b"a", "北".encode()]),
        "dictionary": pa.array(["x", "y"]).dictionary_encode(), "large": pa.array(["p", None], pa.large_string()),
        "nothing": pa.nulls(2), "a.b": pa.array(["dot", ""]), "a": pa.array(["no dot", "\\N"]),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "t")
    refuse_columns_without_text(tmp_path / "t", of_schema(tmp_path / "t"))
    [batch] = text_batches(tmp_path / "t", list(columns))
    assert set(batch.schema.types) == {pa.string()}
    assert batch.to_pydict() == {
        "int": ["1", None], "float": ["0.1", "-2"], "bool": ["true", "false"], "date": ["1970-01-01", "1970-01-02"],
        "time": ["1970-01-01 00:00:00.000000", "1970-01-01 00:00:01.500000"], "decimal": ["1.00", "2.00"],
        "binary": ["a", "北"], "dictionary": ["x", "y"], "large": ["p", None], "nothing": [None, None],
        "a.b": ["dot", ""], "a": ["no dot", "\\N"],
    }  # fmt: skip
    [batch] = text_batches(tmp_path / "t", ["a"])
    assert batch.to_pydict() == {"a": ["no dot", "\\N"]}


TENSOR = pa.fixed_shape_tensor(pa.int8(), [1])


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([[1]]), "list<"),
        (pa.array([{"a": 1}]), "struct<"),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())), "map<"),
        (pa.ExtensionArray.from_storage(TENSOR, pa.array([[1]], TENSOR.storage_type)), "extension<arrow.fixed_shape_tensor"),
    ],
)
def test_parquet_column_without_a_text_form_is_named(tmp_path, column, kind):
    pq.write_table(pa.table({"x": column, "y": ["fine"]}), tmp_path / "t")
    refuse_columns_without_text(tmp_path / "t", of_schema(tmp_path / "t")[1:])
    with pytest.raises(DataError, match=rf"t: column 'x' is {kind}.*, which has no text form; leave it out of output_columns"):
        refuse_columns_without_text(tmp_path / "t", of_schema(tmp_path / "t"))


def test_linked_folders_are_entered_once_and_loops_are_not(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").touch()
    home = tmp_path / "in"
    (home / "own").mkdir(parents=True)
    (home / "own" / "b").touch()
    (home / "dt=1").symlink_to(tmp_path / "real")
    (home / "twice").symlink_to(tmp_path / "real")
    (home / "inside").symlink_to(home / "own")
    (tmp_path / "real" / "loop").symlink_to(home)
    assert find_tables(home, "*")[0] == [home / "dt=1" / "a", home / "own" / "b"]
