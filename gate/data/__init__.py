"""Where samples come from: a folder of images, named data sets, images already in memory."""

from gate.data.folder import load_images
from gate.data.images import fit_image
from gate.data.memory import as_samples
from gate.data.named import DATA, DEFAULT, NamedData, find_data, load_data
from gate.data.scenes import load_scenes

__all__ = [
    "DATA",
    "DEFAULT",
    "NamedData",
    "as_samples",
    "find_data",
    "fit_image",
    "load_data",
    "load_images",
    "load_scenes",
]
