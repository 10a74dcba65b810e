"""The command line of liftstream; see :mod:`pipeline.commands.cli`."""

import sys

from pipeline.commands.cli import COMMANDS, main

__all__ = ["COMMANDS", "main"]

if __name__ == "__main__":
    sys.exit(main())
