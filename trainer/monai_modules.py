"""The parts of MONAI that this package uses, imported without the optional packages that MONAI would import as well.

``import monai`` imports all of its modules, and with them PyTorch Ignite and the BERT model of Transformers wherever
these are installed. This takes longer than the rest of MONAI, and nothing here uses it. A program that needs MONAI's
training engines or its BERT models beside this package imports ``monai`` before it; then nothing is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden_packages(*names: str) -> Iterator[None]:
    """Let imports of packages fail that are not imported yet, as if they were not installed.

    A name whose module is None fails to import (Python's reference, section 5.3.1).
    """
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


with hidden_packages("ignite", "transformers"):
    from monai.networks.nets.dynunet import DynUNet as DynUNet
    from monai.networks.nets.flexible_unet import FlexibleUNet as FlexibleUNet
    from monai.networks.nets.segresnet import SegResNet as SegResNet
    from monai.networks.nets.swin_unetr import SwinUNETR as SwinUNETR
    from monai.networks.nets.unet import UNet as UNet
    from monai.networks.nets.unetr import UNETR as UNETR
    from monai.transforms.utils import create_rotate as create_rotate
