"""Decode: a video file, a folder of images or a stream as frames with exact presentation times."""

from stages.decode.address import StreamAddress, stream_address
from stages.decode.config import DecodeConfig, LiveConfig
from stages.decode.damage import Damage, Gap
from stages.decode.stage import Decoder, probe
from stages.decode.stream import StreamDecoder

__all__ = [
    "Damage",
    "DecodeConfig",
    "Decoder",
    "Gap",
    "LiveConfig",
    "StreamAddress",
    "StreamDecoder",
    "probe",
    "stream_address",
]
