"""The page a person looks at: one HTML file per run, and an index of many runs."""

from pipeline.report.index import INDEX, write_index
from pipeline.report.page import write_report
from stages.write.folder import REPORT

__all__ = ["INDEX", "REPORT", "write_index", "write_report"]
