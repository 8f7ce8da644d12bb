"""What all services share: hosting, errors, identity, settings, stores, telemetry."""

import os

# Programs that a service starts run nothing of gRPC's, whose handlers at a fork would only warn that they are left out.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
