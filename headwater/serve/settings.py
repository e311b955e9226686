"""What one server is told when it starts: names, limits, keys. Checked here; nothing in a request changes it."""

import ipaddress
from dataclasses import dataclass, field

from headwater.sampling import SamplingParams

LOCAL_NAMES = ("localhost", "localhost.localdomain")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits in bytes, seconds and requests.

    queue_limit: requests that may wait beside those that run; request_seconds: for one answer, waiting included;
    body_seconds: for a client to send its request; keep_alive_seconds: between signs of life in a silent stream;
    sampling: what a request does not say.
    """

    model_name: str
    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    queue_limit: int = 64
    max_body_bytes: int = 10 * 1024 * 1024
    request_seconds: float = 600.0
    body_seconds: float = 30.0
    keep_alive_seconds: float = 15.0
    shutdown_seconds: float = 60.0
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    web: bool = True

    def __post_init__(self) -> None:
        for name, low in (("port", 0), ("queue_limit", 0), ("max_body_bytes", 1)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: an integer from {low}")
        for name in ("request_seconds", "body_seconds", "keep_alive_seconds", "shutdown_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: seconds above 0")
        if self.port > 65535:
            raise ValueError(f"port is {self.port}; allowed: 0 (any free one) to 65535")
        if any(not k or not k.isascii() or k != k.strip() for k in self.api_keys):
            raise ValueError("an API key is empty, not ASCII or has spaces around it; allowed: printable ASCII")
        if any(o == "*" for o in self.cors_origins) and not self.api_keys:
            raise ValueError(
                "--cors '*' without --api-key lets every web page use this server; set a key, or name origins"
            )
        if not self.loopback and not self.api_keys:
            raise ValueError(
                f"--host is {self.host!r}, which other machines reach, and there is no --api-key;"
                " cure: set a key (or the variable HEADWATER_API_KEY), or listen on 127.0.0.1"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host in LOCAL_NAMES:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
