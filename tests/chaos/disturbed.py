"""One small recording, made undisturbed and disturbed, and what is compared of the two."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cluster import policies, recordings
from cluster.pool import Pool, Result, Unwatched
from cluster.recorder import RecordingConfig, RecordShard
from cluster.recordings import Plan
from cluster.store import Store
from interp.policies.bundle import PolicyBundle
from interp.policies.ppo import architecture_for
from interp.policies.token_lstm import TokenLstmPolicy
from interp.worlds.mettagrid import MettagridFactory

FACTORY = MettagridFactory.load("forage")
CONFIG = RecordingConfig(
    num_episodes=16, episodes_per_shard=2, sites=("lstm.h",), labels=("landmark", "exploration")
)
ARGUMENTS = (
    *("--world", "forage", "--record.num-episodes", "16", "--record.episodes-per-shard", "2"),
    *("--record.sites", "lstm.h", "--record.labels", "landmark", "exploration"),
)
"""The same recording on the command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table at the end."""

    fault: str
    shards: int
    retries: int | None
    """None where another process counted them."""
    rows: int
    differing_bytes: int
    digest: str


TABLE: list[Line] = []


@dataclass(slots=True)
class Counter(Unwatched):
    """Counts what a run had to do again."""

    retries: int = 0
    quarantined_keys: list[str] = field(default_factory=list)
    lost: int = 0

    def retried(self, key: str, attempt: int, cause: BaseException) -> None:
        self.retries += 1

    def quarantined(self, key: str, cause: BaseException) -> None:
        self.quarantined_keys.append(key)

    def actor_lost(self, actor: str, cause: BaseException) -> None:
        self.lost += 1


def end_all(tmp_path: Path) -> None:
    """Kills every process that was started with the token of that folder, whoever its parent is by now."""
    mark = f"RAY_AUTH_TOKEN_PATH={tmp_path / 'auth_token'}".encode()
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def add_policy(store: Store) -> str:
    torch.manual_seed(0)
    policy = TokenLstmPolicy(architecture_for(FACTORY))
    bundle = PolicyBundle.of(policy.architecture, policy.state_dict())
    return policies.save(store, bundle, name="fresh", run="t-0", step=0, world="forage").policy_id


def objects(store: Store) -> dict[str, bytes]:
    """All of the recordings: plans, shards, receipts, manifests."""
    return {key: store.get(key) for key in store.list("recordings")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The recording as nobody disturbed it."""

    plan: Plan
    objects: dict[str, bytes]

    @property
    def digest(self) -> str:
        key = recordings.manifest_key(self.plan.recording_id)
        return hashlib.sha256(self.objects[key]).hexdigest()

    def compare(self, fault: str, store: Store, *, retries: int | None = None) -> str:
        """Fails unless the store has the same objects; the digest of its manifest."""
        found = objects(store)
        manifest = recordings.open_manifest(store, self.plan.recording_id)
        recordings.verify(store, manifest)
        digest = hashlib.sha256(found[manifest.key]).hexdigest()
        differing = sum(
            _differing(found.get(key, b""), self.objects.get(key, b""))
            for key in found.keys() | self.objects.keys()
        )
        TABLE.append(
            Line(
                fault=fault,
                shards=len(manifest.receipts),
                retries=retries,
                rows=manifest.rows,
                differing_bytes=differing,
                digest=digest,
            )
        )
        assert found.keys() == self.objects.keys()
        assert differing == 0
        assert digest == self.digest
        return digest


def _differing(left: bytes, right: bytes) -> int:
    return abs(len(left) - len(right)) + sum(a != b for a, b in zip(left, right, strict=False))


def missing_tasks(store: Store, plan: Plan) -> list[RecordShard]:
    recordings.begin(store, plan)
    return [
        RecordShard(plan=plan, shard=shard, factory=FACTORY)
        for shard in recordings.missing_shards(store, plan)
    ]


def record_on(
    pool: Pool,
    store: Store,
    plan: Plan,
    *,
    between: Callable[[Result[RecordShard]], None] = lambda _: None,
) -> Counter:
    """Records what is missing, calling `between` after every shard, and commits."""
    counter = Counter()
    for result in pool.run(missing_tasks(store, plan), counter):
        between(result)
    recordings.commit(store, plan)
    return counter


class Job:
    """`sparsight record` in a process of its own, with a Ray of its own."""

    def __init__(self, store: Store, plan: Plan, tmp_path: Path, *more: str) -> None:
        self._store = store
        self._plan = plan
        environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "auth_token")}
        environment.pop("RAY_ADDRESS", None)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jobs.main", "record", "--store", store.url),
                *("--policy", plan.inputs["policy"], "--actors", "2", *ARGUMENTS, *more),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_receipts(self, number: int) -> None:
        """Until so many shards are committed, and not all of them."""
        deadline = time.monotonic() + 90
        while self.num_receipts < number:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @property
    def num_receipts(self) -> int:
        return len(self._store.list(f"recordings/{self._plan.recording_id}/receipts"))

    def end(self) -> tuple[int, str]:
        """Exit status, and what was said on stderr."""
        _, said = self.process.communicate(timeout=120)
        return self.process.returncode, said
