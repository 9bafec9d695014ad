"""Each public layout, written as it is published, with a few small images."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def image(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (height, width, 3), np.uint8)).save(path)


def mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def spair(root: Path) -> Path:
    for split in ("trn", "test"):
        for i in range(2):
            names = [f"2008_00{i}{k}.jpg" for k in range(2)]
            for name, shape in zip(names, ((40, 30), (64, 48)), strict=True):
                image(root / "JPEGImages" / "cat" / name, *shape)
            said = {
                "pair_id": i,
                "category": "cat",
                "src_imname": names[0],
                "trg_imname": names[1],
                "src_imsize": [40, 30, 3],
                "trg_imsize": [64, 48, 3],
                "src_bndbox": [2, 2, 30, 20],
                "trg_bndbox": [4, 6, 52, 40],
                "src_kps": [[19.5, 14.5], [0, 0]],
                "trg_kps": [[31.5, 23.5], [63, 47]],
                "kps_ids": ["0", "3"],
            }
            at = root / "PairAnnotation" / split / f"{i:06d}-{names[0][:-4]}-{names[1][:-4]}:cat.json"
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_text(json.dumps(said))
    return root


def ade(root: Path) -> Path:
    for split, short in (("training", "train"), ("validation", "val")):
        for i in range(3):
            name = f"ADE_{short}_{i + 1:08d}"
            image(root / "images" / split / f"{name}.jpg", 24, 16)
            values = np.zeros((16, 24))
            values[:, 8:] = 150 - i
            mask(root / "annotations" / split / f"{name}.png", values)
    rows = [f"{i}\t0.1\t1\t1\tthing {i}, kin" for i in range(1, 151)]
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "\n".join(rows) + "\n")
    return root


def cityscapes(root: Path) -> Path:
    for split in ("train", "val"):
        for city in ("aachen", "bonn"):
            name = f"{city}_000000_000019"
            image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", 32, 16)
            values = np.full((16, 32), 7)  # road
            values[:8], values[:, :10] = 33, 3  # bicycle; out of the region of interest
            mask(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", values)
    return root


def horse(root: Path) -> Path:
    root = root / "horse_21"
    for split in ("train", "test"):
        for i in range(2):
            image(root / "real" / split / f"{i}.png", 20, 20)
            values = np.zeros((20, 20), np.uint8)
            values[4:9], values[15:] = 20, 255
            np.save(root / "real" / split / f"{i}.npy", values)
    return root


def cifar(root: Path) -> Path:
    at = root / "cifar-10-batches-py"
    at.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        data = RNG.integers(0, 255, (4, 3072), np.uint8)
        if name == "test_batch":
            data[0] = np.repeat(np.array([200, 100, 50], np.uint8), 1024)  # red, green, blue planes
        batch = {
            b"batch_label": name.encode(),
            b"labels": [0, 9, 3, 3],
            b"data": data,
            b"filenames": [b"a.png"] * 4,
        }
        (at / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"class {i}" for i in range(10)]
    (at / "batches.meta").write_bytes(
        pickle.dumps({"label_names": names, "num_cases_per_batch": 4}, protocol=2)
    )
    return root


def folders(root: Path) -> Path:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for i in range(3 if split == "train" else 1):
                image(root / split / name / f"{i}.jpg", 20, 20)
    return root
