"""How a server is reached: by which names, by pages of which servers, and through which proxies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from server.browser_guard import BrowserGuard
from server.forwarded import Proxies

HOSTS, PROXIES, PREFIX = "SEMISEG_ALLOWED_HOSTS", "SEMISEG_PROXIES", "SEMISEG_PATH_PREFIX"


@dataclass(frozen=True)
class Front:
    """What is said of the way to a server.

    Attributes:
        bound: Name or address that it listens on.
        hosts: Further names by which it may be called.
        origins: Origins of other servers whose pages may use it.
        proxies: Addresses and networks of proxies whose X-Forwarded headers are believed.
        prefix: Path below which a proxy shows it.
    """

    bound: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    prefix: str = ""

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Front:
        """What the variables of the environment say; several values with blanks in between."""
        hosts, proxies = (tuple(environment.get(name, "").split()) for name in (HOSTS, PROXIES))
        return cls(hosts=hosts, proxies=proxies, prefix=environment.get(PREFIX, ""))

    def guard(self, *, keys: bool) -> BrowserGuard:
        """The check of Host and origin, for a server that asks for ``keys`` or does not.

        Raises:
            InputError: a name is none.
        """
        return BrowserGuard(bound=self.bound, hosts=self.hosts, origins=self.origins, keys=keys)

    def trusted(self) -> Proxies:
        """The proxies that are believed.

        Raises:
            InputError: an address or the prefix is none.
        """
        return Proxies(self.proxies, self.prefix)
