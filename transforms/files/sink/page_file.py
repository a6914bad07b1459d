"""The page about a run, which lies beside its report: it never shows another report.

The page of the earlier result is removed before the report is replaced, and the new page is put in
place after it. A run that is killed between the two has a report without a page. In a bucket, where
attempts run at the same time, a page is only removed or replaced if it is still the one that was
read.
"""

from __future__ import annotations

from common.errors import AttemptConflict, OutputError, one_line
from transforms.files.sink.listing import Listing, read_listing
from transforms.files.sink.run_folder import RunFolder
from transforms.files.store import (
    FAULTS,
    Version,
    delete_version,
    file_errors,
    read_version,
    replace,
)


def check_page(folder: RunFolder, found: Listing | None = None) -> None:
    """Raise AttemptConflict if there is a page that no run wrote.

    Args:
        folder: The folder of the run.
        found: What the report in place lists, if it has been read.
    """
    with file_errors(f"{folder.page} cannot be read"):
        found = found or read_listing(folder.place)
        if not found.page and read_version(folder.page).content is not None:
            raise AttemptConflict(
                f"{folder.page} is not the page of a run, but --report_html would replace it: "
                "move it away, or choose another --run_id"
            )


def remove_page(folder: RunFolder, before: Version) -> None:
    """Remove the page of the earlier result of a run, unless another attempt has replaced it.

    Args:
        folder: The folder of the run.
        before: The report of the earlier result, as it was read.
    """
    # Another attempt puts its page in place after its report, so this is the earlier page if the
    # report is still the earlier one.
    page = read_version(folder.page)
    if read_version(folder.report) == before:
        delete_version(folder.page, page)


def put_page(folder: RunFolder, page: bytes) -> None:
    """Put a page in place in one step, unless the report in place is that of another attempt.

    Args:
        folder: The folder of the run.
        page: The content of the page.

    Raises:
        OutputError: The page cannot be written. The result of the run is in place.
    """
    try:
        while True:
            before = read_version(folder.page)
            if read_listing(folder.place).attempt != folder.token:
                return
            if replace(folder.page, page, before, folder.staged("report.html"), "text/html"):
                break
        own = read_version(folder.page)
        # An attempt without a page may have replaced the report before this page was there.
        if own.content == page and read_listing(folder.place).attempt != folder.token:
            delete_version(folder.page, own)
    except (OutputError, *FAULTS) as error:
        raise OutputError(
            f"the result is complete, but its page {folder.page} cannot be written: "
            f"{one_line(error)}; run again, or leave out --report_html"
        ) from error
