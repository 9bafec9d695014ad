"""What to screen: one object behind the command's flags, a YAML file and the Python call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gate.errors import UsageError
from gate.sample import MIN_SAMPLES

if TYPE_CHECKING:
    from gate.schedule import NoiseSchedule

SCORE_METRICS = ("laplacian-normalised@own", "cosine@own", "cka@own", "eps")


class ScreenConfig(BaseModel):
    """Settings of one screening. Every field is a flag of `gate screen`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    techniques: tuple[str, ...] = ("all",)
    backbone: str = "tiny"
    revision: str | None = None
    pipeline: str | None = None
    image_size: int | None = Field(None, ge=8)
    data: str = "scenes-held-out"
    images: str | None = None
    labels: str | None = None
    captions: str | None = None
    masks: str | None = None
    samples: int = Field(32, ge=MIN_SAMPLES)
    timesteps: tuple[int, ...] = (50, 300)
    alpha_bar: tuple[float, ...] | None = None
    sigma: tuple[float, ...] | None = None
    seeds: int = Field(2, ge=1)
    layers: tuple[str, ...] = ("paper",)
    metrics: tuple[str, ...] = ("all",)
    probes: tuple[str, ...] = ("all",)
    folds: int = Field(4, ge=2)
    image_samples: int = Field(4, ge=0)
    strength: float = Field(0.7, gt=0, le=1)
    image_steps: int = Field(5, ge=1)
    resamples: int = Field(2000, ge=200)
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    offload: bool = False
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    technique_timeout: float | None = Field(None, gt=0)
    output: str | None = None

    @field_validator("techniques", "layers", "metrics", "probes", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, str):
            from gate.names import split_names

            return tuple(split_names(value))
        return value

    @field_validator("layers")
    @classmethod
    def _read(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """JSON layer files become the layers that they name: the run then says by itself what it did."""
        if not any(name.endswith(".json") for name in value):
            return value
        from gate.backbones.aliases import opened

        return opened(value)

    @field_validator("timesteps", "alpha_bar", "sigma", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if isinstance(value, (int, float)):
            return (value,)
        return tuple(v.strip() for v in value.split(",")) if isinstance(value, str) else value

    @field_validator("timesteps")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) != len(value) or min(value) < 1:
            raise ValueError("give distinct timesteps of 1 or more")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> ScreenConfig:
        given = [
            k for k in ("timesteps", "alpha_bar", "sigma") if k in self.model_fields_set and getattr(self, k)
        ]
        default = type(self).model_fields["timesteps"].default
        if (self.alpha_bar and self.sigma) or ((self.alpha_bar or self.sigma) and self.timesteps != default):
            raise ValueError(f"give noise levels in one way, not as {' and '.join(given)}")
        return self

    def levels(self, schedule: NoiseSchedule) -> tuple[int, ...]:
        """The timesteps that are meant, on this schedule. Raises UsageError where two levels fall on one timestep."""
        found = [schedule.nearest(alpha_bar=a) for a in self.alpha_bar or ()]
        found += [schedule.nearest(sigma=s) for s in self.sigma or ()]
        for t in found:
            if t < 1 or found.count(t) > 1:
                raise UsageError(f"Noise levels must lie on distinct timesteps of 1 or more; {t} is not.")
        return tuple(found) or tuple(schedule.check(t) for t in self.timesteps)


def make_config(values: dict[str, Any], file: str | Path | None = None) -> ScreenConfig:
    """The config from a YAML file, overridden by the given values. Raises UsageError with one sentence."""
    merged: dict[str, Any] = {}
    if file is not None:
        import yaml

        try:
            read = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise UsageError(
                f"The config file {file} cannot be read: {str(error).splitlines()[0]}"
            ) from error
        if not isinstance(read, dict):
            raise UsageError(f"The config file {file} must hold settings as 'name: value' lines.")
        merged.update(read)
    merged.update(values)
    try:
        return ScreenConfig(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"][:1]) or "timesteps"
        raise UsageError(f"Setting {where!r} is wrong: {first['msg']}. See: gate screen --help") from error
