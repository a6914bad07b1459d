"""The bucket, the model package in it, and all files of ours."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from google.api_core import exceptions

from common.errors import MillraceError, OutputError
from resources.declaration import Resource
from resources.kinds.base import Found, Kept, Kind, merged_labels
from resources.package import Package, checksum_of

if TYPE_CHECKING:
    from google.cloud import storage

SCHEME = "gs://"
# What we and the pipelines put into the folder: all else in it is not ours.
OURS = ("current.json", "models/", "tmp/", "staging/", "reports/")


@dataclass(frozen=True)
class Buckets(Kind):
    """Buckets, which are removed only when they are empty. folder: in them, of our files."""

    folder: str = ""
    role: ClassVar = "roles/storage.admin"

    @functools.cached_property
    def client(self) -> storage.Client:
        """One for all resources of the kind."""
        return self.cloud.storage()

    def look(self, resource: Resource) -> Found | None:
        """Its location."""
        try:
            bucket = self.client.get_bucket(resource.name, retry=self._retry)
        except exceptions.NotFound:
            return None
        except exceptions.Forbidden as error:
            raise self._foreign(resource) from error
        return Found.labelled(bucket.labels, {"location": bucket.location.lower()})

    def create(self, resource: Resource) -> None:
        """With access by roles alone, and none for the public."""
        bucket = self.client.bucket(resource.name)
        bucket.labels = dict(self.labels)
        bucket.iam_configuration.uniform_bucket_level_access_enabled = True
        bucket.iam_configuration.public_access_prevention = "enforced"
        try:
            self.client.create_bucket(
                bucket, location=resource.properties["location"], retry=self._retry
            )
        except exceptions.Conflict as error:
            # Ours by now if somebody ran the same at the same time.
            if self.look(resource) is None:
                raise self._foreign(resource) from error
            raise

    def relabel(self, resource: Resource, labels: Mapping[str, str | None]) -> None:
        """Read and written, unless somebody changes the bucket at the same time."""
        bucket = self.client.get_bucket(resource.name, retry=self._retry)
        bucket.labels = merged_labels(bucket.labels, labels)
        bucket.patch(if_metageneration_match=bucket.metageneration, retry=self._retry)

    def holds(self, resource: Resource) -> tuple[str, ...]:
        """The folder of our files if one is in it, and the first object that is not ours."""
        files = f"{SCHEME}{resource.name}/{self.folder}"
        found: list[str] = []
        for blob in self.client.list_blobs(
            resource.name, fields="items(name),nextPageToken", retry=self._retry
        ):
            if not is_of_ours(blob.name, self.folder):
                return (*found, blob.name)
            found = [files]
        return tuple(found)

    def delete(self, resource: Resource) -> None:
        """The bucket, unless something is in it."""
        for blob in self.client.list_blobs(resource.name, max_results=1, retry=self._retry):
            raise Kept(self.held_by(blob.name))
        self.client.bucket(resource.name).delete(retry=self._retry)

    def _foreign(self, resource: Resource) -> MillraceError:
        return OutputError(
            f"bucket {resource.name} is there and may not be seen: if it is somebody else's "
            f"(names are one for all of Google) choose another `bucket` in the config, if it is "
            f"yours grant the account the role {self.role}"
        )


@dataclass(frozen=True)
class Models(Kind):
    """The pointer to the current model package. package: the one that it shall point to."""

    package: Package | None = None
    role: ClassVar = "roles/storage.objectUser"

    @functools.cached_property
    def client(self) -> storage.Client:
        """One for all resources of the kind."""
        return self.cloud.storage()

    def look(self, resource: Resource) -> Found | None:
        """The digest that the pointer names, where the files that it names are there."""
        pointer = read_pointer(self.client, resource.name, self._retry)
        if pointer is None:
            return None
        digest = str(pointer.get("digest", "unknown"))
        for name, checksum in pointer.get("files", {}).items():
            blob = blob_at(self.client, f"{pointer['folder']}{name}")
            if self._checksum(blob) != checksum:
                return Found(
                    properties={"digest": f"{digest}, of which {name} is gone or was changed"}
                )
        return Found(properties={"digest": digest}, details=str(pointer["model"]))

    def create(self, resource: Resource) -> None:
        """The package in the folder of its digest, compared by checksum; then the pointer."""
        package, folder = self._given(), self.folder(resource)
        for name, data in package.files.items():
            blob = blob_at(self.client, folder + name)
            if not self._holds(blob, data):
                blob.upload_from_string(data, "application/octet-stream", retry=self._retry)
                if not self._holds(blob, data):
                    raise OutputError(
                        f"{folder}{name} is not what was uploaded: the current model stays as it "
                        "was; run it again"
                    )
        text = json.dumps(package.pointer(folder), indent=1) + "\n"
        blob_at(self.client, resource.name).upload_from_string(
            text, "application/json", retry=self._retry
        )

    def folder(self, resource: Resource) -> str:
        """The pointer -> the folder of the package that it shall point to."""
        package = self._given()
        beside = resource.name.rpartition("/")[0]
        return f"{beside}/models/{package.name}/{package.digest[:16]}/"

    def _given(self) -> Package:
        assert self.package is not None, "a model is declared only where one is given"
        return self.package

    def _holds(self, blob: storage.Blob, data: bytes) -> bool:
        return self._checksum(blob) == checksum_of(data)

    def _checksum(self, blob: storage.Blob) -> str | None:
        """An object -> the checksum that Cloud Storage has of it, None if it is not there."""
        try:
            blob.reload(retry=self._retry)
        except exceptions.NotFound:
            return None
        return str(blob.crc32c)

    def repairs(self, name: str, found: str | None) -> bool:
        """The pointer moves when the new package is there."""
        return True

    def repair(self, resource: Resource, names: list[str]) -> None:
        """The same as when there is none: packages of other digests are left alone."""
        self.create(resource)

    def delete(self, resource: Resource) -> None:
        """The pointer; the packages go with the files."""
        blob_at(self.client, resource.name).delete(retry=self._retry)


class UploadedFiles(Kind):
    """All objects in the folder that we or the pipelines put there."""

    role: ClassVar = "roles/storage.objectUser"

    @functools.cached_property
    def client(self) -> storage.Client:
        """One for all resources of the kind."""
        return self.cloud.storage()

    def look(self, resource: Resource) -> Found | None:
        """How many, and their bytes."""
        blobs = list(self._blobs(resource))
        if not blobs:
            return None
        _, folder = split_gcs_path(resource.name)
        # Packages were copied there by setup.
        lost = sum(not blob.name.startswith(_copies(folder)) for blob in blobs)
        size = sum(blob.size or 0 for blob in blobs)
        return Found(
            size=size, details=f"{len(blobs):,} files", losses={"files": lost} if lost else {}
        )

    def delete(self, resource: Resource) -> None:
        """All of them."""
        for blob in self._blobs(resource):
            try:
                blob.delete(retry=self._retry)
            except exceptions.NotFound:
                continue

    def _blobs(self, resource: Resource) -> Iterator[Any]:
        bucket, folder = split_gcs_path(resource.name)
        try:
            for part in OURS:
                for blob in self.client.list_blobs(bucket, prefix=folder + part, retry=self._retry):
                    if is_of_ours(blob.name, folder):
                        yield blob
        except exceptions.NotFound:
            return


def is_of_ours(name: str, folder: str) -> bool:
    """An object's name, our folder in the bucket -> whether we or the pipelines put it there."""
    # A prefix that is a file's name begins other names too.
    return any(
        name.startswith(folder + part) if part.endswith("/") else name == folder + part
        for part in OURS
    )


def _copies(folder: str) -> tuple[str, ...]:
    """Our folder -> what the names of files begin with that setup copied from this machine."""
    return f"{folder}current.json", f"{folder}models/"


def read_pointer(client: storage.Client, name: str, retry: Any) -> dict[str, Any] | None:
    """The pointer's address -> what it says, None if there is none."""
    try:
        return dict(json.loads(blob_at(client, name).download_as_bytes(retry=retry)))
    except exceptions.NotFound:
        return None
    except (ValueError, TypeError):
        # Not ours, or cut off: it is written anew.
        return {}


def blob_at(client: storage.Client, name: str) -> storage.Blob:
    """gs://BUCKET/NAME -> the object."""
    bucket, path = split_gcs_path(name)
    return client.bucket(bucket).blob(path)


def split_gcs_path(name: str) -> tuple[str, str]:
    """gs://BUCKET/NAME -> bucket and name."""
    bucket, _, path = name.removeprefix(SCHEME).partition("/")
    return bucket, path
