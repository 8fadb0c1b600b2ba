"""What Istio reads from a mesh config, and what a change of the mode leaves behind, as tables of texts.

The modes in READS were seen from Istio itself: `mesh.ApplyMeshConfig(text, mesh.DefaultMeshConfig())` of istio.io/istio at eed52ebb66ad (2026-08-27).
No file, no cluster. PyYAML has two scanners; every row runs on both, and rows marked LIBYAML are refused by the pure Python one.
"""

from __future__ import annotations

import importlib
import sys

import pytest
import yaml

from ansible_collections.meshops.istio_egress.plugins.module_utils import _meshconfig
from ansible_collections.meshops.istio_egress.plugins.module_utils._meshconfig import (
    ALLOW_ANY,
    ALLOW_ANY_DYNAMIC_DNS,
    MODES,
    REGISTRY_ONLY,
    MeshConfigError,
    ModeReading,
    read_mode,
    unset_mode,
    write_mode,
)

REFUSED = "refused"
LIBYAML = "accepted by libyaml and Istio, refused by PyYAML's own scanner"

# As `istioctl install` writes it: no policy, no final newline.
INSTALLED = """accessLogFile: /dev/stdout
defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
defaultProviders:
  metrics:
  - prometheus
enablePrometheusMerge: true
rootNamespace: istio-system
trustDomain: cluster.local"""


@pytest.fixture(params=["libyaml", "pure"], autouse=True)
def scanner(request, monkeypatch):
    if request.param == "libyaml" and not yaml.__with_libyaml__:
        pytest.skip("this PyYAML comes without libyaml")
    monkeypatch.setattr(_meshconfig, "_Loader", yaml.CSafeLoader if request.param == "libyaml" else yaml.SafeLoader)
    return request.param


def table(rows):
    return [pytest.param(row, id=row[0]) for row in rows]


def refuses(scanner, row):
    return LIBYAML in row and scanner == "pure"


def two_lines(error: MeshConfigError) -> str:
    what, way_out = str(error).split("\n")
    assert what and way_out.endswith(".")
    return what


