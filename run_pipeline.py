"""The command line of liftstream; see :mod:`pipeline.commands.cli`."""

from pipeline.commands.cli import COMMANDS, main, main_and_exit

__all__ = ["COMMANDS", "main", "main_and_exit"]

if __name__ == "__main__":
    main_and_exit()
