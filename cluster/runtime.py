"""Ray on this machine: started with a token, with what its workers need, and never asked for more than it has."""

import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import ray

from cluster.handed_in import UNAUTHENTICATED
from cluster.stopping import keeping_sigterm

MIB = 1 << 20
SMALLEST_OBJECT_STORE_BYTES = 128 * MIB

DASHBOARD = "SPARSIGHT_DASHBOARD"
"""1 if a Ray that a verb starts shall have its dashboard: 127.0.0.1:8265, or the next port that is free."""

# Several actors share the cores, so each is one thread: of torch and BLAS, and of the simulator, whose threads are
# switched on by a variable. Actors never talk to W&B, so they do not get its key.
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "METTAGRID_OBS_THREADS": None, "WANDB_API_KEY": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A Ray that runs."""

    num_cpus: int
    """Logical CPUs: what Ray hands out, not what the machine has."""
    address: str
    dashboard_url: str | None
    """None without a dashboard."""

    def __str__(self) -> str:
        shown = (
            f"dashboard http://{self.dashboard_url}"
            if self.dashboard_url
            else f"no dashboard ({DASHBOARD}=1 starts one)"
        )
        return f"ray: {self.num_cpus} CPUs at {self.address}, {shown}"


def start(
    num_cpus: int | None = None,
    *,
    dashboard: bool = False,
    object_store_bytes: int = 1024 * MIB,
    logging_config: ray.LoggingConfig | None = None,
) -> Runtime:
    """Start Ray on this machine, find it started by this process, or join the cluster that RAY_ADDRESS names, as it
    does in a job of that cluster; what follows is then the cluster's own.

    `num_cpus` counts logical CPUs; by default one more than `worker_count()`, so that a pool with an actor per core
    leaves one for Ray Data (ray #44687). About 2.5 s; the dashboard adds to that. `logging_config` is that of workers.

    What is started here has a token always. A cluster without one is joined only if SPARSIGHT_ALLOW_UNAUTHENTICATED is
    1, as it is in jobs that were handed in so.
    """
    if ray.is_initialized():
        return _runtime(
            ray.init(ignore_reinit_error=True, logging_level=logging.WARNING).dashboard_url
        )
    if num_cpus is not None and num_cpus < 1:
        raise ValueError(f"num_cpus is {num_cpus}; Ray needs at least 1")
    # else it would join whatever Ray was last started on this machine, and refuse the CPUs that we ask for
    here = os.environ.get("RAY_ADDRESS", "") in ("", "local")
    needs_token = here or os.environ.get(UNAUTHENTICATED) != "1"
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if needs_token and mode != "token":
        raise ValueError(
            f"RAY_AUTH_MODE is {mode!r}: anybody who reaches this machine could run code on it; unset it or set 'token'"
            + ("" if here else f", or set {UNAUTHENTICATED}=1 to join a cluster without one")
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if needs_token:
        _ensure_token()
    # Ray says on every start that it uses a token; we say so here.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # Ray Data describes every execution on the terminal; jobs show progress of their own.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    with _environment(WORKER_ENVIRONMENT), keeping_sigterm():
        own: dict[str, Any] = {
            "address": "local",
            "num_cpus": worker_count() + 1 if num_cpus is None else num_cpus,
            "include_dashboard": dashboard,
            "dashboard_host": "127.0.0.1",
            "object_store_memory": _object_store_bytes(object_store_bytes),
        }
        context = ray.init(
            **(
                own if here else {}
            ),  # a Ray that runs has its CPUs and memory, and refuses to be told
            log_to_driver=False,
            logging_level=logging.WARNING,
            logging_config=logging_config,
        )
    # Ray reads the mode when it is imported, so setting it here would come too late. For a local start it switches the
    # token on itself and says so in the environment; that default has changed between versions, so look.
    if needs_token and os.environ.get("RAY_AUTH_MODE") != "token":
        ray.shutdown()
        raise ValueError(
            "this Ray runs without a token: anybody who reaches it could run code on it; start it with "
            "RAY_AUTH_MODE=token"
            + ("" if here else f", or set {UNAUTHENTICATED}=1 to join it all the same")
        )
    return _runtime(context.dashboard_url)


def stop() -> None:
    """End the Ray that `start` started; nothing if there is none."""
    ray.shutdown()


def worker_count() -> int:
    """How many busy processes this machine carries: the cores that this process may use, by affinity and cgroup."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, ceil(int(quota) / int(period))))


def check_cpus(pool_cpus: float, *, beside_ray_data: bool = False) -> None:
    """Refuse a pool that would wait for ever: one that needs more CPUs than Ray has, or, if a Ray Dataset is to run
    in the meantime, one that leaves none for it: that hangs without a word (ray #44687).
    """
    available = ray.cluster_resources().get("CPU", 0.0)
    if pool_cpus > available:
        raise ValueError(
            f"the pool needs {pool_cpus:g} CPUs and Ray has {available:g}; use fewer actors or start Ray with more"
        )
    if beside_ray_data and pool_cpus > available - 1:
        raise ValueError(
            f"the pool takes {pool_cpus:g} of Ray's {available:g} CPUs while a Ray Dataset needs one to run, and "
            "would hang (ray #44687); use fewer actors or start Ray with one CPU more"
        )


def _runtime(dashboard_url: str | None) -> Runtime:
    return Runtime(
        num_cpus=int(ray.cluster_resources().get("CPU", 0)),
        address=ray.get_runtime_context().gcs_address,
        dashboard_url=dashboard_url or None,
    )


def _ensure_token() -> None:
    """A token that only its owner can read; Ray itself would create it with the permissions of any file."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        return  # another process was faster
    except OSError as error:
        raise OSError(
            f"Ray's token cannot be written: {error}; name a writable file in RAY_AUTH_TOKEN_PATH"
        ) from error


def _object_store_bytes(wanted: int) -> int:
    """At most most of the free shared memory: beyond it Ray would silently put objects on the disk."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return wanted
    return max(SMALLEST_OBJECT_STORE_BYTES, min(wanted, free * 4 // 5))


@contextmanager
def _environment(variables: dict[str, str | None]) -> Iterator[None]:
    """Set (or, for None, unset) variables for the processes started inside, and put them back."""
    before = {name: os.environ.get(name) for name in variables}
    try:
        _set_environment(variables)
        yield
    finally:
        _set_environment(before)


def _set_environment(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