READS = [
    # no text, no document, no policy
    ("no text", "", ALLOW_ANY),
    ("a comment only", "# nothing yet\n", ALLOW_ANY),
    ("document marker only", "---\n", ALLOW_ANY),
    ("null document", "null", ALLOW_ANY),
    ("empty mapping", "{}", ALLOW_ANY),
    ("fresh install", INSTALLED, ALLOW_ANY),
    ("policy in another case", "OutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n", ALLOW_ANY),
    ("policy without value", "outboundTrafficPolicy:\n", ALLOW_ANY),
    ("policy null", "outboundTrafficPolicy: null\n", ALLOW_ANY),
    ("mode beside the policy", "outboundTrafficPolicy:\nmode: REGISTRY_ONLY\n", ALLOW_ANY),
    # a policy that says nothing
    ("policy {}", "outboundTrafficPolicy: {}\n", REGISTRY_ONLY),
    ("unknown field only", "outboundTrafficPolicy:\n  foo: 1\n", REGISTRY_ONLY),
    ("mode in another case", "outboundTrafficPolicy:\n  Mode: ALLOW_ANY\n", REGISTRY_ONLY),
    ("mode without value", "outboundTrafficPolicy:\n  mode:\n", REGISTRY_ONLY),
    ("a set", "outboundTrafficPolicy: !!set {mode}\n", REGISTRY_ONLY),
    # how a mode is written
    ("plain", "outboundTrafficPolicy:\n  mode: ALLOW_ANY\n", ALLOW_ANY),
    ("single quotes", "outboundTrafficPolicy:\n  mode: 'REGISTRY_ONLY'\n", REGISTRY_ONLY),
    ("double quotes", 'outboundTrafficPolicy:\n  mode: "ALLOW_ANY_DYNAMIC_DNS"\n', ALLOW_ANY_DYNAMIC_DNS),
    ("escape in double quotes", 'outboundTrafficPolicy:\n  mode: "REGISTRY\\x5fONLY"\n', REGISTRY_ONLY),
    ("value on the next line", "outboundTrafficPolicy:\n  mode:\n    REGISTRY_ONLY\n", REGISTRY_ONLY),
    ("stripped block scalar", "outboundTrafficPolicy:\n  mode: >-\n    REGISTRY_ONLY\n", REGISTRY_ONLY),
    ("tag", "outboundTrafficPolicy: !!map\n  mode: !!str REGISTRY_ONLY\n", REGISTRY_ONLY),
    ("number 0", "outboundTrafficPolicy:\n  mode: 0\n", REGISTRY_ONLY),
    ("number 1", "outboundTrafficPolicy:\n  mode: 1\n", ALLOW_ANY),
    ("number 3", "outboundTrafficPolicy:\n  mode: 3\n", ALLOW_ANY_DYNAMIC_DNS),
    ("hexadecimal number", "outboundTrafficPolicy:\n  mode: 0x1\n", ALLOW_ANY),
    ("floating point number", "outboundTrafficPolicy:\n  mode: 1.0\n", ALLOW_ANY),
    ("tab before the value", "outboundTrafficPolicy:\n  mode:\tREGISTRY_ONLY\n", REGISTRY_ONLY, LIBYAML),
    ("tab before a comment", "outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\t# x\n", REGISTRY_ONLY, LIBYAML),
    # a mode that discards the whole mesh config
    ("typo", "outboundTrafficPolicy:\n  mode: REGISTER_ONLY\n", REFUSED),
    ("wrong case", "outboundTrafficPolicy:\n  mode: registry_only\n", REFUSED),
    ("empty string", "outboundTrafficPolicy:\n  mode: ''\n", REFUSED),
    ("quoted number", "outboundTrafficPolicy:\n  mode: '1'\n", REFUSED),
    ("boolean of YAML 1.1", "outboundTrafficPolicy:\n  mode: on\n", REFUSED),
    ("no date", "outboundTrafficPolicy:\n  mode: 2001-99-99\n", REFUSED),
    ("fraction", "outboundTrafficPolicy:\n  mode: 1.5\n", REFUSED),
    ("list", "outboundTrafficPolicy:\n  mode: [ALLOW_ANY]\n", REFUSED),
    ("mapping", "outboundTrafficPolicy:\n  mode: {}\n", REFUSED),
    ("block scalar with its newline", "outboundTrafficPolicy:\n  mode: |\n    ALLOW_ANY\n", REFUSED),
    ("comment without a space", "outboundTrafficPolicy:\n  mode: REGISTRY_ONLY#c\n", REFUSED),
    ("policy is a string", "outboundTrafficPolicy: ALLOW_ANY\n", REFUSED),
    ("policy is a list", "outboundTrafficPolicy: []\n", REFUSED),
    ("policy is false", "outboundTrafficPolicy: false\n", REFUSED),
    # the same key more than once
    ("policy twice: last", "outboundTrafficPolicy: {mode: ALLOW_ANY}\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n", REGISTRY_ONLY),
    ("policy twice: last is null", "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\noutboundTrafficPolicy:\n", ALLOW_ANY),
    ("policy twice: last is {}", "outboundTrafficPolicy: {mode: ALLOW_ANY}\noutboundTrafficPolicy: {}\n", REGISTRY_ONLY),
    ("mode twice: last", "outboundTrafficPolicy:\n  mode: ALLOW_ANY\n  mode: REGISTRY_ONLY\n", REGISTRY_ONLY),
    ("proto name", "outbound_traffic_policy:\n  mode: REGISTRY_ONLY\n", REGISTRY_ONLY),
    ("both names: not the proto name", "outboundTrafficPolicy: {mode: ALLOW_ANY}\noutbound_traffic_policy: {mode: REGISTRY_ONLY}\n", ALLOW_ANY),
    ("both names: whatever the order", "outbound_traffic_policy: {mode: ALLOW_ANY}\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n", REGISTRY_ONLY),
    ("both names: even if null", "outbound_traffic_policy: {mode: REGISTRY_ONLY}\noutboundTrafficPolicy:\n", ALLOW_ANY),
    # aliases and merge keys
    ("mode is an alias", "x: &m REGISTRY_ONLY\noutboundTrafficPolicy: {mode: *m}\n", REGISTRY_ONLY),
    ("policy is an alias", "x: &p {mode: REGISTRY_ONLY}\noutboundTrafficPolicy: *p\n", REGISTRY_ONLY),
    ("key is an alias", "x: &k outboundTrafficPolicy\n*k : {mode: REGISTRY_ONLY}\n", REGISTRY_ONLY),
    ("mode merged", "x: &p {mode: REGISTRY_ONLY}\noutboundTrafficPolicy:\n  <<: *p\n", REGISTRY_ONLY),
    ("policy merged", "x: &p\n  outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n<<: *p\n", REGISTRY_ONLY),
    ("merge, then mode", "x: &p {mode: REGISTRY_ONLY}\noutboundTrafficPolicy:\n  <<: *p\n  mode: ALLOW_ANY\n", ALLOW_ANY),
    ("mode, then merge", "x: &p {mode: REGISTRY_ONLY}\noutboundTrafficPolicy:\n  mode: ALLOW_ANY\n  <<: *p\n", REGISTRY_ONLY),
    ("merge list: first", "x: &p {mode: REGISTRY_ONLY}\ny: &q {mode: ALLOW_ANY}\noutboundTrafficPolicy:\n  <<: [*p, *q]\n", REGISTRY_ONLY),
    ("merge of a merge", "x: &p {mode: REGISTRY_ONLY}\ny: &q {<<: *p}\noutboundTrafficPolicy:\n  <<: *q\n", REGISTRY_ONLY),
    ("merge in place", "outboundTrafficPolicy:\n  <<: {mode: ALLOW_ANY}\n", ALLOW_ANY),
    ("a quoted << is a key like others", "outboundTrafficPolicy:\n  '<<': {mode: ALLOW_ANY}\n", REGISTRY_ONLY),
    ("merge of a scalar", "outboundTrafficPolicy:\n  <<: foo\n", REFUSED),
    ("unknown alias", "x: *y\n", REFUSED),
    ("anchor inside itself", "x: &x [*x]\n", REFUSED),
    # the shape of the text
    ("flow style", "{outboundTrafficPolicy: {mode: REGISTRY_ONLY}, a: b}", REGISTRY_ONLY),
    ("trailing commas", "{outboundTrafficPolicy: {mode: REGISTRY_ONLY,},}", REGISTRY_ONLY),
    ("compact JSON", '{"outboundTrafficPolicy":{"mode":"REGISTRY_ONLY"},"a":1}', REGISTRY_ONLY),
    ("JSON indented by tabs", '{\n\t"outboundTrafficPolicy": {\n\t\t"mode": "REGISTRY_ONLY"\n\t}\n}\n', REGISTRY_ONLY, LIBYAML),
    ("explicit keys", "? outboundTrafficPolicy\n: ? mode\n  : REGISTRY_ONLY\n", REGISTRY_ONLY),
    ("CRLF", "a: b\r\noutboundTrafficPolicy:\r\n  mode: REGISTRY_ONLY\r\n", REGISTRY_ONLY),
    ("byte order mark", "\ufeffoutboundTrafficPolicy:\n  mode: REGISTRY_ONLY\na: b\n", REGISTRY_ONLY),
    ("directive and markers", "%YAML 1.1\n---\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n...\n", REGISTRY_ONLY),
    ("first document of two", "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n---\noutboundTrafficPolicy: {mode: ALLOW_ANY}\n", REGISTRY_ONLY),
    ("second document is not even YAML", "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n---\n: : [\n", REGISTRY_ONLY),
    ("a first document that is empty", "---\n---\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n", ALLOW_ANY),
    ("list at the top", "- a\n", REFUSED),
    ("word at the top", "hello", REFUSED),
    ("list as a key", "? [a]\n: b\n", REFUSED),
    ("tab as indentation", "outboundTrafficPolicy:\n\tmode: REGISTRY_ONLY\n", REFUSED),
    ("bad indentation", "outboundTrafficPolicy:\n  mode: ALLOW_ANY\n bad: 1\n", REFUSED),
    ("open brace", "{a: b\n", REFUSED),
    ("control character", "a: \x07\n", REFUSED),
]


