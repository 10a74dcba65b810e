"""Write: the output folder of a run, every file whole or not at all."""

from stages.write.config import WriteConfig
from stages.write.segments import SegmentWriter
from stages.write.stage import Writer

__all__ = ["SegmentWriter", "WriteConfig", "Writer"]
