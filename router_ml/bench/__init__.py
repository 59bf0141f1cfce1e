"""`router-ml bench`: each figure of serving, measured beside its floor. Read `run.py` first."""
