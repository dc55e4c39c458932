"""`spec.trainer` on a real API server, which rejects there what it would reject in the pod."""

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3

from kube import Kube, Raw, RefusedError, training_job

pytestmark = pytest.mark.usefixtures("crd")

JOBS = "/apis/ktrdr.io/v1alpha1/namespaces/default/trainingjobs"
PODS = "/api/v1/namespaces/default/pods"
IN_CONTAINER = ("image", "resources", "env")
LONG = "a" * 63


@pytest.fixture(scope="module")
def error_of(cluster: Kube) -> Iterator[Callable[[str, Raw], str]]:
    """The API server's message about a new object that it rejects as invalid; empty if it does not.

    Through `kubectl proxy`: a process for each of these requests would take most of the time.
    """
    command = ["kubectl", f"--kubeconfig={cluster.kubeconfig}", "proxy", "--port=0"]
    with subprocess.Popen(
        command, env=dict(cluster.environment), stdout=subprocess.PIPE, text=True
    ) as proxy:
        assert proxy.stdout is not None
        address = proxy.stdout.readline().split()[-1]  # Starting to serve on HOST:PORT

        def error(path: str, body: Raw) -> str:
            url = f"http://{address}{path}?dryRun=All&fieldValidation=Strict"
            answer = urllib3.request("POST", url, json=body).json()
            if answer["kind"] != "Status":
                return ""
            assert answer["reason"] == "Invalid", answer
            return str(answer["message"])

        yield error
        proxy.terminate()


def resources(**resources: Raw) -> Raw:
    return {"resources": resources}


def toleration(**toleration: Any) -> Raw:
    return {"tolerations": [toleration]}


def pod(trainer: Raw) -> Raw:
    """A pod with the fields of `spec.trainer`, as the operator copies them."""
    container = {"name": "trainer", "image": "none.invalid/none"}
    container |= {key: value for key, value in trainer.items() if key in IN_CONTAINER}
    rest = {key: value for key, value in trainer.items() if key not in IN_CONTAINER}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "any"},
        "spec": {"automountServiceAccountToken": False, "containers": [container], **rest},
    }


VALID: dict[str, Raw] = {
    "image with a port, tag and digest": {
        "image": f"registry.example.com:5000/team/ktrdr-trainer:1.0_rc.1@sha256:{'0' * 64}"
    },
    "image of one word": {"image": "trainer"},
    "image of a registry with an IPv6 address": {"image": "[fd00::1]:5000/a/b"},
    "image with an upper-case host": {"image": "Registry.example.com/a__b/c--d:V1"},
    "labels": {"nodeSelector": {"a": "", "example.com/A_b.c": "X-y_z.0", f"a.b/{LONG}": LONG}},
    "toleration of one value": toleration(key="example.com/gpu", value="a", effect="NoExecute"),
    "toleration of all taints": toleration(operator="Exists"),
    "toleration of all values": toleration(key="a", operator="Exists", value=""),
    "toleration for a time": toleration(
        key="a", operator="Exists", effect="NoExecute", tolerationSeconds=0
    ),
    "requests equal limits": resources(
        requests={"cpu": 1, "memory": "1024Mi"}, limits={"cpu": "1000m", "memory": "1Gi"}
    ),
    "requests below limits": resources(
        requests={"cpu": "0.5", "memory": "1.5Gi"}, limits={"cpu": "1.5", "memory": "2G"}
    ),
    "requests only": resources(requests={"cpu": "100m", "memory": 0, "ephemeral-storage": "1Mi"}),
    "whole numbers": resources(limits={"example.com/a": "2k", "rdma/hca": 3}),
    "huge pages": resources(limits={"cpu": 1, "hugepages-2Mi": "512Mi", "hugepages-1Gi": 0}),
    "huge pages in both": resources(
        limits={"hugepages-2Mi": "4Mi"}, requests={"hugepages-2Mi": "4096Ki", "memory": "1Gi"}
    ),
    "resource of another kubernetes.io domain": resources(
        requests={"example.kubernetes.io/a": "500m"}
    ),
    "longest domain of a resource": resources(limits={"a" * 244 + "/a": 1}),
    "longest domain of a label": {"nodeSelector": {"a" * 253 + "/a": "b"}},
    "most GPUs": resources(limits={"nvidia.com/gpu": 9999}, requests={"nvidia.com/gpu": "9999"}),
    "variable": {"env": [{"name": "_a1", "value": "Ü\n\t"}, {"name": "B"}]},
    "names": {"imagePullSecrets": [{"name": "a.b-c"}], "schedulerName": "a"},
}


@pytest.mark.parametrize("trainer", VALID.values(), ids=VALID.keys())
def test_trainer_valid_is_accepted_as_is_its_pod(
    error_of: Callable[[str, Raw], str], trainer: Raw
) -> None:
    assert error_of(JOBS, training_job(trainer=trainer)) == ""
    assert error_of(PODS, pod(trainer)) == ""


