"""Train a small classifier on stored features with plain PyTorch: python train_on_features.py STORE labels.csv

STORE is what `gate extract --output STORE` wrote; labels.csv has the columns file,label, where file is the path of an
image relative to the folder that was extracted. A fifth of the images is held out.
"""

from __future__ import annotations

import csv
import sys

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gate.extraction.dataset import load_features


class Labelled(Dataset[tuple[Tensor, int]]):
    """Features of the first layer and the class of each image that has both."""

    def __init__(self, store: str, table: str) -> None:
        self.store = load_features(store, dtype=torch.float32)
        with open(table, newline="", encoding="utf-8") as stream:
            labels = {row["file"]: row["label"] for row in csv.DictReader(stream)}
        self.rows = [row for row, name in enumerate(self.store.names) if name in labels]
        self.classes = sorted({labels[self.store.names[row]] for row in self.rows})
        self.targets = [self.classes.index(labels[self.store.names[row]]) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        features = self.store[self.rows[i]][self.store.layers[0]]
        return features.flatten(1).mean(1) if features.ndim == 3 else features.flatten(), self.targets[i]


def main(arguments: list[str]) -> float:
    """Train, print, and return the share of held-out images that are classified right."""
    torch.manual_seed(0)
    data = Labelled(*arguments)
    held_out = torch.utils.data.Subset(data, range(0, len(data), 5))
    train = torch.utils.data.Subset(data, [i for i in range(len(data)) if i % 5])
    model = nn.Sequential(nn.BatchNorm1d(len(data[0][0])), nn.Linear(len(data[0][0]), len(data.classes)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    loader = DataLoader(train, batch_size=32, shuffle=True)  # num_workers=4 where features are large
    for _ in range(30):
        for features, targets in loader:
            loss = nn.functional.cross_entropy(model(features), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).float() for x, y in DataLoader(held_out, batch_size=32)]
    share = torch.cat(right).mean().item()
    print(
        f"{len(data)} images, {len(data.classes)} classes; {share:.1%} of {len(held_out)} held-out ones are right"
    )
    return share


if __name__ == "__main__":
    main(sys.argv[1:])
