"""The loaded models of a gateway, synchronized with the versions in the store."""

import asyncio
import logging
import math
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import orjson
from fsspec import AbstractFileSystem

from free_ml_stack.deployment.deploy import fetch
from free_ml_stack.deployment.versions import NAME, Algorithm, Build, read_index
from free_ml_stack.errors import StackError, is_external, one_line
from free_ml_stack.gateway.algorithms.batching import Batcher
from free_ml_stack.gateway.algorithms.workers import Worker, start
from free_ml_stack.hub.client import error_line
from free_ml_stack.project.science import Predictor

log = logging.getLogger(__name__)
MAX_MODELS = 8  # models kept in memory
MAX_WORKERS = 4  # maximum processes per model
WORKER_BYTES = 2 << 30  # folder size times processes of a model; a larger model gets fewer processes, at least one
DESCRIBE_SECONDS = 0.05  # seconds to describe answered calls
CLOSE_SECONDS = 5.0  # seconds for queued calls on shutdown; clients are answered or disconnected by then
LOAD_SECONDS = 600.0  # seconds to load a model
RETRY_SECONDS = 30.0  # seconds until new versions that could not be loaded are tried again


class LoadedModel(Batcher):
    """A loaded build of an algorithm."""

    def __init__(
        self, algorithm: str, build: Build, copy: str, start: Any, max_workers: int, queue: int, on_failure: Any
    ) -> None:
        super().__init__(f"{algorithm} {build.version or build.hash}", start, max_workers, queue, on_failure)
        self.algorithm, self.build, self.copy = algorithm, build, copy
        self.reference: dict[str, Any] | None = None  # the reference for drift

    async def close(self, seconds: float | None = None) -> None:
        """Answer queued questions, stop the processes, and remove the local copy."""
        await super().close(seconds)
        await asyncio.to_thread(shutil.rmtree, self.copy, ignore_errors=True)


