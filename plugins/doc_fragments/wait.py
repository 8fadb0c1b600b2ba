# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the wait options."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  wait:
    description:
      - Whether the task returns only when the sidecars concerned have the change in their own configuration, which is read from them.
      - With V(false) the task returns after the write; whether any proxy follows is then not known, and the result says so.
      - Reading a sidecar needs the right to C(create) C(pods/portforward) in its namespace, or, which takes longer, C(pods/exec).
        Without either the task says that it could not look, and goes on.
    type: bool
    default: true
  wait_timeout:
    description:
      - How many seconds to wait for the sidecars before the task fails. The objects that were written stay.
    type: int
    default: 120
"""
