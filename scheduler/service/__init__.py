"""The use cases and the loop, on ports: no SQL, no gRPC."""
