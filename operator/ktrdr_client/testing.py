"""Fake API server in memory, for tests: the methods of `cluster.Cluster`, and injected faults.

Part of the package, so that every test uses the same one. It behaves like the real server where the
operator depends on it: UIDs, resource versions and generations; UID preconditions; a status that
only its subresource can write; a running pod that is deleted stays, terminating, until its kubelet
removes it (`remove`); an apply that changes nothing keeps the resource version. Not implemented:
schema, defaults, admission and watches. An apply owns and replaces whole top-level fields (below
`status` for that subresource: whole fields of the status), never parts of them.
"""

import copy
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Literal, TypeVar

from ktrdr_client.cluster import (
    CONFIG_MAPS,
    PODS,
    AlreadyExists,
    ApiError,
    Conflict,
    Invalid,
    NotFound,
    Objects,
    Raw,
    Resource,
)

Method = Literal["get", "list", "create", "apply", "patch", "delete"]

_SERVER_METADATA: Final = ("uid", "resourceVersion", "generation", "creationTimestamp")


@dataclass(frozen=True)
class Request:
    """One request, as in `FakeCluster.requests`."""

    method: Method
    kind: str
    name: str
    subresource: str = ""


@dataclass
class _Fault:
    error: BaseException
    method: Method
    kind: str | None
    after_effect: bool
    countdown: int

    def due(self, request: Request) -> bool:
        """Count a matching request; return whether it is the one to fail."""
        if request.method != self.method or self.kind not in (None, request.kind):
            return False
        self.countdown -= 1
        return self.countdown == 0


_Key = tuple[str, str, str]
_T = TypeVar("_T")


def _matches(obj: Raw, label_selector: str) -> bool:
    """Whether an object's labels match `key` and `key=value` terms."""
    labels = obj["metadata"].get("labels", {})
    terms = (term.partition("=") for term in label_selector.split(",") if term)
    return all(key in labels and (not sep or labels[key] == value) for key, sep, value in terms)


def _has_fields(obj: Raw, field_selector: str) -> bool:
    """Whether an object's fields match `path=value` terms."""
    terms = (term.partition("=") for term in field_selector.split(",") if term)
    return all(_field(obj, path) == value.removeprefix("=") for path, _, value in terms)


def _field(obj: Raw, path: str) -> str:
    value: Any = obj
    for name in path.split("."):
        value = value.get(name, {}) if isinstance(value, dict) else {}
    return str(value) if value != {} else ""


def _merge_patch(target: Raw, patch: Raw) -> Raw:
    """RFC 7396: null removes, objects merge, everything else replaces."""
    merged = dict(target)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            before = merged.get(name)
            merged[name] = _merge_patch(before if isinstance(before, dict) else {}, value)
        else:
            merged[name] = value
    return merged


