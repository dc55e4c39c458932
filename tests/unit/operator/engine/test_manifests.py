"""Every field of a spec and of the installation's settings, in the objects that are created."""

import json
from copy import deepcopy
from dataclasses import fields, replace
from hashlib import sha256
from typing import Any, Final, get_args

import pytest

from engine_builders import CHECKPOINT, DEFAULTS, Raw, job_raw, progress, recorded
from ktrdr_api.conditions import ConditionType as C
from ktrdr_api.conditions import Phase
from ktrdr_api.training_job import ApiModel, TrainingJobSpec
from ktrdr_operator import manifests
from ktrdr_operator.manifests import PodDefaults
from ktrdr_operator.snapshot import AttemptStart, JobView, StrategyText
from ktrdr_operator.views import view_job

TEXT: Final = "name: fx_full\n"
SPEC: Final[Raw] = {
    "strategy": {"inline": TEXT, "configMapKeyRef": {"name": "a", "key": "a.yaml"}},
    "symbols": ["EURUSD", "GBPUSD"],
    "timeframes": ["5m", "1h"],
    "startDate": "2020-01-02",
    "endDate": "2024-11-30",
    "data": {"persistentVolumeClaim": {"claimName": "bars", "subPath": "forex"}},
    "output": {"persistentVolumeClaim": {"claimName": "models", "subPath": "team-a"}},
    "trainer": {
        "image": "registry.example/trainer:1",
        "imagePullPolicy": "Always",
        "imagePullSecrets": [{"name": "mine"}],
        "resources": {
            "requests": {"cpu": 2, "memory": "4Gi"},
            "limits": {"memory": "8Gi", "nvidia.com/gpu": 2},
        },
        "env": [{"name": "OMP_NUM_THREADS", "value": "4"}],
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [
            {
                "key": "team",
                "operator": "Equal",
                "value": "a",
                "effect": "NoExecute",
                "tolerationSeconds": 60,
            }
        ],
        "priorityClassName": "batch-low",
        "runtimeClassName": "nvidia",
        "schedulerName": "volcano",
    },
    "cancel": False,
    "cancellation": {"gracePeriodSeconds": 45, "checkpoint": "Never"},
    "backoffLimit": 5,
    "disruptionLimit": 7,
    "historyLimit": 2,
    "ttlSecondsAfterFinished": 3600,
    "checkpoint": {"periodSeconds": 120},
    "progress": {"periodSeconds": 11},
}
"""Every field has a value and none but cancel its default. The CRD takes one strategy source only;
here inline is the one that counts."""
OTHER: Final[Raw] = {
    "strategy": {"inline": "name: other\n", "configMapKeyRef": {"name": "b", "key": "b.yaml"}},
    "symbols": ["USDJPY"],
    "timeframes": ["1d"],
    "startDate": "2021-01-02",
    "endDate": "2023-11-30",
    "data": {"persistentVolumeClaim": {"claimName": "bars-2", "subPath": "metals"}},
    "output": {"persistentVolumeClaim": {"claimName": "models-2", "subPath": "team-b"}},
    "trainer": {
        "image": "registry.example/trainer:2",
        "imagePullPolicy": "Never",
        "imagePullSecrets": [{"name": "yours"}],
        "resources": {"requests": {"cpu": 3}, "limits": {"amd.com/gpu": 1}},
        "env": [{"name": "MKL_NUM_THREADS", "value": "5"}],
        "nodeSelector": {"disk": "hdd"},
        "tolerations": [
            {
                "key": "group",
                "operator": "Exists",
                "value": "b",
                "effect": "NoSchedule",
                "tolerationSeconds": 61,
            }
        ],
        "priorityClassName": "batch-high",
        "runtimeClassName": "kata",
        "schedulerName": "kueue",
    },
    "cancel": True,
    "cancellation": {"gracePeriodSeconds": 46, "checkpoint": "BestEffort"},
    "backoffLimit": 6,
    "disruptionLimit": 8,
    "historyLimit": 4,
    "ttlSecondsAfterFinished": 0,
    "checkpoint": {"periodSeconds": 121},
    "progress": {"periodSeconds": 12},
}
"""Another valid value for every field."""
OPERATOR_ONLY: Final = frozenset(
    {
        "strategy.configMapKeyRef.name",  # `strategies` reads it
        "strategy.configMapKeyRef.key",
        "cancel",  # `policies`, `decide`, and the trainer, which watches its TrainingJob
        "backoffLimit",
        "disruptionLimit",
        "historyLimit",
        "ttlSecondsAfterFinished",
    }
)
"""Fields that no created object contains: the operator itself obeys them."""
INSTALLATION: Final = PodDefaults(
    image="registry.example/default:1",
    image_pull_policy="Never",
    image_pull_secrets=("chart-a", "mine"),
    labels={"team": "platform"},
    annotations={"sidecar.istio.io/inject": "false"},
    inherited_labels=("kueue.x-k8s.io/queue-name", "absent"),
    inherited_annotations=("kueue.x-k8s.io/podset-required-topology", "absent"),
    run_as_user=2000,
    fs_group=3000,
    role_kind="Role",
    role_name="trainers-of-team-a",
)


