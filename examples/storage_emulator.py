"""Starts gcp-storage-emulator such that a new bucket keeps its labels, as with Google.

The emulator drops them when a bucket is made, and keeps them when one is changed. Run by the
emulator's own Python: python storage_emulator.py start --host H --port P --in-memory
"""

from gcp_storage_emulator.handlers import buckets  # type: ignore[import-not-found]

create = buckets.insert


def insert(request, response, storage, *args, **kwargs):  # type: ignore[no-untyped-def]
    """The handler of POST /storage/v1/b."""
    create(request, response, storage, *args, **kwargs)
    name, labels = request.data.get("name"), request.data.get("labels")
    if labels and response.status == 200:
        storage.create_bucket(name, {**storage.buckets[name], "labels": labels})


# Before the server is imported, which takes its handlers from there.
buckets.insert = insert

if __name__ == "__main__":
    from gcp_storage_emulator.__main__ import main  # type: ignore[import-not-found]

    main()
