"""Local copies of public data sets, in the layouts that they are published in."""

from gate.data.public.choose import Halves, load_public

__all__ = ["Halves", "load_public"]
