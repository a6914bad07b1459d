"""Google Cloud: where its services are, their clients, and what their errors mean.

Knows Google's client libraries, but neither Beam nor a flag. Importing this package
loads none of them.
"""
