"""Starts gcp-storage-emulator such that it keeps what Google promises and it does not.

A new bucket keeps its labels, where the emulator drops them until the bucket is changed. A write on
condition of a generation (`ifGenerationMatch`) is refused when the object has another, and a
generation that has been replaced cannot be read any more; what is read has its generation as a
header. Run by the emulator's own Python:
python storage_emulator.py start --host H --port P --in-memory
"""

from http import HTTPStatus

from gcp_storage_emulator.exceptions import NotFound  # type: ignore[import-not-found]
from gcp_storage_emulator.handlers import buckets, objects  # type: ignore[import-not-found]

create = buckets.insert
# The handlers that write an object; the server takes one request at a time.
WRITING = ("insert", "copy", "rewrite", "delete", "patch")
READING = ("get", "download")


def insert(request, response, storage, *args, **kwargs):  # type: ignore[no-untyped-def]
    """The handler of POST /storage/v1/b."""
    create(request, response, storage, *args, **kwargs)
    name, labels = request.data.get("name"), request.data.get("labels")
    if labels and response.status == 200:
        storage.create_bucket(name, {**storage.buckets[name], "labels": labels})


def generation(request, storage):  # type: ignore[no-untyped-def]
    """A request -> the generation of the object that it writes or reads, "0" of one not there."""
    params, query = request.params, request.query
    bucket = params.get("dest_bucket_name") or params["bucket_name"]
    name = params.get("dest_object_id") or params.get("object_id")
    if name is None:
        # An upload. Its body is read before any answer: closing a connection on unread bytes
        # would take the answer away.
        body = request.data
        name = query["name"][0] if "name" in query else body.get("meta", body)["name"]
    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
        return "0"


def guarded(handler, parameter, status, reason):  # type: ignore[no-untyped-def]
    """A handler -> one that refuses a request whose parameter is not the object's generation."""

    def handle(request, response, storage, *args, **kwargs):  # type: ignore[no-untyped-def]
        (wanted,), found = request.query.get(parameter, [None]), generation(request, storage)
        if wanted in (None, found):
            response["X-Goog-Generation"] = found
            return handler(request, response, storage, *args, **kwargs)
        response.status = HTTPStatus(status)
        message = f"{parameter} {wanted} is not the object's generation"
        errors = [{"domain": "global", "reason": reason, "message": message}]
        return response.json({"error": {"code": status, "message": message, "errors": errors}})

    return handle


# Before the server is imported, which takes its handlers from there.
buckets.insert = insert
for name in WRITING:
    guard = guarded(getattr(objects, name), "ifGenerationMatch", 412, "conditionNotMet")
    setattr(objects, name, guard)
for name in READING:
    setattr(objects, name, guarded(getattr(objects, name), "generation", 404, "notFound"))

if __name__ == "__main__":
    from gcp_storage_emulator.__main__ import main  # type: ignore[import-not-found]

    main()
