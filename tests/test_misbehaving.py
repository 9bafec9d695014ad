"""Techniques that bend what they can reach: one screening of all through the real command, and `gate check` of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
HEAD = """import os, signal, sys, time
from dataclasses import dataclass
import numpy as np
import torch
import torch.nn.functional as F
from gate import Technique
@dataclass(kw_only=True)
class It(Technique):
    name = {name!r}
    summary = "A stranger's."
"""
FEATURES = """    def denoise(self, request, call_next):
        r = call_next(request)
        return r.with_(features={{k: {made} for k, v in r.features.items()}})
"""
ACTS = """    def denoise(self, request, call_next):
        r = call_next(request)
        b = request.batch
        {act}
        return r
"""
# name: what is made of a feature v; all are the same or nearly so for every image, or lack most of it
DEGENERATE = {
    "constant": "torch.ones_like(v)",
    "frozen": "v[:1].expand_as(v).clone()",
    "smoothed": "v.mean((2, 3), keepdim=True).expand_as(v).clone()",
    "blurred": "F.avg_pool2d(F.pad(v, (4, 4, 4, 4), mode='replicate'), 9, 1)",
    "loud-offset": "v + 20 * v.abs().mean()",
    "loud-channel": "torch.cat([v[:, :1] * 1000, v[:, 1:]], 1)",
    "neighbours": "v.mean(0, keepdim=True).expand_as(v).clone()",
}
LEAKS = {
    "input-as-x0": "    def denoise(self, request, call_next):\n"
    "        return call_next(request).with_(x0=request.batch.x0)\n",
    "clean-features": "    def denoise(self, request, call_next):\n"
    "        here = call_next(request)\n"
    "        clean = call_next(request.batch.clean_request(request.conditioning))\n"
    "        return here.with_(features=clean.features)\n",
}
ORACLE = """    {needs}
    def denoise(self, request, call_next):
        r = call_next(request)
        masks = torch.stack([F.one_hot(torch.as_tensor(s.mask).long() + 1, 32).float().movedim(-1, 0)
                             for s in request.batch.samples])
        return r.with_(features={{k: torch.cat([F.adaptive_avg_pool2d(masks, v.shape[-1]),
                                                v[:, 32:]], 1) if v.shape[1] > 32 else v
                                 for k, v in r.features.items()}})
