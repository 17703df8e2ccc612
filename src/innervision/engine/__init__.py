"""The work of a run: its frozen models and the one walk through their layers, fitting, evaluation, files."""
