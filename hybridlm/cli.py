"""The entry point of the command line; the commands are in `hybridlm.commands`."""

import sys

from hybridlm.commands.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