"""
# name: (what it does for good, what is said to have changed)
CHANGES = {
    "bends-weights": ("b.backbone.denoiser.conv_in.weight.data.mul_(1.01)", "denoiser.conv_in.weight"),
    "bends-x0": ("b.backbone; b.x0.data.mul_(0.5)", "x0"),
    "bends-vae": ("b.backbone.vae.decoder.conv_in.weight.data.zero_()", "vae.decoder.conv_in.weight"),
    "bends-images": ("b.samples[0].image[:] = 0", "the image of sample"),
    "bends-torch": ("F.group_norm = lambda *a, **k: a[0]", "torch.nn.functional.group_norm"),
    "bends-dtype": ("torch.set_default_dtype(torch.float64)", "the default dtype"),
    "bends-numpy": ("np.linalg.norm = lambda *a, **k: 0.0", "numpy.linalg.norm"),
    "leaves-hook": ("b.backbone.denoiser.conv_in.register_forward_hook(lambda *a: None)", "_forward_hooks"),
    "writes-noise": ("request.eps.mul_(0)", "wrote into the latents or the noise"),
}
DIES = {
    "exits-0": ("os._exit(0)", "exit code 0 and gave no result"),
    "exits-3": ("os._exit(3)", "exit code 3"),
    "sys-exits": ("sys.exit(0)", "SystemExit"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL, as happens where memory runs out"),
    "segfaults": ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "hangs": ("time.sleep(600)", "--technique-timeout"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
}
OTHERS = {
    "prints": ACTS.format(act="os.write(1, b'raw\\n'); print('{not json')"),
    "asks-for-30-gb": ACTS.format(act="torch.empty(10**13)"),
    "calls-behind": "    def denoise(self, request, call_next):\n"
    "        for _ in range(3):\n"
    "            request.batch.backbone.activate(request)\n"
    "        return call_next(request)\n",
    "honest": FEATURES.format(made="v * 1.0"),
}
STRANGERS: dict[str, str] = {
    **{name: FEATURES.format(made=made) for name, made in DEGENERATE.items()},
    **LEAKS,
    "oracle": ORACLE.format(needs="pass"),
    "oracle-declared": ORACLE.format(needs="needs = frozenset({'masks'})"),
    **{name: ACTS.format(act=act) for name, (act, _) in CHANGES.items()},
    **{name: ACTS.format(act=act) for name, (act, _) in DIES.items()},
    **OTHERS,
}
FAIL = {**CHANGES, **DIES}
SETTINGS = (
    "--samples",
    "16",
    "--seeds",
    "1",
    "--timesteps",
    "300",
    "--image-samples",
    "2",
    "--image-steps",
    "2",
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strangers")
    points = []
    for i, (name, source) in enumerate(STRANGERS.items()):
        (folder / f"stranger_{i}.py").write_text(HEAD.format(name=name) + source, encoding="utf-8")
        points.append(f"{name} = stranger_{i}:It")
    facts = folder / "strangers-0.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 0.1.0\n")
    (facts / "entry_points.txt").write_text("[gate.techniques]\n" + "\n".join(points) + "\n")
    return folder


def gate(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "gate", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=path,
        timeout=900,
    )


@pytest.fixture(scope="module")
def screened(path: Path) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    names = ",".join(("prompt", *STRANGERS))
    settings = (*SETTINGS, "--technique-timeout", "30", "--format", "json", "--output", "run")
    done = gate(path, "screen", "--techniques", names, *settings)
    return json.loads(done.stdout), done


@pytest.mark.slow
def test_a_screening_with_all_of_them_finishes_and_only_the_honest_count(
    path: Path, screened: tuple[dict[str, Any], subprocess.CompletedProcess[str]]
) -> None:
    results, done = screened
    assert done.returncode == 7, done.stderr  # some failed; stdout was ours alone, for it was read
    assert "raw" in done.stderr and "{not json" in done.stderr
    failed = {s["name"]: s["reason"] for s in results["skipped"]}
    assert set(failed) == {*FAIL, "oracle", "asks-for-30-gb"}
    for name, (_, why) in FAIL.items():
        assert why in failed[name], (name, failed[name])
    assert "NoneType" in failed["oracle"]  # it has no mask
    rows = {row["name"]: row for row in results["ranking"]}
    for name in DEGENERATE:
        assert rows[name]["degenerate"] and any(name in n and "degenerate" in n for n in results["notes"]), (
            name
        )
    for name in LEAKS:
        assert rows[name]["leak"].startswith("found, not declared"), name
    assert rows["oracle-declared"]["truth"] == ["masks"] and rows["oracle-declared"]["probe_gain"] > 0.2
    assert not {*DEGENERATE, "oracle-declared"} & set(results["winners"])
    assert rows["calls-behind"]["cost"]["per_pass"] == 4
    assert not rows["honest"]["degenerate"] and not rows["honest"]["leak"]
    assert rows["honest"]["score"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_nobody_changes_the_numbers_of_others(
    path: Path, screened: tuple[dict[str, Any], subprocess.CompletedProcess[str]]
) -> None:
    """The same run without strangers gives prompt and vanilla the same bits."""
    from safetensors.numpy import load_file

    done = gate(path, "screen", "--techniques", "prompt", *SETTINGS, "--output", "alone")
    assert done.returncode == 0, done.stderr
    alone, beside = (load_file(path / run / "scores.safetensors") for run in ("alone", "run"))
    at = [screened[0]["axes"]["technique"].index(name) for name in ("vanilla", "prompt")]
    for key, values in alone.items():
        if key != "unseen":
            assert np.array_equal(values, beside[key][at], equal_nan=True), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "invariant"),
    [
        *((name, "features still carry the image") for name in DEGENERATE if name != "neighbours"),
        ("neighbours", "independent of batch size and order"),
        *((name, "carries no image that it was not given") for name in LEAKS),
        ("bends-weights", "detaching restores the backbone"),
        ("bends-torch", "detaching restores the backbone"),
        ("calls-behind", "declared cost is the counted cost"),
    ],
)
def test_gate_check_names_it(path: Path, name: str, invariant: str) -> None:
    done = gate(path, "check", name, "--format", "json")
    assert done.returncode == 3, done.stdout + done.stderr
    findings = {row["name"]: row for row in json.loads(done.stdout)}
    assert not findings[invariant]["ok"], findings[invariant]
