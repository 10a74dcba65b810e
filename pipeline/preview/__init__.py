"""The annotated stream in a browser, while it runs."""

from pipeline.preview.server import Preview, parse_bind

__all__ = ["Preview", "parse_bind"]
