"""`GET /v1/models` and `GET /v1/models/{model}`: what this server can be asked for."""

from typing import Any

import grpc
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import model_pb2
from janus_edge.openai_compat.calls import upstream_error
from janus_edge.openai_compat.reference import Model, ModelList, failures

# Of an alias nobody else is the owner.
_OWNER = "janus"
_PAGE = 1000

router = APIRouter(tags=["OpenAI-compatible"])


@router.get("/v1/models", summary="List models", response_model=ModelList, responses=failures(429, 500, 503, 504))
async def list_models(request: Request) -> Response:
    """Every model and alias, sorted by name. `created` is not known here and always 0."""
    models: list[dict[str, Any]] = []
    token = ""
    try:
        while True:
            page: pb.ListModelsResponse = await request.app.state.inference.ListModels(
                pb.ListModelsRequest(page_size=_PAGE, page_token=token)
            )
            models += map(_model, page.models)
            token = page.next_page_token
            if not token:
                return JSONResponse({"object": "list", "data": models})
    except grpc.aio.AioRpcError as error:
        raise upstream_error(error) from None


@router.get(
    "/v1/models/{model:path}",
    summary="One model",
    response_model=Model,
    responses=failures(404, 429, 500, 503, 504),
)
async def get_model(request: Request, model: str) -> Response:
    """One model (`provider/model`) or alias."""
    try:
        answer: pb.GetModelResponse = await request.app.state.inference.GetModel(pb.GetModelRequest(name=model))
    except grpc.aio.AioRpcError as error:
        raise upstream_error(error) from None
    return JSONResponse(_model(answer.model))


def _model(model: model_pb2.Model) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": model.provider or _OWNER}