@pytest.mark.parametrize("row", table(READS))
def test_the_mode_is_read_as_istio_reads_it(row, scanner):
    _name, text, mode = row[:3]
    if mode == REFUSED or refuses(scanner, row):
        with pytest.raises(MeshConfigError) as refusal:
            read_mode(text)
        two_lines(refusal.value)
    else:
        assert read_mode(text).mode == mode


@pytest.mark.parametrize(
    "text",
    [
        "outboundTrafficPolicy:\n  mode: 2\n",  # an enum number without a name: not ALLOW_ANY, and so blocked, for as long as 2 stays reserved
        "outboundTrafficPolicy:\n  mode: 1e0\n",
        "outboundTrafficPolicy:\n  mode: !any ALLOW_ANY\n",
        "x: &a 1\ny: &a 2\n",
    ],
)
def test_what_istio_takes_and_is_refused_here_all_the_same(text):
    with pytest.raises(MeshConfigError) as refusal:
        read_mode(text)
    two_lines(refusal.value)


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("", ModeReading(ALLOW_ANY, "default")),
        ("a: b\noutboundTrafficPolicy: ~\n", ModeReading(ALLOW_ANY, "default", line=2)),
        ("a: b\noutboundTrafficPolicy: {}\n", ModeReading(REGISTRY_ONLY, "empty policy", line=2)),
        ("a: b\noutboundTrafficPolicy:\n  mode: ''\n".replace("''", "~"), ModeReading(REGISTRY_ONLY, "empty policy", line=3)),
        ("outboundTrafficPolicy:\n  mode: 'ALLOW_ANY'\n", ModeReading(ALLOW_ANY, "explicit", "ALLOW_ANY", 2)),
        ("outboundTrafficPolicy:\n  mode: 0\n", ModeReading(REGISTRY_ONLY, "explicit", 0, 2)),
    ],
)
def test_a_reading_says_where_the_mode_comes_from(text, reading):
    assert read_mode(text) == reading


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: b\noutboundTrafficPolicy:\n  mode: REGISTER_ONLY\n", 'Line 3 of the mesh config: outboundTrafficPolicy.mode "REGISTER_ONLY" is none of'),
        ("outboundTrafficPolicy:\n  mode: |\n    ALLOW_ANY\n", '"ALLOW_ANY\\n"'),
        ("a: b\noutboundTrafficPolicy: ALLOW_ANY\n", "Line 2 of the mesh config: outboundTrafficPolicy is not a mapping"),
        ("a: b\nc: d: e\n", "not readable as YAML (line 2: mapping values are not allowed"),
        ("a: \x07\n", "not readable as YAML (position 3: "),
        ("- a\n", "not a mapping (line 1)"),
    ],
)
def test_a_refused_text_is_named_with_its_line(text, says):
    with pytest.raises(MeshConfigError) as refusal:
        read_mode(text)
    assert says in two_lines(refusal.value)


