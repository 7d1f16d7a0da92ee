"""The resources as users write them: pydantic models, conditions and reasons, and what is generated from them.

`training_job` and `model_deployment` are the two kinds; `uri` says where things are; `conditions` what can be said of
them. `crd` and `docgen` turn all of it into CRDs and a reference; `crdgen` writes the files. Pure but for `crdgen`:
no clock, no randomness, no network.
"""
