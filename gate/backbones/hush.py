"""transformers and diffusers, told to keep their remarks to themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """transformers and diffusers without their remarks for a while; errors are raised all the same."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    both: tuple[Any, ...] = (of_diffusers, of_transformers)
    before = [library.get_verbosity() for library in both]
    for library in both:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, verbosity in zip(both, before, strict=True):
            library.set_verbosity(verbosity)
