"""What the doctor finds: one line a check, with a level and the words for it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Level = Literal["ok", "warn", "fail", "skip"]


class Finding(NamedTuple):
    """One check's outcome."""

    check: str
    level: Level
    text: str


def ok(check: str, text: str) -> Finding:
    """Say that a check has passed."""
    return Finding(check, "ok", text)


def warn(check: str, text: str) -> Finding:
    """Say that something may go wrong, or cannot be told."""
    return Finding(check, "warn", text)


def fail(check: str, text: str) -> Finding:
    """Say that the device cannot take part like this."""
    return Finding(check, "fail", text)


def skip(check: str, text: str) -> Finding:
    """Say why a check was not made."""
    return Finding(check, "skip", text)


def in_words(findings: list[Finding]) -> str:
    """Return the findings as lines."""
    lines = [f"{finding.level:<5}{finding.check:<12}{finding.text}" for finding in findings]
    failed = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    lines.append("all is well" if not failed and not warned else f"{failed} failed, {warned} to look at")
    return "\n".join(lines)


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """Return the findings for scripts."""
    return {
        "healthy": not any(finding.level == "fail" for finding in findings),
        "checks": [finding._asdict() for finding in findings],
    }
