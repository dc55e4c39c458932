"""Kubernetes client: sends and returns raw JSON objects, over the official client's transport.

Configuration, authentication and TLS come from the official client (`kubernetes.aio`). Its typed
API classes are not used: they cost 140 MB of memory, reject harmless objects and need twice the CPU
(measured: 2,500 creates 0.8 s over a plain aiohttp session, 1.9-2.1 s through them). Called by
`reconcile`, `apply`, `observe`, `resync`, `events` and `leader`; `handlers` uses its authenticated
HTTP session for kopf. `ClusterApi` is the interface that all of them need and that
`testing.FakeCluster` implements, too.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import (
    KUBE_CONFIG_DEFAULT_LOCATION,
    ConfigException,
    load_incluster_config,
    load_kube_config,
)

from ktrdr_api import names
from ktrdr_client.errors import AlreadyExists as AlreadyExists
from ktrdr_client.errors import ApiError as ApiError
from ktrdr_client.errors import Conflict as Conflict
from ktrdr_client.errors import Forbidden as Forbidden
from ktrdr_client.errors import Invalid as Invalid
from ktrdr_client.errors import NotFound as NotFound
from ktrdr_client.errors import TooManyRequests as TooManyRequests
from ktrdr_client.errors import Unreachable as Unreachable
from ktrdr_client.errors import error_from_answer as error_from_answer
from ktrdr_client.errors import parse_retry_after

Raw = dict[str, Any]
"""A Kubernetes object as JSON."""
Objects = list[Raw]

REQUEST_TIMEOUT_SECONDS: Final = 15.0
CONNECT_TIMEOUT_SECONDS: Final = 5.0
PAGE_SIZE: Final = 500
PAGE_BYTES: Final = 1_000_000
"""Target size of a page: parsing one blocks the event loop for 5 to 10 ms (measured)."""
FIRST_PAGE_SIZE: Final = 50
LIST_RESTARTS: Final = 3
"""Number of times a list is started before it fails, when its continue token expires (410)."""
NO_ANSWER: Final = "<error>"
"""`code` of a request without an answer in `rest_client_requests_total`, as in client-go."""


@dataclass(frozen=True)
class Resource:
    """Resource type, with its URL paths."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """URL path of the collection, of one object, or of a subresource of it."""
        prefix = "api" if "/" not in self.api_version else "apis"
        scope = ("namespaces", namespace) if self.namespaced and namespace else ()
        parts = (prefix, *self.api_version.split("/"), *scope, self.plural, name, subresource)
        return "/" + "/".join(quote(part, safe="") for part in parts if part)


TRAINING_JOBS: Final = Resource(names.API_VERSION, names.KIND, names.PLURAL)
PODS: Final = Resource("v1", "Pod", "pods")
CONFIG_MAPS: Final = Resource("v1", "ConfigMap", "configmaps")
SERVICE_ACCOUNTS: Final = Resource("v1", "ServiceAccount", "serviceaccounts")
ROLES: Final = Resource("rbac.authorization.k8s.io/v1", "Role", "roles")
ROLE_BINDINGS: Final = Resource("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
PERSISTENT_VOLUME_CLAIMS: Final = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
EVENTS: Final = Resource("v1", "Event", "events")
"""Core v1, which `kubectl events --for` reads; events.k8s.io serves the same objects."""
LEASES: Final = Resource("coordination.k8s.io/v1", "Lease", "leases")
NAMESPACES: Final = Resource("v1", "Namespace", "namespaces", namespaced=False)


async def _load_configuration(kubeconfig: Path | None) -> Configuration:
    """Find the API server as client-go does: given file, KUBECONFIG, ~/.kube/config, in-cluster."""
    configuration = Configuration()
    found = str(kubeconfig) if kubeconfig else KUBE_CONFIG_DEFAULT_LOCATION
    try:
        if kubeconfig or any(Path(part).expanduser().exists() for part in found.split(":")):
            await load_kube_config(  # type: ignore[no-untyped-call] # its types are not published
                found, client_configuration=configuration
            )
        else:
            load_incluster_config(configuration)  # type: ignore[no-untyped-call] # as above
    except ConfigException as error:
        message = f"no usable cluster configuration: {error} (tried {found}, then in-cluster)"
        raise Unreachable(0, "NoConfiguration", message) from error
    return configuration


def _proxy_of_environment(server: str) -> str | None:
    """Proxy that HTTPS_PROXY and NO_PROXY select.

    Not aiohttp's trust_env: it reads .netrc at every request, in a thread (measured: 2,500 creates
    cost 2.35 s of CPU instead of 0.81 s).
    """
    url = urlsplit(server)
    return None if proxy_bypass(url.netloc) else getproxies().get(url.scheme)


Query = dict[str, str]


def _list_query(limit: int, label_selector: str, field_selector: str) -> Query:
    query = {"limit": str(limit)}
    if label_selector:
        query["labelSelector"] = label_selector
    if field_selector:
        query["fieldSelector"] = field_selector
    return query


def _items(resource: Resource, page: Raw) -> Objects:
    """Items of a page with their type, which only custom resources have in a list."""
    items: Objects = page.get("items") or []
    for item in items:
        item.setdefault("apiVersion", resource.api_version)
        item.setdefault("kind", resource.kind)
    return items


class ClusterApi(Protocol):
    """Interface of a Kubernetes API server; `Cluster` documents the methods."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Raw | None:
        """Read one object."""

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int | None = None,
    ) -> tuple[Objects, str]:
        """Read all objects, or the first `limit`."""

    def pages(
        self, resource: Resource, namespace: str | None, *, label_selector: str = ""
    ) -> AsyncIterator[Objects]:
        """Read all objects, page by page."""

    async def create(self, resource: Resource, obj: Raw) -> Raw:
        """Create an object."""

    async def apply(self, resource: Resource, obj: Raw, *, subresource: str = "") -> Raw:
        """Server-side apply."""

    async def patch(self, resource: Resource, obj: Raw, *, subresource: str = "") -> Raw:
        """Merge patch."""

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
        """Delete the object with this UID and no other."""


