"""Decode: a video file or a folder of images to frames with exact presentation times."""

from stages.decode.stage import DecodeConfig, Decoder, probe

__all__ = ["DecodeConfig", "Decoder", "probe"]