ADDED = "outboundTrafficPolicy:\n  mode: REGISTRY_ONLY"

# name, text, wanted mode, text afterwards
WRITES = [
    # the mode is replaced where it stands
    ("plain", "a: b\noutboundTrafficPolicy:\n  mode: ALLOW_ANY\nc: d\n", REGISTRY_ONLY, "a: b\noutboundTrafficPolicy:\n  mode: REGISTRY_ONLY\nc: d\n"),
    ("comments", "outboundTrafficPolicy: # 1\n  # 2\n  mode:  ALLOW_ANY   # 3\n  # 4\n", REGISTRY_ONLY,
     "outboundTrafficPolicy: # 1\n  # 2\n  mode:  REGISTRY_ONLY   # 3\n  # 4\n"),
    ("single quotes", "outboundTrafficPolicy: {'mode': 'ALLOW_ANY'}\n", REGISTRY_ONLY, "outboundTrafficPolicy: {'mode': 'REGISTRY_ONLY'}\n"),
    ("double quotes with an escape", 'outboundTrafficPolicy:\n  mode: "ALLOW\\x5fANY"', REGISTRY_ONLY, 'outboundTrafficPolicy:\n  mode: "REGISTRY_ONLY"'),
    ("number", "outboundTrafficPolicy:\n  mode: 0 # blocked\n", ALLOW_ANY, "outboundTrafficPolicy:\n  mode: ALLOW_ANY # blocked\n"),
    ("number in JSON", '{"outboundTrafficPolicy": {"mode": 0}}', ALLOW_ANY, '{"outboundTrafficPolicy": {"mode": "ALLOW_ANY"}}'),
    ("value on the next line", "outboundTrafficPolicy:\n  mode:\n    ALLOW_ANY\n", REGISTRY_ONLY, "outboundTrafficPolicy:\n  mode:\n    REGISTRY_ONLY\n"),
    ("mode without value", "outboundTrafficPolicy:\n  mode: # to do\n", ALLOW_ANY, "outboundTrafficPolicy:\n  mode: ALLOW_ANY # to do\n"),
    ("mode null", "outboundTrafficPolicy: {mode: ~}\n", ALLOW_ANY, "outboundTrafficPolicy: {mode: ALLOW_ANY}\n"),
    ("anchor that nobody uses", "outboundTrafficPolicy: &ALLOW_ANY\n  mode: &m !!str ALLOW_ANY\n", REGISTRY_ONLY,
     "outboundTrafficPolicy: &ALLOW_ANY\n  mode: &m !!str REGISTRY_ONLY\n"),
    ("alias elsewhere", "x: &a {b: c}\noutboundTrafficPolicy: {mode: ALLOW_ANY}\ny: *a\n", REGISTRY_ONLY,
     "x: &a {b: c}\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\ny: *a\n"),
    ("merge key elsewhere", "x: &a {b: c}\noutboundTrafficPolicy: {mode: ALLOW_ANY}\ny:\n  <<: *a\n", REGISTRY_ONLY,
     "x: &a {b: c}\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\ny:\n  <<: *a\n"),
    ("other keys twice", "a: 1\na: 2\noutboundTrafficPolicy: {mode: ALLOW_ANY}\n", REGISTRY_ONLY, "a: 1\na: 2\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"),
    ("proto name", "outbound_traffic_policy:\n  mode: ALLOW_ANY\n", REGISTRY_ONLY, "outbound_traffic_policy:\n  mode: REGISTRY_ONLY\n"),
    ("explicit keys", "? outboundTrafficPolicy\n: ? mode\n  : ALLOW_ANY\n", REGISTRY_ONLY, "? outboundTrafficPolicy\n: ? mode\n  : REGISTRY_ONLY\n"),
    ("long JSON on one line", '{"a":"' + 900 * "x" + '","outboundTrafficPolicy":{"mode":"ALLOW_ANY"},"b":[1,2]}', REGISTRY_ONLY,
     '{"a":"' + 900 * "x" + '","outboundTrafficPolicy":{"mode":"REGISTRY_ONLY"},"b":[1,2]}'),
    ("CRLF", "a: b\r\noutboundTrafficPolicy:\r\n  mode: ALLOW_ANY\r\n", REGISTRY_ONLY, "a: b\r\noutboundTrafficPolicy:\r\n  mode: REGISTRY_ONLY\r\n"),
    ("byte order mark and characters of four bytes", "\ufeffa: \U0001f600é\noutboundTrafficPolicy: {mode: ALLOW_ANY}\n", REGISTRY_ONLY,
     "\ufeffa: \U0001f600é\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"),
    ("mode in other places",
     "mode: ALLOW_ANY\nx: {outboundTrafficPolicy: {mode: ALLOW_ANY}}\noutboundTrafficPolicy: {mode: ALLOW_ANY}\n# mode: ALLOW_ANY", REGISTRY_ONLY,
     "mode: ALLOW_ANY\nx: {outboundTrafficPolicy: {mode: ALLOW_ANY}}\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n# mode: ALLOW_ANY"),
    ("a value that is no date and a tag that nobody knows", "a: 2001-99-99\nb: !x y\noutboundTrafficPolicy: {mode: ALLOW_ANY}\n", REGISTRY_ONLY,
     "a: 2001-99-99\nb: !x y\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"),
    ("tabs", "outboundTrafficPolicy:\n  mode:\tALLOW_ANY\t# x\n", REGISTRY_ONLY, "outboundTrafficPolicy:\n  mode:\tREGISTRY_ONLY\t# x\n", LIBYAML),
    # the policy is there, the mode is not
    ("policy {}", "outboundTrafficPolicy: {} # nothing\na: b\n", ALLOW_ANY, "outboundTrafficPolicy: {mode: ALLOW_ANY} # nothing\na: b\n"),
    ("policy {} in JSON", '{"outboundTrafficPolicy":{},"a":1}', ALLOW_ANY, '{"outboundTrafficPolicy":{"mode":"ALLOW_ANY"},"a":1}'),
    ("policy null", "outboundTrafficPolicy: null # nothing\n", REGISTRY_ONLY, "outboundTrafficPolicy: {mode: REGISTRY_ONLY} # nothing\n"),
    ("policy null in JSON", '{"outboundTrafficPolicy": null}', REGISTRY_ONLY, '{"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}'),
    ("policy without value", "outboundTrafficPolicy: # to do\na: b\n", REGISTRY_ONLY, "outboundTrafficPolicy: {mode: REGISTRY_ONLY} # to do\na: b\n"),
    ("policy without value, no newline", "outboundTrafficPolicy:", REGISTRY_ONLY, "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"),
    ("unknown field", "outboundTrafficPolicy:\n    # why\n    foo: 1\n", ALLOW_ANY, "outboundTrafficPolicy:\n    # why\n    mode: ALLOW_ANY\n    foo: 1\n"),
    ("unknown field in flow style", "outboundTrafficPolicy: { foo: 1 }\n", ALLOW_ANY, "outboundTrafficPolicy: { mode: ALLOW_ANY, foo: 1 }\n"),
]  # fmt: skip

