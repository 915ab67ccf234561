"""What a column holds: names or numbers."""

import numpy as np
import pytest

from ebr.visualization.picture.columns import MapColumn

THIRTEEN = tuple(str(value) for value in range(13))


@pytest.mark.parametrize(
    ("texts", "kind", "is_scale"),
    [
        (THIRTEEN, "auto", True),
        (THIRTEEN[:12], "auto", False),  # twelve different numbers are classes
        ((*THIRTEEN, "", ""), "auto", True),
        ((*THIRTEEN, "n/a"), "auto", False),
        ((*THIRTEEN, "nan"), "auto", False),
        ((*THIRTEEN, "inf"), "auto", False),
        ((*THIRTEEN, "1_0"), "auto", False),
        (("-1.5e3", *THIRTEEN), "auto", True),
        (THIRTEEN, "categories", False),
        (("1", "2"), "numbers", True),
        (("1", "few"), "numbers", True),
        (("few", ""), "numbers", False),
        (("", ""), "auto", False),
        ((), "auto", False),
    ],
)
def test_numbers_are_told_from_names(texts, kind, is_scale):
    assert (MapColumn("x", texts, kind).numbers is not None) is is_scale


CLASS_IDS = {
    "twenty classes": [str(row % 20) for row in range(60)],
    "classes that do not begin at 0": [str(1000 + row % 15) for row in range(60)],
    "a clusterer's, with noise": [str(row % 15 - 1) for row in range(60)],
    "padded with zeros": [f"{row:03d}" for row in range(15)],
    "whole numbers that pandas made floats": [f"{row % 15}.0" for row in range(60)],
    "a missing one among them": ["", *(str(row % 15) for row in range(60))],
    "hashes of digits and an e": [*map(str, range(100, 120)), "12e4", "7E01"],
}


@pytest.mark.parametrize("case", CLASS_IDS)
def test_ids_of_classes_are_names(case):
    assert MapColumn("x", tuple(CLASS_IDS[case])).numbers is None
    assert MapColumn("x", tuple(CLASS_IDS[case]), "numbers").numbers is not None


MEASUREMENTS = {
    "prices": [f"{row / 7:.2f}" for row in range(60)],
    "whole numbers of which hardly one repeats": [str(row * row % 997) for row in range(60)],
    "small ones, as Python prints them": [f"{(row + 1) / 3e6}" for row in range(60)],
    "large ones, as C prints them": [f"{row * 1.5e7:g}" for row in range(60)],
    "fractions that repeat": [f"{row % 20 / 4}" for row in range(60)],
    "more than a thousand different ones": [str(row % 1001) for row in range(3003)],
}


@pytest.mark.parametrize("case", MEASUREMENTS)
def test_measurements_are_numbers(case):
    assert MapColumn("x", tuple(MEASUREMENTS[case])).numbers is not None


def test_whole_numbers_are_decided_with_a_line_that_names_the_option():
    classes, counts = MapColumn("topic", tuple(CLASS_IDS["twenty classes"])), MapColumn("length", tuple(map(str, range(60))))
    assert classes.doubt == (
        "'topic' holds 20 different whole numbers, taken for classes; if they measure something: --label_kind numbers"
    )
    assert counts.doubt == (
        "'length' holds 60 different whole numbers, taken for measurements (a colour bar, no figures); "
        "if they name classes: --label_kind categories"
    )
    for sure in (MapColumn("x", ("a", "b")), MapColumn("x", classes.texts, "numbers"), MapColumn("x", ("0", "1"))):
        assert sure.doubt == ""


def test_missing_numbers_are_nan():
    values = MapColumn("x", ("1", "", "2.5", "few"), "numbers").numbers
    np.testing.assert_array_equal(values, [1.0, np.nan, 2.5, np.nan])
