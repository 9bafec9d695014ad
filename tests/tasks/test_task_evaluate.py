from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gate
from gate.backbone import Backbone
from gate.errors import ConfigurationError, UsageError
from gate.tasks.amalgamation import load_amalgam
from gate.tasks.config import make_config
from gate.tasks.evaluate import evaluate
from gate.tasks.features import read_source

SMALL: dict[str, Any] = {"task": "segmentation-linear[epochs=2]", "samples": 14, "test": 10, "seeds": 2}
SMALL |= {"resamples": 200, "layers": "up2,up3"}


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return gate.load_backbone("tiny")


def test_a_technique_that_changes_nothing_gains_exactly_nothing(tiny: Backbone) -> None:
    found = evaluate(make_config({**SMALL, "technique": "noise-ensemble[members=1]"}), backbone=tiny)
    row = found.row("noise-ensemble[members=1]")
    assert (
        row.gain is not None
        and (row.gain.value, row.gain.low, row.gain.high) == (0, 0, 0)
        and row.gain.n == 10
    )
    assert row.value == found.row("vanilla").value and row.primary and row.figure == "miou"
    assert {r.figure for r in found.rows} == {"miou", "aacc", "macc"}


def test_what_is_kept_is_not_made_again(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gate.tasks import bench

    config = make_config({**SMALL, "technique": "prompt", "output": str(tmp_path / "t")})
    real, calls = bench.gather, 0

    def once(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(bench, "gather", once)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, backbone=tiny)
    assert not (tmp_path / "t" / "results.json").exists()
    shown: list[tuple[str, int, int]] = []
    whole = evaluate(config, backbone=tiny, progress=lambda *p: shown.append(p))
    assert calls == 5  # vanilla's features were not asked for again
    assert shown[-1][1] == shown[-1][2] and [p[1] for p in shown] == sorted(p[1] for p in shown)
    alone = evaluate(config.model_copy(update={"output": None}), backbone=tiny)
    assert [r.value for r in alone.rows] == [r.value for r in whole.rows]
    said = json.loads((tmp_path / "t" / "results.json").read_text())
    assert said["rows"][0]["value"]["n"] == 10 and said["schema_version"] == 1
    assert sorted(f.name for f in (tmp_path / "t" / "heads").iterdir()) == sorted(
        f"{arm}-{seed}.safetensors" for arm in ("vanilla", "prompt") for seed in (0, 1)
    )
    with pytest.raises(ConfigurationError, match="another evaluation"):
        evaluate(config.model_copy(update={"timestep": 60}), backbone=tiny)


def test_a_folder_with_other_things_is_not_written_to(tiny: Backbone, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigurationError, match="holds no evaluation"):
        evaluate(make_config({**SMALL, "output": str(tmp_path)}), backbone=tiny)


def test_an_amalgamation_is_trained_and_saved_with_what_it_is_made_of(tiny: Backbone, tmp_path: Path) -> None:
    asked = {
        "amalgamate": "vanilla,prompt@300",
        "output": str(tmp_path / "a"),
        "seeds": 1,
        "unweighted": "up1",
    }
    found = evaluate(make_config({**SMALL, **asked}), backbone=tiny)
    assert found.arms == ("vanilla", "amalgamation of vanilla, prompt@300")
    amalgam, facts, _ = load_amalgam(tmp_path / "a" / "heads" / "amalgamation-0.amalgam.safetensors")
    assert amalgam.sources == ("vanilla", "prompt@300") and amalgam.unweighted == ("up1",)
    assert [s["timestep"] for s in facts["sources"]] == [50, 300] and facts["weights"] == tiny.fingerprint()


def test_a_split_judges_what_it_did_not_learn_from(tiny: Backbone, tmp_path: Path) -> None:
    small = {**SMALL, "task": "scarce-segmentation[labelled=6,members=2,epochs=2,hidden=(8,8)]"}
    found = evaluate(make_config({**small, "output": str(tmp_path / "s")}), backbone=tiny)
    counts = [np.load(tmp_path / "s" / "counts" / f"vanilla-{seed}.npy") for seed in (0, 1)]
    judged = [c.sum(axis=(1, 2)) > 0 for c in counts]
    assert [j.sum() for j in judged] == [18, 18] and (judged[0] != judged[1]).any()
    assert found.facts["judged_on"] == 18 and found.row("vanilla").spread >= 0


def test_pairs_of_scenes_are_matched(tiny: Backbone) -> None:
    small = {
        **SMALL,
        "task": "correspondence",
        "samples": 1,
        "test": 8,
        "seeds": 1,
        "data": "sketches-held-out",
    }
    row = evaluate(make_config(small), backbone=tiny).row("vanilla")
    assert row.figure == "pck-image" and row.value.n == 8 and 5 < row.value.value <= 100


def test_what_contradicts_itself_is_refused() -> None:
    for wrong, said in (
        ({"amalgamate": "prompt", "technique": "freeu"}, "both given"),
        ({"unweighted": "up1"}, "belong to an amalgamation"),
        ({"amalgamate": "prompt,prompt"}, "twice"),
        ({"seeds": 0}, "seeds"),
        ({"sedes": 1}, "Did you mean 'seeds'"),
    ):
        with pytest.raises(UsageError, match=said):
            make_config({"task": "segmentation", **wrong})
    for wrong, said in (
        ({"task": "correspondence", "amalgamate": "prompt,freeu"}, "correspondence-conv"),
        ({"task": "segmentation", "technique": "promt"}, "Did you mean 'prompt'"),
    ):
        with pytest.raises(UsageError, match=said):
            evaluate(make_config(wrong))


def test_a_source_is_a_technique_at_a_timestep() -> None:
    assert read_source("prompt@300", 50).timestep == 300 and read_source("prompt", 50).timestep == 50
    assert read_source("vanilla@7", 50).technique == ""
    with pytest.raises(UsageError, match="does not read"):
        read_source("prompt@x", 50)
