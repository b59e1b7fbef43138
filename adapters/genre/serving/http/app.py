"""The application: routes, errors, the page.

Owns: the function that answers each path. Ignores: sockets, processes, how anything is answered.

    app = create_app(service)        # an ASGI application; the service is started and stopped by its caller
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query
from fastapi import Request as Http
from fastapi import Response as Reply
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from genre._version import __version__
from genre.errors import NotFoundError, RequestError
from genre.serving.http import page, schema
from genre.serving.http.admin import ACTS, act
from genre.serving.http.bodies import LONGEST_TEXT, reply
from genre.serving.http.feedback import feedback_call
from genre.serving.http.middleware import Middleware
from genre.serving.http.openapi import (
    EXPLAIN_EXAMPLES,
    FEEDBACK_EXAMPLES,
    RECOMMEND_EXAMPLES,
    SCORE_EXAMPLES,
    body,
    documented,
    troubles,
)
from genre.serving.http.overview import overview
from genre.serving.http.scoring import explain_call, score_call
from genre.serving.problems import Problem
from genre.serving.service import Service
from genre.validation import expected

DESCRIPTION = "Scores of many adapters on one base. Rows fail alone; a call fails as a whole only where it cannot be read."
ROWS = (400, 408, 413, 415, 421, 422, 429, 500, 503, 504)
READS = (404, 421, 422)
ADMIN = (400, 401, 404, 408, 409, 413, 415, 421, 422, 429, 500)
CODES = {404: "not_found", 405: "method_not_allowed"}
MESSAGES = {404: "there is nothing at this path", 405: "this path does not take this method"}
_Route = TypeVar("_Route", bound=Callable[..., Any])
Text = Annotated[str, Query(max_length=200)]
LongText = Annotated[str, Query(max_length=LONGEST_TEXT)]
Limit = Annotated[int, Query(ge=1, le=1000)]


def create_app(service: Service) -> FastAPI:
    """Wire a service's routes."""
    off: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = FastAPI(title="GENRE", version=__version__, description=DESCRIPTION, redirect_slashes=False, **off)
    app.add_middleware(Middleware, service=service)
    _errors(app)
    _calls(app, service)
    _lookups(app, service)
    _health(app, service)
    models: list[Any] = [schema.ScoreBody, schema.ExplainBody]
    if service.served is not None:
        _feedback(app, service)
        models.append(schema.FeedbackBody)
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
    def rows(path: str, answer: Any, model: Any, examples: Any) -> Callable[[_Route], _Route]:
        extra = body(model, examples)
        return app.post(path, response_model=answer, responses=troubles(*ROWS), openapi_extra=extra)

    @rows("/v1/score", schema.Answers, schema.ScoreBody, SCORE_EXAMPLES)
    async def score(http: Http) -> Reply:
        """Score candidates, or the best k of the catalogue; a row for each adapter and task."""
        return await score_call(service, http)

    @rows("/v1/recommend", schema.Answers, schema.ScoreBody, RECOMMEND_EXAMPLES)
    async def recommend(http: Http) -> Reply:
        """The best k items, ten unless given, with titles, year and genres, and the probabilities of next-item tasks."""
        return await score_call(service, http, recommend=True)

    @rows("/v1/explain", schema.Explanations, schema.ExplainBody, EXPLAIN_EXAMPLES)
    async def explain(http: Http) -> Reply:
        """The events of the history that an item's score comes from."""
        return await explain_call(service, http)


def _feedback(app: FastAPI, service: Service) -> None:
    extra = body(schema.FeedbackBody, FEEDBACK_EXAMPLES, rows="feedback")

    @app.post("/v1/feedback", response_model=schema.Outcomes, responses=troubles(*ROWS), openapi_extra=extra)
    async def feedback(http: Http) -> Reply:
        """Rewards of what was recommended; an acknowledged one is on the disk, and counts once however often it is sent."""
        return await feedback_call(service, http)


