"""The HTTP face of the mesh: a gRPC client of the services, with no rules of its own."""