@dataclass
class FakeCluster:
    """Kubernetes API server in memory; the module docstring says what it implements."""

    now: Callable[[], str] = lambda: "2026-01-01T00:00:00Z"
    """Clock of the server, RFC 3339."""
    requests: list[Request] = field(default_factory=list)
    """All requests, in order, including failed ones."""
    page_size: int = 2
    """Objects per page of `pages`; few, so that tests read a second page."""
    _objects: dict[_Key, Raw] = field(default_factory=dict)
    _owned: dict[tuple[_Key, str], frozenset[str]] = field(default_factory=dict)
    """Top-level fields that the last apply gave, by object and subresource."""
    _faults: list[_Fault] = field(default_factory=list)
    _uids: Iterator[int] = field(default_factory=lambda: count(1))
    _versions: Iterator[int] = field(default_factory=lambda: count(1))

    def fail_next(
        self,
        method: Method,
        error: BaseException,
        *,
        resource: Resource | None = None,
        after_effect: bool = False,
        nth: int = 1,
    ) -> None:
        """Make the nth matching request fail: before its effect, or after (a lost answer)."""
        kind = resource.kind if resource else None
        self._faults.append(_Fault(error, method, kind, after_effect, nth))

    def put(self, resource: Resource, obj: Raw) -> Raw:
        """Write a whole object with its status, as another client; keeps its UID if given."""
        key = self._key(resource, obj["metadata"].get("namespace"), obj["metadata"]["name"])
        return self._store(key, copy.deepcopy(obj))

    def remove(self, resource: Resource, namespace: str | None, name: str) -> None:
        """Remove an object immediately, as its kubelet or the garbage collector does."""
        key = self._key(resource, namespace, name)
        del self._objects[key]
        self._owned = {owner: fields for owner, fields in self._owned.items() if owner[0] != key}

    def read(self, resource: Resource, namespace: str | None, name: str) -> Raw | None:
        """Return an object without a request."""
        return copy.deepcopy(self._objects.get(self._key(resource, namespace, name)))

    def read_all(self, resource: Resource) -> Objects:
        """Return all objects of a type, by name, without a request."""
        return [
            copy.deepcopy(obj)
            for (kind, _, _), obj in sorted(self._objects.items())
            if kind == resource.kind
        ]

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Raw | None:
        """See `Cluster.get`."""
        lost = self._enter(Request("get", resource.kind, name))
        return self._leave(lost, self.read(resource, namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int | None = None,
    ) -> tuple[Objects, str]:
        """See `Cluster.list`."""
        lost = self._enter(Request("list", resource.kind, ""))
        found = self._select(resource, namespace, label_selector, field_selector)
        return self._leave(lost, (found[:limit], str(next(self._versions))))

    async def pages(
        self, resource: Resource, namespace: str | None, *, label_selector: str = ""
    ) -> AsyncIterator[Objects]:
        """See `Cluster.pages`: all pages have the state at the first request."""
        lost = self._enter(Request("list", resource.kind, ""))
        found = self._leave(lost, self._select(resource, namespace, label_selector, ""))
        yield found[: self.page_size]
        for start in range(self.page_size, len(found), self.page_size):
            lost = self._enter(Request("list", resource.kind, ""))
            yield self._leave(lost, found[start : start + self.page_size])

    def _select(
        self, resource: Resource, namespace: str | None, label_selector: str, field_selector: str
    ) -> Objects:
        return [
            obj
            for obj in self.read_all(resource)
            if namespace in (None, obj["metadata"].get("namespace"))
            and _matches(obj, label_selector)
            and _has_fields(obj, field_selector)
        ]

    async def create(self, resource: Resource, obj: Raw) -> Raw:
        """See `Cluster.create`."""
        name = obj["metadata"]["name"]
        lost = self._enter(Request("create", resource.kind, name))
        key = self._key(resource, obj["metadata"].get("namespace"), name)
        if key in self._objects:
            raise AlreadyExists(409, "AlreadyExists", f'{resource.plural} "{name}" already exists')
        return self._leave(lost, self._store(key, copy.deepcopy(obj)))

    async def apply(self, resource: Resource, obj: Raw, *, subresource: str = "") -> Raw:
        """See `Cluster.apply`."""
        metadata = obj["metadata"]
        lost = self._enter(Request("apply", resource.kind, metadata["name"], subresource))
        key = self._key(resource, metadata.get("namespace"), metadata["name"])
        current = self._objects.get(key)
        self._check_preconditions(resource, metadata, current)
        if current is None and subresource:
            raise self._not_found(resource, metadata["name"])
        wanted = copy.deepcopy(current or {"metadata": {}})
        self._merge(key, wanted, copy.deepcopy(obj), subresource)
        self._check_immutable(resource, current, wanted)
        return self._leave(lost, self._store(key, wanted))

    async def patch(self, resource: Resource, obj: Raw, *, subresource: str = "") -> Raw:
        """See `Cluster.patch`; without a subresource the status stays unchanged."""
        metadata = obj["metadata"]
        lost = self._enter(Request("patch", resource.kind, metadata["name"], subresource))
        key = self._key(resource, metadata.get("namespace"), metadata["name"])
        current = self._objects.get(key)
        if current is None:
            raise self._not_found(resource, metadata["name"])
        self._check_preconditions(resource, metadata, current)
        given = copy.deepcopy(obj)
        if subresource:
            given = {subresource: given.get(subresource, {})}
        else:
            given.pop("status", None)
            for name in _SERVER_METADATA:
                given["metadata"].pop(name, None)
        wanted = _merge_patch(copy.deepcopy(current), given)
        self._check_immutable(resource, current, wanted)
        return self._leave(lost, self._store(key, wanted))

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str,
        resource_version: str | None = None,
        grace_period_seconds: int | None = None,
    ) -> bool:
        """See `Cluster.delete`; a pod that runs on a node stays, with a deletionTimestamp."""
        lost = self._enter(Request("delete", resource.kind, name))
        key = self._key(resource, namespace, name)
        current = self._objects.get(key)
        if current is None or current["metadata"]["uid"] != uid:
            return self._leave(lost, False)
        if resource_version not in (None, current["metadata"]["resourceVersion"]):
            return self._leave(lost, False)
        over = current.get("status", {}).get("phase") in ("Succeeded", "Failed")
        on_a_node = resource == PODS and "nodeName" in current.get("spec", {}) and not over
        if on_a_node and grace_period_seconds != 0:
            terminating = copy.deepcopy(current)
            terminating["metadata"].setdefault("deletionTimestamp", self.now())
            self._store(key, terminating)
        else:
            self.remove(resource, namespace, name)
        return self._leave(lost, True)

    async def close(self) -> None:
        """Do nothing: there are no connections."""

    def _merge(self, key: _Key, wanted: Raw, given: Raw, subresource: str) -> None:
        """Set the given fields; remove those that only the previous apply had."""
        if subresource:
            target, source = wanted.setdefault(subresource, {}), given.get(subresource, {})
        else:
            fields = ("name", "namespace", "labels", "annotations", "ownerReferences")
            meta = {name: given["metadata"][name] for name in fields if name in given["metadata"]}
            wanted["metadata"].update(meta)
            target = wanted
            source = {name: v for name, v in given.items() if name not in ("metadata", "status")}
        for name in self._owned.get((key, subresource), frozenset()) - source.keys():
            target.pop(name, None)
        target.update(source)
        self._owned[(key, subresource)] = frozenset(source)

    def _check_preconditions(self, resource: Resource, metadata: Raw, current: Raw | None) -> None:
        name, known = metadata["name"], (current or {}).get("metadata", {})
        for precondition in ("uid", "resourceVersion"):
            expected = metadata.get(precondition)
            if expected is not None and expected != known.get(precondition):
                message = f'{resource.plural} "{name}": {precondition} is not {expected}'
                raise Conflict(409, "Conflict", message)

    def _check_immutable(self, resource: Resource, current: Raw | None, wanted: Raw) -> None:
        if resource != CONFIG_MAPS or current is None or not current.get("immutable"):
            return
        if current.get("data") != wanted.get("data"):
            raise Invalid(422, "Invalid", "data: Forbidden: field is immutable when set")

    def _store(self, key: _Key, obj: Raw) -> Raw:
        """Store an object, with its UID, generation and resource version."""
        current = self._objects.get(key)
        known = current["metadata"] if current else {"generation": 0}
        metadata = obj["metadata"]
        for name in _SERVER_METADATA:
            if name in known:
                metadata.setdefault(name, known[name])
        if current is None or metadata["uid"] != known["uid"]:
            metadata.setdefault("uid", f"uid-{next(self._uids)}")
            metadata.setdefault("creationTimestamp", self.now())
            metadata["generation"] = max(metadata.get("generation", 0), 1)
        elif current.get("spec") != obj.get("spec"):
            metadata["generation"] = known["generation"] + 1
        if obj != current:
            metadata["resourceVersion"] = str(next(self._versions))
        self._objects[key] = obj
        return copy.deepcopy(obj)

    def _enter(self, request: Request) -> BaseException | None:
        """Record a request; raises a fault due before its effect, returns one due after it."""
        self.requests.append(request)
        due = [fault for fault in self._faults if fault.due(request)]
        self._faults = [fault for fault in self._faults if fault.countdown > 0]
        for fault in due:
            if not fault.after_effect:
                raise fault.error
        return due[0].error if due else None

    @staticmethod
    def _leave(lost: BaseException | None, answer: _T) -> _T:
        if lost is not None:
            raise lost
        return answer

    @staticmethod
    def _not_found(resource: Resource, name: str) -> ApiError:
        return NotFound(404, "NotFound", f'{resource.plural}.{resource.kind} "{name}" not found')

    @staticmethod
    def _key(resource: Resource, namespace: str | None, name: str) -> _Key:
        return resource.kind, (namespace or "") if resource.namespaced else "", name
