"""The bucket of Cloud Storage, the model package in it, and all other files of Millrace."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from google.api_core import exceptions

from cloud.errors import lacks_role
from common.addresses import split_gcs_path
from common.errors import MillraceError, ResourceError
from resources.declaration import Resource
from resources.kinds.base import Found, Kept, Kind, merged_labels
from resources.package import Package, checksum_of

if TYPE_CHECKING:
    from google.cloud import storage

SCHEME = "gs://"
# What setup and the pipelines write into the folder. Everything else in it belongs to others.
OURS = ("current.json", "models/", "tmp/", "staging/", "reports/")


@dataclass(frozen=True)
class Buckets(Kind):
    """Buckets. Only an empty one is removed.

    Attributes:
        folder: The folder of Millrace's files in a bucket, ending with `/`.
    """

    folder: str = ""
    role: ClassVar = "roles/storage.admin"

    @functools.cached_property
    def client(self) -> storage.Client:
        """The client of all resources of the kind."""
        return self.cloud.storage()

    def look(self, resource: Resource) -> Found | None:
        """Return the bucket with its location, None if it does not exist."""
        try:
            bucket = self.client.get_bucket(resource.name, retry=self._retry)
        except exceptions.NotFound:
            return None
        except exceptions.Forbidden as error:
            if not lacks_role(error):
                raise
            raise self._foreign(resource) from error
        return Found.labelled(bucket.labels, {"location": bucket.location.lower()})

    def create(self, resource: Resource) -> None:
        """Create a bucket to which only roles give access, and which is never public."""
        bucket = self.client.bucket(resource.name)
        bucket.labels = dict(self.labels)
        bucket.iam_configuration.uniform_bucket_level_access_enabled = True
        bucket.iam_configuration.public_access_prevention = "enforced"
        try:
            self.client.create_bucket(
                bucket, location=resource.properties["location"], retry=self._retry
            )
        except exceptions.Conflict as error:
            # The bucket is visible if a concurrent setup of the same project created it.
            if self.look(resource) is None:
                raise self._foreign(resource) from error
            raise

    def relabel(self, resource: Resource, labels: Mapping[str, str | None]) -> None:
        """Change the labels, and fail if someone else changes the bucket at the same time."""
        bucket = self.client.get_bucket(resource.name, retry=self._retry)
        bucket.labels = merged_labels(bucket.labels, labels)
        bucket.patch(if_metageneration_match=bucket.metageneration, retry=self._retry)

    def holds(self, resource: Resource) -> tuple[str, ...]:
        """Return the folder if it holds files of Millrace, and the first other object."""
        files = f"{SCHEME}{resource.name}/{self.folder}"
        found: list[str] = []
        for blob in self.client.list_blobs(
            resource.name, fields="items(name),nextPageToken", retry=self._retry
        ):
            if not is_of_millrace(blob.name, self.folder):
                return (*found, blob.name)
            found = [files]
        return tuple(found)

    def delete(self, resource: Resource) -> None:
        """Delete the bucket, or raise Kept if it contains an object."""
        for blob in self.client.list_blobs(resource.name, max_results=1, retry=self._retry):
            raise Kept(self.held_by(blob.name))
        self.client.bucket(resource.name).delete(retry=self._retry)

    def _foreign(self, resource: Resource) -> MillraceError:
        return ResourceError(
            f"bucket {resource.name} exists, but the account has no access to it: if it belongs "
            "to someone else (the name of a bucket is unique in all of Google Cloud), choose "
            "another `bucket` in the configuration file; if it is yours, grant the account the "
            f"role {self.role}"
        )


@dataclass(frozen=True)
class Models(Kind):
    """The pointer to the current model package.

    Attributes:
        package: The package that the pointer must name, None if none is to be uploaded.
    """

    package: Package | None = None
    role: ClassVar = "roles/storage.objectUser"

    @functools.cached_property
    def client(self) -> storage.Client:
        """The client of all resources of the kind."""
        return self.cloud.storage()

    def look(self, resource: Resource) -> Found | None:
        """Return the digest in the pointer, with a note if a file is missing or was changed."""
        pointer = read_pointer(self.client, resource.name, self._retry)
        if pointer is None:
            return None
        digest = str(pointer.get("digest", "unknown"))
        for name, checksum in pointer.get("files", {}).items():
            blob = blob_at(self.client, f"{pointer['folder']}{name}")
            if self._checksum(blob) != checksum:
                return Found(properties={"digest": f"{digest} ({name} is missing or was changed)"})
        return Found(properties={"digest": digest}, details=str(pointer["model"]))

    def create(self, resource: Resource) -> None:
        """Upload the package, compare it by checksum, and only then write the pointer."""
        package, folder = self._given(), self.folder(resource)
        for name, data in package.files.items():
            blob = blob_at(self.client, folder + name)
            if not self._holds(blob, data):
                blob.upload_from_string(data, "application/octet-stream", retry=self._retry)
                if not self._holds(blob, data):
                    raise ResourceError(
                        f"{folder}{name} differs from what was uploaded: the current model is "
                        "unchanged; run setup again"
                    )
        text = json.dumps(package.pointer(folder), indent=1) + "\n"
        blob_at(self.client, resource.name).upload_from_string(
            text, "application/json", retry=self._retry
        )

    def folder(self, resource: Resource) -> str:
        """Return the address of the package's folder, ending with `/`."""
        package = self._given()
        beside = resource.name.rpartition("/")[0]
        return f"{beside}/models/{package.name}/{package.digest[:16]}/"

    def _given(self) -> Package:
        assert self.package is not None, "a model is declared only if there is a package"
        return self.package

    def _holds(self, blob: storage.Blob, data: bytes) -> bool:
        return self._checksum(blob) == checksum_of(data)

    def _checksum(self, blob: storage.Blob) -> str | None:
        """Return the checksum that Cloud Storage has for an object, None if it does not exist."""
        try:
            blob.reload(retry=self._retry)
        except exceptions.NotFound:
            return None
        return str(blob.crc32c)

    def repairs(self, name: str, found: str | None) -> bool:
        """Return True: setup can upload a package and change the pointer at any time."""
        return True

    def repair(self, resource: Resource, names: list[str]) -> None:
        """Upload the package and write the pointer. Other packages are left alone."""
        self.create(resource)

    def delete(self, resource: Resource) -> None:
        """Delete the pointer. The packages are removed with the other uploaded files."""
        blob_at(self.client, resource.name).delete(retry=self._retry)