LABEL_KEY = "label and taint keys have letters, digits, '-', '_' and '.', at most 63"
LABEL_VALUE = "label and taint values have letters, digits, '-', '_' and '.', at most 63"
RESOURCE_NAME = "resource names are cpu, memory, ephemeral-storage, hugepages-SIZE (such as"
OVERCOMMIT = (
    "requests: Invalid value: requests of GPUs, other resources with a domain and huge pages must"
    " be omitted or equal to their limits"
)

INVALID: dict[str, tuple[Raw, str]] = {
    "request above limit": (
        resources(requests={"memory": "8Gi"}, limits={"memory": "8G"}),
        "resources.requests: Invalid value: requests must not be above limits; lower the request"
        " or raise the limit; got: memory 8Gi with limit 8G",
    ),
    "request above limit, as numbers": (
        resources(requests={"cpu": 2}, limits={"cpu": "1500m"}),
        "got: cpu 2 with limit 1500m",
    ),
    "request with limit 0": (
        resources(requests={"cpu": 1}, limits={"cpu": 0}),
        "got: cpu 1 with limit 0",
    ),
    "label key with a blank": (
        {"nodeSelector": {"a b": "c"}},
        f"spec.trainer.nodeSelector: Invalid value: {LABEL_KEY}",
    ),
    "label key with a line break": ({"nodeSelector": {"a\nb": "c"}}, LABEL_KEY),
    "label key without a name": ({"nodeSelector": {"a/": "c"}}, "got: a/: c"),
    "label key with two slashes": ({"nodeSelector": {"a/b/c": "d"}}, "got: a/b/c: d"),
    "label key with an upper-case domain": ({"nodeSelector": {"A/b": "c"}}, "got: A/b: c"),
    "label key too long": ({"nodeSelector": {f"{LONG}a": "c"}}, LABEL_KEY),
    "label domain too long": ({"nodeSelector": {"a" * 254 + "/b": "c"}}, LABEL_KEY),
    "label value with a blank": (
        {"nodeSelector": {"a": "b", "zone": "west 1"}},
        f"spec.trainer.nodeSelector: Invalid value: {LABEL_VALUE}, and begin and end with a letter"
        " or digit; got: zone: west 1",
    ),
    "label value that ends with a dash": ({"nodeSelector": {"a": "b-"}}, "got: a: b-"),
    "taint key": (
        toleration(key="a b", operator="Exists"),
        f'tolerations[0].key: Invalid value: "a b": {LABEL_KEY}',
    ),
    "taint value": (
        toleration(key="a", value="b c"),
        f'tolerations[0].value: Invalid value: "b c": {LABEL_VALUE}',
    ),
    "Exists with a value": (
        toleration(key="a", operator="Exists", value="b"),
        "tolerations[0].value: Invalid value: value must be omitted with operator Exists; use"
        " operator Equal",
    ),
    "no key with Equal": (
        toleration(value="b"),
        "tolerations[0].operator: Invalid value: a toleration without a key needs operator Exists",
    ),
    "empty key with Equal": (toleration(key="", operator="Equal"), "needs operator Exists"),
    "seconds without NoExecute": (
        toleration(key="a", operator="Exists", tolerationSeconds=5),
        "tolerations[0].effect: Invalid value: tolerationSeconds requires effect NoExecute",
    ),
    "seconds with another effect": (
        toleration(key="a", effect="NoSchedule", tolerationSeconds=5),
        "tolerationSeconds requires effect NoExecute",
    ),
    "plain resource name": (resources(limits={"gpu": 1}), f"{RESOURCE_NAME} hugepages-2Mi) and"),
    "storage": (resources(requests={"storage": "1Gi"}), "got: storage: 1Gi"),
    "resource name of a quota": (
        resources(limits={"requests.a.io/b": 1}),
        "got: requests.a.io/b: 1",
    ),
    "resource domain too long for a quota": (
        resources(limits={"a" * 245 + "/a": 1}),
        RESOURCE_NAME,
    ),
    "resource name with a blank": (resources(limits={"a.io/b c": 1}), "got: a.io/b c: 1"),
    "part of a device": (
        resources(limits={"example.com/device": "1500m"}),
        "limits: Invalid value: resources with a domain, such as nvidia.com/gpu, must be whole"
        " numbers; got: example.com/device: 1500m",
    ),
    "device requested without a limit": (resources(requests={"example.com/a": 1}), OVERCOMMIT),
    "device request below its limit": (
        resources(requests={"example.com/a": 1}, limits={"example.com/a": 2}),
        OVERCOMMIT,
    ),
    "huge pages requested without a limit": (
        resources(requests={"hugepages-2Mi": "2Mi", "cpu": 1}),
        OVERCOMMIT,
    ),
    "huge pages alone": (
        resources(limits={"hugepages-2Mi": "2Mi"}),
        "limits: Invalid value: huge pages need a request or limit of cpu or memory beside them",
    ),
    "huge pages indivisible": (
        resources(limits={"hugepages-2Mi": "3Mi", "cpu": 1}),
        "must be a multiple of their size, such as hugepages-2Mi: 512Mi; got: hugepages-2Mi: 3Mi",
    ),
    "huge pages without a size": (resources(limits={"hugepages-": "2Mi", "cpu": 1}), RESOURCE_NAME),
    "image with a blank at the end": (
        {"image": "trainer:1 "},
        "must be an image reference such as",
    ),
    "variable with =": ({"env": [{"name": "A=B"}]}, "names of variables have letters, digits and"),
}


