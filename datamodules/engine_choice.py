"""The inference server that training rollouts come from, and which of its stores a run reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dinado.rollouts.engine_client import EngineClient
from dinado.rollouts.served_texts import ServedTexts
from dinado.rollouts.shard import write_whole
from workbench.settings.config import Config


class EngineChoice:
    """Tells who the server is, from the server itself or as it was seen last.

    A complete store is read without the server, so that a run can be resumed and repeated when the server is gone or
    has another version; an incomplete one is filled by the server as it is now.

    Args:
        config: where the server is, and the cache in which its identity is kept.
    """

    def __init__(self, config: Config) -> None:
        self._client = engine_client(config)
        rollouts = config.rollouts
        name = hashlib.sha256(json.dumps([rollouts.url, rollouts.served_model]).encode()).hexdigest()[:16]
        self._seen = Path(config.data.cache) / "engines" / f"{name}.json"

    def last_seen(self) -> str | None:
        """Return the identity that the server had last, or None if it has never been asked."""
        try:
            return json.dumps(json.loads(self._seen.read_text(encoding="utf-8")), sort_keys=True)
        except (OSError, ValueError):
            return None

    def ask(self) -> str:
        """Return the identity that the server has now.

        Raises:
            EngineError: it is away, or lacks the model.
        """
        identity = self._client.identity
        if identity != self.last_seen():
            write_whole(self._seen, identity.encode("utf-8"))
        return identity


def engine_client(config: Config) -> EngineClient:
    """Return a client of the server of ``rollouts.url``; nothing is sent yet."""
    rollouts = config.rollouts
    assert rollouts.url is not None, "the rules require a URL"
    return EngineClient(
        rollouts.url,
        rollouts.served_model,
        requests=rollouts.requests,
        patience_s=rollouts.patience_s,
        timeout_s=rollouts.timeout_s,
    )


def served_texts(config: Config) -> ServedTexts | None:
    """Return the server as a source of texts; None where rollouts are drawn here."""
    if config.rollouts.engine == "local":
        return None
    return ServedTexts(engine_client(config), config.rollouts.max_difference)
