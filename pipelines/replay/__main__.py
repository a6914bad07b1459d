"""python -m pipelines.replay"""

import sys

from pipelines.command import run_and_exit
from pipelines.replay.command import COMMAND

run_and_exit(COMMAND, sys.argv[1:])
