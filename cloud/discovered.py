"""Requests of clients that `Cloud.discovered` builds, with the errors and retries of all others."""

from __future__ import annotations

from typing import Any

from google.api_core import exceptions

from cloud.errors import retry


def execute(request: Any, seconds: float) -> dict[str, Any]:
    """A request, how long what passes is waited out -> the answer. Raises GoogleAPIError."""
    return retry(seconds)(execute_once)(request)  # type: ignore[no-any-return]


def execute_once(request: Any) -> dict[str, Any]:
    """A request -> the answer, for callers who try again themselves. Raises GoogleAPIError."""
    from googleapiclient.errors import HttpError
    from httplib2 import HttpLib2Error

    try:
        return dict(request.execute())
    except HttpError as error:
        details = error.error_details if isinstance(error.error_details, list) else []
        raise exceptions.from_http_status(
            int(error.resp.status),
            str(error.reason or "").strip(),
            details=details,
            error_info=next(map(_error_info, filter(_is_info, details)), None),
        ) from error
    except HttpLib2Error as error:
        raise ConnectionError(str(error)) from error


def _is_info(detail: dict[str, Any]) -> bool:
    return str(detail.get("@type", "")).endswith("google.rpc.ErrorInfo")


def _error_info(detail: dict[str, Any]) -> Any:
    """The reason of an error, as JSON -> as the message that Google's exceptions keep."""
    from google.protobuf import json_format
    from google.rpc.error_details_pb2 import ErrorInfo

    return json_format.ParseDict(detail, ErrorInfo(), ignore_unknown_fields=True)
