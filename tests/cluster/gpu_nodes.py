"""Work on three nodes of which two have an imagined GPU: python -m tests.cluster.gpu_nodes FOLDER.

Writes what was seen as JSON. In a process of its own, for nodes are joined and a Ray of the tests is not.
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

from cluster import policies, sweep as sweeping
from cluster.placement import check_placement
from cluster.pool import Pool
from cluster.recorder import RecordingConfig
from cluster.store import Store
from cluster.sweep import SaeTrial, sweep
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.training import SaeConfig
from interp.policies.bundle import PolicyBundle
from interp.policies.factories import allow
from interp.policies.torch_module import TorchModuleArchitecture
from interp.worlds.gymnasium import GymnasiumFactory
from tests.fakes.modules import seeded

NAME = "tests.fakes.modules:remembering"
WORLD = GymnasiumFactory.load("gym:CartPole-v1?max_steps=20")
RECORDING = RecordingConfig(num_episodes=20, episodes_per_shard=5, sites=("memory.h",))


def witness(folder: Path, began: float) -> None:
    """Notes where this process is, which GPU it has and when it worked."""
    context = ray.get_runtime_context()
    seen = {
        "node": context.get_node_id(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "pid": os.getpid(),
        "began": began,
        "ended": time.time(),
    }
    with (folder / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(seen) + "\n")


class WitnessedTrial(SaeTrial):
    """A trial that says where it ran, and takes long enough to have neighbours."""

    def step(self) -> dict[str, Any]:
        began = time.time()
        folder = Path(self._inputs.train.path).parent / "trials"
        folder.mkdir(exist_ok=True)
        time.sleep(0.3)
        report = super().step()
        witness(folder, began)
        return report


class Whereabouts:
    """Tells what its actor was given."""

    def run(self, task: "Ask") -> tuple[str, str | None]:
        time.sleep(0.2)
        return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES")


class Ask:
    def __init__(self, key: str) -> None:
        self.key = key


def refusals() -> list[str]:
    said = []
    for gpus, processes in ((2.0, 1), (0.5, 5), (1.0, 3), (1.5, 1)):
        try:
            check_placement(name="gpus_per_trial", gpus=gpus, processes=processes)
        except ValueError as error:
            said.append(str(error))
        else:
            said.append("")
    return said


def own_policy(store: Store) -> str:
    """A network that plays in a world which is quickly made."""
    allow(NAME)
    architecture = TorchModuleArchitecture(
        factory=NAME,
        observation_shape=WORLD.spec.observation_shape,
        observation_dtype=WORLD.spec.observation_dtype,
        action_names=WORLD.spec.action_names,
    )
    bundle = PolicyBundle.of(architecture, seeded().state_dict())
    return policies.save(store, bundle, name="own", run="t-0", step=0, world=WORLD.name).policy_id


def main(folder: Path) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    for name, rows in (("train", 2000), ("held_out", 500)):
        np.save(folder / f"{name}.npy", generator.normal(size=(rows, 8)).astype(np.float16))
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False},
    )
    for _ in range(2):
        cluster.add_node(num_cpus=4, num_gpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        with_gpu = [node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU")]
        sweeping.SaeTrial = WitnessedTrial
        config = SaeConfig(family=BatchTopK(k=2), d_sae=16, samples=2048)

        def swept(name: str, gpus: float, **more: Any) -> list[Any]:
            return sweep(
                [config] * 5,
                train_path=folder / "train.npy",
                held_out_path=folder / "held_out.npy",
                site="lstm.h",
                storage_path=folder / "sweeps",
                name=name,
                seed=0,
                gpus_per_trial=gpus,
                **more,
            )

        swept("placed", 0.5, device="cpu")  # no CUDA here: only where they land is looked at
        refused = ""
        try:
            swept("refused", 2.0)
        except ValueError as error:
            refused = str(error)
        actors = []
        with Pool(Whereabouts, size=2, num_gpus=1.0, tasks_at_once=1, in_flight=1) as pool:
            actors = [result.value for result in pool.run([Ask(f"t{n}") for n in range(4)])]
        too_many = ""
        try:
            Pool(Whereabouts, size=3, num_gpus=1.0).__enter__()
        except ValueError as error:
            too_many = str(error)
        return {
            "with_gpu": with_gpu,
            "trials": [
                json.loads(line)
                for path in (folder / "trials").iterdir()
                for line in path.read_text().splitlines()
            ],
            "actors": actors,
            "refusals": refusals(),
            "refused_sweep": refused,
            "refused_sweep_began": (folder / "sweeps").exists()
            and any("refused" in path.name for path in (folder / "sweeps").iterdir()),
            "refused_pool": too_many,
        }
    finally:
        ray.shutdown()
        with suppress(Exception):
            cluster.shutdown()


if __name__ == "__main__":
    from tests.cluster.gpu_nodes import main  # so that workers find its classes by their module

    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
