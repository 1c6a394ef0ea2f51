"""Is there a W&B server, and a key for it? Asked in seconds and without the client, which would wait for 90 s."""

import configparser
import http.client
import netrc
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.uris import PUBLIC_WANDB

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
        base_url = (
            os.environ.get("WANDB_BASE_URL") or _setting("base_url") or PUBLIC_WANDB
        ).rstrip("/")
        return cls(
            base_url=base_url,
            has_key=any(map(os.environ.get, KEY_VARIABLES)) or _in_netrc(base_url),
        )

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).netloc

    def probe(self, timeout_s: float = PROBE_S) -> str | None:
        """Why the server cannot be used, or None if it answers; takes at most about `timeout_s` seconds."""
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return f"WANDB_BASE_URL is {self.base_url!r}, wanted https://host"
        try:
            if parts.scheme == "https":
                connection = http.client.HTTPSConnection(
                    parts.hostname,
                    parts.port,
                    timeout=timeout_s,
                    context=ssl.create_default_context(),
                )
            else:
                connection = http.client.HTTPConnection(
                    parts.hostname, parts.port, timeout=timeout_s
                )
            try:
                connection.request("GET", "/")
                status = connection.getresponse().status
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            return f"{self.host} does not answer ({error or type(error).__name__})"
        return f"{self.host} answers {status}" if status >= 500 else None


def _setting(name: str) -> str | None:
    """As `wandb login --host` leaves it in the user's settings file."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    settings = configparser.ConfigParser()
    try:
        settings.read(Path(folder) / "settings")
    except (configparser.Error, UnicodeDecodeError):
        return None
    return settings.get("default", name, fallback=None)


def _in_netrc(base_url: str) -> bool:
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        hosts = netrc.netrc(str(path)).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return urlsplit(base_url).netloc in hosts
