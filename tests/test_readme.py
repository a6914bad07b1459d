"""What the README says is so: its pipeline runs, its flags and reasons exist."""

import re
import subprocess
import sys
from pathlib import Path

from pipelines.beam_args import beam_flags
from pipelines.launch.command import ATTACH
from pipelines.options import all_flags
from pipelines.options.flag import build_parser
from resources.flags import make_parser as resources_parser
from serving.deploy.flags import deploy_parser, status_parser, undeploy_parser
from serving.settings import make_parser
from transforms.dead_letters import REASONS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_pipeline_of_ones_own_scores_one_row_and_rejects_the_other(example: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = code.replace("build/example", str(example))
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert "'row_id': 't1'" in done.stdout
    assert "'normalized_MAE'" in done.stdout
    assert "'message': 'column Amount: null'" in done.stdout


def test_every_flag_named_exists() -> None:
    beams = set(beam_flags())
    for parser in (make_parser({}), deploy_parser(), undeploy_parser(), status_parser()):
        beams |= set(parser._option_string_actions)
    beams |= set(build_parser("launch", "", ATTACH.options)._option_string_actions)
    (commands,) = resources_parser()._subparsers._group_actions  # type: ignore[union-attr]
    for parser in commands.choices.values():  # type: ignore[union-attr, attr-defined]
        beams |= set(parser._option_string_actions)
    others = {"--sample", "--output", "--allow_batch_dependence"}
    named = set(re.findall(r"--[a-z][a-z_]+", README)) - others
    assert named <= all_flags() | beams


def test_every_reason_named_is_given_somewhere_and_the_other_way_round() -> None:
    table = README.split("| stage | reason |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([a-z_]+)`", table))
    source = "".join(path.read_text() for path in (ROOT / "transforms").rglob("*.py"))
    handlers = (ROOT / "model_handlers").rglob("*.py")
    source += "".join(path.read_text() for path in handlers)
    given = set(re.findall(r'Fault\(\s*"([a-z_]+)"', source))
    given |= set(re.findall(r'faults\.add\([^"]*"([a-z_]+)"', source))
    given |= set(re.findall(r'"((?:model|endpoint)_(?:error|refused|failed))"', source))
    assert given == named == set(REASONS)


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)`?", README)) - {"one"} <= targets
