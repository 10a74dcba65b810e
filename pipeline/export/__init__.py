"""Exports of a finished run: the formats of other tools, written from its output folder."""

from pipeline.export.exporters import FORMATS, ExportRequest, export_run
from pipeline.export.labeled_run import LabeledRun

__all__ = ["FORMATS", "ExportRequest", "LabeledRun", "export_run"]
