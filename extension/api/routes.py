"""The routes. Each is a line or two: the service does the work, also for the tab."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from dreambooth_core.errors import DreamBoothError, UserError

from ..service import Studio, types
from ..service.token import WORD
from . import bodies
from .answers import Json, Refused, misshapen, told
from .door import Door, PageDoor

PREFIX = "/dreambooth/v1"
PAGE = "/dreambooth/page"
"""Tells the tab's page the word that the tab's functions ask for."""

OFFSET: Any = Query(0, ge=0, le=2**53)

STILL = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""For a page that may come with a run of somebody else."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class Route(APIRoute):
    """Asks at the door first, and answers every error in one form."""

    door: Door

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The handler, behind the door."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                await self.door.admit(request)
                response: Response = await handle(request)
            except DreamBoothError as error:
                return told(error)
            except RequestValidationError as error:
                return told(misshapen(error))
            except HTTPException as error:
                return told(Refused(error.status_code, str(error.detail)[:200]))
            except ClientDisconnect:
                return told(Refused(400, "the request was not sent to its end"))
            return response

        return handled


def add_routes(app: Any, studio: Studio) -> None:
    """Adds all routes to the host's app; only files in allowed folders can be named."""
    door = Door(app, studio.host.exposure, studio.token)
    _hide(app, studio.token.file)
    studio = studio.confined()
    router = APIRouter(
        prefix=PREFIX,
        tags=["DreamBooth"],
        route_class=type("Route", (Route,), {"door": door}),
        default_response_class=Json,
    )
    for add in (_engine, _subjects, _configuration, _runs, _results, _tools, _others):
        add(router, studio)
    app.include_router(router)
    page = type("PageRoute", (Route,), {"door": PageDoor(app, studio.host.exposure, studio.token)})
    for_page = APIRouter(route_class=page, default_response_class=Json)

    @for_page.get(PAGE, include_in_schema=False)
    def told_to_page() -> Any:
        return {"word": WORD}

    app.include_router(for_page)
    app.openapi_schema = None  # it may have been asked for before


def _hide(app: Any, file: Path) -> None:
    """gradio shows any file of the host's data to whoever asks for it; not this one."""
    blocked = getattr(getattr(app, "blocks", None), "blocked_paths", None)
    if isinstance(blocked, list):
        blocked.append(str(file))


def _others(router: APIRouter, studio: Studio) -> None:
    """Behind the door, too, whatever else is asked for: no route, or none of that method."""
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

    @router.api_route("/{rest:path}", methods=methods, include_in_schema=False)
    def other(rest: str) -> Any:
        raise Refused(404, "there is no such route", where=rest[:100], do="See /docs.")


def _engine(router: APIRouter, studio: Studio) -> None:
    @router.get("/environment", response_model=types.Environment)
    def environment() -> Any:
        """Whether the engine is set up, and what setting it up would download."""
        return studio.setup.state()

    @router.post("/environment/build")
    def build(body: bodies.Nothing) -> Any:
        """Starts setting up the engine."""
        studio.setup.build()
        return {}

    @router.post("/environment/cancel")
    def cancel_build(body: bodies.Nothing) -> Any:
        """Ends setting up the engine."""
        studio.setup.cancel()
        return {}

    @router.get("/environment/log", response_model=types.BuildLog)
    def build_log(offset: int = OFFSET) -> Any:
        """What the installation said since an offset."""
        return studio.setup.log(offset)


