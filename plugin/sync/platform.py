"""The platform's three routes, over one `Web`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Self

import msgspec

from plugin.config import Config
from plugin.credentials import Credential, platform_credential
from plugin.errors import BadEndpoint
from plugin.secret import Secret
from plugin.store.interface import Batch
from plugin.web import Answer, Reach, Web, check_url


class Platform:
    """One configuration's way to the platform: its address, its token, its connections.

    Each call returns the answer, whatever its status, without the token's text should the platform repeat it; or
    raises NoAnswer (always ambiguous) or BadEndpoint (nothing was sent).
    """

    def __init__(self, url: str, web: Web, credential: Credential) -> None:
        self.url = url
        self._web = web
        self._credential = credential
        self._calls = 0
        self._retired = False

    @classmethod
    def of(cls, config: Config, environ: Mapping[str, str]) -> Self:
        """Build it from the configuration; ConfigInvalid when its CA file or proxy cannot be used.

        A base URL that must not be contacted is no error here: each call says so.
        """
        settings = config.platform
        reach = Reach(
            timeout_s=settings.timeout_s,
            ca_file=settings.ca_file,
            proxy=settings.proxy,
            allow_insecure_http=settings.allow_insecure_http,
            allow_hosts=settings.allow_hosts,
        )
        try:
            url = check_url(settings.base_url, reach)
        except BadEndpoint:
            url = settings.base_url.rstrip("/")
        return cls(url, Web(reach), platform_credential(config, environ))

    def token(self, *, anew: bool = False) -> Secret | None:
        """Return the token there is now; `anew` reads its file even if its stat is as before."""
        if anew:
            self._credential.forget()
        return self._credential.current()

    @property
    def token_problem(self) -> str:
        """Why the last `token` found none."""
        return self._credential.problem or ""

    async def sync(self, batch: Batch, body: bytes, token: Secret) -> Answer:
        """Send a batch under its idempotency key."""
        return await self._call("POST", "/v1/agent/sync", token, body=body, headers={"idempotency-key": batch.key})

    async def context(self, agent_id: str, since: str | None, token: Secret) -> Answer:
        """Ask for fleet context, newest first; `since` is inclusive."""
        query = {"agent_id": agent_id} | ({"since": since} if since else {})
        return await self._call("GET", "/v1/agent/context", token, query=query)

    async def status(self, agent_id: str, token: Secret) -> Answer:
        """Ask what the platform knows of an agent."""
        return await self._call("GET", "/v1/agent/status", token, query={"agent_id": agent_id})

    async def retire(self) -> None:
        """Close the connections once the requests in flight are done; may be called again."""
        self._retired = True
        if self._calls == 0:
            await self._web.close()

    async def _call(
        self,
        method: str,
        path: str,
        token: Secret,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        self._calls += 1
        try:
            answer = await self._web.request(
                method,
                self.url + path,
                token=token,
                query=query,
                body=body,
                headers={"accept": "application/json", **(headers or {})},
            )
        finally:
            self._calls -= 1
            if self._retired and self._calls == 0:
                await self._web.close()
        return _without(token, answer)


@dataclass(slots=True)
class Scope:
    """The configuration in force and the platform it names; both are replaced together at run time."""

    config: Config
    platform: Platform


def request_body(batch: Batch) -> bytes:
    """Put the stored bodies together, byte for byte: the same batch gives the same bytes at each retry."""
    return b'{"agent_id":%b,"dispatches":[%b]}' % (msgspec.json.encode(batch.agent_id), b",".join(batch.bodies))


def _without(token: Secret, answer: Answer) -> Answer:
    """Take the token out of an error's text, which a person may read; other bodies are data and stay as they are."""
    if answer.status < HTTPStatus.MULTIPLE_CHOICES:
        return answer
    return replace(answer, body=re.sub(_spelt(token.reveal()), b"***", answer.body))


def _spelt(text: str) -> bytes:
    """Return a pattern for a text of ASCII as it is, and as JSON or a URL may spell it."""
    return b"".join(
        rb"(?:\\?%b|(?i:\\u00%02x|%%%02x))" % (re.escape(char.encode()), ord(char), ord(char)) for char in text
    )
