"""An inference server over HTTP that serves a small base: the protocols of vLLM, SGLang, llama.cpp, and their failures.

It draws with the base itself and answers as the documentation of the two servers describes.
"""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from dinado.bases.causal import BaseLM
from dinado.bases.decoder import Decoder
from dinado.rollouts.proposal import Proposal
from dinado.rollouts.sampler import sample, uniforms


@dataclass
class Behaviour:
    """What the server does wrong.

    Attributes:
        owner: its name for itself, "vllm", "sglang" or "llamacpp".
        version: its version.
        fail: number of requests that it answers with ``status`` before it works.
        status: status of those answers.
        dead_after: number of answered requests after which all others fail.
        slow_s: seconds before every answer.
        shift: nats that its log-probabilities are above the truth.
        raw: tell log-probabilities before temperature.
        without_ids: answer with texts alone.
        without_eos: leave out the end-of-sequence token.
        context: its longest context.
    """

    owner: str = "vllm"
    version: str = "0.11.0"
    fail: int = 0
    status: int = 503
    dead_after: int | None = None
    slow_s: float = 0.0
    shift: float = 0.0
    raw: bool = False
    without_ids: bool = False
    without_eos: bool = False
    context: int = 64
    requests: list[dict[str, Any]] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0


class QuietServer(ThreadingHTTPServer):
    """A server that does not report clients that hang up."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class EngineServer:
    """A running server; use as a context manager."""

    def __init__(self, base: BaseLM, behaviour: Behaviour | None = None, port: int = 0) -> None:
        self.base, self.does = base, behaviour or Behaviour()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                does = outer.does
                about = {"version": does.version, "dtype": "float32", "tp_size": 1}
                models = {"data": [{"id": "tiny", "owned_by": does.owner, "root": "/m", "max_model_len": does.context}]}
                known = {"/v1/models": models, "/version": about, "/get_server_info": about}
                if does.owner == "llamacpp":
                    known = {"/v1/models": models, "/props": {"build_info": does.version, "model_ftype": "F32"}}
                self._answer(200 if self.path in known else 404, known.get(self.path, {"detail": "Not Found"}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(*outer.post(self.path, body))

            def _answer(self, status: int, told: Any) -> None:
                content = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._http = QuietServer(("127.0.0.1", port), Handler)
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> EngineServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._http.shutdown()
        self._http.server_close()

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Return the status and the answer of a request."""
        does = self.does
        with self._lock:
            does.under_way += 1
            does.most_under_way = max(does.most_under_way, does.under_way)
        time.sleep(does.slow_s)
        with self._lock:
            does.under_way -= 1
            if does.fail or (does.dead_after is not None and len(does.requests) >= does.dead_after):
                does.fail = max(0, does.fail - 1)
                return does.status, {"error": {"message": "out of memory"}}
            does.requests.append(body)
            if path == "/v1/completions" and does.owner != "sglang":
                return 200, self._completions(body)
            if path == "/generate" and does.owner == "sglang":
                return 200, self._generate(body)
            if path == "/completion" and does.owner == "llamacpp":
                return 200, self._completion(body)
            return 404, {"detail": "Not Found"}

    def _completions(self, body: dict[str, Any]) -> dict[str, Any]:
        choices = []
        seeds = [body["seed"] + index for index in range(body["n"])]
        for index, (tokens, log_s, finished) in enumerate(self._draw(body["prompt"], seeds, body, body["max_tokens"])):
            choice: dict[str, Any] = {"index": index, "text": self.base.decode(tokens)}
            choice["finish_reason"] = "stop" if finished else "length"
            choice["logprobs"] = {"token_logprobs": log_s, "tokens": [str(token) for token in tokens]}
            if not self.does.without_ids:
                choice["token_ids"] = tokens
            choices.append(choice)
        return {"object": "text_completion", "model": body["model"], "choices": choices[::-1]}

    def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        told = body["sampling_params"]
        drawn = self._draw(body["input_ids"], [told["sampling_seed"]], told, told["max_new_tokens"])
        tokens, log_s, finished = drawn[0]
        pairs = [[value, token, None] for value, token in zip(log_s, tokens, strict=True)]
        reason = {"type": "stop", "matched": tokens[-1]} if finished else {"type": "length", "length": len(tokens)}
        return {"output_ids": tokens, "meta_info": {"finish_reason": reason, "output_token_logprobs": pairs}}

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["samplers"] == ["temperature"], "whatever else the server does by default is left out"
        told = {"temperature": body["temperature"], "stop_token_ids": self.base.eos_ids}
        ((tokens, log_s, finished),) = self._draw(body["prompt"], [body["seed"]], told, body["n_predict"])
        pairs = [{"id": token, "prob": math.exp(value)} for token, value in zip(tokens, log_s, strict=True)]
        stop = "eos" if finished else "limit"
        return {"content": "", "tokens": tokens, "stop_type": stop, "completion_probabilities": pairs}

    def _draw(
        self, prompt: list[int], seeds: list[int], told: dict[str, Any], budget: int
    ) -> list[tuple[list[int], list[float], bool]]:
        """Draw as the request describes; return tokens, log-probabilities and whether each sample has ended."""
        ids_PS = torch.tensor([prompt])
        numbers_NT = torch.cat([uniforms([0], 1, budget, seed) for seed in seeds])
        decoder, proposal = Decoder(self.base.model), Proposal(told["temperature"])
        drawn = sample(decoder, ids_PS, torch.ones_like(ids_PS), tuple(told["stop_token_ids"]), numbers_NT, proposal)
        told_N = drawn.log_p if self.does.raw else drawn.log_s
        return [
            self._answered(tokens, [value - self.does.shift for value in log_s], finished)
            for tokens, log_s, finished in zip(drawn.tokens, told_N, drawn.finished, strict=True)
        ]

    def _answered(self, tokens: list[int], log_s: list[float], finished: bool) -> tuple[list[int], list[float], bool]:
        if self.does.without_eos and finished and len(tokens) > 1:
            return tokens[:-1], log_s[:-1], True
        return tokens, log_s, finished
