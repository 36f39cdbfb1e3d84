"""Rate limits of the Hub: requests per account, and commits per repository.

Requests are counted over windows of five minutes, and each response contains the rest (docs: rate-limits, for a free
account). Commits are counted over an hour; the docs give no number. The message is the Hub's (datasets#6257,
huggingface_hub#3186; the number is that of a new account).
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

COMMITS, HOUR = 128, 3600
REQUESTS = {"api": 1000, "resolvers": 5000}
WINDOW = 300
REFUSED = (
    "You have exceeded the rate limit for repository commits ({} per hour). You can retry this action in about {}. "
    "If you're a new user, your limits will raise progressively over time. "
    "Get in touch with us at website@huggingface.co if you need access now."
)
SLOWED = (
    "We had to rate limit you, you hit the quota of {} {} requests per 5 minutes period. Upgrade to a PRO user or "
    "Team/Enterprise organization account (https://hf.co/pricing) to get higher limits. "
    "See https://huggingface.co/docs/hub/rate-limits"
)


class Limits:
    """An app with rate limits. `exceeded` lists rejected requests; a test fails if it is not empty at the end.

    `clock` returns the time in seconds, so that tests need not wait for an hour.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.clock: Callable[[], float] = time.time
        self.exceeded: list[str] = []
        self.commits: defaultdict[str, list[float]] = defaultdict(list)  # times by repository
        self.hourly, self.requests = COMMITS, dict(REQUESTS)  # the limits
        self.counts: Counter[tuple[str, bytes, int]] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind = "resolvers" if "/resolve/" in scope["path"] else "api" if scope["path"].startswith("/api/") else ""
        if scope["type"] != "http" or not kind:
            return await self.app(scope, receive, send)
        window, now = divmod(int(self.clock()), WINDOW)
        counted = (kind, dict(scope["headers"]).get(b"authorization", b""), window)
        self.counts[counted] += 1
        left = max(0, self.requests[kind] - self.counts[counted])
        fields = [
            (b"ratelimit", f'"{kind}";r={left};t={WINDOW - now}'.encode()),
            (b"ratelimit-policy", f'"fixed window";"{kind}";q={self.requests[kind]};w={WINDOW}'.encode()),
        ]

        async def send_limited(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *fields]}
            await send(message)

        if self.counts[counted] <= self.requests[kind]:
            return await self.app(scope, receive, send_limited)
        self.exceeded.append(f"{scope['method']} {scope['path']}")
        body = json.dumps({"error": SLOWED.format(self.requests[kind], kind)}).encode()
        await send_limited(
            {"type": "http.response.start", "status": 429, "headers": [(b"content-type", b"application/json")]}
        )
        await send_limited({"type": "http.response.body", "body": body})
        return None

    def refused(self, repo: str) -> str:
        """Count a commit to a repository; return the error message if it is rejected."""
        now = self.clock()
        recent = self.commits[repo] = [then for then in self.commits[repo] if now - then < HOUR]
        if len(recent) < self.hourly:
            recent.append(now)
            return ""
        self.exceeded.append(f"commit to {repo}")
        minutes = max(1, round((HOUR - (now - recent[0])) / 60))
        return REFUSED.format(self.hourly, "1 hour" if minutes >= 60 else f"{minutes} minutes")
