"""The application: routes, errors, the page.

Owns: which path is answered by what. Ignores: sockets, processes, how anything is answered.

    app = create_app(service)        # an ASGI application; the service is started and stopped by whoever made it
"""

from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi import Request as Http
from fastapi import Response as Reply
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from genre._version import __version__
from genre.errors import NotFoundError, RequestError
from genre.serving import examples, page, schema
from genre.serving.admin import ACTS, act
from genre.serving.calls import explain_call, reply, score_call
from genre.serving.front import Front
from genre.serving.openapi import body, documented, troubles
from genre.serving.overview import overview
from genre.serving.problems import Problem
from genre.serving.service import Service

ROWS = (400, 408, 413, 415, 421, 422, 429, 500, 503, 504)
READS = (404, 421, 422)
CODES = {404: "not_found", 405: "method_not_allowed"}
Text = Annotated[str, Query(max_length=200)]
Limit = Annotated[int, Query(ge=1, le=1000)]


def create_app(service: Service) -> FastAPI:
    """Wire a service's routes."""
    app = FastAPI(
        title="GENRE", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False,
        description="Scores of many adapters on one base. Rows fail alone; a call fails as a whole only where it cannot be read.",
    )  # fmt: skip
    app.add_middleware(Front, service=service)
    _errors(app)
    _calls(app, service)
    _lookups(app, service)
    _health(app, service)
    models: list[Any] = [schema.ScoreBody, schema.ExplainBody]
    if service.settings.token is not None:
        _admin(app, service)
        models += dict.fromkeys(model for model, _ in ACTS.values())
    page.mount(app, page.read_files())

    @app.get("/openapi.json", include_in_schema=False)
    async def document() -> Reply:
        return reply(app.openapi())

    app.openapi = documented(app, models, token=service.settings.token is not None)  # type: ignore[method-assign]
    return app


def _calls(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/score", response_model=schema.Answers, responses=troubles(*ROWS),
        openapi_extra=body(schema.ScoreBody, examples.SCORE_EXAMPLES),
    )  # fmt: skip
    async def score(http: Http) -> Reply:
        """Score candidates, or the best k of the catalogue; a row for each adapter and task."""
        return await score_call(service, http)

    @app.post(
        "/v1/recommend", response_model=schema.Answers, responses=troubles(*ROWS),
        openapi_extra=body(schema.ScoreBody, examples.RECOMMEND_EXAMPLES),
    )  # fmt: skip
    async def recommend(http: Http) -> Reply:
        """The best k items, ten unless given, with titles."""
        return await score_call(service, http, recommend=True)

    @app.post(
        "/v1/explain", response_model=schema.Explanations, responses=troubles(*ROWS),
        openapi_extra=body(schema.ExplainBody, examples.EXPLAIN_EXAMPLES),
    )  # fmt: skip
    async def explain(http: Http) -> Reply:
        """Which events of the history an item's score comes from."""
        return await explain_call(service, http)


def _lookups(app: FastAPI, service: Service) -> None:
    @app.get("/v1/adapters", response_model=schema.Overview, responses=troubles(421, 500))
    def adapters() -> Reply:
        """What is served: versions, digests, metrics, aliases and their history, counts, canaries."""
        return reply(overview(service))

    @app.get("/v1/items", response_model=schema.Found, responses=troubles(*READS))
    def items(q: Text = "", limit: Limit = 20) -> Reply:
        """Items whose title or id contains a text."""
        return reply({"items": service.lookup.items(q, limit)})

    @app.get("/v1/users", response_model=schema.Users, responses=troubles(*READS))
    def users(q: Text = "", limit: Limit = 20) -> Reply:
        """Users of the mounted data set whose id contains a text."""
        return reply({"users": service.lookup.users(q, limit)})

    @app.get("/v1/history", response_model=schema.History, responses=troubles(*READS))
    def history(user_id: Text, limit: Limit = 100) -> Reply:
        """A user's latest events, oldest first."""
        return reply(service.lookup.history(user_id, limit))

    @app.get("/v1/stats", response_model=schema.Stats, responses=troubles(421))
    def stats() -> Reply:
        """Live figures of the last minute."""
        return reply(service.stats())


def _health(app: FastAPI, service: Service) -> None:
    def health(reasons: list[str]) -> Reply:
        return reply({"ok": not reasons, "reasons": reasons}, 503 if reasons else 200)

    @app.get("/livez", response_model=schema.Health, responses={503: {"model": schema.Health}, **troubles(421)})
    async def livez() -> Reply:
        """Whether the process should go on."""
        return health([] if service.batcher.alive else ["nobody scores"])

    @app.get("/readyz", response_model=schema.Health, responses={503: {"model": schema.Health}, **troubles(421)})
    async def readyz() -> Reply:
        """Whether traffic should come."""
        return health(service.not_ready())

    @app.get("/metrics", response_class=Reply, responses={200: {"content": {"text/plain": {}}}, **troubles(421)})
    def metrics() -> Reply:
        """For Prometheus."""
        return Reply(service.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _admin(app: FastAPI, service: Service) -> None:
    def add(name: str) -> None:
        async def operate(http: Http) -> Reply:
            return await act(service, http, name)

        app.add_api_route(
            f"/v1/admin/{name}", operate, methods=["POST"], operation_id=f"admin_{name}", summary=ACTS[name][1].__doc__,
            response_model=schema.Done, responses=troubles(400, 401, 404, 408, 409, 413, 415, 421, 422, 429, 500),
            openapi_extra={**body(ACTS[name][0]), "security": [{"token": []}]},
        )  # fmt: skip

    for name in ACTS:
        add(name)


def _errors(app: FastAPI) -> None:
    def answer(http: Http, problem: Problem) -> Reply:
        told = http.scope["genre"]
        told["code"] = problem.code
        return Reply(problem.body(told["request_id"]), problem.status, problem.headers, "application/json")

    @app.exception_handler(Problem)
    async def problem(http: Http, error: Problem) -> Reply:
        return answer(http, error)

    @app.exception_handler(NotFoundError)
    async def missing(http: Http, error: NotFoundError) -> Reply:
        return answer(http, Problem(404, "not_found", error))

    @app.exception_handler(HTTPException)
    async def by_router(http: Http, error: HTTPException) -> Reply:
        what = {404: "there is nothing at this path", 405: "this path does not take this method"}.get(error.status_code)
        code = CODES.get(error.status_code, "bad_request")
        return answer(http, Problem(error.status_code, code, what or "the call cannot be read", error.headers))

    @app.exception_handler(RequestValidationError)
    async def by_parameters(http: Http, error: RequestValidationError) -> Reply:
        first = error.errors()[0]
        what = RequestError(
            f"{'.'.join(map(str, first['loc'][1:]))} cannot be used", expected=first["msg"].removeprefix("Input should be ")
        )
        return answer(http, Problem(422, "bad_parameter", what))
