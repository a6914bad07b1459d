"""ReadMessages: a Pub/Sub subscription as serialized messages, with their ids and times."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
from apache_beam.io.gcp.pubsub import ReadFromPubSub
from apache_beam.io.iobase import Read

from common.private_beam.any_runner import serialized_source


class ReadMessages(ReadFromPubSub):  # type: ignore[misc]
    """A source with one element per message, which `parse_message` reads.

    Beam's own transform turns each message into a proto-plus object, which takes more time than
    all other work on the message. This one leaves messages serialized. Runners recognize it by its
    base class.

    Args:
        subscription: The full name of the subscription.
        attribute: The attribute by which the runner drops duplicates; every message must have it.
            None for the message id.
    """

    def __init__(self, subscription: str, attribute: str | None = None) -> None:
        super().__init__(subscription=subscription, id_label=attribute, with_attributes=True)

    def expand(self, pbegin: Any) -> beam.PCollection[Any]:
        """Apply the runner's own source."""
        messages = pbegin.pipeline | Read(serialized_source(self))
        messages.element_type = bytes
        return messages
