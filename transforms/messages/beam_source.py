"""ReadMessages: a Pub/Sub subscription as serialized messages, with ids and times kept."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
from apache_beam.io.gcp.pubsub import ReadFromPubSub
from apache_beam.io.iobase import Read

from common.private_beam.any_runner import serialized_source


class ReadMessages(ReadFromPubSub):  # type: ignore[misc]
    """A subscription -> what transforms.messages.message.parse takes, one element a message.

    Beam's own transform turns each message into an object of proto-plus, which takes
    more time than all else that is done to it; this one leaves it serialized. Runners
    know it by its base class.
    """

    def __init__(self, subscription: str) -> None:
        super().__init__(subscription=subscription, with_attributes=True)

    def expand(self, pbegin: Any) -> beam.PCollection[Any]:
        """The runner's own source."""
        messages = pbegin.pipeline | Read(serialized_source(self))
        messages.element_type = bytes
        return messages
