"""What to screen: one object behind the command's flags, a YAML file and the Python call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gate.errors import UsageError, known_settings, wrong_setting
from gate.sample import MAX_SEED, MIN_SAMPLES

if TYPE_CHECKING:
    from gate.schedule import NoiseSchedule

USUAL = (0.05, 0.3)  # of the schedule: 50 and 300 of 1000
MOST_TEXT = 1_000_000  # characters of a config file
SCORE_METRICS = ("laplacian-normalised@own", "cosine@own", "cka@own", "eps")


class ScreenConfig(BaseModel):
    """Settings of one screening. Every field is a flag of `gate screen`. data: None is `gate.data.DEFAULT`.

    timesteps: None is at 5 and 30 % of the schedule, 50 and 300 of 1000.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    techniques: tuple[str, ...] = ("all",)
    backbone: str = "tiny"
    revision: str | None = None
    pipeline: str | None = None
    image_size: int | None = Field(None, ge=8)
    data: str | None = None
    images: str | None = None
    labels: str | None = None
    captions: str | None = None
    masks: str | None = None
    samples: int = Field(64, ge=MIN_SAMPLES)
    timesteps: tuple[int, ...] | None = None
    alpha_bar: tuple[float, ...] | None = None
    sigma: tuple[float, ...] | None = None
    seeds: int = Field(1, ge=1)
    layers: tuple[str, ...] = ("paper",)
    metrics: tuple[str, ...] = ("standard",)
    probes: tuple[str, ...] = ("standard",)
    folds: int = Field(4, ge=2)
    image_samples: int = Field(4, ge=0)
    strength: float = Field(0.7, gt=0, le=1)
    image_steps: int = Field(5, ge=1, le=1000)
    resamples: int = Field(2000, ge=200)
    seed: int = Field(0, ge=0, le=MAX_SEED)
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
    def _distinct(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        if not value or len(set(value)) != len(value) or min(value) < 1:
            raise ValueError("give distinct timesteps of 1 or more")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _meant(cls, value: Any, info: ValidationInfo) -> Any:
        """First, as the last one defined: an empty text would be the current folder, and True the number 1."""
        empty = isinstance(value, str) and not value.strip()
        if empty and info.field_name != "probes":  # to do without probes is a wish
            raise ValueError("it is empty; give a value, or leave it out")
        if isinstance(value, bool) and info.field_name != "offload":
            raise ValueError(f"a number or text is wanted, not {value}")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> ScreenConfig:
        given = [
            k for k in ("timesteps", "alpha_bar", "sigma") if k in self.model_fields_set and getattr(self, k)
        ]
        if (self.alpha_bar and self.sigma) or ((self.alpha_bar or self.sigma) and self.timesteps):
            raise ValueError(f"give noise levels in one way, not as {' and '.join(given)}")
        if self.data and self.images:
            raise ValueError("give data or images, not both")
        return self

    def levels(self, schedule: NoiseSchedule) -> tuple[int, ...]:
        """The timesteps that are meant, on this schedule. Raises UsageError where two levels fall on one timestep."""
        found = [schedule.nearest(alpha_bar=a) for a in self.alpha_bar or ()]
        found += [schedule.nearest(sigma=s) for s in self.sigma or ()]
        for t in found:
            if t < 1 or found.count(t) > 1:
                raise UsageError(f"Noise levels must lie on distinct timesteps of 1 or more; {t} is not.")
        return tuple(found) or tuple(
            schedule.check(t) for t in self.timesteps or dict.fromkeys(schedule.at(share) for share in USUAL)
        )


def make_config(values: Mapping[str, Any]) -> ScreenConfig:
    """The config of the given values. Raises UsageError with one sentence."""
    try:
        return ScreenConfig(**known_settings(values, ScreenConfig.model_fields, listing="gate screen --help"))
    except ValidationError as error:
        raise wrong_setting(error, listing="gate screen --help") from error


def read_settings(file: str | Path) -> dict[str, Any]:
    """The settings of a YAML file, by field or flag name. Raises UsageError with one sentence."""
    import yaml

    try:
        with Path(file).open(encoding="utf-8") as stream:
            text = stream.read(MOST_TEXT)
        if len(text) == MOST_TEXT:
            raise UsageError(
                f"The config file {file} is too long for one; it holds settings as 'name: value' lines."
            )
        node, read = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text) or {}
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(
            f"The config file {file} is no YAML{line}: {error.problem or error.context}."
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        raise UsageError(f"The config file {file} cannot be read: {reason}") from error
    if not isinstance(read, dict):
        raise UsageError(f"The config file {file} must hold settings as 'name: value' lines.")
    keys = [str(key.value).replace("-", "_") for key, _ in node.value] if node and read else []
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"The config file {file} gives {key!r} twice; give it once.")
    return {str(key).replace("-", "_"): value for key, value in read.items()}
