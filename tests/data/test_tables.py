"""Tables as they are: how they are written is found out, and what they hold is not changed."""

import bz2
import gzip
import io
import lzma
import os
import sys
import zipfile

import numpy as np
import pytest

import nnbackend as nn
from nnbackend import datasets
from nnbackend.data.layout import Layout
from nnbackend.data.preparation import Preparation
from nnbackend.data.tables import Table, is_header

NUMBERS = [[1.5, 2.0], [-2.5, 3.25], [10.0, 4.0]]


def read(tmp_path, content: str | bytes, name: str = "data.csv", **settings) -> datasets.Dataset:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return datasets.read(path, **settings)


class TestLayouts:
    @pytest.mark.parametrize(
        "content",
        [
            "a,b,kind\n1.5,2,x\n-2.5,3.25,y\n10,4,x\n",
            "a;b;kind\n1,5;2;x\n-2,5;3,25;y\n10;4;x\n",
            "sep=;\na;b;kind\n1.5;2;x\n-2.5;3.25;y\n10;4;x\n",
            "a|b|kind\n1.5|2|x\n-2.5|3.25|y\n10|4|x\n",
            "a\tb\tkind\n1.5\t2\tx\n-2.5\t3.25\ty\n10\t4\tx\n",
            "a b kind\n1.5 2 x\n-2.5 3.25 y\n10 4 x\n",
            "  a      b kind\n 1.5   2.0    x\n-2.5  3.25    y\n10.0   4.0    x\n",
            "# made, by; hand\n#, , ,\na,b,kind\n1.5,2,x\n-2.5,3.25,y\n# here too\n10,4,x\n",
            "a,b,kind,\n1.5,2,x,\n-2.5,3.25,y,\n10,4,x,\n",
            "a,b,kind\r\n1.5,2,x\r\n-2.5,3.25,y\r\n\r\n10,4,x\r\n",
            '"a","b","kind"\n"1.5","2","x"\n"-2.5","3.25","y"\n"10","4","x"\n',
            "a , b , kind\n1.5 , 2 , x\n-2.5 , 3.25 , y\n10 , 4 , x\n",
        ],
        ids=lambda text: text[:12],
    )
    def test_are_found_out(self, tmp_path, content) -> None:
        data = read(tmp_path, content)
        np.testing.assert_array_equal(data.x, NUMBERS)
        assert (data.feature_names, data.class_names) == (("a", "b"), ("x", "y"))
        np.testing.assert_array_equal(data.y, [0, 1, 0])

    def test_separators_within_quotes_are_text(self, tmp_path) -> None:
        text = 'a,kind\n1,"x;y;z;w"\n2,"p;q, r"\n3,"two\nlines"\n4,"say ""so"""\n'
        data = read(tmp_path, text)
        assert data.class_names == ("p;q, r", 'say "so"', "two\nlines", "x;y;z;w")

    def test_a_line_of_names_may_begin_with_a_hash(self, tmp_path) -> None:
        data = read(tmp_path, "##made 2024\n#a\tb\tkind\n1\t2\tx\n3\t5\ty\n")
        np.testing.assert_array_equal(data.x, [[1, 2], [3, 5]])
        assert data.feature_names == ("#a", "b")

    def test_names_of_files_are_no_patterns(self, tmp_path) -> None:
        read(tmp_path, "a,y\n7,x\n8,y\n", "data1.csv")
        data = read(
            tmp_path, "a,y\n1,x\n2,y\n", "data[1].csv" if os.name == "nt" else "data[1]*?.csv"
        )
        np.testing.assert_array_equal(data.x, [[1], [2]])

    def test_marks_of_thousands(self, tmp_path) -> None:
        english = read(tmp_path, 'a,y\n"1,000.5",0\n"12,345",1\n7.5,0\n')
        german = read(tmp_path, "a;y\n1.000,5;0\n12.345,0;1\n7,5;0\n")
        for data in (english, german):
            np.testing.assert_array_equal(data.x, [[1000.5], [12345], [7.5]])

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-be"])
    def test_encodings(self, tmp_path, encoding) -> None:
        text = "größe,kind\n1.5,Öl\n2.5,Süß\n"
        if encoding == "utf-16-be":
            text = "\ufeff" + text
        data = read(tmp_path, text.encode(encoding))
        assert (data.feature_names, data.class_names) == (("größe",), ("Süß", "Öl"))

    @pytest.mark.parametrize("suffix", [".csv.gz", ".CSV.GZ", ".tsv.bz2", ".txt.xz", ".CSV"])
    def test_compressed_and_in_upper_case(self, tmp_path, suffix) -> None:
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
        packed = pack.get(suffix.lower().rpartition(".")[2], bytes)(b"a,kind\n36,x\n5,y\n")
        data = read(tmp_path, packed, f"data{suffix}")
        np.testing.assert_array_equal(data.x, [[36], [5]])

    def test_an_archive_of_one_file(self, tmp_path) -> None:
        with zipfile.ZipFile(tmp_path / "a.csv.zip", "w") as archive:
            archive.writestr("a.csv", "a,kind\n1,x\n2,y\n")
        assert datasets.read(tmp_path / "a.csv.zip").class_names == ("x", "y")
        with zipfile.ZipFile(tmp_path / "a.csv.zip", "a") as archive:
            archive.writestr("b.csv", "")
        with pytest.raises(nn.DataError, match="must hold one file; it holds 2"):
            datasets.read(tmp_path / "a.csv.zip")

    @pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zip"])
    def test_damaged_archives_are_named(self, tmp_path, suffix) -> None:
        with pytest.raises(nn.DataError, match=f"data.csv{suffix}"):
            read(tmp_path, b"no archive at all", f"data.csv{suffix}")

    def test_standard_input(self, tmp_path, monkeypatch) -> None:
        stream = io.TextIOWrapper(io.BytesIO(b"a;kind\n1,5;x\n2;y\n"))
        monkeypatch.setattr(sys, "stdin", stream)
        data = datasets.read("-")
        np.testing.assert_array_equal(data.x, [[1.5], [2]])

    @pytest.mark.parametrize(
        ("content", "settings", "x"),
        [
            ("1,5 2,5 0\n3,5 4,5 1\n", {"sep": " ", "decimal": ","}, [[1.5, 2.5], [3.5, 4.5]]),
            ("1;2;0\n3;4;1\n5;6;0\n", {"header": True}, [[3, 4], [5, 6]]),
            ("a,b,c\n", {"header": False, "features": []}, None),
            ("a~b\n1~2\n3~4\n", {"sep": "~"}, [[1], [3]]),
        ],
    )
    def test_are_taken_as_said(self, tmp_path, content, settings, x) -> None:
        if x is not None:
            np.testing.assert_array_equal(read(tmp_path, content, **settings).x, x)

    def test_without_duckdb_the_extra_is_named(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "duckdb", None)
        with pytest.raises(ImportError, match=r'pip install "nnbackend\[tables\]"'):
            read(tmp_path, "a,b\n1,2\n")


