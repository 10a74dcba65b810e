"""Exports of a finished run: the formats of other tools, written from its output folder."""

from pipeline.export.exporters import FORMATS, ExportRequest, export_run
from pipeline.export.labeled_run import LabeledRun, parse_names

__all__ = ["FORMATS", "ExportRequest", "LabeledRun", "export_run", "parse_names"]
