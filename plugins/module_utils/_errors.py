# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. The one class of errors that are shown to the user as they are."""

from __future__ import annotations

from typing import Any


class EgressError(Exception):
    """What is wrong with which object or option, where and why, and the way out: two lines at most, in plain words.

    `result` is what a module returns beside the message.
    """

    def __init__(self, message: str, result: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.result = result or {}