# neither the policy nor the mode is there
ADDS = [
    ("no text", "", REGISTRY_ONLY, ADDED),
    ("a comment only", "# nothing yet", REGISTRY_ONLY, "# nothing yet\n" + ADDED),
    ("fresh install", INSTALLED, REGISTRY_ONLY, INSTALLED + "\n" + ADDED),
    ("final newline", INSTALLED + "\n", REGISTRY_ONLY, INSTALLED + "\n" + ADDED + "\n"),
    ("comment at the end", "a: b # 1\n# 2\n\n", REGISTRY_ONLY, "a: b # 1\n# 2\n\n" + ADDED + "\n"),
    ("indentation of the text", "  a:\n      b: c\n", REGISTRY_ONLY, "  a:\n      b: c\n  outboundTrafficPolicy:\n      mode: REGISTRY_ONLY\n"),
    ("CRLF added", "a: b\r\n", REGISTRY_ONLY, "a: b\r\noutboundTrafficPolicy:\r\n  mode: REGISTRY_ONLY\r\n"),
    ("lone CR added", "a: b\r", REGISTRY_ONLY, "a: b\routboundTrafficPolicy:\r  mode: REGISTRY_ONLY\r"),
    ("document markers", "---\na: b\n...\n# end\n", REGISTRY_ONLY, "---\na: b\n" + ADDED + "\n...\n# end\n"),
    ("document marker only", "--- # mesh\n", REGISTRY_ONLY, "--- # mesh\n" + ADDED + "\n"),
    ("block scalar at the end", "a: |+\n  b\n\n", REGISTRY_ONLY, "a: |+\n  b\n\n" + ADDED + "\n"),
    ("block scalar that has no newline of its own", "# 1\nx: y\na: |\n  b", REGISTRY_ONLY, "# 1\n" + ADDED + "\nx: y\na: |\n  b"),
    ("alias at the end", "a: &x [1, 2]\nb: *x", REGISTRY_ONLY, "a: &x [1, 2]\nb: *x\n" + ADDED),
    ("merge key without a policy", "a: &x {b: c}\n<<: *x\n", REGISTRY_ONLY, "a: &x {b: c}\n<<: *x\n" + ADDED + "\n"),
    ("flow style", "{a: b, c: d}\n", REGISTRY_ONLY, "{outboundTrafficPolicy: {mode: REGISTRY_ONLY}, a: b, c: d}\n"),
    ("empty mapping", "{}\n", REGISTRY_ONLY, '{"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}\n'),
    ("JSON on lines", '{\r\n    "a": {"b": 1}\r\n}', REGISTRY_ONLY, '{\r\n    "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},\r\n    "a": {"b": 1}\r\n}'),
    ("JSON on one line", '{"a": 1}', REGISTRY_ONLY, '{"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}, "a": 1}'),
    ("compact JSON", '{"a":1}', REGISTRY_ONLY, '{"outboundTrafficPolicy":{"mode":"REGISTRY_ONLY"},"a":1}'),
    ("JSON indented by tabs", '{\n\t"a": 1\n}', REGISTRY_ONLY, '{\n\t"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},\n\t"a": 1\n}', LIBYAML),
    ("policy in another case", "OutboundTrafficPolicy: x\n", REGISTRY_ONLY, "OutboundTrafficPolicy: x\n" + ADDED + "\n"),
]  # fmt: skip


