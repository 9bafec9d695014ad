"""What techniques learned stays with the run: through forks, parts and resume, sealed, bit for bit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gate.errors import DamagedError, PluginError
from gate.registry import create_technique
from gate.runs.directory import open_run, read_arrays, write_arrays, write_sealed
from gate.runs.parts import load_part, save_part
from gate.runs.states import STATES, joined, packed, parted, unpacked
from gate.screening import Screening, resume, screen
from gate.screening.bench import prepare
from gate.screening.config import make_config
from gate.screening.measure import measure
from gate.screening.measured import Measured
from gate.screening.stored import unpack_scores
from gate.screening.verify import verify
from gate.technique import Technique
from tests.closed_form import ClosedForm, flat_samples
from tests.threads import one_thread

__all__ = ["one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")

SEARCH = "prompt-search[candidates=('a cat', 'a dog'),stages=((1, 1),)]+freeu"
SMALL: dict[str, Any] = {
    "techniques": (SEARCH, "caption"),
    "samples": 8,
    "seeds": 1,
    "timesteps": (50,),
    "image_samples": 0,
    "resamples": 200,
    "probes": (),
    "layers": ("up0",),
    "metrics": ("cosine", "eps"),
    "workers": 2,
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Screening, "plot", lambda self: [])
        return screen(**SMALL, output=str(tmp_path_factory.mktemp("run") / "a")).path


@pytest.fixture
def run(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be damaged."""
    import shutil

    monkeypatch.setattr(Screening, "plot", lambda self: [])
    return Path(shutil.copytree(done, tmp_path / "run"))


def test_a_run_holds_what_its_techniques_learned(done: Path) -> None:
    run = open_run(done)
    assert run.results.learned == ["caption", SEARCH] == sorted(run.states)
    assert set(run.states["caption"]) == set(run.results.axes.sample)
    restored = create_technique(SEARCH)
    assert restored.parts[0]._fitted == ()  # type: ignore[attr-defined]
    restored.load_state(unpacked(run.states[SEARCH]))
    assert restored.parts[0]._fitted == ("a cat", "a dog")  # type: ignore[attr-defined]
    arrays, facts = read_arrays(done / STATES)
    assert f"{SEARCH}/{SEARCH.removesuffix('+freeu')}/candidates" in arrays
    assert facts["mark"] == read_arrays(done / "scores.safetensors")[1]["mark"]


def test_what_is_damaged_or_missing_is_refused_by_every_reader(run: Path) -> None:
    whole = bytearray((run / STATES).read_bytes())
    whole[-3] ^= 4
    (run / STATES).write_bytes(whole)
    with pytest.raises(DamagedError, match=r"states\.safetensors was changed"):
        open_run(run)
    with pytest.raises(DamagedError, match=r"states\.safetensors was changed"):
        verify(run)
    arrays = {"caption/0": np.zeros(3, np.uint8)}
    write_arrays(run / STATES, arrays, mark="another")  # sound in itself, and of another run
    with pytest.raises(DamagedError, match=r"not the file that results\.json was made from"):
        open_run(run)
    (run / STATES).unlink()
    with pytest.raises(DamagedError, match="missing"):
        open_run(run)


def test_results_are_made_anew_with_the_states(run: Path) -> None:
    before = open_run(run).states
    (run / "results.json").unlink()
    resume(run)
    after = open_run(run).states
    assert {n: sorted(s) for n, s in before.items()} == {n: sorted(s) for n, s in after.items()}
    assert all(np.array_equal(before[n][k], after[n][k]) for n in before for k in before[n])
    mark = read_arrays(run / "scores.safetensors")[1]["mark"]
    write_arrays(run / STATES, {"caption/0": np.zeros(3, np.uint8)}, mark=mark)
    with pytest.raises(DamagedError, match="not the file that the scores were written with"):
        unpack_scores(run, mark)
    (run / STATES).unlink()
    with pytest.raises(DamagedError, match="missing"):
        unpack_scores(run, mark)


