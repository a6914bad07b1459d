"""A release is refused if its changelog or its version is wrong."""

import sys

import pytest
from source_tree import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from release import (
    ReleaseError,
    check_changelog,
    check_version,
    main,
    project_version,
)

GOOD = """# Changelog

## [Unreleased]

## [1.2.0] - 2026-11-29

### Added

- A thing.

## [1.1.0] - 2026-01-31

### Fixed

- Another.
"""
UNRELEASED = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A thing.\n"


def test_a_dated_section_with_changes_is_enough() -> None:
    assert check_changelog(GOOD, "1.2.0", dry_run=False) == "CHANGELOG.md: 1.2.0, dated 2026-11-29"


def test_an_unreleased_section_is_enough_only_for_a_dry_run() -> None:
    found = check_changelog(UNRELEASED, "0.1.0", dry_run=True)
    assert found == "CHANGELOG.md: [Unreleased] would become [0.1.0]"
    with pytest.raises(ReleaseError, match=r"no section for 0\.1\.0: expected ## \[0\.1\.0\] - Y"):
        check_changelog(UNRELEASED, "0.1.0", dry_run=False)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2026-11-29", "29.11.2026", "got 29.11.2026"),
        (" - 2026-11-29", "", "got no date"),
        ("- A thing.", "", "the section of 1.2.0 lists no change"),
        ("### Added", "### New", "CHANGELOG.md:7: expected one of Added, Changed"),
        ("## [1.2.0]", "## 1.2.0", "CHANGELOG.md:5: expected ## [Unreleased] or"),
    ],
)
def test_another_form_is_refused_with_its_line(old: str, new: str, message: str) -> None:
    with pytest.raises(ReleaseError) as caught:
        check_changelog(GOOD.replace(old, new, 1), "1.2.0", dry_run=False)
    assert message in str(caught.value)


@pytest.mark.parametrize("version", ["1", "v0.1.0", "0.1", "0.1.0-beta"])
def test_a_version_has_three_numbers(version: str) -> None:
    with pytest.raises(ReleaseError, match=r"VERSION must look like 0\.1\.0"):
        check_version(version)


def test_the_version_must_be_the_projects(capsys: pytest.CaptureFixture[str]) -> None:
    check_version(project_version())
    assert main(["9.9.9", "--dry-run"]) == 1
    printed = capsys.readouterr().err
    assert (
        printed
        == f"error: VERSION is 9.9.9, but pyproject.toml says {project_version()}: change one\n"
    )


def test_the_changelog_can_be_released() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert check_changelog(text, project_version(), dry_run=True)
