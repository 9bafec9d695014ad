"""Distance between an image and its reconstruction: structure (SSIM) and edges, half and half."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gate.metric import Metric, as_float, same_shape

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03  # Wang et al. 2004, for a dynamic range of 1
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def gaussian_window(size: int, sigma: float = SIGMA) -> Tensor:
    """A one-dimensional Gaussian window that sums to 1, (size,) float64."""
    import torch

    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-(x**2) / (2 * sigma**2))
    return weights / weights.sum()


def structural_similarity(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean SSIM (Wang et al. 2004, Eq. 13) over channels and windows, data range 1.

    image, reconstruction: (b, c, h, w) in [0, 1]. Returns (b,) in [-1, 1]; 1 = equal. Windows of 11 x 11 that
    lie wholly inside the image, Gaussian with sigma 1.5; in a smaller image the window is the largest odd
    square that fits. The mean is over R, G and B, where Wang et al. take the luminance: a wrong hue is a
    shift too.
    """
    same_shape(image, reconstruction, "Image and reconstruction")
    x, y = as_float(image, reconstruction)
    side = min(WINDOW, *x.shape[2:])
    window = gaussian_window(side - (side + 1) % 2).to(x)

    mu_x, mu_y = _blur(x, window), _blur(y, window)
    var_x = _blur(x * x, window) - mu_x**2
    var_y = _blur(y * y, window) - mu_y**2
    cov = _blur(x * y, window) - mu_x * mu_y
    c1, c2 = K1**2, K2**2
    ssim = ((2 * mu_x * mu_y + c1) * (2 * cov + c2)) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    return ssim.mean(dim=(1, 2, 3))


def _blur(x: Tensor, window: Tensor) -> Tensor:
    """Filter each channel where the window fits: (b, c, h, w) -> (b, c, h - k + 1, w - k + 1)."""
    import torch.nn.functional as F

    b, c, h, w = x.shape
    planes = x.reshape(b * c, 1, h, w)
    planes = F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return planes.reshape(b, c, *planes.shape[2:])


def edge_strength(image: Tensor) -> Tensor:
    """Sobel gradient magnitude of the luminance, (b, 3, h, w) -> (b, h, w), >= 0. The border repeats."""
    import torch
    import torch.nn.functional as F

    luma = (image * image.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    across = image.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([across, across.mT]).unsqueeze(1)  # (2, 1, 3, 3)
    return F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), kernels).norm(dim=1)


def edge_agreement(image: Tensor, reconstruction: Tensor) -> Tensor:
    """F1 of edges without a threshold: 2 sum(min(a, b)) / (sum(a) + sum(b)), a and b the edge strengths.

    sum(min) / sum(b) is the share of the reconstruction's edges that the image has (precision), sum(min) /
    sum(a) the share of the image's that survive (recall); this is their harmonic mean. image, reconstruction:
    (b, 3, h, w) in [0, 1]. Returns (b,) in [0, 1]; 1 = equal, also where neither has an edge.
    """
    import torch

    same_shape(image, reconstruction, "Image and reconstruction")
    image, reconstruction = as_float(image, reconstruction)
    a, b = edge_strength(image).flatten(1), edge_strength(reconstruction).flatten(1)
    shared, total = torch.minimum(a, b).sum(dim=1), a.sum(dim=1) + b.sum(dim=1)
    flat = total == 0
    return torch.where(
        flat, torch.ones_like(total), 2 * shared / torch.where(flat, torch.ones_like(total), total)
    )


class Image(Metric):
    """0.5 (1 - SSIM) + 0.5 (1 - edge agreement), in [0, 1.5]: img2img at high strength, judged in numbers."""

    name = "image"
    summary = "SSIM and edge agreement between the input and its reconstruction by img2img at high strength"
    source = (
        "Meng et al. 2024 (arXiv 2410.06719), Sec. 5.1; SSIM: Wang et al. 2004, Eq. 13; edges: Sobel, soft F1"
    )
    unit = "mean of 1 - SSIM and 1 - edge F1"
    direction = "lower"
    range = (0.0, 1.5)
    compares = "image"
    scale_invariant = False
    weakness = (
        "Both halves want pixels in place: the same content moved by a few pixels counts as lost, and a "
        "blurred reconstruction loses less than one with wrong but sharp detail."
    )

    def distance(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        ssim = structural_similarity(image, reconstruction)
        return 0.5 * (1 - ssim) + 0.5 * (1 - edge_agreement(image, reconstruction))
