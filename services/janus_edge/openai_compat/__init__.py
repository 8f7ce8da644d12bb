"""The part of OpenAI's HTTP API that the mesh answers: models and chat completions."""
