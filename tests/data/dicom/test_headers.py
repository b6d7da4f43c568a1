"""Tests of headers: values that damage has made odd."""

import pytest
from pydicom.dataset import Dataset

from scripts.data.dicom.headers import text_of


@pytest.mark.parametrize(
    ("value", "text"),
    [("t2_tra", "t2_tra"), ("t2\r\ntra\0", "t2  tra"), ("山田\u2028太郎", "山田 太郎"), (None, "")],
)
def test_text_is_one_line_that_can_be_printed(value, text):
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SeriesDescription = value
    assert text_of(data, "SeriesDescription") == text
