"""What a person sees at the end of a run: the table in the terminal and `report.html`.

Reads plain dictionaries, so that it can be made again from a run's `summary.json` and artifacts.
matplotlib and jinja2 are imported only when a report is written.
"""

from __future__ import annotations

from tunewright.report.page import write_report
from tunewright.report.table import summary_table

__all__ = ["summary_table", "write_report"]
