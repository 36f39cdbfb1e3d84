"""Weights & Biases on loopback, for its unmodified client (wandb 0.31).

`python tests/services/wandb_server.py` serves one until Ctrl-C and prints its address, for WANDB_BASE_URL. Any key of 40
characters is valid, except those in `refused`. The docstring of each operation names the source of its format: "core"
is the text of the query in wandb-core 0.31, "client" the query or the pydantic class in wandb's Python code, "guide"
docs.wandb.ai. The client ignores additional fields, so nodes are always complete.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from services.hub_faults import Faulty, Protocol
from services.ports import listening
from services.wandb_queries import ordered, wanted
from services.wandb_store import CREATED, Artifact, Run, Store, Sweep, read

KEY = "0123456789abcdef" * 2 + "01234567"
USER, TEAM = "me", "team"
Variables = dict[str, Any]


class RefusedError(Exception):
    """An error response: status and message."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Wandb:
    """The service: `store` has all received data, `faults` the injected faults, `calls` all requests by name.

    A GraphQL request is named `POST /graphql/UpsertBucket`, by its operation. `sent` records (operation, variables).
    """

    def __init__(self) -> None:
        self.url = ""
        self.store = Store()
        self.refused: set[str] = set()
        self.sent: list[tuple[str, Variables]] = []
        self.lock = threading.Lock()
        routes = [
            Route("/graphql/{operation}", self.graphql, methods=["POST"]),
            Route("/files/{entity}/{project}/{run}/file_stream", self.file_stream, methods=["POST"]),
            Route("/storage/{path:path}", self.put, methods=["PUT"]),
            Route("/storage/{path:path}", self.get, methods=["GET", "HEAD"]),
            Route("/{path:path}", self.nothing, methods=["GET", "POST", "PUT"]),
        ]
        self.faulty = Faulty(Starlette(routes=routes))
        self.faults, self.calls = self.faulty.faults, self.faulty.calls
        self.app = named(self.faulty)

    async def graphql(self, request: Request) -> Response:
        """Answer an operation with a valid key. An unknown one is a GraphQL error (the client shows it)."""
        operation, body = request.path_params["operation"], await request.json()
        variables = body.get("variables") or {}
        self.sent.append((operation, variables))
        key = base64.b64decode(request.headers.get("authorization", "").removeprefix("Basic ")).decode()
        if not key.startswith("api:") or len(key) < 44 or key[4:] in self.refused:
            if operation in ("Viewer", "GetViewer"):
                return JSONResponse({"data": {"viewer": None}})
            return error(401, "user is not logged in")
        if operation not in OPERATIONS:
            return error(400, f"unknown operation {operation}")
        try:
            return JSONResponse({"data": OPERATIONS[operation](self, variables)})
        except RefusedError as refusal:
            return error(refusal.status, refusal.text)
        except (KeyError, TypeError) as fault:  # the client would retry after a 5xx for minutes
            return error(400, f"{operation}: {fault!r}")

    async def file_stream(self, request: Request) -> Response:
        """core: filestream; offsets, `complete`, `exitcode`, `preempting`. The response may contain limits."""
        place = request.path_params
        run = self.store.runs.get((place["entity"], place["project"], place["run"]))
        if run is None:
            return error(404, "run not found")
        run.stream(await request.json())
        if run.exit_code is not None:
            self.store.ended(run)
            run.exit_code = None
        return JSONResponse({"exitcode": None, "limits": {}})

    async def put(self, request: Request) -> Response:
        """Store an uploaded file."""
        path, body = request.path_params["path"], await request.body()
        self.store.blobs[path] = body
        kind, entity, project, run, *name = [*path.split("/"), "", "", ""]
        if kind == "run":
            self.store.runs[entity, project, run].files["/".join(name).strip("/")] = body
        return Response()

    async def get(self, request: Request) -> Response:
        """Return an uploaded file."""
        blob = self.store.blobs.get(request.path_params["path"])
        return Response(blob) if blob is not None else error(404, "no such file")

    async def nothing(self, request: Request) -> Response:
        """Reject unsupported paths, such as telemetry (core: 404 means unsupported)."""
        return error(404, f"not served here: {request.url.path}")

    # Accounts

    def viewer(self, _: Variables) -> Any:
        """client: apis/_generated/get_viewer.py; core: Viewer."""
        teams = {"edges": [{"node": {"name": name}} for name in (USER, TEAM)]}
        viewer = {"id": "VXNlcjox", "name": USER, "username": USER, "entity": USER, "email": "me@example.org"}
        return {
            "viewer": {
                **viewer,
                "admin": False,
                "flags": "{}",
                "deletedAt": None,
                "apiKeys": None,
                "teams": teams,
            }
        }

    def features(self, _: Variables) -> Any:
        """core: ServerFeaturesQuery; none is supported."""
        return {"serverInfo": {"features": []}}

    def no_entity(self, _: Variables) -> Any:
        """core: OrganizationCoreWeaveOrganizationID, XXHashDigestsEnabled; a private account has no organization."""
        return {"entity": {"organization": None, "xxhashDigestsEnabled": False}}

    def upsert_project(self, variables: Variables) -> Any:
        """client: apis/_generated/create_project.py."""
        given = variables.get("input") or variables
        name, entity = (
            given.get("name") or given.get("project"),
            given.get("entityName") or given.get("entity"),
        )
        return {
            "upsertModel": {
                "model": self.project(entity or USER, name),
                "project": self.project(entity or USER, name),
            }
        }

    def entity_of(self, variables: Variables) -> str:
        """Return the account of a call, by default the caller's. Raises RefusedError for other accounts."""
        entity = variables.get("entity") or variables.get("entityName") or USER
        if entity not in (USER, TEAM):
            # wandb#2484: the message of the service
            raise RefusedError(404, f"entity {entity} not found during upsertBucket")
        return str(entity)

    def project(self, entity: str, name: str) -> dict[str, Any]:
        """Return a project's node."""
        owner = {"id": f"entity:{entity}", "name": entity}
        facts = {"id": f"project:{name}", "internalId": f"project:{name}", "name": name, "readOnly": False}
        return {**facts, "entityName": entity, "entity": owner, "createdAt": CREATED}

    # Runs

    def found(self, variables: Variables) -> Run | None:
        """Return the run of a query."""
        name = variables.get("run") or variables.get("runName") or variables.get("name")
        project = variables.get("project") or variables.get("projectName") or "uncategorized"
        return self.store.runs.get((self.entity_of(variables), project, name))

    def upsert_run(self, variables: Variables) -> Any:
        """core: UpsertBucket; by name at first, by id afterwards."""
        entity, name = self.entity_of(variables), variables.get("name")
        project = variables.get("project") or "uncategorized"
        run = next((run for run in self.store.runs.values() if run.id == variables.get("id")), None)
        run = run or self.store.runs.get((entity, project, name))
        inserted = run is None
        if run is None:
            run = self.store.runs[entity, project, name] = Run(name, entity, project)
        run.facts |= {key: value for key, value in variables.items() if value is not None}
        run.started, run.state = True, "running"
        if variables.get("config"):
            run.config = read(variables["config"])
        if variables.get("summaryMetrics"):
            run.summary = read(variables["summaryMetrics"])
        return {"upsertBucket": {"bucket": self.node(run), "inserted": inserted}}

    def resume_status(self, variables: Variables) -> Any:
        """core: RunResumeStatus; `wandbConfig` distinguishes a started run from one only created for an agent."""
        run = self.found(variables)
        model = self.project(self.entity_of(variables), variables["project"])
        if run is None or not run.started:
            return {"model": {**model, "bucket": None}}
        lines = {name: run.streams.get(f"wandb-{name}.jsonl", []) for name in ("history", "events")}
        tails = {f"{name}Tail": json.dumps(found[-1:]) for name, found in lines.items()}
        counts = {f"{name}LineCount": len(found) for name, found in lines.items()}
        log = {"logLineCount": len(run.streams.get("output.log", [])), "wandbConfig": json.dumps({"t": 1})}
        return {"model": {**model, "bucket": {**self.node(run), **tails, **counts, **log}}}

    def node(self, run: Run) -> dict[str, Any]:
        """Return a run's node (client: RUN_FRAGMENT in apis/public/runs.py; core: UpsertBucket)."""
        history = run.history
        keys = {key: {"typeCounts": [{"type": "number", "count": len(history)}]} for row in history for key in row}
        last = max((row.get("_step", 0) for row in history), default=-1)
        return {
            "id": run.id,
            "name": run.name,
            "projectId": 1,
            "project": self.project(run.entity, run.project),
            "displayName": run.facts.get("displayName") or run.name,
            "description": run.facts.get("description"),
            "notes": run.facts.get("notes"),
            "tags": run.facts.get("tags") or [],
            "group": run.facts.get("groupName"),
            "jobType": run.facts.get("jobType"),
            "commit": run.facts.get("commit"),
            "sweepName": run.facts.get("sweep"),
            "state": run.state,
            "config": json.dumps(run.config),
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "historyLineCount": len(history),
            "historyKeys": {"lastStep": last, "keys": keys, "sets": []},
            "readOnly": False,
            "createdAt": CREATED,
            "heartbeatAt": CREATED,
            "user": {"name": USER, "username": USER},
            "stopped": run.stopped,
        }

    def run(self, variables: Variables) -> Any:
        """client: Run._load_with_fragment, history and artifacts; core: HistoryPage, RunParquetHistory, RunState."""
        run = self.found(variables)
        if run is None:
            return {"project": {"run": None}}
        low, high = variables.get("minStep", 0), variables.get("maxStep", sys.maxsize)
        rows = [row for row in run.history if low <= row["_step"] < high]
        history = [json.dumps(row) for row in rows]
        live = {"parquetUrls": [], "liveData": rows}
        names = variables.get("fileNames") or variables.get("names") or []
        files = [self.file(run, name) for name in run.files if not names or name in names]
        more = {"history": history, "parquetHistory": live, "sampledHistory": [rows]}
        more |= {"files": connection(files), "fileCount": len(files)}
        return {"project": {**self.project(run.entity, run.project), "run": {**self.node(run), **more}}}

    def file(self, run: Run, name: str) -> dict[str, Any]:
        """Return a file of a run (client: apis/public/files.py)."""
        url = f"{self.url}/storage/run/{run.entity}/{run.project}/{run.name}/{name}"
        body = run.files[name]
        facts = {"id": f"file:{name}", "name": name, "url": url, "directUrl": url, "sizeBytes": len(body)}
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        return {
            **facts,
            "mimetype": None,
            "updatedAt": CREATED,
            "md5": digest,
            "digest": digest,
            "storagePath": name,
        }

    def runs(self, variables: Variables) -> Any:
        """client: _create_runs_query in apis/public/runs.py; filters are MongoDB's, as in the guide."""
        entity = self.entity_of(variables)
        here = [run for run in self.store.runs.values() if (run.entity, run.project) == (entity, variables["project"])]
        found = wanted([self.node(run) for run in here], json.loads(variables.get("filters") or "{}"))
        found = ordered(found, variables.get("order") or "")
        return {
            "project": {
                **self.project(entity, variables["project"]),
                "runCount": len(found),
                "runs": connection(found),
            }
        }

    def run_files(self, variables: Variables) -> Any:
        """core: CreateRunFiles."""
        run = self.found(variables)
        if run is None:
            raise RefusedError(404, "run not found")
        base = f"{self.url}/storage/run/{run.entity}/{run.project}/{run.name}"
        files = [{"name": name, "uploadUrl": f"{base}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": run.id, "uploadHeaders": [], "files": files}}

    def uploaded(self, _: Variables) -> Any:
        """core: MarkRunFilesUploaded."""
        return {"markRunFilesUploaded": {"success": True}}

    # Sweeps

    def upsert_sweep(self, variables: Variables) -> Any:
        """client: upsert_sweep and set_sweep_state in apis/public/sweeps.py."""
        if variables.get("config"):
            entity, project = self.entity_of(variables), variables.get("projectName") or "uncategorized"
            sweep = self.store.sweep(variables["config"], entity, project)
        else:
            sweep = self.store.sweeps[variables["id"].removeprefix("sweep:")]
            sweep.state = variables.get("state") or sweep.state
        return {"upsertSweep": {"sweep": self.sweep_node(sweep), "configValidationWarnings": []}}

    def sweep_node(self, sweep: Sweep) -> dict[str, Any]:
        """Return a sweep's node (client: SweepFragment in apis/_generated, and the query SweepWithRuns)."""
        runs = [self.node(self.store.runs[sweep.entity, sweep.project, name]) for name in sweep.runs]
        return {
            "__typename": "Sweep",
            "id": f"sweep:{sweep.name}",
            "name": sweep.name,
            "displayName": None,
            "method": sweep.config["method"],
            "state": sweep.state,
            "description": None,
            "bestLoss": None,
            "config": json.dumps(sweep.config),
            "controller": None,
            "scheduler": None,
            "createdAt": CREATED,
            "heartbeatAt": CREATED,
            "updatedAt": CREATED,
            "earlyStopJobRunning": False,
            "runCount": len(runs),
            "runCountExpected": None,
            "priorRuns": connection([]),
            "runs": connection(runs),
            "project": self.project(sweep.entity, sweep.project),
        }

    def sweep(self, variables: Variables) -> Any:
        """client: GET_SWEEP_GQL and SweepWithRuns."""
        sweep = self.store.sweeps.get(variables.get("name") or variables.get("sweep") or "")
        return {"project": {"sweep": self.sweep_node(sweep) if sweep else None}}

    def create_agent(self, variables: Variables) -> Any:
        """client: create_agent in apis/public/sweeps.py."""
        if variables["sweep"] not in self.store.sweeps:
            raise RefusedError(404, f"sweep {variables['sweep']} not found")
        agent = f"agent{len(self.store.agents)}"
        self.store.agents[agent] = variables["sweep"]
        return {"createAgent": {"agent": {"id": agent}}}

    def heartbeat(self, variables: Variables) -> Any:
        """client: agent_heartbeat; a command only for an idle agent (guide: sweeps/start-sweep-agents).

        A paused sweep starts no new runs until it is resumed (client: help of `wandb sweep --pause`).
        """
        sweep = self.store.sweeps[self.store.agents[variables["id"]]]
        running = [name for name, runs in json.loads(variables.get("runState") or "{}").items() if runs]
        with self.lock:
            commands = [] if running or sweep.state == "PAUSED" else [self.store.next_command(sweep)]
        stopped = [name for name in running if self.store.run(name).stopped]
        commands += [{"type": "stop", "run_id": name} for name in stopped]
        return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}

    # Artifacts

    def create_artifact(self, variables: Variables) -> Any:
        """core: CreateArtifact; identical content gives the existing version."""
        given = variables["input"]
        names = given.get("artifactCollectionNames") or [given.get("artifactCollectionName")]
        entity, project = given["entityName"], given["projectName"]
        earlier = self.store.versions(entity, project, names[0])
        artifact = next((one for one in earlier if one.digest == given["digest"]), None)
        if artifact is None:
            number, kind = len(self.store.artifacts), given["artifactTypeName"]
            name = base64.b64encode(f"Artifact:{number}".encode()).decode()  # decoded by clients before 0.30
            run = given.get("runName") or ""
            artifact = Artifact(name, names[0], kind, entity, project, given["digest"], run)
            self.store.artifacts[name] = artifact
        artifact.metadata, artifact.description = given.get("metadata"), given.get("description")
        aliases = {alias["alias"] for alias in given.get("aliases") or []}
        for other in earlier if artifact.state == "COMMITTED" else []:
            other.aliases -= aliases
        artifact.aliases |= aliases
        latest = {"id": earlier[-1].id, "versionIndex": earlier[-1].index} if earlier else None
        node = self.artifact_node(artifact)
        node["artifactSequence"] = {**node["artifactSequence"], "latestArtifact": latest}
        return {"createArtifact": {"artifact": node}}

    def artifact_node(self, artifact: Artifact) -> dict[str, Any]:
        """Return a version's node (client: ArtifactFragment in sdk/artifacts/_generated/fragments.py)."""
        project = self.project(artifact.entity, artifact.project)
        collection = {"__typename": "ArtifactSequence", "id": f"sequence:{artifact.collection}"}
        collection |= {"name": artifact.collection, "project": project}
        aliases = [
            {
                "__typename": "ArtifactAlias",
                "id": f"alias:{name}",
                "alias": name,
                "artifactCollection": collection,
            }
            for name in sorted(artifact.aliases)
        ]
        manifest = {"file": {"directUrl": f"{self.url}/storage/{artifact.manifest}"}}
        size = sum(len(self.store.blobs.get(path, b"")) for path in artifact.files.values())
        return {
            "__typename": "Artifact",
            "id": artifact.id,
            "artifactSequence": collection,
            "versionIndex": artifact.index,
            "artifactType": {"name": artifact.kind},
            "description": artifact.description,
            "metadata": artifact.metadata,
            "ttlDurationSeconds": -1,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": artifact.state,
            "size": size,
            "digest": artifact.digest,
            "commitHash": artifact.id,
            "fileCount": len(artifact.files),
            "createdAt": CREATED,
            "updatedAt": CREATED,
            "aliases": aliases,
            "currentManifest": manifest,
        }

    def create_manifest(self, variables: Variables) -> Any:
        """core: CreateArtifactManifest, UpdateArtifactManifest."""
        name = variables.get("artifactID") or variables["artifactManifestID"].removeprefix("manifest:")
        self.store.artifacts[name].manifest = f"manifest/{name}"
        file = {
            "id": f"manifest:{name}",
            "uploadUrl": f"{self.url}/storage/manifest/{name}",
            "uploadHeaders": [],
        }
        node = {"artifactManifest": {"id": f"manifest:{name}", "file": file}}
        return {"createArtifactManifest": node, "updateArtifactManifest": node}

    def artifact_files(self, variables: Variables) -> Any:
        """core: CreateArtifactFiles; files that exist get no upload URL."""
        nodes = []
        for file in variables.get("input", variables)["artifactFiles"]:  # 0.28 and 0.31
            path = f"artifact/{file['artifactID']}/{file['name']}"
            self.store.artifacts[file["artifactID"]].files[file["name"]] = path
            node = {"storagePath": path, "uploadUrl": f"{self.url}/storage/{path}", "uploadHeaders": []}
            nodes.append({**node, "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}})
        return {"createArtifactFiles": {"files": connection(nodes)}}

    def commit_artifact(self, variables: Variables) -> Any:
        """core: CommitArtifact."""
        artifact = self.store.commit(variables["artifactID"])
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def artifact(self, variables: Variables) -> Any:
        """client: ArtifactByID, FetchArtifactManifest; core: ArtifactManifest."""
        found = self.store.artifacts.get(str(variables.get("id") or variables.get("artifact_id")))
        return {"artifact": self.artifact_node(found) if found else None}

    def artifact_by_name(self, variables: Variables) -> Any:
        """client: ArtifactMembershipByName, ArtifactType, GetArtifactMembershipFileUrls."""
        entity, project = self.entity_of(variables), variables.get("project") or variables["projectName"]
        name = variables.get("name") or f"{variables.get('collection')}:{variables.get('alias')}"
        found = self.store.version(entity, project, name if ":" in name else f"{name}:latest")
        if found is None:
            return {
                "project": {
                    "artifactCollectionMembership": None,
                    "artifact": None,
                    "artifactCollection": None,
                }
            }
        node = self.artifact_node(found)
        urls = [
            {"__typename": "File", "name": name, "directUrl": f"{self.url}/storage/{path}"}
            for name, path in found.files.items()
        ]
        collection = node["artifactSequence"]
        member = {
            "__typename": "ArtifactCollectionMembership",
            "id": f"member:{found.id}",
            "createdAt": CREATED,
        }
        member |= {
            "versionIndex": found.index,
            "aliases": node["aliases"],
            "artifact": node,
            "files": connection(urls),
        }
        member["artifactCollection"] = collection
        held = {**collection, "artifactMembership": member}
        return {"project": {"artifactCollectionMembership": member, "artifact": node, "artifactCollection": held}}

    def use_artifact(self, variables: Variables) -> Any:
        """client: record_artifact_use in sdk/artifacts/_gqlutils.py, flat; core: UseArtifact, as `input`."""
        given = variables.get("input") or variables
        run = self.store.runs[given["entityName"], given["projectName"], given["runName"]]
        if given["artifactID"] not in run.used:
            run.used.append(given["artifactID"])
        return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}

    def run_artifacts(self, variables: Variables) -> Any:
        """client: RunOutputArtifacts, RunInputArtifacts; both results are in `artifacts`."""
        run = self.found(variables)
        assert run
        made = [one for one in self.store.artifacts.values() if one.run == run.name and one.state == "COMMITTED"]
        return {"project": {"run": {"artifacts": connection([self.artifact_node(one) for one in made])}}}

    def run_inputs(self, variables: Variables) -> Any:
        """client: RunInputArtifacts."""
        run = self.found(variables)
        assert run
        used = [self.artifact_node(self.store.artifacts[name]) for name in run.used]
        return {"project": {"run": {"artifacts": connection(used), "inputArtifacts": connection(used)}}}

    def no_digest(self, _: Variables) -> Any:
        """core: FetchArtifactDigestAlgorithm; the default is MD5."""
        return {"project": {"artifactType": None}}


OPERATIONS: dict[str, Callable[[Wandb, Variables], Any]] = {
    "Viewer": Wandb.viewer,
    "GetViewer": Wandb.viewer,
    "GetDefaultEntity": Wandb.viewer,
    "ServerFeaturesQuery": Wandb.features,
    "OrganizationCoreWeaveOrganizationID": Wandb.no_entity,
    "XXHashDigestsEnabled": Wandb.no_entity,
    "FetchOrgEntityFromEntity": Wandb.no_entity,
    "UpsertModel": Wandb.upsert_project,
    "CreateProject": Wandb.upsert_project,
    "UpsertBucket": Wandb.upsert_run,
    "RunResumeStatus": Wandb.resume_status,
    "RunStoppedStatus": Wandb.run,
    "RunState": Wandb.run,
    "Run": Wandb.run,
    "RunFullHistory": Wandb.run,
    "RunHistoryKeys": Wandb.run,
    "RunSampledHistory": Wandb.run,
    "SampledHistoryPage": Wandb.run,
    "RunParquetHistory": Wandb.run,
    "HistoryPage": Wandb.run,
    "RunFiles": Wandb.run,
    "Runs": Wandb.runs,
    "CreateRunFiles": Wandb.run_files,
    "MarkRunFilesUploaded": Wandb.uploaded,
    "UpsertSweep": Wandb.upsert_sweep,
    "GetSweep": Wandb.sweep,
    "SweepWithRuns": Wandb.sweep,
    "CreateAgent": Wandb.create_agent,
    "Heartbeat": Wandb.heartbeat,
    "CreateArtifact": Wandb.create_artifact,
    "CreateArtifactManifest": Wandb.create_manifest,
    "UpdateArtifactManifest": Wandb.create_manifest,
    "CreateArtifactFiles": Wandb.artifact_files,
    "CommitArtifact": Wandb.commit_artifact,
    "ArtifactByID": Wandb.artifact,
    "ArtifactManifest": Wandb.artifact,
    "FetchArtifactManifest": Wandb.artifact,
    "ArtifactMembershipByName": Wandb.artifact_by_name,
    "GetArtifactMembershipFileUrls": Wandb.artifact_by_name,
    "ArtifactType": Wandb.artifact_by_name,
    "FetchArtifactDigestAlgorithm": Wandb.no_digest,
    "UseArtifact": Wandb.use_artifact,
    "RunOutputArtifacts": Wandb.run_artifacts,
    "RunInputArtifacts": Wandb.run_inputs,
}


def connection(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return nodes as a single page."""
    edges = [{"node": node, "cursor": str(place)} for place, node in enumerate(nodes)]
    page = {"__typename": "PageInfo", "hasNextPage": False, "endCursor": None}
    return {"totalCount": len(nodes), "pageInfo": page, "edges": edges}


def error(status: int, text: str) -> Response:
    """Return an error in the service's format (wandb#1239, #9156)."""
    return JSONResponse({"errors": [{"message": text}], "data": None}, status)


def named(app: Any) -> Any:
    """Wrap `app`: append the operation of a GraphQL request to its path, for routes, faults and records."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/graphql":
            return await app(scope, receive, send)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return whole.pop() if whole else await receive()

        query = json.loads(body).get("query", "")
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        only = re.match(r"query\s*\{\s*(\w+)", query)  # 0.28 checks a key with `query { viewer { id } }`
        operation = match[1] if match else only[1].capitalize() if only else "-"
        return await app({**scope, "path": f"/graphql/{operation}"}, again, send)

    return wrapped


@contextmanager
def serving(service: Wandb) -> Iterator[str]:
    """Serve W&B in a thread on a free port; yield its URL."""
    with listening() as listener:
        service.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(config(service))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield service.url
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


def config(service: Wandb) -> uvicorn.Config:
    """Return uvicorn's configuration of W&B."""
    return uvicorn.Config(service.app, log_level="warning", lifespan="off", http=Protocol, timeout_keep_alive=75)


def main() -> None:
    """Serve W&B until Ctrl-C."""
    service = Wandb()
    with listening() as listener:
        service.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(service.url, flush=True)
        uvicorn.Server(config(service)).run([listener])


if __name__ == "__main__":
    main()
