"""Every technique, variant and composition that ships keeps the contract, on a random pipeline."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Iterable
from typing import Any

import pytest

from gate.backbone import Backbone
from gate.registry import create_technique, everything, plugins
from gate.sample import SampleSet
from gate.technique import Technique
from gate.testing import check_technique

WITH_WEIGHTS = tuple(  # checked on tiny with what ships beside it, and in tests of their own
    name
    for name in everything()
    if {
        "controlnet",
        "lora",
        "lora-over-fitted",
        "ip-adapter",
        "t2i-adapter",
        "textual-inversion",
        "cleandift",
        "caption",
        "smooth-lora",
        "info-latent",
    }
    & set(name.split("+"))
)
QUICK = {  # the same code in fewer calls
    "noise-ensemble": "noise-ensemble[members=3]",
    "ddim-inversion": "ddim-inversion[steps=3]",
    "prompt+noise-ensemble": "prompt+noise-ensemble[members=2]",
    "prompt+ddim-inversion": "prompt+ddim-inversion[steps=2]",
}
MIXED = (
    "ddim-inversion[steps=2]+guidance-pag+timestep-ensemble[offsets=(-25,0)]",
    "noise-ensemble[members=2]+guidance-cfg+freeu",
    "guidance[guider='seg',steps=2]",
    "guidance[guider='slg',scale=0]",
    "prompt[template='a drawing of {caption}',quality='low quality']",
    "prompt-search[candidates=('a bird','a tool','a fruit'),stages=((1,2),(2,1))]",
    "cow[inversion=2,cycles=1,dilation=1]",  # dear, so not in `all`; nor are these
    "self-guidance[scale=1]",
    "mixture-t[members=2]",
)


PLAIN = tuple(n for n in everything() if n not in WITH_WEIGHTS)
# the same code as another that is quick; all of them are checked on the trained model below
AGAIN = tuple(n for n in PLAIN if n.startswith("guidance-") and n not in ("guidance-cfg", "guidance-pag"))


def _slow(names: Iterable[str], slow: Collection[str]) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


@pytest.mark.parametrize("name", _slow((*PLAIN, *MIXED), (*AGAIN, *MIXED)))
def test_keeps_the_contract(name: str, backbone: Backbone, samples: SampleSet) -> None:
    report = check_technique(QUICK.get(name, name), backbone, samples)
    assert report.ok, str(report)
    assert len(report.findings) == 15


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_keeps_the_contract_on_the_trained_model(name: str, tiny: Backbone, scenes: SampleSet) -> None:
    """What features carry says little of a model with random weights."""
    report = check_technique(QUICK.get(name, name), tiny, scenes[:3])
    assert report.ok, str(report)


@pytest.mark.parametrize(
    "name", _slow(WITH_WEIGHTS, set(WITH_WEIGHTS) - {"lora", "cleandift", "prompt+controlnet"})
)
def test_keeps_the_contract_with_the_weights_that_ship(name: str, tiny: Backbone, scenes: SampleSet) -> None:
    report = check_technique(name, tiny, scenes[:3])
    assert report.ok, str(report)


def test_all_of_this_project_are_listed_and_load() -> None:
    ours = [p for p in plugins("technique").values() if p.target.startswith("gate.techniques.")]
    assert {p.name for p in ours} == {
        "prompt", "generic-prompt", "shuffled-prompt", "guidance", "freeu", "ddim-inversion",
        "noise-ensemble", "timestep-ensemble", "shared-timestep", "prompt-search",
        "lora", "controlnet", "t2i-adapter", "ip-adapter", "textual-inversion", "cleandift", "caption",
        "smooth-lora", "cow", "self-guidance", "info-latent", "mixture-t",
    }  # fmt: skip
    assert not [p.error for p in ours if p.error]


@pytest.mark.parametrize("name", everything())
def test_states_its_source_and_what_settings_do(name: str) -> None:
    technique = create_technique(name)
    assert technique.source
    parts = getattr(technique, "parts", (technique,))
    for part in parts:
        described = " ".join(type(c).__doc__ or "" for c in (part,)) + " ".join(
            c.__doc__ or "" for c in type(part).__mro__ if issubclass(c, Technique)
        )
        assert all(setting in described for setting in part.settings), part.name


def test_controls_leaks_and_needs_are_facts() -> None:
    assert (
        create_technique("guidance-cfg").negative_control
        and create_technique("shuffled-prompt").negative_control
    )
    assert (
        not create_technique("guidance-apg").negative_control
        and not create_technique("prompt").negative_control
    )
    assert create_technique("ddim-inversion").leak
    assert create_technique("guidance-cfg").needs == {"captions"}
    assert create_technique("guidance-pag").needs == frozenset()
    assert create_technique("prompt+guidance-cfg").negative_control
    controls = [name for name in everything() if create_technique(name).negative_control is not False]
    assert all("guidance-cfg" in name or "shuffled-prompt" in name for name in controls), controls


def test_importing_techniques_imports_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys; from gate.registry import everything, create_technique\n"
        "assert [create_technique(n).cost for n in everything()]\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
