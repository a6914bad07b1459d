"""A server that answers prediction requests over HTTP, with the interface that Vertex AI expects.

`settings.py` reads the flags and `server.py` runs the process. `app.py` holds the routes, and
`service.py` the model and its state. `instances.py` turns JSON rows into arrays, `batcher.py` runs
waiting requests together, and `predictions.py` chooses the outputs that an answer contains.
"""