def job(spec: Raw = SPEC, *, labels: Raw | None = None, annotations: Raw | None = None) -> JobView:
    raw = job_raw(status=recorded(2))
    raw["spec"] = deepcopy(spec)
    raw["metadata"].update(labels=labels or {}, annotations=annotations or {})
    view = view_job(raw)
    assert view.unreadable == ""
    return view


def plain(**spec: Any) -> JobView:
    """A TrainingJob with the required fields and those given."""
    return view_job(job_raw(**spec))


def start(text: str = TEXT, attempt: int = 2) -> AttemptStart:
    return AttemptStart(attempt=attempt, strategy=StrategyText(text=text))


def pod_of(view: JobView, defaults: PodDefaults = DEFAULTS, text: str = TEXT) -> Raw:
    return manifests.pod(view, start(text), defaults)


def request_of(pod: Raw) -> Raw:
    found: Raw = json.loads(pod["metadata"]["annotations"]["ktrdr.io/run-request"])
    return found


OWNER: Final = {
    "apiVersion": "ktrdr.io/v1alpha1",
    "kind": "TrainingJob",
    "name": "fx",
    "uid": "uid-fx",
    "controller": True,
    "blockOwnerDeletion": True,
}
LABELS: Final = {
    "ktrdr.io/job": "fx",
    "app.kubernetes.io/name": "ktrdr",
    "app.kubernetes.io/component": "trainer",
    "app.kubernetes.io/managed-by": "ktrdr-operator",
    "app.kubernetes.io/instance": "fx",
}
REQUEST: Final = {
    "job": {"namespace": "ns", "name": "fx", "uid": "uid-fx"},
    "attempt": 2,
    "strategyFile": "strategy.yaml",
    "strategyDigest": sha256(TEXT.encode()).hexdigest(),
    "overrides": {
        "symbols": ["EURUSD", "GBPUSD"],
        "timeframes": ["5m", "1h"],
        "startDate": "2020-01-02",
        "endDate": "2024-11-30",
    },
    "dataFolder": "/data",
    "outputFolder": "/output",
    "checkpointPeriodSeconds": 120,
    "progressPeriodSeconds": 11,
    "checkpointOnCancel": "Never",
    "reporting": "kubernetes",
    "gpus": 2,
}
TOKEN_VOLUME: Final = {
    "name": "token",
    "projected": {
        "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
            {
                "configMap": {
                    "name": "kube-root-ca.crt",
                    "items": [{"key": "ca.crt", "path": "ca.crt"}],
                }
            },
        ]
    },
}
MALLOC: Final = [
    {"name": "MALLOC_MMAP_THRESHOLD_", "value": "1073741824"},
    {"name": "MALLOC_TRIM_THRESHOLD_", "value": "4294967296"},
    {"name": "MALLOC_TOP_PAD_", "value": "268435456"},
]
POD_UID: Final = {
    "name": "KTRDR_POD_UID",
    "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}},
}
LOCKED: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
COMMAND: Final = ["python", "-m", "ktrdr_trainer", "--request", "/run/ktrdr/request.json"]


def annotation_file(annotation: str, path: str) -> Raw:
    return {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}