class TestMarks:
    """One file may show what another leaves open: whether 1,200 is more than a thousand."""

    def table(self, sep: str, *columns: list[str]) -> str:
        names = [chr(97 + k) for k in range(len(columns))]
        rows = zip(*columns, ["x", "y"] * (len(columns[0]) // 2), strict=True)
        return "\n".join(sep.join(row) for row in [(*names, "kind"), *rows]) + "\n"

    @pytest.mark.parametrize(
        ("sep", "columns", "first"),
        [
            ("\t", (["0.5", "0.25"], ["20,000", "20,997"]), [0.5, 20000]),
            ("|", (["950", "1,200"], ["7", "8"]), [950, 7]),
            ("\t", (["1,234,567", "2,000,000"],), [1234567]),
            ("\t", (["1,234.5", "2,000.5"],), [1234.5]),
            (";", (["0,5", "1,5"], ["1.234", "2.345"]), [0.5, 1234]),
            (";", (["0,950", "1,200"],), [0.95]),
            (";", (["1.234,5", "2"],), [1234.5]),
            (";", (["1.625.988.325", "1.625.996.244"], ["-1.536", "-1.537"]), [1625988325, -1536]),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_are_found_from_all_columns(self, tmp_path, sep, columns, first) -> None:
        text = self.table(sep, *(10 * column for column in columns))
        data = read(tmp_path, text)
        for column, found, expected in zip(data.preparation.columns, data.x[0], first, strict=True):
            assert column.kind == "number"
            assert found + column.offset == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("other", ["10.0.1.1", "1.5"])
    def test_text_with_dots_is_no_number_beside_commas(self, tmp_path, other) -> None:
        text = self.table(";", 10 * ["0,5", "1,5"], 10 * [other, "2" + other[1:]])
        data = read(tmp_path, text)
        assert [column.kind for column in data.preparation.columns] == ["number", "category"]

    def test_what_only_seems_to_be_marked_is_named(self, tmp_path) -> None:
        text = self.table(",", ['"1,200"', '"2,300"'] * 20, [str(k) for k in range(40)])
        with pytest.raises(nn.DataError, match="line 42, column 'b': a number .* found '1,5'"):
            read(tmp_path, text + '"1,000","1,5",x\n')

    @pytest.mark.parametrize(
        ("sep", "columns", "row", "expected"),
        [
            ("\t", (["900,000", "909,973"], ["0.1", "0.2"]), "900,500\t0.5", [900500, 0.5]),
            (";", (["0,5", "1,5"], ["45.678", "46.678"]), "2;45.678", [2, 45678]),
        ],
    )
    def test_are_remembered_for_files_that_do_not_show_them(
        self, tmp_path, sep, columns, row, expected
    ) -> None:
        data = read(tmp_path, self.table(sep, *(10 * column for column in columns)))
        again = Preparation.from_plain(data.preparation.plain())
        found = read(tmp_path, f"a{sep}b\n{row}\n", preparation=again)
        np.testing.assert_allclose(found.x, [expected], rtol=1e-6)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a;b\n1.5;2.25\n", [1.5, 2.25]),
            ("a,b\n1.5,2.25\n", [1.5, 2.25]),
            ("a\tb\n1,5\t2,25\n", [1.5, 2.25]),
            ("a;b\n1.500;2\n", [1500, 2]),
        ],
    )
    @pytest.mark.parametrize("trained", [",", "."])
    def test_of_the_file_itself_come_before_those_that_are_remembered(
        self, tmp_path, text, expected, trained
    ) -> None:
        columns = (10 * [f"0{trained}5", f"1{trained}5"], 10 * ["3", "4"])
        data = read(tmp_path, self.table(";", *columns))
        if trained == "." and "1.500" in text:
            expected = [1.5, 2]
        found = read(tmp_path, text, preparation=data.preparation)
        np.testing.assert_allclose(found.x, [expected])

    @pytest.mark.parametrize("last", ["oops", "1,5", "1,23,456", "inf", "1_000"])
    def test_text_far_down_among_marked_numbers_is_named(self, tmp_path, last) -> None:
        rows = "".join(f'"{k + 1000:,}",{k % 2}\n' for k in range(1000))
        with pytest.raises(nn.DataError, match=f"line 1002, column 'a'.*found '{last}'"):
            read(tmp_path, "a,y\n" + rows + f'"{last}",1\n')

    def test_a_dot_where_commas_were_asked_for_is_explained(self, tmp_path) -> None:
        with pytest.raises(nn.DataError, match="decimals have a comma in this file; found '1.5'"):
            read(tmp_path, "a;y\n1.5;0\n2,5;1\n", decimal=",", features=["a"])


class TestHashes:
    """A line that begins with # is a comment before and among rows of numbers."""

    def rows(self, first: list[str]) -> str:
        return "a,b,kind\n" + "".join(
            f"{value},{k % 7},{'xy'[k % 2]}\n" for k, value in enumerate(first)
        )

    @pytest.mark.parametrize("at", [0, 1, 25, 49])
    def test_a_row_that_is_commented_out_takes_no_other_with_it(self, tmp_path, at) -> None:
        first = [str(k % 11) for k in range(50)]
        first[at] = "#" + first[at]
        data = read(tmp_path, self.rows(first))
        assert data.x.shape == (49, 2)
        assert data.feature_names == ("a", "b")

    @pytest.mark.parametrize("first", ["", "NA", "0,5", '"1,234"'])
    def test_a_row_of_numbers_may_begin_with_none_or_have_marks(self, tmp_path, first) -> None:
        rows = "".join(
            f"{first if k % 5 == 0 else f'{k},5'};{k % 7};{'xy'[k % 2]}\n" for k in range(20)
        )
        data = read(tmp_path, "a;b;kind\n" + rows + "#3,5;1;x\n")
        assert len(data.x) == 20
        assert data.preparation.columns[0].kind == "number"

    @pytest.mark.parametrize("first", [["#ff00aa", "#00ff00"] * 20, ["other", "#sale"] * 20])
    def test_text_may_begin_with_one(self, tmp_path, first) -> None:
        data = read(tmp_path, self.rows(first))
        assert len(data.x) == 40
        assert data.preparation.columns[0].values == tuple(sorted({*first}))

    def test_elsewhere_in_a_row_it_is_text(self, tmp_path) -> None:
        rows = "".join(f"{k % 6},Apt #{k % 3},{['c', 'c#'][k % 2]}\n" for k in range(20))
        data = read(tmp_path, "# exported 2024\nn,address,language\n" + rows)
        assert data.class_names == ("c", "c#")
        assert data.preparation.columns[1].values == ("Apt #0", "Apt #1", "Apt #2")

    @pytest.mark.parametrize("before", ["", "# exported 2024\n", "\ufeff# exported 2024\n"])
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_comments_go_with_every_end_of_a_line(self, tmp_path, before, end) -> None:
        text = before + "a,b,kind\n1.5,2,x\n# here\n-2.5,3.25,y\n10,4,x\n"
        data = read(tmp_path, text.replace("\n", end))
        np.testing.assert_array_equal(data.x, NUMBERS)

    @pytest.mark.parametrize("before", ["", "# exported 2024\n", "\ufeff# exported 2024\n"])
    def test_rows_of_text_stay_below_a_comment(self, tmp_path, before) -> None:
        rows = "".join(
            f'{["#f00", "red"][k % 2]},"{1 + k % 3},{200 + k}",{k % 2}\n' for k in range(20)
        )
        data = read(tmp_path, before + "colour,price,y\n" + rows)
        assert len(data.x) == 20
        assert data.preparation.columns[0].values == ("#f00", "red")
        assert data.feature_names == ("colour", "price")


class TestSeveralLines:
    """A quoted field may go over several lines."""

    def test_a_name_of_two_lines_is_no_preamble(self, tmp_path) -> None:
        rows = "".join(f"{k % 7}.5,{'abc'[k % 3]},{k % 2}\n" for k in range(20))
        data = read(tmp_path, '"Size\n(cm)",town,y\n' + rows)
        assert (len(data.x), data.feature_names) == (20, ("Size\n(cm)", "town"))

    @pytest.mark.parametrize("sep", [",", ";", "\t", "|"])
    @pytest.mark.parametrize("rows", [100, 239, 299, 300, 301, 400])
    def test_the_separator_is_found_wherever_the_first_lines_end(
        self, tmp_path, rng, sep, rows
    ) -> None:
        some = ["p|q", "a, b", "x;y", '"two\nlines"']
        texts = [t if sep not in t or t[0] == '"' else f'"{t}"' for t in rng.choice(some, rows)]
        text = f"a{sep}y\n" + "".join(f"{t}{sep}{'uv'[k % 2]}\n" for k, t in enumerate(texts))
        data = read(tmp_path, text)
        assert len(data.x) == rows
        assert (data.feature_names, data.class_names) == (("a",), ("u", "v"))

    def test_separators_at_the_ends_are_seen_though_a_row_is_cut(self, tmp_path) -> None:
        rows = "".join(f'"two\nlines{k % 3}",{k % 5},{k % 2},\n' for k in range(400))
        data = read(tmp_path, "a,b,y,\none,1,0,\n" + rows)
        assert data.target_name == "y"


class TestWithoutNames:
    @pytest.mark.parametrize("sep", [";", "\t", "|"])
    @pytest.mark.parametrize("rows", [1, 2, 10])
    def test_commas_in_numbers_do_not_divide_fields(self, tmp_path, sep, rows) -> None:
        text = "".join(f"{k % 7},5{sep}{k % 3},25{sep}{'ab'[k % 2]}\n" for k in range(rows))
        data = read(tmp_path, text, header=False, features=["0", "1"])
        np.testing.assert_allclose(data.x[0], [0.5, 0.25])

    @pytest.mark.parametrize("first", ["{},5", "1,2{:02}"])
    def test_marked_numbers_are_no_names(self, tmp_path, first) -> None:
        text = "".join(f"{first.format(k)};{k * k % 11};{'ab'[k % 2]}\n" for k in range(10))
        data = read(tmp_path, text)
        assert (len(data.x), data.feature_names) == (10, ("0", "1"))

    def test_an_empty_field_at_the_end_of_a_few_rows_is_a_field(self, tmp_path) -> None:
        rows = "".join(f"{k % 5};{k % 3}.5;{'' if k % 4 == 0 else k % 7}\n" for k in range(40))
        data = read(tmp_path, rows, target="0", header=False)
        found = read(tmp_path, "1;2.5;\n", preparation=data.preparation, header=False, sep=";")
        np.testing.assert_array_equal(found.x, data.x[8:9] * [0, 1, 1] + [2.5, 0, 0])


class TestLines:
    ROWS = "a,b,kind\n" + "".join(f"{k % 7},{k % 5},{'xy'[k % 2]}\n" for k in range(60))

    @pytest.mark.parametrize(
        "content",
        [
            ROWS[:-1] + "\r\n",
            ROWS.replace("\n", "\r\n", 30),
            ROWS.replace("\n", "\r", 30),
            ROWS.replace("\n", "\r"),
            ROWS.replace("\n", "\r\n"),
        ],
        ids=["last", "half CRLF", "half CR", "all CR", "all CRLF"],
    )
    def test_may_end_in_several_ways(self, tmp_path, content) -> None:
        expected = read(tmp_path, self.ROWS, "plain.csv")
        for settings in ({}, {"encoding": "utf-8"}):
            np.testing.assert_array_equal(read(tmp_path, content, **settings).x, expected.x)

    def test_within_quotes_are_text(self, tmp_path) -> None:
        rows = "".join(f'"x\ny{k % 3}",{"uv"[k % 2]}\r\n' for k in range(30))
        data = read(tmp_path, "a,kind\r\n" + rows)
        assert data.preparation.columns[0].values == ("x\ny0", "x\ny1", "x\ny2")


class TestOldEncodings:
    TEXT = "a,kind\n" + "".join(f"{'é ü'[k % 3]}n{k % 2},{'xy'[k % 2]}\n" for k in range(60))

    def test_a_single_wrong_byte_is_named(self, tmp_path) -> None:
        broken = self.TEXT.encode().replace(b"n1", b"n\xff", 1)
        with pytest.raises(nn.DataError, match="line 3 is not UTF-8, though other lines are"):
            read(tmp_path, broken)
        assert len(read(tmp_path, broken, encoding="latin-1").x) == 60

    @pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
    def test_are_found_out(self, tmp_path, encoding) -> None:
        text = self.TEXT.replace("n1", "€") if encoding == "cp1252" else self.TEXT
        expected = read(tmp_path, text.encode(), "utf8.csv").preparation
        assert read(tmp_path, text.encode(encoding)).preparation == expected


class TestParquet:
    def write(self, tmp_path, **columns):
        import duckdb

        listed = ", ".join(f"{values} as {name}" for name, values in columns.items())
        path = tmp_path / "data.parquet"
        duckdb.connect().execute(f"copy (select {listed}) to '{path}'")
        return path

    def test_columns_have_the_types_that_the_file_says(self, tmp_path) -> None:
        path = self.write(
            tmp_path, a="unnest([1, 2, null])", b="unnest([1.5, 2.5, 4]::decimal(9, 2)[])",
            c="unnest(['x', 'y', 'x'])", d="unnest([true, false, true])",
            e="unnest(['2024-01-05', '2024-02-05', '2024-03-05']::date[])",
            y="unnest([123456789012345678, 123456789012345679, 1])",
        )  # fmt: skip
        data = datasets.read(path, task="classification")
        kinds = {column.name: column.kind for column in data.preparation.columns}
        assert kinds == {
            "a": "number",
            "b": "number",
            "c": "category",
            "d": "category",
            "e": "time",
        }
        assert data.class_names == ("1", "123456789012345678", "123456789012345679")
        np.testing.assert_array_equal(data.x[:, :3], [[1, 0, 1.5], [2, 0, 2.5], [1.5, 1, 4]])
        again = datasets.read_csv(path, preparation=data.preparation)
        np.testing.assert_array_equal(again.x, data.x)

    def test_rows_are_named(self, tmp_path) -> None:
        path = self.write(tmp_path, a="unnest([1, 2, 4])", y="unnest(['x', null, 'y'])")
        with pytest.raises(nn.DataError, match="row 2: the target 'y' is empty"):
            datasets.read(path)
        with pytest.raises(nn.DataError, match="sep is for text"):
            datasets.read(path, sep=";")
        (tmp_path / "bad.parquet").write_bytes(b"no table")
        with pytest.raises(nn.DataError, match="bad.parquet cannot be read"):
            datasets.read(tmp_path / "bad.parquet")

    @pytest.mark.parametrize("asked", [{"keep": ["l"]}, {"features": ["l"]}, {"target": "l"}])
    def test_columns_of_lists_cannot_be_asked_for(self, tmp_path, asked) -> None:
        path = self.write(tmp_path, l="unnest([[1], [2], [4]])", b="unnest([1, 2, 4])",
                          y="unnest(['x', 'x', 'y'])")  # fmt: skip
        with pytest.raises(nn.DataError, match="column 'l' cannot be read: a row has several"):
            datasets.read(path, **{"target": "y", **asked})

    def test_lengths_of_time_are_no_numbers(self, tmp_path) -> None:
        path = self.write(tmp_path, a="unnest([1, 2, 4, 5])", y="unnest(['x', 'x', 'y', 'x'])",
                          d="interval (unnest([1, 2, 1, 2])) day")  # fmt: skip
        columns = datasets.read(path, target="y").preparation.columns
        assert [column.kind for column in columns] == ["number", "category"]

    def test_columns_of_lists_are_left_out(self, tmp_path) -> None:
        path = self.write(tmp_path, a="unnest([[1], [2], [4]])", b="unnest([1, 2, 4])",
                          y="unnest(['x', 'x', 'y'])")  # fmt: skip
        assert datasets.read(path).feature_names == ("b",)


class TestHeaders:
    @pytest.mark.parametrize(
        ("first", "others", "expected"),
        [
            (["?", "2.5", "0"], [["1.0", "3.5", "1"], ["2.0", "?", "1"]], False),
            (["900", "902", "904", "kind"], [["0.1", "0.2", "0.3", "a"]] * 3, True),
            (["1.0", "2.0", "3.0", "a"], [["0.1", "0.2", "0.3", "a"]] * 3, False),
            (["5.1", "3.5", "setosa"], [["4.9", "3.0", "setosa"]], False),
            (["name", "city"], [["anna", "rome"]], True),
            (["a", "2020"], [["1", "2.5"]], True),
            (["0", "1", "2", "3"], [["0.3", "-1.5", "0.2", "1"], ["0.4", "2.5", "1.1", "0"]], True),
            (["0", "1", "2", "3"], [["0.3", "-1.5", "2", "1"], ["0.4", "2.5", "1", "0"]], False),
            (["0", "1"], [["0.02", "1"], ["0.04", "1"]], False),
            (["0", "1", "2"], [["0.13", "0.44", "1"], ["0.4", "2.5", "0"]], False),
            (["", "0", "1"], [["0", "3", "1"], ["1", "4", "0"]], True),
            (["", "0", "1"], [["5", "3", "1"], ["", "4", "0"]], False),
            ([*map(str, range(9))], [["0"] * 9, ["3"] * 9], True),
            ([*map(str, range(9))], [[*map(str, range(9, 18))]], False),
            ([*map(str, range(9))], [[*map(str, range(1, 10))], ["7"] * 9], False),
            ([*map(str, range(9))], [[*map(str, reversed(range(9)))]], False),
            (["0", "1"], [["1", "0"], ["1", "1"]], False),
            (["0", "1", "2"], [["3", "4", "5"], ["1", "4", "1"]], False),
            (["0", "1", "2.0"], [["0.5", "4.5", "1"]], False),
        ],
    )
    def test_are_told_from_rows(self, first, others, expected) -> None:
        assert is_header(first, others) is expected

    @pytest.mark.parametrize("index", [True, False])
    def test_pandas_numbers_columns_that_have_no_name(self, tmp_path, rng, index) -> None:
        pandas = pytest.importorskip("pandas")
        table = np.column_stack([rng.normal(size=(60, 3)), np.arange(60) % 2])
        pandas.DataFrame(table).to_csv(tmp_path / "t.csv", index=index)
        data = datasets.read_csv(tmp_path / "t.csv")
        assert data.feature_names == ("0", "1", "2")
        np.testing.assert_allclose(data.x, table[:, :3], rtol=1e-6)
        assert np.bincount(data.y).tolist() == [30, 30]


class TestValues:
    def classes(self, tmp_path, values: str, **settings) -> tuple[str, ...] | None:
        text = "a,y\n" + "".join(f"{k},{v}\n" for k, v in enumerate(values.split()))
        return read(tmp_path, text, **settings).class_names

    def test_class_names_are_what_the_file_says(self, tmp_path) -> None:
        assert self.classes(tmp_path, "4011001 4011002 4011003") == (
            "4011001", "4011002", "4011003",
        )  # fmt: skip
        ids = "123456789012345678 123456789012345679 123456789012345678"
        assert len(self.classes(tmp_path, ids)) == 2
        assert self.classes(tmp_path, "036 017 036") == ("017", "036")
        assert self.classes(tmp_path, "yes no yes") == ("no", "yes")
        assert self.classes(tmp_path, "true false true") == ("false", "true")

    def test_class_names_do_not_depend_on_which_of_them_a_file_holds(self, tmp_path) -> None:
        settings = {"task": "classification"}
        assert self.classes(tmp_path, "1.0 2.5 4011001.0", **settings) == ("1", "2.5", "4011001")
        assert self.classes(tmp_path, "1.0 4011001", **settings) == ("1", "4011001")
        assert self.classes(tmp_path, "1 2", **settings) == ("1", "2")

    def test_what_only_python_reads_as_a_number_is_text(self, tmp_path) -> None:
        rows = "".join(f"{k},{k % 2}\n" for k in range(20))
        with pytest.raises(nn.DataError, match="line 22, column 'a'.*found '1_000'"):
            read(tmp_path, "a,y\n" + rows + "1_000,1\n")
        assert self.classes(tmp_path, "1_000 2 1_000") == ("1_000", "2")

    def test_text_after_many_numbers_is_found(self, tmp_path) -> None:
        rows = "".join(f"{k},{k % 2}\n" for k in range(5000))
        with pytest.raises(nn.DataError, match="line 4321, column 'a'.*found 'oops'"):
            read(tmp_path, "a,y\n" + rows.replace("\n4319,1\n", "\noops,1\n"))

    def test_missing_values_are_none_of_the_numbers(self, tmp_path) -> None:
        (tmp_path / "a.csv").write_text("a,b,y\n1,,x\nNA,2,y\n?,3,NA\n")
        with Table(tmp_path / "a.csv", Layout()) as table:
            a, b, y = table.read()
        np.testing.assert_array_equal(a, [1, np.nan, np.nan])
        np.testing.assert_array_equal(b, [np.nan, 2, 3])
        assert list(y) == ["x", "y", None]

    @pytest.mark.parametrize("missing", ["NA", "?", "null", "nan", '"NA"', ""])
    @pytest.mark.parametrize("numbers", [True, False])
    def test_missing_values_after_many_rows_without_any(self, tmp_path, missing, numbers) -> None:
        rows = "".join(f"{k},{2 * k},{k % 2}\n" for k in range(1000))
        last = f"5,{missing},1\n" if numbers else f"5,7,{missing}\n"
        (tmp_path / "a.csv").write_text("a,b,y\n" + rows + last + "8,9,1\n")
        with Table(tmp_path / "a.csv", Layout()) as table:
            a, b, y = table.read(text=[2])
        assert a.tolist() == [*range(1000), 5, 8]
        np.testing.assert_array_equal(b[-3:], [1998, np.nan if numbers else 7, 9])
        assert list(y[-3:]) == ["1", "1" if numbers else None, "1"]

    @pytest.mark.parametrize("missing", [" NA", "NA ", " ?", " ", "  null", " nan "])
    def test_missing_values_may_have_blanks_around(self, tmp_path, missing) -> None:
        rows = [missing if k % 20 == 7 else str(k * 37 % 1000) for k in range(100)]
        days = [missing if k % 20 == 7 else f"2024-01-{k % 28 + 1:02}" for k in range(100)]
        lines = zip(rows, days, strict=True)
        text = "a,d,y\n" + "".join(f"{a},{d},{k % 2}\n" for k, (a, d) in enumerate(lines))
        columns = read(tmp_path, text).preparation.columns
        assert [(column.kind, column.marks) for column in columns] == [
            ("number", True), ("time", True),
        ]  # fmt: skip
        with pytest.raises(nn.DataError, match="line 9: the target 'a' is (missing|empty)"):
            read(tmp_path, text, target="a")

    def test_text_far_down_beside_missing_values_with_blanks(self, tmp_path) -> None:
        """The text makes another look necessary, which knows the same missing values."""
        rows = [(k % 50, " NA" if k % 20 == 7 else k % 41, k % 2) for k in range(1000)]
        rows[900] = ("x", 3, 0)
        text = "a,b,y\n" + "".join(f"{a},{b},{y}\n" for a, b, y in rows)
        (tmp_path / "a.csv").write_text(text)
        with Table(tmp_path / "a.csv", Layout()) as table:
            a, b, _ = table.read()
        assert a[900] == "x"
        assert b.dtype == np.float64
        assert np.isnan(b).sum() == 50

    def test_rows_of_empty_fields_are_counted(self, tmp_path) -> None:
        rows = "".join(",,\n" if k == 3 else f"{k % 4},{k % 3}.5,{k % 2}\n" for k in range(20))
        with pytest.raises(nn.DataError, match="line 5: the target 'a' is empty"):
            read(tmp_path, "a,b,y\n" + rows, target="a")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("# c\na,b,y\n1,2,0\n1,?,1\n", "line 4, column 'b': a number belongs.*found '\\?'"),
            ("made 2024\n\n# c\na,b,y\n1,2,0\n3,4,1\n5,6,0\n7,x,1\n", "line 8, column 'b'.*'x'"),
            ('a,b,y\n"1\n",2,0\n1,x,1\n', "line 4, column 'b'.*found 'x'"),
            ("a,y\n1,x\n2,NA\n", "line 3: the target 'y' is missing; found 'NA'"),
            ("a,b,y\n1,2,0\n1,2\n1,2,1\n", "line 3: 2 fields; every row must have 3"),
            ("a,b,y\n" + "1,2,0\n" * 3000 + "1,2,0,7\n", "line 3002: 4 fields; every row must"),
        ],
    )
    def test_lines_are_named(self, tmp_path, text, message) -> None:
        features = ["b"] if "column 'b'" in message else None  # which must then be numbers
        with pytest.raises(nn.DataError, match=message):
            read(tmp_path, text, features=features)
