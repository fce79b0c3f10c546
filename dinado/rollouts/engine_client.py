"""A client of an inference server: many requests under way, retries with backoff, and who the server is."""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx

from dinado.errors import EngineError
from dinado.rollouts.engine_protocols import Draw, Protocol, Sampled, protocol_of, read_samples

log = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
"""Environment variable with the key that the server may ask for."""
LONGEST_PAUSE = 10.0
"""Longest pause between two attempts, in seconds."""
HELLO_S = 5.0
"""How long a server is asked who it is before it counts as not there, in seconds."""
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)


class EngineClient:
    """A client of one server.

    Args:
        url: the server's root, with or without ``/v1``.
        model: name of the model on the server; None takes the only one there.
        requests: number of requests under way at a time.
        patience_s: how long a request is tried again while the server fails or is away, in seconds.
        timeout_s: how long one request may take, in seconds.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        requests: int = 32,
        patience_s: float = 120.0,
        timeout_s: float = 600.0,
    ) -> None:
        self._root = url.rstrip("/").removesuffix("/v1")
        self._model = model
        self._requests = requests
        self._patience_s = patience_s
        self._timeout_s = timeout_s
        self._told: dict[str, Any] | None = None

    @property
    def protocol(self) -> Protocol:
        """The protocol that the server speaks."""
        return protocol_of(self.about()["engine"])

    def about(self) -> dict[str, Any]:
        """Ask the server, once, for its name, version, model and flags.

        Raises:
            EngineError: there is no server, or it does not have the model.
        """
        if self._told is None:
            with self._http() as http:
                self._told = self._ask(http)
        return self._told

    @property
    def identity(self) -> str:
        """What the texts of this server depend on, as canonical JSON."""
        return json.dumps(self.about(), sort_keys=True)

    def draw(self, blocks: Iterable[list[Draw]]) -> Generator[list[list[Sampled]]]:
        """Yield the samples of each block, in order, with later blocks already under way.

        Every request is repeated until it is answered, so that no text is left out for taking long. Ending the
        iteration early abandons what is under way.

        Yields:
            for every block, the samples of each of its draws.

        Raises:
            EngineError: a request failed for longer than the patience, or was refused, or its answer is unusable.
        """
        protocol, model = self.protocol, self.about()["model"]
        closed = threading.Event()
        waiting: deque[list[list[Future[list[Sampled]]]]] = deque()
        with self._http() as http:
            pool = ThreadPoolExecutor(self._requests, "rollouts")
            try:
                for block in blocks:
                    waiting.append(
                        [
                            [
                                pool.submit(self._sample, http, protocol, draw, body, closed)
                                for body in protocol.bodies(model, draw)
                            ]
                            for draw in block
                        ]
                    )
                    while sum(not part.done() for parts in waiting for draw in parts for part in draw) > self._requests:
                        yield _gathered(waiting.popleft())
                while waiting:
                    yield _gathered(waiting.popleft())
            finally:
                closed.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _sample(
        self, http: httpx.Client, protocol: Protocol, draw: Draw, body: dict[str, Any], closed: threading.Event
    ) -> list[Sampled]:
        answer = self._call(http, "POST", protocol.path, body, self._patience_s, closed)
        return read_samples(protocol, answer, draw, int(body.get("n", 1)))

    def _http(self) -> httpx.Client:
        key = os.environ.get(KEY)
        limits = httpx.Limits(max_connections=self._requests, max_keepalive_connections=self._requests)
        timeout = httpx.Timeout(self._timeout_s, connect=min(10.0, self._timeout_s))
        local = httpx.URL(self._root).host in ("localhost", "127.0.0.1", "::1")  # no proxy leads there
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self._root, timeout=timeout, limits=limits, headers=headers, trust_env=not local)

    def _ask(self, http: httpx.Client) -> dict[str, Any]:
        patience = min(self._patience_s, HELLO_S)
        answer = self._call(http, "GET", "/v1/models", None, patience)
        models = answer.get("data") if isinstance(answer, dict) else None
        names = {str(model.get("id")): model for model in models or () if isinstance(model, dict)}
        if self._model is None and len(names) != 1:
            raise EngineError(
                f"rollouts.served_model: the server has {', '.join(sorted(names)) or 'no model'}; name one of them"
            )
        name = next(iter(names)) if self._model is None else self._model
        if name not in names:
            raise EngineError(f"rollouts.served_model={name}: the server has {', '.join(sorted(names)) or 'no model'}")
        told = names[name]
        protocol = protocol_of(str(told.get("owned_by", "unknown")))
        about = {"engine": protocol.name, "model": name, "root": told.get("root"), "context": told.get("max_model_len")}
        try:
            details = self._call(http, "GET", protocol.about, None, patience)
        except EngineError:
            details = {}
        details = details if isinstance(details, dict) else {}
        return about | {"version": details.get(protocol.version)} | {flag: details.get(flag) for flag in protocol.flags}

    def _call(
        self,
        http: httpx.Client,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        patience_s: float,
        closed: threading.Event | None = None,
    ) -> Any:
        """Send a request until it is answered; return the answer's JSON."""
        until = time.monotonic() + patience_s
        pause = 0.25
        closed = closed or threading.Event()
        while True:
            try:
                response = http.request(method, path, json=body)
                if response.status_code not in _AGAIN:
                    break
                problem = f"{response.status_code} {_message(response)}"
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            if closed.is_set() or time.monotonic() + pause > until:
                raise EngineError(
                    f"rollouts.url={self._root}: the server does not answer ({problem}, tried for {patience_s:g} s); "
                    "finished blocks are stored, start the server and run this again"
                )
            log.debug("%s%s: %s; trying again in %.1f s", self._root, path, problem, pause)
            closed.wait(pause * (0.5 + random.random()))
            pause = min(2 * pause, LONGEST_PAUSE)
        if response.is_error:
            raise EngineError(f"rollouts.url={self._root}{path}: {response.status_code} {_message(response)}")
        try:
            return response.json()
        except ValueError:
            raise EngineError(f"rollouts.url={self._root}{path}: the answer is no JSON") from None


def _gathered(block: list[list[Future[list[Sampled]]]]) -> list[list[Sampled]]:
    return [[sample for part in draw for sample in part.result()] for draw in block]


def _message(response: httpx.Response) -> str:
    """Return the first line of a server's explanation."""
    try:
        told = response.json()
    except ValueError:
        told = response.text
    for key in ("error", "message", "detail"):
        if isinstance(told, dict) and key in told:
            told = told[key]
    lines = str(told).strip().splitlines()
    return lines[0][:200] if lines else response.reason_phrase
