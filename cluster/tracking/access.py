"""Is there a W&B server, and a key for it? Asked in seconds and without the client, which would wait for 90 s."""

import configparser
import http.client
import netrc
import os
import queue
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

PUBLIC = "https://api.wandb.ai"
PROBE_S = 4.0
"""Seconds that a server has to answer anything at all."""
KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


class WandbError(OSError):
    """W&B cannot do what it was asked to; the study goes on without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What the environment says of the server; the key itself is never read here."""

    base_url: str
    has_key: bool

    @classmethod
    def of_environment(cls) -> "Access":
        """Raises ValueError if the address holds credentials, which would be shown."""
        base_url = os.environ.get("WANDB_BASE_URL") or _setting("base_url") or PUBLIC
        base_url = base_url.rstrip("/")
        if "@" in urlsplit(base_url).netloc:
            raise ValueError(
                "WANDB_BASE_URL holds credentials: put the key into WANDB_API_KEY and leave https://host"
            )
        return cls(
            base_url=base_url,
            has_key=any(map(os.environ.get, KEY_VARIABLES)) or _in_netrc(base_url),
        )

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).netloc

    def probe(self, timeout_s: float = PROBE_S) -> str | None:
        """Why the server cannot be used, or None if it answers; takes at most about `timeout_s` seconds."""
        if urlsplit(self.base_url).scheme not in ("http", "https") or not self.host:
            return f"WANDB_BASE_URL is {self.base_url!r}, wanted https://host"
        answers: queue.Queue[str | None] = queue.Queue()
        # in a thread of its own, because nothing bounds how long a name may take to be looked up
        threading.Thread(
            target=lambda: answers.put(self._ask(timeout_s)), name="wandb-probe", daemon=True
        ).start()
        try:
            return answers.get(timeout=timeout_s)
        except queue.Empty:
            return f"{self.host} does not answer within {timeout_s:.0f} s"

    def _ask(self, timeout_s: float) -> str | None:
        try:
            with urllib.request.urlopen(self.base_url, timeout=timeout_s):
                return None
        except urllib.error.HTTPError as error:
            return f"{self.host} answers {error.code}" if error.code >= 500 else None
        except urllib.error.URLError as error:
            return f"{self.host} does not answer ({error.reason})"
        except (
            OSError,
            ValueError,
            http.client.HTTPException,
        ) as error:  # also a name that is none
            return f"{self.host} does not answer ({error or type(error).__name__})"


def _setting(name: str) -> str | None:
    """As `wandb login --host` leaves it in the user's settings file."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(Path(folder) / "settings")
    except (configparser.Error, UnicodeDecodeError):
        return None
    return settings.get("default", name, fallback=None)


def _in_netrc(base_url: str) -> bool:
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        hosts = netrc.netrc(str(path)).hosts
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False
    return urlsplit(base_url).netloc in hosts
