"""Sends requests of `Cloud.discovered` clients, with the errors and retries of other clients."""

from __future__ import annotations

from typing import Any

from google.api_core import exceptions

from cloud.errors import retry


def execute(request: Any, seconds: float) -> dict[str, Any]:
    """Send a request, retry transient errors, and return the response.

    Args:
        request: The request.
        seconds: How long transient errors are retried.

    Raises:
        GoogleAPIError: The request failed.
    """
    return retry(seconds)(execute_once)(request)  # type: ignore[no-any-return]


def execute_once(request: Any) -> dict[str, Any]:
    """Send a request once, for callers that retry themselves, and return the response.

    Raises:
        GoogleAPIError: The request failed.
        ConnectionError: The service cannot be reached.
    """
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
    """Convert the ErrorInfo of an error from JSON to the message that Google's exceptions hold."""
    from google.protobuf import json_format
    from google.rpc.error_details_pb2 import ErrorInfo

    return json_format.ParseDict(detail, ErrorInfo(), ignore_unknown_fields=True)
