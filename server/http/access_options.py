"""Options for the access to a server: allowed host names and origins, and trusted proxies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from server.browser_guard import BrowserGuard
from server.forwarded_headers import TrustedProxies

HOSTS_ENV, PROXIES_ENV, PREFIX_ENV = "SEMISEG_ALLOWED_HOSTS", "SEMISEG_PROXIES", "SEMISEG_PATH_PREFIX"


@dataclass(frozen=True)
class AccessOptions:
    """Options for the access to a server.

    Attributes:
        bind_host: Name or address on which the server listens.
        hosts: Further host names under which the server may be addressed.
        origins: Origins of other servers whose pages may use it.
        proxies: Addresses and networks of proxies whose X-Forwarded headers are used.
        prefix: Path prefix under which a proxy publishes the server.
    """

    bind_host: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    prefix: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> AccessOptions:
        """Read the options from environment variables; several values are separated by spaces."""
        hosts, proxies = (tuple(environment.get(name, "").split()) for name in (HOSTS_ENV, PROXIES_ENV))
        return cls(hosts=hosts, proxies=proxies, prefix=environment.get(PREFIX_ENV, ""))

    def browser_guard(self, *, keys: bool) -> BrowserGuard:
        """Make the check of the Host and Origin headers.

        Args:
            keys: True if the server asks for API keys.

        Raises:
            InputError: A host name is invalid.
        """
        return BrowserGuard(bind_host=self.bind_host, hosts=self.hosts, origins=self.origins, keys=keys)

    def trusted_proxies(self) -> TrustedProxies:
        """Make the list of trusted proxies.

        Raises:
            InputError: An address or the prefix is invalid.
        """
        return TrustedProxies(self.proxies, self.prefix)
