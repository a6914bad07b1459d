"""Entry point of `python -m pipelines.replay`."""

import sys

from pipelines.replay.command import main

main(sys.argv[1:])
