"""Tests that the benchmark of commits counts every request that it delays."""

import json
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest
from object_store import ObjectStore, serve

import benchmarks.files.commit as bench
from benchmarks.files.commit import SlowProxy


def test_the_proxy_forwards_and_counts_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "DELAY_SECONDS", 0.0)
    store = ObjectStore(objects={"a": (1, b"content")})
    with serve(store) as address:
        proxy = SlowProxy(address)
        with proxy.running():
            connection = HTTPConnection(urlsplit(proxy.url).netloc, timeout=30)
            answers = []
            for path in ("/storage/v1/b/bucket/o", "/download/storage/v1/b/bucket/o/a?alt=media"):
                connection.request("GET", path)
                answers.append(connection.getresponse().read())
            # A large report follows the request that announces it.
            connection.request("PUT", store.session("r", "0").removeprefix(store.address), b"x")
            assert json.loads(connection.getresponse().read())["size"] == "1"
            connection.close()
    assert b'"name": "a"' in answers[0]
    assert answers[1] == b"content"
    assert proxy.requests == {"list": 1, "other": 2}
    assert proxy.kind("POST", "/batch/storage/v1") == "batch"