@pytest.mark.parametrize("row", table(WRITES + ADDS))
def test_a_change_of_the_mode_leaves_every_other_byte(row, scanner):
    _name, text, mode, expected = row[:4]
    if refuses(scanner, row):
        with pytest.raises(MeshConfigError):
            write_mode(text, mode)
        return
    changed = write_mode(text, mode)
    assert changed == expected
    assert write_mode(changed, mode) == changed
    assert read_mode(changed).mode == mode


@pytest.mark.parametrize("row", table(ADDS))
def test_what_was_added_can_be_taken_back(row, scanner):
    _name, text, _mode, expected = row[:4]
    if refuses(scanner, row):
        with pytest.raises(MeshConfigError):
            unset_mode(expected)
        return
    assert unset_mode(expected) == text
    assert unset_mode(text) == text
    for other in MODES:
        assert unset_mode(write_mode(expected, other)) == text


# The mode is in force already, however it is written: nothing to do, and so nothing to refuse.
@pytest.mark.parametrize("row", table(row for row in READS if row[2] != REFUSED))
def test_a_mode_in_force_is_not_written_again(row, scanner):
    _name, text, mode = row[:3]
    if not refuses(scanner, row):
        assert write_mode(text, mode) == text


# name, text, what the refusal says (every one is in force as ALLOW_ANY and asked for REGISTRY_ONLY)
CANNOT_CHANGE = [
    ("policy twice", "outboundTrafficPolicy: {}\nb: c\noutboundTrafficPolicy: {mode: ALLOW_ANY}\n",
     "outboundTrafficPolicy stands 2 times in the mesh config (lines 1, 3)"),
    ("mode twice", "outboundTrafficPolicy:\n  mode: 0\n  mode: ALLOW_ANY\n", "outboundTrafficPolicy.mode stands 2 times in the mesh config (lines 2, 3)"),
    ("both names", "outboundTrafficPolicy: {mode: 1}\noutbound_traffic_policy: {mode: 0}\n", "stands 2 times in the mesh config (lines 1, 2)"),
    ("mode is an alias", "x: &m ALLOW_ANY\noutboundTrafficPolicy: {mode: *m}\n", "outboundTrafficPolicy.mode of the mesh config is shared through an"),
    ("mode has an alias", "outboundTrafficPolicy: {mode: &m ALLOW_ANY}\nx: *m\n", "shared through an anchor and an alias (line 1)"),
    ("policy is an alias", "\nx: &p {mode: ALLOW_ANY}\noutboundTrafficPolicy: *p\n", "shared through an anchor and an alias (line 2)"),
    ("policy merged elsewhere", "outboundTrafficPolicy: &p {mode: ALLOW_ANY}\nx:\n  <<: *p\n", "shared through an anchor and an alias (line 1)"),
    ("mode merged", "x: &p {mode: ALLOW_ANY}\noutboundTrafficPolicy:\n  <<: *p\n", "outboundTrafficPolicy.mode of the mesh config comes through a merge key"),
    ("policy merged", "x: &p\n  outboundTrafficPolicy: {mode: ALLOW_ANY}\n<<: *p\n", "comes through a merge key (<<), from line 2"),
    ("merge under the mode", "x: &p {mode: 1}\noutboundTrafficPolicy:\n  mode: 0\n  <<: *p\n", "comes through a merge key (<<), from line 1"),
    ("two documents", "a: b\n---\nc: d\n", "goes on after its first YAML document (line 2)"),
    ("second document is not even YAML", "a: b\n---\n: : [\n", "goes on after its first YAML document (line 2)"),
    ("less indentation than the first key", "  a: b\nc: d\n", "goes on after its first YAML document (line 2)"),
    ("block scalar", "outboundTrafficPolicy:\n  mode: |-\n    ALLOW_ANY\n", "outboundTrafficPolicy.mode of the mesh config is a block scalar (line 2)"),
    ("number with a tag", "outboundTrafficPolicy:\n  mode: !!int '1'\n", "unusual way"),
    ("null with a tag", "outboundTrafficPolicy: !!null ''\n", "unusual way"),
    ("key without a colon", "? outboundTrafficPolicy\n", "unusual way"),
    ("the word null", "--- null\n", "unusual way"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), [pytest.param(*row[1:], id=row[0]) for row in CANNOT_CHANGE])
