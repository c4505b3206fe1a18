"""Cross pseudo supervision: each network is taught by the other's decisions, alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.trainer.factories import build_method, make_batch, make_tiny_recipe
from trainer.losses import supervised_loss
from trainer.methods.cps import CPS


def cps(changes: dict[str, Any] | None = None, **switches: Any) -> CPS:
    method = build_method(make_tiny_recipe("cps", {"batch": 4, **(changes or {})}, **switches))
    assert isinstance(method, CPS)
    return method


def networks_of(method: CPS) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return method.build()


def test_the_two_networks_start_apart() -> None:
    a, b = networks_of(cps()).values()
    assert not any(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True) if p.ndim > 1)


@pytest.mark.parametrize(("on", "first"), [("unlabelled", 2), ("all", 0)])
def test_the_loss_written_out(on: str, first: int) -> None:
    method = cps(weight=2.0, ramp=0.0, pseudo_on=on)
    networks = networks_of(method)
    batch = make_batch(2, 2)
    a, b = (n(batch.images) for n in networks.values())
    supervised = sum(supervised_loss(y[:2], batch.labels[:2], method.targets) for y in (a, b))
    crossed = functional.cross_entropy(a[first:], b[first:].argmax(1))
    crossed = crossed + functional.cross_entropy(b[first:], a[first:].argmax(1))
    torch.testing.assert_close(method.loss(networks, batch, method.step_plan(3))["total"], supervised + 2.0 * crossed)


def test_the_loss_is_the_same_when_the_two_are_swapped() -> None:
    method = cps(weight=1.0, ramp=0.0)
    networks = networks_of(method)
    swapped = {"student": networks["second"], "second": networks["student"]}
    batch = make_batch(2, 2)
    one, other = (method.loss(n, batch, method.step_plan(0))["total"] for n in (networks, swapped))
    torch.testing.assert_close(one, other)


def test_each_is_taught_by_the_other_and_no_gradient_passes_through_a_decision() -> None:
    a = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    b = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    cps()._taught(a, by=b).backward()
    assert a.grad is not None
    assert float(a.grad.abs().max()) > 0
    assert b.grad is None


def test_the_crossed_term_teaches_both_networks() -> None:
    method = cps()
    networks = networks_of(method)
    images = make_batch(0, 2).images
    method.crossed(networks["student"](images), networks["second"](images)).backward()
    for network in networks.values():
        weights = [p.grad for name, p in network.named_parameters() if name.endswith("weight")]
        assert max(float(g.abs().max()) for g in weights if g is not None) > 1e-6


def test_both_learn_at_the_same_rate_and_one_is_kept() -> None:
    method = cps(export="second")
    rates = method.step_plan(2).rates
    assert set(rates) == {"student", "second"}
    assert rates["student"] == rates["second"]
    networks = networks_of(method)
    assert method.exported(networks) is networks["second"]
