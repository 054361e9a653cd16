"""Runs over Ray; started by test_ray.py in a network where the loopback is all there is."""

from __future__ import annotations

import os
import secrets

import pytest
from conftest import mixed_records, result_bytes, write_fasta
from private_net import is_inside, ray_cluster
from work_samples import Slow

from virnucpro.executors.ray import RayExecutor

pytestmark = pytest.mark.skipif(not is_inside(), reason="runs in a network of its own, by test_ray.py")


def test_results_are_those_of_this_machine(virnucpro, tmp_path, tiny_bundle):
    """Byte for byte, where machines share the directory and where all files travel; then there is nothing to do."""
    fasta = write_fasta(tmp_path / "in.fasta", mixed_records(16))
    arguments = ("predict", fasta, "--model", tiny_bundle, "--unit-rows", 8, "--device", "cpu", "-q")
    assert virnucpro(*arguments, "-o", tmp_path / "here").code == 0
    with ray_cluster(tmp_path, 2) as environment:
        os.environ.update(environment)
        engine = ("--engine", "ray", "--address", environment["RAY_TESTS"], "--parts", 3)
        for name, more in (("shared", ()), ("sent", ("--no-shared-files",))):
            ended = virnucpro(*arguments, "-o", tmp_path / name, *engine, *more)
            assert ended.code == 0, ended.err
            assert result_bytes(tmp_path / name, "in") == result_bytes(tmp_path / "here", "in")
    assert virnucpro(*arguments, "-o", tmp_path / "sent", *engine).code == 0
    del os.environ["RAY_AUTH_TOKEN_PATH"]
    (tmp_path / "sent/run/receipts/unit-00000.json").unlink()
    ended = virnucpro(*arguments, "-o", tmp_path / "sent", *engine)
    assert (ended.code, "RAY_AUTH_TOKEN_PATH" in ended.err) == (2, True)


def test_a_node_that_dies_costs_what_it_had_in_hand_and_one_that_joins_helps(tmp_path, monkeypatch):
    """Every unit is done; what was done twice is at most what the dead node had in hand."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=2)]
        done = []
        with RayExecutor(cluster.address) as executor:
            for outcome in executor.run(Slow(tmp_path), range(60)):
                done.append(outcome.unit)
                if len(done) == 10:
                    cluster.remove_node(nodes[0], allow_graceful=False)
                if len(done) == 20:
                    cluster.add_node(num_cpus=2)
    finally:
        cluster.shutdown()
    assert sorted(done) == list(range(60))
    assert len(list(tmp_path.glob("*-*-cpu-*"))) <= 60 + 2
