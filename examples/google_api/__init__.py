"""Stand-ins for Google's REST APIs that have no emulator, for tests and demos.

    with google_api(VertexAI(), ServiceUsage()) as google:
        ...  # clients whose address is google.url

Each request is checked against Google's discovery documents, which google-api-python-client ships.
The block raises AssertionError at its end if a request did not match them. `discovery.py` reads the
documents, `server.py` handles HTTP, operations and faults, `store.py` keeps resources, and each
service is a short class in its own module.
"""
