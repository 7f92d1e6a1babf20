"""A small inference server, as a program: `level` answers the first number of a row of eight.

python level_server.py PORT LOG: writes the number of every row it has answered to LOG. It answers
DELAY_S late where the environment says so.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent import futures
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as service


class Level(service.GRPCInferenceServiceServicer):
    def __init__(self, log: str) -> None:
        self._log = open(log, "a", buffering=1)  # noqa: SIM115
        self._delay_s = float(os.environ.get("DELAY_S", "0"))
        self._platform = os.environ.get("PLATFORM", "python")

    def ServerLive(self, request: Any, context: Any) -> Any:
        return messages.ServerLiveResponse(live=True)

    def ModelReady(self, request: Any, context: Any) -> Any:
        return messages.ModelReadyResponse(ready=request.name == "level")

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        if request.name != "level":
            context.abort(grpc.StatusCode.NOT_FOUND, f"model {request.name} is not found")
        answer = messages.ModelMetadataResponse(
            name="level", versions=["1"], platform=self._platform
        )
        answer.inputs.add(name="row", datatype="FP32", shape=[8])
        answer.outputs.add(name="level", datatype="INT32", shape=[1])
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:
        row = np.frombuffer(request.raw_input_contents[0], np.float32)
        time.sleep(self._delay_s)
        level = np.array([row[0]], np.int32)
        if level[0] == 99:
            context.abort(grpc.StatusCode.INTERNAL, "99 is too much")
        answer = messages.ModelInferResponse(model_name="level")
        answer.outputs.add(name="level", datatype="INT32", shape=[1])
        answer.raw_output_contents.append(level.tobytes())
        self._log.write(f"{level[0]}\n")
        return answer


def main() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(8))
    service.add_GRPCInferenceServiceServicer_to_server(Level(sys.argv[2]), server)
    assert server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
