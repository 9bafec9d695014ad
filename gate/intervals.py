"""Which intervals E-TSDM (Yang et al. 2023) can share a timestep condition in; settings are read without torch."""

from __future__ import annotations


def check_intervals(
    threshold: int, intervals: int, names: tuple[str, str] = ("threshold", "intervals")
) -> None:
    """Raises ValueError where `intervals` equally long ones of whole timesteps do not fill 0 ... threshold.

    names: what the two are called where they were set.
    """
    if threshold < 1 or intervals < 1 or threshold % intervals:
        raise ValueError(
            f"{names[1]} must divide {names[0]}, both 1 or more; got {intervals} and {threshold}."
        )
