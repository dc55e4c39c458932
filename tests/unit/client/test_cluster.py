import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.configuration import Configuration

from ktrdr_client.cluster import (
    EVENTS,
    NAMESPACES,
    PAGE_BYTES,
    PAGE_SIZE,
    PODS,
    TRAINING_JOBS,
    AlreadyExists,
    ApiError,
    Cluster,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Resource,
    TooManyRequests,
    Unreachable,
    _proxy_of_environment,
    error_from_answer,
)
from ktrdr_client.errors import RETRY_AFTER_MAX_SECONDS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[tuple[Cluster, list[tuple[str, str]]]]:
    """A cluster client of a real HTTP server, and the requests it counted."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    counted: list[tuple[str, str]] = []
    async with TestServer(app) as server:
        configuration = Configuration(
            host=str(server.make_url("/")), api_key={"BearerToken": "bearer secret"}
        )
        cluster = Cluster(configuration, on_request=lambda *what: counted.append(what))
        try:
            yield cluster, counted
        finally:
            await cluster.close()


def create_failure(status: int, reason: str, message: str, **headers: str) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "reason": reason, "message": message}
    return web.json_response(body, status=status, headers=headers)


@pytest.mark.parametrize(
    ("resource", "args", "want"),
    [
        (PODS, ("ns", "p"), "/api/v1/namespaces/ns/pods/p"),
        (PODS, (None,), "/api/v1/pods"),
        (NAMESPACES, ("ns", "x"), "/api/v1/namespaces/x"),
        (
            TRAINING_JOBS,
            ("ns", "j", "status"),
            "/apis/ktrdr.io/v1alpha1/namespaces/ns/trainingjobs/j/status",
        ),
        (PODS, ("ns", "../secrets"), "/api/v1/namespaces/ns/pods/..%2Fsecrets"),
    ],
)
def test_resource_path_addresses_object(
    resource: Resource, args: tuple[str, ...], want: str
) -> None:
    assert resource.path(*args) == want


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (403, "Forbidden", Forbidden),
        (404, "NotFound", NotFound),
        (409, "Conflict", Conflict),
        (409, "AlreadyExists", AlreadyExists),
        (422, "Invalid", Invalid),
        (429, "TooManyRequests", TooManyRequests),
        (500, "InternalError", ApiError),
    ],
)
def test_error_from_answer_of_status_object_has_type_and_message(
    status: int, reason: str, kind: type[ApiError]
) -> None:
    body = f'{{"reason":"{reason}","message":"no","details":{{"retryAfterSeconds":3}}}}'.encode()
    error = error_from_answer(status, {}, body)
    assert type(error) is kind
    assert (error.status, error.reason, error.message) == (status, reason, "no")
    assert error.retry_after_seconds == 3


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b"null"])
def test_error_from_answer_of_foreign_body_is_still_an_api_error(body: bytes) -> None:
    error = error_from_answer(520, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, body)
    assert type(error) is ApiError
    assert (error.status, error.reason, error.retry_after_seconds) == (520, "HTTP520", None)


async def test_cluster_get_missing_object_returns_none_and_counts_request() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "bearer secret"
        return create_failure(404, "NotFound", "pods not found")

    async with serving(handler) as (cluster, counted):
        assert await cluster.get(PODS, "ns", "p") is None
    assert counted == [("GET", "404")]


async def test_cluster_list_with_expired_token_starts_again() -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        page = request.query.get("continue", "")
        seen.append(page)
        assert request.query["limit"] == "500"
        assert request.query["labelSelector"] == "a=b"
        if page == "t/2=" and seen.count("t/2=") == 1:
            return create_failure(410, "Expired", "token expired")
        following = {"": "t1", "t1": "t/2=", "t/2=": ""}[page]
        item = {"metadata": {"name": page}}
        meta = {"resourceVersion": "7", "continue": following}
        return web.json_response({"metadata": meta, "items": [item]})

    async with serving(handler) as (cluster, _):
        objects, version = await cluster.list(PODS, None, label_selector="a=b")
    assert [obj["metadata"]["name"] for obj in objects] == ["", "t1", "t/2="]
    assert all(obj["kind"] == "Pod" and obj["apiVersion"] == "v1" for obj in objects)
    assert version == "7"
    assert seen == ["", "t1", "t/2=", "", "t1", "t/2="]


async def test_cluster_list_with_limit_and_field_selector_reads_one_page() -> None:
    seen: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(dict(request.query))
        meta = {"resourceVersion": "7", "continue": "more"}
        return web.json_response({"metadata": meta, "items": [{"metadata": {"name": "e"}}]})

    async with serving(handler) as (cluster, _):
        found, version = await cluster.list(
            EVENTS, "ns", field_selector="involvedObject.uid=u", limit=20
        )
    assert ([event["kind"] for event in found], version) == (["Event"], "7")
    assert seen == [{"limit": "20", "fieldSelector": "involvedObject.uid=u"}]


async def test_cluster_pages_are_limited_in_bytes_and_raise_when_the_token_expires() -> None:
    limits: list[int] = []
    item = {"metadata": {"name": "x" * (PAGE_BYTES // 10)}}

    async def handler(request: web.Request) -> web.Response:
        limit = int(request.query["limit"])
        limits.append(limit)
        if len(limits) == 4:
            return create_failure(410, "Expired", "token expired")
        size = min(limit, 20)
        meta = {"resourceVersion": "7", "continue": f"t{len(limits)}"}
        assert request.query["labelSelector"] == "a"
        return web.json_response({"metadata": meta, "items": [item] * size})

    sizes: list[int] = []

    async def read(cluster: Cluster) -> None:
        async for page in cluster.pages(PODS, None, label_selector="a"):
            sizes.append(len(page))
            assert page[0]["kind"] == "Pod"

    async with serving(handler) as (cluster, _):
        with pytest.raises(ApiError, match="410"):
            await read(cluster)
    assert sizes == [20, 9, 9]
    assert limits == [50, 9, 9, 9]


async def test_cluster_pages_of_small_objects_grow_to_the_maximum_size() -> None:
    limits: list[int] = []

    async def handler(request: web.Request) -> web.Response:
        limits.append(int(request.query["limit"]))
        meta = {"resourceVersion": "7", "continue": "t" if len(limits) == 1 else ""}
        return web.json_response({"metadata": meta, "items": [{"metadata": {}}]})

    async with serving(handler) as (cluster, _):
        pages = [page async for page in cluster.pages(PODS, "ns")]
    assert len(pages) == 2
    assert limits == [50, PAGE_SIZE]


async def test_cluster_pages_without_objects_is_one_empty_page() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"metadata": {"resourceVersion": "7"}, "items": None})

    async with serving(handler) as (cluster, _):
        assert [page async for page in cluster.pages(PODS, "ns")] == [[]]


async def test_cluster_patch_sends_a_merge_patch() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.method == "PATCH"
        assert request.path.endswith("/trainingjobs/j/status")
        assert dict(request.query) == {"fieldManager": "ktrdr-operator"}
        assert request.content_type == "application/merge-patch+json"
        return web.json_response(await request.json())

    obj = {"metadata": {"namespace": "ns", "name": "j"}, "status": {"waiting": None}}
    async with serving(handler) as (cluster, _):
        assert await cluster.patch(TRAINING_JOBS, obj, subresource="status") == obj


async def test_cluster_delete_with_version_sends_it_and_returns_false_on_conflict() -> None:
    async def handler(request: web.Request) -> web.Response:
        options = await request.json()
        assert options["preconditions"] == {"uid": "u", "resourceVersion": "5"}
        message = (
            "Operation cannot be fulfilled on trainingjobs: the ResourceVersion in the "
            "precondition (5) does not match the ResourceVersion in record (6)."
        )
        return create_failure(409, "Conflict", message)

    async with serving(handler) as (cluster, _):
        assert not await cluster.delete(TRAINING_JOBS, "ns", "j", uid="u", resource_version="5")


async def test_cluster_open_session_counts_its_requests() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=403 if request.path == "/x" else 200)

    async with serving(handler) as (cluster, counted), cluster.open_session() as http:
        async with http.get(f"{cluster.server}/x") as answer:
            assert answer.status == 403
        with pytest.raises(aiohttp.ClientConnectionError):
            await http.get("http://127.0.0.1:1/")
    assert counted == [("GET", "403"), ("GET", "<error>")]


async def test_cluster_apply_sends_manager_force_and_patch_type() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.method == "PATCH"
        assert request.path.endswith("/trainingjobs/j/status")
        assert dict(request.query) == {"fieldManager": "ktrdr-operator", "force": "true"}
        assert request.content_type == "application/apply-patch+yaml"
        return web.json_response(await request.json())

    obj = {"metadata": {"namespace": "ns", "name": "j"}, "status": {"phase": "ü"}}
    async with serving(handler) as (cluster, _):
        assert await cluster.apply(TRAINING_JOBS, obj, subresource="status") == obj


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        (lambda: web.json_response({"status": "Success"}), True),
        (lambda: create_failure(404, "NotFound", "gone"), False),
        (
            lambda: create_failure(
                409,
                "Conflict",
                "Operation cannot be fulfilled on pods: the UID in the precondition (a) does not "
                "match the UID in record (b). Precondition failed: UID in precondition: a",
            ),
            False,
        ),
    ],
)
async def test_cluster_delete_returns_whether_this_object_was_deleted(
    answer: Callable[[], web.Response], want: bool
) -> None:
    async def handler(request: web.Request) -> web.Response:
        options = await request.json()
        assert options["preconditions"] == {"uid": "u"}
        assert options["gracePeriodSeconds"] == 5
        return answer()

    async with serving(handler) as (cluster, _):
        assert await cluster.delete(PODS, "ns", "p", uid="u", grace_period_seconds=5) is want


async def test_cluster_after_retry_after_sends_no_request_early() -> None:
    times: list[float] = []

    async def handler(_: web.Request) -> web.Response:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            return create_failure(429, "TooManyRequests", "slow down", **{"Retry-After": "1"})
        return web.json_response({})

    async with serving(handler) as (cluster, _):
        with pytest.raises(TooManyRequests) as refused:
            await cluster.get(PODS, "ns", "p")
        await asyncio.gather(*(cluster.get(PODS, "ns", "p") for _ in range(5)))
    assert refused.value.retry_after_seconds == 1
    assert min(times[1:]) - times[0] >= 1.0


@pytest.mark.parametrize("header", ["86400", "9" * 400])
def test_error_from_answer_of_a_load_balancer_stops_no_requests_for_hours(header: str) -> None:
    error = error_from_answer(503, {"Retry-After": header}, b"maintenance")
    assert error.retry_after_seconds == RETRY_AFTER_MAX_SECONDS


async def test_cluster_limits_requests_in_flight() -> None:
    running = peak = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.005)
        running -= 1
        return web.json_response({})

    async with serving(handler) as (cluster, _):
        await asyncio.gather(*(cluster.get(PODS, "ns", "p") for _ in range(100)))
    assert peak == 32


async def test_cluster_without_server_raises_unreachable(unused_tcp_port: int) -> None:
    counted: list[tuple[str, str]] = []
    cluster = Cluster(
        Configuration(host=f"http://127.0.0.1:{unused_tcp_port}"),
        on_request=lambda *what: counted.append(what),
    )
    with pytest.raises(Unreachable, match="GET /api/v1/namespaces/ns/pods/p: Cannot connect"):
        await cluster.get(PODS, "ns", "p")
    await cluster.close()
    assert counted == [("GET", "<error>")]


async def test_cluster_connect_with_missing_kubeconfig_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"nowhere\.yaml"):
        await Cluster.connect(kubeconfig=tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(("server", "want"), [("https://a:1", "http://p:2"), ("https://b", None)])
def test_proxy_of_environment_respects_no_proxy(
    monkeypatch: pytest.MonkeyPatch, server: str, want: str | None
) -> None:
    monkeypatch.setenv("https_proxy", "http://p:2")
    monkeypatch.setenv("no_proxy", "b")
    assert _proxy_of_environment(server) == want
