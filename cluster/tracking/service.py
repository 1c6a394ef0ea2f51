"""The other side of the door: asks the process that talks to W&B, and stops waiting when a deadline has passed."""

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.tracking.access import WandbError

START_S = 30.0
"""Seconds that the process may take to import wandb, on top of the first request's own."""


class WandbService:
    """One child process at a time, started when it is first asked; one that misses a deadline is replaced.

    Used by one thread at a time, but `stop` may come from any.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: str | None = None
        self._buffer = b""
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def ask(self, verb: str, *, deadline_s: float, **request: Any) -> Any:  # noqa: ANN401 - JSON
        """The answer to one request.

        Raises:
            FileNotFoundError: W&B has no such run or artifact.
            WandbError: it failed, or there was no answer within the deadline.
        """
        deadline = time.monotonic() + deadline_s + (START_S if self._process is None else 0.0)
        process = self._running()
        line = json.dumps({"verb": verb, **request}).encode() + b"\n"
        try:
            self._write(process, line, deadline)
            answer = json.loads(self._read_line(process, deadline))
        except TimeoutError:
            self._kill()
            raise WandbError(f"W&B gave no answer to {verb} within {deadline_s:.0f} s") from None
        except (OSError, ValueError) as error:
            self._kill()
            raise WandbError(f"the process that talks to W&B ended during {verb}") from error
        if "error" in answer:
            kind = FileNotFoundError if answer["error"] == "missing" else WandbError
            raise kind(answer["reason"])
        return answer["value"]

    def stop(self) -> None:
        """Ends the process at once; nothing can be asked any more."""
        self._stopped = True
        self._kill()

    def _running(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise WandbError("stopped")
            if self._process is None:
                # whatever the client leaves on the disk dies with the process
                self._folder = tempfile.mkdtemp(prefix="sparsight-wandb-")
                names = ("DIR", "CACHE_DIR", "DATA_DIR", "ARTIFACT_DIR")
                folders = {f"WANDB_{name}": str(Path(self._folder, name)) for name in names}
                for folder in folders.values():
                    Path(folder).mkdir()
                self._buffer = b""
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "cluster.tracking.door"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for us; and its children die with it
                    env={
                        **os.environ,
                        **folders,
                        "WANDB_SILENT": "true",
                        "WANDB_MODE": "online",
                        "WANDB_ERROR_REPORTING": "false",
                        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    },
                )
            return self._process

    def _write(self, process: subprocess.Popen[bytes], line: bytes, deadline: float) -> None:
        assert process.stdin is not None
        descriptor = process.stdin.fileno()
        os.set_blocking(descriptor, False)
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_WRITE)
            while line:
                _wait(selector, deadline)
                line = line[os.write(descriptor, line[: 1 << 12]) :]

    def _read_line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                _wait(selector, deadline)
                piece = os.read(descriptor, 1 << 16)
                if not piece:
                    raise OSError("end of input")
                self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _kill(self) -> None:
        with self._lock:
            process, self._process = self._process, None
            folder, self._folder = self._folder, None
            if process is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        with suppress(OSError):
                            pipe.close()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _wait(selector: selectors.BaseSelector, deadline: float) -> None:
    if not selector.select(max(0.0, deadline - time.monotonic())):
        raise TimeoutError
