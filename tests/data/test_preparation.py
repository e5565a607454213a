"""What is done with the columns of a table, and done again with another one."""

import json

import numpy as np
import pytest

import nnbackend as nn
from nnbackend import datasets
from nnbackend.cli.trained import load_trained
from nnbackend.data.preparation import MOST_CATEGORIES, Column, Preparation

TABLE = """\
,city,age,smokes,joined,score,country,name,kind
0,rome,31,yes,2024-01-05,1.5,it,anna,a
1,oslo,,no,2024-02-07,2.5,it,bob,b
2,rome,47,NA,2024-07-01,0.5,it,carl,a
3,bern,39,yes,,4.5,it,dora,b
4,,52,no,2025-01-05,3.0,it,emil,a
"""


def read(tmp_path, text: str, **settings) -> datasets.Dataset:
    path = tmp_path / "data.csv"
    path.write_text(text)
    return datasets.read_csv(path, **settings)


def plans(data: datasets.Dataset) -> dict[str, Column]:
    return {column.name: column for column in data.preparation.columns}


def column_of(data: datasets.Dataset, name: str) -> np.ndarray:
    """The inputs that one column became."""
    start = 0
    for column in data.preparation.used:
        if column.name == name:
            return data.x[:, start : start + column.width]
        start += column.width
    raise KeyError(name)


