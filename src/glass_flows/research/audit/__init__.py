"""Audits of samplers: anybody's, on data whose answers are exact."""

from .result import Audit, Row
from .run import audit
from .subjects import SCHEDULERS
from .verdict import Fault

__all__ = ["SCHEDULERS", "Audit", "Fault", "Row", "audit"]
