"""What a column holds: names or numbers."""

import numpy as np
import pytest

from ebr.visualization.columns import MapColumn

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


def test_missing_numbers_are_nan():
    values = MapColumn("x", ("1", "", "2.5", "few"), "numbers").numbers
    np.testing.assert_array_equal(values, [1.0, np.nan, 2.5, np.nan])
