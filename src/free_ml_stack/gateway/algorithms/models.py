"""The models that a gateway has loaded, kept in step with the versions in the store."""

import asyncio
import logging
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import orjson
from fsspec import AbstractFileSystem

from free_ml_stack.deployment.deploy import fetch
from free_ml_stack.deployment.versions import Algorithm, Build, read_index
from free_ml_stack.errors import StackError
from free_ml_stack.gateway.algorithms.batching import Batcher
from free_ml_stack.gateway.algorithms.workers import Worker, start
from free_ml_stack.project.science import Predictor

log = logging.getLogger(__name__)
LOADED = 8  # models kept in memory
WORKERS = 4  # processes of each at most
MEMORY = 2 << 30  # bytes that the folders of one model's processes may have: a large model has fewer, at least one
DESCRIBING = 0.05  # seconds for what was answered to be described
CLOSING = 5.0  # seconds for what is still asked when the gateway ends: all who wait are answered or cut off by then
LOADING = 600.0  # seconds for a model to be loaded


class Model(Batcher):
    """A loaded build of an algorithm."""

    def __init__(self, algorithm: str, build: Build, start: Any, most: int, queue: int, given_up: Any) -> None:
        super().__init__(f"{algorithm} {build.version or build.hash}", start, most, queue, given_up)
        self.algorithm, self.build = algorithm, build
        self.reference: dict[str, Any] | None = None  # what drift is measured against


class Models:
    """Finds the model that a name and a version stand for, and loads it when it is first wanted.

    `store` is the project's; `seconds` lie between two looks at whether it has new versions.
    """

    def __init__(
        self,
        store: AbstractFileSystem,
        predictor: Predictor | str,
        note: Callable[[str, dict[str, Any]], None],
        queue: int,
        seconds: float,
    ) -> None:
        self.store, self.predictor, self.note, self.queue, self.seconds = store, predictor, note, queue, seconds
        self.algorithms: dict[str, Algorithm] = {}
        self.answering: dict[tuple[str, str], Model] = {}  # by name and version as it was asked for
        self.loaded: dict[str, Model] = {}  # by the build's id
        self.loading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by the build's id
        self.closing: set[asyncio.Task[None]] = set()
        self.cache = ""  # the local folder of model folders

    async def close(self) -> None:
        """Let the models answer what they are asked, end their processes, and remove the local copies."""
        await asyncio.gather(*(model.close(CLOSING) for model in self.loaded.values()), *self.closing)
        if self.cache:
            shutil.rmtree(self.cache)
            self.cache = ""

    async def describe(self) -> None:
        """Let idle workers send what the log lacks of answered calls, within 50 ms."""
        await asyncio.gather(*(model.describe(DESCRIBING) for model in self.loaded.values()))

    def find(self, name: str, reference: str) -> Model | None:
        """The model if it is loaded already: one look-up."""
        return self.answering.get((name, reference))

    async def get(self, name: str, reference: str) -> Model | None:
        """The model, loaded if need be; None if the store has no such version. Raises StackError."""
        known = self.find(name, reference) or await self._settle(name, reference)
        if known:
            return known
        try:
            await self.refresh(name)  # it may have come since the last look
        except (StackError, OSError) as error:
            if name not in self.algorithms:
                raise
            log.warning("%s: the loaded versions go on: %s", name, error)
        return self.find(name, reference) or await self._settle(name, reference)

    async def refresh(self, name: str) -> Algorithm | None:
        """Look at the store; where a version is new, load it, and only then let it answer."""
        algorithm = await asyncio.to_thread(read_index, self.store, name)
        before = self.algorithms.get(name)
        if algorithm is None:
            self.algorithms.pop(name, None)
            for model in {model for (known, _), model in self.answering.items() if known == name}:
                self._give_up(model)
                self._replace(model)
        elif algorithm != before:
            self.algorithms[name] = algorithm
            for known, reference in list(self.answering):
                if known == name:
                    await self._settle(name, reference)
        return algorithm

    async def watch(self) -> None:
        """Refresh for ever."""
        while True:
            await asyncio.sleep(self.seconds)
            await self.refresh_all()

    async def refresh_all(self) -> None:
        """Look at the store for every algorithm that has been asked for."""
        for name in list(self.algorithms):
            try:
                await self.refresh(name)
            except (StackError, OSError) as error:
                log.warning("%s: the loaded versions go on: %s", name, error)

    async def _settle(self, name: str, reference: str) -> Model | None:
        algorithm = self.algorithms.get(name)
        build = algorithm.resolve(reference) if algorithm else None
        if build is None:
            self.answering.pop((name, reference), None)
            return None
        async with self.loading[build.build_id]:
            model = self.loaded.get(build.build_id)
            if model is None or model.build != build:
                model = await self._load(name, build)
                self._replace(self.loaded.get(build.build_id))
                self.loaded[build.build_id] = model
        self.answering[name, reference] = model
        self._forget()
        return model

    async def _load(self, name: str, build: Build) -> Model:
        self.cache = self.cache or tempfile.mkdtemp(prefix="models-")
        folder = await asyncio.to_thread(fetch, self.store, build, self.cache)
        size = sum(path.stat().st_size for path in folder.rglob("*"))
        most = max(1, min(WORKERS, MEMORY // max(size, 1)))

        def start_worker() -> Awaitable[Worker]:
            return start(self.predictor, folder, partial(self.note, name), LOADING)

        model = Model(name, build, start_worker, most, self.queue, self._give_up)
        try:
            worker = await model.open()
        except StackError as error:
            raise StackError(f"{build.folder} can't be loaded: {error}") from error
        reference, _ = worker.ready.result()
        model.reference = orjson.loads(reference) if reference else None
        return model

    def _replace(self, model: Model | None) -> None:
        if model:
            self.closing.add(task := asyncio.ensure_future(model.close()))
            task.add_done_callback(self.closing.discard)

    def _give_up(self, model: Batcher) -> None:
        """Forget a model that can no longer be started, so that the next call tries again and says why."""
        self.loaded = {key: other for key, other in self.loaded.items() if other is not model}
        self.answering = {at: other for at, other in self.answering.items() if other is not model}

    def _forget(self) -> None:
        """Drop the longest loaded models that are nobody's latest."""
        latest = {algorithm.latest() for algorithm in self.algorithms.values()}
        spare = [key for key, model in self.loaded.items() if model.build not in latest]
        for key in spare[: max(0, len(self.loaded) - LOADED)]:
            model = self.loaded[key]
            self._give_up(model)
            self._replace(model)
