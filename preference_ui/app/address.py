"""Where browsers reach a server of ours, and what follows from it: hosts, origins, cookie names, whether it is safe."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from preference_ui.errors import ConfigError


@dataclass(frozen=True)
class Address:
    """A public address.

    Attributes:
        url: scheme, host and port that browsers use, without a path.
    """

    url: str

    @property
    def is_secure(self) -> bool:
        """Whether browsers reach the server over TLS."""
        return urlsplit(self.url).scheme == "https"

    @property
    def hosts(self) -> frozenset[str]:
        """Values of the Host header that are answered; any other may be a name rebound to this address."""
        return frozenset(urlsplit(origin).netloc for origin in self.origins)

    @property
    def origins(self) -> frozenset[str]:
        """Origins whose pages may send writes; on loopback all its names count as one."""
        url = urlsplit(self.url)
        names = {url.netloc}
        if is_loopback(url.hostname or ""):
            port = f":{url.port}" if url.port else ""
            names |= {f"localhost{port}", f"127.0.0.1{port}", f"[::1]{port}"}
        return frozenset(f"{url.scheme}://{name}" for name in names)

    def cookie(self, secure_name: str, plain_name: str) -> str:
        """Name of a cookie.

        ``__Host-`` ties a cookie to this very host and needs TLS. Without TLS the port is in the name: two servers on
        one machine share their cookies.
        """
        return f"__Host-{secure_name}" if self.is_secure else f"{plain_name}_{urlsplit(self.url).port or 80}"


def public_address(
    host: str, port: int, given: str | None, *, scheme: str = "http", insecure: bool, what: str, remedy: str
) -> Address:
    """The address that browsers use.

    Args:
        given: what ``--public-url`` says.
        what: what would travel in clear, e.g. ``"passwords"``.
        remedy: how to do better, for the error.

    Raises:
        ConfigError: secrets would travel unencrypted, or the address has a path or is no address.
    """
    url = (given or f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}").rstrip("/")
    if not url.startswith(("http://", "https://")) or url.count("/") > 2:
        raise ConfigError(f"--public-url {url!r} must look like https://rank.example.org, without a path")
    if host in ("0.0.0.0", "::") and not given:
        raise ConfigError(f"--host {host} needs --public-url: the address that people will open")
    safe = url.startswith("https://") or (is_loopback(host) and not given)
    if not safe and not insecure:
        raise ConfigError(
            f"{url} would send {what} unencrypted: {remedy}, put a TLS proxy in front and give --public-url "
            "https://..., or accept the risk with --insecure"
        )
    return Address(url)


def bind_to(listener: socket.socket, host: str, port: int) -> None:
    """Binds a server's socket.

    Raises:
        ConfigError: no such address or port, or it is taken.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:
        if not 0 <= port <= 65535:
            raise ConfigError(f"--port {port} is no port: give 1 to 65535, or 0 for any free one") from error
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; try --port 0") from error


def is_loopback(host: str) -> bool:
    """Whether a host name or address stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
