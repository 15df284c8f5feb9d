"""A cluster of one worker verifies evidence, with any supported dask and distributed."""

import subprocess
import sys

import pytest

from tests.records import ROOT
from tests.serve.server import environment

_JUDGE = """
import dask
from attestkit.verifier import AttestationResult, Item, Verifier
from distributed import Client, LocalCluster
from tests.verifier import parcels

if __name__ == "__main__":
    dask.config.set({"distributed.admin.system-monitor.gil.enabled": False})
    raw = parcels.evidence().to_bytes()
    items = [Item(raw, parcels.NONCE), Item(raw[:-1], parcels.NONCE)] * 20
    one = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster("127.0.0.1", scheduler_port=0, processes=False, **one) as cluster:
        with Client(cluster) as client:
            verifier = Verifier(parcels.PKI.root_der, parcels.collateral())
            found = verifier.verify_many(items, client.get_executor(), now=parcels.NOW)
    assert [isinstance(each, AttestationResult) for each in found] == [True, False] * 20
"""


def test_cluster_verifies_evidence() -> None:
    """Results keep the order of the evidence; the truncated item is rejected."""
    pytest.importorskip("distributed")
    done = subprocess.run(
        [sys.executable, "-c", _JUDGE],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
