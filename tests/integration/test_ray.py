"""Ray: the executor contract over it, machines that die and join, and files that travel."""

from __future__ import annotations

import importlib.util

import pytest
from private_net import need_root, run_inside

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra ray)")


def test_units_are_done_over_ray():
    """The first test of it; all of them have the marker cluster, for Ray takes seconds to start."""
    need_root()
    run_inside("tests/integration/test_executors.py", "-k", "ray and each_unit_is_done_once")


@pytest.mark.cluster
def test_the_whole_contract_holds_over_ray():
    """All of it, which takes a minute."""
    need_root()
    run_inside("tests/integration/test_executors.py", "-k", "ray")