def test_what_cannot_be_changed_alone_is_refused(text, says):
    assert read_mode(text).mode == ALLOW_ANY
    with pytest.raises(MeshConfigError) as refusal:
        write_mode(text, REGISTRY_ONLY)
    assert says in two_lines(refusal.value)
    assert "Nothing was changed." in str(refusal.value)


@pytest.mark.parametrize("mode", ["REGISTER_ONLY", "allow_any", "", "1"])
def test_a_mode_that_istio_does_not_have_is_never_written(mode):
    with pytest.raises(MeshConfigError, match="does not exist in Istio"):
        write_mode(INSTALLED, mode)


def test_a_text_that_istiod_refuses_is_not_repaired():
    """A new mode would put a whole document in force that istiod has ignored so far."""
    with pytest.raises(MeshConfigError, match="REGISTER_ONLY"):
        write_mode("outboundTrafficPolicy:\n  mode: REGISTER_ONLY\n", REGISTRY_ONLY)
    with pytest.raises(MeshConfigError, match="REGISTER_ONLY"):
        unset_mode("outboundTrafficPolicy:\n  mode: REGISTER_ONLY\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b\noutboundTrafficPolicy:\n  mode: ALLOW_ANY\nc: d\n", "a: b\nc: d\n"),
        ("a: b\noutboundTrafficPolicy: {mode: ALLOW_ANY}\n", "a: b\n"),
        ('{"outboundTrafficPolicy": {"mode": "ALLOW_ANY"}}', "{}"),
        ('{"a": 1, "outboundTrafficPolicy": {"mode": "ALLOW_ANY"}, "b": 2}', '{"a": 1, "b": 2}'),
        ('{"a": 1, "outboundTrafficPolicy": {"mode": "ALLOW_ANY"}}', '{"a": 1}'),
    ],
)
def test_a_policy_that_is_only_a_mode_is_taken_out(text, expected):
    assert unset_mode(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "outboundTrafficPolicy:\n  mode: ALLOW_ANY # ours since 2024\n",
        "outboundTrafficPolicy:\n  # ours since 2024\n  mode: ALLOW_ANY\n",
        "outboundTrafficPolicy:\n  mode: ALLOW_ANY\n  foo: 1\n",
        "outboundTrafficPolicy: {}\n",
        "outboundTrafficPolicy:\n",
        "outboundTrafficPolicy: &p {mode: ALLOW_ANY}\n",
        "? outboundTrafficPolicy\n: mode: ALLOW_ANY\n",
        "{a: 1, # why\n outboundTrafficPolicy: {mode: ALLOW_ANY}, # why\n}",
    ],
)
def test_a_policy_that_is_not_just_a_mode_is_left_alone(text):
    with pytest.raises(MeshConfigError) as refusal:
        unset_mode(text)
    assert "is not a mode and nothing else" in two_lines(refusal.value)


