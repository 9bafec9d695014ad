"""Amalgamation: one feature out of several, by weights that are learned with the head (GATE, section 5.4, Eq. 3-5)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gate.errors import ConfigurationError, UsageError
from gate.tasks.stem import Features, Joined, Stem, initialise, largest_grid

MARK = "|"  # between a source and its layer in the key of a feature
BOTTOM = 1e-12  # under the root of a norm: its slope at 0 is 0, not NaN
KIND, OWN = "gate-amalgamation", "amalgam."


def key_of(source: str, layer: str) -> str:
    """The key of a source's layer among features that are amalgamated."""
    return f"{source}{MARK}{layer}"


@dataclass(frozen=True)
class Amalgamation:
    """Settings of an amalgamation, and what makes one for training features and a seed (`Task.stem`).

    assigners: n of Eq. 3. sparsity, diversity: g1 and g2 of Eq. 5. per_channel: weights of each channel by itself, as
    in the released code, instead of one of each feature, as printed.
    Raises UsageError for impossible settings.
    """

    assigners: int = 3
    sparsity: float = 0.01
    diversity: float = 0.01
    per_channel: bool = False

    def __post_init__(self) -> None:
        if self.assigners < 1:
            raise UsageError(f"An amalgamation has 1 assigner or more, not {self.assigners}.")
        if not (self.sparsity >= 0 and self.diversity >= 0):
            raise UsageError("The penalties of an amalgamation, sparsity and diversity, are 0 or more.")

    def __call__(self, features: Features, seed: int) -> Amalgam:
        """The amalgam of these training features, {"SOURCE|LAYER": (n, c, h, w)}, with first weights by the seed."""
        made = Amalgam({key: x.shape[1:] for key, x in features.items()}, self)
        made.joined = Joined.fitted(features)
        initialise(made, seed)
        with torch.no_grad():  # unequal from the start: where weights are equal, neither penalty has a slope
            g = torch.Generator().manual_seed(seed)
            made.preference.copy_(0.5 * torch.randn(made.preference.shape, generator=g))
        return made


class Amalgam(Stem):
    """b features r_i of one shape become r = concat_j sum_i w_i^j r_i; what is unweighted is concatenated afterwards.

    An assigner j reads every feature's channel means, and gives it a score: their mean, each weighed alike for all
    features, plus a preference of each feature's own. A softmax over features makes weights of the scores,
    sum_i w_i^j = 1, of each image. Features are standardised first (`Joined`), each by its own moments. A mean and no
    sum, for Adam moves every weight as far: over c channels a sum moves c times as far as the preference, and the
    weights come to jump between features from image to image (docs/paper-order.md has what that costs).

    shapes: (c, h, w) by key. A key "SOURCE|LAYER" is a layer of the feature of that source; every source has the same
    layers in the same shapes. A key without a source is unweighted: the paper's attention feature.
    Raises ConfigurationError where sources differ in their layers or shapes.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], settings: Amalgamation) -> None:
        super().__init__()
        self.settings, self.shapes = settings, {key: tuple(shape) for key, shape in shapes.items()}
        self.sources, self.layers = _sources(self.shapes)
        self.unweighted = tuple(key for key in shapes if MARK not in key)
        self.joined = Joined(shapes)
        self.grid = largest_grid(shapes)
        own = {layer: self.shapes[key_of(self.sources[0], layer)][0] for layer in self.layers}
        n, c = settings.assigners, sum(own.values())
        self.channels = {
            **{layer: n * width for layer, width in own.items()},
            **{key: self.shapes[key][0] for key in self.unweighted},
        }
        self.sides = {
            **{layer: self.shapes[key_of(self.sources[0], layer)][1] for layer in self.layers},
            **{key: self.shapes[key][1] for key in self.unweighted},
        }
        self.widths = tuple(own.values())
        self.assign = nn.Linear(c, n, bias=False)
        self.preference = nn.Parameter(torch.zeros(n, len(self.sources), c if settings.per_channel else 1))
        self.last: Tensor | None = None

    def forward(self, features: Features) -> dict[str, Tensor]:
        standard = self.joined(features)
        weights = self.weights(standard)
        self.last = weights
        given = {}
        split = (
            torch.split(weights, list(self.widths), dim=3)
            if self.settings.per_channel
            else [weights] * len(self.layers)
        )
        for layer, part in zip(self.layers, split, strict=True):
            stacked = torch.stack([standard[key_of(source, layer)] for source in self.sources], dim=1)
            mixed = (part[..., None, None] * stacked[:, None]).sum(dim=2)  # (b, n, c, h, w)
            given[layer] = mixed.flatten(1, 2)
        return given | {key: standard[key] for key in self.unweighted}

    def weights(self, standard: Mapping[str, Tensor]) -> Tensor:
        """w, (b, n assigners, features, 1 or channels), of standardised features; they sum to 1 over features."""
        means = torch.stack(
            [
                torch.cat([standard[key_of(source, layer)].mean(dim=(2, 3)) for layer in self.layers], dim=1)
                for source in self.sources
            ],
            dim=1,
        )  # (b, features, c)
        each = means[:, None] * self.assign.weight[None, :, None]  # (b, n, features, c)
        scores = each if self.settings.per_channel else each.mean(dim=3, keepdim=True)
        return torch.softmax(scores + self.preference, dim=2)

    def penalty(self) -> Tensor:
        """-g1 sum_j ||w^j|| - g2/2 sum_j sum_{k != j} ||w^j - w^k||, mean over the images of the last `forward`."""
        if self.last is None:
            return torch.zeros(())
        return penalties(self.last, self.settings.sparsity, self.settings.diversity)


def penalties(weights: Tensor, sparsity: float, diversity: float) -> Tensor:
    """Eq. 5 less the task's loss: a scalar <= 0. weights: (b, n, features, m), norms over features, mean over b and
    m."""
    concentrated = _norm(weights).sum(dim=1)
    apart = _norm(weights[:, :, None] - weights[:, None]).sum(dim=(1, 2))  # j = k adds 0
    return -(sparsity * concentrated + diversity / 2 * apart).mean()


def _norm(x: Tensor) -> Tensor:
    """Euclidean, over the last but one; exactly 0 of zeros, where its slope is taken to be 0."""
    square = x.square().sum(dim=-2)
    away = square > BOTTOM
    return torch.where(
        away, torch.where(away, square, torch.ones_like(square)).sqrt(), torch.zeros_like(square)
    )


def _sources(shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sources and their layers, in order."""
    held: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        source, mark, layer = key.rpartition(MARK)
        if mark:
            held.setdefault(source, {})[layer] = shape
    if not held:
        raise ConfigurationError("There is nothing to amalgamate: no feature names its source.")
    first, *others = held
    for other in others:
        if held[other] != held[first]:
            raise ConfigurationError(
                f"Amalgamated features have one shape, and {other} has {held[other]}, {first} {held[first]}; "
                "extract the same layers with each."
            )
    return tuple(held), tuple(held[first])


