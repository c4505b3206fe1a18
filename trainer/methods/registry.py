"""The methods by name. A built-in method has a file and a line of :data:`BUILT_IN`.

A user's own method is named ``package.module:Class`` in a recipe, or by the name under which an installed package
offers it in the entry point group ``semiseg.methods``.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Annotated, Any

from pydantic import AfterValidator

from trainer.methods.method import Method

BUILT_IN = {
    "supervised": "trainer.methods.supervised:Supervised",
    "self_training": "trainer.methods.self_training:SelfTraining",
    "mean_teacher": "trainer.methods.mean_teacher:MeanTeacher",
    "uamt": "trainer.methods.uamt:UAMT",
    "cps": "trainer.methods.cps:CPS",
    "acmt": "trainer.methods.acmt:ACMT",
    "magicnet": "trainer.methods.magicnet:MagicNet",
    "bcp": "trainer.methods.bcp:BCP",
    "ict": "trainer.methods.ict:ICT",
    "urpc": "trainer.methods.urpc:URPC",
    "mcnet": "trainer.methods.mcnet:MCNet",
    "admt": "trainer.methods.admt:ADMT",
    "dualfete": "trainer.methods.dualfete:DualFete",
    "dual": "trainer.methods.dual:Dual",
    "mn": "trainer.methods.mn:MN",
    "cfr": "trainer.methods.cfr:CFR",
    "comparative": "trainer.methods.comparative:Comparative",
    "contrastive": "trainer.methods.comparative:Contrastive",
    "atlas": "trainer.methods.atlas:AtlasMethod",
    "committee": "trainer.methods.committee:Committee",
    "mn_2d": "trainer.methods.mn_2d:MN2D",
    "cfr_ft": "trainer.methods.cfr_ft:CFRFT",
    "distil": "trainer.methods.distil:Distil",
}
ENTRY_POINTS = "semiseg.methods"


def method_class(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        ValueError: There is no such method, it cannot be imported, or it is not a method.
    """
    where = BUILT_IN.get(name) or name
    if ":" not in where:
        offered = {point.name: point.value for point in metadata.entry_points(group=ENTRY_POINTS)}
        if name not in offered:
            raise ValueError(f"there is no method {name!r}; there are {', '.join([*BUILT_IN, *sorted(offered)])}")
        where = offered[name]
    found = _imported(where)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ValueError(f"{where} is not a method: it does not derive from trainer.methods.method.Method")
    if not isinstance(getattr(found, "name", None), str) or not hasattr(found, "Config"):
        raise ValueError(f"{where} has no `name`, or no `Config`, which every method has")
    return found


def _known(name: str) -> str:
    method_class(name)
    return name


MethodName = Annotated[str, AfterValidator(_known)]
"""A setting that names another method."""


def _imported(where: str) -> Any:
    module, _, attribute = where.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ValueError(
            f"module {module!r} cannot be imported ({error}); is it installed, or on PYTHONPATH?"
        ) from None
    except AttributeError:
        raise ValueError(f"module {module!r} has no class {attribute!r}") from None
