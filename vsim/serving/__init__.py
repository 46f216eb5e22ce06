"""Serving of language models, iteration by iteration: the second machine of the batch engine.

One step of a lane is one iteration of the server (one pass over the batch at hand), whose cycles come from tables
instead of a cycle-level simulation. `vsim.serving.api` is the way in; what the tables leave out is said in
`vsim.serving.costs`.
"""
