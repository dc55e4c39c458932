"""Whatever is wrong, status says so in words that a user can act on, and nothing hangs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from demo.demo_environment import DATA_CLAIM, cluster_script
from e2e.job_namespace import JobNamespace, claim, strategy, true_conditions
from kube import Raw

ABSENT_IMAGE = "ktrdr.io/no-such-image:ever"


@dataclass(frozen=True)
class Case:
    """A TrainingJob that must fail, why, and what its message must name."""

    reason: str
    words: tuple[str, ...]
    text: str = strategy()
    spec: dict[str, Any] = field(default_factory=dict)


def data(kind: str) -> dict[str, Any]:
    return {"data": claim(DATA_CLAIM, kind)}


FAILING = {
    "unknown-key": Case("InvalidStrategy", ("training.epoch", "epochs"), strategy(epoch=5)),
    "not-yaml": Case("InvalidStrategy", ("not valid YAML", "line"), "name: [never closed"),
    "missing-symbol": Case("InvalidData", ("DOGE_1h.csv",), spec={"symbols": ["DOGE"]}),
    "bad-date": Case("InvalidData", ("BTC_1h.csv", "yesterday", "101"), spec=data("bad-date")),
    "nan-prices": Case("InvalidData", ("BTC_1h.csv", "row", "1%"), spec=data("nan-prices")),
    "negative-prices": Case(
        "InvalidData", ("BTC_1h.csv", "row", "1%"), spec=data("negative-prices")
    ),
    "empty-file": Case("InvalidData", ("BTC_1h.csv", "empty"), spec=data("empty-file")),
    "too-few-bars": Case("InvalidData", ("BTC", "1h", "200"), spec=data("too-few-bars")),
    "no-image": Case("ImagePullFailed", (ABSENT_IMAGE,), spec={"trainer": {"image": ABSENT_IMAGE}}),
    "out-of-memory": Case(
        "OOMKilled",
        ("48Mi", "spec.trainer.resources.limits.memory"),
        spec={"trainer": {"resources": {"limits": {"memory": "48Mi"}}}},
    ),
}


@pytest.fixture(scope="module")
def applied(namespace: JobNamespace) -> Iterator[JobNamespace]:
    """All bad jobs at once: they end in parallel, and one must not slow another."""
    for name, case in FAILING.items():
        namespace.start(name, case.text, **case.spec)
    yield namespace
    namespace.kube.run("delete", "trainingjobs.ktrdr.io", *FAILING, "--ignore-not-found")
    for name in FAILING:
        namespace.nothing_left(name)


@pytest.mark.parametrize("name", FAILING)
def test_job_with_bad_input_fails_once_with_the_cause(applied: JobNamespace, name: str) -> None:
    status = applied.finished(name)

    want = FAILING[name]
    assert true_conditions(status) == {"Stalled", "Failed", "Finished"}
    assert status["reason"] == want.reason, status["message"]
    assert [word for word in want.words if word not in status["message"]] == [], status["message"]
    assert status["failure"]["message"]
    assert (status["attempt"], status.get("retries", 0)) == (1, 0)
    assert "Traceback" not in applied.logs(name)
    assert want.reason in applied.events(name)


def test_job_with_missing_config_map_key_names_it_and_starts_once_it_exists(
    namespace: JobNamespace,
) -> None:
    name = "late-key"
    source = {"configMapKeyRef": {"name": "my-strategies", "key": "mine.yaml"}}
    namespace.kube.apply(_config_map({"other.yaml": strategy()}))
    namespace.start(name, "", strategy=source)

    status = namespace.until(name, lambda s: s.get("waiting"))

    assert status["waiting"]["reason"] == "StrategyNotFound"
    assert 'has no key "mine.yaml"' in status["message"]
    assert namespace.pods(name) == []
    namespace.kube.apply(_config_map({"mine.yaml": strategy()}))
    assert true_conditions(namespace.finished(name)) == {"Complete", "Finished"}
    namespace.remove(name)


def test_job_with_missing_claim_names_it_and_starts_once_it_exists(namespace: JobNamespace) -> None:
    name, missing = "late-claim", "not-made-yet"
    namespace.start(name, strategy(), output=claim(missing))

    status = namespace.until(name, lambda s: s.get("waiting"))

    assert status["waiting"]["reason"] == "VolumeNotReady"
    assert f'"{missing}"' in status["waiting"]["message"]
    assert "create the claim" in status["waiting"]["message"]
    prefix = namespace.kube.namespace
    folder = namespace.kube.kubeconfig.parent / "volumes" / prefix / missing
    cluster_script(
        "pv", f"{prefix}-{missing}", folder, f"{prefix}/{missing}", "1Gi", "ReadWriteOnce"
    )
    assert true_conditions(namespace.finished(name)) == {"Complete", "Finished"}
    namespace.remove(name)
    namespace.kube.run("delete", "pvc", missing)
    namespace.kube.run("delete", "pv", f"{prefix}-{missing}", "--ignore-not-found")


def _config_map(content: dict[str, str]) -> Raw:
    metadata = {"name": "my-strategies"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": content}
