"""What training can aim at: one file a family, all behind `Objective`."""

from tunewright.train.objectives.base import Answer, HeadKind, Objective, Places, Rows
from tunewright.train.objectives.choose import make_objective, rows_for

__all__ = ["Answer", "HeadKind", "Objective", "Places", "Rows", "make_objective", "rows_for"]