def test_a_policy_that_stands_twice_is_left_alone():
    with pytest.raises(MeshConfigError, match=r"stands 2 times in the mesh config \(lines 1, 2\)"):
        unset_mode("outboundTrafficPolicy: {mode: ALLOW_ANY}\noutboundTrafficPolicy: {mode: ALLOW_ANY}\n")


def test_a_wrong_edit_is_never_returned(monkeypatch):
    text = "a: b\noutboundTrafficPolicy: {mode: ALLOW_ANY}\n"
    wrong = [
        (0, 1, "z"),  # another key, the mode as it was
        (0, len(text), "a: c\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"),  # the mode, and another value
        (0, len(text), "a: b\noutboundTrafficPolicy: {mode: REGISTRY_ONLY, foo: 1}\n"),
        (0, len(text), "a: b\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n---\n"),
        (0, len(text), "a: b\noutboundTrafficPolicy: {mode: !!int REGISTRY_ONLY}\n"),
        (0, 0, "{"),
    ]
    monkeypatch.setattr(_meshconfig, "_edits", lambda mesh, mode: iter(wrong))
    with pytest.raises(MeshConfigError, match="unusual way"):
        write_mode(text, REGISTRY_ONLY)
    right = (0, len(text), "a: b\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n")
    monkeypatch.setattr(_meshconfig, "_edits", lambda mesh, mode: iter([*wrong, right]))
    assert write_mode(text, REGISTRY_ONLY) == right[2]


def test_without_pyyaml_the_file_imports_and_says_what_is_missing(monkeypatch):
    name = _meshconfig.__name__
    monkeypatch.setitem(sys.modules, "yaml", None)
    monkeypatch.delitem(sys.modules, name)
    bare = importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, _meshconfig)
    with pytest.raises(bare.MeshConfigError, match="PyYAML is missing"):
        bare.read_mode("a: b\n")
