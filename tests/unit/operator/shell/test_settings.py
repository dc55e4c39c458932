import json
import os
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ktrdr_operator.settings import PREFIX, Settings, describe_problems

MINIMUM = {"TRAINER_IMAGE": "trainer:1"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def read(**variables: str) -> Settings:
    """Settings from these variables; those required have a value unless one is given."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (MINIMUM | variables).items():
            environment.setenv(PREFIX + name, value)
        return Settings()


def problems(**variables: str) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        read(**variables)
    return describe_problems(caught.value)


def test_settings_from_little_environment_have_defaults() -> None:
    assert read().model_dump() == {
        "trainer_image": "trainer:1",
        "trainer_image_pull_policy": "IfNotPresent",
        "trainer_image_pull_secrets": (),
        "trainer_pod_labels": {},
        "trainer_pod_annotations": {},
        "trainer_inherited_labels": ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"),
        "trainer_inherited_annotations": (
            "kueue.x-k8s.io/podset-required-topology",
            "kueue.x-k8s.io/podset-preferred-topology",
        ),
        "trainer_run_as_user": 10001,
        "trainer_fs_group": 10001,
        "trainer_role_kind": "ClusterRole",
        "trainer_role_name": "ktrdr-trainer",
        "watch_namespaces": (),
        "workers": 24,
        "log_level": "INFO",
        "log_format": "json",
        "http_port": 8080,
        "resync_seconds": 300,
        "report_writes_per_second": 60,
        "report_bytes_per_second": 1_000_000,
        "no_report_seconds": 300,
        "leader_election": False,
        "lease_name": "ktrdr-operator",
        "lease_namespace": "",
        "image_pull_grace_seconds": 300,
        "retry_backoff_base_seconds": 10,
        "retry_backoff_cap_seconds": 360,
    }
    assert read().namespaces() == (None,)


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("WATCH_NAMESPACES", "a, b,,a", ("a", "b")),
        ("TRAINER_IMAGE_PULL_SECRETS", "registry,my.registry", ("registry", "my.registry")),
        ("TRAINER_INHERITED_LABELS", "team,example.com/cost", ("team", "example.com/cost")),
        ("TRAINER_INHERITED_LABELS", ",", ()),
        ("TRAINER_INHERITED_ANNOTATIONS", ",", ()),
        ("TRAINER_POD_LABELS", '{"team": "quant", "a.b/c": ""}', {"team": "quant", "a.b/c": ""}),
        ("TRAINER_POD_LABELS", "{}", {}),
        ("TRAINER_POD_ANNOTATIONS", '{"a/b": "any text: {}"}', {"a/b": "any text: {}"}),
        ("TRAINER_RUN_AS_USER", "none", None),
        ("TRAINER_RUN_AS_USER", "1000650000", 1000650000),
        ("TRAINER_FS_GROUP", "none", None),
        ("TRAINER_FS_GROUP", "0", 0),
        ("TRAINER_ROLE_KIND", "Role", "Role"),
        ("LEASE_NAME", "team-a.operator", "team-a.operator"),
        ("REPORT_BYTES_PER_SECOND", "2.5e6", 2_500_000),
        ("NO_REPORT_SECONDS", "60", 60),
    ],
)
def test_settings_parse(name: str, value: str, want: object) -> None:
    assert getattr(read(**{name: value}), name.lower()) == want


def test_settings_namespaces_are_the_scopes_to_watch() -> None:
    assert read(WATCH_NAMESPACES="a,b").namespaces() == ("a", "b")


def test_settings_empty_variable_counts_as_unset() -> None:
    empty = {name.upper(): "" for name in Settings.model_fields if name != "trainer_image"}
    assert read(**empty) == read()


OBJECT = 'expected a JSON object of strings such as {"team": "quant"}'
KEY = "expected a label or annotation key such as example.com/team"


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("TRAINER_IMAGE", "", "not set, and it has no default; set it"),
        ("WORKERS", "0", "input should be greater than or equal to 1, got '0'"),
        ("WORKERS", "129", "input should be less than or equal to 128, got '129'"),
        ("LOG_FORMAT", "xml", "input should be 'json' or 'text', got 'xml'"),
        ("HTTP_PORT", "65536", "input should be less than or equal to 65535, got '65536'"),
        ("TRAINER_ROLE_KIND", "role", "input should be 'ClusterRole' or 'Role', got 'role'"),
        ("RESYNC_SECONDS", "inf", "input should be a finite number, got 'inf'"),
        ("RESYNC_SECONDS", "0", "input should be greater than 0, got '0'"),
        ("REPORT_WRITES_PER_SECOND", "0", "input should be greater than 0, got '0'"),
        ("REPORT_BYTES_PER_SECOND", "-1", "input should be greater than 0, got '-1'"),
        ("NO_REPORT_SECONDS", "nan", "input should be a finite number, got 'nan'"),
        ("TRAINER_RUN_AS_USER", "root", "expected an integer, or none to leave the choice to the"),
        ("TRAINER_RUN_AS_USER", "0", "input should be greater than or equal to 1, got '0'"),
        ("TRAINER_FS_GROUP", "2147483648", "input should be less than or equal to 2147483647"),
        ("TRAINER_FS_GROUP", "-1", "input should be greater than or equal to 0, got '-1'"),
        ("WATCH_NAMESPACES", "a,B", "expected the name of a namespace, got 'B'"),
        ("LEASE_NAMESPACE", "a b", "expected the name of a namespace, got 'a b'"),
        ("LEASE_NAME", "A", "expected a DNS subdomain such as my-name, got 'A'"),
        ("TRAINER_ROLE_NAME", "-a", "expected a DNS subdomain such as my-name, got '-a'"),
        ("TRAINER_IMAGE_PULL_SECRETS", "a,b_c", "expected a DNS subdomain such as my-name"),
        ("TRAINER_INHERITED_LABELS", "a b", f"{KEY}, got 'a b'"),
        ("TRAINER_INHERITED_LABELS", "a/", f"{KEY}, got 'a/'"),
        ("TRAINER_INHERITED_ANNOTATIONS", "/a", f"{KEY}, got '/a'"),
        ("TRAINER_INHERITED_LABELS", "ktrdr.io/job", "does not set itself, got 'ktrdr.io/job'"),
        ("TRAINER_POD_LABELS", "team=quant", f"{OBJECT}: Expecting value"),
        ("TRAINER_POD_LABELS", '["a"]', f"{OBJECT}, with every value in quotes, got"),
        ("TRAINER_POD_LABELS", '{"a": 1}', f"{OBJECT}, with every value in quotes, got"),
        ("TRAINER_POD_LABELS", '{"a": "b c"}', "expected a label value of at most 63 letters"),
        ("TRAINER_POD_LABELS", json.dumps({"a": "x" * 64}), "expected a label value of at most 63"),
        ("TRAINER_POD_LABELS", '{"a b": ""}', f"{KEY}, got 'a b'"),
        ("TRAINER_POD_LABELS", '{"ktrdr.io/attempt": "1"}', "the operator does not set itself"),
        ("TRAINER_POD_LABELS", '{"app.kubernetes.io/name": "x"}', "does not set itself"),
        ("TRAINER_POD_ANNOTATIONS", "null", f"{OBJECT}, with every value in quotes"),
    ],
)
def test_settings_wrong_value_is_described_with_variable_value_and_remedy(
    name: str, value: str, want: str
) -> None:
    (problem,) = problems(**{name: value})
    assert problem.startswith(f"KTRDR_{name}: ")
    assert want in problem
    assert problem.count("got ") == (0 if name == "TRAINER_IMAGE" else 1)
    assert re.search("; (set it|correct it(, or unset it( for the default .+)?)?)$", problem)


def test_settings_remedy_names_the_default() -> None:
    (problem,) = problems(TRAINER_INHERITED_LABELS="a b")
    labels = "kueue.x-k8s.io/queue-name,kueue.x-k8s.io/priority-class"
    assert problem.endswith(f"; correct it, or unset it for the default {labels}")
    assert problems(TRAINER_IMAGE="x" * 513)[0].endswith("...; correct it")
    assert problems(LEADER_ELECTION="maybe")[0].endswith("unset it for the default False")
    assert problems(WATCH_NAMESPACES="A")[0].endswith("; correct it, or unset it")


def test_settings_with_several_problems_name_them_all() -> None:
    found = problems(WORKERS="many", LOG_LEVEL="LOUD", TRAINER_IMAGE="")
    assert sorted(problem.split(":")[0] for problem in found) == [
        "KTRDR_LOG_LEVEL",
        "KTRDR_TRAINER_IMAGE",
        "KTRDR_WORKERS",
    ]


def test_settings_election_without_a_namespace_for_the_lease_is_described() -> None:
    (problem,) = problems(LEADER_ELECTION="true")
    assert "KTRDR_LEADER_ELECTION is true, but KTRDR_LEASE_NAMESPACE is not set; set it" in problem
    assert read(LEADER_ELECTION="true", LEASE_NAMESPACE="ns").leader_election


# What an environment variable can hold.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)
names = st.sampled_from(list(Settings.model_fields))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names, st.one_of(texts, st.dictionaries(texts, texts, max_size=3).map(json.dumps)))
def test_settings_whatever_a_variable_holds_is_taken_or_described(name: str, value: str) -> None:
    try:
        read(**{name.upper(): value})
    except ValidationError as invalid:
        for problem in describe_problems(invalid):
            assert f"KTRDR_{name.upper()}" in problem
            assert len(problem) < 600


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.from_regex(r"(example\.com/)?[a-z]([a-z.-]{0,5}[a-z])?", fullmatch=True),
        st.from_regex(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,5}[A-Za-z0-9])?)?", fullmatch=True),
        max_size=4,
    )
)
def test_settings_labels_survive_their_way_through_json(labels: dict[str, Any]) -> None:
    assert read(TRAINER_POD_LABELS=json.dumps(labels)).trainer_pod_labels == labels


def test_settings_every_field_says_what_it_does() -> None:
    assert all(field.description for field in Settings.model_fields.values())