class TestColumns:
    def test_text_becomes_categories_and_what_is_missing_is_one(self, tmp_path) -> None:
        data = read(tmp_path, TABLE)
        assert plans(data)["city"].values == ("", "bern", "oslo", "rome")
        np.testing.assert_array_equal(column_of(data, "city").argmax(axis=1), [3, 2, 3, 1, 0])
        np.testing.assert_array_equal(column_of(data, "city").sum(axis=1), 1)
        assert plans(data)["smokes"].values == ("", "no", "yes")

    def test_a_missing_number_is_the_median_and_marked(self, tmp_path) -> None:
        data = read(tmp_path, TABLE)
        np.testing.assert_array_equal(
            column_of(data, "age"), [[31, 0], [43, 1], [47, 0], [39, 0], [52, 0]]
        )
        assert plans(data)["score"].is_plain

    def test_rows_of_a_long_table_stay_together(self, tmp_path) -> None:
        numbers = np.arange(2500) % 7
        rows = "".join(f"{k},{'abc'[k % 3]},{'' if k % 5 == 0 else n},{n}\n"
                       for k, n in enumerate(numbers))  # fmt: skip
        data = read(tmp_path, "first,letter,gap,y\n" + rows, task="regression")
        gap = column_of(data, "gap")
        np.testing.assert_array_equal(column_of(data, "first")[:, 0], np.arange(2500))
        np.testing.assert_array_equal(column_of(data, "letter").argmax(axis=1), np.arange(2500) % 3)
        np.testing.assert_array_equal(gap[:, 1], np.arange(2500) % 5 == 0)
        np.testing.assert_array_equal(gap[gap[:, 1] == 0, 0], numbers[np.arange(2500) % 5 != 0])

    def test_a_date_is_a_number_of_days_and_a_place_in_the_year_and_week(self, tmp_path) -> None:
        data = read(tmp_path, TABLE)
        inputs = column_of(data, "joined").astype(float)
        assert inputs.shape == (5, 6)  # and a mark
        days = inputs[:, 0]
        np.testing.assert_allclose(np.diff(days[:3]), [33, 145])
        np.testing.assert_allclose(inputs[0, 1:3], inputs[4, 1:3], atol=0.03)  # a year later
        np.testing.assert_allclose(np.hypot(inputs[:, 1], inputs[:, 2]), 1, rtol=1e-6)
        week = np.arctan2(inputs[:, 3], inputs[:, 4]) / (2 * np.pi) * 7 % 7
        np.testing.assert_allclose(week[[0, 1, 2, 4]], [4, 2, 0, 6], atol=1e-4)  # Monday is 0
        np.testing.assert_array_equal(inputs[:, 5], [0, 0, 0, 1, 0])

    def test_a_time_of_day_and_its_zone_count(self, tmp_path) -> None:
        times = ["2024-01-05 06:00", "2024-01-05T12:00:00Z", "2024-1-5 20:00:00+02:00"]
        text = "when,y\n" + "".join(f"{time},{k}.5\n" for k, time in enumerate(times))
        inputs = read(tmp_path, text).x.astype(float)
        assert inputs.shape == (3, 7)
        hours = np.arctan2(inputs[:, 5], inputs[:, 6]) / (2 * np.pi) * 24 % 24
        np.testing.assert_allclose(hours, [6, 12, 18], atol=1e-4)

    def test_columns_that_cannot_help_are_left_out(self, tmp_path) -> None:
        data = read(tmp_path, TABLE)
        why = {name: plan.why for name, plan in plans(data).items() if plan.kind == "left out"}
        assert why == {
            "": "it numbers the rows",
            "country": "it is the same in every row",
            "name": "its text differs in every row",
        }
        assert data.feature_names == ("city", "age", "smokes", "joined", "score")

    def test_numbers_in_steps_are_left_out_by_their_name_alone(self, tmp_path) -> None:
        rows = "".join(f"{k},{10 * k},{k},{k % 2}\n" for k in range(9))
        data = read(tmp_path, "Unnamed: 0,id,time,y\n" + rows)
        assert data.feature_names == ("time",)

    def test_so_they_are_where_some_rows_are_learnt_from(self, tmp_path) -> None:
        """Rows chosen at random are in no steps."""
        rows = "".join(f"{k + 1},{k % 7},{k // 20}\n" for k in range(60))
        some = np.random.default_rng(0).permutation(60)[:48]
        data = read(tmp_path, "Id,a,y\n" + rows, learn_from=lambda rows, labels: some)
        assert data.feature_names == ("a",)

    def test_text_that_only_looks_like_dates_is_text(self, tmp_path) -> None:
        rows = "".join(f"1000-50-{60 + k % 3},{k % 2}\n" for k in range(9))
        assert plans(read(tmp_path, "part,y\n" + rows))["part"].kind == "category"

    def test_a_day_that_is_none_among_days_is_a_mistake(self, tmp_path) -> None:
        rows = "".join(f"2024-02-{k + 1:02},{k % 2}\n" for k in range(20))
        message = "line 22, column 'day': a date or time belongs here; found '2024-02-30'"
        with pytest.raises(nn.DataError, match=message):
            read(tmp_path, "day,y\n" + rows + "2024-02-30,1\n")

    def test_days_may_have_a_zone(self, tmp_path) -> None:
        rows = "2024-01-05Z,0\n2024-01-07+00:00,1\n2024-01-06,0\n"
        days = column_of(read(tmp_path, "day,y\n" + rows), "day")[:, 0]
        np.testing.assert_allclose(days, [-1, 1, 0])

    def test_the_rarest_of_many_categories_are_alike(self, tmp_path) -> None:
        rows = "".join(f"c{k % 100},{k % 3}\n" for k in range(150))
        data = read(tmp_path, "code,y\n" + rows)
        assert data.x.shape == (150, MOST_CATEGORIES)
        assert (data.x.sum(axis=1) == 0).sum() == 36  # the others come up once each

    def test_codes_with_leading_zeros_are_text(self, tmp_path) -> None:
        data = read(tmp_path, "zip,y\n036,0\n36,1\n036,0\n017,1\n")
        assert plans(data)["zip"].values == ("017", "036", "36")


class TestRowsToLearnFrom:
    def test_others_decide_about_nothing(self, tmp_path) -> None:
        text = "a,b,c,d,y\n1,x,1,5,0.5\n3,y,2,6,1.5\n5,x,3,7,2.5\n900,z,,7,9.5\n,,5,7,4.5\n"
        data = read(tmp_path, text, learn_from=lambda rows, labels: np.arange(3))
        found = plans(data)
        assert (found["a"].fill, found["a"].marks) == (3, True)
        assert found["b"].values == ("x", "y")
        assert (found["c"].fill, found["c"].marks) == (2, True)  # or the file could not be read
        np.testing.assert_array_equal(column_of(data, "b")[3:], [[0, 0], [0, 0]])
        same = "a,y\n1,0.5\n1,1.5\n2,2.5\n"
        with pytest.raises(nn.DataError, match="'a': it is the same in every row"):
            read(tmp_path, same, learn_from=lambda rows, labels: np.arange(2))

    def test_they_are_chosen_by_the_classes(self, tmp_path) -> None:
        seen = []
        read(tmp_path, TABLE, learn_from=lambda rows, labels: seen.append((rows, labels)) or [0, 1])
        ((rows, labels),) = seen
        assert rows == 5
        np.testing.assert_array_equal(labels, [0, 1, 0, 1, 0])