def _subjects(router: APIRouter, studio: Studio) -> None:
    @router.get("/pictures", response_model=types.Pictures)
    def pictures(folder: str) -> Any:
        """A folder's images: taken, skipped and why, captions."""
        return studio.pictures(folder)

    @router.put("/caption")
    def caption(body: bodies.Caption) -> Any:
        """Writes the caption beside an image."""
        studio.set_caption(body.picture, body.text)
        return {}

    @router.post("/captions")
    def captions(body: bodies.Captions) -> Any:
        """Starts writing captions by a model: a task. Those that are there stay."""
        return {"task": studio.caption(**vars(body))}

    @router.put("/crop")
    def crop(body: bodies.Crop) -> Any:
        """Writes the crop beside an image: the part that is trained on."""
        studio.set_crop(body.picture, body.sides)
        return {}

    @router.get("/crop", response_model=types.Suggestion)
    def suggested_crop(picture: str) -> Any:
        """The part of an image that stands out from its edges."""
        return studio.suggest_crop(picture)

    @router.get("/bases")
    def bases() -> Any:
        """What training can start from."""
        return {"bases": [dataclasses.asdict(base) for base in studio.bases.all()]}

    @router.get("/base", response_model=types.BaseInfo)
    def base(name: str) -> Any:
        """Family and prediction type of a base."""
        return studio.base_info(name)


def _configuration(router: APIRouter, studio: Studio) -> None:
    @router.get("/schema")
    def schema() -> Any:
        """Every option: key, type, default, label, help, range, choices."""
        return studio.schema()

    @router.get("/presets")
    def presets() -> Any:
        """Recipes, and the user's own."""
        return {"presets": [dataclasses.asdict(preset) for preset in studio.presets.all()]}

    @router.get("/presets/{name}")
    def preset(name: str) -> Any:
        """What a preset sets."""
        return {"values": studio.presets.values(name)}

    @router.put("/presets/{name}", response_model=types.Preset)
    def save_preset(name: str, body: bodies.Preset) -> Any:
        """Keeps values as a preset of the user's."""
        return studio.presets.save(name, body.values)

    @router.delete("/presets/{name}")
    def delete_preset(name: str) -> Any:
        """Deletes a preset of the user's."""
        studio.presets.delete(name)
        return {}

    @router.get("/memory", response_model=types.MemoryChoice)
    def memory() -> Any:
        """The memory that a run may take on this machine: what ``memory.budget: auto`` means."""
        return studio.presets.memory_choice()

    @router.post("/check")
    def check(body: bodies.Settings) -> Any:
        """What would run: wrong values by key, or the forecast."""
        report = studio.check(body.values, body.presets)
        return {"ok": report.ok, **dataclasses.asdict(report)}


def _runs(router: APIRouter, studio: Studio) -> None:
    @router.post("/start")
    def start(body: bodies.Start) -> Any:
        """Starts a run, or puts it into the queue."""
        return {"run": studio.start(body.values, body.name, body.presets)}

    @router.get("/runs")
    def runs() -> Any:
        """All runs: what is live first, then the latest."""
        return {"runs": [dataclasses.asdict(run) for run in studio.runs.all()]}

    @router.get("/status/{run}", response_model=types.Status)
    def status(run: str) -> Any:
        """What state a run is in."""
        return studio.runs.status(run)

    @router.get("/events/{run}")
    def events(run: str, offset: int = OFFSET) -> Any:
        """What happened in a run since an offset."""
        return dataclasses.asdict(studio.runs.events(run, offset))

    @router.post("/command/{run}")
    def command(run: str, body: bodies.Command) -> Any:
        """Asks a run to sample, save or stop."""
        studio.runs.command(run, body.verb)
        return {}

    @router.post("/runs/{run}/resume")
    def resume(run: str, body: bodies.Nothing) -> Any:
        """Resumes a run from its last checkpoint."""
        studio.runs.resume(run)
        return {}

    @router.post("/runs/{run}/evaluate")
    def evaluate(run: str, body: bodies.Evaluation) -> Any:
        """Starts judging what a run learned: a task."""
        asked = {"kind": body.kind, "saves": body.saves, "download": body.download}
        return {"task": studio.evaluate(run, **asked)}

    @router.get("/runs/{run}/evaluation", response_class=FileResponse)
    def evaluation(run: str) -> Any:
        """The page of a run's evaluation; nothing in it is run."""
        headers = {"content-security-policy": STILL, "x-content-type-options": "nosniff"}
        return FileResponse(studio.evaluation(run), media_type="text/html", headers=headers)

    @router.get("/runs/{run}/values")
    def values(run: str) -> Any:
        """A run's configuration."""
        return {"values": studio.runs.values(run)}

    @router.delete("/runs/{run}")
    def delete(run: str) -> Any:
        """Deletes a run's folder."""
        studio.runs.delete(run)
        return {}

    @router.get("/runs/{run}/marks")
    def marks(run: str) -> Any:
        """The images that a run has made, with their marks."""
        return {"images": [dataclasses.asdict(one) for one in studio.runs.marks(run)]}

    @router.put("/runs/{run}/marks")
    def mark(run: str, body: bodies.Mark) -> Any:
        """Calls an image good or bad."""
        studio.mark(run, body.image, body.mark)
        return {}

    @router.get("/runs/{run}/continue")
    def going_on(run: str) -> Any:
        """The configuration of a run that goes on with a run's marked images."""
        return {"values": studio.runs.going_on(run)}

    @router.get("/runs/{run}/picture", response_class=FileResponse)
    def picture(run: str, path: str) -> Any:
        """An image out of a run's folder, by its path there."""
        root = Path(studio.runs.status(run).path)
        file = studio.paths.read(root / path, "images", "the image")
        if root.resolve() not in file.parents or file.suffix.lower() not in PICTURES:
            raise UserError("there is no such image", where=path[:300])
        if not file.is_file():
            raise UserError("there is no such image", where=path[:300])
        return FileResponse(file)


