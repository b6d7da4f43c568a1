"""The model zoo's unit test of the vestibular schwannoma bundle; what it does is in tissnet_cases.py."""

from tissnet_cases import make_test

TestTissnetVestibularSchwannoma = make_test("tissnet_vestibular_schwannoma", "vs", ("T2",), "ceT1")
