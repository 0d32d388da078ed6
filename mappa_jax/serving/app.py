"""The routes: /v1/models, /v1/chat/completions, /health."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from typing import Any

from aiohttp import web

from mappa_jax.loopback import asks_loopback
from mappa_jax.serving import episodes, replies, streaming
from mappa_jax.serving.errors import ApiError
from mappa_jax.serving.limits import Admission, Limits
from mappa_jax.serving.protocol import ChatRequest, parse_request

log = logging.getLogger(__name__)


class Service:
    """What the routes share.

    Args:
      limits: what is taken.
      key: that clients must show; None: none, and only from this machine.

    Attributes:
      served: the team, once it can be asked.
      closing: no new requests are taken.
      admission: who works and who waits.
    """

    def __init__(self, limits: Limits, key: str | None):
        self.limits = limits
        self.served: episodes.Served | None = None
        self.closing = False
        self.admission = Admission(limits)
        self.started = time.time()
        self._key = None if key is None else _digest(key)

    def ready(self) -> episodes.Served:
        """Raises ApiError, 503, while it starts or stops."""
        if self.closing:
            raise _unavailable("the server is stopping", "stopping")
        if self.served is None:
            raise _unavailable("the server is starting; try again", "starting")
        if self.served.stage.engine.error is not None:
            raise _unavailable("the sampler has failed; start again", "failed")
        return self.served

    @property
    def keyless(self) -> bool:
        """Whether anyone on this machine may ask."""
        return self._key is None

    def admits(self, http: web.Request) -> bool:
        """Whether the client has shown the key, in constant time."""
        if self._key is None:
            return True
        scheme, _, given = http.headers.get("Authorization", "").partition(" ")
        same = hmac.compare_digest(_digest(given.strip()), self._key)
        return same and scheme.lower() == "bearer"

    async def finish(self, seconds: float) -> None:
        """Takes no more, and waits for what is being worked on, at most so long."""
        self.closing = True
        deadline = time.monotonic() + seconds
        while not self.admission.idle and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    @property
    def status(self) -> str:
        try:
            self.ready()
        except ApiError as e:
            return e.code
        return "ok"

    # -- handlers ------------------------------------------------------------

    async def health(self, http: web.Request) -> web.Response:
        """What it serves and how busy it is; without the key, only whether it does."""
        status = self.status
        body: dict[str, Any] = {"status": status}
        if self.admits(http):
            body |= {
                "uptime_s": round(time.time() - self.started, 1),
                "running": self.admission.running,
                "waiting": self.admission.waiting,
            }
            if (served := self.served) is not None:
                body |= {
                    "workflow": served.stage.workflow.name,
                    "models": served.names,
                    "step": served.step,
                    "fingerprint": served.fingerprint,
                }
        return web.json_response(body, status=200 if status == "ok" else 503)

    async def models(self, http: web.Request) -> web.Response:
        served = self.ready()
        return web.json_response(replies.models(served.names, int(self.started)))

    async def model(self, http: web.Request) -> web.Response:
        name = http.match_info["name"]
        if name not in self.ready().names:
            raise ApiError(404, f"no model {name[:80]!r}", code="model_not_found")
        return web.json_response(replies.model(name, int(self.started)))

    async def chat(self, http: web.Request) -> web.StreamResponse:
        served = self.ready()
        request = parse_request(await self._body(http))
        episodes.check(served, request)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        try:
            with self.admission.reserve(request.choices):
                async with asyncio.timeout(self.limits.seconds):
                    return await self._answer(http, served, request, response)
        except TimeoutError:
            error = ApiError(
                504,
                f"no answer within {self.limits.seconds:g} s",
                code="time_limit",
            )
        except ApiError as e:
            error = e
        except ConnectionError:
            raise
        except Exception:
            if not response.prepared:
                raise
            log.exception("a stream has failed")
            error = _internal()
        if not response.prepared:
            raise error
        await streaming.end_badly(http, response, error)
        return response

    async def _answer(
        self,
        http: web.Request,
        served: episodes.Served,
        request: ChatRequest,
        response: web.StreamResponse,
    ) -> web.StreamResponse:
        seed = secrets.randbits(63) if request.seed is None else request.seed
        if request.stream:
            chunks = streaming.events(served, request, self.admission, seed)
            await streaming.stream(http, chunks, response)
            return response

        async def one(choice: int) -> episodes.Answer:
            async with self.admission.turn():
                nobody = episodes.Watch()
                return await episodes.answer(served, request, choice, seed, nobody)

        answers = await streaming.gathered([one(i) for i in range(request.choices)])
        head = replies.Head(request.model, served.fingerprint)
        return web.json_response(replies.completion(head, answers, request.trace))

    async def _body(self, http: web.Request) -> bytes:
        # A page of another site can send other types without asking first.
        if http.content_type != "application/json":
            raise ApiError(
                415, "Content-Type must be application/json", code="content_type"
            )
        try:
            async with asyncio.timeout(self.limits.read_seconds):
                return await http.read()
        except TimeoutError as e:
            raise ApiError(408, "the body did not arrive in time", code="slow") from e
        except web.HTTPRequestEntityTooLarge as e:
            raise ApiError(
                413,
                f"the body is larger than {self.limits.body_bytes} bytes",
                code="too_large",
            ) from e


def make_app(service: Service) -> web.Application:
    """The application; run it with `handler_cancellation`, so that a dropped connection
    ends the work on its answer."""
    app = web.Application(
        client_max_size=service.limits.body_bytes,
        middlewares=[_errors(service)],
    )
    app.router.add_get("/health", service.health)
    app.router.add_get("/v1/models", service.models)
    app.router.add_get("/v1/models/{name}", service.model)
    app.router.add_post("/v1/chat/completions", service.chat)
    return app


def _errors(service: Service):
    """Checks who asks, and puts every error into OpenAI's form."""

    @web.middleware
    async def middleware(http: web.Request, handler: Any) -> web.StreamResponse:
        try:
            _check_host(service, http)
            if http.path != "/health" and not service.admits(http):
                raise ApiError(
                    401,
                    "a wrong API key, or none: send Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            return await handler(http)
        except ApiError as e:
            error = e
        except web.HTTPException as e:
            if e.status < 400:
                raise
            path = f"{http.method} {http.path[:80]}"
            headers = {"Allow": e.headers["Allow"]} if "Allow" in e.headers else {}
            error = ApiError(
                e.status, f"{path}: {e.reason}", code="http", headers=headers
            )
        except ConnectionError:
            raise  # nobody is there to be told
        except Exception:
            log.exception("%s has failed", http.path)
            error = _internal()
        headers = {"Connection": "close"} if error.status in (408, 413) else {}
        return web.json_response(
            error.body(), status=error.status, headers=headers | error.headers
        )

    return middleware


def _check_host(service: Service, http: web.Request) -> None:
    """Without a key only names of this machine: else a page whose name is made to
    point here could read the answers."""
    if service.keyless and not asks_loopback(http.host):
        raise ApiError(
            403, f"the host {http.host[:80]!r} is not this machine", code="wrong_host"
        )


def _digest(key: str) -> bytes:
    """Of one length, whatever the key's: comparing does not tell it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _unavailable(message: str, code: str) -> ApiError:
    return ApiError(503, message, code=code, headers={"Retry-After": "5"})


def _internal() -> ApiError:
    return ApiError(500, "an error of the server; its log has more", code="internal")
