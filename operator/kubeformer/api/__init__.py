"""The resources as users write them: pydantic models, conditions and reasons, and what is generated from them.

`training_job` and `model_deployment` are the two kinds; `uri` says where things are; `conditions` what can be said of
them; `crdgen` writes `crds/` and `docs/reference/` from all of it. Pure: no clock, no randomness, no network.
"""
