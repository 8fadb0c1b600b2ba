# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. The mode inside Istio's mesh config: read it as istiod does, change it and keep every other byte.

The mesh config is the text under key ``mesh`` of ConfigMap ``istio`` or ``istio-REVISION``. This file knows that text and nothing else: no
cluster, no Ansible, no version of istiod (``ALLOW_ANY_DYNAMIC_DNS`` needs 1.31; that is the caller's to check) and no ``SHARED_MESH_CONFIG``.
It judges YAML syntax, ``outboundTrafficPolicy`` and its ``mode``; istiod may refuse the same text for another field.

How istiod reads (seen by running ``mesh.ApplyMeshConfig`` of istio.io/istio, 2026-08-27, on each case named in the tests): sigs.k8s.io/yaml
(go-yaml v2) turns the first YAML document into JSON, golang/protobuf jsonpb turns that into the message over the defaults. So

- no text, no key, or a null policy keeps the default ALLOW_ANY; a policy without a mode, or with a null one, is REGISTRY_ONLY;
- of duplicate keys the last wins; ``outboundTrafficPolicy`` wins over ``outbound_traffic_policy`` wherever they stand;
- ``<<`` merges at the place where it stands, so it overrides a key above it (YAML's own rule says otherwise), and of a list the first wins;
- a number is an enum value; a name that is not spelled exactly, a boolean or a quoted number discards the whole mesh config;
- documents after the first are ignored, unread.

libyaml (PyYAML's C loader) is used where PyYAML has it: go-yaml is a port of it, so the two agree on tabs and on compact flow style, where
PyYAML's own scanner refuses some texts that Istio accepts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._errors import EgressError

try:
    import yaml
except ImportError:
    yaml = None
    _Loader = None
else:
    _Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

ALLOW_ANY = "ALLOW_ANY"
REGISTRY_ONLY = "REGISTRY_ONLY"
ALLOW_ANY_DYNAMIC_DNS = "ALLOW_ANY_DYNAMIC_DNS"
MODES = (ALLOW_ANY, REGISTRY_ONLY, ALLOW_ANY_DYNAMIC_DNS)

# Enum numbers of MeshConfig.OutboundTrafficPolicy.Mode (istio/api mesh/v1alpha1); 2 is reserved.
_BY_NUMBER = {0: REGISTRY_ONLY, 1: ALLOW_ANY, 3: ALLOW_ANY_DYNAMIC_DNS}
_POLICY = "outboundTrafficPolicy"
_ONLY_A_MODE = re.compile(r"""(["']?)outboundTrafficPolicy\1\s*:\s*\{?\s*(["']?)mode\2\s*:\s*(["']?)\w+\3\s*\}?""")
_POLICY_PROTO = "outbound_traffic_policy"
_BY_HAND = "Nothing was changed. Write outboundTrafficPolicy once, as a plain key of its own (in the ConfigMap or its owner's values), then run again."
_CORRECT = "under key mesh of the ConfigMap (or in its owner's values), then run again."


class MeshConfigError(EgressError, ValueError):
    """The mesh config cannot be read, or the mode in it cannot be changed safely: two lines, what is wrong (with the line) and the way out."""


@dataclass(frozen=True)
class ModeReading:
    """The mode that istiod takes from a mesh config.

    `source` is ``explicit`` (the text says it), ``empty policy`` (a policy without a mode: REGISTRY_ONLY) or ``default`` (no policy, or null:
    ALLOW_ANY). `value` is what the text says: a name, a number, or None. `line` counts from 1; None when the text has no policy.
    """

    mode: str
    source: str
    value: str | int | float | None = None
    line: int | None = None


@dataclass(frozen=True)
class _Entry:
    """A key with its value; `merged` when it comes from a ``<<``."""

    key: yaml.Node
    value: yaml.Node
    merged: bool


@dataclass(frozen=True)
class _Mesh:
    """A parsed text: its first document.

    `root` is None for an empty text. `data` has every scalar as the text spells it, so that ``1`` and ``1.0`` differ. Of the entries the last counts.
    """

    body: str
    root: yaml.Node | None
    data: dict[str, Any]
    more_documents: bool
    policies: list[_Entry]
    modes: list[_Entry]


def read_mode(text: str) -> ModeReading:
    """The mode that istiod takes from `text`.

    Raises MeshConfigError for text that istiod would refuse, because istiod then discards the whole document, and for the few spellings
    that it takes and this function does not (a number without a name, such as 2; an anchor defined twice).
    """
    return _reading(_parse(text))


def write_mode(text: str, mode: str) -> str:
    """`text` with `mode` in force and every other byte as it was; `text` itself when `mode` is in force already, by whatever source.

    A mode that is there is replaced where it stands, in its own quotes. A missing key is added at the end of a block mapping, or in front of a flow
    mapping or JSON document, in the style of the text. Raises MeshConfigError for an unknown mode, for text that istiod would refuse,
    and for text in which the mode cannot be changed alone (aliases, merge keys, duplicate keys, several documents, block scalars).
    """
    if mode not in MODES:
        raise _error(f"outboundTrafficPolicy.mode {mode!r} does not exist in Istio.", f"Use one of {', '.join(MODES)}.")
    mesh = _parse(text)
    if _reading(mesh).mode == mode:
        return text
    _refuse_unsafe(mesh)
    name = mesh.policies[0].key.value if mesh.policies else _POLICY
    policy = mesh.data.get(name)
    wanted = {**mesh.data, name: {**(policy if isinstance(policy, dict) else {}), "mode": mode}}
    # An edit is returned only after the whole text has been read again: nothing but the mode may mean something else.
    for start, end, new in _edits(mesh, mode):
        changed = text[: len(text) - len(mesh.body)] + mesh.body[:start] + new + mesh.body[end:]
        if _means(changed, wanted):
            return changed
    raise _error("The mode cannot be set in this mesh config without changing another value: its YAML is written in an unusual way.", _BY_HAND)


def unset_mode(text: str) -> str:
    """`text` without the policy that write_mode added to a text that had none, byte for byte; `text` itself when it has no policy.

    Raises MeshConfigError when the policy holds anything but a mode (a comment, an anchor, another field) or no mode, since that is somebody else's.
    """
    mesh = _parse(text)
    _reading(mesh)
    if not mesh.policies:
        return text
    _refuse_unsafe(mesh)
    start, end = _span_of_policy(mesh)
    changed = text[: len(text) - len(mesh.body)] + mesh.body[:start] + mesh.body[end:]
    wanted = {key: value for key, value in mesh.data.items() if key != mesh.policies[0].key.value}
    if not _means(changed, wanted):
        raise _not_ours(mesh)
    return changed


def _error(what: str, way_out: str) -> MeshConfigError:
    return MeshConfigError(f"{what}\n{way_out}")


def _not_ours(mesh: _Mesh) -> MeshConfigError:
    return _error(
        f"outboundTrafficPolicy in line {_line(mesh.policies[0].key)} of the mesh config is not a mode and nothing else, so it is not taken out.",
        "Nothing was changed. Remove it by hand (or in the owner's values), or set the mode instead.",
    )


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _parse(text: str) -> _Mesh:
    if yaml is None:
        raise _error("The mesh config cannot be read: the Python library PyYAML is missing.", "Install it where this module runs: pip install PyYAML.")
    # libyaml counts a byte order mark as a column when it gets a str, so it is kept out of the text that is parsed.
    body = text[1:] if text.startswith("\ufeff") else text
    try:
        loader = _Loader(body)
        root = loader.get_node() if loader.check_node() else None
        data = None if root is None else yaml.constructor.BaseConstructor().construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # a ReaderError (characters that YAML does not allow) has none
        where = f"line {mark.line + 1}" if mark else f"position {error.position}"
        problem = error.problem if mark else error.reason
        raise _error(
            f"The mesh config is not readable as YAML ({where}: {problem}); istiod keeps its last good mesh config, or its defaults.",
            f"Correct the text {_CORRECT}",
        ) from error
    try:
        more_documents = root is not None and loader.check_node()
    except yaml.YAMLError:
        more_documents = True
    if _is_null(root):
        return _Mesh(body, root, {}, more_documents, [], [])
    if not isinstance(root, yaml.MappingNode):
        raise _error(f"The mesh config is not a mapping (line {_line(root)}), so istiod refuses it.", "Write it as key: value lines, or as one JSON object.")
    policies = [*_entries(root, _POLICY_PROTO), *_entries(root, _POLICY)]
    policy = policies[-1].value if policies else None
    modes = list(_entries(policy, "mode")) if isinstance(policy, yaml.MappingNode) else []
    return _Mesh(body, root, data, more_documents, policies, modes)


def _reading(mesh: _Mesh) -> ModeReading:
    policy = mesh.policies[-1].value if mesh.policies else None
    if _is_null(policy):
        return ModeReading(ALLOW_ANY, "default", line=policy and _line(policy))
    if not isinstance(policy, yaml.MappingNode):
        raise _error(
            f"Line {_line(policy)} of the mesh config: outboundTrafficPolicy is not a mapping; istiod discards a whole mesh config for that.",
            "Write it as outboundTrafficPolicy: {mode: ALLOW_ANY} (or REGISTRY_ONLY), then run again.",
        )
    node = mesh.modes[-1].value if mesh.modes else None
    if _is_null(node):
        return ModeReading(REGISTRY_ONLY, "empty policy", line=_line(node or policy))
    value = _scalar(node)
    if isinstance(value, str) and value in MODES:
        return ModeReading(value, "explicit", value, _line(node))
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value in _BY_NUMBER:
        return ModeReading(_BY_NUMBER[value], "explicit", value, _line(node))
    written = json.dumps(node.value) if isinstance(node, yaml.ScalarNode) else "(a list or mapping)"
    raise _error(
        f"Line {_line(node)} of the mesh config: outboundTrafficPolicy.mode {written:.60} is none of {', '.join(MODES)}; "
        "istiod discards a whole mesh config with an unknown mode.",
        f"Correct line {_line(node)} {_CORRECT}",
    )


def _is_null(node: yaml.Node | None) -> bool:
    return node is None or (isinstance(node, yaml.ScalarNode) and _scalar(node) is None)


def _scalar(node: yaml.Node) -> Any:
    """The value of a scalar as YAML 1.1 resolves it; the node itself where there is no such value."""
    if not isinstance(node, yaml.ScalarNode):
        return node
    try:
        return yaml.constructor.SafeConstructor().construct_document(node)
    except (yaml.YAMLError, ValueError):
        return node


def _entries(mapping: yaml.MappingNode, name: str, merged: bool = False) -> Iterator[_Entry]:
    for key, value in mapping.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if key.value == name:
            yield _Entry(key, value, merged)
        elif key.tag == "tag:yaml.org,2002:merge":
            for source in reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    raise _error(f"Line {_line(key)} of the mesh config merges (<<) something that is not a mapping, so istiod refuses it.", _BY_HAND)
                yield from _entries(source, name, merged=True)


def _refuse_unsafe(mesh: _Mesh) -> None:
    if mesh.more_documents:
        raise _error(
            f"The mesh config goes on after its first YAML document (line {mesh.root.end_mark.line + 1}); istiod does not read that.",
            "Nothing was changed. Remove what follows the first document, then run again.",
        )
    shared = _shared(mesh.root)
    for what, entries in (("outboundTrafficPolicy", mesh.policies), ("outboundTrafficPolicy.mode", mesh.modes)):
        if not entries:
            continue
        if any(entry.merged for entry in entries):
            raise _error(f"{what} of the mesh config comes through a merge key (<<), from line {_line(entries[-1].value)}.", _BY_HAND)
        if len(entries) > 1:
            lines = ", ".join(str(_line(entry.key)) for entry in sorted(entries, key=lambda entry: _line(entry.key)))
            raise _error(f"{what} stands {len(entries)} times in the mesh config (lines {lines}).", _BY_HAND)
        if id(entries[0].value) in shared:
            raise _error(f"{what} of the mesh config is shared through an anchor and an alias (line {_line(entries[0].value)}).", _BY_HAND)
        if getattr(entries[0].value, "style", None) in ("|", ">"):
            raise _error(f"{what} of the mesh config is a block scalar (line {_line(entries[0].value)}).", _BY_HAND)


def _shared(root: yaml.Node | None) -> set[int]:
    """The ids of nodes that the document reaches more than once: an anchor with an alias."""
    seen: set[int] = set()
    shared: set[int] = set()
    todo = [] if root is None else [root]
    while todo:
        node = todo.pop()
        if id(node) in seen:
            shared.add(id(node))
        elif not isinstance(node, yaml.ScalarNode):
            todo.extend(part for child in node.value for part in (child if isinstance(child, tuple) else (child,)))
        seen.add(id(node))
    return shared


def _means(text: str, data: dict[str, Any]) -> bool:
    """Whether istiod accepts `text` and it is one document with this `data`."""
    try:
        mesh = _parse(text)
        _reading(mesh)
    except MeshConfigError:
        return False
    return mesh.data == data and not mesh.more_documents


def _edits(mesh: _Mesh, mode: str) -> Iterator[tuple[int, int, str]]:
    """Ways to put `mode` into `mesh.body`, the best first: replace the characters from start to end by the new ones."""
    style = _Style.of(mesh)
    if mesh.modes:
        node = mesh.modes[0].value
        quote = node.style or style.quote
        yield from _replace(mesh.body, node, quote + mode + quote)
        return
    item = f"{style.quote}mode{style.quote}{style.colon}{style.quote}{mode}{style.quote}"
    if not mesh.policies:
        yield from _add_policy(mesh, style, item)
        return
    policy = mesh.policies[0].value
    if not isinstance(policy, yaml.MappingNode):
        yield from _replace(mesh.body, policy, f"{{{item}}}")
    elif policy.flow_style:
        yield _into_flow(mesh.body, policy, item, style)
    else:
        yield _before_first_key(mesh.body, policy, item, style)


def _add_policy(mesh: _Mesh, style: _Style, item: str) -> Iterator[tuple[int, int, str]]:
    body, root, newline = mesh.body, mesh.root, style.newline
    if isinstance(root, yaml.MappingNode) and root.flow_style:
        yield _into_flow(body, root, f"{style.quote}{_POLICY}{style.quote}{style.colon}{{{item}}}", style)
        return
    policy = f"{_POLICY}:{newline}{style.margin}{style.step}{item}"
    if root is None:
        at = len(body)
    elif isinstance(root, yaml.MappingNode):
        at = root.end_mark.index
    else:  # a document marker with nothing behind it
        at = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)?").match(body, root.end_mark.index).end()
    new = style.margin + policy
    # A text without a final newline stays one.
    if body and body[at - 1] not in "\r\n":
        new = newline + new
    elif body:
        new += newline
    yield at, at, new
    if isinstance(root, yaml.MappingNode):
        # The last value is a block scalar that a newline at its end would change.
        yield _before_first_key(body, root, policy, style)


def _replace(body: str, node: yaml.ScalarNode, new: str) -> Iterator[tuple[int, int, str]]:
    """Replace a scalar but for its anchor and tag. A tag that is not a string's would read the new value as something else."""
    start, end = node.start_mark.index, node.end_mark.index
    properties = re.match(r"(?:[&!]\S*\s*)*", body[start:end]).group()
    if "!" in properties and node.tag != "tag:yaml.org,2002:str":
        return
    start += len(properties)
    if start == end:
        yield start, end, new if body[start - 1].isspace() else f" {new}"
    else:
        yield start, end, new


def _into_flow(body: str, mapping: yaml.MappingNode, item: str, style: _Style) -> tuple[int, int, str]:
    if not mapping.value:
        at = mapping.end_mark.index - 1
        return at, at, item
    at = mapping.value[0][0].start_mark.index
    gap = body[len(body[:at].rstrip()) : at]
    return at, at, f"{item},{gap or style.gap}"


def _before_first_key(body: str, mapping: yaml.MappingNode, item: str, style: _Style) -> tuple[int, int, str]:
    mark = mapping.value[0][0].start_mark
    start = mark.index - mark.column
    return start, start, body[start : mark.index] + item + style.newline


def _span_of_policy(mesh: _Mesh) -> tuple[int, int]:
    """From where to where the policy stands in `mesh.body`, with its newline or comma."""
    body, root, key, policy = mesh.body, mesh.root, mesh.policies[0].key, mesh.policies[0].value
    last = mesh.modes[0].value if mesh.modes and not policy.flow_style else policy
    start, end = key.start_mark.index, last.end_mark.index
    if not _ONLY_A_MODE.fullmatch(body, start, end):
        raise _not_ours(mesh)
    if root.flow_style:
        following = [later.start_mark.index for later, _value in root.value if later.start_mark.index > start]
        if following:
            return start, min(following)
        before = body[:start].rstrip()
        return (len(before) - 1 if before.endswith(",") else start), end
    start -= key.start_mark.column
    rest = re.compile(r"[ \t]*(\r\n|\r|\n|$)").match(body, end)
    if not rest or body[start : key.start_mark.index].strip(" "):
        raise _not_ours(mesh)
    if not rest.group(1):
        start = len(re.sub(r"(?:\r\n|\r|\n)$", "", body[:start]))
    return start, rest.end()


@dataclass(frozen=True)
class _Style:
    """How a text is written, for what is added to it."""

    newline: str
    quote: str
    colon: str
    gap: str
    margin: str
    step: str

    @classmethod
    def of(cls, mesh: _Mesh) -> _Style:
        body, root = mesh.body, mesh.root
        newline = re.search(r"\r\n|\r|\n|$", body).group() or "\n"
        try:
            json.loads(body)
            is_json = True
        except ValueError:
            is_json = False
        colon, margin, step = ": ", "", "  "
        if isinstance(root, yaml.MappingNode) and root.value:
            first = root.value[0][0]
            if is_json and body[first.end_mark.index : first.end_mark.index + 2].strip() != ":":
                colon = ":"
            margin = re.compile(" *").match(body, first.start_mark.index - first.start_mark.column).group()
            nested = (value for _key, value in root.value if isinstance(value, yaml.MappingNode) and not value.flow_style)
            steps = (mapping.value[0][0].start_mark.column - len(margin) for mapping in nested)
            step = " " * next((columns for columns in steps if columns > 0), 2)
        return cls(newline, '"' if is_json else "", colon, colon[1:], margin, step)