def _lookups(app: FastAPI, service: Service) -> None:
    @app.get("/v1/adapters", response_model=schema.Overview, responses=troubles(421, 500))
    def adapters() -> Reply:
        """Everything that is served: versions, digests, metrics, aliases and their history, counts, canaries."""
        return reply(overview(service))

    @app.get("/v1/items", response_model=schema.Found, responses=troubles(*READS))
    def items(q: Text = "", limit: Limit = 20) -> Reply:
        """Items whose title or id contains a text."""
        return reply({"items": service.lookup.items(q, limit)})

    @app.get("/v1/users", response_model=schema.Users, responses=troubles(*READS))
    def users(q: Text = "", limit: Limit = 20, sample: bool = False) -> Reply:
        """Users of the mounted data set whose id contains a text; with `sample` some of short to long histories."""
        found = service.lookup.sample_users(limit) if sample else service.lookup.users(q, limit)
        return reply({"users": found})

    @app.get("/v1/history", response_model=schema.History, responses=troubles(*READS))
    def history(user_id: Text, limit: Limit = 100) -> Reply:
        """A user's latest events, oldest first."""
        return reply(service.lookup.history(user_id, limit))

    @app.delete("/v1/history-cache", response_model=schema.Forgotten, responses=troubles(421, 422))
    def forget(user_id: LongText) -> Reply:
        """Forget a user in the history cache, files included; the mounted data set and the served log stay as they are."""
        return reply({"user_id": user_id, "dropped": service.forget(user_id)})

    @app.get("/v1/stats", response_model=schema.Stats, responses=troubles(421))
    def stats() -> Reply:
        """Live figures of the last minute."""
        return reply(service.stats())


def _health(app: FastAPI, service: Service) -> None:
    responses = {503: {"model": schema.Health}, **troubles(421)}

    def health(reasons: list[str]) -> Reply:
        return reply({"ok": not reasons, "reasons": reasons}, 503 if reasons else 200)

    @app.get("/livez", response_model=schema.Health, responses=responses)
    async def livez() -> Reply:
        """200 while the process can score; 503 if it should be restarted."""
        return health([] if service.batcher.alive else ["nobody scores"])

    @app.get("/readyz", response_model=schema.Health, responses=responses)
    async def readyz() -> Reply:
        """200 while the service takes traffic; 503 with the reasons otherwise."""
        return health(service.not_ready())

    @app.get("/metrics", response_class=Reply, responses={200: {"content": {"text/plain": {}}}, **troubles(421)})
    def metrics() -> Reply:
        """Metrics for Prometheus."""
        return Reply(service.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _admin(app: FastAPI, service: Service) -> None:
    def add(name: str) -> None:
        model, run = ACTS[name]
        extra = {**body(model), "security": [{"token": []}]}
        named: dict[str, Any] = {"operation_id": f"admin_{name}", "summary": run.__doc__}

        @app.post(f"/v1/admin/{name}", response_model=schema.Done, responses=troubles(*ADMIN), openapi_extra=extra, **named)
        async def operate(http: Http) -> Reply:
            return await act(service, http, name)

    for name in ACTS:
        add(name)


def _errors(app: FastAPI) -> None:
    def answer(http: Http, problem: Problem) -> Reply:
        fields = http.scope["genre"]
        fields["code"] = problem.code
        return Reply(problem.body(fields["request_id"]), problem.status, problem.headers, "application/json")

    @app.exception_handler(Problem)
    async def problem(http: Http, error: Problem) -> Reply:
        return answer(http, error)

    @app.exception_handler(NotFoundError)
    async def missing(http: Http, error: NotFoundError) -> Reply:
        return answer(http, Problem(404, "not_found", error))

    @app.exception_handler(HTTPException)
    async def by_router(http: Http, error: HTTPException) -> Reply:
        message = MESSAGES.get(error.status_code, "the call cannot be read")
        return answer(http, Problem(error.status_code, CODES.get(error.status_code, "bad_request"), message, error.headers))

    @app.exception_handler(RequestValidationError)
    async def by_parameters(http: Http, error: RequestValidationError) -> Reply:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc'][1:]))} cannot be used"
        found = RequestError(what, expected=expected(first))
        return answer(http, Problem(422, "bad_parameter", found))
