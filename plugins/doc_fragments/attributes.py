# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of what every module of the collection supports."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and tell what it would change without changing anything.
    support: full
    details:
      - The API server tries every write with C(dryRun=All), so what it would refuse fails in check mode too.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
    support: full
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: full
  action_group:
    description: Use C(group/meshops.istio_egress.istio_egress) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - meshops.istio_egress.istio_egress
  platform:
    description: Target OS or families that can be operated against.
    support: full
    platforms: all
"""

    READ_ONLY = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and tell what it would change without changing anything.
    support: full
    details:
      - This module changes no object of the cluster, in check mode or not.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
    support: N/A
    details:
      - This module changes nothing.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: full
  action_group:
    description: Use C(group/meshops.istio_egress.istio_egress) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - meshops.istio_egress.istio_egress
  platform:
    description: Target OS or families that can be operated against.
    support: full
    platforms: all
"""
