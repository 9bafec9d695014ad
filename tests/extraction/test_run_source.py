"""A run read for an extraction: which techniques, what they learned, at which timestep, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fabricated_run import fabricate
from image_files import sentence

from gate.backbones import load_backbone
from gate.errors import ConfigurationError, DamagedError, IncomparableError, PluginError, UsageError
from gate.extraction.source import open_source
from gate.passes import Plan, stream
from gate.registry import create_technique
from gate.runs.directory import Run, plain, read_arrays, write_arrays, write_sealed
from gate.runs.states import STATES, joined, packed
from gate.screening import Screening, screen
from gate.technique import Technique
from tests.threads import one_thread

__all__ = ["one_thread"]

Edit = Callable[[dict[str, Any]], None]


def edit(run: Run, change: Edit, states: dict[str, Any] | None = None) -> Path:
    """Other results for a run, sealed; its techniques' settings are what they are now. states: by technique."""
    file = run.path / "results.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    for row in raw["ranking"]:
        row["settings"] = plain(create_technique(row["name"]).settings)
    raw["learned"] = sorted(states or {})
    if states:
        raw["hashes"]["states"] = write_arrays(run.path / STATES, joined(states))
    change(raw)
    write_sealed(file, {k: v for k, v in raw.items() if k != "digest"})
    return run.path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return fabricate(tmp_path / "run", side=8)


