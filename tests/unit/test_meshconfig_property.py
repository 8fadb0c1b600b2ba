"""1,000 generated mesh configs: a change of the mode changes the mode and nothing else.

The generator writes the text itself and remembers where the value stands that a change may touch, so what must stay is known without asking
the code under test. PyYAML's constructor (which the code under test does not use on whole documents) says what a text means. No file, no cluster.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.meshops.istio_egress.plugins.module_utils._meshconfig import (
    ALLOW_ANY,
    ALLOW_ANY_DYNAMIC_DNS,
    MODES,
    REGISTRY_ONLY,
    read_mode,
    unset_mode,
    write_mode,
)

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
POLICY = "outboundTrafficPolicy"

# What people have in a mesh config, with the values that are hard on a text editor: colons, hashes, quotes, several lines, "mode" elsewhere.
FIELDS = {
    "accessLogFile": "/dev/stdout",
    "accessLogEncoding": "TEXT",
    "accessLogFormat": '[%START_TIME%] "%REQ(:METHOD)%" # not a comment\nmode: REGISTRY_ONLY\n',
    "defaultConfig": {
        "discoveryAddress": "istiod.istio-system.svc:15012",
        "proxyMetadata": {"ISTIO_META_DNS_CAPTURE": "true", "mode": "ALLOW_ANY"},
        "tracing": {},
        "concurrency": 2,
    },
    "defaultProviders": {"metrics": ["prometheus"], "accessLogging": []},
    "enableAutoMtls": True,
    "extensionProviders": [
        {"name": "otel", "opentelemetry": {"service": "otel.example.com", "port": 4317}},
        {"name": "it's", "envoyFileAccessLog": {"path": "/dev/stdout"}},
    ],
    "outboundClusterStatName": "%SERVICE%_{%PORT%}: 'x'",
    "rootNamespace": "istio-system",
    "trustDomain": "cluster.local",
    "x-names": ["été.example", "😀.example"],
    "x-note": f"{POLICY}: see the ticket",
    "meshMTLS": {"minProtocolVersion": "TLSV1_2", POLICY: {"mode": "ALLOW_ANY"}},
}


@dataclass(frozen=True)
class Generated:
    """A text, and the span (start, end) that a change of the mode may replace: the value of the mode or of the policy; None when a key is to be added."""

    text: str
    span: tuple[int, int] | None


# Marks around what may change, while a text is put together.
START, END = "\ue000", "\ue001"


def generated(marked: str) -> Generated:
    start, end = marked.find(START), marked.find(END) - 1
    return Generated(marked.replace(START, "").replace(END, ""), None if start < 0 else (start, end))


def quoted(text: str, quote: str) -> str:
    """A string in YAML, with the quotes asked for where it can do with them."""
    if quote == "'" and "\n" not in text:
        return "'" + text.replace("'", "''") + "'"
    if quote or not re.fullmatch(r"[\w/.%-]+(?:: ?\d+)?", text) or text in ("true", "false"):
        return json.dumps(text, ensure_ascii=False)
    return text


def scalar(value: object, quote: str) -> str:
    return quoted(value, quote) if isinstance(value, str) else json.dumps(value)


def flow(value: object, quote: str) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key, quote)}: {flow(item, quote)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(item, quote) for item in value) + "]"
    return scalar(value, quote)


def block(value: object, margin: str, step: str, quote: str) -> str:
    """What stands behind a colon or a dash, in block style: on the same line, or from a new line on."""
    inner = margin + step
    if isinstance(value, dict) and value:
        return "".join(f"\n{inner}{quoted(key, quote)}:{block(item, inner, step, quote)}" for key, item in value.items())
    if isinstance(value, list) and value:
        return "".join(f"\n{margin}- {flow(item, quote)}" for item in value)
    if isinstance(value, str) and "\n" in value and not quote:
        return " |\n" + "\n".join(inner + line for line in value.rstrip("\n").split("\n"))
    return " " + flow(value, quote)


# Choices are drawn in bundles: each draw of hypothesis costs more than the code under test.
def one_of_each(*choices) -> st.SearchStrategy:
    return st.sampled_from(list(itertools.product(*choices)))


MODE_VALUES = [*MODES, *MODES, *MODES, "0", "1", "3", "null"]
BLOCK_STYLES = one_of_each(["", "", "  "], ["  ", "  ", "    ", " "], ["", "", '"', "'"], ["\n", "\n", "\r\n"])
# Up to six fields, and what follows each.
SOME_FIELDS = st.lists(
    one_of_each(list(FIELDS), ["", "", "MARGIN# outboundTrafficPolicy:\n", "\n", "MARGINSTEP# indented\n"]),
    unique_by=lambda drawn: drawn[0],
    max_size=6,
)
FRAMES = one_of_each(
    ["", "", "\ufeff"],
    ["", "", "# mesh config\n\n", "---\n", "%YAML 1.1\n--- # mesh\n"],
    ["", "", "...\n", "# end\n", "\n\n"],
    [True, False],  # a final newline
)
POLICY_NAMES = [POLICY, POLICY, f'"{POLICY}"', "outbound_traffic_policy"]
NO_MODE = [f"{START}{END}", f" {START}null{END}", f" {START}~{END}", f" {{{START}{END}}}", "\nMARGINfoo: 1"]
BLOCK_POLICIES = [
    " {mode: MODE}",
    ' {foo: 1, "mode": MODE, bar: [2]}',
    "\nMARGINmode: MODE",
    " &policy\nMARGINmode: MODE",
    "\nMARGIN# mode: ALLOW_ANY\nMARGINmode: MODE",
    "\nMARGINfoo: 1\nMARGINmode: MODE",
    "\nMARGINmode: MODE\nMARGINbar: {baz: 2}",
]
POLICIES_IN_BLOCK = one_of_each(POLICY_NAMES, [*NO_MODE, *BLOCK_POLICIES, *BLOCK_POLICIES], MODE_VALUES, ["", "  # SEC-1: mode: ALLOW_ANY"])


@st.composite
def block_texts(draw) -> Generated:
    margin, step, quote, newline = draw(BLOCK_STYLES)
    entries = []
    for field, extra in draw(SOME_FIELDS):
        entry = f"{margin}{quoted(field, quote)}:{block(FIELDS[field], margin, step, quote)}\n"
        # Inside a block scalar it would be no comment.
        entries.append(entry if " |\n" in entry else entry + extra.replace("MARGIN", margin).replace("STEP", step))
    if draw(st.integers(0, 3)) == 3:
        entries = [f"{margin}x-base: &base\n{margin}{step}a: 1\n", *entries, f"{margin}x-copy:\n{margin}{step}<<: *base\n", f"{margin}x-same: *base\n"]
    if draw(st.integers(0, 4)) > 0:
        name, policy, mode, comment = draw(POLICIES_IN_BLOCK)
        mode = START + (quote + mode + quote if mode in MODES else mode) + END
        policy = (policy + comment).replace("MODE", mode).replace("MARGIN", margin + step)
        entries.insert(draw(st.integers(0, len(entries))), f"{margin}{name}:{policy}\n")
    bom, head, tail, final_newline = draw(FRAMES)
    if tail == "...\n" and not entries:
        tail = ""
    text = head + "".join(entries) + tail
    return generated(bom + (text if final_newline else text.removesuffix("\n")).replace("\n", newline))


FLOW_POLICIES = [
    "",
    f"{START}null{END}",
    f"{{{START}{END}}}",
    '{"foo": 1}',
    '{"mode":MODE}',
    '{ "mode": MODE }',
    '{"foo": 1,"mode": MODE}',
]
POLICIES_IN_FLOW = one_of_each(FLOW_POLICIES, MODE_VALUES)
FLOW_STYLES = one_of_each(["", "", "\n"], ["\n", "\r\n"], [None, None, 2, 4], [(",", ":"), (", ", ": ")], ["json", "json", "json", "", '"', "'"])


@st.composite
def flow_texts(draw) -> Generated:
    """JSON, compact, on one line or on many, and YAML in flow style."""
    end, newline, indent, separators, style = draw(FLOW_STYLES)
    policy, mode = draw(POLICIES_IN_FLOW)
    mode = START + (f'"{mode}"' if mode in MODES and style else mode) + END
    items = [(field, FIELDS[field]) for field, _extra in draw(SOME_FIELDS)]
    if policy:
        items.insert(draw(st.integers(0, len(items))), (POLICY, "HERE"))
    if style == "json":
        text = json.dumps(dict(items), indent=indent, separators=separators, ensure_ascii=False)
    else:
        text = flow(dict(items), style)
    text = re.sub("[\"']?HERE[\"']?", lambda _here: policy.replace("MODE", mode), text)
    return generated((text + end).replace("\n", newline))


def meaning(text: str) -> dict:
    return yaml.load(text.removeprefix("\ufeff"), Loader=LOADER) or {}


def policy_name(mesh: dict) -> str:
    return "outbound_traffic_policy" if "outbound_traffic_policy" in mesh else POLICY


def with_mode(mesh: dict, mode: str) -> dict:
    name = policy_name(mesh)
    return {**mesh, name: {**(mesh.get(name) or {}), "mode": mode}}


def mode_of(mesh: dict) -> str:
    policy = mesh.get(policy_name(mesh))
    if policy is None:
        return ALLOW_ANY
    mode = policy.get("mode")
    return {None: REGISTRY_ONLY, 0: REGISTRY_ONLY, 1: ALLOW_ANY, 3: ALLOW_ANY_DYNAMIC_DNS}.get(mode, mode)


def is_addition(before: str, after: str, words: list[str]) -> bool:
    """Whether `after` is `before` with `words` (and what punctuation they need) put in at one place."""
    more = len(after) - len(before)
    places = (at for at in range(len(before) + 1) if before[:at] == after[:at] and before[at:] == after[at + more :])
    return any(re.findall(r"\w+", after[at : at + more]) == words for at in places)


def test_a_change_of_the_mode_changes_nothing_else():
    texts = set()

    @settings(max_examples=1500, database=None)  # some are drawn twice
    @given(st.one_of(block_texts(), block_texts(), flow_texts()), st.booleans())
    def each(case: Generated, forwards: bool):
        texts.add(case.text)
        before = meaning(case.text)
        now = mode_of(before)
        assert read_mode(case.text).mode == now
        assert write_mode(case.text, now) == case.text
        check(case, before, next(mode for mode in (MODES if forwards else reversed(MODES)) if mode != now))

    each()
    assert len(texts) >= 1000


def check(case: Generated, before: dict, mode: str) -> None:
    text = write_mode(case.text, mode)

    assert read_mode(text).mode == mode
    assert write_mode(text, mode) == text
    assert meaning(text) == with_mode(before, mode)
    if case.span:
        start, rest = case.span[0], len(case.text) - case.span[1]
        assert (text[:start], text[len(text) - rest :]) == (case.text[:start], case.text[len(case.text) - rest :])
    else:
        assert is_addition(case.text, text, ["mode", mode] if policy_name(before) in before else [POLICY, "mode", mode])
    if "\r\n" in case.text:
        assert text.count("\n") == text.count("\r\n")
    if policy_name(before) not in before:
        assert unset_mode(text) == case.text
