"""Does a plug-in keep its contract? For ours, for a stranger's, and for `gate check`.

from gate.testing import check_technique

check_technique(MyTechnique).raise_for_failures()
"""

from gate.testing.technique import CheckReport, Finding, check_technique

__all__ = ["CheckReport", "Finding", "check_technique"]
