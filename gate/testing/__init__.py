"""Does a plug-in keep its contract? For ours, for a stranger's, and for `gate check`.

from gate.testing import check_metric, check_probe, check_technique

check_technique(MyTechnique).raise_for_failures()
"""

from gate.testing.files import load_class
from gate.testing.metric import check_metric
from gate.testing.probe import check_probe
from gate.testing.report import CheckReport, Finding
from gate.testing.technique import check_technique

__all__ = ["CheckReport", "Finding", "check_metric", "check_probe", "check_technique", "load_class"]
