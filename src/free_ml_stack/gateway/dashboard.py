"""The gateway's own reports: the page at `/` and its figures, `/metrics` for Prometheus, insights."""

import asyncio
import logging
import math
import re
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson

from free_ml_stack.deployment.versions import Build
from free_ml_stack.gateway.algorithms.models import Models
from free_ml_stack.gateway.http import HTTPError, Request
from free_ml_stack.gateway.log.call_log import CallLog
from free_ml_stack.gateway.log.statistics import (
    CLASSES,
    PER_OCTAVE,
    WINDOW,
    Counts,
    percentiles,
    sum_classes,
    upper_end,
)

log = logging.getLogger(__name__)
INSIGHT_BYTES, INSIGHT_KEYS = 25_000, 25
INSIGHT_NAME = re.compile(r"[A-Za-z_][\w .:/-]{0,63}", re.ASCII)
INSIGHT_NAMES = 300  # different names kept
INSIGHT_RATE = 100  # reports accepted per second
RESERVED = {
    "request_id", "timestamp", "duration_milliseconds", "algorithm_owner", "algorithm_name", "algorithm_version",
}  # fmt: skip
STEP = 5  # seconds between two points of a time series
SECURITY_HEADERS = {
    "content_security_policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "referrer_policy": "no-referrer",
    "x_content_type_options": "nosniff",
    "cache_control": "no-store",
}


class Dashboard:
    """Reports on the algorithm `owner/name`."""

    def __init__(self, owner: str, name: str, models: Models, call_log: CallLog) -> None:
        self.owner, self.name, self.models, self.log = owner, name, models, call_log
        self.reports = 0, 0  # a second, and the number of reports in it

    async def __call__(self, request: Request) -> None:
        """Answer `/`, `/stats` and `/metrics`; the page itself contains no data and needs no key."""
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405, "only GET and HEAD are supported here")
        if request.path == "/":
            status = 401 if request.user is None else 200
            await request.answer_bytes(status, page(), "text/html; charset=utf-8", **SECURITY_HEADERS)
        elif request.path == "/stats":
            await request.answer(await self.figures(), **SECURITY_HEADERS)
        else:
            await self.models.describe()
            self.log.process_pending()
            text = await asyncio.to_thread(self.exposition)
            await request.answer_bytes(200, text, "text/plain; version=0.0.4; charset=utf-8")

    async def insights(self, request: Request) -> None:
        """Record a list of `{"insight_key", "insight_value"}`. Raises HTTPError if it is invalid or over a limit."""
        if request.method != "POST":
            raise HTTPError(405, "send insights with POST")
        if not request.header(b"content-type").startswith("application/json"):  # HTML forms cannot send this type
            raise HTTPError(415, "insights must be JSON (Content-Type: application/json)", 2013)
        self._count_report()
        found = read_insights(await request.body(INSIGHT_BYTES))
        if len({*self.log.statistics.counts.insights, *found}) > INSIGHT_NAMES:
            raise HTTPError(400, f"too many insights: at most {INSIGHT_NAMES} different names are kept")
        self.log.report(self.name, found)
        await request.answer({"result": len(found)})

    def _count_report(self) -> None:
        second, count = self.reports
        now = int(time.monotonic())
        self.reports = now, count + 1 if now == second else 1
        if self.reports[1] > INSIGHT_RATE:
            raise HTTPError(429, f"rate limit: at most {INSIGHT_RATE} reports per second", retry_after="1")

    async def figures(self) -> dict[str, Any]:
        """Return the figures of the page."""
        await self.models.describe()
        self.log.process_pending()
        counts = await asyncio.to_thread(self.log.statistics.total)
        drift, now = await asyncio.to_thread(self.drift, counts), int(time.time())
        return {
            "algorithm": f"{self.owner}/{self.name}",
            "now": now,
            "uptime": time.time() - self.log.statistics.started,
            "versions": [self._version(build, counts) for build in self._published()],
            "calls": sum(counts.calls.values()),
            "errors": counts.errors,
            "watched": counts.watched,
            "latency": latency(counts, now),
            "series": series(counts, now),
            "drift": drift,
            "insights": counts.insights,
            "recent": counts.latest()[:-21:-1],
        }

    def drift(self, counts: Counts) -> dict[str, Any] | None:
        """Compare recent calls of the latest version with its reference; return None without a reference."""
        from free_ml_stack.evaluation.drift import drift

        model = self.models.find(self.name, "")
        if not model or not model.reference:
            return None
        mine = [entry for entry in counts.latest() if entry["version"] == model.build.version]
        try:
            return drift(model.reference, [entry["watched"] for entry in mine if "watched" in entry])
        except (KeyError, TypeError, ValueError) as error:
            log.warning("%s/reference.json is invalid: %s", model.build.folder, error)
            return None

    def exposition(self) -> bytes:
        """Return the counts in the Prometheus format."""
        from prometheus_client import generate_latest
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        counts = self.log.statistics.total()
        calls = CounterMetricFamily("algorithm_calls", "Calls by version.", labels=["version"])
        errors = CounterMetricFamily("algorithm_errors", "Calls that failed, by type.", labels=["error_type"])
        watched = CounterMetricFamily("algorithm_watched", "Calls by category.", labels=["quantity", "value"])
        for quantity, values in counts.watched.items():
            for category, count in values.items():
                watched.add_metric([quantity, category], count)
        for family, counter in ((calls, counts.calls), (errors, counts.errors)):
            for name, value in counter.items():
                family.add_metric([name], value)
        seconds = HistogramMetricFamily("algorithm_call_seconds", "Latency of calls in seconds.")
        seconds.add_metric([], buckets(counts.latency), sum_value=counts.latency_sum)
        shift = GaugeMetricFamily("algorithm_drift", "Stability index against training.", labels=["quantity"])
        for name, score in (self.drift(counts) or {"scores": {}})["scores"].items():
            shift.add_metric([name], score)
        insight = GaugeMetricFamily("algorithm_insight", "Latest insights reported by the algorithm.", labels=["key"])
        for name, reported in counts.insights.items():
            insight.add_metric([name], reported)
        waiting = GaugeMetricFamily("algorithm_waiting_calls", "Calls waiting for a model.")
        waiting.add_metric([], sum(len(model.waiting) for model in self.models.loaded.values()))
        families = [calls, errors, watched, seconds, shift, insight, waiting]
        return generate_latest(SimpleNamespace(collect=lambda: families))

    def _published(self) -> list[Build]:
        algorithm = self.models.algorithms.get(self.name)
        return algorithm.published() if algorithm else []

    def _version(self, build: Build, counts: Counts) -> dict[str, Any]:
        model = self.models.find(self.name, "")
        return {
            "version": build.version,
            "since": build.finished_at,
            "notes": build.release_notes,
            "live": model is not None and model.build.build_id == build.build_id,
            "withdrawn": build.withdrawn,
            "calls": counts.calls[build.version],
        }


