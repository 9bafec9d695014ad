"""The mutator itself: what it changes, what it leaves alone, and by which name a survivor is explained."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import explanations, mutants, sample

SOURCE = '''
def share(error: float, *, of: float = 1.0) -> float:
    """1 - error / of."""
    if of <= 0:
        raise ValueError("of must be above 0" + "!")
    return 1 - error / of
'''


def test_edits_are_the_classical_ones_and_each_leaves_a_module():
    made = mutants("share.py", SOURCE)
    after = {m.after for m in made}
    assert {
        "if of < 0:",
        "if of >= 0:",
        "if False:",
        "return 1 + error / of",
        "return 1 - error * of",
    } <= after
    assert {"return 1 - of / error", "return -(1 - error / of)", "return 2 - error / of"} <= after
    assert len({m.edit for m in made}) == len(made)
    for mutant in made:
        assert ast.dump(ast.parse(mutant.applied(SOURCE))) != ast.dump(ast.parse(SOURCE))


def test_docstrings_messages_and_annotations_are_left_alone():
    assert {m.line for m in mutants("share.py", SOURCE)} == {2, 4, 6}


def test_a_draw_depends_on_the_seed_alone_and_takes_some_of_every_file():
    every = {name: mutants(name, SOURCE * times) for name, times in (("a.py", 1), ("b.py", 20))}
    drawn = sample(every, 40, seed=0)
    assert drawn == sample(every, 40, seed=0) != sample(every, 40, seed=1)
    assert sum(m.file == "a.py" for m in drawn) == 4


def test_an_explanation_is_found_wherever_the_line_has_moved():
    reasons = explanations("# why\n\nshare.py share\n- if of <= 0:\n+ if of < 0:\nNo caller\ngives 0.\n")
    moved = mutants("share.py", "\n\n\n" + SOURCE)
    assert [(m.line, reasons[m.key]) for m in moved if m.key in reasons] == [(7, "No caller gives 0.")]
    assert not any(m.key in reasons for m in mutants("share.py", SOURCE.replace("def share", "def other")))
    with pytest.raises(ValueError, match="a reason"):
        explanations("share.py share\n- a\n+ b\n")


TRIED = """
from pathlib import Path
from trial import ROOT, trial
file, tests = "gate/measure.py", ("tests/ranking/test_measures.py",)
right = (ROOT / file).read_text("utf-8")
wrong = right.replace("1 - error / np.where", "1 + error / np.where")
assert wrong != right
print(trial(file, wrong, tests, 120), trial(file, right, tests, 120))
"""


@pytest.mark.slow
def test_what_is_wrong_is_noticed_and_what_is_right_is_not() -> None:
    """Tests are run in the very process that holds the mutant: workers of their own would import the original."""
    told = subprocess.run(
        [sys.executable, "-c", TRIED], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300
    )
    assert told.stdout.split() == ["killed", "survived"], told.stderr
