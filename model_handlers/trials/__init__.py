"""Trying a model: are its rows right, and how many does it score a second?"""
