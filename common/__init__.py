"""Code that every package may import: errors, addresses, memory and batches.

It imports no other package of this project.
"""
