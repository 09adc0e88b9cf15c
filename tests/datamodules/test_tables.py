"""Tables as people save them: other delimiters, other encodings, no tables at all."""

import pandas as pd
import pytest

from datamodules.manifest import read_table

ROWS = pd.DataFrame({"path": ["a,1.png", "b;2.png"], "label": ["NA", ""], "the, note": ["x", "y"]})


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_the_header_says_the_delimiter(delimiter, encoding, tmp_path):
    ROWS.to_csv(tmp_path / "t.csv", index=False, sep=delimiter, encoding=encoding)
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.csv"), ROWS)


def test_one_column_needs_none(tmp_path):
    (tmp_path / "t.csv").write_text("path\na.png\n")
    assert read_table(tmp_path / "t.csv")["path"].tolist() == ["a.png"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "path,label\na.png,gr\u00fcn\n".encode("latin-1"), "no table in UTF-8: 'utf-8'"),
        ("t.csv", b"", "no table: No columns"),
        ("t.csv", b"\x89PNG\r\n\x1a\n\0\0", "no table in UTF-8: 'utf-8'"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", "no table: Error tokenizing data"),
        ("t.parquet", b"path,label\n", "no table: "),
    ],
)
def test_what_is_no_table_is_named(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: {words}"):
        read_table(tmp_path / name)