class Models:
    """Resolves names and versions to models, which are loaded on first use.

    `store` is the project's; it is polled for new versions every `seconds`.
    """

    def __init__(
        self,
        store: AbstractFileSystem,
        predictor: Predictor | str,
        record: Callable[[str, dict[str, Any]], None],
        queue: int,
        seconds: float,
    ) -> None:
        self.store, self.predictor, self.record, self.queue, self.seconds = store, predictor, record, queue, seconds
        self.algorithms: dict[str, Algorithm] = {}
        self.by_reference: dict[tuple[str, str], LoadedModel] = {}  # by name and version as requested
        self.loaded: dict[str, LoadedModel] = {}  # by the build's id
        self.loading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by the build's id
        self.refreshing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by name
        self.failing: set[str] = set()  # names whose last refresh failed
        self.retries: dict[str, float] = {}  # by name: the loop's time to load its versions again
        self.closing: set[asyncio.Task[None]] = set()
        self.cache = ""  # the local folder for copies of model folders

    async def close(self) -> None:
        """Answer queued calls, stop the processes, and remove the local copies."""
        await asyncio.gather(*(model.close(CLOSE_SECONDS) for model in self.loaded.values()), *self.closing)
        shutil.rmtree(self.cache, ignore_errors=True)

    async def describe(self) -> None:
        """Have idle workers send the descriptions of answered calls, within 50 ms."""
        await asyncio.gather(*(model.describe(DESCRIBE_SECONDS) for model in self.loaded.values()))

    def find(self, name: str, reference: str) -> LoadedModel | None:
        """Return the model if it is loaded."""
        return self.by_reference.get((name, reference))

    async def get(self, name: str, reference: str) -> LoadedModel | None:
        """Return the model, loading it if necessary; None if there is no such version. Raises StackError."""
        if not NAME.fullmatch(name):
            return None
        known = self.find(name, reference) or await self._resolve(name, reference)
        if known:
            return known
        try:
            await self.refresh(name)  # it may be newer than the last poll
        except Exception as error:  # the clients of stores raise many types
            self._report(name, error)
            if name not in self.algorithms:
                raise StackError(f"cannot read the store: {error_line(error)}") from error
        return self.find(name, reference) or await self._resolve(name, reference)

    async def refresh(self, name: str) -> Algorithm | None:
        """Read the index of an algorithm; load new versions before they replace the current ones."""
        # One at a time: no older index replaces a newer one, and each returns after its versions are loaded.
        async with self.refreshing.setdefault(name, asyncio.Lock()):
            algorithm = await self._refresh(name)
        if name not in self.retries:
            self.failing.discard(name)
        return algorithm

    async def _refresh(self, name: str) -> Algorithm | None:
        algorithm = await asyncio.to_thread(read_index, self.store, name)
        before, time = self.algorithms.get(name), asyncio.get_running_loop().time
        if algorithm is None:
            self.algorithms.pop(name, None)
            for model in {model for (known, _), model in self.by_reference.items() if known == name}:
                self._remove(model)
        elif algorithm != before or time() > self.retries.get(name, math.inf):
            self.algorithms[name] = algorithm
            self.retries.pop(name, None)
            try:
                for known, reference in list(self.by_reference):
                    if known == name:
                        await self._resolve(name, reference)
            except Exception:
                self.retries[name] = time() + RETRY_SECONDS
                raise
        return algorithm

    async def watch(self) -> None:
        """Refresh periodically until cancelled."""
        while True:
            await asyncio.sleep(self.seconds)
            await self.refresh_all()

    async def refresh_all(self) -> None:
        """Refresh every algorithm that has been requested."""
        for name in list(self.algorithms):
            try:
                await self.refresh(name)
            except Exception as error:  # it must not end the polling
                self._report(name, error)

    def _report(self, name: str, error: Exception) -> None:
        """Report the first error since the last successful refresh."""
        if name not in self.failing:
            expected = isinstance(error, StackError) or is_external(error)
            line = error_line(error)
            log.warning("%s: cannot update, keeping the loaded versions: %s", name, line, exc_info=not expected)
        self.failing.add(name)

    async def _resolve(self, name: str, reference: str) -> LoadedModel | None:
        while build := self._build(name, reference):
            async with self.loading[build.build_id]:
                model = self.loaded.get(build.build_id)
                if model is None:
                    model = self.loaded[build.build_id] = await self._load(name, build)
            current = self._build(name, reference)
            if current and current.build_id == build.build_id:  # otherwise a rollback or a removal during the load
                model.build = current  # it may have been published or withdrawn
                self.by_reference[name, reference] = model
                self._evict()
                return model
        self.by_reference.pop((name, reference), None)
        return None

    def _build(self, name: str, reference: str) -> Build | None:
        algorithm = self.algorithms.get(name)
        return algorithm.resolve(reference) if algorithm else None

    async def _load(self, name: str, build: Build) -> LoadedModel:
        try:
            if not (self.cache and Path(self.cache).is_dir()):  # services such as systemd-tmpfiles delete old files
                self.cache = tempfile.mkdtemp(prefix="models-")
            copy = tempfile.mkdtemp(dir=self.cache)  # removed with the model; the same build may be loaded again before
        except OSError as error:
            raise StackError(f"cannot load {build.folder}: {one_line(error)}") from error
        try:
            return await self._load_copy(name, build, copy)
        except BaseException:
            shutil.rmtree(copy, ignore_errors=True)
            raise

    async def _load_copy(self, name: str, build: Build, copy: str) -> LoadedModel:
        folder = await asyncio.to_thread(fetch, self.store, build, copy)
        size = sum(path.stat().st_size for path in folder.rglob("*"))
        max_workers = max(1, min(MAX_WORKERS, WORKER_BYTES // max(size, 1)))

        def start_worker() -> Awaitable[Worker]:
            return start(self.predictor, folder, partial(self.record, name), LOAD_SECONDS)

        model = LoadedModel(name, build, copy, start_worker, max_workers, self.queue, self._remove)
        try:
            worker = await model.open()
        except (StackError, OSError) as error:
            raise StackError(f"cannot load {build.folder}: {error}") from error
        reference, _ = worker.ready.result()
        model.reference = orjson.loads(reference) if reference else None
        return model

    def _remove(self, model: Batcher) -> None:
        """Remove a model; its last calls are answered. After a failed start the next call retries."""
        self.loaded = {key: other for key, other in self.loaded.items() if other is not model}
        self.by_reference = {at: other for at, other in self.by_reference.items() if other is not model}
        self.closing.add(task := asyncio.ensure_future(model.close()))
        task.add_done_callback(self.closing.discard)

    def _evict(self) -> None:
        """Evict the oldest models that are not the latest version of an algorithm."""
        latest = {algorithm.latest() for algorithm in self.algorithms.values()}
        spare = [key for key, model in self.loaded.items() if model.build not in latest]
        for key in spare[: max(0, len(self.loaded) - MAX_MODELS)]:
            self._remove(self.loaded[key])
