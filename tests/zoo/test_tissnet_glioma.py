"""The model zoo's unit test of the glioma bundle; what it does is in tissnet_cases.py."""

from tissnet_cases import make_test

TestTissnetGlioma = make_test("tissnet_glioma", "glioma", ("T1", "ceT1", "T2"), "FLAIR")
