"""Decode: a video file or a folder of images as frames with exact presentation times."""

from stages.decode.config import DecodeConfig
from stages.decode.damage import Damage, Gap
from stages.decode.stage import Decoder, probe

__all__ = ["Damage", "DecodeConfig", "Decoder", "Gap", "probe"]
