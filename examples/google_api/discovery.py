"""Check requests and answers against Google's discovery documents."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from common.errors import suggest

Schema = Mapping[str, Any]

# Google's servers accept this parameter for every method; the documents do not list it.
_ALT = "$alt"
_NUMBER = re.compile(r"-?\d+")
_FORMATS = {
    "google-datetime": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"),
    "google-duration": re.compile(r"-?\d+(\.\d+)?s"),
    "google-fieldmask": re.compile(r"[\w.,*-]+"),
    "byte": re.compile(r"[\w+/-]*={0,2}"),
    "int64": _NUMBER,
    "uint64": _NUMBER,
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method of a service, as its document describes it."""

    id: str
    http: str
    path: str
    flat_path: str
    parameters: Mapping[str, Schema]
    request: Schema | None
    response: Schema | None

    def matches(self, segments: Sequence[str]) -> bool:
        """Return whether a path, split at its slashes, belongs to this method."""
        own = self.flat_path.split("/")
        return len(own) == len(segments) and all(map(_fits, own, segments))

    def path_values(self, path: str) -> dict[str, str]:
        """Return the parameters in a matching path by name."""
        found = re.fullmatch(
            re.sub(
                r"\\\{(\\\+)?(\w+)\\\}",
                lambda part: f"(?P<{part[2]}>{'.+' if part[1] else '[^/]+'})",
                re.escape(self.path),
            ),
            path,
        )
        return found.groupdict() if found else {}


def _fits(own: str, given: str) -> bool:
    """Return whether a segment of a path matches one of a template, such as `{jobsId}:cancel`."""
    if not own.startswith("{"):
        return own == given
    _, _, verb = own.partition(":")
    value, _, given_verb = given.partition(":")
    return bool(value) and verb == given_verb


@dataclass
class Document:
    """A discovery document.

    Attributes:
        schemas: The schemas of messages by name.
        parameters: The query parameters that all methods accept.
        methods: The methods of the service.
        enums: The enums of Google's client, whose numbers its requests may contain.
    """

    schemas: Mapping[str, Schema]
    parameters: Mapping[str, Schema]
    methods: Sequence[Method]
    enums: Sequence[type[IntEnum]] = field(default=())

    def find(self, http: str, path: str) -> Method | None:
        """Return the method for a request, or None.

        Args:
            http: The HTTP method, such as `GET`.
            path: The path of the request, without its first slash.
        """
        segments = path.split("/")
        return next((m for m in self.methods if m.http == http and m.matches(segments)), None)

    def read_query(
        self, method: Method, query: Mapping[str, str]
    ) -> tuple[dict[str, str], list[str]]:
        """Check the query of a request.

        Args:
            method: The method of the request.
            query: The query parameters.

        Returns:
            The query with enums by name, and the faults that were found.
        """
        own = {n: p for n, p in method.parameters.items() if p["location"] == "query"}
        known = {**self.parameters, **own}
        check = _Check(self, complete=False)
        read = dict(query)
        for name, text in query.items():
            if name == _ALT:
                if text != "json;enum-encoding=int":
                    check.fail(name, f"unknown value {text!r}")
            elif name not in known:
                check.fail(name, f"unknown query parameter{suggest(name, known)}")
            else:
                value = check.value(known[name], _parsed(text, known[name]), name)
                read[name] = value if isinstance(value, str) else text
        for name, parameter in own.items():
            if parameter.get("required") and name not in query:
                check.fail(name, "a required query parameter is missing")
        return read, check.faults

    def check_path(self, method: Method, values: Mapping[str, str]) -> list[str]:
        """Return the faults of the parameters in a path."""
        return [
            f"{name}: {values.get(name)!r} does not match {parameter['pattern']}"
            for name, parameter in method.parameters.items()
            if parameter["location"] == "path"
            and "pattern" in parameter
            and not re.search(parameter["pattern"], values.get(name, ""))
        ]

    def read_body(self, method: Method, body: Any, *, partial: bool) -> tuple[Any, list[str]]:
        """Check the body of a request.

        Args:
            method: The method of the request.
            body: The decoded body, or None.
            partial: Whether this is an update, which may lack required fields.

        Returns:
            The body with enums by name and without fields that only Google sets, and the faults
            that were found.
        """
        if method.request is None:
            return None, ["this method takes no body"] if body else []
        check = _Check(self, complete=not partial)
        return check.value(method.request, {} if body is None else body, ""), check.faults

    def check_answer(self, method: Method, answer: Any) -> list[str]:
        """Return the faults of an answer to a method."""
        check = _Check(self, complete=False, answer=True)
        check.value(method.response or {}, answer, "")
        return check.faults


