"""Prediction heads, behind one small protocol (:class:`~lain.heads.base.Head`)."""

from common.config import Registry
from lain.heads.base import Head
from lain.heads.dcnv2 import DCNv2Head
from lain.heads.finalmlp import FinalMLPHead
from lain.heads.mlp import MLPHead

HEADS: Registry[Head] = Registry("head", given={"width"})
HEADS.add("mlp", MLPHead)
HEADS.add("dcnv2", DCNv2Head)
HEADS.add("finalmlp", FinalMLPHead)

__all__ = ["HEADS", "Head"]
