"""How a server is reached: by which names, by pages of which servers, and through which proxies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from server.browser_guard import BrowserGuard
from server.forwarded_headers import TrustedProxies

HOSTS_ENV, PROXIES_ENV, PREFIX_ENV = "SEMISEG_ALLOWED_HOSTS", "SEMISEG_PROXIES", "SEMISEG_PATH_PREFIX"


@dataclass(frozen=True)
class AccessOptions:
    """What is said of the way to a server.

    Attributes:
        bind_host: Name or address that it listens on.
        hosts: Further names by which it may be called.
        origins: Origins of other servers whose pages may use it.
        proxies: Addresses and networks of proxies whose X-Forwarded headers are believed.
        prefix: Path below which a proxy shows it.
    """

    bind_host: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    prefix: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> AccessOptions:
        """What the variables of the environment say; several values with blanks in between."""
        hosts, proxies = (tuple(environment.get(name, "").split()) for name in (HOSTS_ENV, PROXIES_ENV))
        return cls(hosts=hosts, proxies=proxies, prefix=environment.get(PREFIX_ENV, ""))

    def browser_guard(self, *, keys: bool) -> BrowserGuard:
        """The check of Host and origin, for a server that asks for ``keys`` or does not.

        Raises:
            InputError: a name is none.
        """
        return BrowserGuard(bind_host=self.bind_host, hosts=self.hosts, origins=self.origins, keys=keys)

    def trusted_proxies(self) -> TrustedProxies:
        """The proxies that are believed.

        Raises:
            InputError: an address or the prefix is none.
        """
        return TrustedProxies(self.proxies, self.prefix)
