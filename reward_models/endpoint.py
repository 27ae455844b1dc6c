"""A model as judge behind an OpenAI-compatible endpoint: many requests at a time, each with its own time limit."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

from core.api import ConfigError, Score, ScorerContext, ScoreRequest
from reward_models import EndpointConfig
from reward_models.verdict import question_of, verdict_score

MAX_REPLY_BYTES = 1 << 20


class EndpointJudge:
    """The scorer: 1 or 0 as the reply's last verdict says. What goes wrong with a request, the time limit included, is
    an error of that request alone.

    Raises: ConfigError when the environment variable of the key is named but not set.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self.headers: dict[str, str] = {}
        if config.key_env:
            key = os.environ.get(config.key_env)
            if not key:
                raise ConfigError(
                    f"the environment variable '{config.key_env}' with the key of the endpoint is not set",
                    "key_env of the reward model or judge 'endpoint'",
                    f"export {config.key_env}=…, or set reward.key_env='' (judge.key_env='') where no key is needed",
                )  # fmt: skip
            self.headers["Authorization"] = f"Bearer {key}"

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One Score for each request, in order."""
        return asyncio.run(self._all(requests))

    async def _all(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        import httpx

        places = asyncio.Semaphore(self.config.concurrency)
        # Redirects are not followed and the environment's proxies and netrc are not read: the key goes nowhere else.
        async with httpx.AsyncClient(
            headers=self.headers, timeout=self.config.timeout_s, follow_redirects=False, trust_env=False
        ) as client:

            async def one(request: ScoreRequest) -> Score:
                async with places:
                    try:
                        return await asyncio.wait_for(self._one(client, request), self.config.timeout_s)
                    except TimeoutError:
                        return Score(None, error=f"timed out after {self.config.timeout_s:g} s")
                    except Exception as error:
                        return Score(None, error=f"{type(error).__name__}: {error}")

            return list(await asyncio.gather(*(one(request) for request in requests)))

    async def _one(self, client: Any, request: ScoreRequest) -> Score:
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": question_of(request, self.config.prompt)}],
            "temperature": 0,
            "max_tokens": self.config.max_new_tokens,
        }
        url = f"{self.config.url.rstrip('/')}/chat/completions"
        async with client.stream("POST", url, json=body) as reply:
            data = bytearray()
            async for piece in reply.aiter_bytes():
                data += piece
                if len(data) > MAX_REPLY_BYTES:
                    return Score(None, error="the reply is too long")
        if reply.status_code != 200:
            return Score(None, error=f"HTTP status {reply.status_code}")
        return _score(bytes(data))


def _score(data: bytes) -> Score:
    """The verdict in the body of a reply."""
    try:
        text = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return Score(None, error="the reply is not that of an OpenAI-compatible endpoint")
    return verdict_score(text if isinstance(text, str) else str(text))


def build(config: EndpointConfig, context: ScorerContext) -> EndpointJudge:  # noqa: ARG001 - signature of every build
    """The judge."""
    return EndpointJudge(config)
