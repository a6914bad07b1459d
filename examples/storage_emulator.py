"""Start gcp-storage-emulator with some guarantees of Cloud Storage that it lacks.

- A new bucket keeps its labels. By default, the emulator drops them until the bucket is changed.
- A write with the condition `ifGenerationMatch` is refused if the object has another generation.
- A generation that has been replaced cannot be read any more, and each read returns the generation
  in a header.
- A list of more than 1,000 objects comes in pages.
- An operation takes as long with many objects as with few: in memory, nothing needs the index that
  the emulator writes again after every change.
- The XML API lists a bucket and answers HEAD requests, with the headers of an object. The library
  of Delta Lake reads through this API.

Run this module with the emulator's own Python:
python storage_emulator.py start --host H --port P --in-memory
"""

import io
import json
from collections.abc import Callable
from datetime import datetime
from email.utils import format_datetime
from http import HTTPStatus
from typing import Any
from xml.sax.saxutils import escape

from gcp_storage_emulator.exceptions import NotFound  # type: ignore[import-not-found]
from gcp_storage_emulator.handlers import buckets, objects  # type: ignore[import-not-found]

# The emulator has no types.
Handler = Callable[..., Any]

create = buckets.insert
# The handlers that write an object. They need no lock: the server handles one request at a time.
WRITING = ("insert", "copy", "rewrite", "delete", "patch")
READING = ("get", "download")
# The objects on a page of a list.
PAGE = 1000


def insert(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
    """Create a bucket with its labels, for POST /storage/v1/b."""
    create(request, response, storage, *args, **kwargs)
    name, labels = request.data.get("name"), request.data.get("labels")
    if labels and response.status == 200:
        storage.create_bucket(name, {**storage.buckets[name], "labels": labels})


def generation(request: Any, storage: Any) -> str:
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


def guarded(handler: Handler, parameter: str, status: int, reason: str) -> Handler:
    """Wrap a handler so that it refuses requests for another generation of the object.

    Args:
        handler: The handler of the emulator.
        parameter: The query parameter with the expected generation.
        status: The status of a refusal.
        reason: The reason of a refusal, as Google words it.
    """

    def handle(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> Any:
        (wanted,), found = request.query.get(parameter, [None]), generation(request, storage)
        if wanted in (None, found):
            response["X-Goog-Generation"] = found
            return handler(request, response, storage, *args, **kwargs)
        response.status = HTTPStatus(status)
        message = f"{parameter} {wanted} is not the object's generation"
        errors = [{"domain": "global", "reason": reason, "message": message}]
        return response.json({"error": {"code": status, "message": message, "errors": errors}})

    return handle


def described(handler: Handler) -> Handler:
    """Wrap the handler that sends an object, so that it names the object's version and time."""

    def handle(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> Any:
        handler(request, response, storage, *args, **kwargs)
        if response.status < 300:
            bucket, name = request.params["bucket_name"], request.params["object_id"]
            found = storage.get_file_obj(bucket, name)
            response["ETag"] = f'"{found["etag"]}"'
            written = datetime.fromisoformat(found["updated"])
            response["Last-Modified"] = format_datetime(written, usegmt=True)

    return handle


class Page:
    """A storage whose list of objects is one page: the names that follow the token."""

    def __init__(self, storage: Any, query: Any) -> None:
        self.storage, self.more = storage, None
        self.after = query.get("pageToken", [""])[0]
        self.size = min(int(query.get("maxResults", [PAGE])[0]), PAGE)

    def get_file_list(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Return the objects of the page, and on the first page the folders."""
        files, folders = self.storage.get_file_list(*args, **kwargs)
        left = [file for file in files if file["name"] > self.after]
        if len(left) > self.size:
            self.more = left[self.size - 1]["name"]
        return left[: self.size], [] if self.after else folders


def paged(handler: Handler) -> Handler:
    """Wrap the handler that lists objects, so that it returns pages."""

    def handle(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> Any:
        page = Page(storage, request.query)
        handler(request, response, page, *args, **kwargs)
        if page.more is not None:
            response.json({**json.loads(response._content), "nextPageToken": page.more})

    return handle


def list_xml(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> Any:
    """List the objects of a bucket, for GET /BUCKET?list-type=2."""

    def query(name: str) -> Any:
        return request.query.get(name, [None])[0]

    bucket = request.params["bucket_name"]
    try:
        found, folders = storage.get_file_list(bucket, query("prefix"), query("delimiter"))
    except NotFound:
        response.status = HTTPStatus.NOT_FOUND
        return response.json({"error": {"code": 404, "message": "The bucket does not exist."}})
    after = query("continuation-token") or query("start-after") or ""
    found = sorted((one for one in found if one["name"] > after), key=lambda one: one["name"])
    items = [
        f"<Contents><Key>{escape(one['name'])}</Key><LastModified>{one['updated']}</LastModified>"
        f"<ETag>&quot;{one['etag']}&quot;</ETag><Size>{one['size']}</Size></Contents>"
        for one in found[:PAGE]
    ]
    if len(found) > PAGE:
        items.append(
            f"<NextContinuationToken>{escape(found[PAGE - 1]['name'])}</NextContinuationToken>"
        )
    items += [
        f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>"
        for one in folders
        if one > after
    ]
    response["Content-Type"] = "application/xml"
    response.write_file(f"<ListBucketResult>{''.join(items)}</ListBucketResult>", None)


def answer_head(handler: Any) -> None:
    """Answer a HEAD request as a GET request, without the body."""
    to_client, handler.wfile = handler.wfile, io.BytesIO()
    handler.do_GET()
    answer, handler.wfile = handler.wfile.getvalue(), to_client
    handler.wfile.write(answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")


# These handlers must be replaced before the server is imported, which looks them up then.
buckets.insert = insert
objects.download = described(objects.download)
objects.ls = paged(objects.ls)
for name in WRITING:
    guard = guarded(getattr(objects, name), "ifGenerationMatch", 412, "conditionNotMet")
    setattr(objects, name, guard)
for name in READING:
    setattr(objects, name, guarded(getattr(objects, name), "generation", 404, "notFound"))

if __name__ == "__main__":
    from gcp_storage_emulator import server  # type: ignore[import-not-found]
    from gcp_storage_emulator.__main__ import main  # type: ignore[import-not-found]
    from gcp_storage_emulator.storage import Storage  # type: ignore[import-not-found]

    Storage._write_config_to_file = lambda _: None
    server.HANDLERS += ((r"^/(?P<bucket_name>[-.\w]+)/?$", {"GET": list_xml}),)
    server.RequestHandler.do_HEAD = answer_head
    main()
