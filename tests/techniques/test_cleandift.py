"""CleanDIFT: other weights, clean latents, no seed; with the backbone's own weights it is the clean pass itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gate.backbone import Backbone
from gate.errors import ConfigurationError, UnsuitableError
from gate.passes import single_pass
from gate.registry import create_technique
from gate.sample import SampleSet
from gate.testing import check_technique


@pytest.fixture(scope="module")
def weights(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The denoiser's own state in half precision, as the public files hold a whole UNet."""
    file = tmp_path_factory.mktemp("cleandift") / "cleandift_unet.safetensors"
    save_file({k: v.half().contiguous() for k, v in tiny.denoiser.state_dict().items()}, file)
    return str(file)


def test_own_weights_are_the_clean_pass(weights: str, tiny: Backbone, scenes: SampleSet) -> None:
    technique = create_technique("cleandift", weights=weights)
    batch = tiny.batch(scenes[:2].samples, everyone=scenes)
    clean = tiny.denoise(batch.clean_request(), ("up1",)).features["up1"]
    with torch.no_grad(), technique.attach(tiny):
        for t, seed in ((50, 0), (300, 1)):
            seen = single_pass(technique, batch.request(t, seed), ("up1",)).features["up1"]
            assert torch.equal(seen, clean)  # tiny's own weights are stored in half precision


def test_the_contract_holds(weights: str, tiny: Backbone, scenes: SampleSet) -> None:
    report = check_technique(create_technique("cleandift", weights=weights), tiny, scenes[:3])
    assert report.ok, str(report)


def test_it_generates_nothing_and_its_image_metric_says_so(weights: str, tmp_path: Path) -> None:
    from gate.runs.directory import open_run
    from gate.screening import screen

    made = screen(
        techniques=(f"cleandift[weights={weights}]", "generic-prompt"), samples=16, timesteps=(50,), seeds=1,
        image_samples=2, output=str(tmp_path / "run"),
    )  # fmt: skip
    entries = {e["name"]: e for e in open_run(made.path).results["ranking"]}
    [clean] = [e for name, e in entries.items() if name.startswith("cleandift")]
    assert clean["images"]["image"] is None and entries["generic-prompt"]["images"]["image"]
    assert np.isfinite(clean["score"])


def test_missing_and_foreign_weights(tiny: Backbone, scenes: SampleSet, tmp_path: Path) -> None:
    with pytest.raises(UnsuitableError, match="hf download somebody/net cleandift_unet.safetensors"):
        create_technique("cleandift", weights="somebody/net").check(tiny, scenes)
    file = tmp_path / "other.safetensors"
    save_file({"conv_in.weight": torch.zeros(3, 3)}, file)
    with pytest.raises(ConfigurationError, match="no denoiser of tiny's shape"):
        create_technique("cleandift", weights=str(file)).check(tiny, scenes)
