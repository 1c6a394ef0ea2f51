"""Records on three nodes and takes one away: python node_removed.py STORE RECORDING_ID.

Writes losses and retries.
"""

import sys

import ray
from ray.cluster_utils import Cluster

from cluster import recordings
from cluster.pool import Pool, Result
from cluster.recorder import plan_recording
from cluster.store import Store
from cluster.studio import Studio
from tests.chaos.disturbed import CONFIG, FACTORY, record_on


def main(url: str, recording_id: str) -> None:
    store = Store.open(url)
    policy_id = next(key.split("/")[1] for key in store.list("policies"))
    plan = plan_recording(store, policy_id, FACTORY, CONFIG)
    assert plan.recording_id == recording_id
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    doomed = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    removed: list[str] = []

    def remove_its_node(result: Result) -> None:
        if not removed and result.node == doomed.node_id:
            removed.append(result.node)
            cluster.remove_node(doomed, allow_graceful=False)

    with Pool(Studio, args=(store,), size=3) as pool:
        counter = record_on(pool, store, plan, between=remove_its_node)
    assert removed, "the node was never used"
    recordings.open_manifest(store, recording_id)
    ray.shutdown()
    cluster.shutdown()
    sys.stdout.write(f"{counter.lost} {counter.retries}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
