"""Asks a process of Janus whether it can do its job; exit status 0 when it can.

python probe.py grpc://127.0.0.1:50051            the whole process, by grpc.health.v1
python probe.py grpc://127.0.0.1:50051/janus.memory.v1.MemoryService
python probe.py http://127.0.0.1:8080/readyz      the edge
"""

import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit

TIMEOUT_S = 3.0


def main(address: str) -> int:
    """Probe the address; says what is wrong on standard error."""
    parts = urlsplit(address)
    if parts.scheme == "http":
        problem = _http(address)
    elif parts.scheme == "grpc":
        problem = _grpc(parts.netloc, parts.path.strip("/"))
    else:
        problem = f"{address}: neither grpc:// nor http://"
    if problem:
        sys.stderr.write(f"{problem}\n")
    return 1 if problem else 0


def _http(address: str) -> str:
    # Straight to the address, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as error:
        return f"{address} answered {error.code}: {error.read(2000).decode(errors='replace')}"
    except OSError as error:
        return f"{address}: {error}"


def _grpc(target: str, service: str) -> str:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S, wait_for_ready=True)
        except grpc.RpcError as error:
            return f"{target}: {error.code().name}"
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        return f"{target}: {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}"
    return ""


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(str(__doc__))
    sys.exit(main(sys.argv[1]))
