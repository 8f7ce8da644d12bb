"""The command `janus`: all services in one process, and clients of them."""

import janus_kit  # noqa: F401 - before gRPC, which reads its environment when it is imported
