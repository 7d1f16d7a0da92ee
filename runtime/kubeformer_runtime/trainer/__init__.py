"""The trainer: two tasks over one loop, on one rank or many, that can be stopped at any moment and goes on exactly.

    KUBEFORMER_SETTINGS=settings.json python -m kubeformer_runtime.trainer

What a step does depends on the settings, the data and the step's number alone: the order of rows, the learning
rate and the random numbers of dropout are functions of the seed and the step, not states that have to be
carried along. A checkpoint is therefore weights, optimiser moments and a few counters.

`run` is the story from settings to published model, `loop` the steps, `tasks` the losses, `world` the ranks, `flat`
their gradients, `schedule` the learning rate, `checkpoint` the state on storage, `report` what is said of it.
"""
