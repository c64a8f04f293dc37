"""Fixtures of the tests of LeRobot's policies, which name this file in `pytest_plugins`."""

import pytest
from lerobot_example import made_once, maker


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a policy of a kind."""
    return maker(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="module")
def policies(make):
    """The same, once for each kind."""
    return made_once(make)
