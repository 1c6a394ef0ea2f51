"""A small study through the whole pipeline on three nodes, undisturbed and then under faults of every kind at once:

python -m tests.chaos.three_nodes FOLDER SEED [calm]

The undisturbed study rests in a folder and hears of no W&B server; the disturbed one rests on S3 and its server goes
down. Writes an `Outcome` as JSON. Faults are drawn from the seed; when they strike depends on the machine.
"""

import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster

from cluster import recordings
from cluster.store import Store
from tests.chaos.comparison import contents, differences
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.wandb_server import WandbServer

STUDY = "small"
ARGUMENTS = (
    *("pipeline", "demo", "--study", STUDY, "--actors", "2"),
    *("--concepts-per-policy", "1", "--stability-seeds", "1"),
    *("--train.worlds", "forage", "--train.seeds", "0", "--train.num-checkpoints", "2"),
    *("--train.budget-agent-steps", str(2 * 4096), "--evaluate.num-episodes", "10"),
    *("--record.num-episodes", "40", "--record.episodes-per-shard", "8"),
    *("--sweep.d-sae", "64", "--sweep.samples", "20000", "--sweep.k", "16"),
    *("--sweep.l1", "1", "--sweep.target-l0", "4", "40"),
    *("--score.num-permutations", "1500", "--score.min-auroc", "0.5", "--score.max-q-value", "0.2"),
    *("--steer.selection-episodes", "4", "--steer.num-episodes", "10"),
    *("--steer.num-random-latents", "4"),
    *("--steer.add-doses", "0", "2", "--steer.clamp-doses", "0", "--steer.ablate-doses", "0", "1"),
    *("--evolve.episodes-per-player", "10"),
    *("--attempts", "20"),
)
"""Every stage, as small as its statistics allow; lenient limits, so that a policy of no training has concepts."""

BETWEEN_KILLS_S = (3.0, 6.0)
"""On a machine that does nothing else; as much longer as the undisturbed study takes longer than `QUIET_S`. Then a
worker is killed that is drawn from all, whether it works, waits or is idle. Now and then a task would use up 3
attempts, and be set aside as it should; so the studies have more."""
QUIET_S = 90.0
"""What the undisturbed study takes on two cores that do nothing else."""
S3_FAULT_SHARE = 0.03
S3_FAULTS = ("503", "500", "drop", "lose the reply", "cut")
STALLS = 2
"""Requests that the server never answers; each costs a client its read timeout."""
LIMIT_S = 1200.0
IDLE = "idle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of both studies."""

    undisturbed_s: float
    disturbed_s: float
    rows: int
    num_objects: int
    differing: tuple[str, ...]
    """Keys, each with what is wrong about it."""
    faults: dict[str, int]
    own_ends: tuple[str, ...]
    """What drivers said that ended with an error without having been killed."""

    @classmethod
    def of(cls, text: str) -> "Outcome":
        content = json.loads(text)
        for name in ("differing", "own_ends"):
            content[name] = tuple(content[name])
        return cls(**content)


def describe(outcome: Outcome) -> str:
    """The figures, for people."""
    lines = [
        "",
        "a study on three nodes under faults",
        f"  {outcome.num_objects} objects compared, {len(outcome.differing)} differ; {outcome.rows:,} rows recorded",
        f"  undisturbed {outcome.undisturbed_s:.0f} s, disturbed {outcome.disturbed_s:.0f} s",
        *(f"  {count:4} {kind}" for kind, count in sorted(outcome.faults.items())),
        "",
    ]
    return "\n".join(lines)


