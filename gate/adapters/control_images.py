"""Control images of samples, each drawn once: what ControlNets and T2I-Adapters are shown. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gate.adapters.formats import DEPTH_MODEL

if TYPE_CHECKING:
    from torch import Tensor

    from gate.request import Batch


@dataclass
class ControlImages:
    """The control images of samples, each drawn once."""

    depth_model: str = DEPTH_MODEL
    _drawers: dict[str, Any] = field(default_factory=dict)
    _drawn: dict[str, Tensor] = field(default_factory=dict)

    def prepare(self, control: str) -> None:
        """Load what draws it; raises MissingWeightsError."""
        from gate.adapters.drawing import drawer

        if control not in self._drawers:
            self._drawers[control] = drawer(control, self.depth_model)

    def of(self, control: str, batch: Batch) -> Tensor:
        """(b, 3, H, W) in [0, 1]."""
        import torch

        from gate.adapters.drawing import as_tensor

        self.prepare(control)
        keys = [f"{control}/{sample.id}" for sample in batch.samples]
        for key, sample in zip(keys, batch.samples, strict=True):
            if key not in self._drawn:
                self._drawn[key] = as_tensor(self._drawers[control], [sample.image])[0]
        images = torch.stack([self._drawn[key] for key in keys])
        return images.to(batch.backbone.device, batch.backbone.dtype)
