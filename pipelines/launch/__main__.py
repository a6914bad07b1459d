"""Run `python -m pipelines.launch`."""

import sys

from pipelines.launch.command import main

main(sys.argv[1:])
