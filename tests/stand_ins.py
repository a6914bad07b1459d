"""Whether the servers that stand in for Google Cloud are installed."""

import os

import pytest

from examples.local_cloud import INSTALL_COMMAND, PUBSUB_COMMAND, is_installed, pubsub_jar

NO_EMULATORS = f"the emulators are not installed: {INSTALL_COMMAND}"
NO_PUBSUB = f"the emulator of Pub/Sub is not installed: {PUBSUB_COMMAND}"


def need_emulators(*, pubsub: bool = False) -> None:
    """Skips the test where the servers are not installed; with CI=true it fails."""
    lacking = NO_EMULATORS if not is_installed() else None
    if pubsub and not lacking and pubsub_jar() is None:
        lacking = NO_PUBSUB
    if lacking:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)