def _results(router: APIRouter, studio: Studio) -> None:
    @router.get("/runs/{run}/saved")
    def saved(run: str) -> Any:
        """What a run has saved that a host can load."""
        return {"saved": [dataclasses.asdict(one) for one in studio.saved(run)]}

    @router.post("/runs/{run}/publish", response_model=types.Published)
    def publish(run: str, body: bodies.Step) -> Any:
        """Puts a saved step where the host lists it."""
        return studio.publish(run, body.step)

    @router.get("/prompt")
    def prompt(name: str) -> Any:
        """What to put into the prompt for an adapter."""
        return {"prompt": studio.results.prompt_for(name)}

    @router.post("/select")
    def select(body: bodies.Name) -> Any:
        """Makes the host generate with a checkpoint."""
        studio.select_checkpoint(body.name)
        return {}


def _tools(router: APIRouter, studio: Studio) -> None:
    @router.get("/adapters")
    def adapters() -> Any:
        """The files in the Lora folder."""
        return {"adapters": [dataclasses.asdict(one) for one in studio.tools.adapters()]}

    @router.get("/tools")
    def tools() -> Any:
        """The tools and their arguments."""
        return {
            name: [dataclasses.asdict(option) for option in options]
            for name, options in studio.tools.all().items()
        }

    @router.post("/inspect")
    def inspect(body: bodies.File) -> Any:
        """What a model file is."""
        return studio.inspect(body.file)

    for name in ("merge", "bake", "extract", "convert", "resize"):
        _tool(router, studio, name)

    @router.get("/tasks")
    def tasks() -> Any:
        """The tasks of this start of the host, the latest first."""
        return {"tasks": [dataclasses.asdict(task) for task in studio.tools.tasks()]}

    @router.get("/tasks/{task}", response_model=types.Task)
    def task(task: str) -> Any:
        """How a task is doing."""
        return studio.tools.task(task)

    @router.delete("/tasks/{task}")
    def cancel(task: str) -> Any:
        """Ends a task."""
        studio.tools.cancel(task)
        return {}


def _tool(router: APIRouter, studio: Studio, name: str) -> None:
    def tool(body: Any) -> Any:
        return {"task": studio.run_tool(name, bodies.given(body))}

    tool.__annotations__["body"] = bodies.tool(name, studio.tools.all()[name])
    router.post(f"/{name}", name=name, description="Starts a task.")(tool)
