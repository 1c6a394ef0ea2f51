"""How a job finds the Ray of the cluster that runs it."""

import os
import subprocess
import sys

import pytest
import ray

pytestmark = pytest.mark.ray

STARTS = """
from cluster import runtime
found = runtime.start(99)
print(found.num_cpus, found.address)
runtime.stop()
"""


def test_a_job_joins_the_cluster_that_it_is_told_of_and_takes_its_size(ray_session) -> None:
    address = ray.get_runtime_context().gcs_address
    joined = subprocess.run(
        [sys.executable, "-c", STARTS],
        env={**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert joined.stdout.split() == ["4", address], joined.stderr
    assert ray.cluster_resources()["CPU"] == 4  # it is still there
