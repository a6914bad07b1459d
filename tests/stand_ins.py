"""Skips tests if the stand-ins for Google Cloud are not installed."""

import os

import pytest

from examples.local_cloud import INSTALL_COMMAND, PUBSUB_COMMAND, is_installed, pubsub_jar

NO_EMULATORS = f"the emulators are not installed: {INSTALL_COMMAND}"
NO_PUBSUB = f"the emulator of Pub/Sub is not installed: {PUBSUB_COMMAND}"


def need_emulators(*, pubsub: bool = False) -> None:
    """Skip the test if the stand-ins are not installed, or fail it if CI=true is set."""
    lacking = NO_EMULATORS if not is_installed() else None
    if pubsub and not lacking and pubsub_jar() is None:
        lacking = NO_PUBSUB
    if lacking:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)
