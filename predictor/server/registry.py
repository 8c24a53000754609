"""The served models as KServe's ModelServer knows them: its lifecycle and its remaining routes see the truth."""

from typing import Any

from kserve import Model as KServeModel
from kserve import ModelRepository

from predictor.protocol import tensors
from predictor.server.parts import Serving


class AsrModel(KServeModel):  # type: ignore[misc]  # kserve is not typed
    """A served name. Its inference routes are ours (predictor.server.inference): KServe's would parse on the loop."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True

    def get_input_types(self) -> list[dict[str, Any]]:
        return list(tensors.INPUTS)

    def get_output_types(self) -> list[dict[str, Any]]:
        return list(tensors.OUTPUTS)


class Registry(ModelRepository):  # type: ignore[misc]
    """What KServe looks names up in, kept by `predictor.models`."""

    def __init__(self, serving: Serving) -> None:
        super().__init__()
        self._serving = serving
        self.models: dict[str, AsrModel] = {}

    def get_models(self) -> dict[str, KServeModel]:
        served = {model.name for model in self._serving.models}
        self.models = {name: self.models.get(name) or AsrModel(name) for name in sorted(served)}
        return self.models

    def get_model(self, name: str) -> KServeModel | None:
        return self.get_models().get(name)

    def unload(self, name: str) -> None:
        """KServe's word for every model when the process is told to stop: answer what is in flight, no more."""
        self._serving.ready = False
