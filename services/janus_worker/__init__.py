"""Serve tools to Janus from Python: functions, and a connection that looks after itself.

::

    from janus_worker import Worker

    worker = Worker("127.0.0.1:50051")

    @worker.tool(side_effect="read_only")
    async def weather(city: str) -> str:
        \"\"\"Today's weather in a city.\"\"\"
        return f"It rains in {city}."

    worker.run()
"""

from janus_worker.call import Call
from janus_worker.tool import SideEffect, ToolError
from janus_worker.worker import Refused, Worker

__all__ = ["Call", "Refused", "SideEffect", "ToolError", "Worker"]
