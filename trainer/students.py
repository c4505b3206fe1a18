"""Former module of :mod:`trainer.network_configs`."""

from __future__ import annotations

from trainer.deprecated_names import renamed_module

__getattr__ = renamed_module(
    __name__,
    "trainer.network_configs",
    AnyStudent="AnyNetworkConfig",
    Student="NetworkConfig",
    divisor_of="patch_divisor",
    parameters_of="count_parameters",
    read_student="parse_network_config",
)