def read_insights(body: bytes) -> dict[str, float]:
    """Return the insights of a report by name. Raises HTTPError if the report is invalid."""
    try:
        found = {item["insight_key"]: float(item["insight_value"]) for item in orjson.loads(body)}
        named = all(INSIGHT_NAME.fullmatch(name) for name in found)
    except (ValueError, TypeError, KeyError):
        raise HTTPError(400, "expected a list of objects with insight_key and a numeric insight_value") from None
    if not named or RESERVED & set(found):
        raise HTTPError(400, "insight_key: expected up to 64 letters, digits and _ .:/-, and no reserved name")
    if len(found) > INSIGHT_KEYS or not all(map(math.isfinite, found.values())):
        raise HTTPError(400, f"expected at most {INSIGHT_KEYS} insights with finite values")
    return found


@cache
def page() -> bytes:
    """Return the page at `/`."""
    return (Path(__file__).parent / "page.html").read_bytes()


def latency(counts: Counts, now: int) -> dict[str, float | None]:
    """Return latency percentiles of the window in seconds."""
    recent = (second[2] for at, second in counts.seconds.items() if int(at) > now - WINDOW)
    return dict(zip(("p50", "p90", "p99"), percentiles(sum_classes(recent), (50, 90, 99)), strict=True))


def series(counts: Counts, now: int) -> list[list[Any]]:
    """Return `[time, calls per second, errors per second, median, 99th percentile]` of the window, oldest first."""
    points = []
    for begin in range(now - now % STEP - WINDOW + STEP, now - now % STEP, STEP):
        seconds = [counts.seconds[str(at)] for at in range(begin, begin + STEP) if str(at) in counts.seconds]
        calls, errors = (sum(second[place] for second in seconds) / STEP for place in (0, 1))
        points.append([begin, calls, errors, *percentiles(sum_classes(s[2] for s in seconds), (50, 99))])
    return points


def buckets(classes: list[int]) -> list[tuple[str, float]]:
    """Return cumulative Prometheus buckets, one per octave."""
    found = [(f"{upper_end(place):.4g}", float(sum(classes[: place + 1]))) for place in range(0, CLASSES, PER_OCTAVE)]
    return [*found, ("+Inf", float(sum(classes)))]
