"""Delimiters, quotes, headers and what spreadsheets leave behind: found and said, or refused with the line."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handful.data.tables import read_table, stream_table
from handful.errors import ConfigError, DataError

ROWS = [("why did the price go up", "billing"), ("my parcel never came", "delivery"), ("I cannot sign in", "login")]


def write(path, content: str | bytes):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def joined(delimiter: str, rows=ROWS, header=("text", "label"), end="\n") -> str:
    return "".join(delimiter.join(row) + end for row in (header, *rows))


def refused(path, message: str, **options):
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_table(path, **options)


def cells(path, **options) -> list[tuple]:
    return [tuple(row.values()) for row in read_table(path, **options).rows]


@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.txt"])
@pytest.mark.parametrize(("delimiter", "called"), [(",", "comma"), (";", "semicolon"), ("\t", "tab"), ("|", "pipe")])
def test_the_delimiter_is_found_and_said(tmp_path, name, delimiter, called):
    table = read_table(write(tmp_path / name, joined(delimiter)))
    assert [tuple(row.values()) for row in table.rows] == ROWS
    usual = {"data.csv": ","}.get(name, "\t")
    said = (
        [] if delimiter == usual else [f"{name}: the delimiter is {delimiter!r} ({called}), which cuts every record "]
    )
    assert [note[: len(want)] for note, want in zip(table.notes, said, strict=True)] == said


def test_commas_in_texts_do_not_count_against_semicolons(tmp_path):
    rows = [(text.replace(" ", ", ", 1), label) for text, label in ROWS]
    assert cells(write(tmp_path / "data.csv", joined(";", rows))) == rows


def test_decimal_commas_stay_in_their_cells(tmp_path):
    path = write(tmp_path / "data.csv", "text;score\ngood;1,5\nbad;0,5\n")
    assert cells(path) == [("good", "1,5"), ("bad", "0,5")]


def test_delimiters_inside_quotes_do_not_count(tmp_path):
    content = '"text; long";"the label"\n"a; b, c";x\n"d; e, f";y\n'
    assert cells(write(tmp_path / "data.csv", content)) == [("a; b, c", "x"), ("d; e, f", "y")]


def test_two_delimiters_that_fit_are_a_question(tmp_path):
    path = write(tmp_path / "data.csv", "text,a;label,b\ngood,1;x,2\nbad,3;y,4\n")
    refused(path, r"cannot tell the delimiter: ',' \(comma\) and ';' \(semicolon\).*--delimiter comma\|semicolon")
    assert read_table(path, delimiter=";").columns == ("text,a", "label,b")
    assert read_table(path, delimiter="comma").columns == ("text", "a;label", "b")


def test_a_named_delimiter_wins(tmp_path):
    path = write(tmp_path / "data.csv", joined("^"))
    assert cells(path, delimiter="^") == ROWS
    assert cells(write(tmp_path / "tab.csv", joined("\t")), delimiter="\\t") == ROWS
    for wrong in ("", ",,", '"', "\n", "a", "\0", "commma"):
        with pytest.raises(ConfigError, match="delimiter: expected one character"):
            read_table(path, delimiter=wrong)
    for name, content in (("a.jsonl", '{"text": "a"}'), ("a.parquet", "x")):
        with pytest.raises(ConfigError, match=r"delimiter: .* has none"):
            read_table(write(tmp_path / name, content), delimiter=";")


def test_excel_says_its_delimiter_in_the_first_line(tmp_path):
    table = read_table(write(tmp_path / "data.csv", "sep=;\r\n" + joined(";", end="\r\n")))
    assert ([tuple(row.values()) for row in table.rows], table.lines) == (ROWS, [3, 4, 5])
    assert "the first line says so" in table.notes[0]


@pytest.mark.parametrize("column", [0, 1])
def test_quotes_between_tabs_are_letters(tmp_path, column):
    """The kind that lost 16 of 80 rows: a text that begins with a quote, and one that ends with one further down."""
    rows = [*ROWS[:1], ('"best shop', "praise"), *ROWS, ('all solved"', "praise")]
    table = read_table(write(tmp_path / "data.tsv", joined("\t", [row[:: 1 - 2 * column] for row in rows])))
    assert [tuple(row.values())[:: 1 - 2 * column] for row in table.rows] == rows
    assert table.notes == (
        "data.tsv: double quotes are read as part of the texts: 1 of 1 cell(s) that begin with one do not end with one",
    )


def test_quotes_in_one_column_without_tabs_are_letters(tmp_path):
    path = write(tmp_path / "in.tsv", 'text\n"hello there\nsecond row\nthird row"\nfourth\n')
    assert [row["text"] for row in read_table(path).rows] == ['"hello there', "second row", 'third row"', "fourth"]


def test_a_quoted_tsv_is_unquoted(tmp_path):
    rows = [('say "hi"', "a"), ("two\nlines", "b"), ("a\ttab", "c"), ("plain", "d")]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        file = io.StringIO(newline="")
        csv.writer(file, delimiter="\t", quoting=quoting, lineterminator="\n").writerows([("text", "label"), *rows])
        assert cells(write(tmp_path / "data.tsv", file.getvalue())) == rows


@pytest.mark.parametrize("columns", [("text", "label"), ("label", "text")])
def test_a_quote_that_swallows_rows_is_named(tmp_path, columns):
    rows = [ROWS[0], ('"best shop', "praise"), *ROWS, ('all solved"', "praise"), *ROWS]
    lines = [",".join(row if columns[0] == "text" else row[::-1]) for row in rows]
    path = write(tmp_path / "data.csv", ",".join(columns) + "\n" + "\n".join(lines) + "\n")
    refused(path, r"data\.csv:3: a cell in double quotes goes on over 5 lines that look like rows of their own")


@pytest.mark.parametrize("content", ['text,label\n"a,x\nb",y\nc,x\n', 'label,text\nx,"a\ny,b"\ny,c\n'])
def test_a_quote_that_swallows_one_row_is_named(tmp_path, content):
    refused(write(tmp_path / "data.csv", content), r"data\.csv:2: a cell in double quotes goes on over 2 lines")


def test_a_quote_that_swallows_rows_of_numbers_is_named(tmp_path):
    path = write(tmp_path / "data.csv", 'text,score\na,1.5\n"b,2.5\nc,3.5\nd",4.5\ne,5.5\n')
    refused(path, r"data\.csv:3: a cell in double quotes goes on over 3 lines")


swallowed = st.lists(
    st.tuples(st.text("abc ", min_size=1, max_size=8).map(str.strip).filter(bool), st.sampled_from(["x", "y"])),
    min_size=4,
    max_size=20,
)


@given(swallowed, st.sampled_from([",", ";", "\t"]), st.booleans(), st.data())
def test_no_row_is_swallowed_without_a_word(tmp_path_factory, rows, delimiter, label_first, data):
    """A text that begins with a quote, and one further down that ends with one."""
    first = data.draw(st.integers(0, len(rows) - 2))
    last = data.draw(st.integers(first + 1, len(rows) - 1))
    rows = [('"' * (row == first) + text + '"' * (row == last), label) for row, (text, label) in enumerate(rows)]
    path = tmp_path_factory.getbasetemp() / "swallowed.csv"
    order = -1 if label_first else 1
    write(path, joined(delimiter, [row[::order] for row in rows], ("text", "label")[::order]))
    try:
        table = read_table(path)
    except DataError:
        return
    assert len(table.rows) == len(rows) or any("line breaks" in note for note in table.notes)


def test_texts_with_line_breaks_are_read_and_said(tmp_path):
    letter = '"Dear Sir,\nthe parcel, which I paid,\n\nnever came"'
    table = read_table(write(tmp_path / "data.csv", joined(",", [*ROWS, (letter, "delivery")])))
    assert table.rows[3] == {"text": letter.strip('"'), "label": "delivery"}
    assert table.notes == ("data.csv: 1 row(s) have a cell with line breaks (line 5)",)


@given(st.lists(st.tuples(st.text('ab,\n"\r ', max_size=6), st.sampled_from(["ab", "ba", "a", "b"])), min_size=1))
def test_what_csv_quotes_is_read_or_refused_but_never_cut(tmp_path_factory, rows):
    rows = [(text + ".", label) for text, label in rows]
    path = tmp_path_factory.mktemp("quoted") / "data.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    try:
        found = cells(path)
    except DataError as error:
        found = rows if "look like rows of their own" in error.message else [error]
    assert found == rows


def test_unnamed_empty_columns_are_left_out_and_said(tmp_path):
    table = read_table(
        write(tmp_path / "data.csv", joined(",", [(*row, "", "") for row in ROWS], ("text", "label", "", "")))
    )
    assert (table.columns, table.rows[0]) == (("text", "label"), dict(zip(("text", "label"), ROWS[0], strict=True)))
    assert table.notes == ("data.csv: columns 3, 4 are empty and left out",)


def test_cells_beyond_the_header_that_are_empty_are_left_out_and_said(tmp_path):
    table = read_table(write(tmp_path / "data.csv", joined(",", [(*row, "") for row in ROWS])))
    assert [tuple(row.values()) for row in table.rows] == ROWS
    assert table.notes == ("data.csv: 3 row(s) end with more empty cells than the header has, which are left out",)


def test_rows_may_be_shorter_by_unnamed_columns(tmp_path):
    assert cells(write(tmp_path / "data.csv", joined(",", ROWS, ("text", "label", "", "")))) == ROWS


@pytest.mark.parametrize("first", ["", "Unnamed: 0"])
def test_the_index_of_a_data_frame_is_left_out_and_said(tmp_path, first):
    rows = [(str(7 * i), *row) for i, row in enumerate(ROWS)]
    table = read_table(write(tmp_path / "data.csv", joined(",", rows, (first, "text", "label"))))
    assert table.columns == ("text", "label")
    assert table.notes == ("data.csv: column 1 is an index without a name and left out",)


def test_an_unnamed_column_with_texts_gets_a_name(tmp_path):
    table = read_table(write(tmp_path / "data.csv", joined(",", [("x", *row) for row in ROWS], ("", "text", "label"))))
    assert table.columns == ("column 1", "text", "label")
    assert table.notes == ("data.csv: column 1 has no name and is called 'column 1'",)


def test_blank_rows_and_repeated_headers_are_left_out_and_said(tmp_path):
    content = "\n,\ntext,label\na,x\n,\n  , \n\ntext,label\nb,y\n,\n,\n,\n"
    table = read_table(write(tmp_path / "data.csv", content))
    assert (cells(tmp_path / "data.csv"), table.lines) == ([("a", "x"), ("b", "y")], [4, 9])
    assert table.notes == (
        "data.csv: 8 blank row(s) left out (line 1, 2, 5, 6, 7 and 3 more)",
        "data.csv: the header is repeated on line 8, which is left out",
    )


def test_invisible_characters_around_names(tmp_path):
    content = "\ufeff\ufefftext\u200b,\u00a0label \na,x\n\ufefftext,label\nb,y\n"
    table = read_table(write(tmp_path / "data.csv", content))
    assert (table.columns, table.lines) == (("text", "label"), [2, 4])


def test_files_of_other_kinds_are_named(tmp_path):
    kinds = {
        b"\x1f\x8b\x08": "gzip",
        b"PK\3\4": "Excel",
        b"PAR1": "Parquet",
        b"%PDF-1.7": "PDF",
        b"\xd0\xcf\x11\xe0": "old",
    }
    for mark, kind in kinds.items():
        refused(write(tmp_path / "data.csv", mark + b"\0\0"), f"expected a text file, found .*{kind}")


def test_repeated_names(tmp_path):
    def read(header, *rows):
        return read_table(write(tmp_path / "data.csv", joined(",", rows, header)))

    empty = read(("text", "label", "note", "note"), ("a", "x", "", ""), ("b", "y", "n", ""))
    assert empty.columns == ("text", "label", "note")
    assert empty.notes == ("data.csv: column 4 is empty (named 'note' like others) and left out",)
    unused = read(("text", "label", "note", "note"), ("a", "x", "m", "n"))
    assert (unused.columns, unused.unread) == (("text", "label"), {"note": (3, 4)})
    assert unused.notes == ("data.csv: columns 3 and 4 are all named 'note', so none of them is read",)
    with pytest.raises(DataError, match=r"data\.csv:1: the header names 'label' more than once \(columns 2 and 3\)"):
        read(("text", "label", "label"), ("a", "x", "x"))
    assert read(("text", "label", "label"), ("a", "", "x")).rows == [{"text": "a", "label": "x"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("good,pos\nbad,neg\nfine,pos\nnice,pos\n", r"data\.csv:1: expected a header, found a row of data \('pos' is"),
        ("good,5\nbad,1\nfine,5\nnice,5\n", r"expected a header, found a row of data \('5' is a value of column 2"),
        ("good,1.5\nbad,2.5\n", r"expected a header, found a row of data \('1\.5'.*\n\nhint: .*text,label"),
    ],
)
def test_a_missing_header_is_refused(tmp_path, content, message):
    refused(write(tmp_path / "data.csv", content), message)


@pytest.mark.parametrize("content", ["0,1\na,x\nb,y\n", "comment,spam\na,ham\nb,spam\n", "text,spam\na,spam\nb,spam\n"])
def test_headers_that_are_values_by_chance_are_headers(tmp_path, content):
    assert len(read_table(write(tmp_path / "data.csv", content)).rows) == 2


def test_ragged_rows_are_named_with_advice(tmp_path):
    refused(write(tmp_path / "a.csv", "text,label\na, b,x\n"), r"a\.csv:2: expected 2 cells .*found 3.*contain ','")
    refused(write(tmp_path / "b.csv", "text,label\na\n"), r"b\.csv:2: .*found 1.*complete the row")
    refused(write(tmp_path / "c.csv", "Export of May\nbody,topic x\na,x\n"), r"c\.csv:2: .*a title above the header")
    refused(write(tmp_path / "d.csv", "text,label\na,x\rb,y\n"), r"d\.csv:2: .*found 3.*a carriage return")


@pytest.mark.parametrize("title", ["Export of May", "Export of May;", "# made by a program", "\n\nExport\n"])
def test_a_title_above_the_header_is_left_out_and_said(tmp_path, title):
    table = read_table(write(tmp_path / "data.csv", title + "\n" + joined(";")))
    assert [tuple(row.values()) for row in table.rows] == ROWS
    assert any("is read as a title, the header is on line" in note for note in table.notes)


def test_spaces_before_quoted_cells_are_left_out_and_said(tmp_path):
    table = read_table(write(tmp_path / "data.csv", 'text, label\na, "x, y"\n"b, c", "z"\n'))
    assert [tuple(row.values()) for row in table.rows] == [("a", "x, y"), ("b, c", "z")]
    assert table.notes == ("data.csv: spaces before cells are left out, as cells in double quotes follow them",)
    assert cells(write(tmp_path / "data.csv", 'text,label\n"Hello, ""you""",x\n')) == [('Hello, "you"', "x")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("name", ["data.csv", "data.tsv"])
