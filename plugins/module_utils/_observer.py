# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. What somebody who waits for the effect of a write has seen, for the module's result."""

from __future__ import annotations

from typing import Any


class Observer:
    """Base of those who wait: for proxies, for new pods, for a gateway that serves."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.unresolved: set[str] = set()
        self.verified = False
        self.proxies: dict[str, Any] = {"total": 0, "looked_at": 0, "following": 0, "pending": []}

    def result(self) -> dict[str, Any]:
        """What a module returns of it: ``verified``, ``proxies`` (or pods), and ``unresolved`` where hosts have no address."""
        unresolved = {"unresolved": sorted(self.unresolved)} if self.unresolved else {}
        return {"verified": self.verified, "proxies": self.proxies, **unresolved}
