"""Ray: the executor contract over it, machines that die and join, and files that travel."""

from __future__ import annotations

import importlib.util

import pytest
from private_net import need_root, run_inside

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra ray)")


def test_the_executor_contract_holds_over_ray():
    """The same tests as for every executor, in a network of their own."""
    need_root()
    run_inside(
        "tests/integration/test_executors.py", "-k", "ray and (once or alone or kill or surfaces or none_the_worse)"
    )


@pytest.mark.cluster
def test_the_whole_contract_holds_over_ray():
    """All of it, which takes a minute."""
    need_root()
    run_inside("tests/integration/test_executors.py", "-k", "ray")