def test_line_ends(tmp_path, name, end):
    path = write(tmp_path / name, joined("," if name == "data.csv" else "\t", end=end))
    assert (cells(path), read_table(path).lines) == (ROWS, [2, 3, 4])


def test_a_lone_carriage_return_is_part_of_a_text(tmp_path):
    for name, content in (
        ("a.csv", 'text,label\na\rb,x\n"c\rd",y\r\n'),
        ("a.tsv", "text\tlabel\na\rb\tx\nc\rd\ty\r\n"),
    ):
        assert cells(write(tmp_path / name, content)) == [("a\rb", "x"), ("c\rd", "y")]


def test_a_text_file_is_one_text_per_line(tmp_path):
    table = read_table(write(tmp_path / "new.txt", 'Hello, world\n"quoted"\n\na\ttab\n'))
    assert (table.columns, table.lines) == (("text",), [1, 2, 4])
    assert [row["text"] for row in table.rows] == ["Hello, world", '"quoted"', "a\ttab"]
    assert table.notes[0] == "new.txt: every line is read as a text, there is no header"
    assert cells(write(tmp_path / "headed.txt", "text\nHello, world\n")) == [("Hello, world",)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_wide_headers_are_read_in_linear_time(tmp_path, suffix):
    delimiter = "," if suffix == ".csv" else "\t"
    names = [f"c{i // 2}" for i in range(40_000)]  # each twice
    path = write(tmp_path / f"wide{suffix}", delimiter.join(names) + "\n" + delimiter.join(["x", ""] * 20_000) + "\n")
    assert len(read_table(path).columns) == 20_000


def test_a_stream_yields_what_a_table_holds(tmp_path):
    for name, content in (("a.csv", joined(";") + "\n;\n"), ("a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n')):
        path = write(tmp_path / name, content)
        stream, table = stream_table(path), read_table(path)
        assert list(stream) == list(stream) == list(zip(table.lines, table.rows, strict=True))
        assert (stream.columns, stream.notes, stream.name) == (table.columns, table.notes, table.name)
        assert stream.where(7) == f"{path}:7"
