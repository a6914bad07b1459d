"""The container that serves a model package over HTTP, as Vertex AI calls it.

instances.py and predictions.py are pure: JSON values to arrays, arrays to JSON. batcher.py
runs requests together, service.py is the model and its state, app.py the routes, server.py
the process.
"""
