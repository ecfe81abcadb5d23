"""What `prefixcap train`, `prefixcap eval` and others run: they compose a configuration of conf/, build, and run.

Nothing else in prefixcap imports these, Hydra or data_prep.
"""