class TestPrecision:
    def test_distances_of_time_stamps_are_kept(self, tmp_path) -> None:
        stamps = 1.7e9 + np.array([0.0, 0.25, 1.0, 2.5])
        data = read(
            tmp_path, "t,y\n" + "".join(f"{float(t)!r},{k}.5\n" for k, t in enumerate(stamps))
        )
        np.testing.assert_array_equal(np.diff(data.x[:, 0]), np.diff(stamps))

    def test_so_are_those_of_targets(self, tmp_path) -> None:
        targets = 1.7e9 + np.array([0.25, 1.0, 3.5])
        data = read(
            tmp_path, "a,y\n" + "".join(f"{k},{float(t)!r}\n" for k, t in enumerate(targets))
        )
        found = data.y[:, 0].astype(float) + data.preparation.target_offset
        np.testing.assert_array_equal(found, targets)

    def test_numbers_near_zero_stay_as_they_are(self, tmp_path) -> None:
        data = read(tmp_path, "a,y\n1.5,0.5\n-2.5,1.5\n900,2.5\n")
        assert data.preparation.is_plain


class TestAgain:
    def test_the_same_is_done_with_another_table(self, tmp_path) -> None:
        learnt = read(tmp_path, TABLE)
        notes = json.loads(json.dumps(learnt.preparation.plain()))
        again = Preparation.from_plain(notes)
        assert again == learnt.preparation
        lines = TABLE.splitlines()
        mixed = "\n".join([lines[0], *lines[:0:-1]]) + "\n"
        other = read(tmp_path, mixed, preparation=again)
        np.testing.assert_array_equal(other.x, learnt.x[::-1])
        assert other.y is None
        new = "score,kind,smokes,joined,age,city,more\n1,z,maybe,2031-05-05,NA,lima,?\n"
        unseen = read(tmp_path, new, preparation=again)
        assert unseen.x.shape == (1, learnt.x.shape[1])
        assert not column_of(unseen, "city").any()
        assert not column_of(unseen, "smokes").any()
        np.testing.assert_array_equal(column_of(unseen, "age"), [[43, 1]])

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (",39,", ",old,", "line 5, column 'age': a number belongs here; found 'old'"),
            ("2024-07-01", "soon", "line 4, column 'joined': a date or time belongs here.*'soon'"),
            ("2024-07-01", "2024-13-01", "line 4, column 'joined': a date or time belongs here"),
            (",1.5,", ",,", "line 2, column 'score': a number belongs here; found ''"),
            ("city", "town", "no column 'city', which the model was trained on"),
        ],
    )
    def test_columns_that_have_changed_are_named(self, tmp_path, old, new, message) -> None:
        plan = read(tmp_path, TABLE).preparation
        with pytest.raises(nn.DataError, match=message):
            read(tmp_path, TABLE.replace(old, new), preparation=plan)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "picture"}, {"name": 3}, {"values": 5}, {"values": [1]}, {"offset": float("nan")},
        {"fill": "x"}, {"more": 1}, {"offset": None},
    ],
    ids=str,
)  # fmt: skip
def test_notes_of_another_kind_are_refused(tmp_path, change) -> None:
    model = nn.Sequential([nn.Dense(1, 2)])
    model.compile("softmax_cross_entropy")
    plan = Preparation((Column("a", "number", offset=3.0),)).plain()
    plan["columns"][0] |= change
    model.info = {"preparation": plan, "feature_names": ["a"]}
    model.save(tmp_path / "m")
    with pytest.raises(nn.CheckpointError, match="note info\\['preparation'\\] must be"):
        load_trained(tmp_path / "m")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,c,y\nanna,1,0\nbob,1,1\ncarl,1,0\n", "no column to learn from: 'name': its text"),
        ("a,b,y\n,1,0\nNA,2,1\n", None),
        ("a,y\n" + "".join(f"{k},0\n" for k in range(30)) + "x,1\n", "line 32, column 'a'.*'x'"),
        ("a,y\n1,0\n2,\n", "line 3: the target 'y' is empty"),
    ],
)
def test_tables_that_cannot_be_learnt_from(tmp_path, text, message) -> None:
    if message is None:
        assert read(tmp_path, text).feature_names == ("b",)
        return
    with pytest.raises(nn.DataError, match=message):
        read(tmp_path, text)