def test_pod_of_full_spec_and_settings_has_the_wanted_manifest() -> None:
    view = job(
        labels={"kueue.x-k8s.io/queue-name": "gold", "secret": "no"},
        annotations={"kueue.x-k8s.io/podset-required-topology": "rack", "secret": "no"},
    )
    found = pod_of(view, INSTALLATION)
    assert request_of(found) == REQUEST
    del found["metadata"]["annotations"]["ktrdr.io/run-request"]
    assert found == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "fx-2-0",
            "namespace": "ns",
            "labels": {
                **LABELS,
                "team": "platform",
                "kueue.x-k8s.io/queue-name": "gold",
                "ktrdr.io/attempt": "2",
                "ktrdr.io/rank": "0",
            },
            "annotations": {
                "sidecar.istio.io/inject": "false",
                "kueue.x-k8s.io/podset-required-topology": "rack",
                "ktrdr.io/strategy": TEXT,
            },
            "ownerReferences": [OWNER],
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 45,
            "serviceAccountName": "ktrdr-trainer",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 2000,
                "runAsGroup": 2000,
                "fsGroup": 3000,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [
                {"key": "nvidia.com/gpu", "operator": "Exists"},
                {
                    "key": "team",
                    "operator": "Equal",
                    "value": "a",
                    "effect": "NoExecute",
                    "tolerationSeconds": 60,
                },
            ],
            "imagePullSecrets": [{"name": "mine"}, {"name": "chart-a"}],
            "priorityClassName": "batch-low",
            "runtimeClassName": "nvidia",
            "schedulerName": "volcano",
            "containers": [
                {
                    "name": "trainer",
                    "image": "registry.example/trainer:1",
                    "imagePullPolicy": "Always",
                    "command": COMMAND,
                    "env": [*MALLOC, POD_UID, {"name": "OMP_NUM_THREADS", "value": "4"}],
                    "resources": {
                        "requests": {"cpu": 2, "memory": "4Gi"},
                        "limits": {"memory": "8Gi", "nvidia.com/gpu": 2},
                    },
                    "securityContext": LOCKED,
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "volumeMounts": [
                        {"name": "run", "mountPath": "/run/ktrdr", "readOnly": True},
                        {
                            "name": "data",
                            "mountPath": "/data",
                            "subPath": "forex",
                            "readOnly": True,
                        },
                        {"name": "output", "mountPath": "/output", "subPath": "team-a"},
                        {
                            "name": "token",
                            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                            "readOnly": True,
                        },
                        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - in the container
                        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - likewise
                    ],
                }
            ],
            "volumes": [
                {
                    "name": "run",
                    "projected": {
                        "sources": [
                            {
                                "downwardAPI": {
                                    "items": [
                                        annotation_file("ktrdr.io/run-request", "request.json"),
                                        annotation_file("ktrdr.io/strategy", "strategy.yaml"),
                                    ]
                                }
                            }
                        ]
                    },
                },
                {
                    "name": "data",
                    "persistentVolumeClaim": {"claimName": "bars", "readOnly": True},
                },
                {"name": "output", "persistentVolumeClaim": {"claimName": "models"}},
                TOKEN_VOLUME,
                {"name": "tmp", "emptyDir": {"sizeLimit": "10Gi"}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            ],
        },
    }


