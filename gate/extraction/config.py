"""What to extract: one object behind the command's flags and the Python call."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gate.errors import known_settings, wrong_setting
from gate.names import split_names
from gate.sample import MAX_SEED

LISTING = "gate extract --help"
FROM_RUN = (
    "backbone",
    "revision",
    "pipeline",
    "image_size",
)  # a run's fitted state is good for its own alone


FROM_HEAD = ("run", "top", "techniques", "layers", "timestep", "seed")


class ExtractConfig(BaseModel):
    """Settings of one extraction. Every field is a flag of `gate extract`.

    run: a finished screening, which says technique, layers, timestep and backbone; what is given beside it wins. top:
    its first winners, the best one where neither `top` nor `techniques` is given. per_shard: images, auto by size.
    cache: whether latents are kept for the next extraction. head: a file of `gate task
    --amalgamate`, which says techniques, layers, timesteps and seed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    run: str | None = None
    top: int | None = Field(None, ge=1)
    techniques: tuple[str, ...] = ()
    head: str | None = None
    images: str | None = None
    data: str | None = None
    captions: str | None = None
    samples: int | None = Field(None, ge=1)
    output: str | None = None
    layers: tuple[str, ...] = ()
    timestep: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    backbone: str | None = None
    revision: str | None = None
    pipeline: str | None = None
    image_size: int | None = Field(None, ge=8)
    device: str = "auto"
    dtype: str = "auto"
    offload: bool = False
    precision: Literal["exact", "fast"] = "exact"
    compile: bool = False
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    layout: str = "safetensors"
    pool: int = Field(0, ge=0)
    resize: int = Field(0, ge=0)
    vector: bool = False
    normalise: bool = False
    project: int = Field(0, ge=0)
    projection: Literal["pca", "random"] = "pca"
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    per_shard: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    cache: bool = True

    @field_validator("techniques", "layers", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(split_names(value)) if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _meant(cls, value: Any, info: ValidationInfo) -> Any:
        """First, as the last one defined: an empty text would be the current folder, and True the number 1."""
        if isinstance(value, str) and not value.strip():
            raise ValueError("it is empty; give a value, or leave it out")
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and wanted is not bool:
            raise ValueError(f"a number or text is wanted, not {value}")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> ExtractConfig:
        if self.images and self.data:
            raise ValueError("give images or data, not both")
        if self.top and self.techniques:
            raise ValueError("give top or technique, not both")
        if self.head is not None:
            given = [name for name in FROM_HEAD if getattr(self, name)]
            if given:
                raise ValueError(f"{given[0]} is what the head says; leave it out, or leave head out")
        if self.run is None:
            if self.top:
                raise ValueError("top counts the winners of a run: add --from RUN, or name a technique")
            if not self.images and not self.data:
                raise ValueError("say what to extract: --images DIR, or --from RUN for the images of a run")
        else:
            given = [name for name in FROM_RUN if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{given[0]} is what the run says; leave it out, or leave --from out")
        return self


def make_config(values: Mapping[str, Any]) -> ExtractConfig:
    """The config of the given values. Raises UsageError with one sentence."""
    try:
        return ExtractConfig(**known_settings(values, ExtractConfig.model_fields, listing=LISTING))
    except ValidationError as error:
        raise wrong_setting(error, listing=LISTING) from error


def command_of(config: ExtractConfig) -> str:
    """What to type to do the same again, or to go on."""
    flags = {"run": "from", "techniques": "technique", "cache": "no-latent-cache"}
    words = ["gate", "extract"]
    for name in (field for field in ExtractConfig.model_fields if field in config.model_fields_set):
        value: Any = getattr(config, name)
        option = f"--{flags.get(name, name).replace('_', '-')}"
        if isinstance(value, bool):
            words += [option] if value != (name == "cache") else []
        elif isinstance(value, tuple):
            words += [option, ",".join(value)]
        elif value is not None:
            words += [option, str(value)]
    return shlex.join(words)
