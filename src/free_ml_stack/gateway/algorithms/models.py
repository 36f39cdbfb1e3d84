"""The models that a gateway has loaded, kept in step with the versions in the store."""

import asyncio
import logging
import shutil
import tempfile
from typing import Any

import orjson
from fsspec import AbstractFileSystem

from free_ml_stack.deployment.deploy import fetch
from free_ml_stack.deployment.versions import Algorithm, Build, read_index
from free_ml_stack.errors import StackError
from free_ml_stack.gateway.algorithms.batching import Batcher
from free_ml_stack.project.science import Predictor

log = logging.getLogger(__name__)
LOADED = 16  # models kept in memory
REFERENCE, SAMPLE = "reference.json", "sample.json"


class Model(Batcher):
    """A loaded build of an algorithm."""

    def __init__(self, predictor: Predictor, model: Any, queue: int, algorithm: str, build: Build) -> None:
        super().__init__(predictor, model, queue)
        self.algorithm, self.build = algorithm, build
        self.reference: dict[str, Any] | None = None  # what drift is measured against


class Models:
    """Finds the model that a name and a version stand for, and loads it when it is first wanted.

    `store` is the project's; `seconds` lie between two looks at whether it has new versions.
    """

    def __init__(self, store: AbstractFileSystem, predictor: Predictor, queue: int, seconds: float) -> None:
        self.store, self.predictor, self.queue, self.seconds = store, predictor, queue, seconds
        self.algorithms: dict[str, Algorithm] = {}
        self.answering: dict[tuple[str, str], Model] = {}  # by name and version as it was asked for
        self.loaded: dict[str, Model] = {}  # by the build's id
        self.loading = asyncio.Lock()
        self.cache = ""  # the local folder of model folders

    def close(self) -> None:
        """Remove the local copies."""
        if self.cache:
            shutil.rmtree(self.cache)
            self.cache = ""

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
        async with self.loading:
            model = self.loaded.get(build.build_id)
            if model is None or model.build != build:
                model = await asyncio.to_thread(self._load, name, build)
        self.loaded[build.build_id] = self.answering[name, reference] = model
        self._forget()
        return model

    def _load(self, name: str, build: Build) -> Model:
        self.cache = self.cache or tempfile.mkdtemp(prefix="models-")
        folder = fetch(self.store, build, self.cache)
        try:
            model = Model(self.predictor, self.predictor.load(folder), self.queue, name, build)
            if (folder / REFERENCE).exists():
                model.reference = orjson.loads((folder / REFERENCE).read_bytes())
            if (folder / SAMPLE).exists():
                model.warm_up(orjson.loads((folder / SAMPLE).read_bytes())["input"])
            return model
        except Exception as error:
            raise StackError(f"{build.folder} can't be loaded: {error}") from error

    def _forget(self) -> None:
        """Drop the longest loaded models that are nobody's latest."""
        latest = {algorithm.latest() for algorithm in self.algorithms.values()}
        spare = [key for key, model in self.loaded.items() if model.build not in latest]
        for key in spare[: max(0, len(self.loaded) - LOADED)]:
            model = self.loaded.pop(key)
            self.answering = {at: other for at, other in self.answering.items() if other is not model}