def test_pod_of_minimal_spec_has_the_wanted_manifest() -> None:
    found = pod_of(plain())
    request = {
        "job": {"namespace": "ns", "name": "fx", "uid": "uid-fx"},
        "attempt": 2,
        "strategyFile": "strategy.yaml",
        "strategyDigest": sha256(TEXT.encode()).hexdigest(),
        "overrides": {},
        "dataFolder": "/data",
        "outputFolder": "/output",
        "checkpointPeriodSeconds": 300,
        "progressPeriodSeconds": 2,
        "checkpointOnCancel": "BestEffort",
        "reporting": "kubernetes",
        "gpus": 0,
    }
    assert request_of(found) == request
    spec = found["spec"]
    container = spec.pop("containers")[0]
    volumes = {volume["name"]: volume for volume in spec.pop("volumes")}
    assert spec == {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 30,
        "serviceAccountName": "ktrdr-trainer",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    assert (container["image"], container["imagePullPolicy"]) == (
        "ktrdr.io/trainer:test",
        "IfNotPresent",
    )
    assert container["env"] == [*MALLOC, POD_UID]
    assert container["resources"] == {"requests": {}, "limits": {}}
    assert container["volumeMounts"][1:3] == [
        {"name": "data", "mountPath": "/data", "readOnly": True},
        {"name": "output", "mountPath": "/output"},
    ]
    # One claim for both: the volume itself has to stay writable.
    assert volumes["data"] == {
        "name": "data",
        "persistentVolumeClaim": {"claimName": "market-data"},
    }


def paths(model: type[ApiModel], prefix: str = "") -> list[str]:
    """Camel-case path of every leaf of a model; a list's first element stands for all."""
    found = []
    for field in model.model_fields.values():
        path = f"{prefix}{field.alias}"
        nested = submodel(field.annotation)
        found += [path] if nested is None else paths(nested, f"{path}.")
    return found


def submodel(annotation: Any) -> type[ApiModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return annotation
    return next((m for part in get_args(annotation) if (m := submodel(part)) is not None), None)


def changed(path: str) -> Raw:
    """SPEC with one leaf as in OTHER."""
    spec = deepcopy(SPEC)
    target: Any = spec
    source: Any = OTHER
    *parents, leaf = path.split(".")
    for name in parents:
        target, source = target.setdefault(name, {}), source[name]
        if isinstance(target, list):
            target, source = target[0], source[0]
    assert target.get(leaf) != source[leaf], f"{path}: two values that differ are needed"
    target[leaf] = source[leaf]
    return spec


def objects(spec: Raw) -> Raw:
    """All that is created for an attempt with this spec."""
    view = job(spec)
    text = spec["strategy"]["inline"]
    return {
        "pod": pod_of(view, INSTALLATION, text),
        "config map": manifests.strategy_config_map(view, StrategyText(text=text)),
    }


@pytest.mark.parametrize("path", paths(TrainingJobSpec))
def test_manifests_differ_when_any_spec_field_does(path: str) -> None:
    is_obeyed_here = objects(changed(path)) != objects(SPEC)
    assert is_obeyed_here == (path not in OPERATOR_ONLY)


def test_manifests_full_spec_has_no_field_at_its_default() -> None:
    """So that the literals above are about every field."""
    view = job().spec
    given = view.model_dump(by_alias=True, exclude_defaults=True, mode="json")
    missing = [path for path in paths(TrainingJobSpec) if not has(given, path)]
    assert missing == ["cancel"]


def has(found: Any, path: str) -> bool:
    for name in path.split("."):
        found = found[0] if isinstance(found, list | tuple) else found
        if name not in found:
            return False
        found = found[name]
    return True


@pytest.mark.parametrize("field", [field.name for field in fields(PodDefaults)])
def test_manifests_differ_when_any_setting_does(field: str) -> None:
    view = job(
        {**SPEC, "trainer": {}},
        labels={"kueue.x-k8s.io/queue-name": "gold"},
        annotations={"kueue.x-k8s.io/podset-required-topology": "rack"},
    )

    def found(defaults: PodDefaults) -> tuple[Raw, Raw]:
        return pod_of(view, defaults), manifests.trainer_role_binding("ns", defaults)

    other = replace(INSTALLATION, **{field: getattr(DEFAULTS, field)})
    assert other != INSTALLATION
    assert found(other) != found(INSTALLATION)


NO_HOST: Final = ("hostNetwork", "hostPID", "hostIPC")
PSS_VOLUMES: Final = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)
"""Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/, Restricted."""


@pytest.mark.parametrize(
    "defaults", [DEFAULTS, INSTALLATION, replace(DEFAULTS, run_as_user=None, fs_group=None)]
)
@pytest.mark.parametrize("spec", [SPEC, OTHER], ids=["full", "other"])
def test_pod_meets_the_restricted_pod_security_standard(spec: Raw, defaults: PodDefaults) -> None:
    pod = pod_of(job({**spec, "strategy": SPEC["strategy"]}), defaults)["spec"]
    assert [name for name in NO_HOST if name in pod] == []
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= PSS_VOLUMES
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context.get("runAsUser") != 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {"sysctls", "seLinuxOptions", "appArmorProfile", "windowsOptions"} & set(
        context
    ) == set()
    assert [container["name"] for container in pod["containers"]] == ["trainer"]
    assert "initContainers" not in pod
    container = pod["containers"][0]
    assert container["securityContext"] == LOCKED
    assert "ports" not in container
    assert container["image"]


@pytest.mark.parametrize(
    ("user", "group", "want"),
    [
        (None, None, {}),
        (None, 7, {"fsGroup": 7, "fsGroupChangePolicy": "OnRootMismatch"}),
        (7, None, {"runAsUser": 7, "runAsGroup": 7}),
    ],
    ids=["neither", "group only", "user only"],
)
def test_pod_without_user_and_group_leaves_them_to_the_cluster(
    user: int | None, group: int | None, want: Raw
) -> None:
    defaults = replace(DEFAULTS, run_as_user=user, fs_group=group)
    fixed = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod_of(plain(), defaults)["spec"]["securityContext"] == {**fixed, **want}


@pytest.mark.parametrize(
    ("limits", "want", "gpus"),
    [
        ({}, [], 0),
        ({"cpu": 2, "memory": "1Gi"}, [], 0),
        ({"nvidia.com/gpu": 0}, [], 0),
        ({"nvidia.com/gpu": "0"}, [], 0),
        ({"nvidia.com/gpu": 1}, ["nvidia.com/gpu"], 1),
        ({"nvidia.com/gpu": "3"}, ["nvidia.com/gpu"], 3),
        ({"nvidia.com/gpu.shared": 1}, ["nvidia.com/gpu.shared", "nvidia.com/gpu"], 1),
        ({"nvidia.com/mig-1g.5gb": 2}, ["nvidia.com/mig-1g.5gb", "nvidia.com/gpu"], 2),
        (
            {"nvidia.com/mig-1g.5gb": 2, "nvidia.com/mig-3g.20gb": 1},
            ["nvidia.com/mig-1g.5gb", "nvidia.com/gpu", "nvidia.com/mig-3g.20gb"],
            3,
        ),
        ({"amd.com/gpu": 1}, ["amd.com/gpu"], 1),
        ({"example.com/fpga": 1}, [], 0),
    ],
    ids=[
        "nothing",
        "no gpu",
        "zero",
        "zero as text",
        "one",
        "three as text",
        "shared",
        "mig",
        "two kinds of mig",
        "amd",
        "another device",
    ],
)
def test_pod_tolerates_only_taints_of_its_gpus(limits: Raw, want: list[str], gpus: int) -> None:
    view = plain(trainer={"resources": {"limits": limits}})
    assert view.unreadable == ""
    found = pod_of(view)
    keys = [{"key": key, "operator": "Exists"} for key in want]
    assert found["spec"].get("tolerations", []) == keys
    assert request_of(found)["gpus"] == gpus


def test_pod_toleration_of_user_is_kept_beside_that_of_the_gpu() -> None:
    own = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    limits = {"nvidia.com/gpu": 1}
    view = plain(trainer={"resources": {"limits": limits}, "tolerations": [own]})
    want = [{"key": "nvidia.com/gpu", "operator": "Exists"}, own]
    assert pod_of(view)["spec"]["tolerations"] == want


CLAIM_A: Final = {"persistentVolumeClaim": {"claimName": "a"}}
CLAIM_B: Final = {"persistentVolumeClaim": {"claimName": "b"}}


@pytest.mark.parametrize(
    ("data", "output", "want"),
    [
        (CLAIM_A, CLAIM_B, {"claimName": "a", "readOnly": True}),
        (CLAIM_A, CLAIM_A, {"claimName": "a"}),
        (
            {"persistentVolumeClaim": {"claimName": "a", "subPath": "bars"}},
            {"persistentVolumeClaim": {"claimName": "a", "subPath": "models"}},
            {"claimName": "a"},
        ),
    ],
    ids=["two claims", "one claim", "two folders of one claim"],
)
def test_pod_data_volume_is_read_only_unless_it_is_the_output_volume(
    data: Raw, output: Raw, want: Raw
) -> None:
    pod = pod_of(plain(data=data, output=output))["spec"]
    volumes = {volume["name"]: volume.get("persistentVolumeClaim") for volume in pod["volumes"]}
    assert volumes["data"] == want
    assert "readOnly" not in volumes["output"]
    mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["data"]["readOnly"] is True
    assert "readOnly" not in mounts["output"]


@pytest.mark.parametrize(("given", "want"), [(0, 1), (1, 1), (3600, 3600)])
def test_pod_grace_period_is_that_of_cancellation_but_at_least_a_second(
    given: int, want: int
) -> None:
    """0 would make every delete of the pod a forced one: the node may still run its process."""
    view = plain(cancellation={"gracePeriodSeconds": given})
    assert pod_of(view)["spec"]["terminationGracePeriodSeconds"] == want


def test_pod_labels_of_chart_and_user_do_not_replace_the_operators() -> None:
    keys = (*LABELS, "ktrdr.io/attempt", "ktrdr.io/rank")
    ours = ("ktrdr.io/run-request", "ktrdr.io/strategy")
    view = job(labels=dict.fromkeys(keys, "user"), annotations=dict.fromkeys(ours, "user"))
    hostile = replace(
        INSTALLATION,
        labels=dict.fromkeys(keys, "chart"),
        annotations=dict.fromkeys(ours, "chart"),
        inherited_labels=keys,
        inherited_annotations=ours,
    )
    metadata = pod_of(view, hostile)["metadata"]
    assert metadata["labels"] == {**LABELS, "ktrdr.io/attempt": "2", "ktrdr.io/rank": "0"}
    assert json.loads(metadata["annotations"].pop("ktrdr.io/run-request")) == REQUEST
    assert metadata["annotations"] == {"ktrdr.io/strategy": TEXT}


def test_pod_inherited_label_replaces_that_of_the_chart() -> None:
    defaults = replace(INSTALLATION, labels={"team": "chart"}, inherited_labels=("team",))
    assert pod_of(job(labels={"team": "user"}), defaults)["metadata"]["labels"]["team"] == "user"
    assert pod_of(job(), defaults)["metadata"]["labels"]["team"] == "chart"


@pytest.mark.parametrize(
    ("own", "chart", "want"),
    [
        ([], (), None),
        ([], ("a",), ["a"]),
        (["b"], (), ["b"]),
        (["b", "a"], ("a", "c", "b"), ["b", "a", "c"]),
        (["a", "a"], ("a",), ["a"]),
    ],
)
def test_pod_pull_secrets_of_job_and_chart_are_listed_once(
    own: list[str], chart: tuple[str, ...], want: list[str] | None
) -> None:
    view = plain(trainer={"imagePullSecrets": [{"name": name} for name in own]})
    found = pod_of(view, replace(DEFAULTS, image_pull_secrets=chart))["spec"]
    expected = None if want is None else [{"name": name} for name in want]
    assert found.get("imagePullSecrets") == expected


LIMIT: Final = 8192
INLINE: Final = {"inline": "x"}
REFERENCE: Final = {"configMapKeyRef": {"name": "strategies", "key": "fx.yaml"}}


@pytest.mark.parametrize(
    ("source", "text", "want"),
    [
        (INLINE, "x" * LIMIT, True),
        (INLINE, "x" * (LIMIT + 1), False),
        (INLINE, "ü" * (LIMIT // 2), True),
        (INLINE, "ü" * (LIMIT // 2) + "x", False),
        (REFERENCE, "x", False),
    ],
    ids=["at the limit", "a byte more", "two-byte letters", "two-byte letters, a byte more", "ref"],
)
def test_pod_strategy_is_an_annotation_or_in_the_config_map_of_the_job(
    source: Raw, text: str, want: bool
) -> None:
    pod = pod_of(plain(strategy=source), text=text)
    annotations = pod["metadata"]["annotations"]
    assert annotations.get("ktrdr.io/strategy") == (text if want else None)
    request = annotation_file("ktrdr.io/run-request", "request.json")
    strategy = annotation_file("ktrdr.io/strategy", "strategy.yaml")
    stored = {
        "configMap": {
            "name": "fx-uid-fx-strategy",
            "items": [{"key": "strategy.yaml", "path": "strategy.yaml"}],
        }
    }
    inside = [{"downwardAPI": {"items": [request, strategy]}}]
    outside = [{"downwardAPI": {"items": [request]}}, stored]
    sources = next(v["projected"]["sources"] for v in pod["spec"]["volumes"] if v["name"] == "run")
    assert sources == (inside if want else outside)
    assert request_of(pod)["strategyDigest"] == sha256(text.encode()).hexdigest()


def test_pod_of_stored_strategy_has_the_known_digest() -> None:
    stored = StrategyText(digest="a" * 64, is_stored=True)
    pod = manifests.pod(plain(strategy=REFERENCE), AttemptStart(3, stored), DEFAULTS)
    assert request_of(pod)["strategyDigest"] == "a" * 64
    assert "ktrdr.io/strategy" not in pod["metadata"]["annotations"]


def test_pod_annotations_of_the_largest_spec_stay_below_the_limit_of_the_server() -> None:
    """256 KiB for all annotations of an object; the strategy of 64 KiB is not among them."""
    symbols = [f"SYMBOL{number:03}{'X' * 20}" for number in range(256)]
    view = plain(strategy={"inline": "x" * LIMIT}, symbols=symbols)
    annotations = pod_of(view, text="x" * LIMIT)["metadata"]["annotations"]
    assert sum(len(key) + len(value) for key, value in annotations.items()) < 64 * 1024


def test_strategy_config_map_has_the_wanted_manifest() -> None:
    assert manifests.strategy_config_map(job(), StrategyText(text=TEXT)) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "fx-uid-fx-strategy",
            "namespace": "ns",
            "labels": LABELS,
            "ownerReferences": [OWNER],
        },
        "immutable": True,
        "data": {"strategy.yaml": TEXT},
    }


SHARED: Final = {
    "name": "ktrdr-trainer",
    "namespace": "team-a",
    "labels": {
        "app.kubernetes.io/name": "ktrdr",
        "app.kubernetes.io/component": "trainer",
        "app.kubernetes.io/managed-by": "ktrdr-operator",
    },
}


def test_trainer_account_has_the_wanted_manifest() -> None:
    assert manifests.trainer_account("team-a") == {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": SHARED,
        "automountServiceAccountToken": False,
    }


@pytest.mark.parametrize(
    ("defaults", "kind", "name"),
    [(DEFAULTS, "ClusterRole", "ktrdr-trainer"), (INSTALLATION, "Role", "trainers-of-team-a")],
    ids=["cluster", "namespaced"],
)
def test_trainer_role_binding_has_the_wanted_manifest(
    defaults: PodDefaults, kind: str, name: str
) -> None:
    group = "rbac.authorization.k8s.io"
    assert manifests.trainer_role_binding("team-a", defaults) == {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": SHARED,
        "roleRef": {"apiGroup": group, "kind": kind, "name": name},
        "subjects": [
            {"kind": "ServiceAccount", "name": "ktrdr-trainer", "namespace": "team-a"},
        ],
    }


REPORT: Final = progress(checkpoint=CHECKPOINT)


@pytest.mark.parametrize("phase", Phase)
def test_status_patch_has_progress_of_finished_jobs_only(
    phase: Phase,
) -> None:
    raw = job_raw(status=recorded(1, C.RUNNING, progress=REPORT, phase=phase.value))
    raw["metadata"]["resourceVersion"] = "77"
    view = view_job(raw)
    found = manifests.status_patch(view, view.status)
    is_final = phase in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)
    assert found["status"].get("progress") == (shown(REPORT) if is_final else None)
    del found["status"]
    assert found == {
        "apiVersion": "ktrdr.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "fx", "namespace": "ns", "resourceVersion": "77"},
    }


def shown(report: Raw) -> Raw:
    """A report with the defaults of what it leaves out."""
    empty = {"epoch": "", "batch": "", "eta": "", "loss": "", "progress": ""}
    defaults = {"percentage": 0, "step": 0, "metrics": [], "message": "", "display": empty}
    return {**defaults, **report}


def test_status_patch_has_every_field_of_the_status_that_is_set() -> None:
    status = recorded(
        3,
        C.RUNNING,
        retries=2,
        disruptions=4,
        disruptionsSinceCheckpoint=1,
        gpus=1,
        host="node-1",
        message="Trainer is running",
        startTime="2026-01-01T11:00:00Z",
        retryTime="2026-01-01T11:30:00Z",
        reportPeriodSeconds=5,
        checkpoint=CHECKPOINT,
        warnings=["12 rows dropped"],
        waiting={
            "reason": "FailedCreate",
            "message": "quota",
            "since": "2026-01-01T11:00:00Z",
            "retryTime": "2026-01-01T11:30:00Z",
        },
    )
    view = view_job(job_raw(status=status))
    assert manifests.status_patch(view, view.status)["status"] == status


def test_pod_name_and_labels_have_attempt_and_rank() -> None:
    found = manifests.pod(plain(), start(attempt=12), DEFAULTS, rank=3)["metadata"]
    assert found["name"] == "fx-12-3"
    assert (found["labels"]["ktrdr.io/attempt"], found["labels"]["ktrdr.io/rank"]) == ("12", "3")
