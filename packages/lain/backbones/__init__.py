"""The published backbones, behind one small protocol (:class:`~lain.backbones.base.Backbone`)."""

from lain.backbones.base import Backbone, Interests
from lain.backbones.dien import DIEN
from lain.backbones.din import DIN
from lain.backbones.sdim import SDIM
from lain.backbones.sim import SIM
from lain.backbones.twin import TWIN

BACKBONES: dict[str, type[Backbone]] = {b.name: b for b in (DIN, DIEN, SIM, SDIM, TWIN)}

__all__ = ["BACKBONES", "Backbone", "Interests"]
