"""Everything that the pipelines need of Google Cloud: declared once, set up, looked at, removed.

python -m resources plan | setup | status | cleanup. Knows neither Beam nor torch.
"""