class UploadedFiles(Kind):
    """All objects that setup and the pipelines wrote into the folder."""

    role: ClassVar = "roles/storage.objectUser"

    @functools.cached_property
    def client(self) -> storage.Client:
        """The client of all resources of the kind."""
        return self.cloud.storage()

    def look(self, resource: Resource) -> Found | None:
        """Return the number of files and their size, None if there are none."""
        blobs = list(self._blobs(resource))
        if not blobs:
            return None
        _, folder = split_gcs_path(resource.name)
        # Removing packages loses nothing, because setup copied them.
        lost = sum(not blob.name.startswith(_copies(folder)) for blob in blobs)
        size = sum(blob.size or 0 for blob in blobs)
        return Found(
            size=size, details=f"{len(blobs):,} files", losses={"files": lost} if lost else {}
        )

    def delete(self, resource: Resource) -> None:
        """Delete all files."""
        # Imported here, because the library takes a tenth of a second.
        from cloud.objects import delete_objects

        bucket, _ = split_gcs_path(resource.name)
        paths = [f"{SCHEME}{bucket}/{blob.name}" for blob in self._blobs(resource)]
        delete_objects(self.cloud.storage, paths, self.cloud.retry_seconds)

    def _blobs(self, resource: Resource) -> Iterator[Any]:
        bucket, folder = split_gcs_path(resource.name)
        try:
            for part in OURS:
                for blob in self.client.list_blobs(bucket, prefix=folder + part, retry=self._retry):
                    if is_of_millrace(blob.name, folder):
                        yield blob
        except exceptions.NotFound:
            return


def is_of_millrace(name: str, folder: str) -> bool:
    """Return whether setup or the pipelines wrote an object.

    Args:
        name: The name of the object.
        folder: The folder of Millrace's files in the bucket, ending with `/`.
    """
    # The name of a file must match completely, because other names may start with it.
    return any(
        name.startswith(folder + part) if part.endswith("/") else name == folder + part
        for part in OURS
    )


def _copies(folder: str) -> tuple[str, ...]:
    """Return the starts of the names of files that setup copied into a folder."""
    return f"{folder}current.json", f"{folder}models/"


def read_pointer(client: storage.Client, name: str, retry: Any) -> dict[str, Any] | None:
    """Read the pointer to the current model package.

    Args:
        client: The client of Cloud Storage.
        name: The address of the pointer.
        retry: The retry of the request.

    Returns:
        The contents of the pointer, None if it does not exist, empty if it is not valid.
    """
    try:
        return dict(json.loads(blob_at(client, name).download_as_bytes(retry=retry)))
    except exceptions.NotFound:
        return None
    except (ValueError, TypeError):
        # The file is incomplete or not a pointer. Setup will write it again.
        return {}


def blob_at(client: storage.Client, name: str) -> storage.Blob:
    """Return the object at the address gs://BUCKET/NAME."""
    bucket, path = split_gcs_path(name)
    return client.bucket(bucket).blob(path)
