"""How good a model is at its task: held-out conversations, answers, figures and gates.

One suite scores a local checkpoint or a live endpoint, through the `Generator` protocol.
"""
