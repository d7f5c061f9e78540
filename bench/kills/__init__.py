"""The kill suite: agents at work, everything around them killed at random moments, and witnesses who count.

`suite.py` runs and kills, `cluster.py` does so in the production shape; `scenario.py` says what the agents do, `provider.py`
is their model server, `witness.py` what their commands run, `checks.py` what must hold of every run. `python -m kills`
(scripts/bench kills) prints a table.
"""
