"""Ray: the executor contract over it, machines that die and join, and files that travel."""

from __future__ import annotations

import importlib.util

import pytest
from private_net import need_root, run_inside

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra ray)")


@pytest.mark.slow
def test_units_are_done_over_ray():
    """The first test of it; all of them have the marker cluster."""
    need_root()
    run_inside("tests/integration/test_executors.py", "-k", "ray and each_unit_is_done_once")


@pytest.mark.cluster
def test_the_whole_contract_holds_over_ray():
    """All of it, which takes a minute."""
    need_root()
    run_inside("tests/integration/test_executors.py", "-k", "ray", seconds=600)


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["results", "node"])
def test_runs_over_ray(name):
    """Whole runs, files that travel, nodes that die and join; each in its own process: Ray reads a token once."""
    need_root()
    run_inside("tests/integration/test_ray_inside.py", "-k", name, seconds=600)


def test_without_a_token_no_cluster_is_asked(monkeypatch):
    """And without Ray, or with a cluster that nobody runs, a line says what to do."""
    from virnucpro.errors import UsageError
    from virnucpro.executors.ray import RayExecutor

    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with pytest.raises(UsageError, match="RAY_AUTH_TOKEN_PATH"), RayExecutor("127.0.0.1:1"):
        pass