def test_a_run_of_an_older_gate_is_read(run: Path) -> None:
    raw = json.loads((run / "results.json").read_text(encoding="utf-8"))
    del raw["learned"], raw["hashes"]["states"], raw["digest"]
    write_sealed(run / "results.json", raw)
    (run / STATES).unlink()
    old = open_run(run)
    assert old.results.learned is None and old.states == {}


def test_where_nobody_learned_there_is_no_file(run: Path) -> None:
    arrays, facts = read_arrays(run / "scores.safetensors")
    said = {k: v for k, v in facts.items() if k in ("techniques", "mark")}
    write_arrays(run / "scores.safetensors", arrays, **said)  # as if no fit had learned anything
    (run / STATES).unlink()
    (run / "results.json").unlink()
    resume(run)
    assert open_run(run).results.learned == [] and open_run(run).states == {}
    assert not (run / STATES).exists() and "states" not in open_run(run).results.hashes


STATE = {
    "scalar": torch.tensor(0.5, dtype=torch.float64),
    "half": torch.tensor([1.0, -2.5], dtype=torch.float16),
    "brain": torch.tensor([[1.0, float("nan"), -0.0]], dtype=torch.bfloat16),
    "brain/scalar": torch.tensor(3.0, dtype=torch.bfloat16),
    "eight": torch.tensor([0.5, 2.0], dtype=torch.float8_e4m3fn),
    "odd:bfloat16": torch.tensor([7, 8], dtype=torch.int16),
    "a:b": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
    "turned": torch.arange(6.0).reshape(2, 3).T,
}


def test_tensors_of_every_type_come_back_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    save_part(tmp_path, "x", Measured(state=packed(STATE, "x")), "m")
    part = load_part(tmp_path, "x", Measured, "m")
    assert part is not None
    write_arrays(tmp_path / STATES, joined({"x[path='a/b']": part.state, "x": part.state}))
    back = parted(read_arrays(tmp_path / STATES)[0], ["x", "x[path='a/b']", "idle"])
    assert set(back) == {"x", "x[path='a/b']"}
    for name in back:
        found = unpacked(back[name])
        assert set(found) == set(STATE)
        for key, value in STATE.items():
            theirs = found[key]
            assert theirs.dtype == value.dtype and theirs.shape == value.shape, key
            raw = [v.contiguous().reshape(-1).view(torch.uint8) for v in (theirs, value)]
            assert torch.equal(*raw), key


def test_a_state_is_a_copy_and_holds_tensors() -> None:
    live = torch.zeros(2)
    kept = packed({"w": live}, "x")
    live += 1
    assert kept["w"].tolist() == [0, 0]
    with pytest.raises(PluginError, match="state of x holds a list under 'w'; it must be tensors by name"):
        packed({"w": [1.0]}, "x")  # type: ignore[dict-item]


def test_measuring_keeps_what_was_learned_and_not_what_passes_left() -> None:
    """No metric asks for a prediction here, so forwards may be cut; what looks for leaks asks all the same."""

    @dataclass(kw_only=True)
    class Counts(Technique):
        name = "counts"
        seen: torch.Tensor = field(default_factory=lambda: torch.zeros(1), init=False)

        def fit(self, backbone: Any, samples: Any) -> None:
            self.seen += len(samples)

        def state(self) -> dict[str, torch.Tensor]:
            return {"seen": self.seen}

        def denoise(self, request: Any, call_next: Any) -> Any:
            self.seen += 100
            return call_next(request)

    config = make_config({"timesteps": (1,), "seeds": 1, "layers": ("sum",), "image_samples": 0})
    bench = prepare(ClosedForm(), flat_samples(), config, [], [])
    found = measure(bench, Counts())
    assert found.state["seen"].tolist() == [12] and found.unseen is not None
