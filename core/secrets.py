"""Passwords and tokens that stand in an address: found, so that a config with one is refused, and cut out of texts that
come from elsewhere. Torch-free."""

from __future__ import annotations

import re

CUT = "***"
"""What stands for a secret."""

# Patterns as texts: compiled when first needed, which is no start of a command.
_ADDRESS = r"(?i)(?<!\w)[a-z][a-z0-9+.-]*:/{2}[^\s'\"<>]+"
_USER = r"(?<=://)[^/?#]+(?=@)"
"""USER:PASSWORD or TOKEN before the host."""
_NAME_ALONE = r"(?i)(?:git\+)?(?:ssh|git|sftp)://[^:/?#@]+@"
_QUERY = (
    r"(?i)(?<=[?&;#])([\w.%-]*(?:token|secret|passwd|password|pwd|key|sig|signature|auth|authorization|credentials?))"
    r"=[^&;#]+"
)
_KNOWN = (
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16})"
)
"""Tokens that are known by their form, wherever they stand."""


def without_secrets(text: str) -> str:
    """The text with `***` for each password and token: those in addresses, and those known by their form."""
    return re.sub(_KNOWN, CUT, re.sub(_ADDRESS, _clean, text))


def holds_secret(text: str) -> bool:
    """Whether a text holds an address with a password or token in it, or what has the form of a token."""
    return without_secrets(text) != text


def _clean(found: re.Match[str]) -> str:
    address = found[0] if re.match(_NAME_ALONE, found[0]) else re.sub(_USER, CUT, found[0])
    return re.sub(_QUERY, rf"\1={CUT}", address)
