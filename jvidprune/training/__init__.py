"""Training with optax, orbax and grain: a run is a folder, and goes on where it stopped.

`data` packs clips with their questions into rows, `loss` is what a model makes of these, `step` one step of the
optimiser. `loop` makes the steps and keeps their curve, `checkpoints` the state. `tuning` is a run from its settings to
its best checkpoint, `stts` the run of `jvidprune train stts`; `pruners` and `routers` train beside a model that stays.
"""