def test_winners_come_in_their_order_and_names_as_they_were_given(run: Run) -> None:
    path = edit(run, lambda raw: raw.update(winners=["noise-ensemble", "prompt", "freeu"]))
    assert open_source(path).techniques == ("noise-ensemble", "prompt", "freeu")
    assert open_source(path, top=2).techniques == ("noise-ensemble", "prompt")
    assert open_source(path, top=9).techniques == ("noise-ensemble", "prompt", "freeu")
    named = ["guidance-cfg", "vanilla", " prompt", "prompt"]  # a control, nobody, and one twice
    assert open_source(path, techniques=named).techniques == ("guidance-cfg", "vanilla", "prompt")
    spelled = open_source(path, techniques=["freeu[b1=1.2,s1=0.9]"])
    assert spelled.techniques == ("freeu[b1=1.2,s1=0.9]",)
    assert spelled.settings["freeu[b1=1.2,s1=0.9]"]["b1"] == 1.2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"techniques": ["promt"]}, r"Unknown technique of .*Did you mean 'prompt'.*See: gate rank "),
        ({"techniques": ["caption"]}, r"Unknown technique of .* 'caption'"),  # installed, and not in the run
        ({"techniques": ["lora"]}, r"lora was not measured in .*: lora needs training"),
        ({"techniques": ["prompt"], "top": 1}, "not both"),
        ({"top": -1}, "at least 1"),
    ],
)
def test_what_cannot_be_chosen_is_a_sentence(run: Run, given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as error:
        open_source(run.path, **given)
    assert "\n" not in str(error.value)


def test_a_run_without_winners_says_what_to_do(run: Run) -> None:
    path = edit(run, lambda raw: raw.update(winners=[]))
    with pytest.raises(UsageError) as error:
        open_source(path)
    told = sentence(error)
    first = min(run.results.ranking, key=lambda row: row.rank).name
    assert "beats the plain backbone" in told and f"--technique (ranked first: {first})" in told
    assert "more samples" in told and open_source(path, techniques=["prompt"]).techniques == ("prompt",)


def test_no_run_and_a_damaged_one_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a finished run"):
        open_source(tmp_path)
    arrays, _ = read_arrays(run.path / "scores.safetensors")
    write_arrays(run.path / "scores.safetensors", {**arrays, "prediction/eps": arrays["prediction/eps"] + 1})
    with pytest.raises(DamagedError):
        open_source(run.path)


def test_backbone_layers_and_seed_are_the_runs(run: Run) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["config"].update(backbone="a/b", revision="r1", image_size=256, device="auto", dtype="auto")
        raw["environment"]["dtype"], raw["hashes"]["weights"] = "float16", "abc"
        raw["seeds"] = [7, 8]
        del raw["config"]["pipeline"]  # an older gate had none

    path = edit(run, change)
    (path / "run.json").unlink()  # it tells the same, and here it would not
    source = open_source(path, techniques=["prompt"])
    assert source.backbone == {
        "name": "a/b",
        "revision": "r1",
        "image_size": 256,
        "device": "auto",
        "offload": False,
        "dtype": "float16",
    }
    assert source.layers == ("up0", "up1", "up2", "up3") and source.seed == 7 and source.weights == "abc"
    assert source.classes == tuple(f"class {i}" for i in range(5))


def test_other_weights_are_not_comparable(run: Run) -> None:
    class Weighed:
        name = "other"

        def __init__(self, weights: str) -> None:
            self.fingerprint = lambda: weights

    source = open_source(run.path, techniques=["prompt"])
    source.check(Weighed("0"))  # type: ignore[arg-type]
    with pytest.raises(IncomparableError) as error:
        source.check(Weighed("1"))  # type: ignore[arg-type]
    assert error.value.exit_code == 4 and "weights of other (1)" in sentence(error)


# Timesteps


def scores(run: Run, *, counts: Any = None, shifts: dict[str, Any] | None = None) -> Path:
    """Other numbers for `prompt`. counts: (t, s, n, k, k). shifts: {key: (t, s, l, n)}."""
    arrays, _ = read_arrays(run.path / "scores.safetensors")
    row = run.results.axes.technique.index("prompt")
    changed = {key: value.copy() for key, value in arrays.items()}
    if counts is not None:
        changed["probe/pixel-linear"][row] = counts
    for key, values in (shifts or {}).items():
        changed[f"shift/{key}"][row] = values
    seal = write_arrays(run.path / "scores.safetensors", changed)

    def change(raw: dict[str, Any]) -> None:
        raw["hashes"]["scores"] = seal
        raw["score"]["metrics"] = [*(shifts or {}), "eps"]

    return edit(run, change)


def test_the_timestep_is_where_probes_err_least(run: Run) -> None:
    """By hand: at 50 a fifth of each class is wrong, at 300 nothing."""
    n, k = 24, 5
    right, wrong = np.eye(k, dtype=np.int16) * 5, np.eye(k, dtype=np.int16) * 4
    wrong[np.arange(k), (np.arange(k) + 1) % k] = 1
    counts = np.stack([np.stack([at] * 2 * n).reshape(2, n, k, k) for at in (wrong, right)])
    source = open_source(scores(run, counts=counts), techniques=["prompt", "freeu"])
    assert source.timesteps["prompt"] == 300
    # IoU of each class: 4 right of 5 + 1 predicted wrongly = 4/6
    assert "pixel-linear is least there: 0.333 at 50, 0 at 300" in source.why["prompt"]
    asked = open_source(run.path, techniques=["prompt"], timestep=120)
    assert asked.timesteps == {"prompt": 120} and asked.why == {"prompt": "as asked"}
    turned = scores(run, counts=counts[::-1])
    assert open_source(turned, techniques=["prompt"]).timesteps == {"prompt": 50}


def test_without_probes_it_is_where_the_shift_is_least(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", side=8, probes=False)
    keys = ["laplacian-normalised@own", "cosine@own"]  # means over samples; CKA is a statistic of the set
    usual = {key: run.arrays[f"shift/{key}"][0] for key in keys}
    shape = usual[keys[0]].shape
    for i, t in enumerate(run.results.axes.timestep):
        shifts = {}
        for key in keys:  # vanilla's mean at one timestep, twice that at the other: 1 and 2 in its unit
            shifts[key] = np.full(shape, 2 * usual[key].mean(), np.float32)
            shifts[key][i] /= 2
        source = open_source(scores(run, shifts=shifts), techniques=["prompt"])
        assert source.timesteps == {"prompt": t}
        told = {t: "1", run.results.axes.timestep[1 - i]: "2"}
        shown = ", ".join(f"{told[t]} at {t}" for t in run.results.axes.timestep)
        assert source.why["prompt"].endswith(f"is least there: {shown}")


def test_one_timestep_is_that_one(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", side=8, timesteps=(150,))
    source = open_source(run.path, techniques=["prompt"])
    assert source.timesteps == {"prompt": 150} and "only one" in source.why["prompt"]


def test_a_probe_that_is_gone_asks_for_the_timestep(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gate.registry.find_claim", lambda kind, name: None)
    with pytest.raises(UsageError, match=r"Unknown probe 'pixel-linear'.*--timestep"):
        open_source(run.path, techniques=["prompt"])


# Techniques, as they had been fitted


def test_a_technique_has_its_settings_and_what_it_learned(run: Run) -> None:
    search = create_technique("prompt-search")
    search._fitted = ("a cat", "a dog")  # type: ignore[attr-defined]
    path = edit(run, lambda raw: None, {"prompt-search": packed(search.state(), "prompt-search")})
    source = open_source(path, techniques=["prompt-search", "freeu[b1=1.2,s1=0.9]", "vanilla"])
    assert source.technique("prompt-search")._fitted == ("a cat", "a dog")  # type: ignore[attr-defined]
    assert source.technique("prompt-search") is not source.technique("prompt-search")
    assert source.technique("freeu[b1=1.2,s1=0.9]").settings["s1"] == 0.9
    assert type(source.technique("vanilla")) is Technique


def test_settings_that_mean_something_else_now_are_refused(run: Run) -> None:
    def change(raw: dict[str, Any]) -> None:
        rows = {row["name"]: row["settings"] for row in raw["ranking"]}
        rows["freeu"]["b1"] = 7.5
        rows["noise-ensemble"]["gone"] = 1
        del rows["guidance-fdg"][next(iter(rows["guidance-fdg"]))]  # a setting that is new since
        first = next(iter(rows["prompt+noise-ensemble"]["noise-ensemble"]))
        rows["prompt+noise-ensemble"]["noise-ensemble"][first] = 99

    names = ["freeu", "noise-ensemble", "guidance-fdg", "prompt+noise-ensemble"]
    source = open_source(edit(run, change), techniques=names)
    for name, told in (
        ("freeu", "b1 was 7.5 and is"),
        ("noise-ensemble", "no setting 'gone'"),
        (names[3], "was 99"),
    ):
        with pytest.raises(ConfigurationError, match=told) as error:
            source.technique(name)
        assert "screen again" in sentence(error)
    assert source.technique("guidance-fdg").name == "guidance-fdg"


def test_an_older_run_serves_what_learns_nothing(run: Run) -> None:
    path = edit(run, lambda raw: raw.pop("learned"))
    source = open_source(path, techniques=["prompt-search", "freeu"])
    with pytest.raises(ConfigurationError, match="older gate, which did not keep what prompt-search learned"):
        source.technique("prompt-search")
    assert source.technique("freeu").name == "freeu"


def test_a_state_that_does_not_fit_is_a_sentence(run: Run) -> None:
    path = edit(run, lambda raw: None, {"prompt-search": {"other": np.zeros(2, np.uint8)}})
    with pytest.raises(PluginError, match="cannot take back what it learned") as error:
        open_source(path, techniques=["prompt-search"]).technique("prompt-search")
    assert sentence(error).endswith("screen again with this gate.")


def test_features_are_those_of_the_screening_without_a_fit(
    tmp_path: Path, scenes: Any, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """End to end on the embedded backbone: screened, opened, loaded, extracted by what the run learned."""
    monkeypatch.setattr(Screening, "plot", lambda self: [])
    name = "prompt-search[candidates=('a cat', 'a dog'),stages=((1, 1),)]+freeu"
    settings: dict[str, Any] = {"techniques": (name,), "samples": 8, "seeds": 1, "timesteps": (50,)}
    settings |= {
        "image_samples": 0,
        "resamples": 200,
        "probes": (),
        "layers": ("up1",),
        "metrics": ("cosine",),
    }
    done = screen(**settings, seed=3, output=str(tmp_path / "run"))
    source = open_source(done.path, techniques=[name])
    backbone = load_backbone(**source.backbone)
    source.check(backbone)
    technique, fitted = source.technique(name), create_technique(name)
    fitted.fit(backbone, fitted.visible(scenes[:2]))
    monkeypatch.setattr(type(technique), "fit", lambda *_: pytest.fail("it was fitted in the run"))
    found = []
    for one in (technique, fitted):
        plan = Plan(backbone, one, scenes[:2], (source.timesteps[name],), (source.seed,), source.layers)
        found += [passed.response.features["up1"] for passed in stream(plan)]
    assert torch.equal(*found) and source.seed == 3 and source.timesteps == {name: 50}
    assert technique.parts[0]._fitted == ("a cat", "a dog")  # type: ignore[attr-defined]