@pytest.mark.parametrize(("trainer", "message"), INVALID.values(), ids=INVALID.keys())
def test_trainer_whose_pod_is_rejected_is_rejected(
    error_of: Callable[[str, Raw], str], trainer: Raw, message: str
) -> None:
    assert message in error_of(JOBS, training_job(trainer=trainer))
    assert 'Pod "any" is invalid' in error_of(PODS, pod(trainer))


STRICTER: dict[str, tuple[Raw, str]] = {
    "memory in thousandths of a byte": (
        resources(limits={"memory": "100m"}),
        "limits: Invalid value: memory and ephemeral-storage are in bytes and must be 0 or at least"
        " 1Mi; add a unit, such as 500Mi or 4Gi; got: memory: 100m",
    ),
    "memory just below 1Mi": (resources(limits={"memory": 1048575}), "got: memory: 1048575"),
    "too many GPUs": (resources(limits={"nvidia.com/gpu": 10000}), "whole numbers below 10000"),
    "memory without a unit": (resources(requests={"memory": 8}), "got: memory: 8"),
    "disk in thousandths": (
        resources(requests={"ephemeral-storage": "1000m"}),
        "got: ephemeral-storage: 1000m",
    ),
    "huge pages of a size that no node reports": (
        resources(limits={"hugepages-2097152": "2Mi", "cpu": 1}),
        RESOURCE_NAME,
    ),
    "unit that does not exist": (resources(limits={"memory": "8GB"}), "|M|Mi|G|Gi|"),
    "image with a blank": ({"image": "my trainer"}, "without blanks and with a lower-case"),
    "image with an upper-case repository": ({"image": "ghcr.io/Team/trainer"}, "lower-case"),
    "image with two dots": ({"image": "a..b"}, "must be an image reference"),
    "image with an empty tag": ({"image": "trainer:"}, "must be an image reference"),
    "image as an address": ({"image": "https://ghcr.io/a"}, "must be an image reference"),
    "pull secret": ({"imagePullSecrets": [{"name": "A"}]}, "must be a DNS subdomain"),
    "priority class": (
        {"priorityClassName": "High"},
        'priorityClassName: Invalid value: "High": must be a DNS subdomain: lower-case letters',
    ),
    "runtime class": ({"runtimeClassName": "a..b"}, "must be a DNS subdomain"),
    "scheduler": ({"schedulerName": "a b"}, "must be a DNS subdomain"),
    "variable with a dash": ({"env": [{"name": "a-b"}]}, "env[0].name: Invalid value: names of"),
    "value with a NUL": ({"env": [{"name": "A", "value": "a\0"}]}, "env[0].value in body should"),
    "value too long": ({"env": [{"name": "A", "value": "a" * 4097}]}, "may not be more than 4096"),
    "operator for numbers": (toleration(key="a", operator="Gt", value="1"), "Unsupported value"),
}


@pytest.mark.parametrize(("trainer", "message"), STRICTER.values(), ids=STRICTER.keys())
def test_trainer_that_could_not_run_is_rejected(
    error_of: Callable[[str, Raw], str], trainer: Raw, message: str
) -> None:
    assert message in error_of(JOBS, training_job(trainer=trainer))


def test_number_with_a_fraction_needs_quotes_and_explain_says_so(cluster: Kube) -> None:
    # The API server's schema has integers and strings in one field, but no fractions beside them,
    # and its message for a wrong type cannot be changed.
    with pytest.raises(RefusedError, match='must be of type integer,string: "number"'):
        cluster.create(training_job(trainer=resources(limits={"cpu": 0.5})), "--dry-run=server")
    cluster.create(training_job(trainer=resources(limits={"cpu": "0.5"})), "--dry-run=server")
    for field in ("requests", "limits"):
        text = cluster.run("explain", f"trainingjobs.ktrdr.io.spec.trainer.resources.{field}")
        assert 'in quotes ("0.5")' in " ".join(text.split())
