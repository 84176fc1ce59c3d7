"""Probe kinds: what a question set is for, found by the `kind:` of its YAML file.

A kind is a module with `questions(spec, context, split)`, which yields what to ask, and `judge(context)`, which gives
the rule judge of its replies.
"""

KINDS = {"behaviour": "emeval.probe.kinds.behaviour"}
