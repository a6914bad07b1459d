"""Google Cloud: the addresses of its services, their clients, and the meaning of their errors.

This package uses Google's client libraries, but neither Beam nor flags. Importing it loads none of
the libraries.
"""
