"""A head of Ray of its own: its ports, its token, its folder; as somebody would start one with `ray start`."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

START_TIMEOUT_S = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class RayHead:
    address: str
    """Of the jobs API."""
    folder: Path
    """Of Ray's session: logs, sockets, unpacked code."""
    token_path: Path

    @property
    def token(self) -> str:
        return self.token_path.read_text()


@contextmanager
def ray_head(environment: Mapping[str, str]) -> Iterator[RayHead]:
    """Starts a head with 4 logical CPUs that has these variables beside PATH, HOME and the like; ends all of it."""
    # Short, because Ray's sockets lie in it.
    folder = Path(tempfile.mkdtemp(prefix="rh-", dir="/tmp"))
    token_path = folder / "token"
    token_path.touch(mode=0o600)
    token_path.write_text(secrets.token_hex(32))
    gcs, dashboard, client, agent, metrics = free_ports(5)
    with (folder / "start.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--port", str(gcs), "--ray-client-server-port", str(client)),
                *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
                *("--dashboard-agent-listen-port", str(agent)),
                *("--metrics-export-port", str(metrics), "--temp-dir", str(folder / "s")),
                *("--num-cpus", "4", "--object-store-memory", str(128 << 20)),
            ],
            env={
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "HOME": str(folder),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(token_path),
                "RAY_USAGE_STATS_ENABLED": "0",
                "WANDB_MODE": "disabled",
                **environment,
            },
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        head = RayHead(
            address=f"http://127.0.0.1:{dashboard}", folder=folder, token_path=token_path
        )
        _wait_for(dashboard, process, folder / "start.log")
        yield head
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        left = _ended_by_force(folder)
        process.wait(10)
        shutil.rmtree(folder)
        assert left == [], f"still there: {left}"


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until and process.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=5).close()
        except HTTPError as error:
            if error.code == 401:  # wants a token: it is the jobs API, and it works
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"no head: {log.read_text()[-3000:]}")


def _of(folder: Path) -> dict[int, str]:
    """Processes that name the folder or work in it."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = str((process / "cwd").readlink())
        except OSError:
            continue
        if line and (str(folder) in line or place.startswith(str(folder))):
            found[int(process.name)] = line[:200]
    return found


def _ended_by_force(folder: Path) -> list[str]:
    """What SIGKILL does not end either; nothing, that is."""
    until = time.monotonic() + 10
    while (left := _of(folder)) and time.monotonic() < until:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    return list(left.values())
