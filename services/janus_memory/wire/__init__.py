"""Between protobuf and the domain: decoding with validation, and encoding."""
