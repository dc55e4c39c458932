"""A small Kubernetes client: raw JSON objects in and out, over the official client's transport.

Configuration, authentication and TLS come from the official client (`kubernetes.aio`). Its typed
API classes are left out: they cost 140 MB of memory once used, refuse harmless objects and spend
twice the CPU (measured: 2,500 creates 0.8 s over a plain aiohttp session, 1.9-2.1 s through them).
Called by `reconcile`, `apply`, `observe`, `resync`, `events` and `leader`; `session` borrows its
authenticated HTTP session for kopf. `ClusterApi` is what all but `session` need, and what
`testing.FakeCluster` has too.
"""
# ruff: noqa: N818 - the errors have the names that the API server gives them as reasons

import asyncio
from collections.abc import Callable, Mapping
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

Raw = dict[str, Any]
"""A Kubernetes object as JSON."""
Objects = list[Raw]

REQUEST_TIMEOUT_SECONDS: Final = 15.0
CONNECT_TIMEOUT_SECONDS: Final = 5.0
PAGE_SIZE: Final = 500
LIST_RESTARTS: Final = 3
"""How often a list starts anew because its continue token expired (410) before it gives up."""
NO_ANSWER: Final = "<error>"
"""The `code` of a request without an answer; client-go's word in `rest_client_requests_total`."""


@dataclass(frozen=True)
class Resource:
    """A resource type as the API server addresses it."""

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


class ApiError(Exception):
    """The API server refused a request, or could not be reached; base of all errors here."""

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        """HTTP status; 0 when there was no answer."""
        self.reason = reason
        """Machine-readable, as in `metav1.Status`."""
        self.message = message
        """The server's own words."""
        self.retry_after_seconds = retry_after_seconds
        """How long the server wants to be left alone, if it said so."""


class NotFound(ApiError):
    """404: the object, its namespace or its resource type does not exist."""


class Conflict(ApiError):
    """409: the object has changed since it was read. Read it again."""


class AlreadyExists(ApiError):
    """409: the name is taken. Get it and compare the owner."""


class Forbidden(ApiError):
    """403: RBAC, quota or admission said no, in words; a retry helps once that has changed."""


class Invalid(ApiError):
    """422: the object breaks a rule of its schema; the same request will never succeed."""


class TooManyRequests(ApiError):
    """429: retry; this client sends nothing before `retry_after_seconds` have passed."""


class Unreachable(ApiError):
    """No answer: refused, reset or timed out. The request may or may not have taken effect."""


_BY_STATUS: Final[dict[int, type[ApiError]]] = {
    HTTPStatus.FORBIDDEN: Forbidden,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.UNPROCESSABLE_ENTITY: Invalid,
    HTTPStatus.TOO_MANY_REQUESTS: TooManyRequests,
}


