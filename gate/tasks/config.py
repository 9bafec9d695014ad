"""What `gate task` is asked: one object behind the command's flags and the Python call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gate.errors import known_settings, wrong_setting
from gate.names import split_names

LISTING = "gate task --help"
VANILLA = "vanilla"


class TaskConfig(BaseModel):
    """Settings of one evaluation. Every field is a flag of `gate task`.

    data: a named data set, or the folder of a public one. samples, test: images (pairs) to train on and to judge; by
    default the task's own of a named data set, all of a folder. timestep, seed: of the features' noise; seeds: heads
    that are trained, seed by seed. amalgamate: sources, TECHNIQUE or TECHNIQUE@TIMESTEP, whose features are weighed by
    `assigners` assigners; unweighted: layers of the first source that are concatenated afterwards.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: str
    technique: str = VANILLA
    data: str = "scenes-held-out"
    samples: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=2)
    layers: tuple[str, ...] = ("paper",)
    timestep: int = Field(50, ge=0)
    seed: int = Field(0, ge=0, lt=2**32)
    seeds: int = Field(3, ge=1)
    amalgamate: tuple[str, ...] = ()
    unweighted: tuple[str, ...] = ()
    assigners: int = Field(3, ge=1)
    sparsity: float = Field(0.01, ge=0)
    diversity: float = Field(0.01, ge=0)
    per_channel: bool = False
    backbone: str = "tiny"
    image_size: int | None = Field(None, ge=8)
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = Field(8, ge=1)
    resamples: int = Field(2000, ge=200)
    output: str | None = None

    @field_validator("layers", "amalgamate", "unweighted", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return tuple(split_names(value)) if isinstance(value, str) else value

    @field_validator("task", "technique", "data", "backbone")
    @classmethod
    def _meant(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("it is empty; give a value, or leave it out")
        return value.strip()

    @model_validator(mode="after")
    def _fitting(self) -> TaskConfig:
        if self.amalgamate and self.technique != VANILLA:
            raise ValueError(
                "technique and amalgamate are both given; name the technique among those to amalgamate"
            )
        if self.unweighted and not self.amalgamate:
            raise ValueError("unweighted layers belong to an amalgamation; give amalgamate too")
        if len(set(self.amalgamate)) < len(self.amalgamate):
            raise ValueError("a source is amalgamated twice; name each once")
        return self

    def facts(self) -> dict[str, Any]:
        """What must be equal for an evaluation to go on where it stopped."""
        return self.model_dump(mode="json", exclude={"output", "device", "batch_size", "resamples"})


def make_config(values: Mapping[str, Any]) -> TaskConfig:
    """The config of the given values. Raises UsageError with one sentence."""
    given = known_settings(values, TaskConfig.model_fields, listing=LISTING)
    try:
        return TaskConfig(**given)
    except ValidationError as error:
        raise wrong_setting(error, listing=LISTING) from error