class Cluster:
    """Kubernetes API server.

    At most `max_in_flight` requests are sent concurrently; the others wait in order. After an
    answer with Retry-After, no request is sent before that time. Nothing is retried here: the work
    queue retries with backoff per job. Every method raises `ApiError`.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        max_in_flight: int = 32,
        on_request: Callable[[str, str], None] = lambda _method, _code: None,
    ) -> None:
        """Prepare the connection pool; needs a running event loop.

        Args:
            configuration: address of the server, and credentials.
            max_in_flight: maximum number of concurrent requests.
            on_request: called with the method and HTTP status (or `<error>`) of every request.
        """
        self.server: str = configuration.host.rstrip("/")
        self._configuration = configuration
        self._ssl = RESTClientObject(configuration).ssl_context
        self._slots = asyncio.Semaphore(max_in_flight)
        self._on_request = on_request
        self._retry_after_until = 0.0
        self._session = self._open_session(limit=max_in_flight)

    @classmethod
    async def connect(
        cls,
        *,
        kubeconfig: Path | None = None,
        max_in_flight: int = 32,
        on_request: Callable[[str, str], None] = lambda _method, _code: None,
    ) -> "Cluster":
        """Find the API server; sends no request yet."""
        configuration = await _load_configuration(kubeconfig)
        return cls(configuration, max_in_flight=max_in_flight, on_request=on_request)

    def open_session(
        self, *middlewares: aiohttp.ClientMiddlewareType, limit: int = 0
    ) -> aiohttp.ClientSession:
        """Open an authenticated HTTP session to this server; the caller closes it.

        Its requests are reported to `on_request`.

        Args:
            middlewares: process requests and answers, outermost first.
            limit: maximum number of connections; 0 is no limit.
        """
        return self._open_session(*middlewares, self._count_request, limit=limit)

    def _open_session(
        self, *middlewares: aiohttp.ClientMiddlewareType, limit: int
    ) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=limit, ssl=self._ssl),
            middlewares=(*middlewares, self._authorize),
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=self._configuration.proxy or _proxy_of_environment(self.server),
            headers={"User-Agent": names.OPERATOR_MANAGER, "Accept": "application/json"},
        )

    async def _authorize(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        # At every request: a pod's token changes every hour, and the official client re-reads it.
        settings = await self._configuration.auth_settings()
        if "BearerToken" in settings:
            request.headers["Authorization"] = settings["BearerToken"]["value"] or ""
        if self._configuration.tls_server_name:
            request.server_hostname = self._configuration.tls_server_name
        return await handler(request)

    async def _count_request(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        code = NO_ANSWER
        try:
            response = await handler(request)
            code = str(response.status)
        finally:
            self._on_request(request.method, code)
        return response

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Raw | None:
        """Read one object; None when it does not exist."""
        try:
            return await self._send("GET", resource.path(namespace, name))
        except NotFound:
            return None

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int | None = None,
    ) -> tuple[Objects, str]:
        """Read all objects of a namespace, or of all namespaces.

        Args:
            resource: their type.
            namespace: None is all namespaces.
            label_selector: see `metav1.ListOptions`.
            field_selector: likewise.
            limit: maximum number of objects to read; all when None.

        Returns:
            The objects, and the resource version of the list.
        """
        query = _list_query(limit or PAGE_SIZE, label_selector, field_selector)
        for _ in range(LIST_RESTARTS):
            try:
                return await self._list_once(resource, namespace, query, first_only=bool(limit))
            except ApiError as error:
                if error.status != HTTPStatus.GONE:
                    raise
                gone = error
        raise gone

    async def _list_once(
        self, resource: Resource, namespace: str | None, query: Query, *, first_only: bool
    ) -> tuple[Objects, str]:
        objects: Objects = []
        query = dict(query)
        while True:
            answer = await self._request("GET", resource.path(namespace) + "?" + urlencode(query))
            page = orjson.loads(answer)
            objects += _items(resource, page)
            query["continue"] = page["metadata"].get("continue", "")
            if first_only or not query["continue"]:
                return objects, page["metadata"]["resourceVersion"]

    async def pages(
        self, resource: Resource, namespace: str | None, *, label_selector: str = ""
    ) -> AsyncIterator[Objects]:
        """Read all objects of a namespace, or of all namespaces, page by page.

        A page is kept in memory only while it is used, and is small enough not to block the event
        loop. When the continue token expires, an `ApiError` with status 410 is raised: start again.
        """
        query = _list_query(FIRST_PAGE_SIZE, label_selector, "")
        while True:
            answer = await self._request("GET", resource.path(namespace) + "?" + urlencode(query))
            page, size_bytes = orjson.loads(answer), len(answer)
            del answer
            query["continue"] = page["metadata"].get("continue", "")
            items = _items(resource, page)
            if items:
                fitting = PAGE_BYTES * len(items) // size_bytes
                query["limit"] = str(min(max(fitting, 1), PAGE_SIZE))
            del page
            yield items
            if not query["continue"]:
                return

    async def create(self, resource: Resource, obj: Raw) -> Raw:
        """Create an object; raises `AlreadyExists` when its name is taken."""
        query = "?" + urlencode({"fieldManager": names.OPERATOR_MANAGER})
        path = resource.path(obj["metadata"].get("namespace"))
        return await self._send("POST", path + query, obj)

    async def apply(self, resource: Resource, obj: Raw, *, subresource: str = "") -> Raw:
        """Server-side apply: set the given fields, and remove those given before and not now.

        Repeatable: the same object again changes nothing, not even the resource version. A
        `metadata.resourceVersion` is a precondition (`Conflict`), and so is a `metadata.uid`, but
        not for the status of a custom resource, where the server ignores the UID (seen on
        Kubernetes 1.36); there use a resource version, which no two objects share. Fields that were
        set by `create` belong to another operation: an apply without them does not remove them.
        """
        metadata = obj["metadata"]
        # With force: a field that another manager has set, too, becomes the operator's.
        query = urlencode({"fieldManager": names.OPERATOR_MANAGER, "force": "true"})
        path = resource.path(metadata.get("namespace"), metadata["name"], subresource)
        try:
            return await self._send("PATCH", f"{path}?{query}", obj, "application/apply-patch+yaml")
        except Invalid as error:
            if "metadata.uid: Invalid value" not in error.message:
                raise
            # The server's answer if another object has the name (seen on Kubernetes 1.36).
            raise Conflict(HTTPStatus.CONFLICT, "Conflict", error.message) from error

    async def patch(self, resource: Resource, obj: Raw, *, subresource: str = "") -> Raw:
        """Merge patch (RFC 7396): set the given fields, remove those given as null.

        Use it to remove a field that another field manager has set, too: `apply` cannot. A
        `metadata.resourceVersion` is a precondition (`Conflict`).
        """
        metadata = obj["metadata"]
        query = urlencode({"fieldManager": names.OPERATOR_MANAGER})
        path = resource.path(metadata.get("namespace"), metadata["name"], subresource)
        return await self._send("PATCH", f"{path}?{query}", obj, "application/merge-patch+json")

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
        """Delete the object with this UID and no other.

        Args:
            resource: its type.
            namespace: None for a cluster-scoped object.
            name: its name.
            uid: precondition.
            resource_version: precondition; None deletes any version.
            grace_period_seconds: seconds a pod's processes have to stop; None is the pod's own.

        Returns:
            False when the object no longer exists, has another UID, or has changed.
        """
        options: Raw = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        if resource_version is not None:
            options["preconditions"]["resourceVersion"] = resource_version
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        try:
            await self._send("DELETE", resource.path(namespace, name), options)
        except NotFound:
            return False
        except Conflict as error:
            # "the UID in the precondition (..) does not match", or "UID in precondition: ..", or
            # "the ResourceVersion in the precondition (..) does not match" (seen on 1.36)
            if "precondition" not in error.message:
                raise
            return False
        return True

    async def _send(
        self, method: str, path: str, body: Raw | None = None, kind: str = "application/json"
    ) -> Raw:
        result: Raw = orjson.loads(await self._request(method, path, body, kind))
        return result

    async def _request(
        self, method: str, path: str, body: Raw | None = None, kind: str = "application/json"
    ) -> bytes:
        async with self._slots:
            await self._wait_for_retry_after()
            data = None if body is None else orjson.dumps(body)
            status, headers, answer = await self._exchange(method, path, data, kind)
        if status < HTTPStatus.BAD_REQUEST:
            return answer
        raise error_from_answer(status, headers, answer)

    async def _exchange(
        self, method: str, path: str, data: bytes | None, kind: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        try:
            async with self._session.request(
                method,
                self.server + path,
                data=data,
                headers={"Content-Type": kind} if data is not None else None,
                timeout=aiohttp.ClientTimeout(
                    total=REQUEST_TIMEOUT_SECONDS, sock_connect=CONNECT_TIMEOUT_SECONDS
                ),
            ) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self._on_request(method, NO_ANSWER)
            message = f"{method} {path}: {str(error) or type(error).__name__}"
            raise Unreachable(0, type(error).__name__, message) from error
        self._on_request(method, str(response.status))
        retry_after_seconds = parse_retry_after(response.headers.get("Retry-After"))
        self._note_retry_after(response.status, retry_after_seconds)
        return response.status, response.headers, answer

    def _note_retry_after(self, status: int, retry_after_seconds: float | None) -> None:
        """Remember until when the server wants no request."""
        refused = status == HTTPStatus.TOO_MANY_REQUESTS or status >= 500
        if refused and retry_after_seconds is not None:
            until = asyncio.get_running_loop().time() + retry_after_seconds
            self._retry_after_until = max(self._retry_after_until, until)

    async def _wait_for_retry_after(self) -> None:
        loop = asyncio.get_running_loop()
        while (wait := self._retry_after_until - loop.time()) > 0:
            await asyncio.sleep(wait)
