"""Start gcp-storage-emulator with some guarantees of Cloud Storage that it lacks.

- A new bucket keeps its labels. By default, the emulator drops them until the bucket is changed.
- A write with the condition `ifGenerationMatch` is refused if the object has another generation.
- A generation that has been replaced cannot be read any more, and each read returns the generation
  in a header.

Run this module with the emulator's own Python:
python storage_emulator.py start --host H --port P --in-memory
"""

from http import HTTPStatus

from gcp_storage_emulator.exceptions import NotFound  # type: ignore[import-not-found]
from gcp_storage_emulator.handlers import buckets, objects  # type: ignore[import-not-found]

create = buckets.insert
# The handlers that write an object. They need no lock: the server handles one request at a time.
WRITING = ("insert", "copy", "rewrite", "delete", "patch")
READING = ("get", "download")


def insert(request, response, storage, *args, **kwargs):  # type: ignore[no-untyped-def]
    """Create a bucket with its labels, for POST /storage/v1/b."""
    create(request, response, storage, *args, **kwargs)
    name, labels = request.data.get("name"), request.data.get("labels")
    if labels and response.status == 200:
        storage.create_bucket(name, {**storage.buckets[name], "labels": labels})


def generation(request, storage):  # type: ignore[no-untyped-def]
    """Return the generation of the object of a request, or "0" if the object does not exist."""
    params, query = request.params, request.query
    bucket = params.get("dest_bucket_name") or params["bucket_name"]
    name = params.get("dest_object_id") or params.get("object_id")
    if name is None:
        # This is an upload. Its body is read before any answer: if the connection were closed with
        # unread bytes, the client would lose the answer.
        body = request.data
        name = query["name"][0] if "name" in query else body.get("meta", body)["name"]
    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
        return "0"


def guarded(handler, parameter, status, reason):  # type: ignore[no-untyped-def]
    """Wrap a handler so that it refuses requests for another generation of the object.

    Args:
        handler: The handler of the emulator.
        parameter: The query parameter with the expected generation.
        status: The status of a refusal.
        reason: The reason of a refusal, as Google words it.
    """

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


# These handlers must be replaced before the server is imported, which looks them up then.
buckets.insert = insert
for name in WRITING:
    guard = guarded(getattr(objects, name), "ifGenerationMatch", 412, "conditionNotMet")
    setattr(objects, name, guard)
for name in READING:
    setattr(objects, name, guarded(getattr(objects, name), "generation", 404, "notFound"))

if __name__ == "__main__":
    from gcp_storage_emulator.__main__ import main  # type: ignore[import-not-found]

    main()
