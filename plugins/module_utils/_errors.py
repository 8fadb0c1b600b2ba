# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. The one class of errors that are shown to the user as they are, and lists as messages have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class EgressError(Exception):
    """What is wrong with which object or option, where and why, and the way out: two lines at most, in plain words.

    `result` is what a module returns beside the message.
    """

    def __init__(self, message: str, result: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.result = result or {}


def few(names: Sequence[str], most: int = 4) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
