# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. The values that istiod makes new sidecars of: JSON text, of which single strings are read and changed.

Pure. Every other byte of the text stays as it is, so that whoever wrote it finds it as they left it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError

PATH = ("global", "proxy")
"""Where the settings of sidecars lie in the values (istio/istio manifests/charts/istio-control/istio-discovery)."""
_SPACE = re.compile(r"[ \t\r\n]*")


class ValuesError(EgressError):
    """The text is not what istiod's charts write, so nothing can be changed in it alone."""


@dataclass(frozen=True)
class _Member:
    """A member of an object in the text: it begins behind the brace or comma before it (`start`), its value is text[value:end]."""

    start: int
    value: int
    end: int


def read(text: str, key: str) -> str | None:
    """The string `key` of ``global.proxy``; None where it is not there. Raises ValuesError."""
    member = _members(text, _proxy(text)).get(key)
    if member is None:
        return None
    value = json.loads(text[member.value : member.end])
    if not isinstance(value, str):
        raise ValuesError(f"global.proxy.{key} is {text[member.value : member.end]}, which is no string.\nCorrect it in the values of the installation first.")
    return value


def write(text: str, key: str, value: str | None) -> str:
    """The text with `key` of ``global.proxy`` set to a string, or (None) without it. Raises ValuesError."""
    brace = _proxy(text)
    members = _members(text, brace)
    member = members.get(key)
    if value is None:
        return text if member is None else _without(text, member)
    literal = json.dumps(value, ensure_ascii=False)
    if member is not None:
        return text[: member.value] + literal + text[member.end :]
    space = _SPACE.match(text, brace + 1).group()
    separator = ": " if space else ":"
    return f"{text[: brace + 1]}{space if members else ''}{json.dumps(key)}{separator}{literal}{',' if members else ''}{text[brace + 1 :]}"


def _without(text: str, member: _Member) -> str:
    behind = _SPACE.match(text, member.end).end()
    if text[behind] == ",":
        return text[: member.start] + text[behind + 1 :]
    start = member.start - 1 if text[member.start - 1] == "," else member.start
    return text[:start] + text[member.end :]


def _proxy(text: str) -> int:
    """Where the object ``global.proxy`` begins."""
    try:
        json.loads(text)
    except ValueError as error:
        raise ValuesError(f"The values of the injector are not JSON: {error}.\nSet the ranges in the values of the installation instead.") from error
    place = _SPACE.match(text).end()
    for key in PATH:
        member = _members(text, place).get(key)
        if member is None or text[member.value] != "{":
            raise ValuesError(f"The values of the injector have no {'.'.join(PATH)}.\nSee that istio_namespace and revision name a control plane of Istio.")
        place = member.value
    return place


def _members(text: str, brace: int) -> dict[str, _Member]:
    """The members of the object that begins at `brace` of valid JSON; of several of one name the last, as parsers have it."""
    decoder, members, place = json.JSONDecoder(), {}, brace
    while text[brace] == "{" and text[place] != "}":
        start = place + 1
        key_at = _SPACE.match(text, start).end()
        if text[key_at] == "}":
            break
        key, place = decoder.raw_decode(text, key_at)
        value_at = _SPACE.match(text, _SPACE.match(text, place).end() + 1).end()
        _value, end = decoder.raw_decode(text, value_at)
        members[key] = _Member(start, value_at, end)
        place = _SPACE.match(text, end).end()
    return members