@dataclass
class _Check:
    """One walk through a JSON value and its schema, which collects `faults`.

    `complete` says whether required fields must be present, `answer` whether this is an answer.
    """

    document: Document
    complete: bool
    answer: bool = False
    faults: list[str] = field(default_factory=list)

    def fail(self, where: str, what: str) -> None:
        self.faults.append(f"{where}: {what}" if where else what)

    def value(self, schema: Schema, value: Any, where: str) -> Any:
        """Check a value, and return it as it is stored."""
        if "$ref" in schema:
            schema = self.document.schemas[schema["$ref"]]
        kind = schema.get("type", "any")
        if kind == "any":
            return value
        if "enum" in schema:
            return self._enum(schema["enum"], value, where)
        if not _KINDS[kind](value) and not _written(schema, value):
            got = type(value).__name__
            self.fail(where, f"expected {schema.get('format', kind)}, got {got} {value!r:.60}")
            return value
        if kind == "object":
            return self._object(schema, value, where)
        if kind == "array":
            items = enumerate(value)
            return [self.value(schema["items"], item, f"{where}[{i}]") for i, item in items]
        pattern = _FORMATS.get(schema.get("format", ""))
        if kind == "string" and pattern and not pattern.fullmatch(str(value)):
            self.fail(where, f"expected {schema['format']}, got {value!r:.60}")
        return value

    def _object(self, schema: Schema, value: Mapping[str, Any], where: str) -> dict[str, Any]:
        known, extra = schema.get("properties", {}), schema.get("additionalProperties")
        kept = {}
        for name, item in value.items():
            at = f"{where}.{name}" if where else name
            if name in known:
                if self.answer or not known[name].get("readOnly"):
                    kept[name] = self.value(known[name], item, at)
            elif extra is not None:
                kept[name] = self.value(extra, item, at)
            else:
                self.fail(at, f"unknown field{suggest(name, known)}")
        for name, part in known.items():
            needed = part.get("description", "").startswith("Required.")
            if self.complete and needed and value.get(name) in (None, "", {}, []):
                self.fail(f"{where}.{name}" if where else name, "a required field is missing")
        return kept

    def _enum(self, names: Sequence[str], value: Any, where: str) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            # Clients that request enums as numbers also send numbers. The documents do not have the
            # numbers, so take them from the client's enum that is most like the document's.
            alike = max(
                self.document.enums,
                key=lambda known: len(set(names) & set(known.__members__)),
                default=None,
            )
            if alike and value in list(alike):
                value = alike(value).name
        if value not in names:
            self.fail(where, f"unknown value {value!r}{suggest(str(value), names)}")
        return value


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
}


def _written(schema: Schema, value: Any) -> bool:
    """Return whether a value is a 64-bit integer written as a number.

    The documents describe these integers as strings, but Google accepts numbers too.
    """
    return schema.get("format") in ("int64", "uint64") and _KINDS["integer"](value)


def _parsed(text: str, schema: Schema) -> Any:
    """Return the JSON value that the text of a query parameter stands for."""
    if schema.get("repeated"):
        return text
    if "enum" in schema and _NUMBER.fullmatch(text):
        return int(text)
    if schema.get("type") in ("integer", "number", "boolean"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def enums_of(holder: Any) -> list[type[IntEnum]]:
    """Return the enums in a message, or in a module of messages, of Google's client."""
    found: list[type[IntEnum]] = []
    for value in vars(holder).values():
        if isinstance(value, type) and issubclass(value, IntEnum):
            found.append(value)
        elif isinstance(value, type) and hasattr(value, "pb"):
            found += enums_of(value)
    return found


def load_document(name: str, enums: Sequence[type[IntEnum]] = ()) -> Document:
    """Read a discovery document.

    Args:
        name: The name of the document, such as `aiplatform.v1`.
        enums: The enums of Google's client, whose numbers its requests may contain.

    Raises:
        ModuleNotFoundError: If google-api-python-client is not installed.
    """
    schemas, parameters, methods = _read(name)
    return Document(schemas, parameters, methods, enums)


@functools.cache
def _read(name: str) -> tuple[Mapping[str, Schema], Mapping[str, Schema], list[Method]]:
    found = importlib.util.find_spec("googleapiclient")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "google-api-python-client, which contains Google's discovery documents, is missing: "
            "pip install google-api-python-client"
        )
    folder = Path(found.origin).parent / "discovery_cache" / "documents"
    document = json.loads((folder / f"{name}.json").read_bytes())
    # Older services keep the common prefix of their paths in a separate field.
    base = document["servicePath"]
    methods = [
        Method(
            id=found["id"],
            http=found["httpMethod"],
            path=base + found["path"],
            flat_path=base + found.get("flatPath", found["path"]),
            parameters=found.get("parameters", {}),
            request=found.get("request"),
            response=found.get("response"),
        )
        for found in _methods(document)
    ]
    return document["schemas"], document["parameters"], methods


def _methods(resource: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from resource.get("methods", {}).values()
    for below in resource.get("resources", {}).values():
        yield from _methods(below)