def save_amalgam(
    amalgam: Amalgam,
    file: Path,
    facts: Mapping[str, Any] | None = None,
    learned: Sequence[Mapping[str, Tensor]] = (),
) -> None:
    """Write an amalgam for `gate extract --head`: safetensors, with its shapes, settings and `facts` as JSON.

    learned: what each source's technique had learned (`Technique.state`).
    """
    from safetensors.torch import save_file

    said = {
        "shapes": {key: list(shape) for key, shape in amalgam.shapes.items()},
        "settings": asdict(amalgam.settings),
        "facts": dict(facts or {}),
        "learned": len(learned),
    }
    partial = file.with_name(file.name + ".partial")
    state = {f"{OWN}{name}": value.detach().contiguous() for name, value in amalgam.state_dict().items()}
    for i, held in enumerate(learned):
        state |= {f"{i}.{key}": value.detach().cpu().contiguous() for key, value in held.items()}
    save_file(state, partial, metadata={KIND: json.dumps(said)})
    os.replace(partial, file)


def load_amalgam(file: Path) -> tuple[Amalgam, dict[str, Any], tuple[dict[str, Tensor], ...]]:
    """An amalgam, the facts it was saved with, and what each technique had learned.

    Raises UsageError where there is no such file, ConfigurationError where it holds no amalgamation.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise UsageError(f"There is no file {str(file)!r}; gate task --amalgamate --output DIR writes heads.")
    try:
        with safe_open(file, framework="pt") as opened:
            said = json.loads((opened.metadata() or {})[KIND])
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        made = Amalgam(said["shapes"], Amalgamation(**said["settings"]))
        made.load_state_dict({k.removeprefix(OWN): v for k, v in state.items() if k.startswith(OWN)})
        learned = tuple(
            {k.removeprefix(f"{i}."): v for k, v in state.items() if k.startswith(f"{i}.")}
            for i in range(said["learned"])
        )
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigurationError(
            f"{file} is no saved amalgamation ({type(error).__name__}); gate task --amalgamate --output DIR writes one."
        ) from error
    return made.eval(), dict(said["facts"]), learned
