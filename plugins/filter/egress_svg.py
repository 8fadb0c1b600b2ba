# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter egress_svg: the picture of what istio_egress_explain or istio_egress_check returned."""

from __future__ import annotations

DOCUMENTATION = r"""
name: egress_svg
short_description: Draw the way of a request, or of all requests of a policy
version_added: 0.1.0
description:
  - Makes an SVG document of what M(meshops.istio_egress.istio_egress_explain) returned, the hops of one request from top to bottom with the object that
    decides each, or of what M(meshops.istio_egress.istio_egress_check) returned, one line for each request from the pod to where it ended.
positional: _input
options:
  _input:
    description: The registered result of one of the two modules; of an explanation of many requests, one of its C(explanations).
    type: dict
    required: true
seealso:
  - module: meshops.istio_egress.istio_egress_explain
  - module: meshops.istio_egress.istio_egress_check
author:
  - meshops.istio_egress contributors (@meshops)
"""

EXAMPLES = r"""
- name: Ask for all that is declared
  meshops.istio_egress.istio_egress_check:
    namespace: demo
  register: proof

- name: Draw which way it went
  ansible.builtin.copy:
    content: "{{ proof | meshops.istio_egress.egress_svg }}"
    dest: policy.svg
    mode: "0644"
  delegate_to: localhost
"""

RETURN = r"""
_value:
  description: The text of the SVG document.
  type: str
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.meshops.istio_egress.plugins.module_utils._picture import path_svg, policy_svg


def egress_svg(result: Any) -> str:
    """The picture. Raises AnsibleFilterError for anything but a result of the two modules."""
    if isinstance(result, Mapping) and "checks" in result:
        return policy_svg(result)
    if isinstance(result, Mapping) and "path" in result and "verdict" in result:
        return path_svg(result)
    if isinstance(result, Mapping) and "explanations" in result:
        raise AnsibleFilterError("egress_svg draws one way at a time: give it one of the result's explanations, such as ways.explanations[0].")
    raise AnsibleFilterError("egress_svg draws what istio_egress_explain or istio_egress_check returned, and this is neither.")


class FilterModule:
    """Ansible looks for this name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"egress_svg": egress_svg}
