"""List prices of Dataflow and BigQuery, and what workers cost."""

from __future__ import annotations

from dataclasses import dataclass

PRICES_AS_OF = "2026-09-08"


@dataclass(frozen=True)
class Prices:
    """Prices in USD: per hour of a vCPU, a GB of memory and a GB of disk, and per GB of data."""

    vcpu: float
    memory: float
    disk: float
    data: float


# Prices of us-central1. Source: "Dataflow pricing", https://cloud.google.com/dataflow/pricing. The
# price of data is for what Dataflow Shuffle or Streaming Engine processes.
BATCH = Prices(vcpu=0.056, memory=0.003557, disk=0.000054, data=0.011)
FLEXRS = Prices(vcpu=0.0336, memory=0.0021342, disk=0.000054, data=0.011)
STREAMING = Prices(vcpu=0.069, memory=0.003557, disk=0.000054, data=0.018)
# USD per GB that the Storage Read API sends. Source: "BigQuery pricing", 1.10 USD per TiB.
READ_GB = 1.10 / 1024


@dataclass(frozen=True)
class Workers:
    """The workers of a job, by default those of the presets of `pipelines.launch`."""

    count: int = 2
    vcpu: int = 4
    memory_gb: float = 15.0
    disk_gb: float = 30.0

    def dollars(self, prices: Prices, seconds: float) -> float:
        """Return the price of all workers for a number of seconds, in USD."""
        hourly = (
            self.vcpu * prices.vcpu + self.memory_gb * prices.memory + self.disk_gb * prices.disk
        )
        return self.count * hourly * seconds / 3600
