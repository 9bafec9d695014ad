"""What to fit, on what, for how long: one object behind `gate fit` and the Python call."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gate.errors import UsageError, known_settings, wrong_setting
from gate.sample import MIN_SAMPLES


class FitConfig(BaseModel):
    """Settings of one fit. None means the trainer's default for the backbone's size.

    samples: images, of which the share `held_out`, at most 64, is kept apart to judge by. rate, text_rate: of the
    denoiser's and the text encoder's adapters. alpha: the LoRA's scaling is alpha / rank. control: what a ControlNet or
    T2I-Adapter is shown. token, vectors: the word of a textual inversion, "" for the output folder's name, and how many
    vectors it has. smoothness: weight of smooth-lora's penalty. shared_below, shared_intervals: below this timestep the
    denoiser learns under one timestep condition per interval (E-TSDM; 0: under its own). check_every: steps between two
    looks at the held-out images, each of which writes a checkpoint.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    backbone: str = "tiny"
    images: str | None = None
    captions: str | None = None
    data: str | None = None
    samples: int = Field(30, ge=MIN_SAMPLES)
    held_out: float = Field(0.2, gt=0, lt=1)
    steps: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1)
    rank: int | None = Field(None, ge=1)
    alpha: float | None = Field(None, gt=0)
    rate: float | None = Field(None, gt=0)
    text_rate: float | None = Field(None, ge=0)
    control: str = "canny"
    token: str = ""
    vectors: int = Field(4, ge=1)
    smoothness: float = Field(1.0, ge=0)
    shared_below: int = Field(0, ge=0)
    shared_intervals: int = Field(5, ge=1)
    check_every: int = Field(50, ge=1)
    sheet: int = Field(4, ge=0)
    seed: int = Field(0, ge=0, lt=2**32)
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    output: str = ""

    @field_validator("images", "captions", "data", "backbone")
    @classmethod
    def _meant(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("it is empty; give a value, or leave it out")
        return value

    @model_validator(mode="after")
    def _divided(self) -> FitConfig:
        if self.shared_below % self.shared_intervals:
            raise ValueError(
                f"shared_intervals must divide shared_below, and {self.shared_intervals} does not divide "
                f"{self.shared_below}"
            )
        return self

    def facts(self) -> dict[str, Any]:
        """What must be equal for a fit to be resumed: not where it is written, how long it runs, or where."""
        return self.model_dump(exclude={"output", "steps", "device"})


def make_fit_config(values: dict[str, Any]) -> FitConfig:
    """The config of the given values. Raises UsageError with one sentence."""
    try:
        config = FitConfig(**known_settings(values, FitConfig.model_fields, listing="gate fit --help"))
    except ValidationError as error:
        raise wrong_setting(error, listing="gate fit --help") from error
    if not config.output:
        raise UsageError("Say where the weights go: --output DIR.")
    if (config.images is None) == (config.data is None):
        raise UsageError("Say what to fit on: --images DIR, or a named data set with --data NAME.")
    return config
