"""Records while an actor takes more memory than Ray allows: python out_of_memory.py STORE RECORDING_ID.

Writes losses and retries.
"""

import sys
import time
from pathlib import Path

import numpy as np
import ray

from cluster.pool import Pool
from cluster.recorder import plan_recording
from cluster.store import Store
from cluster.studio import Studio, Task
from tests.chaos.disturbed import CONFIG, FACTORY, record_on

GIB = 1 << 30


class Greedy(Studio):
    """Takes ever more memory in one shard, once."""

    def __init__(self, store: Store, scar: Path) -> None:
        super().__init__(store)
        self._scar = scar

    def run(self, task: Task) -> object:
        if not self._scar.exists():
            self._scar.touch()
            hoard = []
            for _ in range(40):  # at most 10 GiB
                hoard.append(np.ones(GIB // 4, np.uint8))
                time.sleep(0.1)
        return super().run(task)


def main(url: str, recording_id: str) -> None:
    store = Store.open(url)
    policy_id = next(key.split("/")[1] for key in store.list("policies"))
    plan = plan_recording(store, policy_id, FACTORY, CONFIG)
    assert plan.recording_id == recording_id
    total, available = _memory()
    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 << 20,
        _system_config={
            "memory_usage_threshold": (total - available + 2.5 * GIB) / total,
            "memory_monitor_refresh_ms": 50,
        },
    )
    scar = Path(url) / "scar"
    with Pool(Greedy, args=(store, scar), size=2) as pool:
        counter = record_on(pool, store, plan)
    assert scar.exists()
    scar.unlink()
    ray.shutdown()
    sys.stdout.write(f"{counter.lost} {counter.retries}\n")


def _memory() -> tuple[int, int]:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(lines[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    return total, available


if __name__ == "__main__":
    main(*sys.argv[1:])
