"""The gates, in the order in which they are asked."""

from __future__ import annotations

from typing import Final

ORDER: Final = ("acl", "pin", "policy", "rate_limit", "approval")
"""Every stage is the file of that name; `config.runtime` builds them in this order."""