def error_from_answer(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """Build the error for an HTTP answer of 400 or above."""
    try:
        answer = orjson.loads(body)
    except ValueError:  # a proxy in between, or an overloaded server, answers in plain text
        answer = None
    if not isinstance(answer, dict):
        answer = {"message": body[:500].decode(errors="replace")}
    reason = str(answer.get("reason") or f"HTTP{status}")
    details = answer.get("details") or {}
    seconds = _seconds(headers.get("Retry-After")) or _seconds(details.get("retryAfterSeconds"))
    kind = AlreadyExists if reason == "AlreadyExists" else _BY_STATUS.get(status, ApiError)
    return kind(status, reason, str(answer.get("message") or reason), seconds)


def _seconds(text: object) -> float | None:
    """Seconds of a Retry-After; None when absent or a date, which the API server never sends."""
    return float(str(text)) if str(text).isdecimal() else None


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
        message = f"no usable cluster configuration: {error} (looked at {found}, then in-cluster)"
        raise Unreachable(0, "NoConfiguration", message) from error
    return configuration


def _proxy_of_environment(server: str) -> str | None:
    """Proxy that HTTPS_PROXY and NO_PROXY ask for.

    Not aiohttp's trust_env: it looks for .netrc at every request, in a thread (measured: 2,500
    creates cost 2.35 s of CPU instead of 0.81 s).
    """
    url = urlsplit(server)
    return None if proxy_bypass(url.netloc) else getproxies().get(url.scheme)


class ClusterApi(Protocol):
    """What a Kubernetes API server does for us; `Cluster` documents the methods."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Raw | None:
        """Read one object."""

    async def list(
        self, resource: Resource, namespace: str | None, *, label_selector: str = ""
    ) -> tuple[Objects, str]:
        """Read all objects."""

    async def create(self, resource: Resource, obj: Raw) -> Raw:
        """Create an object."""

    async def apply(self, resource: Resource, obj: Raw, *, subresource: str = "") -> Raw:
        """Server-side apply."""

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str,
        grace_period_seconds: int | None = None,
    ) -> bool:
        """Delete the object with this UID and no other."""


class Cluster:
    """A Kubernetes API server.

    At most `max_in_flight` requests run at once; the rest wait in order. When the server says
    Retry-After, no request at all leaves before that time. Nothing is retried here: the work queue
    does, with backoff per job. Every method raises an `ApiError`.
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
            configuration: where the server is and how to authenticate.
            max_in_flight: requests at once.
            on_request: told the method and the HTTP status (or `<error>`) of every request.
        """
        self.server: str = configuration.host.rstrip("/")
        self._configuration = configuration
        self._ssl = RESTClientObject(configuration).ssl_context
        self._slots = asyncio.Semaphore(max_in_flight)
        self._on_request = on_request
        self._retry_after_until = 0.0
        self._session = self.open_session(limit=max_in_flight)

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

        Args:
            middlewares: see what is sent and answered, outermost first.
            limit: connections at once; 0 is no limit.
        """
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
        self, resource: Resource, namespace: str | None, *, label_selector: str = ""
    ) -> tuple[Objects, str]:
        """Read all objects of a namespace, or of all namespaces, page by page.

        Returns:
            The objects, and the resource version of the list.
        """
        for _ in range(LIST_RESTARTS):
            try:
                return await self._list_once(resource, namespace, label_selector)
            except ApiError as error:
                if error.status != HTTPStatus.GONE:
                    raise
                gone = error
        raise gone

    async def _list_once(
        self, resource: Resource, namespace: str | None, label_selector: str
    ) -> tuple[Objects, str]:
        objects: Objects = []
        query = {"limit": str(PAGE_SIZE)}
        if label_selector:
            query["labelSelector"] = label_selector
        while True:
            page = await self._send("GET", resource.path(namespace) + "?" + urlencode(query))
            for item in page.get("items") or ():
                # Only custom resources carry these in a list.
                item.setdefault("apiVersion", resource.api_version)
                item.setdefault("kind", resource.kind)
                objects.append(item)
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                return objects, page["metadata"]["resourceVersion"]

    async def create(self, resource: Resource, obj: Raw) -> Raw:
        """Create an object; `AlreadyExists` when its name is taken."""
        query = "?" + urlencode({"fieldManager": names.OPERATOR_MANAGER})
        path = resource.path(obj["metadata"].get("namespace"))
        return await self._send("POST", path + query, obj)

    async def apply(self, resource: Resource, obj: Raw, *, subresource: str = "") -> Raw:
        """Server-side apply: make the fields given so, and remove those given before and not now.

        Repeatable: the same object again changes nothing, not even the resource version. With a
        `metadata.resourceVersion` it is refused (`Conflict`) unless the object still has it; with a
        `metadata.uid` as well, but not for the status of a custom resource, where the server
        ignores the UID (seen on Kubernetes 1.36): a resource version guards that, too, as no two
        objects share one. Fields that came by `create` are another operation's: an apply that
        leaves them out does not remove them.
        """
        metadata = obj["metadata"]
        # With force: a field that somebody else has set as well becomes ours.
        query = urlencode({"fieldManager": names.OPERATOR_MANAGER, "force": "true"})
        path = resource.path(metadata.get("namespace"), metadata["name"], subresource)
        try:
            return await self._send("PATCH", f"{path}?{query}", obj, "application/apply-patch+yaml")
        except Invalid as error:
            if "metadata.uid: Invalid value" not in error.message:
                raise
            # The server's word for "another object has the name" (seen on Kubernetes 1.36).
            raise Conflict(HTTPStatus.CONFLICT, "Conflict", error.message) from error

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str,
        grace_period_seconds: int | None = None,
    ) -> bool:
        """Delete the object with this UID and no other.

        Returns:
            False when it is already gone or another object has the name.
        """
        options: Raw = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        try:
            await self._send("DELETE", resource.path(namespace, name), options)
        except NotFound:
            return False
        except Conflict as error:
            # "the UID in the precondition (..) does not match", or "UID in precondition: .."
            if "precondition" not in error.message:
                raise
            return False
        return True

    async def _send(
        self, method: str, path: str, body: Raw | None = None, kind: str = "application/json"
    ) -> Raw:
        async with self._slots:
            await self._wait_for_retry_after()
            data = None if body is None else orjson.dumps(body)
            status, headers, answer = await self._exchange(method, path, data, kind)
        if status < HTTPStatus.BAD_REQUEST:
            result: Raw = orjson.loads(answer)
            return result
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
        self._note_retry_after(response.status, _seconds(response.headers.get("Retry-After")))
        return response.status, response.headers, answer

    def _note_retry_after(self, status: int, retry_after_seconds: float | None) -> None:
        """Remember how long the server wants to be left alone."""
        refused = status == HTTPStatus.TOO_MANY_REQUESTS or status >= 500
        if refused and retry_after_seconds is not None:
            run_until_stopped = asyncio.get_running_loop().time() + retry_after_seconds
            self._retry_after_until = max(self._retry_after_until, run_until_stopped)

    async def _wait_for_retry_after(self) -> None:
        loop = asyncio.get_running_loop()
        while (wait := self._retry_after_until - loop.time()) > 0:
            await asyncio.sleep(wait)