class Nodes:
    """A head and two nodes with an imagined GPU each, all on this machine."""

    def __init__(self) -> None:
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False},
        )
        self.others = [self.cluster.add_node(num_cpus=2, num_gpus=1) for _ in range(2)]
        self.cluster.wait_for_nodes()

    def lose_one(self) -> None:
        """The busier of the two."""
        busiest = max(
            self.others, key=lambda node: sum(what != IDLE for what, _ in self._workers_of([node]))
        )
        self.others.remove(busiest)
        self.cluster.remove_node(busiest, allow_graceful=False)

    def join_one(self) -> None:
        self.others.append(self.cluster.add_node(num_cpus=2, num_gpus=1))

    def workers(self) -> list[tuple[str, int]]:
        """What workers of these nodes do, and their processes."""
        return self._workers_of([self.cluster.head_node, *self.others])

    def _workers_of(self, nodes: list[Any]) -> list[tuple[str, int]]:
        raylets = {
            started.process.pid
            for node in nodes
            for started in node.all_processes.get("raylet", ())
        }
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    title = (folder / "cmdline").read_bytes().split(b"\0")[0].decode().strip()
                    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if parent in raylets and title.startswith("ray::") and not title.endswith("Agent"):
                    what = title.removeprefix("ray::").split("(")[0]
                    found.append((IDLE if what.startswith("IDLE") else what, int(folder.name)))
        return sorted(found)


class Driver:
    """`sparsight pipeline` in a process of its own, which joins the nodes; trials go where a GPU is."""

    def __init__(self, nodes: Nodes, store: Store, log: Path) -> None:
        self._log = log
        environment = {**os.environ, "RAY_ADDRESS": nodes.cluster.address}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.on_gpus", *ARGUMENTS, "--store", store.url],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        return self._log.read_text()[-3000:]


class S3Weather:
    """What a proxy does to requests: now and then a fault, of every kind before one comes again."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._due: list[str] = []
        self.count: Counter[str] = Counter()

    def __call__(self, request: str) -> str | None:
        if self._random.random() >= S3_FAULT_SHARE:
            return None
        if not self._due:
            kinds = [*S3_FAULTS, *(["stall"] if self.count["S3 stall"] < STALLS else [])]
            self._due = self._random.sample(kinds, len(kinds))
        # only an answer with a body can be cut
        fault = next(
            (kind for kind in self._due if kind != "cut" or request.startswith("GET")), None
        )
        if fault is None:
            return None
        self._due.remove(fault)
        self.count[f"S3 {fault}"] += 1
        return fault


class Progress:
    """How far a study is, from what its store and workspace hold."""

    def __init__(self, list_keys: Callable[[], list[str]], cache: Path) -> None:
        self._list_keys = list_keys
        self._cache = cache

    def marks(self) -> set[str]:
        keys = self._list_keys()
        receipts = sum("/receipts/" in key for key in keys)
        trained = list(self._cache.glob("**/trial-*/checkpoint_*"))
        reached = {
            "recording": receipts >= 1,
            "recorded some": receipts >= 3,
            "sweeping": bool(trained),
            "swept some": len(trained) >= 4,
            "steering": any("scratch/steering/" in key for key in keys),
        }
        return {mark for mark, is_reached in reached.items() if is_reached}


def disturb(
    nodes: Nodes,
    start: Callable[[], Driver],
    progress: Progress,
    wandb: WandbServer,
    *,
    seed: int,
    slowness: float,
) -> tuple[Counter[str], list[str]]:
    """Runs drivers until one ends well; the faults that it met, and what was said by those that failed."""
    draw, faults, own_ends = random.Random(seed), Counter[str](), []
    driver = start()

    def next_kill() -> float:
        return time.monotonic() + slowness * draw.uniform(*BETWEEN_KILLS_S)

    def kill_driver() -> None:
        nonlocal driver
        driver.kill()
        driver = start()

    plan: list[tuple[str, str, Callable[[], None]]] = [
        ("recording", "W&B server gone", wandb.close),
        ("recording", "node lost", nodes.lose_one),
        ("recorded some", "driver SIGKILL", kill_driver),
        ("sweeping", "node joined", nodes.join_one),
        ("swept some", "driver SIGKILL", kill_driver),
        ("steering", "driver SIGKILL", kill_driver),
    ]
    kill_at, deadline = next_kill(), time.monotonic() + LIMIT_S
    while (status := driver.process.poll()) != 0:
        if time.monotonic() > deadline:
            driver.kill()
            own_ends.append(f"not done after {LIMIT_S:.0f} s: {driver.said}")
            break
        if status is not None:
            own_ends.append(driver.said)
            if len(own_ends) == 3:
                break
            driver = start()
        marks = progress.marks()
        if plan and plan[0][0] in marks:
            _, name, act = plan.pop(0)
            act()
            faults[name] += 1
        if time.monotonic() >= kill_at:
            kill_at = next_kill()
            if workers := nodes.workers():
                what, pid = draw.choice(workers)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                faults[f"worker SIGKILL {what}"] += 1
        time.sleep(0.3)
    return faults, own_ends


@contextmanager
def s3(folder: Path) -> Iterator[tuple[FaultProxy, Store, Callable[[], list[str]]]]:
    """A server behind a proxy, a store on it, and how its keys are listed around the proxy."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    upstream = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    upstream.start()
    host, port = upstream.get_host_and_port()
    proxy = FaultProxy(f"http://{host}:{port}")
    os.environ |= {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "AKIDTEST",
        "AWS_SECRET_ACCESS_KEY": "chaos",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
        "SPARSIGHT_CACHE": str(folder / "cache"),
    }
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="chaos")

    def keys() -> list[str]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="chaos")
        return [one["Key"] for page in pages for one in page.get("Contents", ())]

    yield proxy, Store.open("s3://chaos/store"), keys
    proxy.close()
    upstream.stop()