class TestVectors:
    """Columns of many categories become numbers, for which a model has vectors to learn."""

    @staticmethod
    def table(tmp_path, **settings) -> datasets.Dataset:
        """Twelve cities, one met once, and a size."""
        rows = "".join(f"{k % 3}.5,c{k % 11:02},{'ab'[k % 2]},{k % 2}\n" for k in range(110))
        return read(tmp_path, f"size,city,kind,y\n{rows}1.5,atlantis,a,1\n", **settings)

    def test_their_numbers_come_first_and_others_stay(self, tmp_path) -> None:
        data = self.table(tmp_path, embed=True)
        assert plans(data)["city"].values == tuple(f"c{k:02}" for k in range(11))
        assert [column.name for column in data.preparation.embedded] == ["city"]
        np.testing.assert_array_equal(data.x[:13, 0], [*range(1, 12), 1, 2])
        assert data.x[-1, 0] == 0  # met once: one of those that are not known
        np.testing.assert_array_equal(data.x[:3, 1:], [[0.5, 1, 0], [1.5, 0, 1], [2.5, 1, 0]])
        assert self.table(tmp_path).x.shape == (111, 12 + 3)

    def test_another_table_is_prepared_alike(self, tmp_path) -> None:
        plan = self.table(tmp_path, embed=True).preparation
        (tmp_path / "others").mkdir()
        other = read(tmp_path / "others", "kind,city,size\na,c03,1\nb,oslo,2\n", preparation=plan)
        np.testing.assert_array_equal(other.x, [[4, 1, 1, 0], [0, 2, 0, 1]])

    def test_notes_of_a_model_file_hold_them(self, tmp_path) -> None:
        plan = self.table(tmp_path, embed=True).preparation
        notes = json.loads(json.dumps(plan.plain()))
        assert Preparation.from_plain(notes) == plan
        for wrong in ("yes", 2, None):
            notes["columns"][1]["embedded"] = wrong
            with pytest.raises(ValueError, match="categories of another kind"):
                Preparation.from_plain(notes)
        del notes["columns"][1]["embedded"]  # as files of before have none
        assert Preparation.from_plain(notes).embedded == ()

    def test_a_model_begins_with_vectors_of_a_fitting_width(self, tmp_path) -> None:
        data = self.table(tmp_path, embed=True)
        standardize, embedding = data.input_layers()
        assert (standardize.n_inputs, standardize.skip) == (4, 1)
        assert (embedding.n_inputs, embedding.n_categories, embedding.width) == (4, 12, 7)
        many = Column("a", "category", values=tuple(map(str, range(5000))), embedded=True)
        assert many.vector == 50
        (plain,) = self.table(tmp_path).input_layers()
        assert (plain.n_inputs, plain.skip) == (15, 0)

    def test_they_learn_what_hundreds_of_categories_have_in_common(self, tmp_path) -> None:
        rng = np.random.default_rng(0)
        values, codes = rng.normal(size=300), rng.integers(0, 300, 6000)
        y = values[codes] + 0.1 * rng.normal(size=6000)
        rows = "".join(f"s{c},{t:.4f}\n" for c, t in zip(codes, y, strict=True))
        data = read(tmp_path, "shop,y\n" + rows, embed=True)
        layers = data.input_layers()
        layers += [nn.Dense(layers[-1].n_outputs, 16, "relu"), nn.Dense(16, 1)]
        model = nn.Sequential(layers, seed=0)
        model.compile("mean_squared_error", nn.Adam(0.01), ["r2"])
        model.fit(data.x[:5000], data.y[:5000], epochs=30, batch_size=100, verbose=0)
        assert model.evaluate(data.x[5000:], data.y[5000:])["r2"] > 0.95
