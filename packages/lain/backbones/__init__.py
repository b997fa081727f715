"""The published backbones, behind one small protocol (:class:`~lain.backbones.base.Backbone`)."""

from common.config import Registry
from lain.backbones.base import Backbone, Interests, Memory
from lain.backbones.dien import DIEN
from lain.backbones.din import DIN
from lain.backbones.eta import ETA
from lain.backbones.sdim import SDIM
from lain.backbones.sim import SIM
from lain.backbones.twin import TWIN

BACKBONES: Registry[Backbone] = Registry("backbone", given={"width", "context_width"})
BACKBONES.add("din", DIN)
BACKBONES.add("dien", DIEN)
BACKBONES.add("sim", SIM)
BACKBONES.add("sdim", SDIM)
BACKBONES.add("twin", TWIN)
BACKBONES.add("eta", ETA)

__all__ = ["BACKBONES", "Backbone", "Interests", "Memory"]
