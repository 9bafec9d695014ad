"""The paper's tasks: heads trained in full on frozen features, and judged on others."""

from gate.tasks.index import TASKS, create_task, find_task
from gate.tasks.task import Pair, Task, Truth
from gate.tasks.truth import truth_of

__all__ = ["TASKS", "Pair", "Task", "Truth", "create_task", "find_task", "truth_of"]
