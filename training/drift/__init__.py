"""What has changed in the traffic and in the models: since last night, and since the champion was trained.

`observe` turns an outcome table into arrays with the champion's estimates beside each row, `find_drift`
compares such arrays and says what to do; what it has to remember from night to night is a `DriftState`.
"""

from __future__ import annotations

from training.drift.findings import DriftReport, DriftSettings, Finding, Kind
from training.drift.nights import DriftState
from training.drift.observed import Observed, observe
from training.drift.search import find_drift

__all__ = ["DriftReport", "DriftSettings", "DriftState", "Finding", "Kind", "Observed", "find_drift", "observe"]
