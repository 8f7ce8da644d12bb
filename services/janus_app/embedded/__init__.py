"""Real Postgres, Valkey and Chroma from Python wheels, in one data folder.

    async with stack(default_data_folder()) as running:
        running.addresses.postgres_url
        running.publish(grpc="127.0.0.1:50051")

Importing this imports none of the servers' packages.
"""

from janus_app.embedded.errors import DataFolderInUse, EmbeddedError
from janus_app.embedded.folder import default_data_folder, socket_path
from janus_app.embedded.stack import Addresses, Stack, stack
from janus_app.embedded.state import State, read_state

__all__ = [
    "Addresses",
    "DataFolderInUse",
    "EmbeddedError",
    "Stack",
    "State",
    "default_data_folder",
    "read_state",
    "socket_path",
    "stack",
]
