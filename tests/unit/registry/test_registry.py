"""Versions never change, aliases move atomically, gates hold, and every error says what there is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from doubles import publish, publish_trained
from tunewright.artifacts import Store
from tunewright.errors import GateRefused, RegistryError, StoreError
from tunewright.registry import Registry

MISSED = {"name": "min_exact_match", "value": 0.4, "needed": 0.85, "passed": False}
PASSED = {"name": "min_exact_match", "value": 0.9, "needed": 0.85, "passed": True}


@pytest.fixture
def registry(tmp_store: Store) -> Registry:
    return Registry(tmp_store)


@pytest.fixture
def three(registry: Registry) -> Registry:
    """desk@v1, desk@v2, desk@v3."""
    for n in (1, 2, 3):
        registry.register("desk", *publish_trained(registry.store, n), run="r")
    return registry


def test_a_version_names_what_it_was_made_of(registry):
    train, evaluation = publish_trained(registry.store)
    version = registry.register("desk", train, evaluation, run="monday")
    assert (version.name, version.number, version.run) == ("desk@v1", 1, "monday")
    assert (version.train, version.evaluation) == (train.ref, evaluation.ref)
    assert version.base == train.manifest.parents["base"]
    assert version.facts == {"train": train.facts, "evaluation": evaluation.facts}
    assert registry.versions("desk") == [version]
    assert registry.models() == ["desk"]


def test_registering_the_same_artifacts_again_gives_the_same_version(registry):
    made = publish_trained(registry.store)
    first = registry.register("desk", *made, run="monday")
    assert registry.register("desk", *made, run="tuesday") == first
    assert registry.versions("desk") == [first]


def test_another_evaluation_of_the_same_weights_is_another_version(registry):
    train, strict = publish_trained(registry.store, gates=[MISSED])
    lenient = publish(registry.store, "evaluation", {"gates": [PASSED]}, {"train": train.ref}, n="lenient")
    refused = registry.register("desk", train, strict, "r")
    allowed = registry.register("desk", train, lenient, "r")
    assert (refused.number, allowed.number) == (1, 2)
    assert registry.promote("desk", "prod", 2, "ann", "gates were wrong").number == 2


def test_a_registered_version_is_never_written_again(registry):
    registry.register("desk", *publish_trained(registry.store, 1), "r")
    path = registry.root / "desk" / "versions" / "v1.json"
    before = path.read_bytes(), path.stat().st_mtime_ns
    registry.register("desk", *publish_trained(registry.store, 2), "r")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["v1.json", "v2.json"]


def test_processes_that_register_at_once_get_different_numbers(registry):
    refs = [[a.ref for a in publish_trained(registry.store, n)] for n in range(1, 13)]
    script = (
        "import json, sys\n"
        "from tunewright.artifacts import Store\n"
        "from tunewright.registry import Registry\n"
        "store = Store(sys.argv[1])\n"
        "pairs = [[store.load(r) for r in pair] for pair in json.loads(sys.argv[2])]\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(json.dumps([Registry(store).register('desk', *pair, run='r').number for pair in pairs]))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(registry.store.root), json.dumps(part)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # The last process registers what the first does: both must be told the same versions.
        for part in (refs[:4], refs[4:8], refs[8:], refs[:4])
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    numbers = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert numbers[0] == numbers[3]
    assert sorted(numbers[0] + numbers[1] + numbers[2]) == list(range(1, 13))


def test_only_a_trained_artifact_becomes_a_version(registry):
    data = publish(registry.store, "data")
    with pytest.raises(RegistryError, match=r"data/.* is not a trained model"):
        registry.register("desk", data, data, "r")


@pytest.mark.parametrize("name", ["", "Desk", "../x", "a/b", "-a", "a" * 65, "a@b", "v3", "base", "a\n"])
def test_a_bad_name_is_refused(registry, name):
    made = publish_trained(registry.store)
    with pytest.raises(RegistryError, match="name"):
        registry.register(name, *made, run="r")
    registry.register("desk", *made, run="r")
    with pytest.raises(RegistryError, match="name"):
        registry.promote("desk", name, 1, "ann", "")


def test_an_alias_moves_and_history_tells_it(three):
    three.promote("desk", "prod", 1, "ann", "first")
    three.promote("desk", "prod", 3, "ben", "better")
    three.promote("desk", "canary", 2, "ann", "look")
    assert three.aliases("desk") == {"canary": 2, "prod": 3}
    told = [(h["alias"], h["from"], h["to"], h["by"], h["reason"]) for h in three.history("desk")]
    assert told == [
        ("prod", None, 1, "ann", "first"),
        ("prod", 1, 3, "ben", "better"),
        ("canary", None, 2, "ann", "look"),
    ]


def test_promoting_what_is_already_there_records_nothing(three):
    three.promote("desk", "prod", 1, "ann", "first")
    three.promote("desk", "prod", 1, "ann", "again")
    assert len(three.history("desk")) == 1
    with pytest.raises(RegistryError, match="has always been v1"):
        three.rollback("desk", "prod")


def test_rollback_goes_back_step_by_step_to_the_first(three):
    for number in (1, 2, 3):
        three.promote("desk", "prod", number, "ann", "")
    assert three.rollback("desk", "prod").number == 2
    assert three.rollback("desk", "prod", "ann", "slow").number == 1
    assert three.aliases("desk") == {"prod": 1}
    with pytest.raises(RegistryError, match=r"desk@prod has always been v1"):
        three.rollback("desk", "prod")
    assert [h["to"] for h in three.history("desk")] == [1, 2, 3, 2, 1]


def test_a_missed_gate_refuses_promotion_and_says_the_figures(registry):
    registry.register("desk", *publish_trained(registry.store, 1, [MISSED, PASSED]), "r")
    with pytest.raises(
        GateRefused, match=r"desk@v1 may not become prod: min_exact_match is 0.4, 0.85 is needed$"
    ):
        registry.promote("desk", "prod", 1, "ann", "")
    assert registry.aliases("desk") == {}
    registry.promote("desk", "prod", 1, "ann", "the customer waits", force=True)
    assert registry.aliases("desk") == {"prod": 1}
    assert registry.history("desk")[0]["forced"] is True


@pytest.mark.parametrize("ref", ["desk@v2", "desk@prod", "prod"])
def test_resolve_reads_every_way_to_write_a_version(three, ref):
    three.promote("desk", "prod", 2, "ann", "")
    assert three.resolve(ref).name == "desk@v2"
    assert three.resolve("v1", default_model="desk").name == "desk@v1"


def test_a_default_model_settles_an_alias_of_several(three):
    three.register("other", *publish_trained(three.store, 9), run="r")
    three.promote("desk", "prod", 2, "ann", "")
    three.promote("other", "prod", 1, "ann", "")
    assert three.resolve("prod", default_model="other").name == "other@v1"
    with pytest.raises(RegistryError, match=r"more than one version: desk@prod, other@prod"):
        three.resolve("prod")


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("desk@v9", "desk@v9 does not exist; versions: desk@v1, desk@v2, desk@v3"),
        ("desk@nope", "desk has no alias nope; aliases: prod (v1); versions: desk@v1, desk@v2, desk@v3"),
        ("nope@v1", "there is no model nope; registered models: desk"),
        ("nope@prod", "there is no model nope; registered models: desk"),
        ("canary", "no model has the alias canary; models: desk"),
        ("v1", "v1 of which model? Write MODEL@v1; models: desk"),
        ("@prod", "names no model"),
        ("desk@", "alias name ''"),
        ("../../x@v1", "model name '../../x'"),
    ],
)
def test_what_cannot_be_resolved_names_what_there_is(three, ref, words):
    three.promote("desk", "prod", 1, "ann", "")
    with pytest.raises(RegistryError) as caught:
        three.resolve(ref)
    assert words in str(caught.value)


def test_an_empty_registry_says_so(registry):
    with pytest.raises(RegistryError, match="registered models: none yet"):
        registry.resolve("desk@v1")


def test_a_damaged_version_is_named(three):
    path = three.root / "desk" / "versions" / "v2.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(RegistryError, match=r"v2\.json is damaged"):
        three.resolve("desk@v1")


def test_lineage_follows_the_parents_to_the_end(registry):
    train, evaluation = publish_trained(registry.store)
    version = registry.register("desk", train, evaluation, "r")
    parents = train.manifest.parents
    assert registry.lineage(version) == [train.ref, evaluation.ref, parents["base"], parents["data"]]


def test_lineage_with_a_lost_artifact_names_it(registry):
    train, evaluation = publish_trained(registry.store)
    version = registry.register("desk", train, evaluation, "r")
    data = train.manifest.parents["data"]
    registry.store.quarantine(registry.store.root / "artifacts" / data, "lost")
    with pytest.raises(StoreError, match=data):
        registry.lineage(version)
