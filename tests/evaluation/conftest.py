"""Numbers must come without warnings, however degenerate the input."""

import warnings

import pytest
from hypothesis import settings

settings.register_profile("patient", deadline=None)  # how long a case takes says nothing on a busy machine
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
