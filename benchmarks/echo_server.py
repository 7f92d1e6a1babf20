"""A served model that costs nothing: `echo` answers the mean of what it gets, over gRPC.

`python -m benchmarks.echo_server` prints the port it listens on.
"""

from __future__ import annotations

from concurrent import futures
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as service

ROW = 8
PICTURE = (1, 128, 128, 3)


class Echo(service.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Two models: `row` takes FP32 [8], `picture` UINT8 [1, 128, 128, 3]."""

    def ServerLive(self, request: Any, context: Any) -> Any:
        """Always."""
        return messages.ServerLiveResponse(live=True)

    def ModelReady(self, request: Any, context: Any) -> Any:
        """Always."""
        return messages.ModelReadyResponse(ready=True)

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        """What the model takes and answers."""
        answer = messages.ModelMetadataResponse(name=request.name, platform="echo")
        if request.name == "row":
            answer.inputs.add(name="in", datatype="FP32", shape=[ROW])
        else:
            answer.inputs.add(name="in", datatype="UINT8", shape=PICTURE)
        answer.outputs.add(name="out", datatype="FP32", shape=[1])
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:
        """The first number that came, as a float."""
        dtype = np.float32 if request.model_name == "row" else np.uint8
        first = np.frombuffer(request.raw_input_contents[0], dtype, 1)
        answer = messages.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="out", datatype="FP32", shape=[1])
        answer.raw_output_contents.append(first.astype(np.float32).tobytes())
        return answer


def main() -> None:
    """Serve until killed."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    service.add_GRPCInferenceServiceServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