def rows(store: Store) -> int:
    found = {key.split("/")[1] for key in store.list("recordings")}
    return sum(recordings.open_manifest(store, recording).rows for recording in found)


def main(folder: Path, seed: int, *, calm: bool) -> Outcome:
    """Both studies, one after the other on the same nodes; `calm` leaves the faults out."""
    os.environ |= {"WANDB_PROJECT": "chaos", "WANDB_API_KEY": "c4" * 20}
    numbers = itertools.count()
    with s3(folder) as (proxy, disturbed, keys):
        wandb = WandbServer()
        os.environ |= {"WANDB_BASE_URL": wandb.url, "WANDB_CONFIG_DIR": str(folder / "wandb")}
        os.environ |= {"NETRC": str(folder / "no-netrc"), "WANDB_MODE": "offline"}
        nodes = Nodes()
        undisturbed = Store.open(folder / "undisturbed")
        try:

            def driver(store: Store) -> Driver:
                return Driver(nodes, store, folder / f"driver-{next(numbers)}.log")

            began = time.monotonic()
            first = driver(undisturbed)
            assert first.process.wait(timeout=LIMIT_S) == 0, first.said
            undisturbed_s = time.monotonic() - began

            os.environ["WANDB_MODE"] = "offline" if calm else "online"
            weather = S3Weather(seed)
            began = time.monotonic()
            if calm:
                second = driver(disturbed)
                assert second.process.wait(timeout=LIMIT_S) == 0, second.said
                faults, own_ends = Counter[str](), []
            else:
                proxy.fault = weather
                progress = Progress(keys, folder / "cache")
                faults, own_ends = disturb(
                    nodes,
                    lambda: driver(disturbed),
                    progress,
                    wandb,
                    seed=seed,
                    slowness=max(1.0, undisturbed_s / QUIET_S),
                )
                proxy.fault = lambda _: None
            disturbed_s = time.monotonic() - began
        finally:
            nodes.cluster.shutdown()
        differing = (
            () if own_ends else tuple(differences(contents(undisturbed), contents(disturbed)))
        )
        return Outcome(
            undisturbed_s=undisturbed_s,
            disturbed_s=disturbed_s,
            rows=rows(disturbed) if not own_ends else 0,
            num_objects=len(contents(undisturbed)),
            differing=differing,
            faults=dict(faults + weather.count),
            own_ends=tuple(own_ends),
        )


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("ended")
    )  # nodes are taken down on the way out
    outcome = main(Path(sys.argv[1]), int(sys.argv[2]), calm="calm" in sys.argv[3:])
    sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
