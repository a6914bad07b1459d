"""REST APIs of Google that have no emulator, on this machine, for tests and demos.

    with google_api(VertexAI(), ServiceUsage()) as google:
        ...  # clients whose address is google.url

Each request is checked against Google's published discovery documents, which
google-api-python-client ships; leaving the block fails if one was not what they say.
`discovery.py` knows the documents, `server.py` HTTP, state, operations and faults, and
each service is a module with a short class.
"""
