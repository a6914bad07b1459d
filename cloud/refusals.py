"""The causes for which Google's services answer 403 besides a missing role, and their advice.

Sources: the error tables of BigQuery and Cloud Storage, and google.api.ErrorReason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

QUOTA = "a quota of the project is exhausted: raise it in the console, or wait"


@dataclass(frozen=True)
class _Cause:
    """A cause: the reason codes that mean it, the words of messages without one, and the advice."""

    reasons: frozenset[str]
    words: re.Pattern[str]
    advice: str


def _cause(reasons: str, words: str, advice: str) -> _Cause:
    return _Cause(frozenset(map(_plain, reasons.split())), re.compile(words, re.IGNORECASE), advice)


def _plain(reason: str) -> str:
    """Return a reason code without case and underscores: services write rateLimit or RATE_LIMIT."""
    return reason.replace("_", "").lower()


# More specific words come first: a message about billing may also mention a quota.
_CAUSES = (
    _cause(
        "SECURITY_POLICY_VIOLATED vpcServiceControls",
        r"VPC Service Controls|vpcServiceControls|prohibited by organization's policy",
        "a perimeter of VPC Service Controls forbids the request: run inside the perimeter, or ask "
        "its administrator for a rule that allows it",
    ),
    _cause(
        "BILLING_DISABLED billingNotEnabled accountDisabled UserProjectAccountProblem",
        r"\bbilling (account .*(disabled|closed|absent)|(has not been|is not|to be|must be) enabled"
        r"|is disabled)|requires billing|billing-disabled",
        "the project has no active billing account: link one in the console",
    ),
    _cause(
        "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
        r"insufficient authentication scopes",
        "the credentials lack the scope https://www.googleapis.com/auth/cloud-platform: log in "
        "again, or start the machine with this scope",
    ),
    _cause(
        "USER_PROJECT_DENIED",
        r"required permission to use project",
        "grant the account the role roles/serviceusage.serviceUsageConsumer in the project, or use "
        "another project",
    ),
    _cause(
        "CONSUMER_SUSPENDED",
        r"\bproject\b.* (is|has been) suspended|consumer .* has been suspended",
        "the project is suspended: see its page in the console",
    ),
    _cause(
        "CONSUMER_INVALID",
        r"\bproject\b.* has been deleted",
        "the project does not exist: check its id",
    ),
    _cause(
        "responseTooLarge",
        r"response too large",
        "the result is too large: select fewer columns or rows, or write it to a table and read "
        "the table with --input_table",
    ),
    _cause(
        "LOCATION_ORG_POLICY_VIOLATED ORG_RESTRICTION_VIOLATION LOCATION_POLICY_VIOLATED",
        r"organization policy|\bconstraints/\w",
        "a policy of the organization forbids it: ask its administrator, or choose another "
        "location",
    ),
    _cause(
        "blocked",
        r"temporarily (blocked|denylisted|blacklisted)",
        "the service blocks this operation: see the project's page in the console, or ask Google's "
        "support",
    ),
    _cause("quotaExceeded dailyLimitExceeded RESOURCE_QUOTA_EXCEEDED", r"\bquotas?\b", QUOTA),
)


def advice_on_refusal(reasons: Iterable[str], text: str) -> str:
    """Return what to do about an answer with the status 403.

    Args:
        reasons: The reason codes in the answer.
        text: The message of the answer.

    Returns:
        The advice. It is empty if the account lacks a role, or if the cause is not known.
    """
    given = {_plain(reason) for reason in reasons}
    found = [cause for cause in _CAUSES if cause.reasons & given]
    found += [cause for cause in _CAUSES if cause.words.search(text)]
    return found[0].advice if found else ""
