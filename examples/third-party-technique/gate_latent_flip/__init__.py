"""A technique from outside gate: features of the image and of its mirror image, averaged."""

from gate_latent_flip.latent_flip import LatentFlip

__all__ = ["LatentFlip"]
