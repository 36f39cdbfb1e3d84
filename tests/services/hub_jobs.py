"""The jobs of a loopback Hub: what they cost, and their start, without machines.

Shapes are those that huggingface_hub 2.4 sends and reads (hf_api: list_jobs_hardware, run_job, inspect_job; _jobs_api).
"""

from typing import TYPE_CHECKING, Any

from services.hub_store import CREATED
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from services.hub_server import Hub

T4 = {"type": "gpu", "model": "T4", "quantity": "1", "vram": "16 GB", "manufacturer": "Nvidia"}
HARDWARE = [
    ("cpu-basic", "2 vCPU", "16 GB", None, 167),
    ("t4-small", "4 vCPU", "15 GB", T4, 6667),
    ("t4-x4", "16 vCPU", "60 GB", {**T4, "quantity": "4"}, 26667),
]


class Jobs:
    """The calls for the jobs of a Hub."""

    def __init__(self, hub: "Hub") -> None:
        self.hub = hub
        self.all: list[dict[str, Any]] = []  # the bodies with which jobs were started
        self.refusal: tuple[int, str] | None = None

    def routes(self) -> list[Route]:
        return [
            Route("/api/jobs/hardware", self.hardware),
            Route("/api/jobs/{user}", self.start, methods=["POST"]),
            Route("/api/jobs/{user}/{id}", self.info),
        ]

    async def hardware(self, request: Request) -> Response:
        return JSONResponse(
            [
                {
                    "name": name,
                    "prettyName": name,
                    "cpu": cpu,
                    "ram": ram,
                    "ephemeralStorage": "20 GB",
                    "accelerator": accelerator,
                    "unitCostMicroUSD": cost,
                    "unitCostUSD": cost / 1e6,
                    "unitLabel": "minute",
                }
                for name, cpu, ram, accelerator, cost in HARDWARE
            ]
        )

    async def start(self, request: Request) -> Response:
        token, user = self.hub.token(request), request.path_params["user"]
        if not (token and token.user == user and token.role == "write"):
            raise self.hub.refusing(403, f"You don't have the rights to run jobs for {user}")
        if self.refusal:
            raise self.hub.refusing(*self.refusal)
        self.all.append(await request.json())
        return JSONResponse(self.described(user, len(self.all) - 1))

    async def info(self, request: Request) -> Response:
        return JSONResponse(self.described(request.path_params["user"], int(request.path_params["id"], 16)))

    def described(self, user: str, number: int) -> dict[str, Any]:
        """Return the JSON object of a job, with the names of its secrets only."""
        spec = self.all[number]
        shown = ("dockerImage", "command", "arguments", "environment", "flavor", "labels", "volumes")
        return {
            **{name: spec[name] for name in shown if name in spec},
            "id": f"{number:024x}",
            "createdAt": CREATED,
            "owner": {"id": "0", "name": user, "type": "user"},
            "secrets": sorted(spec.get("secrets", {})),
            "status": {"stage": "SCHEDULING", "message": None},
        }
