"""The name of a Dataflow job that is started without `--job_name`."""

from transforms.provenance import utc_now

# The names that the reference pipelines use. `python -m resources` finds jobs by these names.
JOB_NAMES = {
    "batch_local": "pytorch-batch",
    "batch_vertex": "pytorch-batch-vertex",
    "stream_local": "pytorch-streaming",
    "stream_vertex": "pytorch-streaming-vertex",
    "replay": "pytorch-batch-replay",
}


def job_name(pipeline: str) -> str:
    """Return the name of a job that starts now, such as pytorch-batch-20260131-120000.

    Args:
        pipeline: The pipeline's own name, such as `batch_local`.
    """
    return f"{JOB_NAMES[pipeline]}-{utc_now():%Y%m%d-%H%M%S}"
