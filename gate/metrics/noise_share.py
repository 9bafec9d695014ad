"""What a feature varies with: the image, the noise, or neither."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gate.metric import Metric, as_float

if TYPE_CHECKING:
    from torch import Tensor

    from gate.metric import Pass

Array = npt.NDArray[Any]
DEGENERATE = 1e-6  # of a regressor's energy: what is left of it beside the other is rounding


def variance_shares(f: Tensor, f_image: Tensor, f_noise: Tensor) -> Tensor:
    """Shares of a feature's variance over positions that come from the image, from the noise alone, and from neither.

    Least squares f = a f_image + b f_noise + rest, channels centred, one a and b a sample. The image's share is what
    it explains by itself, the noise's what it explains beyond. All (n, c, h, w) -> (n, 3), >= 0, sums to 1. A feature
    that does not vary has all of it in the rest.
    """
    import torch

    f, image, noise = (x - x.mean(dim=(2, 3), keepdim=True) for x in as_float(f, f_image, f_noise))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=(1, 2, 3))

    def explained(along: Tensor, energy: Tensor) -> Tensor:
        """R^2 of f on one regressor; 0 where there is none."""
        whole = dot(f, f) * energy
        return torch.where(whole > 0, dot(f, along).square() / torch.where(whole > 0, whole, 1), 0 * whole)

    of_image = dot(image, image)
    slope = dot(noise, image) / torch.where(of_image > 0, of_image, torch.ones_like(of_image))
    beyond = noise - slope[:, None, None, None] * image
    left = dot(beyond, beyond)
    left = torch.where(left > DEGENERATE * dot(noise, noise), left, 0 * left)
    first, second = explained(image, of_image), explained(beyond, left)
    return torch.stack([first, second, 1 - first - second], dim=1)


class NoiseShare(Metric):
    """The share of a feature's variance that the noise explains beyond the image: what CleanDIFT sets out to remove.

    F_t is regressed on F_0, the clean image through the same technique, and on F_999, the same noise with hardly any
    image, one further pass at the last timestep; mean over layers. Columns: shares of the image, of the noise, of
    neither. A technique that starts from the clean latent has no noise in it at all. The decomposition is ours; that
    noise takes part of the feature, and that an ensemble over noises averages it away, is Stracke et al. 2024.
    """

    name = "noise-share"
    summary = "Share of the features' variance that comes from the noise and not from the image"
    source = "ours; after Stracke et al. 2024, CleanDIFT (arXiv 2412.03439)"
    unit = "share of variance over positions"
    direction = "lower"
    range = (0.0, 1.0)
    compares = "pass"
    needs = frozenset({"features", "second-pass"})
    columns_each = 3
    scale_invariant = True
    standard = False
    weakness = (
        "Linear, with one factor for all channels: what noise and image do together counts as neither, and "
        "neither is no error here."
    )

    def measure(self, seen: Pass) -> Tensor:
        import torch

        assert seen.again is not None
        last = len(seen.request.batch.backbone.schedule) - 1
        noise = seen.again(seen.request.at(last)).features
        shares = [
            variance_shares(f, seen.own[layer], noise[layer]) for layer, f in seen.response.features.items()
        ]
        return torch.stack(shares).mean(dim=0)

    def error_of_sums(self, sums: Array, n: Array) -> npt.NDArray[np.float64]:
        return np.asarray(sums[..., 1] / n, dtype=np.float64)
