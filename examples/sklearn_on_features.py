"""Cross-validate a linear probe on stored features: python sklearn_on_features.py STORE labels.csv

STORE is what `gate extract --output STORE` wrote; labels.csv has the columns file,label, where file is the path of an
image relative to the folder that was extracted.
"""

from __future__ import annotations

import csv
import sys

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gate.extraction.dataset import load_features


def main(arguments: list[str]) -> float:
    """Print the accuracy of each layer in five folds, and return the best."""
    folder, table = arguments
    store = load_features(folder, dtype=torch.float32)  # numpy has no bfloat16
    with open(table, newline="", encoding="utf-8") as stream:
        labels = {row["file"]: row["label"] for row in csv.DictReader(stream)}
    rows = [row for row, name in enumerate(store.names) if name in labels]
    y = [labels[store.names[row]] for row in rows]
    print(f"{len(rows)} images, {len(set(y))} classes")
    best = 0.0
    for layer in store.layers:
        features = store.arrays(layer)[rows]
        x = features.flatten(2).mean(2) if features.ndim == 4 else features.flatten(1)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        accuracy = cross_val_score(probe, x.numpy(), y, cv=5)
        print(
            f"{layer}: {accuracy.mean():.1%} right (five folds, {accuracy.min():.1%} to {accuracy.max():.1%})"
        )
        best = max(best, float(accuracy.mean()))
    return best


if __name__ == "__main__":
    main(sys.argv[1:])
