"""What docs/tasks.md states is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from gate.data.public import cifar, scenes_parsed, spair
from gate.tasks import TASKS
from gate.tasks.amalgamation import Amalgamation
from gate.tasks.config import TaskConfig
from gate.tasks.correspondence import ALPHA
from gate.tasks.scarce import ScarceSegmentation
from gate.tasks.task import Truth

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")


def test_the_table_holds_every_task_with_its_needs_figures_and_sizes() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
    assert [name for name, *_ in rows] == list(TASKS)
    figures = ""
    for name, needs, said, sizes in rows:
        figures = figures if said == "the same" else said
        task = TASKS[name]
        assert needs == task.needs and re.findall(r"`([a-z-]+)`", figures) == [m.name for m in task.measures]
        stated, (n, m) = [int(number) for number in re.findall(r"\d+", sizes)], task.sizes
        few = task().settings.get("labelled")
        assert stated == ([few, n + m] if task.resplits else [n, m])


def test_defaults_are_those_of_the_code() -> None:
    weighing, config, scarce = Amalgamation(), TaskConfig(task="segmentation"), ScarceSegmentation()
    flags = dict(re.findall(r"^\| `--([a-z-]+)`(?: n)? \| ([^|]+) \|", PAGE, re.MULTILINE))
    assert int(flags["assigners"]) == weighing.assigners == config.assigners
    penalties = re.search(r"`--sparsity` g1, `--diversity` g2 \| ([\d.]+), ([\d.]+) \|", PAGE)
    assert penalties and tuple(map(float, penalties.groups())) == (weighing.sparsity, weighing.diversity)
    assert (config.sparsity, config.diversity) == (weighing.sparsity, weighing.diversity)
    assert "ten classifiers" in PAGE and scarce.members == 10 and scarce.hidden == (128, 32)
    assert f"<= {ALPHA} L" in PAGE


def test_layouts_are_those_that_are_read() -> None:
    for layout in (spair.LAYOUT, scenes_parsed.LAYOUT, cifar.LAYOUT):
        assert re.split(r"[/|]", layout.split(": ")[1])[0] in PAGE
    assert all(field in PAGE for field in spair.Annotation.model_fields)


def test_a_split_is_drawn_from_train_and_test_together() -> None:
    ids = tuple(str(i) for i in range(30))
    taught = [ScarceSegmentation().taught(Truth(ids, 8), seed) for seed in range(5)]
    assert all(len(rows) == 20 for rows in taught) and len({tuple(rows) for rows in taught}) == 5
    assert len(np.unique(np.concatenate(taught))) > 20
