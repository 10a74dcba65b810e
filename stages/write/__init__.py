"""Write: the output folder of a run, every file whole or not at all."""

from stages.write.stage import WriteConfig, Writer

__all__ = ["WriteConfig", "Writer"]
